"""Layer normalisation: (x - mean) / sqrt(variance + eps) of an image over its last axes, then a weight and a
bias.

The variance is the mean square of what is left after the mean is taken away, in a second pass. Where NaN or
infinity is among the elements of a mean, all that it normalises is NaN.

Cost: about ten operations for each element, in three passes. Workspace: none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from algos.door import apart
from algos.engine.jit import compiled, linked
from algos.engine.relay import fork
from algos.engine.simd import place
from algos.grammar import checked_ints, is_several, shown
from algos.layers._calls import Calls, filled, floats, matching, remembered
from algos.layers._rows import SQUARES, TOTAL, row_sum, weigh_row


@linked(error_model="numpy")
def some_layers(x, w, b, y, eps, slot, first, last):
    """Items [first, last), rows of len(w) elements of flat y."""
    count = len(w)
    for item in range(first, last):
        at = item * count
        mean = row_sum(TOTAL, x, x, at, count, 0.0) / count
        variance = row_sum(SQUARES, x, x, at, count, mean) / count
        rate = x.dtype.type(1 / np.sqrt(variance + eps))
        weigh_row(place(x, at), place(w, 0), place(b, 0), place(y, at), count, x.dtype.type(mean), rate)


@compiled(error_model="numpy")
def all_layers(x, w, b, y, eps, job):
    """Every row."""
    fork(some_layers, (x, w, b, y, eps), job)


def _layers(threads: int, shape: tuple, dtype: np.dtype, count: int) -> tuple[Calls, np.ndarray, np.ndarray]:
    """What normalises rows of ``count``, and a weight and a bias that change nothing."""
    elements = math.prod(shape)
    calls = Calls(all_layers, elements // max(count, 1), 3 * elements * dtype.itemsize, threads)
    return calls, np.ones(count, dtype), np.zeros(count, dtype)


def _normalised(x: np.ndarray, shape: Any) -> tuple[int, ...]:
    """The last axes of x, whose lengths these are."""
    sizes = checked_ints("normalized_shape", shape if is_several(shape) else (shape,))
    if not sizes or x.shape[-len(sizes) :] != sizes or min(sizes) < 1:
        raise ValueError(f"normalized_shape is {shown(shape)}: x has shape {x.shape}, give its last lengths")
    return sizes


def layer_norm(x: Any, normalized_shape: int | Sequence[int], weight: Any = None, bias: Any = None,
               eps: float = 1e-5, *, threads: int | None = None, out: Any = None) -> np.ndarray:
    """Layer normalisation, in the argument order of ``torch.nn.functional.layer_norm``.

    Parameters
    ----------
    x : array (..., *normalized_shape)
        Floats.
    normalized_shape : int or sequence of int
        The last axes, over which means are taken.
    weight, bias : array of that shape, optional
    eps : float
    threads : int, optional
        The usable cores when left out.
    out : array, optional

    Returns
    -------
    array like x
    """
    held = floats("x", x)
    sizes = _normalised(held, normalized_shape)
    calls, w, b = remembered(_layers, threads, held.shape, held.dtype, math.prod(sizes))
    if weight is not None:
        w = matching("weight", weight, sizes, held.dtype).reshape(-1)
    if bias is not None:
        b = matching("bias", bias, sizes, held.dtype).reshape(-1)
    return filled(lambda y: calls(held.reshape(-1), w, b, y, float(eps)), held.shape, x, out, w, b)


def layer_norm_backward(
    grad: Any, x: Any, normalized_shape: int | Sequence[int], weight: Any = None, bias: Any = None,
    eps: float = 1e-5, *, out: Any = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The gradients of ``layer_norm`` with respect to x, weight and bias."""
    return apart(_layer_norm_backward, grad, x, normalized_shape, weight, eps, out)


def _layer_norm_backward(grad: Any, x: Any, normalized_shape: Any, weight: Any, eps: float,
                         out: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    held = floats("x", x)
    sizes = _normalised(held, normalized_shape)
    rows, given = held.reshape(-1, math.prod(sizes)), matching("grad", grad, held.shape, held.dtype)
    given = given.reshape(rows.shape)
    mean = rows.mean(1, dtype=np.float64, keepdims=True).astype(held.dtype)
    left = rows - mean
    rate = 1 / np.sqrt(np.square(left).mean(1, dtype=np.float64, keepdims=True) + eps)
    left *= rate.astype(held.dtype)
    weighed = given if weight is None else given * matching("weight", weight, sizes, held.dtype).reshape(-1)

    def write(dx: np.ndarray) -> None:
        dx = dx.reshape(rows.shape)
        np.multiply(left, -np.vecdot(weighed, left)[:, None] / rows.shape[1], out=dx)
        dx += weighed
        dx -= weighed.mean(1, keepdims=True)
        dx *= rate.astype(held.dtype)

    dx = filled(write, held.shape, x, out, grad)
    dw, db = (sums.sum(0).reshape(sizes).astype(dx.dtype) for sums in (given * left, given))
    return dx, dw, db
