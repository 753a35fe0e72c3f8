"""Two stores of one machine: what became faster, slower, stayed the same, or cannot be told.

Their launches took no turns with each other, so they are judged by the spread between launches that
``bench.noise`` finds in them, and by what identical code (the same build in both stores) gained or lost
between the two runs. Two versions of code that are measured in turns, by ``convbench duel``, tell far more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from bench.noise import Model, Verdict, judged, spread_apart
from bench.record import Record

CONTROLS = 5  # pairs of identical code needed to measure the noise between two runs
ASSUMED_RUN_SIGMA = 0.02  # without them


class Key(NamedTuple):
    """What makes records of two stores the same case."""

    spec: str
    algorithm: str
    tunables: str
    threads: int
    machine: str
    cold: bool


_key = attrgetter(*Key._fields)


Timed = tuple[Record, Sequence[float]]  # and the medians of its launches


class _Logs(NamedTuple):
    """What counts of a record: its build, and the logarithm of the time of each launch."""

    build: str
    logs: list[float]
    mean: float


@dataclass(frozen=True)
class Change:
    """One case in both stores.

    Attributes
    ----------
    spec, algorithm : str
    threads : int
    old_s, new_s : float
        Geometric means of the launches.
    ratio, low, high : float
        new / old, the drift between the runs taken out, and its 98% interval.
    verdict : str
        "faster", "slower", "same" or "undecided".
    """

    spec: str
    algorithm: str
    threads: int
    old_s: float
    new_s: float
    ratio: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """All changes, and the noise that they were judged by.

    Attributes
    ----------
    changes : tuple of Change
    launch_sigma, run_sigma, drift : float
        Relative spread between launches of a case; between two runs of identical code; and its common shift.
    controls : int
        Pairs of identical code behind the last two; below ``CONTROLS`` they are assumed.
    only_old, only_new : int
        Measured cases that the other store lacks.
    """

    changes: tuple[Change, ...]
    launch_sigma: float
    run_sigma: float
    drift: float
    controls: int
    only_old: int
    only_new: int

    def noise_text(self) -> str:
        text = f"noise: {self.launch_sigma:.1%} between launches"
        if self.controls >= CONTROLS:
            moved = f"moved by {self.run_sigma:.1%}, {self.drift:+.1%} in common"
            return f"{text}; identical code in both ({self.controls} pairs) {moved}"
        little = "too little identical code in both to measure the noise between runs"
        return f"{text}; {little}, {self.run_sigma:.0%} assumed"


def compare(old: Iterable[Record], new: Iterable[Record]) -> Comparison:
    """Judge every case that both stores measured on the same machine; the latest build of each stands for it.

    Cases are paired by name where the algorithm's own tunables have changed.
    """
    return compare_medians(_medians(old), _medians(new))


def compare_medians(old: Iterable[Timed], new: Iterable[Timed]) -> Comparison:
    """``compare`` of records and the medians of their launches, as ``Store.medians`` gives them."""
    before, after = _latest(old), _latest(new)
    pairs = _pairs(before, after)
    model = Model(apart=spread_apart(one.logs for _, *pair in pairs for one in pair))
    shifts = [b.mean - a.mean for key, a, b in pairs if a.build == b.build and key in after]
    drift, run_sigma = 0.0, ASSUMED_RUN_SIGMA
    if len(shifts) >= CONTROLS:
        drift = statistics.median(shifts)
        run_sigma = max(_spread([shift - drift for shift in shifts]), 1e-3)
    ratios = model.compare_apart(
        [a.logs for _, a, _ in pairs], [b.logs for *_, b in pairs], shift=drift, between=run_sigma
    )
    changes = [
        Change(key.spec, key.algorithm, key.threads, math.exp(a.mean), math.exp(b.mean), *ratio[:3], verdict)
        for (key, a, b), ratio, verdict in zip(pairs, ratios, judged(ratios), strict=True)
    ]
    alone = len(before) - len(pairs), len(after) - len(pairs)
    return Comparison(tuple(changes), model.apart, run_sigma, drift, len(shifts), *alone)


def _medians(records: Iterable[Record]) -> Iterator[Timed]:
    return ((record, [launch.median_s for launch in record.launches]) for record in records)


def _latest(records: Iterable[Timed]) -> dict[Key, _Logs]:
    """Own measured records by case; stores keep the order of writing, so the last build wins."""
    return {Key._make(_key(r)): _logs(r, medians)
            for r, medians in records if r.origin == "convbench" and medians}  # fmt: skip


def _logs(record: Record, medians: Sequence[float]) -> _Logs:
    logs = [math.log(max(median, 1e-12)) for median in medians]
    return _Logs(record.build, logs, math.fsum(logs) / len(logs))


def _pairs(before: dict[Key, _Logs], after: dict[Key, _Logs]) -> list[tuple[Key, _Logs, _Logs]]:
    """Records of the same case, old and new, with the key of the old.

    An algorithm whose own tunables have changed is still that algorithm: what is left over of its name on
    both sides, one each, is a pair. More than one are variants that were tried, and nobody can tell which
    replaced which.
    """
    left: dict[Key, tuple[list[Key], list[Key]]] = {}
    for mine, others, position in ((before, after, 0), (after, before, 1)):
        for key in mine:
            if key not in others:
                left.setdefault(key._replace(tunables=""), ([], []))[position].append(key)
    named = [(a[0], before[a[0]], after[b[0]]) for a, b in left.values() if len(a) == len(b) == 1]
    return [(key, timed, after[key]) for key, timed in before.items() if key in after] + named


def _spread(values: Sequence[float]) -> float:
    """Standard deviation from the median absolute deviation; one wild pair does not set the noise of all."""
    return 1.4826 * statistics.median(map(abs, values))
