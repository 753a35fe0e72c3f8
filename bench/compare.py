"""Two stores of one machine: what became faster, slower, stayed the same, or cannot be told.

Their launches took no turns with each other, so they are judged by the spread between launches that
``bench.noise`` finds in them, and by what identical code (the same build in both stores) gained or lost
between the two runs. Two versions of code that are measured in turns, by ``convbench duel``, tell far more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.noise import Model, Verdict, judged, spread_apart
from bench.record import Record

CONTROLS = 5  # pairs of identical code needed to measure the noise between two runs
ASSUMED_RUN_SIGMA = 0.02  # without them

KEY_PARTS = ("spec", "algorithm", "tunables", "threads", "machine", "cold")
Key = tuple


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


def compare(old: Sequence[Record], new: Sequence[Record]) -> Comparison:
    """Judge every case that both stores measured on the same machine; the latest build of each stands for it.

    Cases are paired by name where the algorithm's own tunables have changed.
    """
    before, after = _latest(old), _latest(new)
    pairs = _pairs(before, after)
    times = [(_times(a), _times(b)) for a, b in pairs]
    model = Model(apart=spread_apart(one for pair in times for one in pair))
    shifts = [
        _log_mean(b) - _log_mean(a) for a, b in pairs if a.build == b.build and a.tunables == b.tunables
    ]
    drift, run_sigma = 0.0, ASSUMED_RUN_SIGMA
    if len(shifts) >= CONTROLS:
        drift = statistics.median(shifts)
        run_sigma = max(_spread([shift - drift for shift in shifts]), 1e-3)
    ratios = [model.compare_apart(*pair, shift=drift, between=run_sigma) for pair in times]
    changes = [
        Change(
            a.spec,
            a.algorithm,
            a.threads,
            math.exp(_log_mean(a)),
            math.exp(_log_mean(b)),
            *ratio[:3],
            verdict,
        )
        for (a, b), ratio, verdict in zip(pairs, ratios, judged(ratios), strict=True)
    ]
    alone = len(before) - len(pairs), len(after) - len(pairs)
    return Comparison(tuple(changes), model.apart, run_sigma, drift, len(shifts), *alone)


def _latest(records: Iterable[Record]) -> dict[Key, Record]:
    """Own measured records by case; stores keep the order of writing, so the last build wins."""
    return {
        tuple(getattr(r, part) for part in KEY_PARTS): r
        for r in records
        if r.origin == "convbench" and r.launches
    }


def _pairs(before: dict[Key, Record], after: dict[Key, Record]) -> list[tuple[Record, Record]]:
    """Records of the same case, old and new.

    An algorithm whose own tunables have changed is still that algorithm: what is left over of its name on
    both sides, one each, is a pair. More than one are variants that were tried, and nobody can tell which
    replaced which.
    """
    left: dict[tuple, tuple[list[Record], list[Record]]] = {}
    for mine, others, position in ((before, after, 0), (after, before, 1)):
        for key, record in mine.items():
            if key not in others:
                name = tuple(getattr(record, part) for part in KEY_PARTS if part != "tunables")
                left.setdefault(name, ([], []))[position].append(record)
    named = [(a[0], b[0]) for a, b in left.values() if len(a) == len(b) == 1]
    return [(before[key], after[key]) for key in before if key in after] + named


def _times(record: Record) -> list[float]:
    """Logarithms, of each launch."""
    return [math.log(max(launch.median_s, 1e-12)) for launch in record.launches]


def _log_mean(record: Record) -> float:
    return record.log_mean


def _spread(values: Sequence[float]) -> float:
    """Standard deviation from the median absolute deviation; one wild pair does not set the noise of all."""
    return 1.4826 * statistics.median(map(abs, values))
