"""The benchmarks of ``pytest --benchmark``: one group per spec, one test per algorithm. Plain pytest runs each once."""

from __future__ import annotations

from typing import Any

import pytest

import algos
from algos.engine.threads import usable_cores
from algos.functional import prepared
from bench.check import check
from bench.data import operands
from bench.worker import quieten

SPECS = [
    "1x1x256x256,1x1x3x3,p1",
    "1x1x256x256,1x1x15x15,p7",
    "1x1x256x256,1x1x15x15,p7,rank1",
    "1x16x28x28,32x16x3x3,p1",
    "1x32x56x56,32x1x3x3,p1",
]


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [pytest.param(text, a, id=f"{text}-{a.name}") for text in SPECS for a in algos.algorithms(text) if a.name != "auto"],
)
def test_speed(benchmark: Any, text: str, algorithm: algos.Algorithm) -> None:
    """Right first, then timed: prepared and warmed, so that neither compilation nor preparation is in the clock."""
    spec, threads = algos.ConvSpec.parse(text), usable_cores()
    verdict = check(spec, algorithm, threads)
    assert verdict.ok, verdict.reason
    made = operands(spec, 0)
    plan = prepared(spec, made.w, algorithm, threads)
    x = algorithm.to_device(made.x)
    plan(x)
    benchmark.group = text
    benchmark.extra_info.update(
        flops=int(spec.flops), error=float(verdict.max_error), threads=int(threads), verdict="ok", algorithm=algorithm.name
    )

    def call() -> Any:
        result = plan(x)
        algorithm.synchronize()
        return result

    quieten()  # the check's matrix products have left threads that spin
    assert benchmark(call).shape == spec.output_shape
