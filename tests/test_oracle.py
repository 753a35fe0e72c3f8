"""The definition agrees with loops over its letters, with its adjoints and with itself at chosen elements."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from algos.spec import ConvSpec, SpecError
from bench.data import operands
from bench.oracle import border_value, oracle, oracle_at, padded, reduction, sources
from tests import test_types as types

SPECS = [
    "1x1x1,1x1x1",
    "2x3x11,4x3x3,p1",
    "1x2x20,3x2x5,s2,p0:3,d2,reflect",
    "2x3x7x6,4x3x3x3,p1",
    "2x4x7x8,6x2x3x2,s2x1,p1:0x0:2,d1x2",
    "2x6x6x6,6x1x3x3,p2,flip",
    "1x4x6x5,8x2x1x1,s2",
    "1x2x7x7,3x2x3x3,pfull,flip",
    "1x2x6x7,3x2x4x3,p3x1,circular",
    "1x2x6x7,3x2x4x3,p2:3x1:0,symmetric,s2",
    "1x2x5x5,3x2x5x5,p4,reflect,flip",
    "1x2x4x4,3x2x3x3,p6:1,replicate",
    "1x2x6x6,3x2x3x3,p2,constant:0.7",
    "1x2x4x5x6,3x2x3x2x3,p1,s1x2x2,flip",
    "2x4x5x4x6,4x2x2x3x2,p1x0x2:1,d2x1x1,symmetric",
    "1x1x9x9,1x1x3x3,s4",
    "0x2x6x6,3x2x3x3",
]
DIRECTIONS = ["forward", "input_gradient", "weight_gradient"]


def by_letters(spec: ConvSpec, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """y[n, o, i] = sum of w[o, c, t] * p[n, c, i * s + t * d], one product at a time;
    the border by SciPy's filters' names.
    """
    x = bordered(spec, x)
    y = np.zeros(spec.output_shape)
    inner, outer = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    for n, o, *place in np.ndindex(*spec.output_shape):
        for c, *tap in np.ndindex(inner, *spec.kernel):
            at = [i * s + t * d for i, s, t, d in zip(place, spec.stride, tap, spec.dilation, strict=True)]
            weight = [k - 1 - t for k, t in zip(spec.kernel, tap, strict=True)] if spec.flip else tap
            y[(n, o, *place)] += w[(o, c, *weight)] * x[(n, o // outer * inner + c, *at)]
    return y


def bordered(spec: ConvSpec, x: np.ndarray) -> np.ndarray:
    if not x.size:
        return np.zeros((*x.shape[:2], *spec.padded_size))
    modes = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap",
             "symmetric": "symmetric"}  # fmt: skip
    widths = ((0, 0), (0, 0), *spec.padding)
    if spec.padding_mode.startswith("constant:"):
        return np.pad(
            x, widths, constant_values=np.float32(spec.padding_mode[9:]) if spec.dtype == "float32" else 0
        )
    return np.pad(x, widths, modes[spec.padding_mode])  # type: ignore[call-overload, no-any-return]


def all_operands(spec: ConvSpec, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(s) for s in (spec.input_shape, spec.weight_shape,
                                                  spec.output_shape))  # type: ignore


@pytest.mark.parametrize("text", SPECS)
def test_forward_is_the_sum_of_the_definition(text: str) -> None:
    spec = ConvSpec.parse(text)
    x, w, _ = all_operands(spec)
    np.testing.assert_allclose(oracle(spec, x, w), by_letters(spec, x, w), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("text", SPECS)
def test_gradients_are_adjoints(text: str) -> None:
    """<conv(x, w), g> = <x, dx> = <w, dw>; a constant border adds what doesn't depend on x."""
    spec = ConvSpec.parse(text)
    x, w, g = all_operands(spec)
    y = oracle(spec, x, w) - oracle(spec, np.zeros_like(x), w)
    forward = (y * g).sum()
    dx = oracle(spec.with_(direction="input_gradient"), None, w, g)
    assert dx.shape == spec.input_shape
    assert forward == pytest.approx((x * dx).sum(), rel=1e-10, abs=1e-10)
    dw = oracle(spec.with_(direction="weight_gradient"), x, None, g)
    assert dw.shape == spec.weight_shape
    assert (oracle(spec, x, w) * g).sum() == pytest.approx((w * dw).sum(), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("text", SPECS)
def test_gradients_of_complex_numbers_are_adjoints(text: str) -> None:
    """Of the inner product that conjugates its first factor, as torch has it."""
    spec = ConvSpec.parse(text).with_(dtype="complex128")
    x, w, g = (a + 1j * b for a, b in zip(all_operands(spec), all_operands(spec, 1), strict=True))
    y = oracle(spec, x, w)
    linear = y - oracle(spec, np.zeros_like(x), w)
    dx = oracle(spec.with_(direction="input_gradient"), None, w, g)
    dw = oracle(spec.with_(direction="weight_gradient"), x, None, g)
    assert np.vdot(linear, g) == pytest.approx(np.vdot(x, dx), rel=1e-10, abs=1e-10)
    assert np.vdot(y, g) == pytest.approx(np.vdot(w, dw), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("dtype", types.TYPES)
def test_every_type_is_as_python_computes_it(dtype: str) -> None:
    """Zero points, bias and activations among them, element by element."""
    rng = np.random.default_rng([23, types.TYPES.index(dtype)])
    for largest in (False, True, False):
        spec = types.problem(rng, dtype)
        x, w, g = (types.numbers(rng, shape, t, largest) for shape, t in (
            (spec.input_shape, spec.in_dtype), (spec.weight_shape, spec.w_dtype),
            (spec.output_shape, spec.out_dtype)))  # fmt: skip
        bias = types.numbers(rng, (spec.out_channels,), spec.out_dtype, largest) if spec.bias else None
        with np.errstate(over="ignore"):
            expected = types.definition(spec, x, w, g, bias)
        whole, every = oracle(spec, x, w, g, bias), np.array(list(np.ndindex(*spec.result_shape)))
        chosen = oracle_at(spec, x, w, g, every, bias)
        if spec.in_dtype.kind in "iu":
            assert whole.ravel().tolist() == chosen.tolist() == expected.ravel().tolist()
        else:
            np.testing.assert_allclose(whole, expected, rtol=1e-12, atol=1e-12 * float(abs(expected).max()))
            np.testing.assert_allclose(chosen, whole.ravel(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "text", ["1x2x5x6,3x2x3x2,p1,s2x1,reflect", "1x2x5x6,4x1x3x3,p1,d1x2,flip,replicate"]
)
def test_gradients_are_derivatives(text: str) -> None:
    """A step of 1 in one element: the operation is linear, so the difference is the derivative itself."""
    spec = ConvSpec.parse(text)
    x, w, g = all_operands(spec)
    base = (oracle(spec, x, w) * g).sum()
    for array, direction, grads in (
        (x, "input_gradient", (None, w, g)),
        (w, "weight_gradient", (x, None, g)),
    ):
        gradient = oracle(spec.with_(direction=direction), *grads)
        for at in itertools.islice(np.ndindex(*array.shape), 0, None, 7):
            array[at] += 1
            assert (oracle(spec, x, w) * g).sum() - base == pytest.approx(gradient[at], abs=1e-9)
            array[at] -= 1


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("text", SPECS[:-1])
def test_chosen_elements_are_those_of_the_whole(text: str, direction: Any) -> None:
    spec = ConvSpec.parse(text).with_(direction=direction)
    x, w, g = all_operands(spec)
    whole = oracle(spec, x, w, g)
    indices = np.array(list(np.ndindex(*whole.shape)))
    np.testing.assert_allclose(oracle_at(spec, x, w, g, indices), whole.ravel(), rtol=1e-12, atol=1e-12)
    some = np.random.default_rng(1).permutation(indices)[:5]
    np.testing.assert_allclose(oracle_at(spec, x, w, g, some), whole[tuple(some.T)], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "mode, name",
    [
        ("reflect", "mirror"),
        ("replicate", "nearest"),
        ("circular", "grid-wrap"),
        ("symmetric", "reflect"),
        ("zeros", "constant"),
    ],
)
def test_modes_are_those_of_image_filters(mode: str, name: Any) -> None:
    image, kernel = (
        np.random.default_rng(0).standard_normal((9, 8)),
        np.random.default_rng(1).standard_normal((5, 3)),
    )
    spec = ConvSpec.parse(f"9x8,5x3,p2x1,{mode}" if mode != "zeros" else "9x8,5x3,p2x1")
    y = oracle(spec, image[None, None], kernel[None, None])[0, 0]
    np.testing.assert_allclose(y, ndimage.correlate(image, kernel, mode=name), atol=1e-12)
    flipped = oracle(spec.with_(flip=True), image[None, None], kernel[None, None])[0, 0]
    np.testing.assert_allclose(flipped, ndimage.convolve(image, kernel, mode=name), atol=1e-12)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "symmetric"])
def test_border_positions_copy_what_numpy_pads(mode: str) -> None:
    for size, before, after in ((5, 4, 3), (2, 1, 1), (7, 0, 2), (1, 0, 0)):
        spec = ConvSpec(1, 1, (size,), 1, (1,), padding=((before, after),), padding_mode=mode)
        assert np.array_equal(sources(spec, 0), bordered(spec, np.arange(size)[None, None])[0, 0])


def test_whole_numbers_are_exact_beyond_every_float() -> None:
    x = np.array([[[2**62, 3, -(2**62)]]], np.int64)
    w = np.array([[[4, 1, 4]]], np.int64)
    spec = ConvSpec.parse("1x1x3,1x1x3,int64,p1,constant:-7")
    y = oracle(spec, x, w)
    assert y.dtype == object and y[0, 0].tolist() == [-28 + 2**62 + 12, 3, 12 - 2**62 - 28]
    assert oracle_at(spec, x, w, None, np.array([[0, 0, 0], [0, 0, 2]])).tolist() == [y[0, 0, 0], y[0, 0, 2]]
    huge = np.array([[[2**64 - 1] * 3]], np.uint64)
    assert oracle(ConvSpec.parse("1x1x3,1x1x3,uint64"), huge, huge)[0, 0, 0] == 3 * (2**64 - 1) ** 2
    small = oracle(
        ConvSpec.parse("1x1x3,1x1x3,int8>int32"), x.clip(-128, 127).astype(np.int8), w.astype(np.int8)
    )
    assert small.dtype == np.int64 and small[0, 0, 0] == 127 * 4 + 3 - 128 * 4


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_whole_numbers_agree_in_every_width(direction: Any) -> None:
    spec = ConvSpec.parse("2x4x6x7,6x2x3x3,p1,s2x1,symmetric,int64").with_(direction=direction)
    x, w, g = (np.rint(a * 5).astype(np.int64) for a in all_operands(spec))
    small = oracle(spec, x, w, g)
    large = oracle(spec, *(a * 2**31 for a in (x, w, g)))
    assert small.dtype == np.int64 and large.dtype == object
    assert (large == small.astype(object) * 2**62).all()


def test_long_double_is_closer_than_float64() -> None:
    spec = ConvSpec.parse("1x64x6x6,2x64x3x3,float64")
    data = operands(spec)
    rough, fine = oracle(spec, data.x, data.w), oracle(spec, data.x, data.w, precise=True)
    assert fine.dtype == np.longdouble
    assert 0 < np.abs(rough - fine).max() < 1e-12 or np.finfo(np.longdouble).eps == np.finfo(np.float64).eps


@pytest.mark.parametrize("text, expected", [
    ("1x6x9x9,4x3x3x3", 27), ("1x4x9x9,8x2x3x3,input_gradient", 36), ("3x4x9x9,8x2x3x3,weight_gradient", 147),
    ("1x4x9x9,8x2x3x3,p1,input_gradient,symmetric", 144), ("1x1x9,1x1x3,p2,input_gradient,replicate", 9),
])
def test_reduction_counts_the_products_of_one_result(text: str, expected: int) -> None:
    parts = text.split(",")
    order = [p for p in parts if p in ("symmetric", "replicate")] + [
        p for p in parts if p.endswith("gradient")
    ]
    assert reduction(ConvSpec.parse(",".join([p for p in parts if p not in order] + order))) == expected


def test_border_value_is_rounded_to_the_type() -> None:
    assert border_value(ConvSpec.parse("1x1x5,1x1x3,p1,constant:0.1")) == float(np.float32(0.1))
    assert border_value(ConvSpec.parse("1x1x5,1x1x3,p1")) == 0
    assert padded(ConvSpec.parse("1x1x2,1x1x3,p1,constant:2.5"), np.ones((1, 1, 2)), 2.5).tolist() == [
        [[2.5, 1, 1, 2.5]]
    ]


def test_operands_of_another_shape_are_refused() -> None:
    spec = ConvSpec.parse("1x2x5x5,3x2x3x3")
    with pytest.raises(ValueError, match="needs w of shape"):
        oracle(spec, np.zeros(spec.input_shape), np.zeros((3, 2, 3, 2)))
    with pytest.raises(ValueError, match="needs grad"):
        oracle(spec.with_(direction="weight_gradient"), np.zeros(spec.input_shape))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_any_geometry_is_the_definition(data: st.DataObject) -> None:
    draw, ints = data.draw, st.integers
    ndim = draw(ints(1, 2))
    groups = draw(ints(1, 3))
    axis = lambda low, high: draw(st.tuples(*[ints(low, high)] * ndim))  # noqa: E731
    try:
        spec = ConvSpec(
            draw(ints(1, 2)),
            groups * draw(ints(1, 2)),
            axis(1, 7),
            groups * draw(ints(1, 2)),
            axis(1, 4),
            axis(1, 3),
            tuple(draw(st.tuples(ints(0, 3), ints(0, 3))) for _ in range(ndim)),
            axis(1, 2),
            groups,
            padding_mode=draw(
                st.sampled_from(["zeros", "reflect", "replicate", "circular", "symmetric", "constant:2"])
            ),
            flip=draw(st.booleans()),
        )
    except SpecError:
        return
    x, w, g = all_operands(spec)
    y = oracle(spec, x, w)
    np.testing.assert_allclose(y, by_letters(spec, x, w), atol=1e-11)
    dx = oracle(spec.with_(direction="input_gradient"), None, w, g)
    linear = ((y - oracle(spec, np.zeros_like(x), w)) * g).sum()
    assert linear == pytest.approx((x * dx).sum(), abs=1e-9)
    assert (y * g).sum() == pytest.approx(
        (w * oracle(spec.with_(direction="weight_gradient"), x, None, g)).sum(), abs=1e-9
    )
