"""Narrow whole numbers in pairs of 16 bits: exact up to the bound that is proven, and not used beyond.

Pairs of bfloat16: within the bound of float32's sums, whatever the operands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import algos
from algos import ConvSpec
from algos.dtypes import BFLOAT16
from algos.engine import casts, simd
from algos.engine.pairs import paired, unpaired
from algos.engine.toom_cook import whole_by
from algos.lower.pairs import pairs
from algos.lower.search import chain, unsupported
from algos.registry import registry
from tests.test_types import judge, problem

NAMES = ["direct_channels", "direct_pixels", "winograd_f2"]
WORDS = ("whole numbers in pairs", "whole numbers in fours")


def together(spec: ConvSpec, name: str) -> bool:
    return any(words in chain(registry()[name], spec).words for words in WORDS)


@pytest.mark.parametrize("dtype", ["int8>int32", "uint8*int8>int32", "int8", "uint8>int64"])
def test_random_problems_are_the_definition(dtype: str, request: pytest.FixtureRequest) -> None:
    """Odd channels, groups, borders, zero points, strides, one to three axes, bias and activation; Winograd's
    only kernels that are compiled anyway.
    """
    of_any = NAMES if request.config.option.exhaustive else NAMES[:2]
    rng, agreed = np.random.default_rng([8, len(dtype)]), 0
    for k in range(20 if request.config.option.exhaustive else 14):
        spec = problem(rng, dtype)
        wider = spec.with_(in_channels=spec.groups * int(rng.integers(2, 6)))
        names = [*of_any, *(name for name in NAMES if name not in of_any and {*spec.kernel} == {3})]
        names = [name for name in names if not unsupported(registry()[name], wider)]
        paired_up = [name for name in names if together(wider, name)]
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
        ("1x917x4x5,2x917x3x3,p1,uint8>int32", "pairs"),  # 8,253 products of 255 * 255
        ("1x918x4x5,2x918x3x3,p1,uint8>int32", ""),
        ("1x3640x4x5,2x3640x3x3,p1,int8>int32", "pairs"),  # 32,760 of 128 * 128
        ("1x3641x4x5,2x3641x3x3,p1,int8>int32", "fours"),
        ("1x14563x4x5,2x14563x3x3,p1,int8>int32", "fours"),  # 131,067 of them
        ("1x14564x4x5,2x14564x3x3,p1,int8>int32", ""),
    ],
)
def test_the_longest_sums_are_exact(name: str, text: str, used: str) -> None:
    spec = ConvSpec.parse(text)
    if unsupported(registry()[name], spec):
        assert used != "pairs" and name == "winograd_f2"  # through floats it may round
        return
    assert together(spec, name) is (used == "pairs" or (used == "fours" and simd.QUADS))
    x, w = largest(spec)
    plan = algos.plan(spec, w, name)
    wide = np.pad(x[0].astype(np.int64), ((0, 0), (1, 1), (1, 1)))
    right = sum(np.tensordot(w[:, :, i, j].astype(np.int64), wide[:, i : i + 4, j : j + 5], 1)
                for i in range(3) for j in range(3))  # fmt: skip
    if abs(right).max() >= 2**31:
        with pytest.raises(OverflowError, match="does not fit int32"):
            plan(x)
    else:
        assert np.array_equal(plan(x)[0], right)


def test_what_does_not_fit_is_refused() -> None:
    w = np.ones((1, 2, 1, 1), np.int8)
    plan = algos.plan("1x2x64x64,1x2x1x1,int8", w, "direct_channels")
    assert WORDS[0] in repr(plan)
    x = np.full((1, 2, 64, 64), 63, np.int8)
    assert (plan(x) == 126).all()
    x[0, :, -1, -1] = 64
    with pytest.raises(OverflowError, match="a sum of 128 does not fit int8"):
        plan(x)


@pytest.mark.skipif(not simd.QUADS, reason="no instruction here multiplies fours")
@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize(
    "text",
    ["1x5x9x9,4x5x3x3,p1,int8>int32,zp-128:0", "2x6x70,9x6x3,p2,uint8*int8>int32,zp255:0",
     "1x7x8x9,40x7x1x1,uint8>int32,zp3:128", "1x4x9x9,3x4x3x3,s2,p1,int8>int32,constant:-7",
     "1x8x9x9,6x4x3x3,p1,int8>int32,reflect,zp9:0", "1x3x80x80,5x3x3x3,p1,int8>int32,bias,relu"],
)  # fmt: skip
def test_fours_are_less_their_zero_points_at_borders_too(text: str, name: str) -> None:
    spec, rng = ConvSpec.parse(text), np.random.default_rng(13)
    assert "whole numbers in fours" in chain(registry()[name], spec).words
    assert judge(spec, rng, True, [name]) == 1
    assert "fours" not in chain(registry()[name], spec.with_(zero_points=(0, 1))).words


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 4, 40, 50), (2, 5, 90, 91), (1, 7, 90, 91)])
@pytest.mark.parametrize("above", [0, 128])
def test_four_channels_lie_side_by_side(shape: tuple[int, ...], above: int) -> None:
    a = np.random.default_rng(0).integers(-128, 128, shape, np.int8)
    made = np.empty((shape[0], -(-shape[1] // 4), *shape[2:]), np.uint32)
    casts.quadruple(made, a, above, 2)
    numbers = np.moveaxis(made[..., None].view(np.uint8), -1, 2).reshape(shape[0], -1, *shape[2:])
    assert np.array_equal(numbers[:, : shape[1]], (a.astype(int) + above) & 255)
    assert not numbers[:, shape[1] :].any()


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


# ---- bfloat16 ----------------------------------------------------------------------------------------------

natively = pytest.mark.skipif(not simd.BRAINS, reason="no instruction here multiplies such pairs")


@natively
@pytest.mark.parametrize("text", ["1x6x5x6,4x6x3x3,p1,bfloat16", "2x9x70,3x9x4,bfloat16,bias,silu",
                                  "1x70x8x8,20x70x1x1,bfloat16,relu",
                                  "1x6x9x9,4x3x3x3,s2,bfloat16,constant:3"])  # fmt: skip
@pytest.mark.parametrize("name", NAMES[:2])
def test_random_problems_of_bfloat16_are_the_definition(text: str, name: str) -> None:
    spec = ConvSpec.parse(text)
    assert "bfloat16 in pairs" in chain(registry()[name], spec).words
    assert judge(spec, np.random.default_rng(9), False, [name]) == 1


SPREADS = {  # exponents of x and of w, from and to
    "of one size": ((0, 1), (0, 1)), "all that there are": ((-133, 60), (-133, 60)),
    "denormal x, large w": ((-133, -126), (100, 127)), "large x, denormal w": ((100, 127), (-133, -126)),
    "denormal x, small w": ((-133, 10), (-20, -1)), "faint products": ((-70, -60), (-70, -60)),
    "denormal products": ((-76, -66), (-76, -66)), "large products": ((50, 60), (50, 60)),
    "largest x": ((120, 127), (-40, -10)),
}  # fmt: skip


@natively
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("text", ["1x6x5x6,4x6x3x3,p1,bfloat16", "1x71x8x9,20x71x1x1,bfloat16"])
@pytest.mark.parametrize("name", NAMES[:2])
def test_bfloat16_of_any_size_keeps_the_bound(name: str, text: str, spread: str) -> None:
    spec, rng = ConvSpec.parse(text), np.random.default_rng(10)

    def of(shape: tuple[int, ...], ends: tuple[int, int]) -> np.ndarray:
        made = np.ldexp(rng.uniform(-2, 2, shape), rng.integers(*ends, shape)).astype(BFLOAT16)
        made.flat[:: max(7, made.size // 5)] = 0
        return made

    x, w = of(spec.input_shape, SPREADS[spread][0]), of(spec.weight_shape, SPREADS[spread][1])
    plan, wide = algos.plan(spec, w, name), spec.with_(dtype="float64")
    assert "bfloat16 in pairs" in repr(plan)
    exact, sizes = (algos.plan(wide, f(w.astype("f8")), "direct_shift")(f(x.astype("f8")))
                    for f in (np.positive, np.abs))  # fmt: skip
    k, tiny = spec.reduction_length, 2.0**-126
    bound = k * 2.0**-24 * 1.001 * sizes + 2.0**-8 * abs(exact) + k * tiny
    assert (abs(plan(x).astype("f8") - exact) <= bound).all()



@natively
@pytest.mark.parametrize("name", NAMES[:2])
def test_nan_and_infinity_spoil_what_reads_them(name: str) -> None:
    spec, rng = ConvSpec.parse("1x4x20x20,3x4x3x3,p1,bfloat16"), np.random.default_rng(11)
    x, w = (rng.standard_normal(shape).astype(BFLOAT16) for shape in (spec.input_shape, spec.weight_shape))
    x[0, 1, 3, 3], x[0, 2, 12, 12], x[0, 3, 12, 18] = np.nan, np.inf, 1e-40
    right = algos.plan(spec.with_(dtype="float32"), w.astype("f4"), name)(x.astype("f4"))
    y = algos.plan(spec, w, name)(x).astype("f4")
    for kind in (np.isnan, np.isposinf, np.isneginf):
        assert kind(right).any() and np.array_equal(kind(y), kind(right))


def test_pairs_of_bfloat16_are_left_where_they_are_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConvSpec.parse("1x4x8x8,4x4x3x3,bfloat16")
    monkeypatch.setattr(simd, "BRAINS", True)
    assert pairs(spec) is not None and pairs(spec.with_(groups=4, in_channels=4)) is None
    assert pairs(spec.with_(direction="input_gradient")) is None
    monkeypatch.setattr(simd, "BRAINS", False)
    assert pairs(spec) is None


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 4, 40, 50), (2, 5, 90, 91)])
def test_one_denormal_number_is_seen(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(12)
    a = rng.standard_normal(shape).astype(BFLOAT16)
    a.flat[:5] = 0, -0.0, np.inf, np.nan, 2.0**-126
    made = np.empty((shape[0], -(-shape[1] // 2), *shape[2:]), np.uint32)
    assert not casts.pair_brains(made, a, 2)
    numbers = made[..., None].view(BFLOAT16)
    assert np.array_equal(numbers[..., 0].view("u2"), a[:, ::2].view("u2"))
    assert np.array_equal(numbers[:, : shape[1] // 2, ..., 1].view("u2"), a[:, 1::2].view("u2"))
    assert shape[1] % 2 == 0 or not numbers[:, -1, ..., 1].any()
    for bits in (1, 0x7F, 0x8001, 0x807F):
        for at in (9, a.size - 1):
            faint = a.copy()
            faint.view(np.uint16).flat[at] = bits
            assert casts.pair_brains(made, faint, 2), (bits, at)


def test_a_negative_sum_that_an_activation_makes_nothing_is_no_overflow() -> None:
    w, x = np.full((2, 4, 3, 3), 3, np.uint8), np.zeros((1, 4, 8, 8), np.uint8)
    for name in ("direct_channels", "direct_pixels"):
        assert not algos.plan("1x4x8x8,2x4x3x3,uint8>uint32,relu,zp5:0", w, name)(x).any()
