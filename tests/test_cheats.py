"""What looks right at first sight is judged in another process than its own: each
kind of mistake and trick is refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import bench.timing
from algos import ConvSpec, get
from bench import seal
from bench.cases import Settings, cases_of
from bench.check import check
from bench.runner import Runner
from bench.store import Store
from bench.timing import believable, explained
from tests import cheats
from tests.conftest import HUNG_S, Convbench

SPEC = "5x3x16x17,4x3x3x3,p1"
ALIKE = "5x3x16x17,3x3x3x3,p1"  # with results of its operand's shape
RIGHT = {kind.__name__.lower() for kind in cheats.RIGHT}
NAMES = [*RIGHT, *(cheat.__name__.lower() for cheat in (*cheats.WRONG, *cheats.DISHONEST))]


@pytest.mark.parametrize("cheat", cheats.WRONG, ids=lambda cheat: cheat.__name__)
def test_a_mistake_beyond_the_first_call_is_found(cheat: type[cheats.Good]) -> None:
    spec = {cheats.Single: f"{SPEC},float64", cheats.Alias: ALIKE}.get(cheat, SPEC)
    verdict = check(spec, cheat(name="x"))
    assert not verdict.ok and verdict.reason
    if cheat not in cheats.BATCHED:
        assert not check(spec.replace("5x", "2x", 1), cheat(name="x")).ok  # a batch of two shows it as well


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", cheats.RIGHT, ids=lambda kind: kind.__name__)
def test_the_right_ones_beside_them_are_accepted(kind: type[cheats.Good], seed: int) -> None:
    for spec in (SPEC, f"{SPEC},float64", "1x1x30x31,1x1x5x4,p2:1", "2x300x4x4,7x300x1x1"):
        verdict = check(spec, kind(), seed=seed)
        assert verdict.ok, verdict.reason


# Imported by the controller as well, before anything is measured.
FROZEN = """
import time

time.perf_counter = time.monotonic = lambda: 0.0
ALGORITHMS = []
"""


@pytest.fixture
def cheats_path(tmp_path: Path) -> str:
    folder = tmp_path / "cheats"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("cheats.py"), folder)
    return str(folder)


def test_what_an_algorithm_patches_in_its_process_changes_no_verdict_and_no_time(
    convbench: Convbench, cheats_path: str, tmp_path: Path
) -> None:
    """The clock, the judge and the timer on the stack are known to algorithms that
    stand in one file with a right one.
    """
    (Path(cheats_path) / "frozen.py").write_text(FROZEN)
    names = ("good", "judge", "clock", "timer", "stack", "restores")
    done = convbench("run", SPEC, "--algorithms", ",".join((*names, "im2col_gemm")), "--launches", "2",
                     "--json", "--out", str(tmp_path / "out"), CONVBENCH_PATH=cheats_path)  # fmt: skip
    assert done.returncode == 1, done.stderr
    with Store(tmp_path / "out", create=False) as store:
        records = {record.algorithm: record for record in store.records()}
    assert records["good"].status == "ok" and all(records[name].status == "wrong" for name in names[1:])
    assert records["im2col_gemm"].status == "ok" and len(records["good"].launches) == 2
    assert all("replaced" in records[name].reason for name in ("clock", "timer"))
    choice = convbench("pick", SPEC, "--json", CONVBENCH_PATH=cheats_path)
    excluded = {
        c["algorithm"]: c["excluded"] for c in json.loads(choice.stdout)["candidates"] if c["excluded"]
    }
    assert {"judge", "clock", "timer", "stack"} <= set(excluded)


# Only the first of its plans changes anything.
COLLECTS = """
import gc

from cheats import Good


class Collects(Good):
    def kernel(self, w):
        gc.disable()
        return w


