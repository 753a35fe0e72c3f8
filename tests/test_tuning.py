"""Tunables: named, tried on request, kept for their spec where they are faster
beyond the noise, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algos
from algos import host, tune, wisdom
from algos.auto import choose
from algos.build import build_of
from algos.estimate import Knowledge, tunables_text
from algos.registry import registry, variant_name
from algos.spec import ConvSpec
from bench.check import check
from bench.lessons import known
from bench.tuning import own_tunables, remember
from reports.findings.frame import to_frame
from reports.findings.tunings import tunings
from reports.tuning import tunings_table
from tests.conftest import Convbench
from tests.record_makers import record
from tests.test_picker import Modelled, own_wisdom  # noqa: F401  # a fixture

LAYER = ConvSpec.parse("1x16x20x20,24x16x3x3,p1")
TUNED = "winograd_f2:block_bytes=4096"
SLEEPY = '''
import time
from dataclasses import dataclass, replace
from tests.faulty import Good

@dataclass(frozen=True)
class Sleepy(Good):
    name: str = "sleepy"
    delay_ms: int = 3

    def alternatives(self, spec, threads=1):
        return [replace(self, delay_ms=ms) for ms in (0, 6)] if spec.size == (12, 12) else []

    def misbehave(self):
        time.sleep(self.delay_ms / 1e3)

ALGORITHMS = [Sleepy()]
'''


@dataclass(frozen=True)
class Tunable(Modelled):
    block: int = 1

    def tunables(self) -> dict[str, Any]:
        return {"block": self.block}


def test_a_name_holds_the_tunables_that_differ() -> None:
    variant = algos.get(TUNED)
    assert variant == replace(algos.get("winograd_f2"), block_bytes=4096)  # type: ignore[call-arg]
    assert variant_name(variant) == TUNED
    assert variant_name(algos.get("winograd_f2")) == "winograd_f2"


@pytest.mark.parametrize("name", ["fft:nosuch=1", "winograd_f2:block_bytes=many",
                                  "winograd_f2:block_bytes=1.5", "nosuch:a=1", "depthwise:rows=-1",
                                  "winograd_f2:block_bytes", "winograd_f2:"])  # fmt: skip
def test_tunables_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        algos.get(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "name", [a.name for a in algos.algorithms() if type(a).alternatives is not algos.Algorithm.alternatives]
)
def test_alternatives_differ_in_tunables_and_are_right(name: str, threads: int) -> None:
    algorithm = algos.get(name)
    # Large enough for threads, and for cutting in another way, to matter.
    texts = {"depthwise": "1x64x40x40,64x1x3x3,p1", "fft_fused": "1x1x400x400,1x1x15x15,p7",
             "winograd_f6": "1x64x80x80,48x64x3x3,p1"}  # fmt: skip
    layer = ConvSpec.parse(texts.get(name, "1x64x40x40,48x64x3x3,p1"))
    found = algorithm.alternatives(layer, threads)
    assert found and algorithm not in found and len(set(found)) == len(found)
    for other in found:
        assert type(other) is type(algorithm) and other.name == name
        assert algos.get(variant_name(other)) == other
        assert other.workspace_bytes(layer, threads) > 0
    for other in (found[0], found[-1]):
        assert check(layer, other, threads).ok


def entry(algorithm: Tunable, spec: ConvSpec, run_s: float, **more: Any) -> wisdom.Known:
    values: dict[str, Any] = {"status": "ok", **more}
    return wisdom.Known(
        "m", "b", str(spec), algorithm.name, tunables_text(algorithm), 2, run_s=run_s, **values
    )


def test_tuned_tunables_are_picked_on_their_spec_only() -> None:
    own, rival = Tunable("own"), Tunable("rival")
    tuned = replace(own, block=8)
    found = {a.name: a for a in (own, rival)}
    entries = [entry(own, LAYER, 3e-3), entry(rival, LAYER, 2e-3), entry(tuned, LAYER, 1e-3)]

    def ask(spec: ConvSpec, entries: list[wisdom.Known]) -> algos.Choice:
        return choose(spec, list(found.values()), Knowledge(entries, found, lambda a: "b"), threads=2)

    choice = ask(LAYER, entries)
    assert (
        choice.algorithm == "own:block=8"
        and choice.source == "measured"
        and choice.reason.startswith("tuned")
    )
    assert {c.algorithm for c in choice.candidates} == {"own:block=8", "rival"}
    elsewhere = ask(LAYER.with_(size=(21, 21)), entries)
    assert {c.algorithm for c in elsewhere.candidates} == {"own", "rival"}
    stale = [*entries[:2], entry(tuned, LAYER, 1e-3, status="wrong", reason="it differs")]
    assert ask(LAYER, stale).algorithm == "rival"


def test_only_a_lead_beyond_the_noise_counts() -> None:
    own = {"a": '{"block": 1}', "b": '{"block": 1}'}
    records = [
        record("a", 1.00e-3, tunables='{"block": 1}'), record("a", 0.995e-3, tunables='{"block": 2}'),
        record("b", 1.00e-3, tunables='{"block": 1}'), record("b", 0.60e-3, tunables='{"block": 2}'),
        record("b", 0.70e-3, tunables='{"block": 4}'), record("c", 1e-3),
    ]  # fmt: skip
    found = {t.algorithm: t for t in tunings(to_frame(records), own)}
    assert set(found) == {"a", "b"}
    assert not found["a"].won and found["b"].won
    assert found["b"].tunables == '{"block": 2}'
    shown = tunings_table(list(found.values())).text()
    assert "as before" in shown and "tuned" in shown


@pytest.mark.usefixtures("own_wisdom")
def test_what_won_is_remembered_until_it_wins_no_more() -> None:
    identity, own = host.fingerprint()["id"], own_tunables()
    algorithm, variant = algos.get("winograd_f2"), algos.get(TUNED)
    made = {"machine": identity, "build": build_of(algorithm), "family": "winograd", "spec": str(LAYER)}
    default = record("winograd_f2", 1e-3, tunables=tunables_text(algorithm), **made)
    wisdom.remember([known(default)])
    for time_s, name in ((5e-4, TUNED), (1e-3, "winograd_f2")):
        records = [default, record("winograd_f2", time_s, tunables=tunables_text(variant), **made)]
        remember(tunings(to_frame(records), own), records)
        choice = algos.pick(LAYER, threads=2)
        assert name in {c.algorithm for c in choice.candidates}


@pytest.mark.usefixtures("own_wisdom")
def test_plan_and_conv2d_run_what_was_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"machine": host.fingerprint()["id"], "threads": 2, "spec": str(LAYER)}
    algorithm, variant = algos.get("winograd_f2"), algos.get(TUNED)
    made["build"] = build_of(algorithm)
    times = {1e-8: algorithm, 1e-9: variant}
    wisdom.remember(
        replace(known(record("winograd_f2", time, tunables=tunables_text(one), **made)), prepare_s=1e-9)
        for time, one in times.items()
    )
    x, w = np.ones(LAYER.input_shape, np.float32), np.ones(LAYER.weight_shape, np.float32)
    assert algos.plan(LAYER, w, threads=2).algorithm == algos.pick(LAYER, threads=2).algorithm == TUNED
    prepared = []
    prepare = type(variant).prepare
    monkeypatch.setattr(
        type(variant), "prepare", lambda self, *more: (prepared.append(self), prepare(self, *more))[1]
    )
    algos.conv2d(x, w, padding=1, threads=2)
    algos.conv2d(x[:, :, 1:], w, padding=1, threads=2, algorithm="winograd_f2")
    assert prepared == [variant, algorithm]


def test_run_tune_finds_and_remembers(convbench: Convbench, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "sleepy.py").write_text(SLEEPY)
    more = {"CONVBENCH_PATH": str(folder), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = convbench("run", "12x12,3x3", "13x13,3x3", "--algorithms", "sleepy,auto", "--tune", "--launches",
                     "2", "--threads", "1", **more)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '{"delay_ms": 0}' in done.stdout and "tuned" in done.stdout
    here = convbench("pick", "12x12,3x3", "--threads", "1", **more).stdout
    there = convbench("pick", "13x13,3x3", "--threads", "1", **more).stdout
    assert "sleepy:delay_ms=0" in here and "sleepy:" not in there and "sleepy" in there
    again = convbench("run", "12x12,3x3", "--algorithms", "sleepy:delay_ms=0,auto", "--launches", "1",
                      "--threads", "1", "--out", "more", **more)  # fmt: skip
    assert again.returncode == 0, again.stderr


def test_registered_algorithms_keep_their_own_names() -> None:
    for name, algorithm in registry().items():
        assert variant_name(algorithm) == name


@pytest.mark.usefixtures("own_wisdom")
def test_a_plan_in_doubt_measures_once_and_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = algos.ConvSpec.parse("1x3x24x24,8x3x3x3,p1")
    w = np.ones(spec.weight_shape, np.float32)
    doubted = tune.doubtful(algos.pick(spec, threads=1, device="cpu"))
    assert len(doubted) > 1

    def turn(self: Any) -> None:
        """Runs, and takes what nobody who was not asked can be expected to take."""
        self.call()
        self.turns.append(1e-8 if self.name == doubted[-1] else 2e-8)

    monkeypatch.setattr(tune._Rival, "turn", turn)
    plan = algos.plan(spec, w, threads=1, tune="5ms")
    assert plan.algorithm == doubted[-1]
    known = {entry.algorithm: entry for entry in wisdom.recall(host.fingerprint()["id"])}
    assert known.keys() == {*doubted} and known[plan.algorithm].verdict == "fastest"
    assert all(entry.low <= entry.high and entry.run_s > 0 for entry in known.values())
    monkeypatch.setattr(tune, "_race", lambda *ignored: pytest.fail("nobody is in doubt"))
    assert algos.plan(spec, w, threads=1, tune="5ms").algorithm == plan.algorithm
    assert algos.pick(spec, threads=1).source == "measured"


@pytest.mark.parametrize(("text", "seconds"), [("50ms", 0.05), ("2s", 2.0), ("200us", 2e-4), (0.1, 0.1)])
def test_a_span_of_time(text: Any, seconds: float) -> None:
    assert tune.span_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "ms", "-1ms", "fast", "nans", 0, True, None, [1]])
def test_what_is_no_span_of_time_is_refused(text: Any) -> None:
    with pytest.raises(ValueError):
        tune.span_s(text)


def test_turns_tell_who_is_slower_and_who_is_not() -> None:
    one, other = [1.0, 1.1, 1.0, 1.2, 1.0], [1.3, 1.45, 1.31, 1.5, 1.3]
    low, high = tune.compared(one, other)
    assert 1.2 < low < 1.3 < high < 1.4
    low, high = tune.compared(one, [1.01 * turn for turn in one])
    assert low < 1 < high
