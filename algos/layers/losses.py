"""Dense layers, and what a classifier ends with: softmax and cross-entropy.

The largest element is taken away before exponentials, so that none overflows. A row with NaN or +inf gives
NaN.

Cost: a matrix product, by BLAS, or a few operations for each element. Workspace: none, or an array like the
result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from algos.door import apart, as_array
from algos.dtypes import whole
from algos.engine.blas import blas_limit
from algos.engine.jit import disabled
from algos.engine.products_of_rows import MOST_VECTORS, multiplying
from algos.engine.threads import checked_threads
from algos.grammar import checked_int, shown
from algos.layers._calls import filled, floats, matching


def linear(x: Any, w: Any, bias: Any = None, *, threads: int | None = None, out: Any = None) -> np.ndarray:
    """x w^T + bias, as ``torch.nn.functional.linear``.

    Parameters
    ----------
    x : array (..., I)
        Floats.
    w : array (O, I)
    bias : array (O,), optional
    threads : int, optional
        The usable cores when left out.
    out : array (..., O), optional

    Returns
    -------
    array (..., O)
        Of the type of x.

    Raises
    ------
    ValueError
        One line that says what to change.
    """
    return apart(_linear, x, w, bias, checked_threads(threads), out)


def _linear(x: Any, w: Any, bias: Any, threads: int, out: Any) -> np.ndarray:
    held, shape = floats("x", x), np.shape(w)
    _check_dense(held, shape)
    w = matching("w", w, shape, held.dtype)
    if bias is not None:
        bias = matching("bias", bias, shape[:1], held.dtype)

    def write(y: np.ndarray) -> None:
        y = y.reshape(-1, shape[0])
        if len(y) <= MOST_VECTORS and not disabled():
            dtype, none = held.dtype, np.empty(0, held.dtype)
            run = multiplying(*shape, len(y), dtype, threads)
            run(w, held.reshape(-1, shape[1]), none if bias is None else bias, y)
            return
        with blas_limit(threads):
            np.matmul(held.reshape(-1, shape[1]), w.T, out=y)
        if bias is not None:
            y += bias

    return filled(write, (*held.shape[:-1], shape[0]), x, out, w, bias)


def _check_dense(x: np.ndarray, shape: tuple[int, ...]) -> None:
    if not x.ndim or len(shape) != 2 or shape[1] != x.shape[-1]:
        raise ValueError(f"w has shape {shape}, x {x.shape}: a dense layer needs w (O, I) and x (..., I)")


def linear_backward(grad: Any, x: Any, w: Any, bias: Any = None, *,
                    threads: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The gradients of ``linear`` with respect to x, w and bias."""
    return apart(_linear_backward, grad, x, w, checked_threads(threads))


