"""The picker: measured, then nearest, then modelled; honest about why; never what was wrong or does not fit.
"""

from __future__ import annotations

import copy
import os
import pickle
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algos
from algos import auto, estimate, functional, host, wisdom
from algos.auto import choose
from algos.build import build_of
from algos.choice import pays_off
from algos.contract import Algorithm, Cost
from algos.engine import kept
from algos.estimate import Knowledge, tunables_text
from algos.lower import direction
from algos.spec import ConvSpec
from bench.check import check
from bench.lessons import known
from tests.record_makers import record as made_record

SPEC = ConvSpec.parse("1x1x128x128,1x1x5x5,p2")


@dataclass(frozen=True)
class Modelled(Algorithm):
    """Known to the picker by its cost alone."""

    family: str = "direct"
    rate: float = 1e9

    def unsupported(self, spec: ConvSpec) -> str | None:
        return None

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return 0

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Any:
        raise AssertionError("the picker runs nothing")

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        return Cost(spec.flops, 0, 0, self.rate)

    def tunables(self) -> dict[str, Any]:
        return {}


FAST, SLOW = Modelled("fast", rate=8e9), Modelled("slow", rate=1e9)


def entry(
    algorithm: Algorithm, spec: ConvSpec, run_s: float, status: str = "ok", **more: Any
) -> wisdom.Known:
    values = {
        "machine": "m",
        "build": "b",
        "tunables": tunables_text(algorithm),
        "threads": 2,
        "reason": "" if status == "ok" else "so it was",
        "prepare_s": 0.0,
        **more,
    }
    return wisdom.Known(spec=str(spec), algorithm=algorithm.name, status=status, run_s=run_s, **values)


def ask(*entries: wisdom.Known, spec: ConvSpec = SPEC, calls: int | None = None) -> algos.Choice:
    found = {a.name: a for a in (SLOW, FAST)}
    return choose(
        spec, list(found.values()), Knowledge(entries, found, lambda a: "b"), threads=2, calls=calls
    )


def test_without_records_the_model_decides() -> None:
    choice = ask()
    assert (choice.algorithm, choice.source) == ("fast", "model")
    assert [c.algorithm for c in choice.candidates] == ["fast", "slow"]


def test_records_of_the_spec_overrule_the_model() -> None:
    choice = ask(entry(SLOW, SPEC, 1e-4), entry(FAST, SPEC, 2e-4))
    assert (choice.algorithm, choice.source, choice.expected_s) == ("slow", "measured", 1e-4)
    assert "fast took 2.00 times as long" in choice.reason


def test_records_of_a_neighbour_correct_the_model() -> None:
    near = SPEC.with_(size=(144, 144))
    choice = ask(entry(SLOW, near, 1e-4), entry(FAST, near, 1e-3))
    assert (choice.algorithm, choice.source) == ("slow", "nearest")
    assert str(near) in choice.reason


def test_neighbours_at_the_same_distance() -> None:
    wide, tall = SPEC.with_(size=(64, 256)), SPEC.with_(size=(256, 64))
    choice = ask(*(entry(a, spec, s) for spec in (wide, tall) for a, s in ((SLOW, 1e-4), (FAST, 1e-3))))
    assert (choice.algorithm, choice.source) == ("slow", "nearest")


def test_a_far_spec_teaches_nothing_about_the_order() -> None:
    far = ConvSpec.parse("1x512x7x7,512x512x1x1")
    assert ask(entry(SLOW, far, 1e-7), entry(FAST, far, 1.0)).source == "model"


def test_other_threads_builds_and_tunables_do_not_count() -> None:
    for change in ({"threads": 1}, {"build": "old"}, {"tunables": '{"block": 8}'}):
        assert ask(entry(SLOW, SPEC, 1e-9, **change)).algorithm == "fast"


def test_what_is_left_out_is_not_known_even_where_it_was_asked_for_before() -> None:
    measured = entry(FAST, SPEC, 1e-4)
    knowledge = Knowledge([measured], {FAST.name: FAST}, lambda a: "b")
    assert knowledge.measured(FAST, SPEC, 2) == measured
    assert knowledge.left_out(str(SPEC)).measured(FAST, SPEC, 2) is None
    assert knowledge.measured(FAST, SPEC, 2) == measured


def test_an_unmeasured_candidate_needs_more_than_a_hunch() -> None:
    as_modelled = entry(SLOW, SPEC, SLOW.cost(SPEC).seconds(2))
    for rate, winner in ((1.5e9, "slow"), (3e9, "other")):
        found = {a.name: a for a in (SLOW, Modelled("other", rate=rate))}
        choice = choose(SPEC, list(found.values()), Knowledge([as_modelled], found, lambda a: "b"), threads=2)
        assert choice.algorithm == winner


