"""Pooling by a mean that is weighted by the distance from the window's centre.

The tap at distance d from the centre, in elements (the root of the squares over the axes, dilation left out),
weighs 1 / (1 + d), over the sum of the weights of those taps of its window that lie inside the picture. So
padding never counts, and a constant picture stays what it is.

It is a convolution with one kernel for every channel, over one of a picture of ones, by whichever algorithm
of this project is the fastest. Cost: two operations for each tap. Workspace: that of the convolution.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from algos import functional, gradients
from algos.door import apart
from algos.functional import Ints
from algos.layers._calls import filled, floats, for_dimensions, matching
from algos.layers.pooling import Pooling

CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
GRADIENTS = (gradients.conv1d_input, gradients.conv2d_input, gradients.conv3d_input)


def weights(kernel: tuple[int, ...]) -> np.ndarray:
    """The weights of a window's taps."""
    places = np.meshgrid(*(np.arange(k) - (k - 1) / 2 for k in kernel), indexing="ij")
    return 1 / (1 + np.sqrt(sum(place**2 for place in places)))


class _Sums:
    """Weighted sums of windows as a convolution of one channel."""

    def __init__(self, x: np.ndarray, ndim: int, kernel: Any, stride: Any, padding: Any, ceil: bool,
                 threads: int | None) -> None:
        self.pooling = pooling = Pooling(x.shape, ndim, kernel, stride, padding, 1, ceil)
        self.ndim, self.threads = ndim, threads
        self.w = weights(pooling.kernel).astype(x.dtype)[None, None]
        ends = [max(p, (count - 1) * s + k - n - p) for n, count, k, s, p in zip(
            pooling.size, pooling.counts, pooling.kernel, pooling.stride, pooling.padding, strict=True)]
        self.options = pooling.stride, tuple(zip(pooling.padding, ends, strict=True))
        self.inside = self.of(np.ones((1, 1, *pooling.size), x.dtype))

    def of(self, x: np.ndarray) -> np.ndarray:
        """x: (planes, 1, *size)."""
        stride, padding = self.options
        return CONVOLUTIONS[self.ndim - 1](x, self.w, None, stride, padding, threads=self.threads)

    def back(self, grad: np.ndarray) -> np.ndarray:
        stride, padding = self.options
        size = (len(grad), 1, *self.pooling.size)
        return GRADIENTS[self.ndim - 1](size, self.w, grad, stride, padding, threads=self.threads)


def _distance_pool(ndim: int, x: Any, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0,
                   ceil_mode: bool = False, *, threads: int | None = None,
                   out: Any = None) -> np.ndarray:  # fmt: skip
    """The mean of each window, weighted by 1 / (1 + distance from its centre); see ``max_pool2d``."""
    held = floats("x", x)
    sums = _Sums(held, ndim, kernel_size, stride, padding, bool(ceil_mode), threads)

    def write(y: np.ndarray) -> None:
        planes = held.reshape(-1, 1, *sums.pooling.size)
        np.divide(sums.of(planes), sums.inside, out=y.reshape(-1, 1, *sums.pooling.counts))

    return filled(lambda y: apart(write, y), sums.pooling.shape, x, out)


def _distance_pool_backward(ndim: int, grad: Any, x: Any, kernel_size: Ints, stride: Ints | None = None,
                            padding: Ints = 0, ceil_mode: bool = False, *, threads: int | None = None,
                            out: Any = None) -> np.ndarray:  # fmt: skip
    """The gradient with respect to x of ``distance_pool2d``, of whose x it needs the shape and type."""
    held = floats("x", x)
    sums = _Sums(held, ndim, kernel_size, stride, padding, bool(ceil_mode), threads)
    grad = matching("grad", grad, sums.pooling.shape, held.dtype)

    def write(dx: np.ndarray) -> None:
        given = grad.reshape(-1, 1, *sums.pooling.counts) / sums.inside
        dx[...] = sums.back(given).reshape(-1)

    return filled(lambda dx: apart(write, dx), held.shape, x, out, grad)


distance_pool1d, distance_pool2d, distance_pool3d = for_dimensions(_distance_pool)
(distance_pool1d_backward, distance_pool2d_backward,
 distance_pool3d_backward) = for_dimensions(_distance_pool_backward)  # fmt: skip
