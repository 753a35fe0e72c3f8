"""A case over the builds and days of a store: its time with an interval, and the changes that the noise cannot explain.

A point is what one build took on one day. It is judged against the point before it by ``bench.noise``; all points of a table
together keep the rate of false discoveries.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.noise import Model, Packed, Ratio, Taken, judged, taken
from bench.record import Record
from bench.text import seconds
from reports.scene import Picture, tick
from reports.sheet import RC, canvas, grid, head_line, label, marker_size, render
from reports.style import clean, machine_text, ratio_text, short, styles
from reports.tables import Cell, Table

CONTROLS, ASSUMED = 5, 0.02  # pairs of one build on two days that tell the noise between runs, and what it is without them
PANELS, MOST_PAGES = 6, 5
TICKS = 8
EMPTY = "Nothing of that was measured, by these algorithms: see convbench run and convbench list."


class Case(NamedTuple):
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


def histories(records: Iterable[Record], algorithms: Collection[str] = ()) -> dict[Case, list[Point]]:
    """The points of every case that was measured by convbench itself, the oldest first; all teach the noise.

    Only the cases of ``algorithms`` are judged, where some are named.
    """
    found: dict[Case, dict[tuple[str, str], Record]] = {}
    for record in records:
        case = Case(record.spec, record.algorithm, record.tunables, record.threads, record.machine, record.cold)
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
    """The relative spread of a run beyond that of its launches: what one build differed by on two days, or assumed.

    Another day is another temperature, another place in memory and other neighbours; launches of one day know nothing of it.
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
        ratio = _wider(model, between, before, launches).compare(before, launches, alike=True) if before else None
        points.append(Point(record.build, _started(record)[:10], _started(record), len(launches), median, median / reach,
                            median * reach, ratio))  # fmt: skip
        before = launches
    return points


def _started(record: Record) -> str:
    return min(launch.started for launch in record.launches)


def _median(record: Record) -> float:
    return max(record.median_s or 0.0, 1e-12)


def _wider(model: Model, between: float, one: Sequence[Taken], other: Sequence[Taken]) -> Model:
    """``model`` with the noise between runs, which no number of launches averages out."""
    return replace(model, apart=math.hypot(model.apart, between * math.sqrt(2 / (1 / len(one) + 1 / len(other)))))


def _models(found: dict[Case, dict[tuple[str, str], Record]]) -> dict[tuple[int, str, bool], Model]:
    """The noise of every (threads, machine, cold), learnt from rivals of one build and day."""
    rivals: dict[tuple[int, str, bool], dict[tuple[str, str], list[Packed]]] = {}
    for case, points in found.items():
        for (day, _), record in points.items():
            group = rivals.setdefault((case.threads, case.machine, case.cold), {})
            group.setdefault((case.spec, day), []).append(Packed(record))
    return {key: Model.of(list(groups.values())) for key, groups in rivals.items()}


def _reach(model: Model, launches: Sequence[Taken]) -> float:
    """The factor on either side of a time that its interval spans: that of the ratio to a twin, shared by the two."""
    ratio = model.compare(launches, launches, alike=True)
    return math.exp(math.log(ratio.high / ratio.low) / 2 / math.sqrt(2))


def _judged(drawn: dict[Case, list[Point]]) -> dict[Case, list[Point]]:
    """With the verdicts of all points together."""
    verdicts = iter(judged([point.ratio for points in drawn.values() for point in points if point.ratio]))
    return {
        case: [replace(point, verdict=next(verdicts)) if point.ratio else point for point in points]
        for case, points in drawn.items()
    }


# ---- table, JSON -------------------------------------------------------------------------------------------------


def varying(found: dict[Case, list[Point]]) -> list[str]:
    """The parts of a case, beside spec and algorithm, in which those of a table differ."""
    return [name for name in Case._fields[2:] if len({getattr(case, name) for case in found}) > 1]


def history_table(found: dict[Case, list[Point]]) -> Table:
    """A row for every point, the changes named."""
    rows = []
    for case, points in found.items():
        for point in points:
            rows.append({
                "spec": case.spec,
                "algorithm": case.algorithm,
                **{name: getattr(case, name) for name in varying(found)},
                "day": point.day,
                "build": point.build,
                "launches": point.launches,
                "time": Cell(seconds(point.median_s), point.median_s),
                "98% interval": f"{seconds(point.low_s)} to {seconds(point.high_s)}",
                "against the one before": f"{ratio_text(point.ratio.ratio)} {point.ratio.low:.2f}-{point.ratio.high:.2f}"
                                          if point.ratio else "-",
                "verdict": point.verdict or "first",
            })  # fmt: skip
    columns = tuple(rows[0]) if rows else ()
    cells = [tuple(map(Cell.of, row.values())) for row in rows]
    return Table(columns, cells, frozenset({"launches", "time", "threads"}), EMPTY)


def history_dicts(found: dict[Case, list[Point]]) -> list[dict[str, Any]]:
    """JSON-ready: a case with its points, ratio, low and high against the point before it, None for the first."""
    return [
        {
            **case._asdict(),
            "points": [
                {"build": p.build, "day": p.day, "started": p.started, "launches": p.launches, "median_s": p.median_s,
                 "low_s": p.low_s, "high_s": p.high_s, "ratio": p.ratio and p.ratio.ratio, "low": p.ratio and p.ratio.low,
                 "high": p.ratio and p.ratio.high, "verdict": p.verdict or None}
                for p in points
            ],
        }
        for case, points in found.items()
    ]  # fmt: skip


