"""Convolutions of quantized integers, as ONNX defines them: ``conv_integer`` and ``qlinear_conv``.

A quantized number q stands for scale * (q - zero point). Sums are exact, in int32, and one that does not fit
is an OverflowError. The equivalents are ConvInteger (opset 10) and QLinearConv (opset 10) of ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from algos.auto import pick
from algos.door import as_array
from algos.engine.threads import Threads
from algos.grammar import checked_int
from algos.plans import plan
from algos.spec import ConvSpec, Padding

Ints = int | Sequence[int]


def conv_integer(
    x: Any,
    w: Any,
    x_zero_point: Any = 0,
    w_zero_point: Any = 0,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    algorithm: str = "auto",
    threads: Threads = None,
) -> np.ndarray:
    """Cross-correlation of x - x_zero_point with w - w_zero_point, exact; ONNX's ConvInteger.

    Parameters
    ----------
    x : uint8 or int8 array (N, C, *size), of 1 to 3 spatial axes
    w : uint8 or int8 array (O, C / groups, *kernel)
    x_zero_point : int
        What stands for 0 in x. The padding holds 0 after it was subtracted.
    w_zero_point : int, or one for each output channel
    stride, padding, dilation, groups
        As ``conv2d`` takes them.
    algorithm : str
        A name from ``convbench list``, or "auto".
    threads : int, optional
        The usable cores when left out.

    Returns
    -------
    int32 array (N, O, *output size)

    Raises
    ------
    ValueError
        One line that says what to change.
    OverflowError
        For a sum that does not fit int32.
    """
    options = stride, padding, dilation, groups
    return _summed(x, w, x_zero_point, w_zero_point, None, options, algorithm, threads)


def qlinear_conv(
    x: Any,
    x_scale: Any,
    x_zero_point: Any,
    w: Any,
    w_scale: Any,
    w_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    algorithm: str = "auto",
    threads: Threads = None,
) -> np.ndarray:
    """``conv_integer``, brought to another scale and back to 8 bits; ONNX's QLinearConv, in its order.

    The exact int32 sums are multiplied once, in float64, by x_scale * w_scale / y_scale, rounded to the
    nearest whole number, to an even one where two are as near, then y_zero_point is added, and what is
    beyond its type becomes the largest or smallest number of it.

    Parameters
    ----------
    x, w, x_zero_point, w_zero_point
        As ``conv_integer`` takes them.
    x_scale, y_scale : float
    w_scale : float, or one for each output channel
    y_zero_point : uint8 or int8 number of NumPy's, which is the type of y; an int has that of x
    bias : int32 array (O,), optional
        Of scale x_scale * w_scale and zero point 0.
    stride, padding, dilation, groups, algorithm, threads
        As ``conv_integer`` takes them.

    Returns
    -------
    uint8 or int8 array (N, O, *output size)

    Raises
    ------
    ValueError
        One line that says what to change.
    OverflowError
        For a sum, with its bias, that does not fit int32.
    """
    options = stride, padding, dilation, groups
    sums = _summed(x, w, x_zero_point, w_zero_point, bias, options, algorithm, threads)
    channels, ndim = sums.shape[1], sums.ndim - 2
    scales = [_of_channels(name, scale, channels, ndim, np.float64)
              for name, scale in (("x_scale", x_scale), ("w_scale", w_scale), ("y_scale", y_scale))]
    for name, scale in zip(("x_scale", "w_scale", "y_scale"), scales, strict=True):
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"{name} must be a positive number, or several")
    dtype = getattr(y_zero_point, "dtype", np.asarray(x).dtype)
    if dtype not in (np.uint8, np.int8):
        raise ValueError(f"y_zero_point is {dtype}: it must be uint8 or int8, the type of the result")
    y = sums * (scales[0] * scales[1] / scales[2])
    np.rint(y, out=y)
    y += _number("y_zero_point", y_zero_point)
    info = np.iinfo(dtype)
    return y.clip(info.min, info.max, out=y).astype(dtype)


def _summed(
    x: Any, w: Any, x_zero_point: Any, w_zero_point: Any, bias: Any, options: tuple[Any, ...], algorithm: str,
    threads: Threads,
) -> np.ndarray:  # fmt: skip
    """The int32 sums, with a bias."""
    x, w = as_array("x", x), as_array("w", w)
    for name, array in (("x", x), ("w", w)):
        if array.dtype not in (np.uint8, np.int8):
            raise ValueError(f"{name} is {array.dtype}: it must be uint8 or int8")
    if x.ndim != w.ndim or not 3 <= x.ndim <= 5:
        raise ValueError(
            f"x has {x.ndim} axes and w {w.ndim}: both need two and as many spatial ones, 1 to 3"
        )
    if np.size(w_zero_point) > 1:  # a spec has one for all
        w, w_zero_point = _less(w, np.asarray(w_zero_point)), 0
    points = _number("x_zero_point", x_zero_point), _number("w_zero_point", w_zero_point)
    stride, padding, dilation, groups = options
    spec = ConvSpec(x.shape[0], x.shape[1], x.shape[2:], w.shape[0], w.shape[2:], stride, padding, dilation,
                    groups, dtype=f"{x.dtype}*{w.dtype}>int32", bias=bias is not None,
                    zero_points=points)  # fmt: skip
    name = pick(spec, threads=threads, calls=1).algorithm if algorithm == "auto" else algorithm
    return plan(spec, w, name, threads, bias)(x)


def _less(w: np.ndarray, points: np.ndarray) -> np.ndarray:
    """w less the zero point of each output channel, in 16 bits."""
    info = np.iinfo(w.dtype)
    if points.dtype.kind not in "iu" or points.min() < info.min or points.max() > info.max:
        raise ValueError(f"w_zero_point does not fit {w.dtype}, the type of w")
    return w.astype(np.int16) - _of_channels("w_zero_point", points, len(w), w.ndim - 2, np.int16)[0][:, None]


def _number(name: str, value: Any) -> int:
    """A whole number, or an array of one."""
    return checked_int(name, np.asarray(value).reshape(-1)[0] if np.size(value) == 1 else value)


def _of_channels(name: str, values: Any, channels: int, ndim: int, dtype: Any) -> np.ndarray:
    """One number for all channels, or one for each, that broadcasts to a result."""
    array = np.asarray(values, dtype)
    if array.size not in (1, channels):
        raise ValueError(f"{name} has {array.size} numbers: give one, or {channels}, one per output channel")
    return array.reshape(1, -1, *(1,) * ndim)
