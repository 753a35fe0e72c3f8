"""The record: what measuring one algorithm on one spec gave. A record holds samples only if its verdict is ok."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any

STATUSES = ("ok", "wrong", "unsupported", "unavailable", "too_large", "too_slow", "timeout", "crashed", "error")
# What makes two records the same case.
KEY_FIELDS = ("spec", "algorithm", "tunables", "threads", "machine", "build", "cold", "origin")


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
        For an unknown status, samples without an ok verdict, or a failure without a reason.
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
