"""Threads: how many may be used, one shared pool for nogil functions, and what
threads may do only once between them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from functools import partial, update_wrapper
from queue import SimpleQueue
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np

from algos.engine.blas import blas_limit, own_limit
from algos.grammar import SpecError, checked_int
from algos.host import BLAS_VARIABLES, environment_threads, usable_cores

MOST_THREADS = 4096  # beyond any machine's cores; pools take what they are told
SHARES = 4  # chunks for each thread, so that nobody waits long for the last
HAND_OVER_S, TELL_S = 1e-6, 1e-7  # to threads that listen, and for each of them
VARIABLES = (*BLAS_VARIABLES, "NUMBA_NUM_THREADS")
Found = TypeVar("Found")
Threads: TypeAlias = int | Literal["auto"] | None


class once(Generic[Found]):
    """``functools.cache`` for what has effects: of threads that ask at the same
    time one does it and the others wait.
    """

    def __init__(self, function: Callable[..., Found]) -> None:
        update_wrapper(self, function)
        self._function = function
        self.cache_clear()

    def __call__(self, *arguments: Any) -> Found:
        if arguments not in self._results:
            with self._lock:
                if arguments not in self._results:
                    self._results[arguments] = self._function(*arguments)
        return self._results[arguments]

    def cache_clear(self) -> None:
        self._results: dict[tuple, Found] = {}
        self._lock = threading.RLock()


def default_threads() -> int:
    """What ``threads=None`` means: the usable cores, or fewer where
    OMP_NUM_THREADS or one of its kind says so.
    """
    return min([usable_cores(), *environment_threads(VARIABLES)])


def checked_threads(threads: Threads) -> int:
    """A valid number of threads; None and "auto" mean ``default_threads``: small work takes fewer of any."""
    if threads is None or (isinstance(threads, str) and threads == "auto"):
        return default_threads()
    count = checked_int("threads", threads, least=1)
    if count > MOST_THREADS:
        raise SpecError(f"threads is {count}: use at most {MOST_THREADS}")
    return count


def limit_environment(threads: int) -> dict[str, str]:
    """Variables that hold every library's pool to ``threads``; set before the first import of any of them.

    OpenBLAS's threads would spin for a tenth of a second after every call, on the cores of the process whose
    turn is next.
    """
    counts = {name: str(threads) for name in (*VARIABLES, "NUMEXPR_NUM_THREADS")}
    # 2**23 cycles, 3 ms: longer than what lies between two calls
    return {**counts, "OPENBLAS_THREAD_TIMEOUT": "23"}


def _serve(inbox: SimpleQueue) -> None:
    # Each thread has its own, and the filters of warnings may be those of the caller's program
    np.seterr(all="ignore")
    while True:
        inbox.get()()


class _Crew:
    """Threads that live as long as the process and take work from one inbox.

    Only C holds locks there: Ctrl-C in the middle of ``concurrent.futures``' own, in Python, can leave one
    locked for good.
    """

    def __init__(self) -> None:
        self.inbox: SimpleQueue = SimpleQueue()
        self._size, self._growing = 0, threading.RLock()  # a signal handler may convolve, too

    def grow(self, size: int) -> None:
        """Have at least ``size`` of them, or as many as the system lets start."""
        if self._size >= size:
            return
        # No more can be started: callers do the work themselves
        with self._growing, contextlib.suppress(RuntimeError):
            while self._size < size:
                threading.Thread(target=_serve, args=(self.inbox,), name="convbench", daemon=True).start()
                self._size += 1


def _new_crew() -> None:
    global _crew
    _crew = _Crew()


_crew = _Crew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_crew)  # threads stay behind


def worth(threads: int, work: float, shared: float) -> int:
    """As many of the threads as have half of ``shared`` to do each, the least work that two threads share."""
    return max(1, min(threads, int(2 * work / shared)))


def busiest(works: int, length: int, blocks: int, threads: int) -> int:
    """Lines of the thread that has most, where ``works`` of ``length`` lines are cut into ``blocks`` each."""
    most, rest = divmod(works * blocks, threads)
    longest = -(-length // blocks)
    # Where all have equally many, those of the shorter blocks; who has one more may have the longest alone
    mine = (most + 1) * longest if rest else (most - 1) * (length // blocks) + longest
    return max(-(-works * length // threads), mine)


def chunks_of(items: int, threads: int) -> int:
    """Into how many chunks ``threads`` cut items: ``SHARES`` for each or more, so that all end together."""
    if threads == 1:
        return 1
    most = -(-items // (SHARES * threads))
    sizes = range(most, max(0, most - 8), -1)  # the largest first: items side by side share what they read
    return -(-items // min(sizes, key=lambda size: -(-items // (size * threads)) * size))


def split(total: int, parts: int) -> list[tuple[int, int]]:
    """``total`` items cut into at most ``parts`` nonempty, nearly equal (first, last) ranges."""
    parts = max(1, min(parts, total))
    return [(total * i // parts, total * (i + 1) // parts) for i in range(parts)]


def share(job: Callable[[int, int], Any], total: int, threads: int) -> None:
    """Run ``job(first, last)`` over ``total`` items on ``threads`` threads, the caller among them.

    ``job`` must release the GIL to gain anything. A hand-over costs 30 to 50 us: call it with threads=1 for
    small work. It returns when nobody works any more, also when Ctrl-C interrupts it: parts that nobody has
    begun are left out then.
    """
    ranges = split(total, threads)
    if len(ranges) == 1:
        job(0, total)
        return
    takers: dict[int, object] = {}  # who does which part: whoever sets it first
    finished: set[int] = set()
    failures: list[BaseException] = []
    bell: SimpleQueue = SimpleQueue()
    caller = object()
    limit = own_limit()

    def help_with(part: int) -> None:
        if takers.setdefault(part, bell) is bell:
            try:
                with contextlib.nullcontext() if limit is None else blas_limit(limit):
                    job(*ranges[part])
            except BaseException as error:
                failures.append(error)
            finished.add(part)
            bell.put(None)

    try:
        _crew.grow(threads - 1)
        for part in range(1, len(ranges)):
            _crew.inbox.put(partial(help_with, part))
        for part in range(len(ranges)):
            if takers.setdefault(part, caller) is caller:  # a helper that comes late finds nothing left
                job(*ranges[part])
    except BaseException as error:
        failures.insert(0, error)
    waiting = True
    while waiting:
        try:
            for part in range(len(ranges)):
                while takers.setdefault(part, caller) is bell and part not in finished:
                    bell.get()
            waiting = False
        except BaseException as error:  # Ctrl-C: the others still write to the caller's arrays
            failures.insert(0, error)
    for failure in failures:
        raise failure


def warm_up(threads: int) -> None:
    """Make what ``share`` needs, so that the first run does not."""
    if threads > 1:
        _crew.grow(threads - 1)
