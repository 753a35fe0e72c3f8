"""Shapes of microkernels: all candidates are right, the fastest is remembered, and one can be forced."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from algos.engine import target
from algos.engine.target import FILE_NAME, Shape, candidates, simd
from algos.host import machine_id
from bench import shapes
from tests.conftest import HUNG_S

USED = "from algos.engine.target import kind; print(kind())"
RIGHT = """
from algos import ConvSpec, get
from bench.check import check
for name in ("direct_channels", "direct_pixels"):
    for text in ("2x13x9x11,37x13x3x3,p1", "1x21x5x9,19x21x1x1"):
        verdict = check(ConvSpec.parse(text), get(name), 1)
        assert verdict.ok, (name, text, verdict)
"""


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CONVBENCH_DATA", str(tmp_path))
    yield tmp_path / FILE_NAME
    target.shape.cache_clear()


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "CONVBENCH_SIMD"}
    return subprocess.run([sys.executable, "-c", code], env=kept | variables, capture_output=True, text=True,
                          timeout=HUNG_S, check=False)  # fmt: skip


def test_all_candidates_fit_the_registers() -> None:
    found = candidates()
    assert len(set(found)) == len(found) > 1
    assert all(shape.fits and target.read(str(shape)) == shape for shape in found)


@pytest.mark.exhaustive
@pytest.mark.parametrize("shape", [str(shape) for shape in candidates()])
def test_every_candidate_is_right(shape: str) -> None:
    is_right(shape)


def test_the_second_candidate_is_right() -> None:
    is_right(str(candidates()[1]), NUMBA_OPT="0")  # which takes longest


def is_right(shape: str, **variables: str) -> None:
    done = run(RIGHT, CONVBENCH_SIMD=f"{simd()}:{shape}", **variables)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["6x", "99x9,4x1,4", "4x2,4x2,0"])
def test_a_shape_that_is_none_or_exceeds_the_registers_is_refused(text: str) -> None:
    done = run(USED, CONVBENCH_SIMD=f"{simd()}:{text}")
    assert done.returncode == 1 and "is no shape for" in done.stderr.splitlines()[-1]


def test_the_fastest_is_remembered_and_what_is_damaged_is_not_asked(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = candidates()
    times = {first: 1.0, second: 0.9}
    monkeypatch.setattr(shapes, "candidates", lambda: [*times])
    monkeypatch.setattr(shapes, "measured", lambda some, compiling_s: times)
    shapes.learn()
    assert run(USED).stdout.strip() == f"{simd()}:{second}"
    assert run(USED, CONVBENCH_SIMD="plain").stdout.startswith("plain:")  # other vectors, other shapes
    times[second] = 0.99
    shapes.learn()
    assert run(USED).stdout.strip() == f"{simd()}:{first}"
    monkeypatch.setattr(shapes, "measured", lambda some, compiling_s: {first: 1.0})
    before = memory.read_text()
    shapes.learn()
    assert memory.read_text() == before  # the others may be faster
    for text in ("{", "[]", json.dumps({machine_id(): {simd(): "99x9,9x9,9"}})):
        memory.write_text(text)
        assert run(USED).stdout.strip() == f"{simd()}:{first}"


def test_a_shape_whose_code_takes_too_long_to_compile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    class Compiling:
        def __init__(self, cases: object, threads: int, variables: dict[str, str]) -> None:
            self.shape = variables["CONVBENCH_SIMD"].partition(":")[2]
            self.seconds = {"1": 1.0, "2": 0.5}.get(self.shape, math.inf)

        def ready(self, timeout_s: float | None) -> bool:
            return self.shape != "slow"

        def turn(self, case: int) -> float:
            return self.seconds

        def end(self) -> None:
            ended.append(self.shape)

    monkeypatch.setattr(shapes, "Process", Compiling)
    assert shapes.measured(["1", "slow", "2"], 60.0) == {"1": 1.0, "2": 0.5}
    assert shapes.measured(["slow", "2"], 60.0) == {} and len(ended) == 5
    assert shapes.measured(["1", "2"], 0.0) == {} and len(ended) == 5


def test_ratios_are_medians_of_rounds() -> None:
    turns = [iter([1.0, 9.0, 2.0]), iter([0.5, 4.5, 9.0])]
    assert shapes.compared([lambda one=one: next(one) for one in turns], 3) == [1.0, 0.5]
    assert shapes.fastest({Shape(6, 2, 6, 2, 4): 1.0, Shape(4, 3, 4, 3, 4): 0.98}) == (6, 2, 6, 2, 4)
