"""BLAS held to a number of threads for the length of a call, by one owner of what belongs to the whole
process.

An OpenBLAS with a thread pool of its own, like those in the wheels of NumPy and SciPy, has one number of
threads for the whole process. While calls hold it, it is the smallest that any of them asked for; when the
last one ends it is what it was before. ``threadpoolctl`` is how a user sets the same number, from any thread
at any moment, so its controllers are led through here:

- a limit that the user sets while calls of other threads hold BLAS takes effect beneath theirs and stays when
they end, and
  what its end gives back is what the user had, not what a call had set;
- a limit that a call sets inside itself ends with the call at the latest;
- no call raises BLAS above what the user has set, only above what OMP_NUM_THREADS or one of its kind set at
the start,
  when it is asked for more threads by number.

A call that finds BLAS with its own number or less need not hold it, which makes small calls cheap: a user who
raises the number meanwhile raises it for that call too. Whoever changes it past ``threadpoolctl`` is not
overruled when calls end. Other libraries (MKL, BLIS, OpenBLAS over OpenMP) have a number for each thread,
which every thread that holds them gives back.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import wraps
from itertools import product
from typing import Any

from algos.host import BLAS_VARIABLES, environment_threads

MOST = 1 << 30
# What builds put around the names of OpenBLAS's functions
PREFIXES, SUFFIXES = ("", "scipy_"), ("", "64_", "_64")


class _Library:
    """One OpenBLAS whose number of threads belongs to the process.

    Attributes
    ----------
    count : int
        The user's, which stands whenever no call holds it.
    """

    def __init__(self, get: Any, set_: Any) -> None:
        self.get, self._set = get, set_
        self._started = environment_threads(BLAS_VARIABLES)
        self.note()

    def note(self) -> None:
        """What it has now is the user's."""
        self.count = self.now = self.get()
        self._most = MOST if self.count in self._started else self.count

    def hold(self, threads: int | None) -> None:
        """Set it to ``threads``, as far as a call may, or back to what is the user's."""
        target = self.count if threads is None else min(threads, self._most)
        if target != self.now:
            self._set(target)
            self.now = self.get()  # it has bounds of its own

    def free(self, threads: int) -> bool:
        """Whether ``hold`` would change nothing."""
        count = self.get()
        return count == threads or (count < threads and count not in self._started)


lock = threading.RLock()  # a signal handler or a finaliser may come while it is taken
_libraries: dict[str, _Library] = {}
_others: list[Any] = []  # controllers of libraries with a number for each thread
_holders: dict[blas_limit, int] = {}  # the calls that hold BLAS, and to how many threads
_mine = threading.local()  # .held: those of this thread, innermost last
_modules = -1


def _held() -> list[blas_limit]:
    try:
        return _mine.held
    except AttributeError:
        _mine.held = []
        return _mine.held


def _apply() -> None:
    threads = min(_holders.values(), default=None)
    for library in _libraries.values():
        library.hold(threads)


def find_blas() -> None:
    """Learn of the libraries that were loaded since: they come with modules."""
    global _modules
    if _modules == len(sys.modules):
        return
    from threadpoolctl import OpenBLASController, ThreadpoolController

    with lock:
        _modules = len(sys.modules)
        _others.clear()
        for controller in ThreadpoolController().select(user_api="blas").lib_controllers:
            if controller.filepath in _libraries:
                continue
            shared = isinstance(controller, OpenBLASController) and controller.threading_layer != "openmp"
            if shared and (functions := _functions(controller.filepath)):
                _libraries[controller.filepath] = _Library(*functions)
                _lead(OpenBLASController)
            else:
                _others.append(controller)
        if _holders:
            _apply()


def _functions(path: str) -> tuple[Any, Any] | None:
    """OpenBLAS's own functions that tell and set its number of threads, called without giving up the GIL."""
    try:
        library = ctypes.PyDLL(path)
    except OSError:
        return None
    for prefix, suffix in product(PREFIXES, SUFFIXES):
        get, set_ = (
            getattr(library, f"{prefix}openblas_{verb}_num_threads{suffix}", None) for verb in ("get", "set")
        )
        if get is not None and set_ is not None:
            return get, set_
    return None


def _lead(kind: Any) -> None:
    """Have ``threadpoolctl`` tell and set the user's number while calls hold BLAS, and theirs only inside
    them.
    """
    if hasattr(kind.set_num_threads, "__wrapped__"):
        return
    tell, change = kind.get_num_threads, kind.set_num_threads

    @wraps(tell)
    def get_num_threads(self: Any) -> Any:
        with lock:
            library = _libraries.get(self.filepath)
            return tell(self) if library is None or not _holders or _held() else library.count

    changing = False  # it calls itself once more where its thread must first win the right to change anything

    @wraps(change)
    def set_num_threads(self: Any, num_threads: int) -> Any:
        nonlocal changing
        with lock:
            library = _libraries.get(self.filepath)
            if library is None or changing:
                return change(self, num_threads)
            if _holders and _held():
                _holders[_held()[-1]] = num_threads if num_threads > 0 else MOST
                return _apply()
            library.hold(None)
            changing = True
            try:
                return change(self, num_threads)
            finally:
                changing = False
                library.note()
                _apply()

    kind.get_num_threads, kind.set_num_threads = get_num_threads, set_num_threads


class blas_limit:
    """``with blas_limit(threads):`` holds BLAS to ``threads`` inside the block; some microseconds."""

    __slots__ = ("_before", "_holds", "_threads")

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._before: list[int] = []
        self._holds = False

    def __enter__(self) -> None:
        if blas_threads_set(self._threads):
            return
        try:
            with lock:
                if not _holders:
                    for library in _libraries.values():
                        library.note()
                self._holds = True
                _holders[self] = self._threads
                _held().append(self)
                _apply()
            for other in _others:
                self._before.append(other.get_num_threads())
                if self._threads < self._before[-1] or self._before[-1] in environment_threads(
                    BLAS_VARIABLES
                ):
                    other.set_num_threads(self._threads)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *ignored: object) -> None:
        for other, count in zip(_others, self._before, strict=False):
            other.set_num_threads(count)
        if self._holds:
            with lock:
                _holders.pop(self, None)
                if self in _held():
                    _held().remove(self)
                if not _holders:
                    for library in _libraries.values():
                        if library.get() != library.now:  # somebody else's wish
                            library.note()
                _apply()


def blas_threads_set(threads: int) -> bool:
    """Whether BLAS runs with ``threads`` now, held by nobody, so that ``blas_limit`` has nothing to do."""
    if _modules != len(sys.modules):
        find_blas()
    if _holders or _others:
        return False
    for library in _libraries.values():  # noqa: SIM110  # a loop, since every small call asks
        if not library.free(threads):
            return False
    return True


def own_limit() -> int | None:
    """What the threads that help this one must hold BLAS to themselves; None where nothing belongs to a
    thread.
    """
    held = _held() if _others else None
    return _holders.get(held[-1]) if held else None


def _after_fork() -> None:
    global lock
    lock = threading.RLock()
    for gone in _holders.keys() - _held():  # their threads stay behind
        del _holders[gone]
    _apply()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
