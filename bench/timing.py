"""A thunk and a budget -> raw samples. One sample is the mean of enough
back-to-back calls to be read off the clock.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import perf_counter
from bench.turns import FEW_TURNS

Thunk = Callable[[], Any]
DEVICE_CACHE_BYTES = 128 << 20  # the largest second-level cache of a GPU so far
WARM_UP_S = 0.003  # caches and helper threads come back after the rivals' turns
MOST_SAMPLES = 8  # of a turn: enough for a quartile that interruptions do not move
LOOK_EVERY = 4
CLOCK_SHARE, CLOCK_SLACK_S = 0.25, 0.003  # what a turn may take beyond its samples: the messages around it
LONGEST_WARM_UP_S = 0.05  # a call beyond it gains nothing from a warm-up call before every chunk


@dataclass(frozen=True)
class Budget:
    """How a case is sampled in one launch: in short turns, its rivals' in between, until the race is settled.

    Attributes
    ----------
    case_s : float
        Most seconds of turns.
    turn_s : float
        Of samples in a turn; a longer call is a turn by itself.
    sample_s : float
        Least duration of one sample; short calls are repeated inside it.
    rounds : int
        Most turns.
    error : float
        Standard error of the ratio to the fastest rival, as turns tell it, at which a launch has seen enough.
    """

    case_s: float = 0.6
    turn_s: float = 0.008
    sample_s: float = 0.001
    rounds: int = 32
    error: float = 0.01

    def chunk(self, call_s: float, loops: int) -> int:
        """Samples to take in one turn."""
        return max(1, min(MOST_SAMPLES, int(self.turn_s / max(call_s * loops, 1e-9))))


def looks(rounds: int) -> bool:
    """Whether the race is looked at after so many rounds: 4, 8, 12, ..."""
    return rounds >= FEW_TURNS and rounds % LOOK_EVERY == 0


def pilot(call: Thunk, synchronize: Thunk, budget: Budget, cold: bool) -> tuple[float, int]:
    """Seconds of one steady call, and the calls that make one sample; cold samples are single calls."""
    times: list[float] = []
    while not times or (sum(times) < budget.sample_s and len(times) < 50):
        times.append(_timed(call, synchronize, 1)[0])
    estimate = min(times)
    if cold:
        return estimate, 1
    return estimate, max(1, min(1_000_000, math.ceil(budget.sample_s / max(estimate, 1e-9))))


def warm_up(call: Thunk) -> None:
    """Another process ran in between: it took the caches, and helper threads went to sleep."""
    end = perf_counter() + WARM_UP_S
    call()
    while perf_counter() < end:
        call()


def take(
    call: Thunk, synchronize: Thunk, loops: int, count: int, flush: Thunk | None = None
) -> tuple[list[float], Any]:
    """``count`` samples of ``loops`` calls each, seconds per call, and what the very last call returned.

    ``flush`` empties the caches before every call. The device is synchronised before the clock starts and
    before it stops. Garbage is collected outside the clock.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        samples, result = [], None
        for _ in range(count):
            result = None  # its memory is the next call's
            if flush is not None:
                flush()
            seconds, result = _timed(call, synchronize, loops)
            samples.append(seconds / loops)
        return samples, result
    finally:
        if collecting:
            gc.enable()


def _timed(call: Thunk, synchronize: Thunk, loops: int) -> tuple[float, Any]:
    synchronize()
    start = perf_counter()
    for _ in range(loops - 1):
        call()
    result = call()
    synchronize()
    return perf_counter() - start, result


def believable(samples: Sequence[float], loops: int, turn_s: float, cold: bool) -> bool:
    """Whether samples add up to what the turn took by the clock of the process that asked for them.

    What lies between two cold samples is not theirs.
    """
    total = math.fsum(samples) * loops
    if not (total <= turn_s + CLOCK_SLACK_S / 10 and min(samples) > 0):
        return False
    return cold or turn_s - total <= CLOCK_SHARE * total + CLOCK_SLACK_S


def explained(claimed_s: float, busy_s: float, threads: int, turns: int) -> bool:
    """Whether turns that took longer than their samples waited for a processor: then the algorithm's
    processes had no more of it, by the system's books, than the samples claim. A clock that runs slow hides
    what it had.
    """
    return busy_s <= threads * claimed_s * (1 + CLOCK_SHARE) + turns * CLOCK_SLACK_S


def cache_flusher(cache_bytes: int) -> Thunk:
    """Something that pushes everything else out of a cache of that many bytes."""
    buffer = np.zeros(2 * cache_bytes // 8)

    def flush() -> None:
        np.add(buffer, 1.0, out=buffer)

    return flush


def device_cache_flusher(to_device: Callable[[np.ndarray], Any]) -> Thunk:
    """The same for a GPU's cache; the copy is waited for before the clock
    starts, like everything on the device.
    """
    source, target = (to_device(np.zeros(DEVICE_CACHE_BYTES // 4, np.float32)) for _ in range(2))

    def flush() -> None:
        target[...] = source

    return flush
