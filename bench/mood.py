"""How calm the machine is: time that the host took away, other tasks that want to run, and a fixed loop timed
beside each turn.

None of this looks at what is measured, so that a turn may be left out for it without favouring anybody.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from time import sleep
from typing import NamedTuple

from algos.host import usable_cores
from bench import perf_counter

LOOP = 4000  # turns of a loop that takes some 0.1 ms
SLOW_LOOP = 1.5  # times its usual: somebody else had the core
STOLEN = 0.5  # share of a turn
MOST_LEFT_OUT = 0.5  # of the turns of a launch: beyond, the disturbance is what is usual
BUSY = 0.25  # other tasks per core from which on a run says so before it starts
LOOKS, LOOK_S = 20, 0.01


class Look(NamedTuple):
    """One look, before or after a turn."""

    at_s: float
    stolen_s: float
    waiting: int
    loop_s: float


def look() -> Look:
    start = perf_counter()
    for _ in range(LOOP):
        pass
    return Look(start, stolen_s(), max(0, runnable() - 1), perf_counter() - start)


def stolen_s() -> float:
    """Seconds that the host has taken from all cores since it started; 0 where the system does not say."""
    with contextlib.suppress(OSError, IndexError, ValueError), open("/proc/stat", "rb") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def runnable() -> int:
    """Tasks that run or want to, this one among them; 1 where the system does not say."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/loadavg").read_bytes().split()[3].partition(b"/")[0])
    return 1


class Figures(NamedTuple):
    """A group's mood as its launches record it, see ``bench.record.Launch``."""

    steal: float
    load: float
    loop: float


class Mood:
    """The machine's mood over the rounds of one group of rivals."""

    def __init__(self) -> None:
        self._loops: dict[tuple[int, int], float] = {}
        self._stolen: dict[tuple[int, int], float] = {}
        self._waiting: list[int] = []
        self._span_s = self._stolen_s = 0.0

    def turn(self, case: int, number: int, before: Look, after: Look) -> None:
        """What stood before and after turn ``number`` of a case."""
        span = after.at_s - before.at_s
        self._loops[case, number] = max(before.loop_s, after.loop_s)
        self._stolen[case, number] = (after.stolen_s - before.stolen_s) / max(span, 1e-9)
        self._waiting.append(before.waiting)
        self._span_s += span
        self._stolen_s += after.stolen_s - before.stolen_s

    def disturbed(self, case: int) -> tuple[int, ...]:
        """Rounds of a case that are to be left out; none where that were most of them."""
        usual = statistics.median(self._loops.values()) if self._loops else 0.0
        mine = sorted(number for owner, number in self._loops if owner == case)
        found = tuple(
            number
            for number in mine
            if self._loops[case, number] > SLOW_LOOP * usual or self._stolen[case, number] > STOLEN
        )
        return found if len(found) <= MOST_LEFT_OUT * len(mine) else ()

    def figures(self) -> Figures:
        """Of the group so far."""
        loops = sorted(self._loops.values())
        middle = statistics.median(loops) if loops else 1.0
        return Figures(
            max(0.0, self._stolen_s) / max(self._span_s * (os.cpu_count() or 1), 1e-9),
            statistics.fmean(self._waiting) / usable_cores() if self._waiting else 0.0,
            1.4826 * statistics.median(abs(s - middle) for s in loops) / middle if loops else 0.0,
        )


def load_now() -> float:
    """Other tasks that want to run, per core, over a fifth of a second."""
    seen = []
    for _ in range(LOOKS):
        seen.append(max(0, runnable() - 1))
        sleep(LOOK_S)
    return statistics.fmean(seen) / usable_cores()


def calm_text(launches: Sequence[tuple[float, float, float, float]]) -> str:
    """One line from (share of turns left out, steal, load, loop) of launches: how calm the machine was."""
    if not launches:
        return "How calm the machine was is not known."
    left, steal, load, loop = (statistics.fmean(values) for values in zip(*launches, strict=True))
    word = (
        "calm"
        if load < BUSY and steal < 0.02 and loop < 0.05
        else "busy"
        if load < 1 and steal < 0.1
        else "very busy"
    )
    return (f"The machine was {word}: {load:.2f} other tasks a core wanted to run, the host took {steal:.1%} "
            f"of its time, a fixed loop varied by {loop:.1%}, and {left:.1%} of the turns were left out as "
            "disturbed.")  # fmt: skip
