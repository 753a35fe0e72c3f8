"""What ``python -m bench.typed`` prints, and what a plan in another type leaves to its first call."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import algos
from algos import ConvSpec
from bench.data import operands
from bench.typed import LAYERS, compared, lines


def test_a_layer_is_timed_beside_itself_in_float32() -> None:
    spec = ConvSpec.parse("1x4x8x8,4x4x3x3,p1")
    found = compared(spec, "float16", 1, turns=4, algorithm="direct_shift")
    assert found.algorithms == ("direct_shift", "direct_shift")
    assert found.ratio == pytest.approx(found.single_s / found.typed_s)
    each, total = lines([found], "float16")
    assert str(spec) in each and total.endswith(f"worst {found.ratio:.2f}")
    assert all(ConvSpec.parse(text) for text in LAYERS)


@pytest.mark.parametrize("text", ["1x64x48x48,1x64x1x1,float16", "1x64x48x48,1x64x1x1,int8>int32"])
@pytest.mark.parametrize("name", ["direct_shift", "direct_channels"])
def test_the_first_call_makes_no_buffers(text: str, name: str) -> None:
    spec = ConvSpec.parse(text)
    data = operands(spec)
    plan = algos.plan(spec, data.w, name, 1)
    out = np.empty(spec.output_shape, spec.out_dtype)
    algos.plan(spec, data.w, name, 1)(*data.call, out=out)  # imports
    tracemalloc.start()
    try:
        plan(*data.call, out=out)
        assert tracemalloc.get_traced_memory()[1] < np.prod(spec.input_shape) * 2  # half of its buffer
    finally:
        tracemalloc.stop()


def test_differences_of_long_whole_numbers_are_exact() -> None:
    """Floats hold the differences, not the numbers."""
    point = 1 << 29
    for dtype in ("int64", "uint64"):
        for count in (4, 9000):
            right = (1 << 53) - 1 - np.arange(count).reshape(1, 1, -1)
            plan = algos.plan(f"1x1x{count},1x1x1,{dtype},zp{point}:0", np.ones((1, 1, 1), dtype))
            assert np.array_equal(plan((right + point).astype(dtype)), right)
