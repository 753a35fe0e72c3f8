"""The cost model is corrected by what was measured, here or on a machine like this; its picks are judged."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algos
from algos import fitted, wisdom
from algos.build import build_of
from algos.engine.target import candidates
from algos.estimate import tunables_text
from algos.fitted import NONE, OTHERS, WIDTH, Fit, features
from algos.host import fingerprint
from algos.lower.chain import Chain
from algos.lower.search import chain
from algos.registry import get
from algos.spec import ConvSpec
from bench import calibrate, cli, processes, regret_by, shapes, space
from bench.calibrate import Times
from bench.regret import regret
from tests.record_makers import record

SHAPE = candidates()[0]
NAMES = ("im2col_gemm", "direct_channels", "fft_fused")


@pytest.fixture(autouse=True)
def own_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("CONVBENCH_DATA", str(tmp_path))
    monkeypatch.setattr(shapes, "learn", lambda compiling_s: {SHAPE: 1.0})
    monkeypatch.setattr(calibrate, "compile_ahead", lambda *how: None)
    fitted.anew()
    wisdom.recall_anew()
    yield
    fitted.anew()
    wisdom.recall_anew()


def as_modelled(spec: ConvSpec, name: str) -> float:
    return max(chain(get(name), spec, 1).seconds(1), 1e-9)


def planted(spec: ConvSpec) -> dict[str, float]:
    """A machine twice as fast as the model, but for ``fft_fused``, which is the slower the wider its rows."""
    factors = dict.fromkeys(NAMES, 0.5) | {"fft_fused": 2.0 + math.log2(spec.size[-1]) / 4}
    return {name: factor * as_modelled(spec, name) for name, factor in factors.items()}


def layers(seed: int, count: int) -> list[ConvSpec]:
    draw = np.random.default_rng(seed)
    sizes = (draw.integers(low, high, count) for low, high in ((8, 128), (8, 128), (8, 64)))
    return [ConvSpec.parse(f"1x{c}x{n}x{n},{o}x{c}x3x3,p1") for c, o, n in zip(*sizes, strict=True)]


def test_problems_are_the_same_ones_and_fill_the_space() -> None:
    every = space.problems(100)
    assert every == space.problems(100) and every[:40] == space.problems(40)
    for part in (every, every[:40]):
        assert {spec.direction for spec in part} == {"forward", "input_gradient", "weight_gradient"}
        assert {spec.ndim for spec in part} == {1, 2, 3} and {spec.dtype for spec in part} > {"float64"}
        assert len({regret_by.kind(spec) for spec in part}) >= 8


def test_a_fit_predicts_what_it_has_not_seen_and_leaves_alone_what_is_far_away() -> None:
    found = [Times(spec, 1, planted(spec)) for spec in layers(0, 60)]
    fit = calibrate.fitted(found, fingerprint(), NONE)
    for spec in layers(1, 10):
        for name, seconds in planted(spec).items():
            assert fit.seconds(chain(get(name), spec, 1), 1) == pytest.approx(seconds, rel=0.3)
    assert fit.error < 0.1 < calibrate.off(found, NONE)
    calibrate.remember(calibrate.fitted(found, fingerprint(), fitted.prior(fingerprint())))
    assert fitted.is_calibrated()
    few = calibrate.fitted([Times(spec, 1, {n: 3 * s for n, s in planted(spec).items()})
                            for spec in layers(2, 3)], fingerprint(), fit)  # fmt: skip
    signal = ConvSpec.parse("1x1x100000,1x1x4000,float64")
    way = chain(get("fft"), signal, 1)
    near, far = (math.log(few.seconds(w, 1) / fit.seconds(w, 1))
                 for w in (chain(get("im2col_gemm"), layers(2, 1)[0], 1), way))  # fmt: skip
    assert abs(far) < near and near == pytest.approx(math.log(3), rel=0.3)


def test_corrections_are_those_of_the_threads_that_are_asked_for() -> None:
    spec = ConvSpec.parse("1x1x64x64,1x1x3x3,p1")
    fit = Fit({}, np.array([features(spec, 1)]), {OTHERS: np.array([0.0, 1.0])})
    assert fit.corrections(spec, 1) == [1.0]
    assert fit.corrections(spec, 2) == pytest.approx([math.exp(-9 * WIDTH)])


def test_a_row_survives_json_and_another_shape_of_row_is_refused() -> None:
    fit = calibrate.fitted([Times(spec, 1, planted(spec)) for spec in layers(0, 10)], fingerprint(), NONE)
    row = json.loads(json.dumps(fit.row()))
    way = chain(get("fft_fused"), layers(3, 1)[0], 1)
    assert Fit.read(row).seconds(way, 1) == pytest.approx(fit.seconds(way, 1), rel=1e-2)
    for change in ({"centres": [[0.0]]}, {"weights": {OTHERS: [0.0]}}, {"weights": {}}):
        with pytest.raises((ValueError, KeyError)):
            Fit.read({**row, **change})


def test_what_ships_is_read_and_chosen_by_instruction_set_cores_and_caches() -> None:
    shipped = fitted.priors()
    assert shipped and all(one.weights.keys() >= {OTHERS, "im2col_gemm"} for one in shipped)
    for one in shipped:
        assert fitted.prior({**fingerprint(), **one.machine}) is one
    assert fitted.prior(fingerprint()) in shipped


def test_picks_go_by_this_machines_fit_and_a_damaged_one_is_forgotten() -> None:
    text = "1x32x30x31,32x32x3x3,p1"
    first = algos.pick(text, threads=1)
    about = {name: fingerprint()[name] for name in ("id", "simd", "cores", "caches_bytes")}
    own = {name: np.array([0.0, 0.0]) for name in (OTHERS, *fitted.prior(about).weights)}
    own[first.algorithm] = np.array([9.0, 0.0])
    assert not fitted.is_calibrated()
    calibrate.remember(Fit(about, np.zeros((1, len(fitted.features(ConvSpec.parse(text), 1)))), own))
    assert algos.pick(text, threads=1).algorithm != first.algorithm
    fitted.path().write_text("{")
    fitted.anew()
    wisdom.recall_anew()
    assert algos.pick(text, threads=1).algorithm == first.algorithm


def test_the_command_measures_fits_and_remembers(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    small = [(ConvSpec.parse(text), 1) for text in ("1x2x12x12,3x2x3x3", "1x4x9x9,4x4x1x1")]
    monkeypatch.setattr(space, "space", lambda count, row: small)
    times = tmp_path / "times"
    assert cli.main(["calibrate", "--times", str(times), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == 2 and told["shapes"] == {str(SHAPE): 1.0} and not fitted.is_calibrated()
    assert len(fitted.fit_of_machine().centres) == len(fitted.prior(fingerprint()).centres) + 2
    known = calibrate.read(times)
    assert [case[:2] for case in known] == small and all(min(case.seconds.values()) > 0 for case in known)
    monkeypatch.setattr(calibrate, "measure", lambda asked, *how, **more: iter(asked))  # all are known
    times.write_text(times.read_text() + '["1x8x')  # killed at it
    assert cli.main(["calibrate", "--times", str(times)]) == 0
    out = capsys.readouterr().out
    assert "times of 2 problems" in out and f"first shape: {SHAPE} 1.00\n" in out


def test_what_is_compiled_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ("1x2x12x12,3x2x3x3", "1x4x9x9,4x4x1x1", "1x2x13x12,3x2x3x3", "1x4x8x9,4x4x1x1")
    asked = [(ConvSpec.parse(text), 1) for text in texts]
    seen: list[str] = []
    monkeypatch.setattr(calibrate, "compile_ahead",
                        lambda cases, settings, tell: seen.extend(str(case.spec) for case in cases))
    monkeypatch.setattr(Chain, "compiling_s", lambda way: 2.0 * (way.spec.kernel[0] == 3))
    found = calibrate.compiled(asked, 10.0, True, print)
    assert found == [asked[k] for k in (1, 3, 0, 2)] and [*dict.fromkeys(seen)] == [*texts]


def test_an_interrupted_calibration_keeps_what_it_has_unless_there_is_a_better_one(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupted(count: int) -> Iterator[Times]:
        yield from (Times(spec, 1, planted(spec)) for spec in layers(0, count))
        raise KeyboardInterrupt

    shipped = len(fitted.fit_of_machine().centres)
    for count, kept in ((0, 0), (3, 3), (2, 3)):
        monkeypatch.setattr(calibrate, "measure", lambda *asked, n=count, **how: interrupted(n))
        assert cli.main(["calibrate"]) == 130
        said = capsys.readouterr()
        assert said.out == "" and len(said.err.splitlines()) == 1 and "interrupted" in said.err
        assert len(fitted.fit_of_machine().centres) == shipped + kept


@pytest.mark.parametrize("folder", ["no home", "no folder"])
def test_where_nothing_can_be_kept_nothing_is_measured(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONVBENCH_DATA", str(tmp_path / "file" / "data"))
    if folder == "no home":
        monkeypatch.delenv("CONVBENCH_DATA")
        monkeypatch.setattr("platformdirs.user_data_dir", lambda *names, **options: {}["HOME"])
    monkeypatch.setattr(calibrate, "measure", lambda *asked, **how: pytest.fail("measured"))
    assert cli.main(["calibrate"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "CONVBENCH_DATA" in said


def test_a_problem_that_ends_the_process_or_fails_costs_itself_only(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path
) -> None:
    asked = [(spec, 1) for spec in layers(0, 4)]
    fake = tmp_path / "bench"
    fake.mkdir()
    (fake / "__init__.py").touch()
    (fake / "calibrate.py").write_text(f"""
