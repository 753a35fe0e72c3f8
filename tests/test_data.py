"""Operands are the same everywhere, keep their promises, and are hard to get right by accident."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from algos.dtypes import limits
from algos.spec import ConvSpec
from bench.data import exact_limit, operands, symmetric, widened
from bench.oracle import border_value, oracle
from bench.trial import linear

SPECS = [
    "2x3x9x8,4x3x3x3,p1",
    "1x4x30,8x1x5,s2",
    "1x2x9x9,4x2x5x5,p2,rank1",
    "1x2x9x9,4x2x5x4,p2,rank3,float64",
    "1x600x6x6,4x600x3x3,float16",
    "1x600x6x6,4x600x3x3,int8",
    "1x3x9x9,4x3x3x3,uint8,p1,symmetric",
    "1x3x9x9,4x3x3x3,int8>int32",
    "1x3x9x9,4x3x3x3,int64",
    "1x3x9x9,4x3x3x3,uint64",
    "1x3x9x9,4x3x3x3,p1,constant:5",
    "1x3x5x6x7,4x3x3x3x3",
    "1x30x9x9,4x30x3x3,bfloat16",
    "1x3x9x9,4x3x3x4,complex64,constant:2",
    "1x2x9x9,4x2x5x5,p2,rank2,complex128",
    "0x3x9x9,4x3x3x3",
]
FORWARD = [
    "1x3x9x9,4x3x3x3,p1,uint8*int8>int32,bias,zp128:3",
    "1x3x9x9,4x3x3x3,uint8>uint32,zp3:200",
    "1x3x9x9,4x3x3x3,p1,int8>int16,constant:9,bias,relu,zp-100:5",
    "1x2x9x9,4x2x5x5,p2,rank1,uint8>int16,zp200:255",
    "1x3x9x9,4x3x3x3,int64,bias,zp7:-3",
    "1x3x9x9,4x3x3x3,bfloat16,bias,silu",
]
DIRECTIONS = ["forward", "input_gradient", "weight_gradient"]
CASES = [*itertools.product(SPECS, DIRECTIONS), *((text, "forward") for text in FORWARD)]
TAKEN = {"forward": ("x", "w"), "input_gradient": ("w", "grad"), "weight_gradient": ("x", "grad")}


@pytest.mark.parametrize("kind", ["normal", "integer"])
@pytest.mark.parametrize(("text", "direction"), CASES)
def test_shapes_types_and_repetition(text: str, direction: Any, kind: str) -> None:
    spec = ConvSpec.parse(text).directed(direction)
    data, again, other = operands(spec, 5, kind), operands(spec, 5, kind), operands(spec, 6, kind)
    expected = {
        "x": (spec.input_shape, spec.in_dtype), "w": (spec.weight_shape, spec.w_dtype),
        "grad": (spec.output_shape, spec.out_dtype),
    }
    for name, (shape, dtype) in expected.items():
        array = getattr(data, name)
        if name not in TAKEN[direction]:
            assert array is None
            continue
        assert array.shape == shape and array.dtype == dtype
        assert np.array_equal(array, getattr(again, name))
        assert not array.size or not np.array_equal(array, getattr(other, name))
    assert (data.bias is not None) is spec.bias
    assert data.bias is None or (data.bias.shape, data.bias.dtype) == ((spec.out_channels,), spec.out_dtype)
    assert [a.shape for a in data.call] == [expected[n][0] for n in ("x", "grad") if n in TAKEN[direction]]


def parts(a: np.ndarray, point: int = 0) -> np.ndarray:
    """Real and imaginary parts, or differences from a zero point, in float64."""
    wide = a.astype(np.complex128) - point
    return np.stack([wide.real, wide.imag])


@pytest.mark.parametrize(("text", "direction"), CASES)
def test_whole_numbers_sum_exactly(text: str, direction: Any) -> None:
    spec = ConvSpec.parse(text).directed(direction)
    data, points = operands(spec, 0, "integer"), {"x": spec.zero_points[0], "w": spec.zero_points[1]}
    made = {name: parts(getattr(data, name), points.get(name, 0)) for name in TAKEN[direction]}
    sums = oracle(linear(spec), **{name: np.abs(a).sum(0) for name, a in made.items()},
                  fill=abs(border_value(spec)))  # fmt: skip
    bias = 0 if data.bias is None else np.abs(parts(data.bias)).max()
    assert sums.max(initial=0) + bias < exact_limit(spec)
    for array in made.values():
        assert (array == np.rint(array)).all() and np.abs(array).max(initial=0) <= 8
        assert not array.size or np.count_nonzero(array)


@pytest.mark.parametrize("text", FORWARD[:-1])
@pytest.mark.parametrize("seed", range(3))
def test_sums_of_whole_types_fit_their_type(text: str, seed: int) -> None:
    spec = ConvSpec.parse(text)
    for kind in ("normal", "integer"):
        data, info = operands(spec, seed, kind), np.iinfo(spec.out_dtype)
        y = oracle(spec, data.x, data.w, None, data.bias)
        assert info.min <= y.min() and y.max() <= info.max and np.count_nonzero(y) > y.size / 8


def test_whole_numbers_use_the_range_where_it_is_exact() -> None:
    data = operands(ConvSpec.parse("1x64x20x20,64x64x3x3"), 0, "integer")
    assert data.x is not None and data.w is not None
    assert (data.x.min(), data.x.max(), data.w.min(), data.w.max()) == (-8, 8, -4, 4)
    narrow = operands(ConvSpec.parse("1x64x20x20,64x64x3x3"), 0, "integer", (2, 1), 0.25)
    assert narrow.x is not None and narrow.w is not None
    assert (
        narrow.x.max() == 2
        and narrow.w.max() == 1
        and 0.1 < np.count_nonzero(narrow.w) / narrow.w.size < 0.25
    )


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("seed", range(3))
def test_kernels_differ_from_their_mirror_images(text: str, seed: int) -> None:
    w = operands(ConvSpec.parse(text), seed, "integer").w
    assert w is not None and not symmetric(w)


def test_symmetry_is_seen() -> None:
    edge = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    assert symmetric(edge)
    assert symmetric(np.array([[1, 2, 3], [4, 5, 6], [1, 2, 3]])[None, None])
    assert symmetric(np.arange(9).reshape(3, 3)[None, None] + np.arange(9).reshape(3, 3).T)
    assert not symmetric(np.arange(9).reshape(3, 3)[None, None])
    assert not symmetric(np.ones((1, 1, 1, 1)))


@pytest.mark.parametrize("kind", ["normal", "integer"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_weights_keep_the_promise_of_rank(rank: int, dtype: str, kind: str) -> None:
    """The rounding of the weights, and that of the decomposition in float64,
    may look like more rank; nothing else.
    """
    unit = float(limits(np.dtype(dtype)).eps) / 2 + 8 * 2.0**-53
    for seed in range(5):
        w = operands(ConvSpec.parse(f"1x3x9x9,8x3x5x4,rank{rank}").with_(dtype=dtype), seed, kind).w
        assert w is not None and (kernel_ranks(w, unit) <= rank).all()
    whole = operands(ConvSpec.parse("1x3x9x9,8x3x5x4").with_(dtype=dtype)).w
    assert whole is not None and (kernel_ranks(whole, unit) == 4).all()


def kernel_ranks(w: np.ndarray, unit: float) -> np.ndarray:
    values = np.linalg.svd(widened(w), compute_uv=False)
    return (values > unit * np.sqrt((values**2).sum(-1, keepdims=True))).sum(-1)


def test_normals_are_normal() -> None:
    x = operands(ConvSpec.parse("2x8x64x64,1x8x3x3")).x
    assert x is not None
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02 and x.max() < 6


def test_integers_fill_what_their_sums_allow() -> None:
    x = operands(ConvSpec.parse("1x3x30x30,4x3x3x3,int8>int32")).x
    assert x is not None and x.min() < -120 and x.max() > 120
    spec = ConvSpec.parse("1x3x9x9,4x3x3x3,int64")
    data = operands(spec)
    assert data.x is not None and data.x.max() > 2**20
    assert int(np.abs(oracle(spec, data.x, data.w)).max()) < 2**63


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="normal or integer"):
        operands(ConvSpec.parse("1x1x3,1x1x3"), 0, "uniform")
    assert math.isfinite(exact_limit(ConvSpec.parse("1x1x3,1x1x3")))