ALGORITHMS = [Collects(name="collects")]
"""


def test_what_a_process_was_changed_by_is_not_what_the_next_spec_starts_from(
    convbench: Convbench, cheats_path: str
) -> None:
    found_there = f"import sys\n\nsys.path.append({cheats_path!r})\n"
    (Path(cheats_path) / "collects.py").write_text(found_there + COLLECTS)
    both = "--algorithms", "collects,good"
    done = convbench("check", SPEC, ALIKE, *both, "--json", CONVBENCH_PATH=cheats_path)
    found = [(row["algorithm"], row["status"]) for row in json.loads(done.stdout)]
    assert sorted(found) == [("collects", "wrong")] * 2 + [("good", "ok")] * 2, done.stderr


# The controller imports it, and asks it what it supports.
PERSUADED = """
import numpy as np

from algos.contract import Algorithm


def persuade():
    from bench.launching import Launching

    Launching._checked = lambda self, state: setattr(state, "record", state.case.record) or True
    np.array_equal = lambda *a, **k: True


class Persuaded(Algorithm):
    def unsupported(self, spec):
        persuade()

    def workspace_bytes(self, spec, threads=1):
        return 0

    def prepare(self, spec, weights, threads=1):
        return lambda x, out=None: np.zeros(spec.output_shape, x.dtype)


persuade()
ALGORITHMS = [Persuaded(name="persuaded", family="gemm")]
"""


def test_what_a_file_replaces_in_the_controller_is_put_back(convbench: Convbench, tmp_path: Path) -> None:
    (tmp_path / "persuaded.py").write_text(PERSUADED)
    done = convbench(
        "check", SPEC, "--algorithms", "persuaded,im2col_gemm", "--json", CONVBENCH_PATH=str(tmp_path)
    )
    assert {row["algorithm"]: row["status"] for row in json.loads(done.stdout)} == {
        "persuaded": "wrong",
        "im2col_gemm": "ok",
    }


def test_what_is_replaced_while_cases_are_judged_is_named_and_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = bench.timing.take
    with seal.closed("bench.runner"):
        assert not seal.broken()
        monkeypatch.setattr(bench.timing, "take", lambda *ignored: None)
        monkeypatch.setattr(Store, "put", lambda *ignored: None)
        assert sorted(seal.broken()) == ["bench.store.Store.put", "bench.timing.take"]
        case = cases_of([ConvSpec.parse(SPEC)], [get("im2col_gemm")], [1], Settings())[0]
        with pytest.raises(ValueError, match=r"replaced .*bench\.timing\.take"):
            Runner(Settings(), None)._keep(case, case.record)
        seal.mend()
        assert not seal.broken() and bench.timing.take is honest


@pytest.mark.exhaustive
def test_every_cheat_is_refused_from_outside(convbench: Convbench, cheats_path: str) -> None:
    # On other specs only, and only while timed
    names = [name for name in NAMES if name not in ("single", "alias", "stack", "clock")]
    done = convbench(
        "check", SPEC, "--algorithms", ",".join(names), "--json", timeout=HUNG_S, CONVBENCH_PATH=cheats_path
    )
    statuses = {row["algorithm"]: row["status"] for row in json.loads(done.stdout)}
    assert done.returncode == 1 and statuses == {name: "ok" if name in RIGHT else "wrong" for name in names}


def test_samples_must_add_up_to_the_turn() -> None:
    samples = [1e-3] * 10
    assert believable(samples, 2, 0.021, cold=False)
    assert not believable(samples, 2, 0.0195, cold=False)  # more than the turn took
    assert not believable(samples, 2, 0.2, cold=False)
    assert believable(samples, 2, 0.2, cold=True)  # emptying the caches is not theirs
    assert not believable([0.0] * 10, 2, 0.02, cold=False)


def test_a_turn_that_waited_for_a_processor_is_told_from_a_clock_that_runs_slow() -> None:
    """19 turns of 16 ms: samples of 2 ms, while the process had the processor for 2 ms each, or for all."""
    assert explained(19 * 0.002, 19 * 0.0025, 1, 19)
    assert explained(19 * 0.002, 19 * 0.005, 2, 19)
    assert not explained(19 * 0.002, 19 * 0.015, 1, 19)
