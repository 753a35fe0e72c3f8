"""Arrays whose channels lie together (NHWC in memory, N, C, ... in shape): in
and out, and what the choice counts.
"""

from __future__ import annotations

import numpy as np
import pytest

import algos
from algos.arrays import layout_of
from algos.registry import get
from bench.check import check

rng = np.random.default_rng(0)


def lying(a: np.ndarray) -> np.ndarray:
    """The same numbers and shape, channels together."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


X, W = rng.standard_normal((2, 4, 9, 11), np.float32), rng.standard_normal((6, 4, 3, 3), np.float32)


@pytest.mark.parametrize(
    "text",
    ["2x5x9x10,7x5x3x3,s2x1,p1:2x0", "1x8x6x7,20x8x1x1", "2x3x21,4x3x5,d2,p2",
     "2x2x5x6x7,3x2x3x2x3,p1,float64", "2x4x9x9,6x2x3x3,p1", "2x4x9x9,6x4x3x3,s2,p1,weight_gradient",
     "1x3x9x9,4x3x3x3,reflect,p1,bfloat16,bias,relu"],
)  # fmt: skip
def test_rows_of_channels_are_the_definition(text: str) -> None:
    if "bias" not in text:
        verdict = check(text, get("im2row_gemm"), 2)
        assert verdict.ok, verdict.reason
    assert algos.pick(text, layout="nhwc")


def test_results_lie_as_operands_do() -> None:
    right = algos.conv2d(X, W, padding=1)
    assert layout_of(right) == "nchw" and layout_of(lying(X)) == "nhwc"
    for algorithm in ("auto", "im2row_gemm", "direct_shift", "im2col_gemm"):
        y = algos.conv2d(lying(X), W, padding=1, algorithm=algorithm)
        assert layout_of(y) == "nhwc" and np.allclose(y, right, atol=1e-4)
        out = np.empty_like(right)
        assert algos.conv2d(lying(X), W, padding=1, algorithm=algorithm, out=out) is out
        assert np.allclose(out, right, atol=1e-4)
        plan = algos.plan("2x4x9x11,6x4x3x3,p1", W, algorithm, layout="nhwc")
        assert layout_of(plan(lying(X))) == layout_of(plan(X)) == "nhwc"
    grad = lying(rng.standard_normal((2, 6, 9, 11), np.float32))
    assert layout_of(algos.conv2d_input(X.shape, W, grad, padding=1)) == "nhwc"
    assert algos.conv2d_weight(lying(X), W.shape, grad, padding=1).flags.c_contiguous


def test_the_choice_counts_the_copies_and_says_so() -> None:
    text = "1x256x28x28,64x256x1x1"
    lie, stand = (algos.pick(text, layout=layout, threads=1) for layout in ("nhwc", "nchw"))
    runs = [{c.algorithm: c.run_s for c in choice.candidates} for choice in (lie, stand)]
    assert runs[0]["im2row_gemm"] < runs[1]["im2row_gemm"] and runs[0]["im2col_gemm"] > runs[1]["im2col_gemm"]
    for choice, own in ((lie, "nhwc"), (stand, "nchw")):
        copies = get(choice.algorithm.partition(":")[0]).layout != own
        assert ("copy between" in choice.reason) == copies
    with pytest.raises(ValueError, match="layout is 'hwc'"):
        algos.plan(text, rng.standard_normal((64, 256, 1, 1), np.float32), layout="hwc")