def _linear_backward(grad: Any, x: Any, w: Any,
                     threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    held, shape = floats("x", x), np.shape(w)
    _check_dense(held, shape)
    w, rows = matching("w", w, shape, held.dtype), held.reshape(-1, shape[1])
    grad = matching("grad", grad, (*held.shape[:-1], shape[0]), held.dtype).reshape(-1, shape[0])
    with blas_limit(threads):
        dx, dw = grad @ w, grad.T @ rows
    dtype = as_array("x", x).dtype.newbyteorder("=")
    found = dx.reshape(held.shape), dw, grad.sum(0)
    return found if dtype == held.dtype else tuple(each.astype(dtype) for each in found)


def softmax(x: Any, dim: int = -1, *, out: Any = None) -> np.ndarray:
    """e^x over its sum along axis ``dim``, like x."""
    return apart(_along, x, dim, out, _softmax)


def log_softmax(x: Any, dim: int = -1, *, out: Any = None) -> np.ndarray:
    """The logarithm of ``softmax(x, dim)``."""
    return apart(_along, x, dim, out, _log_softmax)


def softmax_backward(grad: Any, x: Any, dim: int = -1, *, out: Any = None) -> np.ndarray:
    """The gradient with respect to x of ``softmax(x, dim)``."""

    def words(held: np.ndarray, axis: int) -> np.ndarray:
        y, given = _softmax(held, axis), matching("grad", grad, held.shape, held.dtype)
        return y * (given - (given * y).sum(axis, keepdims=True))

    return apart(_along, x, dim, out, words)


def log_softmax_backward(grad: Any, x: Any, dim: int = -1, *, out: Any = None) -> np.ndarray:
    """The gradient with respect to x of ``log_softmax(x, dim)``."""

    def words(held: np.ndarray, axis: int) -> np.ndarray:
        given = matching("grad", grad, held.shape, held.dtype)
        return given - _softmax(held, axis) * given.sum(axis, keepdims=True)

    return apart(_along, x, dim, out, words)


def _along(x: Any, dim: int, out: Any, words: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    held, axis = floats("x", x), checked_int("dim", dim)
    if not -held.ndim <= axis < held.ndim:
        raise ValueError(f"dim is {axis}: x has {held.ndim} axes")

    def write(y: np.ndarray) -> None:
        y.reshape(held.shape)[...] = words(held, axis)

    return filled(write, held.shape, x, out)


def _log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    left = x - x.max(axis, keepdims=True)
    return left - np.log(np.exp(left).sum(axis, keepdims=True))


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    y = np.exp(x - x.max(axis, keepdims=True))
    y /= y.sum(axis, keepdims=True)
    return y


def cross_entropy(x: Any, target: Any, *, reduction: str = "mean") -> np.ndarray:
    """-log_softmax(x) at the target classes, as ``torch.nn.functional.cross_entropy``.

    Parameters
    ----------
    x : array (N, K)
        Floats; scores of K classes.
    target : array (N,) of whole numbers from 0 to K - 1
    reduction : {"mean", "sum", "none"}
        What is made of the N losses. The mean of none is NaN.

    Returns
    -------
    array () or (N,)
        Of the type of x.
    """
    return apart(_cross_entropy, x, target, reduction)


def _cross_entropy(x: Any, target: Any, reduction: str) -> np.ndarray:
    held, classes = _classified(x, target, reduction)
    each = -_log_softmax(held, 1)[np.arange(len(held)), classes] if held.size else np.zeros(0, held.dtype)
    total = each.sum(dtype=np.float64)
    found = {"none": each, "sum": total, "mean": total / np.float64(len(each))}[reduction]
    return np.asarray(found).astype(as_array("x", x).dtype.newbyteorder("="))


def cross_entropy_backward(grad: Any, x: Any, target: Any, *, reduction: str = "mean",
                           out: Any = None) -> np.ndarray:  # fmt: skip
    """The gradient with respect to x of ``cross_entropy(x, target)``."""
    return apart(_cross_entropy_backward, grad, x, target, reduction, out)


def _cross_entropy_backward(grad: Any, x: Any, target: Any, reduction: str, out: Any) -> np.ndarray:
    held, classes = _classified(x, target, reduction)
    given = matching("grad", grad, held.shape[:1] if reduction == "none" else (), held.dtype)

    def write(dx: np.ndarray) -> None:
        dx = dx.reshape(held.shape)
        dx[...] = _softmax(held, 1)
        dx[np.arange(len(held)), classes] -= 1
        dx *= given.reshape(-1, 1) / (len(held) if reduction == "mean" else 1)

    return filled(write, held.shape, x, out, grad)


def _classified(x: Any, target: Any, reduction: str) -> tuple[np.ndarray, np.ndarray]:
    held, classes = floats("x", x), as_array("target", target)
    if held.ndim != 2 or classes.shape != held.shape[:1] or not whole(classes.dtype):
        raise ValueError(f"target is {classes.dtype} {classes.shape}, x is {held.shape}: give x (N, K), "
                         "and whole numbers (N,)")  # fmt: skip
    if classes.size and not 0 <= classes.min() <= classes.max() < held.shape[1]:
        raise ValueError(f"target goes from {classes.min()} to {classes.max()}: x has classes 0 to "
                         f"{held.shape[1] - 1}")  # fmt: skip
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {shown(reduction)}: use 'mean', 'sum' or 'none'")
    return held, classes
