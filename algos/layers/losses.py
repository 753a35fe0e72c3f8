"""Dense layers, and what a classifier ends with: softmax and cross-entropy.

Cost: a matrix product, by BLAS, or a few operations for each element. Workspace: none, or an array like the
result.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from algos.door import apart
from algos.engine.blas import blas_limit
from algos.engine.threads import checked_threads
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
    if not held.ndim or len(shape) != 2 or shape[1] != held.shape[-1]:
        raise ValueError(f"w has shape {shape}, x {held.shape}: a dense layer needs w (O, I) and x (..., I)")
    w = matching("w", w, shape, held.dtype)
    if bias is not None:
        bias = matching("bias", bias, shape[:1], held.dtype)

    def write(y: np.ndarray) -> None:
        y = y.reshape(-1, shape[0])
        with blas_limit(threads):
            np.matmul(held.reshape(-1, shape[1]), w.T, out=y)
        if bias is not None:
            y += bias

    return filled(write, (*held.shape[:-1], shape[0]), x, out, w, bias)
