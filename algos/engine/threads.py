"""Threads: how many may be used, one shared pool for nogil functions, and BLAS held to a number of threads."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from algos.grammar import SpecError, checked_int

MOST_THREADS = 4096  # beyond any machine's cores; pools take what they are told
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@cache
def usable_cores() -> int:
    """Cores that this process may use: affinity and the container's quota, not what the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def checked_threads(threads: int | None) -> int:
    """A valid number of threads; None means the usable cores."""
    if threads is None:
        return usable_cores()
    count = checked_int("threads", threads, least=1)
    if count > MOST_THREADS:
        raise SpecError(f"threads is {count}: use at most {MOST_THREADS}")
    return count


def limit_environment(threads: int) -> dict[str, str]:
    """Variables that hold every library's pool to ``threads``; set before the first import of any of them.

    OpenBLAS's threads would spin for a tenth of a second after every call, on the cores of the process whose turn is next.
    """
    counts = {name: str(threads) for name in (*BLAS_VARIABLES, "NUMBA_NUM_THREADS", "NUMEXPR_NUM_THREADS")}
    return {**counts, "OPENBLAS_THREAD_TIMEOUT": "23"}  # 2**23 cycles, 3 ms: longer than what lies between two calls


def _serve(inbox: SimpleQueue) -> None:
    np.seterr(all="ignore")  # each thread has its own, and the filters of warnings may be those of the caller's program
    while True:
        inbox.get()()


@cache
def _inbox(workers: int) -> SimpleQueue:
    """Where so many threads, which live as long as the process, take work from.

    Only C holds locks here: Ctrl-C in the middle of ``concurrent.futures``' own, in Python, can leave one locked for good.
    """
    inbox: SimpleQueue = SimpleQueue()
    for _ in range(workers):
        threading.Thread(target=_serve, args=(inbox,), name="convbench", daemon=True).start()
    return inbox


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inbox.cache_clear)  # threads stay behind


def split(total: int, parts: int) -> list[tuple[int, int]]:
    """``total`` items cut into at most ``parts`` nonempty, nearly equal (first, last) ranges."""
    parts = max(1, min(parts, total))
    return [(total * i // parts, total * (i + 1) // parts) for i in range(parts)]


def share(job: Callable[[int, int], Any], total: int, threads: int) -> None:
    """Run ``job(first, last)`` over ``total`` items on ``threads`` threads, the caller among them.

    ``job`` must release the GIL to gain anything. A hand-over costs 30 to 50 us: call it with threads=1 for small work.
    It returns when nobody works any more, also when Ctrl-C interrupts it: parts that nobody has begun are left out then.
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

    def help_with(part: int) -> None:
        if takers.setdefault(part, bell) is bell:
            try:
                job(*ranges[part])
            except BaseException as error:
                failures.append(error)
            finished.add(part)
            bell.put(None)

    try:
        inbox = _inbox(threads - 1)
        for part in range(1, len(ranges)):
            inbox.put(partial(help_with, part))
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


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def blas_threads_set(threads: int) -> bool:
    """Whether BLAS already runs with ``threads``, so that no limit has to be set around each call."""
    for name in BLAS_VARIABLES:
        if name in os.environ:
            return os.environ[name] == str(threads)
    return threads == usable_cores()


def warm_up(threads: int) -> None:
    """Make what ``share`` and ``blas_limit`` need, so that the first run does not."""
    if threads > 1:
        _inbox(threads - 1)
        _blas()


@contextlib.contextmanager
def blas_limit(threads: int) -> Iterator[None]:
    """Hold BLAS to ``threads`` inside the block."""
    if blas_threads_set(threads):
        yield
    else:
        libraries = _blas().lib_controllers
        before = [library.get_num_threads() for library in libraries]
        try:
            for library in libraries:  # as threadpoolctl's own limit does, which takes 50 us of every call to ask for more
                library.set_num_threads(threads)
            yield
        finally:
            for library, count in zip(libraries, before, strict=True):
                library.set_num_threads(count)
