"""Narrow whole numbers in pairs of 16 bits: exact up to the bound that is proven, and not used beyond."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import algos
from algos import ConvSpec
from algos.engine import casts
from algos.engine.pairs import paired, unpaired
from algos.engine.toom_cook import whole_by
from algos.lower.chain import chain, unsupported
from algos.registry import registry
from tests.test_types import judge, problem

NAMES = ["direct_channels", "direct_pixels", "winograd_f2"]
WORDS = "whole numbers in pairs"


@pytest.mark.parametrize("dtype", ["int8>int32", "uint8*int8>int32", "int8", "uint8>int64"])
def test_random_problems_are_the_definition(dtype: str) -> None:
    """Odd channels, groups, borders, zero points, strides, one to three axes, bias and activation."""
    rng, agreed = np.random.default_rng([8, len(dtype)]), 0
    for k in range(20):
        spec = problem(rng, dtype)
        wider = spec.with_(in_channels=spec.groups * int(rng.integers(2, 6)))
        names = [name for name in NAMES if not unsupported(registry()[name], wider)]
        paired_up = [name for name in names if WORDS in chain(registry()[name], wider).words]
        agreed += judge(wider, rng, bool(k % 2), paired_up) if paired_up else 0
    assert agreed > 2


def largest(spec: ConvSpec) -> tuple[np.ndarray, np.ndarray]:
    """Operands of which every product has the largest magnitude, of one sign for the first output."""
    info = np.iinfo(spec.in_dtype)
    x, w = (np.full(shape, info.min or info.max, spec.in_dtype)
            for shape in (spec.input_shape, spec.weight_shape))  # fmt: skip
    w[1, ::2] = info.max if info.min else 0
    return x, w


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("1x917x4x5,2x917x3x3,p1,uint8>int32", True),  # 8,253 products of 255 * 255
        ("1x918x4x5,2x918x3x3,p1,uint8>int32", False),
        ("1x3640x4x5,2x3640x3x3,p1,int8>int32", True),  # 32,760 of 128 * 128
        ("1x3641x4x5,2x3641x3x3,p1,int8>int32", False),
    ],
)
def test_the_longest_sums_are_exact(name: str, text: str, used: bool) -> None:
    spec = ConvSpec.parse(text)
    if unsupported(registry()[name], spec):
        assert not used and name == "winograd_f2"  # through floats it may round
        return
    assert (WORDS in chain(registry()[name], spec).words) is used
    x, w = largest(spec)
    y = algos.plan(spec, w, name)(x)
    wide = np.pad(x[0].astype(np.int64), ((0, 0), (1, 1), (1, 1)))
    right = sum(np.tensordot(w[:, :, i, j].astype(np.int64), wide[:, i : i + 4, j : j + 5], 1)
                for i in range(3) for j in range(3))  # fmt: skip
    assert np.array_equal(y[0], right)


def test_what_does_not_fit_is_refused() -> None:
    w = np.ones((1, 2, 1, 1), np.int8)
    plan = algos.plan("1x2x64x64,1x2x1x1,int8", w, "direct_channels")
    assert WORDS in repr(plan)
    x = np.full((1, 2, 64, 64), 63, np.int8)
    assert (plan(x) == 126).all()
    x[0, :, -1, -1] = 64
    with pytest.raises(OverflowError, match="a sum of 128 does not fit int8"):
        plan(x)


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 4, 40, 50), (2, 5, 90, 91)])
@pytest.mark.parametrize("threads", [1, 2])
def test_channels_lie_side_by_side(shape: tuple[int, ...], threads: int) -> None:
    a = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    made = np.empty((shape[0], -(-shape[1] // 2), *shape[2:]), np.int32)
    casts.pair(made, a, 200, threads)
    first, second = unpaired(made)
    wide = a.astype(int) - 200
    assert np.array_equal(first, wide[:, ::2]) and np.array_equal(second[:, : shape[1] // 2], wide[:, 1::2])
    assert shape[1] % 2 == 0 or not second[:, -1].any()
    assert np.array_equal(paired(first, second), made)


def test_only_transforms_that_add_and_subtract_are_whole() -> None:
    assert [whole_by(2, r) for r in (2, 3, 4)] == [1, 2, 0]
    assert whole_by(4, 3) == whole_by(6, 3) == 0
    spec = "1x4x8x8,4x4x3x3,p1,int8>int32"
    reasons: dict[str, Any] = {
        name: unsupported(registry()[name], ConvSpec.parse(spec)) for name in ("winograd_f2", "winograd_f4")
    }
    assert reasons["winograd_f2"] is None and "roundings" in reasons["winograd_f4"]


def test_pairs_are_no_type_of_a_callers_problem() -> None:
    with pytest.raises(ValueError, match="unknown option"):
        ConvSpec.parse("1x4x8x8,4x4x3x3,int16x2")
