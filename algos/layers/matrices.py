"""Convolution as matrices: Toeplitz, doubly blocked Toeplitz, kernels of low rank, and 1 x 1.

The Toeplitz matrix of a filter w (m) for signals x (n) has w, reversed, in every row, one place further
right each: W x is the true (flipped) convolution. That of a picture's filter is blocked, each block the
Toeplitz matrix of one row of the filter, the blocks laid out as the numbers of one are. They are for study:
as large as input times output.

A kernel (O, C, KH, KW) of rank R is two convolutions, (R, C, KH, 1) then (O, R, 1, KW): R (C KH + O KW)
products for each pixel in place of O C KH KW. The nearest of a rank is its singular value decomposition's.

Source: Goodfellow, Bengio and Courville, "Deep learning", 2016, section 9.1; Jaderberg, Vedaldi and
Zisserman, "Speeding up convolutional neural networks with low rank expansions", arXiv:1405.3866.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from algos.door import apart
from algos.functional import Ints, conv2d
from algos.grammar import checked_int, per_axis
from algos.layers._calls import filled, floats, matching

MODES = ("valid", "full")


def toeplitz(w: Any, n: int, mode: str = "valid") -> np.ndarray:
    """The matrix W for which W x is the true convolution of x (n,) with w (m,).

    Parameters
    ----------
    w : array (m,)
        Floats.
    n : int
    mode : {"valid", "full"}
        n - m + 1 outputs, or n + m - 1.

    Returns
    -------
    array (outputs, n)
        Its transpose takes an output's gradient to that of x.
    """
    w = floats("w", w)
    if w.ndim != 1 or mode not in MODES:
        raise ValueError(f"w has shape {w.shape} and mode is {mode!r}: give one axis, and 'valid' or 'full'")
    m = len(w)
    outputs = checked_int("n", n, least=1) + (m - 1 if mode == "full" else 1 - m)
    if outputs < 1 or not m:
        raise ValueError(f"{m} taps give no output of {n} elements: use more elements")
    lag = np.arange(outputs)[:, None] + (0 if mode == "full" else m - 1) - np.arange(n)
    return np.where((lag >= 0) & (lag < m), w[np.clip(lag, 0, m - 1)], w.dtype.type(0))


def doubly_blocked_toeplitz(w: Any, size: tuple[int, int], mode: str = "valid") -> np.ndarray:
    """The matrix W for which W x, of a picture x (H, W) row by row, is its true convolution with w (KH, KW).

    Returns
    -------
    array (outputs, H * W)
    """
    w = floats("w", w)
    if w.ndim != 2 or not w.size:
        raise ValueError(f"w has shape {w.shape}: give a filter (KH, KW)")
    height, width = per_axis("size", size, 2)
    rows = np.stack([toeplitz(row, width, mode) for row in w])  # (KH, OW, W)
    # Which row of the filter a block is of: the matrix of 1, 2, ..., 0 where there is none
    number = toeplitz(np.arange(1.0, len(w) + 1), height, mode).astype(int)
    blocks = np.concatenate([np.zeros_like(rows[:1]), rows])[number]  # (OH, H, OW, W)
    return blocks.transpose(0, 2, 1, 3).reshape(number.shape[0] * rows.shape[1], height * width)


def low_rank(w: Any, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Two kernels, one after the other, that are nearest to w (O, C, KH, KW) of all with ``rank`` channels
    between them.

    Returns
    -------
    down : array (rank, C, KH, 1)
    along : array (O, rank, 1, KW)
    """
    w = floats("w", w)
    if w.ndim != 4 or not w.size:
        raise ValueError(f"w has shape {w.shape}: give kernels (O, C, KH, KW)")
    o, c, kh, kw = w.shape
    if checked_int("rank", rank, least=1) > min(c * kh, o * kw):
        raise ValueError(f"rank is {rank}: these kernels have at most {min(c * kh, o * kw)}")
    matrix = w.transpose(1, 2, 0, 3).reshape(c * kh, o * kw)
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    root = np.sqrt(values[:rank])
    down = (left[:, :rank] * root).T.reshape(rank, c, kh, 1)
    along = (right[:rank] * root[:, None]).reshape(rank, o, 1, kw).swapaxes(0, 1)
    return down.astype(w.dtype), np.ascontiguousarray(along.astype(w.dtype))


def low_rank_conv2d(x: Any, down: Any, along: Any, bias: Any = None, stride: Ints = 1, padding: Ints = 0, *,
                    threads: int | None = None, out: Any = None) -> np.ndarray:  # fmt: skip
    """``conv2d`` of x (N, C, H, W) with the kernels that ``low_rank`` factorised."""
    (s, t), (p, q) = per_axis("stride", stride, 2), per_axis("padding", padding, 2)
    between = conv2d(x, down, None, (s, 1), (p, 0), threads=threads)
    return conv2d(between, along, bias, (1, t), (0, q), threads=threads, out=out)


def pointwise(x: Any, w: Any, bias: Any = None, *, out: Any = None) -> np.ndarray:
    """The 1 x 1 convolution of x (N, C, *size) with w (O, C): a matrix product for each image."""
    return apart(_pointwise, x, w, bias, out)


def _pointwise(x: Any, w: Any, bias: Any, out: Any) -> np.ndarray:
    held, shape = floats("x", x), np.shape(w)
    if held.ndim < 3 or len(shape) != 2 or shape[1] != held.shape[1]:
        raise ValueError(f"w has shape {shape}, x {held.shape}: 1 x 1 needs w (O, C) and x (N, C, *size)")
    w = matching("w", w, shape, held.dtype)
    if bias is not None:
        bias = matching("bias", bias, shape[:1], held.dtype)
    result = (len(held), shape[0], *held.shape[2:])

    def write(y: np.ndarray) -> None:
        y = y.reshape(len(held), shape[0], -1)
        np.matmul(w, held.reshape(*held.shape[:2], -1), out=y)
        if bias is not None:
            y += bias[:, None]

    return filled(write, result, x, out, w)


def pointwise_backward(grad: Any, x: Any, w: Any,
                       bias: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The gradients of ``pointwise`` with respect to x, w and bias."""
    held, shape = floats("x", x), np.shape(w)
    grad = matching("grad", grad, (len(held), shape[0], *held.shape[2:]), held.dtype)
    given, planes = grad.reshape(*grad.shape[:2], -1), held.reshape(*held.shape[:2], -1)
    w = matching("w", w, shape, held.dtype)
    dx = np.matmul(w.T, given).reshape(held.shape)
    return dx, np.matmul(given, planes.swapaxes(1, 2)).sum(0), given.sum((0, 2))
