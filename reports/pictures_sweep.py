"""Pictures of a sweep, specs that vary in image and kernel size only: time against size, and who wins where."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reports.frame import tuples
from reports.scene import Drawn, Scene, pages, tick
from reports.sheet import canvas, grid, head_line, label, log_ticks, marker_size
from reports.style import Style, clean, ratio_text, readable_on, short

PANELS, CELLS = 9, 12  # the most in one figure

def times_figures(scene: Scene, rows: pd.DataFrame, sweep: str, number: str, notes: list[str]) -> Iterator[Drawn]:
    panel, across = ("kernel", "size") if rows["size"].nunique() > 1 else ("size", "kernel")
    words = {"size": "image size", "kernel": "kernel size"}
    values = list(rows.sort_values(f"{_side(panel)}")[panel].unique())
    for page, shown in pages(scene, values, PANELS, f"panels of {words[panel]}", notes):
        columns = min(3, len(shown))
        lines = math.ceil(len(shown) / columns)
        part = rows[rows[panel].isin(shown)]
        figure, area = canvas(scene.caption, scene.styles, max(3.3 * columns + 0.5, 7.0), 2.9 * lines, scene.names(part))
        axes = grid(figure, area, lines, columns, gap=(0.35, 0.68), left=0.75, bottom=0.42, head=0.22)
        low, high = part["low_s"].min() / 1.6, part["high_s"].max() * 1.6
        for axis, value in zip(axes, shown, strict=False):
            inside = part[part[panel] == value]
            _lines(axis, inside, _side(across), scene.styles)
            ticks = inside.drop_duplicates(across).sort_values(_side(across))
            sides = [float(v) for v in ticks[_side(across)]]
            log_ticks(axis, sides, [f"{side:.0f}" for side in sides])
            if axis in axes[-columns:] or len(shown) - axes.index(axis) <= columns:
                axis.set_xlabel(f"{across if across == 'kernel' else 'image'} side", fontsize=8, labelpad=2)
            name = "kernel" if panel == "kernel" else "image"
            axis.set_title(f"{name} {short(value, 20)}", fontsize=9.5, loc="left", fontweight="bold")
            axis.set_ylim(low, high)
            axis.tick_params(axis="y", labelleft=axis in axes[::columns])
        title = f"Time against {words[across]}: {sweep}"
        head_line(figure, title)
        reading = (
            "Lower is faster; both scales are logarithmic. A band spans the launches (often thinner than the line). Solid "
            "lines are ours, dashed ones peers, the dotted black one is auto. An algorithm without a point refused "
            "the spec or failed."
        )
        yield f"times{number}{scene.suffix}{page}", title, reading, figure


def _side(name: str) -> str:
    return {"size": "side", "kernel": "kernel_side"}[name]


def _lines(axis: Axes, rows: pd.DataFrame, across: str, look: dict[str, Style]) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    for name, part in rows.groupby("algorithm"):
        style, part = look[str(name)], part.sort_values(across)
        axis.fill_between(part[across], part["low_s"], part["high_s"], color=style.colour, alpha=0.25, linewidth=0)
        axis.plot(
            part[across], part["median_s"], color=style.colour, marker=style.marker, linestyle=style.line, linewidth=1.5,
            markersize=0.9 * marker_size(style), markeredgecolor="white", markeredgewidth=0.4,
            zorder=5 if name == "auto" else 3,
        )  # fmt: skip
    axis.yaxis.set_major_locator(LogLocator(10, numticks=12))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(True, axis="y")


# ---- who wins --------------------------------------------------------------------------------------------------


def map_figures(scene: Scene, best: pd.DataFrame, sweep: str, number: str, notes: list[str]) -> Iterator[Drawn]:
    sizes = list(best.sort_values("side")["size"].unique())
    kernels = list(best.sort_values("kernel_side")["kernel"].unique())
    cells = {(row.size, row.kernel): row for row in tuples(best)}
    for page, columns in pages(scene, sizes, CELLS, "image sizes of the winner map", notes):
        for second, lines in pages(scene, kernels, CELLS, "kernel sizes of the winner map", notes):
            names = {name for (s, k), row in cells.items() if s in columns and k in lines for name in row.tied[:2]}
            size_in = max(1.3 * len(columns) + 1.2, 6.4), 0.86 * len(lines) + 0.55
            figure, area = canvas(scene.caption, scene.styles, *size_in, [n for n in scene.styles if n in names], "patch")
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
                "Each cell names the fastest algorithm and how many times as long the runner-up takes. A cell in two colours, "
                "hatched, has no single winner: = was shown to be the same within 5%, ? is undecided, with the interval of the "
                "ratio. A star marks a peer."
            )
            yield f"winners{number}{scene.suffix}{page}{second}", title, reading, figure


def _cell(axis: Axes, x: int, y: int, row: Any, look: dict[str, Style]) -> None:
    left, bottom, side = x - 0.48, y - 0.48, 0.96
    if row is None:
        axis.add_patch(Rectangle((left, bottom), side, side, facecolor="#F2F2F2", linewidth=0))
        axis.text(x, y, "not\nmeasured", ha="center", va="center", fontsize=7, color="#777777")
        return
    colour = look[row.winner].colour
    axis.add_patch(Rectangle((left, bottom), side, side, facecolor=colour, linewidth=0))
    if not row.tie:
        text = f"{_wrapped(row.winner)}{' *' if row.peer else ''}\n{ratio_text(row.margin) if row.runner_up else 'only one'}"
        axis.text(x, y, text, ha="center", va="center", fontsize=7.6, color=readable_on(colour), linespacing=1.25)
        return
    other = look[row.tied[1]].colour
    corner = [(left + side, bottom + side), (left + side, bottom), (left, bottom)]
    axis.add_patch(Polygon(corner, closed=True, facecolor=other, edgecolor="white", hatch="////", linewidth=0))
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
    return "\n".join(label(line, width) for line in ([lines[0], "".join(lines[1:])] if len(lines) > 1 else lines))
