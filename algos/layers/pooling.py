"""Pooling: each output says one thing about a window of its input.

The largest (``max_pool``), the mean (``avg_pool``), the L2 norm (``lp_pool``), the mean weighted by the
distance from the window's centre (``distance.py``), and the mean of windows that divide the picture into as
many parts as are asked for (``adaptive.py``). Names, arguments and their order are those of
``torch.nn.functional``, for 1, 2 and 3 axes of space; ``threads`` and ``out`` are of this project.

A maximum is NaN where a tap is; of equal ones the first, in C order, gets the gradient, and of zeros of
either sign the result may be either. Padding is never the largest, and counts in a mean only with
``count_include_pad``. With ``ceil_mode`` the last window may run over the end, if it begins inside the input
or the padding before it.

Cost: one operation for each tap. Workspace: none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from algos.engine.simd import lanes
from algos.engine.tables import table_of
from algos.functional import Ints
from algos.grammar import checked_int, per_axis, shown, times
from algos.layers._calls import Calls, filled, floats, for_dimensions, matching, remembered
from algos.layers._spread import all_planes
from algos.layers._windows import MAX, MEAN, NORM, PICKED, Windows, all_rows


def checked_axes(shape: tuple[int, ...], ndim: int) -> None:
    """A ValueError for what is no (N, C, *size) or (C, *size)."""
    if len(shape) not in (ndim + 1, ndim + 2):
        raise ValueError(f"x has {len(shape)} axes: {ndim}-D pooling needs {ndim + 2}, (N, C, *size), or one "
                         "less without N")  # fmt: skip


class Pooling:
    """The geometry of windows over x, checked.

    Attributes
    ----------
    shape : tuple of int
        Of the result.
    windows : Windows
    """

    def __init__(self, shape: tuple[int, ...], ndim: int, kernel: Any, stride: Any, padding: Any,
                 dilation: Any, ceil: bool) -> None:
        checked_axes(shape, ndim)
        self.size = shape[-ndim:]
        self.kernel, self.padding = per_axis("kernel_size", kernel, ndim), per_axis("padding", padding, ndim)
        self.stride = self.kernel if stride is None else per_axis("stride", stride, ndim)
        self.dilation = per_axis("dilation", dilation, ndim)
        for name in ("kernel", "stride", "dilation"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} is {times(getattr(self, name))}: it must be 1 or more")
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        if any(not 0 <= p <= r // 2 for p, r in zip(self.padding, reach, strict=True)):
            raise ValueError(f"padding is {times(self.padding)}: it must be 0 to half of a window, which "
                             f"spans {times(reach)}")  # fmt: skip
        counts = []
        for n, r, s, p in zip(self.size, reach, self.stride, self.padding, strict=True):
            room = n + 2 * p - r
            count = (room + (s - 1 if ceil else 0)) // s + 1
            counts.append(count - (ceil and (count - 1) * s >= n + p))
            if min(n, counts[-1]) < 1:
                raise ValueError(f"a window that spans {times(reach)} does not fit x of size "
                                 f"{times(self.size)}, padded by {times(self.padding)}")  # fmt: skip
        self.counts, self.planes = tuple(counts), math.prod(shape[:-ndim])
        self.shape = (*shape[:-ndim], *counts)
        ones, zeros = (1,) * (3 - ndim), (0,) * (3 - ndim)
        axes = (self.size, self.counts, self.kernel, self.stride, self.dilation)
        self.windows = Windows(*(n for axis in axes for n in (*ones, *axis)), *zeros, *self.padding)

    def divisors(self, dtype: np.dtype, padded: bool, divisor: int | None = None) -> np.ndarray:
        """By what sums are divided: factors by depth, by row and by column, with room for a vector."""
        factors = [np.ones(1)] * (3 - len(self.size))
        for n, count, k, s, p in zip(self.size, self.counts, self.kernel, self.stride, self.padding,
                                     strict=True):  # fmt: skip
            start = np.arange(count) * s - p
            if padded:
                taps = np.minimum(start + k, n + p) - start
            else:
                taps = np.minimum(start + k, n) - np.maximum(start, 0)
            factors.append(np.maximum(taps, 1))
        if divisor is not None:
            factors = [np.ones_like(factor) for factor in factors]
            factors[-1] = np.full(len(factors[-1]), divisor)
        return np.concatenate([*factors, np.ones(lanes(dtype))]).astype(dtype)


def _pooling(threads: int, backward: bool, kind: int, shape: tuple, dtype: np.dtype, ndim: int, kernel: Any,
             stride: Any, padding: Any, dilation: Any, ceil: bool,
             *counted: Any) -> tuple[tuple[int, ...], Calls]:  # fmt: skip
    """The result's shape, and what writes it or the gradient."""
    pooling = Pooling(shape, ndim, kernel, stride, padding, dilation, ceil)
    counts = pooling.divisors(dtype, *counted) if kind == MEAN else np.ones(1, dtype)
    nothing = dtype.type(-np.inf if kind == MAX else 0)
    # What kernels are compiled for, numbers as the lengths of tuples
    last = pooling.stride[-1]
    compiled = nothing, (0,) * kind, (0,) * (last if last <= PICKED else 0)
    moved = dtype.itemsize * (math.prod(shape) + math.prod(pooling.shape))
    table = table_of(pooling.windows)
    if backward:
        room = pooling.counts[-1] + lanes(dtype)
        return pooling.shape, Calls(all_planes, pooling.planes, 3 * moved, threads,
                                    (counts, table, (nothing, (0,) * kind)),
                                    lambda count: (np.empty((count, room), np.int64),))  # fmt: skip
    items = math.prod(pooling.shape[:-1])
    return pooling.shape, Calls(all_rows, items, moved, threads, (counts, table, nothing, compiled))


