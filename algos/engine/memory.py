"""Memory that starts at a cache line. Vectors across two lines cost twice, and NumPy's
own arrays start 16 bytes behind one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ctypes import addressof, c_char
from functools import partial
from typing import Any

import numpy as np

from algos.spec import ConvSpec

LINE = 64
# Rows a multiple of this apart share few sets of the first-level cache: six of them evict one another
CLASH = 1 << 10
BYTE = np.dtype(np.uint8)
SMALL = 1 << 15  # bytes of a result for which asking for alignment costs more than it gains


def aligned(shape: int | Sequence[int], dtype: Any, zeros: bool = False) -> np.ndarray:
    """A new array, uninitialised or of zeros; its rows are aligned if their length is."""
    shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    room = (np.zeros if zeros else np.empty)(math.prod(shape) * dtype.itemsize + LINE, BYTE)
    return _at_a_line(room, shape, dtype)


def _at_a_line(room: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    start = addressof(c_char.from_buffer(room))  # type: ignore[arg-type]  # the fastest way to the address
    return np.ndarray(shape, dtype, room, -start % LINE)


def results_of(spec: ConvSpec) -> Callable[[], np.ndarray]:
    """What makes a new array for each run's result; made once, since for small work every microsecond counts.
    """
    shape, dtype = spec.result_shape, spec.result_dtype
    size = math.prod(shape) * dtype.itemsize
    if size < SMALL:
        return partial(np.empty, shape, dtype)
    return lambda: _at_a_line(np.empty(size + LINE, BYTE), shape, dtype)


def spread(elements: int, dtype: np.dtype) -> int:
    """A distance of at least ``elements`` between rows that are read side by side:
    one line more where they would clash.
    """
    return elements + (LINE // dtype.itemsize if elements * dtype.itemsize % CLASH == 0 else 0)
