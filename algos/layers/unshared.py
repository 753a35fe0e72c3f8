"""Convolutions whose kernels are not the same at every place: locally connected ones, with a kernel for each
output pixel, and tiled ones, whose kernels repeat with a period.

Locally connected: Y[o, j, k] = sum over c, m, n of X[c, j s + m, k s + n] W[o, j, k, c, m, n]. A matrix
product for each output pixel: 2 O C KH KW operations each, over a workspace of all windows of x. Tiled with
period t: kernel (j mod t, k mod t) at pixel (j, k), which is t^2 convolutions with stride t s, each by
whichever algorithm of this project is the fastest. Both are cross-correlations of pictures, as ``conv2d``.

Source: Goodfellow, Bengio and Courville, "Deep learning", 2016, section 9.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from algos.door import apart
from algos.functional import Ints, conv2d
from algos.gradients import conv2d_input, conv2d_weight
from algos.grammar import per_axis
from algos.layers._calls import filled, floats, matching


class _Places:
    """x (N, C, H, W) padded, and where kernels of a size lie on it."""

    def __init__(self, x: Any, kernel: tuple[int, ...], stride: Any, padding: Any) -> None:
        held = floats("x", x)
        if held.ndim != 4:
            raise ValueError(f"x has shape {held.shape}: unshared convolutions need (N, C, H, W)")
        self.x, self.kernel = held, kernel
        self.stride, self.padding = per_axis("stride", stride, 2), per_axis("padding", padding, 2)
        if min(self.stride) < 1 or min(self.padding) < 0:
            raise ValueError("stride must be 1 or more, and padding 0 or more")
        edges = [(p, p) for p in self.padding]
        self.padded = np.pad(held, [(0, 0), (0, 0), *edges])
        room = [n - k for n, k in zip(self.padded.shape[2:], kernel, strict=True)]
        if min(room) < 0:
            raise ValueError(f"kernels {kernel} are larger than x and its padding, {self.padded.shape[2:]}")
        self.size = tuple(n // s + 1 for n, s in zip(room, self.stride, strict=True))

    def windows(self) -> np.ndarray:
        """(N, C, OH, OW, KH, KW), a view."""
        found = np.lib.stride_tricks.sliding_window_view(self.padded, self.kernel, (2, 3))
        return found[:, :, :: self.stride[0], :: self.stride[1]]

    def cropped(self, padded: np.ndarray) -> np.ndarray:
        (top, left), (height, width) = self.padding, self.x.shape[2:]
        return padded[:, :, top : top + height, left : left + width]


def _six(w: Any) -> tuple[int, ...]:
    shape = np.shape(w)
    if len(shape) != 6 or min(shape) < 1:
        raise ValueError(f"w has shape {shape}: it needs 6 axes, (O, rows, columns, C, KH, KW)")
    return shape


def locally_connected2d(x: Any, w: Any, bias: Any = None, stride: Ints = 1, padding: Ints = 0, *,
                        out: Any = None) -> np.ndarray:  # fmt: skip
    """A kernel of its own for each output pixel.

    Parameters
    ----------
    x : array (N, C, H, W)
        Floats.
    w : array (O, OH, OW, C, KH, KW)
    bias : array (O, OH, OW), optional
    stride, padding : int or (int, int)
    out : array (N, O, OH, OW), optional

    Returns
    -------
    array (N, O, OH, OW)
        Of the type of x.

    Raises
    ------
    ValueError
        One line that says what to change.
    """
    return apart(_local, x, w, bias, stride, padding, out)


def _local_places(x: Any, w: Any, stride: Any, padding: Any) -> tuple[_Places, np.ndarray]:
    shape = _six(w)
    places = _Places(x, shape[4:], stride, padding)
    expected = (shape[0], *places.size, places.x.shape[1], *shape[4:])
    return places, matching("w", w, expected, places.x.dtype)


def _local(x: Any, w: Any, bias: Any, stride: Any, padding: Any, out: Any) -> np.ndarray:
    places, w = _local_places(x, w, stride, padding)
    shape = (len(places.x), w.shape[0], *places.size)
    if bias is not None:
        bias = matching("bias", bias, shape[1:], w.dtype)

    def write(y: np.ndarray) -> None:
        y = y.reshape(shape)
        np.einsum("ncjkab,ojkcab->nojk", places.windows(), w, out=y, optimize=True)
        if bias is not None:
            y += bias

    return filled(write, shape, x, out, w)


def locally_connected2d_backward(grad: Any, x: Any, w: Any, bias: Any = None, stride: Ints = 1,
                                 padding: Ints = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of ``locally_connected2d`` with respect to x, w and bias."""
    return apart(_local_backward, grad, x, w, stride, padding)


