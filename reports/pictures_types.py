"""Pictures of types: what the same problem costs in each, and how far off it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.text import seconds
from reports.findings.frame import tuples
from reports.findings.types import in_order, in_types, typed
from reports.scene import Drawn, Scene, pages, tick
from reports.sheet import canvas, dot, grid, head_line, log_axes
from reports.style import short, type_styles

BAND = 0.4  # of the height of errors is that of exact results


def type_figures(scene: Scene, notes: list[str]) -> Iterator[Drawn]:
    """Time against error of every type and algorithm, a picture for each problem in several types."""
    rows = scene.own_rows
    look = type_styles(in_order(rows["dtype"]))
    for page, (problem,) in pages(scene, in_types(rows), 1, "problems in several types", notes):
        table = typed(rows, problem)
        names = in_order(table["dtype"])
        best = {row.dtype: row for row in tuples(table[table["fastest"]])}
        told = {name: f": {best[name].algorithm}, {tick(best[name].median_s)}" for name in names}
        figure, area = canvas(scene.caption, look, 7.6, 4.0, names, "dot", told)
        (axis,) = grid(figure, area, 1, 1, left=0.85, bottom=0.48, head=0.3, right=0.3)
        axis.set_xscale("log")
        axis.set_yscale("log")
        off = table.loc[table["error"] > 0, "error"]
        low, high = (off.min(), off.max()) if len(off) else (1.0, 1.0)
        bottom = edge = low / 3
        exact = [name for name in names if not table.loc[table["dtype"] == name, "error"].any()]
        if len(off) < len(table):  # each exact type on a height of its own
            bottom = edge / (high / edge) ** BAND / 10
            axis.axhspan(bottom, edge, color="#F2F2F2", linewidth=0, zorder=0)
            axis.annotate("exact", (0, (edge * bottom) ** 0.5), xycoords=axis.get_yaxis_transform(),
                          xytext=(-4, 0), textcoords="offset points", ha="right", va="center",
                          color="#333333")  # fmt: skip
        heights = np.geomspace(edge, bottom, len(exact) + 2)[1:-1]
        levels = dict(zip(exact, heights, strict=True))
        for row in tuples(table):
            mark = dot(row.algorithm, look[row.dtype])
            mark |= {"markersize": mark["markersize"] * 1.8, "zorder": 4} if row.fastest else {"alpha": 0.6}
            level = row.error or levels.get(row.dtype, (edge * bottom) ** 0.5)
            axis.plot([row.median_s], [level], **mark)
        axis.set_xlim(table["median_s"].min() / 1.3, table["median_s"].max() * 1.3)
        axis.set_ylim(bottom, high * 3)
        log_axes(axis, tick)
        axis.set_yticks([place for place in axis.get_yticks() if edge <= place <= high * 3])
        axis.set_xlabel("time per call", labelpad=2)
        axis.set_ylabel("largest error over a typical result", labelpad=2)
        axis.set_title(short(problem, 90), fontsize=8.6, loc="left", fontweight="bold").set_in_layout(False)
        head_line(figure, "Types: time against error")
        reading = (
            "Left is faster, lower is more accurate. A colour is a kind of type, a marker a type; large is "
            "the fastest algorithm of the type, which the legend names, small are the others. Whole numbers "
            "are exact, and lie in the grey band, each type on a height of its own."
        )
        in_turn = sorted(best.values(), key=lambda row: row.median_s)
        seen = f"{problem}, from the fastest type on: " + ", ".join(
            f"{row.dtype} {seconds(row.median_s)} ({row.algorithm})" for row in in_turn
        )
        yield f"types{page}{scene.suffix}", "Types: time against error", reading, f"{seen}.", figure
