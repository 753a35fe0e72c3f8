"""What ``pick(max_error=...)`` promises: no error on seeded normals is larger than its bound."""

from __future__ import annotations

import numpy as np
import pytest

import algos
from algos.accuracy import error_bound
from algos.lower.chain import chain
from algos.registry import refusal
from algos.spec import ConvSpec
from bench.data import operands
from bench.oracle import oracle

SPECS = (
    "1x8x13x17,8x8x3x3,p1", "2x3x20x20,5x3x5x5,s2,p2", "1x64x9x9,32x64x1x1", "1x1x40x40,1x1x9x9,p4,rank1",
    "1x6x300,4x6x7,p3", "1x8x12x12,8x1x3x3,p1,float64", "1x4x14x14,6x4x3x3,p1,input_gradient",
    "2x4x14x14,6x4x3x3,p1,weight_gradient", "1x4x12x12,4x4x3x3,p1,float16", "1x3x9x9,4x3x3x3,complex64",
    "1x1x1x1,1x1x1x1", "1x2x6x7x8,3x2x3x3x3,p1",
)  # fmt: skip

# One of each class of accuracy and of rounding, few that compile
NAMES = ("im2col_gemm", "direct_shift", "toeplitz", "fft", "fft_tiles", "winograd_f6", "separable")


def error(name: str, spec: ConvSpec, seed: int) -> float:
    made = operands(spec, seed)
    w = None if spec.direction == "weight_gradient" else made.w
    plan = algos.plan(spec, w, algorithm=name, threads=1)
    exact = oracle(spec, made.x, made.w, made.grad)
    wide = np.complex128 if spec.in_dtype.kind == "c" else np.float64
    off = np.abs(plan(*made.call).astype(wide) - np.asarray(exact).astype(wide))
    return float(off.max() / np.abs(np.asarray(exact).astype(wide)).max())


@pytest.mark.parametrize("text", SPECS)
def test_no_error_exceeds_its_bound_and_no_bound_says_nothing(text: str) -> None:
    spec = ConvSpec.parse(text)
    for algorithm in map(algos.get, NAMES):
        if refusal(algorithm, spec):
            continue
        bound = error_bound(chain(algorithm, spec, 1))
        assert max(error(algorithm.name, spec, seed) for seed in range(3)) <= bound < 1e-2
        if spec.dtype == "float64":
            assert bound < 1e-11


def test_a_pick_keeps_to_the_error_that_it_is_granted() -> None:
    text = "1x64x56x56,64x64x3x3,p1"
    loose, tight = (algos.pick(text, threads=1, max_error=most) for most in (1e-2, 1e-5))
    for choice, most in ((loose, 1e-2), (tight, 1e-5)):
        for candidate in choice.candidates:
            if not candidate.excluded:
                way = chain(algos.get(candidate.algorithm), ConvSpec.parse(text), 1)
                assert error_bound(way) <= most
    out = {c.algorithm: c.excluded for c in tight.candidates if c.excluded}
    assert "its error may reach" in out["winograd_f6"] and loose.expected_s <= tight.expected_s
    with pytest.raises(ValueError, match="no algorithm"):
        algos.pick(text, max_error=1e-12)
    for bad in (0, -1.0, float("nan"), "1e-5"):
        with pytest.raises(ValueError):
            algos.pick(text, max_error=bad)  # type: ignore[arg-type]


def test_an_error_is_a_number_and_no_truth_value() -> None:
    with pytest.raises(ValueError, match="max_error"):
        algos.pick("1x1x9x9,1x1x3x3", max_error=True)
