"""Memory that starts at a cache line. Vectors across two lines cost twice, and NumPy's own arrays start 16 bytes behind one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

LINE = 64
CLASH = 1 << 10  # rows a multiple of this apart share few sets of the first-level cache: six of them evict one another
SMALL = 1 << 15  # bytes of a result for which asking for alignment costs more than it gains


def aligned(shape: int | Sequence[int], dtype: Any, zeros: bool = False) -> np.ndarray:
    """A new array, uninitialised or of zeros; its rows are aligned if their length is."""
    shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    room = (np.zeros if zeros else np.empty)(math.prod(shape) * dtype.itemsize + LINE, np.uint8)
    return np.ndarray(shape, dtype, room, -room.__array_interface__["data"][0] % LINE)


def new_result(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new array for what a run computes."""
    return np.empty(shape, dtype) if math.prod(shape) * dtype.itemsize < SMALL else aligned(shape, dtype)


def spread(elements: int, dtype: np.dtype) -> int:
    """A distance of at least ``elements`` between rows that are read side by side: one line more where they would clash."""
    return elements + (LINE // dtype.itemsize if elements * dtype.itemsize % CLASH == 0 else 0)