def _pooled(kind: int, ndim: int, given: Any, threads: int | None, out: Any, *options: Any) -> np.ndarray:
    x = floats("x", given)
    shape, calls = remembered(_pooling, threads, False, kind, x.shape, x.dtype, ndim, *options)
    return filled(lambda y: calls(x.reshape(-1), y), shape, given, out)


def _back(kind: int, ndim: int, grad: Any, given: Any, threads: int | None, out: Any,
          *options: Any) -> np.ndarray:
    x = floats("x", given)
    shape, calls = remembered(_pooling, threads, True, kind, x.shape, x.dtype, ndim, *options)
    grad = matching("grad", grad, shape, x.dtype)
    return filled(lambda dx: calls(grad.reshape(-1), x.reshape(-1), dx), x.shape, given, out, grad)


def _max_pool(ndim: int, x: Any, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0,
              dilation: Ints = 1, ceil_mode: bool = False, *, threads: int | None = None,
              out: Any = None) -> np.ndarray:  # fmt: skip
    """The largest element of each window, in the argument order of ``torch.nn.functional.max_pool2d``.

    Parameters
    ----------
    x : array (N, C, *size) or (C, *size)
        Floats.
    kernel_size, stride, padding, dilation : int or one for each axis
        The stride is the kernel's size when left out; padding is at most half of a window.
    ceil_mode : bool
        Whether a last window that runs over the end counts.
    threads : int, optional
        The usable cores when left out.
    out : array, optional

    Returns
    -------
    array (N, C, *output size) or (C, *output size)
        Of the type of x.

    Raises
    ------
    ValueError
        One line that says what to change.
    """
    return _pooled(MAX, ndim, x, threads, out, kernel_size, stride, padding, dilation, bool(ceil_mode))


def _avg_pool(ndim: int, x: Any, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0,
              ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None, *,
              threads: int | None = None, out: Any = None) -> np.ndarray:  # fmt: skip
    """The mean of each window; see ``max_pool2d``.

    count_include_pad: whether padding counts as zeros, as far as it reaches; divisor_override: by what sums
    are divided, in place of the number of taps.
    """
    options = _averaged(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _pooled(MEAN, ndim, x, threads, out, *options)


def _averaged(kernel: Any, stride: Any, padding: Any, ceil: bool, padded: bool, divisor: Any) -> tuple:
    if divisor is not None and not checked_int("divisor_override", divisor):
        raise ValueError("divisor_override is 0: sums cannot be divided by it")
    return kernel, stride, padding, 1, bool(ceil), bool(padded), divisor


def _lp_pool(ndim: int, x: Any, norm_type: float, kernel_size: Ints, stride: Ints | None = None,
             ceil_mode: bool = False, *, threads: int | None = None, out: Any = None) -> np.ndarray:
    """The L2 norm of each window, the root of its sum of squares; see ``max_pool2d``.

    norm_type: 2, the only one here.
    """
    return _pooled(NORM, ndim, x, threads, out, *_normed(norm_type, kernel_size, stride, ceil_mode))


def _normed(norm_type: float, kernel: Any, stride: Any, ceil: bool) -> tuple:
    if norm_type != 2:
        raise ValueError(f"norm_type is {shown(norm_type)}: pooling by norms knows L2 only, use 2")
    return kernel, stride, 0, 1, bool(ceil)


def _max_pool_backward(ndim: int, grad: Any, x: Any, kernel_size: Ints, stride: Ints | None = None,
                       padding: Ints = 0, dilation: Ints = 1, ceil_mode: bool = False, *,
                       threads: int | None = None, out: Any = None) -> np.ndarray:  # fmt: skip
    """The gradient with respect to x of ``max_pool2d``: the first of the largest taps gets all, or the last
    NaN.
    """
    return _back(MAX, ndim, grad, x, threads, out, kernel_size, stride, padding, dilation, bool(ceil_mode))


def _avg_pool_backward(ndim: int, grad: Any, x: Any, kernel_size: Ints, stride: Ints | None = None,
                       padding: Ints = 0, ceil_mode: bool = False, count_include_pad: bool = True,
                       divisor_override: int | None = None, *, threads: int | None = None,
                       out: Any = None) -> np.ndarray:  # fmt: skip
    """The gradient with respect to x of ``avg_pool2d``, of whose x it needs the shape and type."""
    options = _averaged(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _back(MEAN, ndim, grad, x, threads, out, *options)


def _lp_pool_backward(ndim: int, grad: Any, x: Any, norm_type: float, kernel_size: Ints,
                      stride: Ints | None = None, ceil_mode: bool = False, *, threads: int | None = None,
                      out: Any = None) -> np.ndarray:  # fmt: skip
    """The gradient with respect to x of ``lp_pool2d``; 0 for a window of zeros."""
    return _back(NORM, ndim, grad, x, threads, out, *_normed(norm_type, kernel_size, stride, ceil_mode))


max_pool1d, max_pool2d, max_pool3d = for_dimensions(_max_pool)
avg_pool1d, avg_pool2d, avg_pool3d = for_dimensions(_avg_pool)
lp_pool1d, lp_pool2d, lp_pool3d = for_dimensions(_lp_pool)
(max_pool1d_backward, max_pool2d_backward,
 max_pool3d_backward) = for_dimensions(_max_pool_backward)  # fmt: skip
(avg_pool1d_backward, avg_pool2d_backward,
 avg_pool3d_backward) = for_dimensions(_avg_pool_backward)  # fmt: skip
lp_pool1d_backward, lp_pool2d_backward, lp_pool3d_backward = for_dimensions(_lp_pool_backward)
