"""Activations, element by element: what ``algos/engine/epilogue.py`` compiles for convolutions, and NumPy's
words for the rest.

As torch's, relu(NaN) is NaN, and so is silu(-inf). At the corners the gradients are torch's: 0 for relu at
0 and for relu6 at 0 and 6, the slope for leaky_relu at 0. Of equal pieces of maxout the first gets the
gradient, and NaN wins.

Cost: an operation or one exponential for each element. Workspace: none, or in NumPy's words arrays like the
result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from algos.door import apart
from algos.engine.epilogue import call, code_of
from algos.engine.jit import compiled, linked
from algos.engine.relay import fork
from algos.engine.simd import copy_bytes, place
from algos.grammar import checked_int
from algos.layers._calls import Calls, filled, floats, matching, remembered
from algos.layers._rows import bend_row

CHUNK = 1 << 12  # elements that are copied, and then changed in the first-level cache


@linked(error_model="numpy")
def some_activated(x, y, code, slot, first, last):
    """Items [first, last), chunks of flat y."""
    for at in range(first * CHUNK, min(last * CHUNK, len(x)), CHUNK):
        count = min(CHUNK, len(x) - at)
        copy_bytes(place(y, at), place(x, at), count * x.itemsize)
        call(code, place(y, at), 0, 1, count, 1, count, count)


@compiled(error_model="numpy")
def all_activated(x, y, code, job):
    """Every element of flat y."""
    fork(some_activated, (x, y, code), job)


@linked(error_model="numpy")
def some_bent(grad, x, dx, slope, top, slot, first, last):
    """Items [first, last), chunks of flat dx."""
    begin, end = first * CHUNK, min(last * CHUNK, len(x))
    bend_row(place(grad, begin), place(x, begin), place(dx, begin), end - begin, slope, top)


@compiled(error_model="numpy")
def all_bent(grad, x, dx, slope, top, job):
    """Every element of flat dx."""
    fork(some_bent, (grad, x, dx, slope, top), job)


def _activation(threads: int, shape: tuple, dtype: np.dtype, name: str) -> Calls:
    elements = math.prod(shape)
    moved = 2 * elements * dtype.itemsize
    return Calls(all_activated, -(-elements // CHUNK), moved, threads, (code_of(dtype, name),))


def _bending(threads: int, shape: tuple, dtype: np.dtype, slope: float, top: float) -> Calls:
    elements = math.prod(shape)
    moved = 3 * elements * dtype.itemsize
    return Calls(all_bent, -(-elements // CHUNK), moved, threads, (dtype.type(slope), dtype.type(top)))


def _compiled(name: str, x: Any, threads: int | None, out: Any) -> np.ndarray:
    held = floats("x", x)
    calls = remembered(_activation, threads, held.shape, held.dtype, name)
    return filled(lambda y: calls(held.reshape(-1), y), held.shape, x, out)


def _bent(grad: Any, x: Any, slope: float, top: float, threads: int | None, out: Any) -> np.ndarray:
    held = floats("x", x)
    grad = matching("grad", grad, held.shape, held.dtype)
    calls = remembered(_bending, threads, held.shape, held.dtype, float(slope), top)
    return filled(lambda dx: calls(grad.reshape(-1), held.reshape(-1), dx), held.shape, x, out, grad)


def _in_words(x: Any, out: Any, words: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    held = floats("x", x)

    def write(y: np.ndarray) -> None:
        y[...] = words(held.reshape(-1))

    return filled(lambda y: apart(write, y), held.shape, x, out)


def _slopes(grad: Any, x: Any, out: Any, slope: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """grad times the slope at x."""
    grad = matching("grad", grad, np.shape(x), floats("x", x).dtype).reshape(-1)
    return _in_words(x, out, lambda flat: grad * slope(flat))


def relu(x: Any, *, threads: int | None = None, out: Any = None) -> np.ndarray:
    """max(x, 0).

    Parameters
    ----------
    x : array
        Floats.
    threads : int, optional
        The usable cores when left out.
    out : array, optional

    Returns
    -------
    array like x
    """
    return _compiled("relu", x, threads, out)


def relu_backward(grad: Any, x: Any, *, threads: int | None = None, out: Any = None) -> np.ndarray:
    """The gradient with respect to x of ``relu(x)``."""
    return _bent(grad, x, 0.0, math.inf, threads, out)


def relu6(x: Any, *, threads: int | None = None, out: Any = None) -> np.ndarray:
    """min(max(x, 0), 6); see ``relu``."""
    return _compiled("relu6", x, threads, out)


def relu6_backward(grad: Any, x: Any, *, threads: int | None = None, out: Any = None) -> np.ndarray:
    """The gradient with respect to x of ``relu6(x)``."""
    return _bent(grad, x, 0.0, 6.0, threads, out)


def leaky_relu(x: Any, negative_slope: float = 0.01, *, out: Any = None) -> np.ndarray:
    """x above 0, ``negative_slope`` times x below; see ``relu``."""
    return _in_words(x, out, lambda flat: np.where(flat > 0, flat, flat * flat.dtype.type(negative_slope)))


def leaky_relu_backward(grad: Any, x: Any, negative_slope: float = 0.01, *, threads: int | None = None,
                        out: Any = None) -> np.ndarray:  # fmt: skip
    """The gradient with respect to x of ``leaky_relu(x, negative_slope)``."""
    return _bent(grad, x, negative_slope, math.inf, threads, out)


def elu(x: Any, alpha: float = 1.0, *, out: Any = None) -> np.ndarray:
    """x above 0, alpha (e^x - 1) below; see ``relu``."""

    def words(flat: np.ndarray) -> np.ndarray:
        return np.where(flat > 0, flat, flat.dtype.type(alpha) * np.expm1(np.minimum(flat, 0)))

    return _in_words(x, out, words)


def elu_backward(grad: Any, x: Any, alpha: float = 1.0, *, out: Any = None) -> np.ndarray:
    """The gradient with respect to x of ``elu(x, alpha)``."""

    def slope(flat: np.ndarray) -> np.ndarray:
        return np.where(flat > 0, flat.dtype.type(1), flat.dtype.type(alpha) * np.exp(np.minimum(flat, 0)))

    return _slopes(grad, x, out, slope)


def sigmoid(x: Any, *, threads: int | None = None, out: Any = None) -> np.ndarray:
    """1 / (1 + e^-x); see ``relu``."""
    return _compiled("sigmoid", x, threads, out)


def sigmoid_backward(grad: Any, x: Any, *, out: Any = None) -> np.ndarray:
    """The gradient with respect to x of ``sigmoid(x)``."""

    def slope(flat: np.ndarray) -> np.ndarray:
        y = sigmoid(flat)
        return y * (1 - y)

    return _slopes(grad, x, out, slope)


def tanh(x: Any, *, out: Any = None) -> np.ndarray:
    """The hyperbolic tangent; see ``relu``."""
    return _in_words(x, out, np.tanh)


def tanh_backward(grad: Any, x: Any, *, out: Any = None) -> np.ndarray:
    """The gradient with respect to x of ``tanh(x)``."""
    return _slopes(grad, x, out, lambda flat: 1 - np.square(np.tanh(flat)))


def silu(x: Any, *, threads: int | None = None, out: Any = None) -> np.ndarray:
    """x times sigmoid(x); see ``relu``."""
    return _compiled("silu", x, threads, out)


def silu_backward(grad: Any, x: Any, *, out: Any = None) -> np.ndarray:
    """The gradient with respect to x of ``silu(x)``."""

    def slope(flat: np.ndarray) -> np.ndarray:
        y = sigmoid(flat)
        return y * (1 + flat * (1 - y))

    return _slopes(grad, x, out, slope)


def _pieces(x: np.ndarray, pieces: int) -> np.ndarray:
    """(N, C / pieces, pieces, *rest) of x (N, C, *rest)."""
    if x.ndim < 2 or checked_int("pieces", pieces, least=1) > x.shape[1] or x.shape[1] % pieces:
        raise ValueError(f"x has shape {x.shape}: maxout over {pieces} needs (N, C, ...) with C in {pieces}s")
    return x.reshape(len(x), x.shape[1] // pieces, pieces, *x.shape[2:])


def maxout(x: Any, pieces: int, *, out: Any = None) -> np.ndarray:
    """The largest of every ``pieces`` channels in a row: (N, C / pieces, ...) from x (N, C, ...)."""
    parts = _pieces(floats("x", x), pieces)

    def write(y: np.ndarray) -> None:
        parts.max(2, out=y.reshape(parts.shape[:2] + parts.shape[3:]))

    return filled(lambda y: apart(write, y), parts.shape[:2] + parts.shape[3:], x, out)


def maxout_backward(grad: Any, x: Any, pieces: int, *, out: Any = None) -> np.ndarray:
    """The gradient with respect to x of ``maxout(x, pieces)``."""
    held = floats("x", x)
    parts = _pieces(held, pieces)
    grad = matching("grad", grad, parts.shape[:2] + parts.shape[3:], held.dtype)

    def write(dx: np.ndarray) -> None:
        dx[...] = 0
        largest = np.expand_dims(parts.argmax(2), 2)
        np.put_along_axis(dx.reshape(parts.shape), largest, np.expand_dims(grad, 2), 2)

    return filled(write, held.shape, x, out, grad)
