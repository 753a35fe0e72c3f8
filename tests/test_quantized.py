"""Convolutions of quantized integers, against the formulas of ONNX in NumPy's 64-bit integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from algos import conv_integer, qlinear_conv

TYPES = [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.uint8), (np.int8, np.int8)]


def drawn(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def definition(
    x: np.ndarray, w: np.ndarray, x_zero: Any, w_zero: Any, stride: int, pad: int, groups: int
) -> np.ndarray:
    """Window by window; the padding is 0 after the zero point."""
    a = np.pad(x.astype(np.int64) - x_zero, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    b = w.astype(np.int64) - np.reshape(w_zero, (-1, 1, 1, 1))
    (n, _, height, width), (o, i, kh, kw) = a.shape, w.shape
    y = np.zeros((n, o, (height - kh) // stride + 1, (width - kw) // stride + 1), np.int64)
    for k, channel, row, column in np.ndindex(*y.shape):
        first = channel // (o // groups) * i
        top, left = row * stride, column * stride
        window = a[k, first : first + i, top : top + kh, left : left + kw]
        y[k, channel, row, column] = (window * b[channel]).sum()
    return y


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("each", [False, True])
def test_conv_integer_is_exact(types: tuple[Any, Any], each: bool) -> None:
    rng = np.random.default_rng(0)
    for stride, pad, groups in ((1, 1, 1), (2, 2, 2), (1, 0, 4)):
        x, w = drawn(rng, types[0], 2, 4, 7, 6), drawn(rng, types[1], 4, 4 // groups, 3, 2)
        x_zero, w_zero = drawn(rng, types[0]), drawn(rng, types[1], 4) if each else drawn(rng, types[1])
        expected = definition(x, w, x_zero.astype(np.int64), w_zero.astype(np.int64), stride, pad, groups)
        for algorithm in ("auto", "direct_shift"):
            y = conv_integer(x, w, x_zero, w_zero, stride, pad, groups=groups, algorithm=algorithm)
            assert y.dtype == np.int32 and np.array_equal(y, expected)


@pytest.mark.parametrize("types", TYPES)
def test_qlinear_conv_rounds_once_to_even_and_saturates(types: tuple[Any, Any]) -> None:
    rng = np.random.default_rng(1)
    x, w = drawn(rng, types[0], 2, 3, 6, 6), drawn(rng, types[1], 4, 3, 3, 3)
    bias = np.array([0, 1, -99, 7777])
    x_zero, w_zero, y_zero = (drawn(rng, t) for t in (*types, types[0]))
    sums = definition(x, w, x_zero.astype(np.int64), w_zero.astype(np.int64), 1, 1, 1)
    sums += bias.reshape(-1, 1, 1)
    for w_scale in (np.float32(0.25), np.array([0.25, 0.125, 0.5, 0.75], np.float32)):
        scale = 0.5 * np.reshape(w_scale, (-1, 1, 1)).astype(np.float64) / 64
        exact = [[round(v) for v in image.ravel()] for image in sums * scale]  # Python rounds to even as well
        info = np.iinfo(types[0])
        expected = np.clip(np.reshape(exact, sums.shape) + int(y_zero), info.min, info.max)
        y = qlinear_conv(x, np.float32(0.5), x_zero, w, w_scale, w_zero, np.float32(64), y_zero,
                         bias.astype(np.int32), padding=1)  # fmt: skip
        assert y.dtype == types[0] and np.array_equal(y, expected)
        assert {info.min, info.max} & {int(y.min()), int(y.max())}  # some are beyond the type


def test_a_half_goes_to_the_even_neighbour() -> None:
    x, one = np.array([[[1, 3, 5, 255]]], np.uint8), np.ones((1, 1, 1), np.int8)
    y = qlinear_conv(x, 1.0, 0, one, 1.0, 0, 2.0, np.uint8(1))
    assert y.tolist() == [[[1, 3, 3, 129]]]  # 0.5, 1.5, 2.5 and 127.5 to 0, 2, 2 and 128


def test_what_is_no_quantized_convolution_is_refused() -> None:
    x, w = np.ones((1, 1, 4), np.uint8), np.ones((2, 1, 2), np.int8)
    for words, call in (
        ("x is float32", lambda: conv_integer(x.astype(np.float32), w)),
        ("does not fit uint8", lambda: conv_integer(x, w, 256)),
        ("w_zero_point has 3 numbers", lambda: conv_integer(x, w, 0, [1, 2, 3])),
        ("does not fit int8", lambda: conv_integer(x, w, 0, [1, 200])),
        ("does not fit int8", lambda: conv_integer(x, w, 0, [0.5, 1.5])),
        ("both need two", lambda: conv_integer(x[0], w)),
        ("y_scale must be a positive", lambda: qlinear_conv(x, 1.0, 0, w, 1.0, 0, 0.0, 0)),
        ("w_scale has 3", lambda: qlinear_conv(x, 1.0, 0, w, [1.0, 2.0, 3.0], 0, 1.0, 0)),
        ("y_zero_point is int16", lambda: qlinear_conv(x, 1.0, 0, w, 1.0, 0, 1.0, np.int16(0))),
    ):
        with pytest.raises(ValueError, match=words):
            call()
