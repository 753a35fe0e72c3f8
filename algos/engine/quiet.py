"""Waiting for other threads of this process: pools of BLAS and OpenMP spin long after their last call, on the
cores of whoever is measured next.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from time import perf_counter, sleep

WAIT_S, LIMIT_S = 0.0005, 0.5


def quieten(limit_s: float | None = None) -> bool:
    """Wait until no other thread of this process runs, for half a second at most; whether that was so."""
    limit = perf_counter() + (LIMIT_S if limit_s is None else limit_s)
    while others := _others_run():
        if perf_counter() >= limit:
            break
        sleep(WAIT_S)
    return not others


def _others_run() -> bool:
    """Whether another thread of this process is on a core or waits for one;
    False where the system does not say.
    """
    own = str(threading.get_native_id())
    with contextlib.suppress(OSError):
        return any(running(int(task)) for task in os.listdir("/proc/self/task") if task != own)
    return False


def running(task: int | None) -> bool:
    """Whether a thread of this process is on a core or waits for one; False where the system does not say."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/self/task/{task}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"R"
    return False
