"""Pictures of a sweep, specs that vary in image and kernel size only: time against size, and who wins where.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reports.findings.frame import tuples
from reports.scene import Drawn, Scene, pages, tick
from reports.sheet import QUIET, Ending, canvas, end_labels, grid, head_line, label, log_ticks, marker_size
from reports.style import Style, clean, ratio_text, readable_on, short
from reports.words import crossovers, spans, who_wins

PANELS, CELLS = 8, 12  # the most in one figure
LABELS = 1.6  # inches beside a panel for the names at its lines
WORDS = {"size": "image size", "kernel": "kernel size"}
SIDES = {"size": "side", "kernel": "kernel_side"}


def times_figures(scene: Scene, rows: pd.DataFrame, sweep: str, number: str,
                  notes: list[str]) -> Iterator[Drawn]:
    """Time against image size, a panel for each kernel."""
    if rows["size"].nunique() > 1:
        yield from _line_figures(scene, rows, ("kernel", "size"), sweep, f"times{number}", notes)


def crossover_figures(scene: Scene, rows: pd.DataFrame, sweep: str, number: str,
                      notes: list[str]) -> Iterator[Drawn]:
    """Time against kernel size, a panel for each image size, over the operations that the methods count."""
    if rows["kernel"].nunique() > 1:
        name = "kernels" if rows["size"].nunique() > 1 else "times"
        yield from _line_figures(scene, rows, ("size", "kernel"), sweep, f"{name}{number}", notes)


def _line_figures(
    scene: Scene, rows: pd.DataFrame, way: tuple[str, str], sweep: str, name: str, notes: list[str]
) -> Iterator[Drawn]:
    panel, across = way
    values = list(rows.sort_values(SIDES[panel])[panel].unique())
    best = scene.winners[scene.winners["sweep"] == sweep]
    for page, shown in pages(scene, values, PANELS, f"panels of {WORDS[panel]}", notes):
        columns = min(2, len(shown))
        lines = math.ceil(len(shown) / columns)
        part = rows[rows[panel].isin(shown)]
        names, look = scene.looks(part)
        figure, area = canvas(scene.caption, scene.styles, 4.3 * columns + (0.4 if columns > 1 else 3.0),
                              2.9 * lines, ())
        axes = grid(figure, area, lines, columns, gap=(LABELS + 0.25, 0.68), left=0.75, bottom=0.42,
                    head=0.22, right=LABELS)  # fmt: skip
        lead = part[part["algorithm"].isin(names)]
        low, high = lead["median_s"].min() / 1.6, lead["median_s"].max() * 4
        for axis, value in zip(axes, shown, strict=False):
            inside = part[part[panel] == value]
            axis.set_ylim(low, high)
            ticks = inside.drop_duplicates(across).sort_values(SIDES[across])
            sides = [float(v) for v in ticks[SIDES[across]]]
            axis.set_xscale("log")
            axis.set_yscale("log")
            log_ticks(axis, sides, [f"{side:.0f}" for side in sides])
            counts = _operations(axis, inside, low, high) if across == "kernel" else []
            end_labels(axis, [*_lines(axis, inside, SIDES[across], look, names), *counts])
            if axis in axes[-columns:] or len(shown) - axes.index(axis) <= columns:
                axis.set_xlabel(f"{across if across == 'kernel' else 'image'} side", fontsize=8, labelpad=2)
            heading = "kernel" if panel == "kernel" else "image"
            axis.set_title(f"{heading} {short(value, 20)}", fontsize=9.5, loc="left", fontweight="bold")
            axis.tick_params(axis="y", labelleft=axis in axes[::columns])
        title = f"Time against {WORDS[across]}: {sweep}"
        head_line(figure, title)
        others = part["algorithm"].nunique() - len(names)
        reading = (
            "Lower is faster; both scales are logarithmic. A band spans the launches, the processes in which "
            "it was measured anew (often thinner than the line). Solid lines are ours, dashed ones peers, "
            "other people's libraries; the dotted black one is auto, the automatic choice. A family of "
            "methods has one hue. An algorithm without a point refused the problem or failed."
        )
        if others:
            reading += (
                f" In grey {others} other{'s' if others > 1 else ''}; the slowest run out of the picture."
            )
        mine = best[best[panel].isin(shown)]
        if across == "kernel":
            reading += (
                " Where two lines cross, the faster one changes. Behind them, dotted in grey, how the "
                "operations that a method counts grow, each through the best time of its family at the "
                "smallest kernel: a line that rises less does better than its count."
            )
            seen = crossovers(mine)
        else:
            seen = spans(part, mine)
        yield f"{name}{scene.suffix}{page}", title, reading, seen, figure


def _lines(
    axis: Axes, rows: pd.DataFrame, across: str, look: dict[str, Style], names: list[str]
) -> list[Ending]:
    endings = []
    for name, part in rows.groupby("algorithm"):
        style, part = look[str(name)], part.sort_values(across)
        lead = name in names
        if lead:
            axis.fill_between(
                part[across], part["low_s"], part["high_s"], color=style.colour, alpha=0.25, linewidth=0
            )
            last = part.iloc[-1]
            endings.append(Ending(last[across], last["median_s"], str(name), style.colour))
        axis.plot(
            part[across], part["median_s"], color=style.colour, marker=style.marker if lead else "",
            linestyle=style.line, linewidth=1.6 if lead else 0.7, markersize=marker_size(style),
            markeredgecolor="white", markeredgewidth=0.4, alpha=1.0 if lead else 0.6,
            zorder=5 if name == "auto" else 3 if lead else 2,
        )  # fmt: skip
    axis.yaxis.set_major_locator(LogLocator(10, numticks=12))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(True, axis="y")
    return endings


def _operations(axis: Axes, rows: pd.DataFrame, low: float, high: float) -> list[Ending]:
    """How the operations of a method grow with the kernel, through the best
    time of its family at the smallest.
    """
    endings = []
    for family, text, shape in COUNTS:
        mine = rows[rows["family"] == family].sort_values("kernel_side")
        if mine["kernel"].nunique() < 2:
            continue
        first, side = mine["kernel_side"].min(), float(mine["side"].iloc[0])
        start = mine.loc[mine["kernel_side"] == first, "median_s"].min()
        sides = np.geomspace(first, rows["kernel_side"].max(), 60)
        times = start * np.array([shape(k, side) / shape(first, side) for k in sides])
        seen = np.flatnonzero((times < high / 1.15) & (times > low))
        if len(seen):
            axis.plot(
                sides[seen],
                times[seen],
                color="#BBBBBB",
                linewidth=3.5,
                alpha=0.6,
                linestyle=(0, (0.6, 0.9)),
                zorder=1,
            )
            endings.append(Ending(sides[seen[-1]], times[seen[-1]], text, QUIET))
    return endings


# Multiplications for a pixel of the result, by the side of the kernel and of the image.
COUNTS = (
    ("direct", "count k²: direct", lambda k, side: k * k),
    ("separable", "count 2k: separable", lambda k, side: 2 * k),
    ("fft", "count log: FFT", lambda k, side: ((side + k - 1) / side) ** 2 * math.log2(side + k - 1)),
)


# ---- who wins ----------------------------------------------------------------------------------------------


def map_figures(
    scene: Scene, best: pd.DataFrame, sweep: str, number: str, notes: list[str]
) -> Iterator[Drawn]:
    sizes = list(best.sort_values("side")["size"].unique())
    kernels = list(best.sort_values("kernel_side")["kernel"].unique())
    cells = {(row.size, row.kernel): row for row in tuples(best)}
    for page, columns in pages(scene, sizes, CELLS, "image sizes of the winner map", notes):
        for second, lines in pages(scene, kernels, CELLS, "kernel sizes of the winner map", notes):
            names = {
                name for (s, k), row in cells.items() if s in columns and k in lines for name in row.tied[:2]
            }
            size_in = max(1.3 * len(columns) + 1.2, 6.4), 0.86 * len(lines) + 0.55
            figure, area = canvas(
                scene.caption, scene.styles, *size_in, [n for n in scene.styles if n in names], "patch"
            )
            (axis,) = grid(figure, area, 1, 1, left=0.95, bottom=0.5, width=1.3 * len(columns))
            for x, size in enumerate(columns):
                for y, kernel in enumerate(lines):
                    _cell(axis, x, y, cells.get((size, kernel)), scene.styles)
            axis.set_xlim(-0.5, len(columns) - 0.5)
            axis.set_ylim(-0.5, len(lines) - 0.5)
            axis.set_xticks(range(len(columns)), [short(s, 13) for s in columns])
            axis.set_yticks(range(len(lines)), [short(k, 11) for k in lines])
            axis.set_xlabel("image size")
            axis.set_ylabel("kernel size")
            axis.tick_params(length=0)
            for spine in axis.spines.values():
                spine.set_visible(False)
            title = f"Fastest algorithm: {sweep}"
            head_line(figure, title)
            reading = (
                "Each cell names the fastest algorithm and how many times as long the nearest other takes. A "
                "cell in two colours, "
                "hatched, has no single winner: = was shown to be the same within 5%, ? is undecided, with "
                "the interval that the ratio of their times lies in. A star marks a peer, somebody else's "
                "library."
            )
            shown = best[best["size"].isin(columns) & best["kernel"].isin(lines)]
            seen = who_wins(shown, scene.place)
            yield f"winners{number}{scene.suffix}{page}{second}", title, reading, seen, figure


def _cell(axis: Axes, x: int, y: int, row: Any, look: dict[str, Style]) -> None:
    left, bottom, side = x - 0.48, y - 0.48, 0.96
    if row is None:
        axis.add_patch(Rectangle((left, bottom), side, side, facecolor="#F2F2F2", linewidth=0))
        axis.text(x, y, "not\nmeasured", ha="center", va="center", fontsize=7, color="#777777")
        return
    colour = look[row.winner].colour
    axis.add_patch(Rectangle((left, bottom), side, side, facecolor=colour, linewidth=0))
    if not row.tie:
        lead = ratio_text(row.ratio) if row.runner_up else "only one"
        text = f"{_wrapped(row.winner)}{' *' if row.peer else ''}\n{lead}"
        axis.text(
            x, y, text, ha="center", va="center", fontsize=7.6, color=readable_on(colour), linespacing=1.25
        )
        return
    other = look[row.tied[1]].colour
    corner = [(left + side, bottom + side), (left + side, bottom), (left, bottom)]
    axis.add_patch(
        Polygon(corner, closed=True, facecolor=other, edgecolor="white", hatch="////", linewidth=0)
    )
    more = f"\n+ {len(row.tied) - 2} more" if len(row.tied) > 2 else ""
    sign, ends = "=" if row.verdict == "same" else "?", f"{row.low:.2f} to {row.high:.2f}"
    text = f"{_wrapped(row.winner)}\n{sign} {_wrapped(row.tied[1])}{more}\n{row.verdict}: {ends}"
    box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.9}
    axis.text(x, y, text, ha="center", va="center", fontsize=6.6, color="#000000", linespacing=1.15, bbox=box)


def _wrapped(name: str, width: int = 15) -> str:
    """At most two lines, broken at underscores, never an ellipsis in the first."""
    if len(clean(name)) <= width:
        return label(name, width)
    lines = [""]
    for part in re.split(r"(?<=[_\-.])", clean(name)):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(
        label(line, width) for line in ([lines[0], "".join(lines[1:])] if len(lines) > 1 else lines)
    )
