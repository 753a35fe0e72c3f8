"""What an algorithm must leave as it is: the state that all code of a process shares, and what a process can
run out of.

A call that seeds NumPy, or has faint numbers flushed to zero, is right itself and makes its caller's next
line wrong.
"""

from __future__ import annotations

import contextlib
import gc
import locale
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.processes import children

resource: Any
try:
    import resource
except ImportError:  # where there are no such limits
    resource = None

RESOURCES = [getattr(resource, f"RLIMIT_{name}") for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE",
                                                              "NPROC", "STACK")
             if hasattr(resource, f"RLIMIT_{name}")]  # fmt: skip
SIGNALS = [getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "ALRM", "CHLD", "PIPE", "USR1",
                                                      "USR2")
           if hasattr(signal, f"SIG{name}")]  # fmt: skip
FAINT, ODD = np.full(1, np.finfo(np.float32).tiny), np.full(1, np.float32(1 / 3))


def _handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _drawn() -> bytes:
    name, keys, *rest = np.random.get_state(legacy=True)  # the one that all code shares
    return repr((name, rest)).encode() + np.asarray(keys).tobytes()


def _mask() -> str:
    """Of new files; to ask the system for it is to change it for a moment."""
    status = Path("/proc/self/status").read_text()
    return next((line for line in status.splitlines() if line.startswith("Umask")), "")


def _limits() -> list[Any]:
    return [resource.getrlimit(which) for which in RESOURCES] if resource else []


SHARED: dict[str, Callable[[], Any]] = {
    "the random numbers of NumPy": _drawn,
    "the random numbers of Python": random.getstate,
    "the rounding of faint numbers": lambda: bool((FAINT / 2)[0]),
    "the direction of rounding": lambda: (float((ODD / 7)[0]), float((-ODD / 7)[0])),
    "the path of imports": lambda: list(sys.path),
    "the turns of threads": sys.getswitchinterval,
    "the garbage collector": lambda: (gc.isenabled(), gc.get_threshold()),
    "the handlers of signals": _handlers,
    "the cores": _affinity,
    "the working folder": os.getcwd,
    "the hooks of tracing": lambda: (
        sys.gettrace(),
        sys.getprofile(),
        threading.gettrace(),
        threading.getprofile(),
    ),
    "the limit of recursion": sys.getrecursionlimit,
    "the locale": lambda: locale.setlocale(locale.LC_ALL),
    "the stacks of threads": threading.stack_size,
    "the standard streams": lambda: [id(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)],
    "the hooks of exceptions": lambda: (sys.excepthook, threading.excepthook, sys.unraisablehook),
    "the mask of new files": _mask,
    "the limits of the process": _limits,
    "the priority": lambda: os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else 0,
}


class Surroundings:
    """What they were when it was made."""

    def __init__(self) -> None:
        self._before, self._environment = _now(), dict(os.environ)
        self._imported: dict[str, str] | None = None

    def undo(self) -> None:
        """Put the environment back: imported libraries write to it once; who does it again is to blame."""
        self._imported = _put(self._environment)

    def changed(self) -> list[str]:
        """In words, what is another now; the environment once, after ``undo``."""
        now = _now()
        names = [name for name, value in self._before.items() if name in now and now[name] != value]
        if self._imported is not None:
            names += ["the environment"] if _put(self._imported) != self._environment else []
            self._imported = None
        return names

    @staticmethod
    def held() -> dict[str, int]:
        """How many of what a process can run out of; what the system does not tell is 0."""
        held = {"open files": 0, "processes": _processes()}
        with contextlib.suppress(OSError):
            held["open files"] = len(os.listdir("/proc/self/fd"))
        return held


def _put(environment: dict[str, str]) -> dict[str, str]:
    """What the environment was before ``environment`` took its place."""
    before = dict(os.environ)
    for name in before.keys() - environment.keys():
        del os.environ[name]
    for name in (name for name, value in environment.items() if before.get(name) != value):
        os.environ[name] = environment[name]
    return before


def _processes() -> int:
    own = Path("/proc/self/task")
    try:
        return sum(len((own / task / "children").read_bytes().split()) for task in os.listdir(own))
    except OSError:  # not every kernel has these lists
        return len(children())


def _now() -> dict[str, Any]:
    found = {}
    for name, read in SHARED.items():
        with contextlib.suppress(OSError):  # a working folder may have been deleted
            found[name] = read()
    return found
