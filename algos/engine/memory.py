"""Memory that starts at a cache line. Vectors across two lines cost twice, and NumPy's
own arrays start 16 bytes behind one.
"""

from __future__ import annotations

import math
import weakref
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
LARGE, MOST_LEFT = 1 << 19, 1 << 26  # bytes of arrays whose memory is kept, and of all that is kept


class Rooms:
    """Memory of arrays that ended, for the next ones: where a plan is made at every call, with new weights,
    new pages would cost more than what is written to them.

    Threads and finalisers may come at any moment: each step is one operation of a dict.
    """

    def __init__(self) -> None:
        self._left: dict[int, np.ndarray] = {}  # the oldest first

    def take(self, size: int, zeros: bool) -> Any:
        """``size`` bytes or a few more; they come back here when nobody has them any more."""
        fit = [room for room in list(self._left.values()) if size <= room.size <= size + size // 4]
        room = self._left.pop(id(min(fit, key=len)), None) if fit else None
        if room is None:
            room = (np.zeros if zeros else np.empty)(size, BYTE)
        elif zeros:
            room.fill(0)
        # Not an array: of those NumPy's arrays would keep ``room`` itself, and nobody would have this one
        lent = (c_char * room.size).from_buffer(room)  # type: ignore[arg-type]
        weakref.finalize(lent, self._give, room).atexit = False
        return lent

    def _give(self, room: np.ndarray) -> None:
        self._left[id(room)] = room
        while sum(map(len, list(self._left.values()))) > MOST_LEFT:
            self._left.pop(next(iter(list(self._left)), 0), None)

    def clear(self) -> None:
        self._left.clear()


def aligned(shape: int | Sequence[int], dtype: Any, zeros: bool = False) -> np.ndarray:
    """A new array, uninitialised or of zeros; its rows are aligned if their length is."""
    shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize + LINE
    room = rooms.take(size, zeros) if size > LARGE else (np.zeros if zeros else np.empty)(size, BYTE)
    return _at_a_line(room, shape, dtype)


rooms = Rooms()


def _at_a_line(room: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    start = addressof(c_char.from_buffer(room))  # the fastest way to the address
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
