"""A case over the builds and days of a store, as a table, as JSON and in pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.text import seconds
from reports.cells import Cell, Table
from reports.findings.histories import CaseKey, Point
from reports.scene import Picture, tick
from reports.sheet import RC, canvas, grid, head_line, label, marker_size, render
from reports.style import Style, clean, machine_text, ratio_text, short, styles

PANELS, MOST_PAGES = 6, 5
TICKS = 8
EMPTY = "Nothing of that was measured, by these algorithms: see convbench run and convbench list."


# ---- table, JSON -------------------------------------------------------------------------------------------


def varying(found: dict[CaseKey, list[Point]]) -> list[str]:
    """The parts of a case, beside spec and algorithm, in which those of a table differ."""
    return [name for name in CaseKey._fields[2:] if len({getattr(case, name) for case in found}) > 1]


def history_table(found: dict[CaseKey, list[Point]]) -> Table:
    """A row for every case: since when it is followed, its time now, and the changes beyond the noise."""
    rows = []
    for case, points in found.items():
        last, days = points[-1], dict.fromkeys((points[0].day, points[-1].day))
        rows.append({
            "spec": case.spec,
            "algorithm": case.algorithm,
            **{name: getattr(case, name) for name in varying(found)},
            "points": len(points),
            "days": " to ".join(days),
            "time": Cell(seconds(last.median_s), last.median_s),
            "98% interval": f"{seconds(last.low_s)} to {seconds(last.high_s)}",
            "changes": ", ".join(map(_change, filter(_changed, points))),
        })  # fmt: skip
    columns = tuple(rows[0]) if rows else ()
    cells = [tuple(map(Cell.of, row.values())) for row in rows]
    return Table(columns, cells, frozenset({"points", "time", "threads"}), EMPTY)


def _changed(point: Point) -> bool:
    return point.verdict in ("faster", "slower")


def _change(point: Point) -> str:
    """What happened, against the point before it."""
    assert point.ratio is not None
    interval = f"{ratio_text(point.ratio.ratio)} {point.ratio.low:.2f}-{point.ratio.high:.2f}"
    return f"{point.verdict} on {point.day} (build {point.build}): {interval}"


def history_dicts(found: dict[CaseKey, list[Point]]) -> list[dict[str, Any]]:
    """JSON-ready: a case with its points, ratio, low and high against the point before it, None for the
    first.
    """
    return [
        {
            **case._asdict(),
            "points": [
                {"build": p.build, "day": p.day, "started": p.started, "launches": p.launches,
                 "median_s": p.median_s, "low_s": p.low_s, "high_s": p.high_s,
                 "ratio": p.ratio and p.ratio.ratio, "low": p.ratio and p.ratio.low,
                 "high": p.ratio and p.ratio.high, "verdict": p.verdict or None}
                for p in points
            ],
        }
        for case, points in found.items()
    ]  # fmt: skip


# ---- picture -----------------------------------------------------------------------------------------------

LOUD = 8  # lines that stand out in a panel: those with changes first, then the fastest
QUIET = "#B8B8B8"


def history_pictures(
    found: dict[CaseKey, list[Point]], families: dict[str, str], machines: dict[str, dict[str, Any]]
) -> Iterator[Picture]:
    """A panel for every spec, with the time of each case over its builds and
    days; at most ``MOST_PAGES`` pictures.
    """
    specs = list(dict.fromkeys(case.spec for case in found))
    pages = [specs[i : i + PANELS] for i in range(0, len(specs), PANELS)][:MOST_PAGES]
    with matplotlib.rc_context(RC):
        for number, page in enumerate(pages, 1):
            yield _page(
                {case: points for case, points in found.items() if case.spec in page}, page, families,
                machines, f"history-page{number}" if len(pages) > 1 else "history",
            )  # fmt: skip


def _page(
    found: dict[CaseKey, list[Point]], specs: Sequence[str], families: dict[str, str],
    machines: dict[str, dict[str, Any]], name: str,
) -> Picture:  # fmt: skip
    look = styles(families)
    columns = min(2, len(specs))
    about = "; ".join(
        machine_text(machine, machines) for machine in dict.fromkeys(case.machine for case in found)
    )
    caption = (f"{about}; bars: 98% intervals; a ratio is written where a time changed by more than the "
               "noise explains")  # fmt: skip
    of_spec = {
        spec: {case: points for case, points in found.items() if case.spec == spec} for spec in specs
    }
    loud = {spec: _loud(inside) for spec, inside in of_spec.items()}
    names = [n for n in look if n in {case.algorithm for cases in loud.values() for case in cases}]
    lines = math.ceil(len(specs) / columns)
    figure, area = canvas(caption, look, max(5.2 * columns, 7.0), 3.1 * lines, names)
    axes = grid(figure, area, lines, columns, gap=(0.75, 0.85), left=0.8, bottom=0.5, head=0.25)
    for axis, spec in zip(axes, specs, strict=False):
        places = _places(of_spec[spec])
        axis.set_yscale("log")
        for case, points in of_spec[spec].items():
            _line(axis, points, [places[key] for key in _keys(points)], look[case.algorithm],
                  case in loud[spec])  # fmt: skip
        _scales(axis, [f"{day}{f' ({turn + 1})' if turn else ''}" for day, turn in places])
        axis.set_title(label(short(spec, 44), 44), fontsize=9.5, loc="left", fontweight="bold")
    changes = sum(map(_changed, (point for points in found.values() for point in points)))
    title = "Time over builds and days"
    head_line(figure, title)
    reading = (
        f"Lower is faster. {changes} change{'s' * (changes != 1)} beyond the noise, each with its ratio to "
        "the point before it; (2) is the second build of a day. Grey lines belong to algorithms that neither "
        "changed nor are among the fastest."
    )
    seen = "; ".join(
        f"{case.algorithm} on {case.spec} is {ratio_text(point.ratio.ratio)} of the point before on "
        f"{point.day}"
        for case, points in found.items()
        for point in points
        if point.ratio and _changed(point)
    )
    return Picture(
        name, clean(title), reading, clean(seen or "Nothing changed"), clean(about), *render(figure)
    )


def _line(axis: Axes, points: Sequence[Point], xs: Sequence[int], style: Style, stands_out: bool) -> None:
    """One case, with the ratios of its changes where it stands out."""
    bars = [[p.median_s - p.low_s for p in points], [p.high_s - p.median_s for p in points]]
    axis.errorbar(xs, [p.median_s for p in points], bars, color=style.colour if stands_out else QUIET,
                  marker=style.marker, linestyle=style.line, linewidth=1.3, capsize=2.5, elinewidth=0.9,
                  markersize=marker_size(style), markeredgecolor="white", markeredgewidth=0.4,
                  zorder=4 if stands_out else 2)  # fmt: skip
    for x, point in zip(xs, points, strict=True):
        if stands_out and point.ratio and _changed(point):
            slower = point.verdict == "slower"
            axis.annotate(
                f"{'▲' if slower else '▼'} {ratio_text(point.ratio.ratio)}",
                (x, point.high_s if slower else point.low_s), xytext=(0, 4 if slower else -4),
                ha="center", va="bottom" if slower else "top", textcoords="offset points", fontsize=8,
                fontweight="bold", color="#9A1B1B" if slower else "#0B6B3A", zorder=6,
            )  # fmt: skip


def _scales(axis: Axes, words: Sequence[str]) -> None:
    """Days below, some of many; times at the left."""
    step = math.ceil(len(words) / TICKS) or 1
    axis.xaxis.set_major_locator(FixedLocator(list(range(0, len(words), step))))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda at, _: words[int(at)] if at < len(words) else ""))
    axis.tick_params(axis="x", labelsize=6.5)
    axis.set_xlim(-0.5, len(words) - 0.5)
    low, high = axis.get_ylim()
    axis.set_ylim(low / 1.15, high * 1.15)
    axis.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(True, axis="y")


def _loud(inside: dict[CaseKey, list[Point]]) -> set[CaseKey]:
    order = sorted(
        inside,
        key=lambda case: (
            not any(map(_changed, inside[case])),
            inside[case][-1].median_s,
        ),
    )
    return set(order[:LOUD])


def _keys(points: Sequence[Point]) -> list[tuple[str, int]]:
    """Day, and the how manieth build of the case on that day."""
    days = [point.day for point in points]
    return [(day, days[:at].count(day)) for at, day in enumerate(days)]


def _places(inside: dict[CaseKey, list[Point]]) -> dict[tuple[str, int], int]:
    return {
        key: at for at, key in enumerate(sorted({key for points in inside.values() for key in _keys(points)}))
    }