import json, os, signal, sys
for text, threads in json.load(sys.stdin):
    if text == {str(asked[1][0])!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    found = {{}} if text == {str(asked[2][0])!r} else {{"fft": 1.0}}
    print(json.dumps([text, threads, found, found, found, ""]), flush=True)
""")
    monkeypatch.setattr(processes, "ROOT", str(tmp_path))
    assert [times[:2] for times in calibrate.measure(asked, 60.0)] == [asked[0], asked[3]]
    monkeypatch.setattr(calibrate, "measured", lambda *case: [][0])
    monkeypatch.setattr("sys.stdin", io.StringIO('[["1x2x12x12,3x2x3x3", 1]]'))
    calibrate.main(1.0, 1, 0.0, every=True)
    said = capfd.readouterr()
    assert calibrate.told(said.out).seconds == {} and len(said.err.splitlines()) == 1


def test_contenders_have_room_together_and_none_comes_from_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = ConvSpec.parse("1x64x56x56,64x64x3x3,p1")
    every = calibrate.contenders(spec, 1)
    needed = sum(way.workspace_bytes(1) for way in every.values())
    monkeypatch.setattr(calibrate, "recent_memory", lambda: needed)
    few = calibrate.contenders(spec, 1)
    assert 0 < len(few) < len(every) and 2 * sum(way.workspace_bytes(1) for way in few.values()) <= needed
    monkeypatch.setattr("algos.engine.kept.os.path.exists", lambda path: False)  # nothing is compiled
    monkeypatch.setattr("algos.engine.kept._here", set())
    monkeypatch.setattr("algos.engine.kept._on_disk", set())
    picked = algos.pick(spec, threads=1).algorithm
    assert picked in (likely := calibrate.contenders(spec, 1, every=False)) and len(likely) < len(few)
    monkeypatch.setattr(calibrate, "is_external", lambda algorithm: algorithm.name == min(few))
    assert min(few) not in calibrate.contenders(spec, 1)


def test_the_judge_of_turns_on_doubt_really_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, every = ConvSpec.parse("1x2x12x12,3x2x3x3"), [get(name) for name in ("im2col_gemm", "direct_shift")]
    monkeypatch.setattr(calibrate, "contenders", lambda *case: {a.name: chain(a, *case) for a in every})
    seen: list[str] = []

    def slow(asked: ConvSpec, w: Any, algorithm: Any, threads: int, bias: Any = None) -> Any:
        seen.append(algorithm.name)
        return lambda x, out=None: time.sleep(2e-3 * (algorithm.name == first)) or x

    monkeypatch.setattr(calibrate, "prepared", slow)
    fit = Fit({}, np.zeros((0, 0)), {}, error=9.0)  # nobody is told from anybody
    monkeypatch.setattr(calibrate, "fit_of_machine", lambda: fit)
    first = min(every, key=lambda a: chain(a, spec, 1).seconds(1)).name
    assert calibrate.tuned(spec, 1, 0.01) not in (first, "") and {*seen} == {a.name for a in every}


def test_a_run_teaches_the_model_until_the_machine_is_calibrated() -> None:
    specs, machine = layers(4, 3), fingerprint()["id"]
    made = [record(name, 5 * s, str(spec), machine=machine, threads=1, tunables=tunables_text(get(name)))
            for spec in specs for name, s in planted(spec).items()]  # fmt: skip
    way = chain(get("im2col_gemm"), specs[0], 1)
    before = fitted.fit_of_machine().seconds(way, 1)
    calibrate.learn(replace(one, cold=True) for one in made)
    assert not fitted.path().exists()  # times with empty caches are others
    calibrate.learn(made)
    after, truth = fitted.fit_of_machine().seconds(way, 1), 5 * planted(specs[0])["im2col_gemm"]
    assert abs(math.log(after / truth)) < 0.5 * abs(math.log(before / truth)) and not fitted.is_calibrated()
    kept = fitted.path().read_text()
    calibrate.learn(made[:3])  # a smaller run
    assert fitted.path().read_text() == kept


def test_regret_takes_out_the_noise_and_sees_the_pick(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = layers(0, 1)[0]
    fit = calibrate.fitted([Times(one, 1, planted(one)) for one in layers(0, 20)], fingerprint(), NONE)
    monkeypatch.setattr(regret_by, "fit_of_machine", lambda: fit)
    monkeypatch.setattr(regret_by, "is_calibrated", lambda: True)
    best = min(planted(spec), key=planted(spec).__getitem__)
    even = regret_by.Timed(spec, 1, (planted(spec), planted(spec)))
    wrong = {**planted(spec), best: 10 * max(planted(spec).values())}
    late = regret_by.Timed(spec, 1, (wrong, wrong))
    # Each half takes another for the best by luck alone: no regret
    lucky = regret_by.Timed(spec, 1, ({NAMES[0]: 1.0, NAMES[1]: 1.1}, {NAMES[0]: 1.1, NAMES[1]: 1.0}))
    for case, limits in ((even, (1, 1)), (late, (2, math.inf)), (lucky, (1, 1))):
        whole = {row["source"]: row for row in regret_by.rows([case]) if row["split"] == "all"}
        low, high = limits
        assert low <= whole["calibrated"]["mean"] <= high and whole["calibrated"]["specs"] == 1
    assert "tuned" not in {row["source"] for row in regret_by.rows([late])}
    for factor, told in ((1.04, 1.0), (1.5, 1.5)):  # a tie, and none
        times = {NAMES[0]: 1.0, NAMES[1]: factor}
        case = regret_by.Timed(spec, 1, (times, times), NAMES[1])
        (row,) = (row for row in regret_by.rows([case]) if (row["split"], row["source"]) == ("all", "tuned"))
        assert row["mean"] == pytest.approx(told)
    groups = {(row["split"], row["group"]) for row in regret_by.rows([even])}
    assert {("kind", "3x3"), ("direction", "forward")} <= groups


def test_a_pick_by_one_launch_is_judged_by_the_others() -> None:
    made = [record(name, 1e-3, machine=fingerprint()["id"], build=build_of(get(name)), threads=1,
                   tunables=tunables_text(get(name)), jitter=jitter)
            for name, jitter in (("fft", (1.0, 2.0, 2.0)), ("im2col_gemm", (1.2, 1.0, 1.0)))]  # fmt: skip
    (row,) = (row for row in regret(made) if row["source"] == "measured")
    assert row["specs"] == 1 and row["geometric_mean"] == pytest.approx(2.0)
