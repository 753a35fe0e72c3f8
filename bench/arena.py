"""Memory that the judge and the judged both see: arrays between guards, in one anonymous or shared block.

The judge lays out operands, weights, results and ``out``; the judged process maps the same file. Guards on
both sides of every array hold NaN in every type of float, so that a read outside spoils the result and a
write outside is noticed.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from algos import dtypes  # noqa: F401  # so that NumPy knows bfloat16 by its name

GUARD = 4096  # bytes on either side
OFFSET = 16  # behind a cache line, where NumPy's own arrays start
MEMORY_FOLDER = "/dev/shm"


@dataclass(frozen=True)
class Slot:
    """Where one array lies in an arena; ``text`` is what goes over a pipe."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, text: Sequence[Any]) -> Slot:
        offset, shape, dtype = text
        return cls(int(offset), tuple(map(int, shape)), str(dtype))

    @property
    def text(self) -> list[Any]:
        return [self.offset, list(self.shape), self.dtype]


class Arena:
    """A block of ``size`` bytes, all of them guards until slots are taken.

    Parameters
    ----------
    size : int
    file : int or None
        A descriptor to map, shared with another process; None for memory of this process alone.
    """

    def __init__(self, size: int, file: int | None = None) -> None:
        self._size, self._file = size, None if file is None else os.dup(file)
        self._block = mmap.mmap(-1 if file is None else file, size)
        self._bytes = np.frombuffer(self._block, np.uint8)
        self._next = 0

    def clear(self) -> None:
        """Give all slots back."""
        self._next = 0

    def take(self, shape: Sequence[int], dtype: Any) -> Slot:
        """Room for an array, with fresh guards around it."""
        begin = self._next + GUARD
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        slot = Slot(begin + OFFSET, tuple(shape), np.dtype(dtype).name)
        self._bytes[self._next : slot.offset] = 0xFF
        end = slot.offset + nbytes
        self._next = -(-end // 64) * 64
        self._bytes[end : self._next + GUARD] = 0xFF
        return slot

    def view(self, slot: Slot) -> np.ndarray:
        return np.ndarray(slot.shape, slot.dtype, self._block, slot.offset)

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def apart(self) -> Apart:
        """The same bytes elsewhere, where it shows afterwards whether anybody wrote; OSError without a file.
        """
        if self._file is None:
            raise OSError("an arena of one process has no file")
        return Apart(self._file, self._size)

    def intact(self, slot: Slot) -> bool:
        """Whether nobody wrote to the guards of ``slot``."""
        nbytes = math.prod(slot.shape) * np.dtype(slot.dtype).itemsize
        before = self._bytes[slot.offset - OFFSET - GUARD : slot.offset]
        after = self._bytes[slot.offset + nbytes : slot.offset + nbytes + GUARD]
        return bool((before == 0xFF).all() and (after == 0xFF).all())


class Apart:
    """A copy on write: pages that were written to are no more the file's, even where they hold what they
    held.
    """

    def __init__(self, file: int, size: int) -> None:
        self._block = mmap.mmap(file, size, access=mmap.ACCESS_COPY)

    def view(self, slot: Slot) -> np.ndarray:
        return np.ndarray(slot.shape, slot.dtype, self._block, slot.offset)

    def written(self) -> bool:
        """Whether anybody wrote to it; False where the system does not say."""
        start, pages = (
            np.frombuffer(self._block, np.uint8).ctypes.data // mmap.PAGESIZE,
            -(-len(self._block) // mmap.PAGESIZE),
        )
        with contextlib.suppress(OSError), open("/proc/self/pagemap", "rb", buffering=0) as table:
            table.seek(8 * start)
            entries = np.frombuffer(table.read(8 * pages), np.uint64)
            there = entries >> np.uint64(62) != 0  # in memory, or swapped out
            return bool((there & ((entries >> np.uint64(61)) & np.uint64(1) == 0)).any())
        return False


def room(arrays: Sequence[tuple[Sequence[int], Any]]) -> int:
    """Bytes of an arena that holds arrays of these shapes and types at once."""
    return (
        sum(math.prod(shape) * np.dtype(dtype).itemsize + GUARD + 128 for shape, dtype in arrays) + 2 * GUARD
    )


@contextlib.contextmanager
def shared_file(size: int) -> Iterator[tuple[int, str]]:
    """A descriptor and a path of ``size`` reserved bytes, in memory where there is room; gone afterwards,
    unless mapped.

    Raises
    ------
    OSError
        When no folder for temporary files has room, and the system has no files without a folder.
    """
    file, path = _reserved(size)
    try:
        yield file, path
    finally:
        os.close(file)
        if not path.startswith("/proc"):
            os.unlink(path)


def _reserved(size: int) -> tuple[int, str]:
    for folder in (MEMORY_FOLDER, None):
        with contextlib.suppress(OSError):  # not there, not writable, or too small, as in many containers
            return _temporary(folder, size)
    if not hasattr(os, "memfd_create"):
        return _temporary(None, size)
    file = os.memfd_create("convbench")
    return _allocated(file, f"/proc/{os.getpid()}/fd/{file}", size)


def _temporary(folder: str | None, size: int) -> tuple[int, str]:
    file, path = tempfile.mkstemp(prefix="convbench-", dir=folder)
    try:
        return _allocated(file, path, size)
    except BaseException:
        os.unlink(path)
        raise


def _allocated(file: int, path: str, size: int) -> tuple[int, str]:
    """Closes ``file`` where there is no room."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)  # a page that cannot be had would be a bus error later
        else:
            os.ftruncate(file, size)
    except BaseException:
        os.close(file)
        raise
    return file, path
