"""The record: what measuring one algorithm on one spec gave. A record holds samples only if its verdict is
ok.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import compress
from itertools import count as numbers
from operator import attrgetter
from typing import Any, NamedTuple

STATUSES = ("ok", "wrong", "unsupported", "unavailable", "too_large", "too_slow", "timeout", "crashed",
            "error")
# What makes two records the same case.
KEY_FIELDS = ("spec", "algorithm", "tunables", "threads", "machine", "build", "cold", "origin")
TEXTS = ("spec", "algorithm", "tunables", "machine", "build", "origin", "reason", "family", "device",
         "runtime", "layout", "accuracy", "chosen", "via")  # fmt: skip
_TEXTS = attrgetter(*TEXTS)
LONGEST_S, LARGEST, MOST_THREADS = 1e9, 1 << 62, 1 << 20


def _checked(
    name: str, value: Any, most: float, whole: bool = False, least: int = 0, optional: bool = False
) -> None:
    """Raise unless ``value`` is a number, no boolean, from ``least`` to
    ``most``, or None where that is allowed.
    """
    if optional and value is None:
        return
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        what = "a whole number" if whole else "a number"
        raise ValueError(f"{name} is {str(value)[:40]!r}: it must be {what} from {least:g} to {most:g}")


CALM = 3  # one turn in so many stands for a launch, the calmest


def calmest(times: Sequence[float]) -> float:
    """What stands for a launch: the median of the calmest third of its turns. Neighbours make turns of two
    kinds, and the median of all jumps between them.
    """
    rising, calm = sorted(times), -(-len(times) // CALM)
    middle = calm // 2
    return rising[middle] if calm % 2 else (rising[middle - 1] + rising[middle]) / 2


def turn_time(samples: Sequence[float]) -> float:
    """What stands for a turn: the lower quartile of its samples, since what disturbs a sample only ever adds
    to it.

    With a neighbour on every core, twins differed by 20% from launch to launch by the medians of their turns,
    by 3.5% so.
    """
    return sorted(samples)[len(samples) // 4]


def undisturbed(turns: dict[int, float], disturbed: Sequence[int]) -> dict[int, float]:
    """``turns`` without the disturbed rounds, unless those are all."""
    if not disturbed:
        return turns
    return {number: value for number, value in turns.items() if number not in disturbed} or turns


@dataclass(frozen=True)
class Launch:
    """Samples taken in one fresh process.

    Attributes
    ----------
    index : int
        0, 1, 2, ... within the record.
    started : str
        UTC, ISO 8601.
    samples_s : tuple of float
        Seconds per call, one per sample, raw; each sample is the mean of ``loops`` back-to-back calls.
    turns : tuple of int
        How many of the samples each round gave, in their order, 0 where it gave none. Empty: all were one
        turn.
    together : str
        Names the rounds: turns of one number, in launches that were ``together``, were taken one after the
        other. Empty: unknown.
    disturbed : tuple of int
        Rounds in which the machine was disturbed by other evidence than their times; they are left out.
    steal, load, loop : float or None
        How calm the machine was in these rounds: share of the cores' time that the host took away; other
        tasks that wanted to run, per core; relative spread of a fixed loop timed beside each turn.
    loops : int
        Calls in one sample.
    prepare_cold_s : float
        The first prepare of this case in its process, compilation or its loading included.
    prepare_s : float
        Median of later prepares.
    first_run_s : float
        The first call of the first plan; far above the samples means that prepare left work undone.
    h2d_s, d2h_s : float or None
        Transfers to and from a GPU, apart from the samples.
    workspace_seen_bytes : int or None
        Peak of prepare and run as traced, without x, w and y.

    Raises
    ------
    ValueError
        Without samples, and for what is no time or no number.
    """

    index: int
    started: str
    samples_s: tuple[float, ...]
    loops: int
    prepare_cold_s: float
    prepare_s: float
    first_run_s: float
    h2d_s: float | None = None
    d2h_s: float | None = None
    workspace_seen_bytes: int | None = None
    turns: tuple[int, ...] = ()
    together: str = ""
    disturbed: tuple[int, ...] = ()
    steal: float | None = None
    load: float | None = None
    loop: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.started, str) or not isinstance(self.samples_s, tuple) or not self.samples_s:
            raise ValueError("a launch says when it started and holds samples")
        if not set(map(type, self.samples_s)) <= {float, int} or math.isnan(sum(self.samples_s)):
            raise ValueError("a launch holds samples that are no numbers")
        for sample in (min(self.samples_s), max(self.samples_s)):
            _checked("a sample", sample, LONGEST_S)
        _checked("index", self.index, LARGEST, whole=True)
        _checked("loops", self.loops, LARGEST, whole=True, least=1)
        for name in ("prepare_cold_s", "prepare_s", "first_run_s"):
            _checked(name, getattr(self, name), LONGEST_S)
        for name in ("h2d_s", "d2h_s"):
            _checked(name, getattr(self, name), LONGEST_S, optional=True)
        _checked("workspace_seen_bytes", self.workspace_seen_bytes, LARGEST, whole=True, optional=True)
        for name in ("steal", "load", "loop"):
            _checked(name, getattr(self, name), LARGEST, optional=True)
        for name in ("turns", "disturbed"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"{name} must be a tuple of whole numbers")
            for value in getattr(self, name):
                _checked(name, value, LARGEST, whole=True)
        if self.turns and sum(self.turns) != len(self.samples_s):
            raise ValueError(f"turns of {sum(self.turns)} samples in a launch of {len(self.samples_s)}")
        if not isinstance(self.together, str):
            raise ValueError("together must be text")

    @cached_property
    def turn_times(self) -> dict[int, float]:
        """Round -> ``turn_time`` of its samples; without the disturbed rounds, unless those are all."""
        return undisturbed(self.every_turn(), self.disturbed)

    def every_turn(self) -> dict[int, float]:
        """Round -> ``turn_time`` of its samples, of every round that gave some;
        the median where turns are unknown.
        """
        if not self.turns:
            return {0: statistics.median(self.samples_s)}
        found, at = {}, 0
        for number, count in enumerate(self.turns):
            if count:
                found[number] = turn_time(self.samples_s[at : at + count])
            at += count
        return found

    def timed(self) -> tuple[tuple[int, ...], Sequence[float]]:
        """The rounds and the times of ``turn_times``."""
        return tuple(self.turn_times), tuple(self.turn_times.values())

    @cached_property
    def median_s(self) -> float:
        return calmest(self.timed()[1])

    @property
    def sample_count(self) -> int:
        return len(self.samples_s)


class Brief(NamedTuple):
    """A launch as it is read where only its times matter: one sample for each turn, which stands for those
    taken in it.

    A tuple with the fields and the answers of ``Launch``, since a large store holds half a million.
    ``sample_count`` is how many samples were taken. It was checked as a ``Launch`` when it was written.
    """

    index: int  # type: ignore[assignment]  # no method of the tuple
    started: str
    samples_s: tuple[float, ...]
    loops: int
    prepare_cold_s: float
    prepare_s: float
    first_run_s: float
    h2d_s: float | None
    d2h_s: float | None
    workspace_seen_bytes: int | None
    turns: tuple[int, ...]
    together: str
    disturbed: tuple[int, ...]
    steal: float | None
    load: float | None
    loop: float | None
    sample_count: int
    median_s: float

    @property
    def turn_times(self) -> dict[int, float]:
        return undisturbed(self.every_turn(), self.disturbed)

    def every_turn(self) -> dict[int, float]:
        return dict(zip(_numbered(self.turns), self.samples_s, strict=False))

    def timed(self) -> tuple[tuple[int, ...], Sequence[float]]:
        if not self.disturbed:
            return _numbered(self.turns), self.samples_s
        return tuple(self.turn_times), tuple(self.turn_times.values())


@lru_cache(maxsize=1 << 12)
def _numbered(turns: tuple[int, ...]) -> tuple[int, ...]:
    """The rounds that gave samples."""
    return tuple(compress(numbers(), turns or (1,)))


@dataclass(frozen=True)
class Record:
    """One (spec, algorithm, tunables, threads, machine, build) with status, errors and launches.

    Attributes
    ----------
    spec, algorithm, tunables : str
        The spec's text, the algorithm's name, its tunables as JSON with sorted keys.
    threads : int
    machine, build : str
        Ids from ``algos.host``.
    cold : bool
        Whether caches were flushed before every single call.
    origin : str
        "convbench", or the tool that the record was imported from: such records are shown, never used.
    status, reason : str
        One of ``STATUSES``, and why when it isn't ok.
    family, device, runtime, layout, accuracy : str
        As the algorithm states them.
    chosen : str
        The algorithm that ``auto`` stood for, else empty.
    max_error, error_ratio : float or None
        Largest absolute error, and largest share of the bound that was used; from the check.
    workspace_bytes : int or None
        As predicted.
    via : str
        How the problem became one that the algorithm solves; empty where it solves it itself.
    launches : tuple of Launch

    Raises
    ------
    ValueError
        For an unknown status, samples without an ok verdict, a failure without a reason, or a value of
        another kind.
    """

    spec: str
    algorithm: str
    threads: int
    machine: str
    build: str
    status: str
    reason: str = ""
    tunables: str = "{}"
    cold: bool = False
    origin: str = "convbench"
    family: str = ""
    device: str = "cpu"
    runtime: str = ""
    layout: str = "nchw"
    accuracy: str = ""
    chosen: str = ""
    max_error: float | None = None
    error_ratio: float | None = None
    workspace_bytes: int | None = None
    via: str = ""
    launches: tuple[Launch | Brief, ...] = ()

    @classmethod
    def of(cls, values: Iterable[Any]) -> Record:
        """With the values of all fields in their order, in half the time."""
        record = cls.__new__(cls)
        record.__dict__.update(zip(_RECORD, values, strict=True))
        record.__post_init__()
        return record

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"unknown status {self.status!r}: use one of {', '.join(STATUSES)}")
        if self.status != "ok" and self.launches:
            raise ValueError(f"a record that is {self.status} holds no samples")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"a record that is {self.status} says why")
        if {*map(type, _TEXTS(self))} != {str}:  # all at once: a large store holds many
            for name in TEXTS:
                if not isinstance(value := getattr(self, name), str):
                    raise ValueError(f"{name} is {str(value)[:40]!r}: it must be text")
        _checked("threads", self.threads, MOST_THREADS, whole=True)
        _checked("max_error", self.max_error, sys.float_info.max, optional=True)
        _checked("error_ratio", self.error_ratio, sys.float_info.max, optional=True)
        _checked("workspace_bytes", self.workspace_bytes, LARGEST, whole=True, optional=True)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two records the same case."""
        return tuple(getattr(self, name) for name in KEY_FIELDS)

    @property
    def median_s(self) -> float | None:
        """Median of the launches' medians: the launch is the sampling unit."""
        return statistics.median(launch.median_s for launch in self.launches) if self.launches else None

    @property
    def prepare_s(self) -> float | None:
        return statistics.median(launch.prepare_s for launch in self.launches) if self.launches else None

    def with_launches(self, launches: tuple[Launch | Brief, ...]) -> Record:
        return replace(self, launches=launches)


_RECORD = tuple(f.name for f in fields(Record))