# ---- picture -----------------------------------------------------------------------------------------------------

LOUD = 8  # lines that stand out in a panel: those with changes first, then the fastest
QUIET = "#B8B8B8"


def history_pictures(
    found: dict[Case, list[Point]], families: dict[str, str], machines: dict[str, dict[str, Any]]
) -> Iterator[Picture]:
    """A panel for every spec, with the time of each case over its builds and days; at most ``MOST_PAGES`` pictures."""
    specs = list(dict.fromkeys(case.spec for case in found))
    pages = [specs[i : i + PANELS] for i in range(0, len(specs), PANELS)][:MOST_PAGES]
    with matplotlib.rc_context(RC):
        for number, page in enumerate(pages, 1):
            yield _page(
                {case: points for case, points in found.items() if case.spec in page}, page, families, machines,
                f"history-page{number}" if len(pages) > 1 else "history",
            )  # fmt: skip


def _page(
    found: dict[Case, list[Point]], specs: Sequence[str], families: dict[str, str],
    machines: dict[str, dict[str, Any]], name: str,
) -> Picture:  # fmt: skip
    look = styles(families)
    columns = min(2, len(specs))
    about = "; ".join(machine_text(machine, machines) for machine in dict.fromkeys(case.machine for case in found))
    caption = f"{about}; bars: 98% intervals; a ratio is written where a time changed by more than the noise explains"
    loud = {spec: _loud({case: points for case, points in found.items() if case.spec == spec}) for spec in specs}
    names = [n for n in look if n in {case.algorithm for cases in loud.values() for case in cases}]
    lines = math.ceil(len(specs) / columns)
    figure, area = canvas(caption, look, max(5.2 * columns, 7.0), 3.1 * lines, names)
    axes = grid(figure, area, lines, columns, gap=(0.75, 0.85), left=0.8, bottom=0.5, head=0.25)
    for axis, spec in zip(axes, specs, strict=False):
        inside = {case: points for case, points in found.items() if case.spec == spec}
        places = _places(inside)
        axis.set_yscale("log")
        for case, points in inside.items():
            style, stands_out = look[case.algorithm], case in loud[spec]
            colour = style.colour if stands_out else QUIET
            xs, ys = [places[key] for key in _keys(points)], [p.median_s for p in points]
            bars = [[p.median_s - p.low_s for p in points], [p.high_s - p.median_s for p in points]]
            axis.errorbar(xs, ys, bars, color=colour, marker=style.marker, linestyle=style.line, linewidth=1.3, capsize=2.5,
                          elinewidth=0.9, markersize=marker_size(style), markeredgecolor="white", markeredgewidth=0.4,
                          zorder=4 if stands_out else 2)  # fmt: skip
            for x, point in zip(xs, points, strict=True):
                if stands_out and point.ratio and point.verdict in ("faster", "slower"):
                    slower = point.verdict == "slower"
                    axis.annotate(
                        f"{'▲' if slower else '▼'} {ratio_text(point.ratio.ratio)}",
                        (x, point.high_s if slower else point.low_s), xytext=(0, 4 if slower else -4), ha="center",
                        va="bottom" if slower else "top", textcoords="offset points", fontsize=8, fontweight="bold",
                        color="#9A1B1B" if slower else "#0B6B3A", zorder=6,
                    )  # fmt: skip
        words = [f"{day}{f' ({turn + 1})' if turn else ''}" for day, turn in places]
        step = math.ceil(len(words) / TICKS) or 1
        axis.xaxis.set_major_locator(FixedLocator(list(range(0, len(words), step))))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda at, _, words=words: words[int(at)] if at < len(words) else ""))
        axis.tick_params(axis="x", labelsize=6.5)
        axis.set_xlim(-0.5, len(words) - 0.5)
        low, high = axis.get_ylim()
        axis.set_ylim(low / 1.15, high * 1.15)
        axis.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(True, axis="y")
        axis.set_title(label(short(spec, 44), 44), fontsize=9.5, loc="left", fontweight="bold")
    changes = sum(p.verdict in ("faster", "slower") for points in found.values() for p in points)
    title = "Time over builds and days"
    head_line(figure, title)
    reading = (
        f"Lower is faster. {changes} change{'s' * (changes != 1)} beyond the noise, each with its ratio to the point before "
        "it; (2) is the second build of a day. Grey lines belong to algorithms that neither changed nor are among the fastest."
    )
    seen = "; ".join(
        f"{case.algorithm} on {case.spec} is {ratio_text(point.ratio.ratio)} of the point before on {point.day}"
        for case, points in found.items()
        for point in points
        if point.ratio and point.verdict in ("faster", "slower")
    )
    return Picture(name, clean(title), reading, clean(seen or "Nothing changed"), clean(about), *render(figure))


def _loud(inside: dict[Case, list[Point]]) -> set[Case]:
    order = sorted(
        inside, key=lambda case: (all(p.verdict not in ("faster", "slower") for p in inside[case]), inside[case][-1].median_s)
    )
    return set(order[:LOUD])


def _keys(points: Sequence[Point]) -> list[tuple[str, int]]:
    """Day, and the how manieth build of the case on that day."""
    days = [point.day for point in points]
    return [(day, days[:at].count(day)) for at, day in enumerate(days)]


def _places(inside: dict[Case, list[Point]]) -> dict[tuple[str, int], int]:
    return {key: at for at, key in enumerate(sorted({key for points in inside.values() for key in _keys(points)}))}