def test_few_calls_weigh_prepare() -> None:
    entries = entry(SLOW, SPEC, 2e-4, prepare_s=0.0), entry(FAST, SPEC, 1e-4, prepare_s=1e-2)
    assert ask(*entries).algorithm == "fast"
    choice = ask(*entries, calls=1)
    assert choice.algorithm == "slow"
    assert choice.candidates[1].expected_s == pytest.approx(1.01e-2)


def test_a_ranked_spec_falls_back_on_records_of_the_unranked_one() -> None:
    choice = ask(entry(SLOW, SPEC, 1e-4), entry(FAST, SPEC, 2e-4), spec=SPEC.with_(rank=1))
    assert (choice.algorithm, choice.source) == ("slow", "measured")


def known_to_this_machine(
    name: str, text: str, run_s: float, status: str = "ok", threads: int = 1
) -> wisdom.Known:
    algorithm = algos.get(name)
    return wisdom.Known(
        host.fingerprint()["id"], build_of(algorithm), text, name, tunables_text(algorithm), threads, status,
        "off by one" if status != "ok" else "", 0.0, run_s,
    )


@pytest.fixture
def own_wisdom(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("CONVBENCH_DATA", str(tmp_path))
    wisdom.recall_anew()


@pytest.mark.usefixtures("own_wisdom")
def test_pick_remembers_and_leaves_out_with_reasons() -> None:
    text = "1x1x96x96,1x1x3x3,p1"
    names = [a.name for a in algos.algorithms(text) if a.name != "auto"]
    wisdom.remember(known_to_this_machine(name, text, 1e-3 * (1 + i)) for i, name in enumerate(names))
    wisdom.remember(
        [
            known_to_this_machine("direct_shift", text, 1e-9),
            known_to_this_machine("fft", text, 0.0, "crashed"),
        ]
    )
    choice = algos.pick(text, threads=1)
    assert (choice.algorithm, choice.source) == ("direct_shift", "measured")
    out = {c.algorithm: c.excluded for c in choice.candidates if c.excluded}
    assert out["fft"] == "crashed when measured: off by one"
    assert "peer" in out["scipy_correlate2d"] and out["separable"]
    assert "scipy_correlate2d" in [
        c.algorithm for c in algos.pick(text, threads=1, peers=True).candidates if not c.excluded
    ]
    wisdom.remember([known_to_this_machine("direct_shift", "1x1x8x8,1x1x3x3", 0.0, "wrong")])
    assert algos.pick(text, threads=1).algorithm != "direct_shift"


GRADIENT = "1x3x9x10,4x3x3x3,p1,input_gradient"


def said_of(name: str, text: str) -> str:
    """Why the picker leaves it out."""
    return next(c.excluded for c in algos.pick(text, threads=1).candidates if c.algorithm == name)


@pytest.mark.usefixtures("own_wisdom")
def test_a_wrong_lowering_disqualifies_nobodys_native_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """It swaps what it should not; the check says so, the picker hears of it, and
    only who goes that way is left out.
    """
    original = direction._exchanged
    with monkeypatch.context() as patch:
        patch.setattr(
            direction, "_exchanged", lambda w, groups: np.ascontiguousarray(original(w, groups)[..., ::-1])
        )
        verdict = check(GRADIENT, algos.get("im2row_gemm"))
        assert not verdict.ok
        algorithm = algos.get("im2row_gemm")
        record = made_record("im2row_gemm", spec=GRADIENT, status="wrong", reason=verdict.reason, threads=1,
                             machine=host.fingerprint()["id"], build=build_of(algorithm),
                             tunables=tunables_text(algorithm))  # fmt: skip
        wisdom.remember([known(record)])
    assert said_of("im2row_gemm", GRADIENT).startswith("wrong on")
    assert said_of("im2row_gemm", GRADIENT.replace("9x10", "19x17")).startswith("wrong on")  # by the same way
    for text in ("1x3x9x10,4x3x3x3,p1", "1x3x9x10,4x3x3x3,p1,reflect", "1x3x9x10,4x3x3x3,p1,weight_gradient"):
        assert said_of("im2row_gemm", text) == ""
    assert said_of("fft", GRADIENT) == ""  # nobody found that one wrong
    # A mended lowering is another one, on this spec too.
    monkeypatch.setattr(estimate, "lowering_code", lambda: "mended")
    wisdom.recall_anew()
    assert said_of("im2row_gemm", GRADIENT) == ""


@pytest.mark.usefixtures("own_wisdom")
def test_what_is_wrong_natively_is_left_out_by_every_way() -> None:
    wisdom.remember([known_to_this_machine("im2col_gemm", "1x3x9x10,4x3x3x3,p1", 0.0, "wrong")])
    for text in ("1x3x9x10,4x3x3x3,p2", "1x3x9x10,4x3x3x3,p1,reflect", GRADIENT):
        assert said_of("im2col_gemm", text).startswith("wrong on")


@pytest.mark.usefixtures("own_wisdom")
def test_wisdom_of_before_there_were_chains_is_read_and_carried_over() -> None:
    text, other = "1x1x96x96,1x1x3x3,p1", "1x1x200x200,1x1x9x9"
    old = known_to_this_machine("direct_shift", text, 1e-9)
    names = [f.name for f in fields(old) if f.name != "chain"]
    with closing(sqlite3.connect(wisdom.path().with_name(wisdom.OLDER))) as database, database:
        database.execute(f"CREATE TABLE known ({', '.join(names)})")
        database.execute(
            f"INSERT INTO known VALUES ({', '.join('?' * len(names))})",
            [getattr(old, name) for name in names],
        )
    assert algos.pick(text, threads=1).source == "measured" and not wisdom.path().exists()
    wisdom.remember([known_to_this_machine("direct_shift", other, 1e-9)])
    assert wisdom.path().exists() and {entry.spec for entry in wisdom.recall(old.machine)} == {text, other}
    assert algos.pick(text, threads=1).source == "measured"


@pytest.mark.usefixtures("own_wisdom")
def test_limits_are_kept() -> None:
    text = "1x64x56x56,64x64x3x3,p1"
    small = algos.pick(text, max_workspace_bytes=1 << 21)
    assert all((c.workspace_bytes or 0) <= 1 << 21 for c in small.candidates if not c.excluded)
    assert any("the limit is" in c.excluded for c in small.candidates)
    plain = algos.pick("512x512,31x31", accuracy="componentwise")
    assert "fft" in {c.algorithm for c in plain.candidates if "normwise" in c.excluded}
    for bad in (
        {"calls": 0},
        {"threads": -1},
        {"device": "tpu"},
        {"accuracy": "best"},
        {"max_workspace_bytes": -1},
    ):
        with pytest.raises(ValueError):
            algos.pick(text, **bad)  # type: ignore[arg-type]


@pytest.mark.usefixtures("own_wisdom")
def test_no_candidate_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Algorithm, "unavailable", lambda self: "none of its kind is here")
    with pytest.raises(ValueError, match="no algorithm can compute") as caught:
        algos.pick("8x8,3x3,int8>int32")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("own_wisdom")
