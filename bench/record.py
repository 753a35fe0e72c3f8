"""The record: what measuring one algorithm on one spec gave. A record holds samples only if its verdict is ok."""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import dataclass, replace
from typing import Any

STATUSES = ("ok", "wrong", "unsupported", "unavailable", "too_large", "too_slow", "timeout", "crashed", "error")
# What makes two records the same case.
KEY_FIELDS = ("spec", "algorithm", "tunables", "threads", "machine", "build", "cold", "origin")
TEXTS = ("spec", "algorithm", "tunables", "machine", "build", "origin", "reason", "family", "device", "runtime", "layout",
         "accuracy", "chosen")
LONGEST_S, LARGEST, MOST_THREADS = 1e9, 1 << 62, 1 << 20


def _checked(name: str, value: Any, most: float, whole: bool = False, least: int = 0, optional: bool = False) -> None:
    """Raise unless ``value`` is a number, no boolean, from ``least`` to ``most``, or None where that is allowed."""
    if optional and value is None:
        return
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        what = "a whole number" if whole else "a number"
        raise ValueError(f"{name} is {str(value)[:40]!r}: it must be {what} from {least:g} to {most:g}")


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

    @property
    def median_s(self) -> float:
        return statistics.median(self.samples_s)


@dataclass(frozen=True)
class Record:
    """One (spec, algorithm, tunables, threads, machine, build) with status, errors and launches.

    Attributes
    ----------
    spec, algorithm, tunables : str
        The spec's text, the algorithm's name, its tunables as JSON with sorted keys.
    threads : int
    machine, build : str
        Ids from ``algos.machine``.
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
    launches : tuple of Launch

    Raises
    ------
    ValueError
        For an unknown status, samples without an ok verdict, a failure without a reason, or a value of another kind.
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
    launches: tuple[Launch, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"unknown status {self.status!r}: use one of {', '.join(STATUSES)}")
        if self.status != "ok" and self.launches:
            raise ValueError(f"a record that is {self.status} holds no samples")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"a record that is {self.status} says why")
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

    def with_launches(self, launches: tuple[Launch, ...]) -> Record:
        return replace(self, launches=launches)