def _local_backward(grad: Any, x: Any, w: Any, stride: Any,
                    padding: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    places, w = _local_places(x, w, stride, padding)
    grad = matching("grad", grad, (len(places.x), w.shape[0], *places.size), w.dtype)
    dx = np.zeros_like(places.padded)
    (down, along), (rows, cols) = places.stride, places.size
    for a, b in np.ndindex(*places.kernel):
        share = np.einsum("nojk,ojkc->ncjk", grad, w[..., a, b], optimize=True)
        dx[:, :, a : a + rows * down : down, b : b + cols * along : along] += share
    dw = np.einsum("nojk,ncjkab->ojkcab", grad, places.windows(), optimize=True)
    return np.ascontiguousarray(places.cropped(dx)), dw, grad.sum(0)


def tiled_conv2d(x: Any, w: Any, bias: Any = None, stride: Ints = 1, padding: Ints = 0, *,
                 threads: int | None = None, out: Any = None) -> np.ndarray:  # fmt: skip
    """Kernels that repeat with the periods of w (O, period, period, C, KH, KW): see ``locally_connected2d``.

    bias: (O,); the periods may differ by axis.
    """
    return apart(_tiled, x, w, bias, stride, padding, threads, out)


def _tiles(places: _Places, periods: tuple[int, ...]) -> Iterator[tuple[tuple, tuple, tuple]]:
    """For each kernel: its number, the part of the padded x that it reads, the outputs that it gives."""
    for number in np.ndindex(*periods):
        if all(a < n for a, n in zip(number, places.size, strict=True)):
            reads = tuple(slice(a * s, None) for a, s in zip(number, places.stride, strict=True))
            gives = tuple(slice(a, None, t) for a, t in zip(number, periods, strict=True))
            yield number, (..., *reads), (..., *gives)


def _tiled(x: Any, w: Any, bias: Any, stride: Any, padding: Any, threads: int | None, out: Any) -> np.ndarray:
    shape = _six(w)
    places = _Places(x, shape[4:], stride, padding)
    w = matching("w", w, (*shape[:3], places.x.shape[1], *shape[4:]), places.x.dtype)
    steps = tuple(s * t for s, t in zip(places.stride, shape[1:3], strict=True))

    def write(y: np.ndarray) -> None:
        y = y.reshape(len(places.x), shape[0], *places.size)
        for (a, b), reads, gives in _tiles(places, shape[1:3]):
            y[gives] = conv2d(places.padded[reads], w[:, a, b], bias, steps, threads=threads)

    return filled(write, (len(places.x), shape[0], *places.size), x, out, w)


def tiled_conv2d_backward(grad: Any, x: Any, w: Any, bias: Any = None, stride: Ints = 1, padding: Ints = 0, *,
                          threads: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of ``tiled_conv2d`` with respect to x, w and bias."""
    return apart(_tiled_backward, grad, x, w, stride, padding, threads)


def _tiled_backward(grad: Any, x: Any, w: Any, stride: Any, padding: Any,
                    threads: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = _six(w)
    places = _Places(x, shape[4:], stride, padding)
    w = matching("w", w, (*shape[:3], places.x.shape[1], *shape[4:]), places.x.dtype)
    grad = matching("grad", grad, (len(places.x), shape[0], *places.size), w.dtype)
    steps = tuple(s * t for s, t in zip(places.stride, shape[1:3], strict=True))
    dx, dw = np.zeros_like(places.padded), np.zeros_like(w)
    for (a, b), reads, gives in _tiles(places, shape[1:3]):
        part, given = places.padded[reads], np.ascontiguousarray(grad[gives])
        dx[reads] += conv2d_input(part.shape, w[:, a, b], given, steps, threads=threads)
        dw[:, a, b] = conv2d_weight(part, (shape[0], *shape[3:]), given, steps, threads=threads)
    return np.ascontiguousarray(places.cropped(dx)), dw, grad.sum((0, 2, 3))