@pytest.mark.parametrize("damage", [b"", b"not a database" * 500])
def test_damaged_wisdom_is_forgotten_not_fatal(damage: bytes) -> None:
    wisdom.path().write_bytes(damage)
    assert algos.pick("64x64,3x3").source == "model"
    wisdom.remember([known_to_this_machine("fft", "1x1x64x64,1x1x3x3", 1e-9)])
    assert algos.pick("64x64,3x3", threads=1).algorithm == "fft"


@pytest.mark.usefixtures("own_wisdom")
def test_a_machine_measured_with_other_cores_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    text, here = "1x1x96x96,1x1x3x3,p1", host.fingerprint()
    monkeypatch.setattr("os.cpu_count", lambda: here["cores"] + 1)
    (other,) = (identity for identity, cores in host.ids_by_cores().items() if cores == here["cores"] + 1)
    assert other not in (here["id"], *host.ids_by_cores().items())
    assert "measured for" not in algos.pick(text, threads=1).reason
    wisdom.remember([replace(known_to_this_machine("direct_shift", text, 1e-9), machine=other)])
    choice = algos.pick(text, threads=1)
    assert (
        choice.source == "model"
        and f"; measured for {here['cores'] + 1} cores, you have {here['cores']}" in choice.reason
    )
    wisdom.remember([known_to_this_machine("direct_shift", text, 1e-9)])
    assert "measured for" not in algos.pick(text, threads=1).reason


