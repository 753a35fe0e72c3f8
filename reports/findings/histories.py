"""A case over the builds and days of a store: its time with an interval, and the changes that the noise
cannot explain.

A point is what one build took on one day. It is judged against the point before it by ``bench.noise``; all
points of a table together keep the rate of false discoveries.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from bench.noise import Model, Ratio, judged
from bench.record import Record
from bench.turns import Taken, Turns, taken

# Pairs of one build on two days that tell the noise between runs, and what it is without them
CONTROLS, ASSUMED = 5, 0.02


class CaseKey(NamedTuple):
    """What is followed: everything of a record's key but its build."""

    spec: str
    algorithm: str
    tunables: str
    threads: int
    machine: str
    cold: bool


@dataclass(frozen=True)
class Point:
    """What one build took on one day.

    Attributes
    ----------
    build, day, started : str
        Day and start of the first launch, UTC.
    launches : int
    median_s, low_s, high_s : float
        The time and its 98% interval.
    ratio : Ratio or None
        Against the point before it; None for the first.
    verdict : str
        "faster", "slower", "same" or "undecided" against the point before it; empty for the first.
    """

    build: str
    day: str
    started: str
    launches: int
    median_s: float
    low_s: float
    high_s: float
    ratio: Ratio | None = None
    verdict: str = ""


def histories(records: Iterable[Record], algorithms: Collection[str] = ()) -> dict[CaseKey, list[Point]]:
    """The points of every case that was measured by convbench itself, the oldest first; all teach the noise.

    Only the cases of ``algorithms`` are judged, where some are named.
    """
    found: dict[CaseKey, dict[tuple[str, str], Record]] = {}
    for record in records:
        case = CaseKey(
            record.spec, record.algorithm, record.tunables, record.threads, record.machine, record.cold
        )
        for launch in record.launches if record.origin == "convbench" else ():
            points = found.setdefault(case, {})
            key = launch.started[:10], record.build
            points[key] = record.with_launches((*(points[key].launches if key in points else ()), launch))
    ordered = {case: sorted(points.values(), key=_started) for case, points in found.items()}
    models, between = _models(found), between_days(ordered.values())
    return _judged({
        case: _points(points, models[case.threads, case.machine, case.cold], between)
        for case, points in ordered.items()
        if not algorithms or case.algorithm in algorithms
    })


def between_days(histories: Iterable[Sequence[Record]]) -> float:
    """The relative spread of a run beyond that of its launches: what one build differed by on two days, or
    assumed.

    Another day is another temperature, another place in memory and other neighbours; launches of one day know
    nothing of it.
    """
    moved = [
        math.log(_median(later) / _median(earlier))
        for records in histories
        for earlier, later in pairwise(records)
        if earlier.build == later.build
    ]
    return 1.4826 * statistics.median(map(abs, moved)) / math.sqrt(2) if len(moved) >= CONTROLS else ASSUMED


def _points(records: Sequence[Record], model: Model, between: float) -> list[Point]:
    points: list[Point] = []
    before: tuple[Taken, ...] = ()
    for record in records:
        # Launches of different runs did not take turns, whatever their rounds are called.
        launches = tuple(launch._replace(together="") for launch in taken(record))
        median, reach = _median(record), _reach(_wider(model, between, launches, launches), launches)
        ratio = (
            _wider(model, between, before, launches).compare(before, launches, alike=True) if before else None
        )
        points.append(Point(record.build, _started(record)[:10], _started(record), len(launches), median,
                            median / reach, median * reach, ratio))  # fmt: skip
        before = launches
    return points


def _started(record: Record) -> str:
    return min(launch.started for launch in record.launches)


def _median(record: Record) -> float:
    return max(record.median_s or 0.0, 1e-12)


def _wider(model: Model, between: float, one: Sequence[Taken], other: Sequence[Taken]) -> Model:
    """``model`` with the noise between runs, which no number of launches averages out."""
    return replace(
        model, apart=math.hypot(model.apart, between * math.sqrt(2 / (1 / len(one) + 1 / len(other))))
    )


def _models(found: dict[CaseKey, dict[tuple[str, str], Record]]) -> dict[tuple[int, str, bool], Model]:
    """The noise of every (threads, machine, cold), learnt from rivals of one build and day."""
    rivals: dict[tuple[int, str, bool], dict[tuple[str, str], list[Turns]]] = {}
    for case, points in found.items():
        for (day, _), record in points.items():
            group = rivals.setdefault((case.threads, case.machine, case.cold), {})
            group.setdefault((case.spec, day), []).append(taken(record))
    return {key: Model.of(list(groups.values())) for key, groups in rivals.items()}


def _reach(model: Model, launches: Sequence[Taken]) -> float:
    """The factor on either side of a time that its interval spans: that of the
    ratio to a twin, shared by the two.
    """
    ratio = model.compare(launches, launches, alike=True)
    return math.exp(math.log(ratio.high / ratio.low) / 2 / math.sqrt(2))


def _judged(drawn: dict[CaseKey, list[Point]]) -> dict[CaseKey, list[Point]]:
    """With the verdicts of all points together."""
    verdicts = iter(judged([point.ratio for points in drawn.values() for point in points if point.ratio]))
    return {
        case: [replace(point, verdict=next(verdicts)) if point.ratio else point for point in points]
        for case, points in drawn.items()
    }