def test_what_was_learnt_is_read_from_a_read_only_folder(
    mount: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mount(tmp_path / "data", 1 << 20)
    monkeypatch.setenv("CONVBENCH_DATA", str(folder))
    entry = known_to_this_machine("direct_shift", "1x1x96x96,1x1x3x3,p1", 1e-9)
    wisdom.remember([entry])
    mount(folder)
    wisdom.recall_anew()
    assert wisdom.recall(entry.machine) == (entry,)
    assert algos.pick(entry.spec, threads=1).source == "measured"
    wisdom.recall_anew()


def test_a_log_that_cannot_be_read_is_said(
    mount: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = mount(tmp_path / "data", 1 << 20)
    monkeypatch.setenv("CONVBENCH_DATA", str(folder))
    entry = known_to_this_machine("direct_shift", "1x1x96x96,1x1x3x3,p1", 1e-9)
    wisdom.remember([entry])
    wisdom.path().with_name(f"{wisdom.FILE_NAME}-wal").write_bytes(b"not merged yet")
    mount(folder)
    wisdom.recall_anew()
    assert wisdom.recall(entry.machine) == () and "cannot be read here" in capsys.readouterr().err
    wisdom.recall_anew()


@pytest.mark.usefixtures("own_wisdom")
def test_a_repeated_pick_is_remembered_until_what_it_depends_on_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "1x1x96x96,1x1x3x3,p1"
    choice = algos.pick(text, threads=1)
    assert algos.pick(text, threads=1) is choice
    assert algos.pick(text, threads=1, accuracy="componentwise") is not choice
    with pytest.raises(ValueError):
        algos.pick(text, threads=True)  # which equals 1
    wisdom.remember([known_to_this_machine("direct_shift", text, 1e-9)])
    learnt = algos.pick(text, threads=1)
    assert (learnt.algorithm, learnt.source) == ("direct_shift", "measured")
    monkeypatch.setattr(auto, "recent_memory", lambda: 100_000)  # of 173 kB, operands and result included
    monkeypatch.setattr(auto, "available_memory", lambda: 100_000)
    short = algos.pick(text, threads=1)
    assert short is not learnt and any("are free" in c.excluded for c in short.candidates)


def test_a_choice_is_found_out_lazily_and_is_whole_when_copied() -> None:
    choice = ask()
    assert "candidates" not in vars(choice)
    for other in (pickle.loads(pickle.dumps(choice)), replace(choice), copy.copy(choice)):
        assert other == choice and len(other.candidates) == 2 and other.reason == choice.reason


@pytest.mark.usefixtures("own_wisdom")
def test_who_was_hopeless_on_a_like_spec_is_ranked_when_somebody_asks() -> None:
    first, like = "1x64x56x56,64x64x3x3,p1", "1x64x57x58,64x64x3x3,p1"
    algos.pick(first, threads=1)
    (hopeless,) = auto.known().hopeless.values()
    assert hopeless
    by_name = {c.algorithm: c for c in algos.pick(like, threads=1).candidates}
    assert hopeless <= by_name.keys() and all(by_name[name].run_s for name in hopeless)
    assert len(by_name) == len(algos.pick(first, threads=1).candidates)


@pytest.mark.usefixtures("own_wisdom")
def test_stale_wisdom_is_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another build nothing is read, however much there is."""
    near = [f"1x1x96x{96 + i},1x1x3x3,p1" for i in range(40)]
    wisdom.remember(replace(known_to_this_machine("direct_shift", text, 1e-3), build="old") for text in near)
    read: list[str] = []
    monkeypatch.setattr(wisdom._Kept, "on", lambda self, specs: read.extend(specs) or [])
    assert algos.pick("1x1x96x95,1x1x3x3,p1", threads=1).source == "model" and not read


TIMES = "run_s", "prepare_s", "compile_s"
COMPILED = Modelled("compiled", runtime="numba", rate=8e9)


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine whose cache of compiled code is empty."""
    monkeypatch.setattr(kept, "_here", set())
    monkeypatch.setattr(kept, "_on_disk", set())
    monkeypatch.setattr(kept, "_missed", {})
    monkeypatch.setattr(kept, "_path", lambda key: str(tmp_path / str(abs(hash(key)))))


@pytest.mark.usefixtures("nothing_compiled")
def test_one_call_does_not_wait_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling counts where calls are few, until the code lies on the disk, and
    not at all once the process has it.
    """
    def ask_both(calls: int | None) -> algos.Choice:
        found = {a.name: a for a in (SLOW, COMPILED)}
        return choose(SPEC, list(found.values()), Knowledge((), found, lambda a: "b"), threads=2, calls=calls)

    once = ask_both(1)
    assert once.algorithm == "slow" and once.candidates[1].compile_s == COMPILED.compile_s(SPEC)
    assert once.candidates[1].expected_s == pytest.approx(sum(getattr(once.candidates[1], s) for s in TIMES))
    calls, name, _ = pays_off(once)
    assert name == "compiled" and f"after {calls} single calls compiling compiled pays" in once.reason
    assert ask_both(None).algorithm == ask_both(100 * calls).algorithm == "compiled"

    kept.compiled_now(COMPILED, SPEC)
    assert ask_both(1).algorithm == "compiled" and ask_both(1).candidates[0].compile_s == 0
    monkeypatch.setattr(kept, "_here", set())  # another process
    assert ask_both(1).candidates[1].compile_s == kept.LOAD_S
    assert pays_off(ask_both(1))[0] < calls


@pytest.mark.usefixtures("nothing_compiled", "own_wisdom")
def test_a_loop_of_single_calls_compiles_when_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "_memo", {})
    rng = np.random.default_rng(0)
    x, w = rng.random((1, 8, 20, 20), np.float32), rng.random((8, 1, 3, 3), np.float32)
    first = algos.conv2d(x, w, padding=1, groups=8)
    (door,) = functional._memo.values()
    assert door.algorithm.compile_s(door.chain.leaves[0]) == 0 and door.faster.compiling_s() > 0
    # Another shape that shares the code has missed all but a call's share of what compiling it takes
    assert 0 < door.saved_s < 0.01
    assert not door.faster.missed(door.faster.compiling_s() - 1.5 * door.saved_s)
    algos.conv2d(x, w, padding=1, groups=8)
    assert list(functional._memo.values()) == [door]
    later = algos.conv2d(x, w, padding=1, groups=8)
    (compiled,) = functional._memo.values()
    assert compiled.algorithm.name == door.faster.algorithm.name and compiled.faster is None
    np.testing.assert_allclose(later, first, rtol=1e-5)
    assert compiled.chain.compiling_s() == 0


@pytest.mark.usefixtures("nothing_compiled", "own_wisdom")
def test_single_calls_take_what_a_plan_has_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "_memo", {})
    x, w = np.ones((1, 8, 20, 20), np.float32), np.ones((8, 1, 3, 3), np.float32)
    algos.conv2d(x, w, padding=1, groups=8)
    (door,) = functional._memo.values()
    faster = door.faster.algorithm.name
    algos.plan(str(door.spec), w, algorithm=faster)
    algos.conv2d(x, w, padding=1, groups=8)
    assert [later.algorithm.name for later in functional._memo.values()] == [faster]


KEPT = """
import sys
import numpy as np, algos
from algos.engine.kept import compiling_s
spec = algos.ConvSpec.parse("1x4x20x20,4x1x3x3,p1")
print(compiling_s(algos.get("depthwise"), spec))
if sys.argv[1:]:
    algos.plan(spec, np.ones(spec.weight_shape, np.float32), algorithm="depthwise")
"""


def test_compiled_code_is_remembered_from_process_to_process(tmp_path: Path) -> None:
    environment = {**os.environ, "CONVBENCH_CACHE": str(tmp_path)}
    seconds = [
        float(
            subprocess.run(
                [sys.executable, "-c", KEPT, *more], env=environment, capture_output=True, check=True
            ).stdout
        )
        for more in (["plan"], [])
    ]
    assert seconds == [algos.get("depthwise").compile_s(ConvSpec.parse("1x4x20x20,4x1x3x3,p1")), kept.LOAD_S]


@pytest.mark.parametrize(
    ("lead", "other", "said"),
    [
        (("fastest", 1, 1), ("slower", 1.6, 2.5), "2.00 x (1.60 to 2.50) faster than slow"),
        (("fastest", 1, 1), ("same", 0.98, 1.02), "slow is the same within 5%"),
        (("fastest", 1, 1), ("undecided", 0.9, 4.0), "undecided whether slow is slower (0.90 to 4.00)"),
        (("undecided", 0.9, 1.2), ("fastest", 1, 1), "not told apart from slow"),
        (("", 0, 0), ("", 0, 0), "slow took 2.00 times as long, not in turns with it"),
    ],
)
def test_the_reason_claims_no_more_than_turns_have_shown(lead: Any, other: Any, said: str) -> None:
    names = ("verdict", "low", "high")
    choice = ask(entry(FAST, SPEC, 1e-3, **dict(zip(names, lead, strict=True))),
                 entry(SLOW, SPEC, 2e-3, **dict(zip(names, other, strict=True))))  # fmt: skip
    assert choice.algorithm == "fast" and said in choice.reason
