"""Pictures with a row per spec: time, or speed-up over the baseline; and a
panel per spec where there are few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench.text import seconds
from reports.findings.frame import tuples
from reports.scene import Drawn, Scene, pages, tick
from reports.sheet import canvas, dot, grid, head_line, label, value_ticks
from reports.style import ratio_text, short
from reports.words import spans, who_wins

ROWS = 60  # the most in one figure
WIDEST = 54  # letters of a row's label
SIGNS = {"winner": "", "alone": "", "same": " =", "undecided": " ?"}
SIGNS_TEXT = "= where others were shown to be the same within 5%, ? where the noise does not tell"


def speed_figures(
    scene: Scene, speed: pd.DataFrame, what: str, number: str, notes: list[str]
) -> Iterator[Drawn]:
    if speed.empty:
        notes.append("No speed-up was drawn where the baseline has no time.")
        return
    title = f"Speed-up over {short(scene.baseline, 60)}{what}"
    reading = (
        "Right of the line at 1x is faster than the baseline, by that factor; the scale is logarithmic. On "
        f"the right the fastest algorithm and its factor, ringed where it surely is; {SIGNS_TEXT}. A bar "
        "across is auto. Rows: image size, kernel size, or the layer's name and its spec, which is written "
        "as in the tables."
    )
    yield from _dot_figures(
        scene, speed, "speed_up", f"speedup{number}", title, reading, lambda v: f"{v:g}x", ratio_text, notes
    )


def layer_figures(scene: Scene, rows: pd.DataFrame, notes: list[str]) -> Iterator[Drawn]:
    reading = (
        "One row per problem, written as in the tables, a mark per algorithm; further left is faster, the "
        "scale is logarithmic. "
        f"Right: the fastest algorithm and its time, ringed where it surely is; {SIGNS_TEXT}. "
        "A bar across is auto."
    )
    yield from _dot_figures(
        scene, rows, "median_s", "layers", "Time per problem", reading, tick, seconds, notes
    )


def _dot_figures(
    scene: Scene, rows: pd.DataFrame, value: str, name: str, title: str, reading: str,
    tick: Callable[[float], str], words: Callable[[float], str], notes: list[str],
) -> Iterator[Drawn]:  # fmt: skip
    """One row per spec, a marker per algorithm, the winner in words on the right."""
    labels = _labels(scene, rows.drop_duplicates("spec"))
    for page, specs in pages(scene, list(labels), ROWS, "specs", notes):
        part = rows[rows["spec"].isin(specs)]
        shown = scene.winners[scene.winners["spec"].isin(specs)]
        wide = min(max(len(labels[s]) for s in specs), WIDEST)
        names, look = scene.looks(part)
        others = part["algorithm"].nunique() - len(names)
        figure, area = canvas(
            scene.caption, scene.styles, 9.4, 0.23 * len(specs) + 0.5, names, "dot", others=others
        )
        (axis,) = grid(figure, area, 1, 1, left=0.35 + 0.073 * wide, bottom=0.33, right=1.95)
        axis.set_xscale("log")
        places = {spec: at for at, spec in enumerate(specs)}
        _mark_winners(axis, part, shown, value, places, words)
        for algorithm in scene.names(part):
            dots = part[part["algorithm"] == algorithm]
            faint = {} if algorithm in names else {"zorder": 2, "markersize": 3}
            axis.plot(
                dots[value], [places[s] for s in dots["spec"]], **(dot(algorithm, look[algorithm]) | faint)
            )
        axis.set_yticks(range(len(specs)), [label(labels[s], WIDEST) for s in specs], fontsize=7.5)
        axis.set_ylim(len(specs) - 0.4, -0.6)
        low, high = part[value].min(), part[value].max()
        axis.set_xlim(low / 1.25, high * 1.25)
        value_ticks(axis, low / 1.25, high * 1.25, tick)
        axis.grid(True, axis="x")
        axis.tick_params(axis="y", length=0)
        head_line(figure, title)
        seen = who_wins(shown, scene.place)
        if value == "speed_up":
            axis.axvline(1, color="#333333", linewidth=1, zorder=2)
            lead = part.groupby("spec")[value].max()
            ends = f"{ratio_text(lead.min())} to {ratio_text(lead.max())}"
            seen += f" The fastest is {ends} as fast as the baseline."
        yield f"{name}{scene.suffix}{page}", title, reading, seen, figure


def _labels(scene: Scene, order: pd.DataFrame) -> dict[str, str]:
    """Spec -> what its row is called, in the order of the rows."""
    if order["sweep"].nunique() == 1 and len(order) > 1:
        order = order.sort_values(["kernel_side", "side"])
        return {row.spec: f"{row.size}, {row.kernel}" for row in tuples(order)}
    known = {spec: index for index, spec in enumerate(scene.winners["spec"])}
    order = order.iloc[np.argsort([known.get(spec, len(known)) for spec in order["spec"]], kind="stable")]
    return {spec: scene.case(spec) for spec in order["spec"]}


def _mark_winners(
    axis: Axes, part: pd.DataFrame, shown: pd.DataFrame, value: str, places: dict[str, int],
    words: Callable[[float], str],
) -> None:  # fmt: skip
    """A line from the least to the most of each row, who is the fastest in words beside it, and a ring where
    that is sure.
    """
    ends = part.groupby("spec")[value].agg(["min", "max"])
    for spec, at in places.items():
        axis.plot(ends.loc[spec], [at, at], color="#D5D5D5", linewidth=1, zorder=1)
    values = {(row.spec, row.algorithm): getattr(row, value) for row in tuples(part)}
    ringed = []
    for row in tuples(shown):
        own = values.get((row.spec, row.winner), math.nan)
        axis.annotate(
            f"{label(row.winner, 20)} {words(own)}{SIGNS[row.verdict]}", (1, places[row.spec]),
            xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points", va="center",
            fontsize=7.2,
        )  # fmt: skip
        if row.verdict == "winner" and own == own:
            ringed.append((own, places[row.spec]))
    axis.plot([x for x, _ in ringed], [y for _, y in ringed], linestyle="none", marker="o", markersize=10.5,
              markerfacecolor="none", markeredgecolor="#000000", markeredgewidth=0.8,
              zorder=5)  # fmt: skip


def few_figure(scene: Scene, rows: pd.DataFrame, notes: list[str]) -> Iterator[Drawn]:
    """One to four specs: a panel each, an algorithm per row, fastest on top."""
    specs = list(dict.fromkeys(rows["spec"]))
    most = max(rows.groupby("spec")["algorithm"].nunique())
    figure, area = canvas(scene.caption, scene.styles, 7.6, (0.24 * most + 0.85) * len(specs), ())
    axes = grid(figure, area, len(specs), 1, left=1.85, bottom=0.35, right=0.75, gap=(0, 0.75), head=0.22)
    low, high = rows["low_s"].min() / 1.4, rows["high_s"].max() * 1.25
    _, look = scene.looks(rows)
    for axis, spec in zip(axes, specs, strict=True):
        part = rows[rows["spec"] == spec].sort_values("median_s", ascending=False)
        winner = next((set(w.tied) for w in tuples(scene.winners) if w.spec == spec), set())
        axis.set_xscale("log")
        for at, row in enumerate(tuples(part)):
            style = look[row.algorithm]
            axis.plot(
                [low, row.median_s],
                [at, at],
                color=style.colour,
                linewidth=1.6,
                linestyle=style.line,
                alpha=0.8,
            )
            axis.plot(
                [row.low_s, row.high_s],
                [at, at],
                color=style.colour,
                linewidth=5,
                alpha=0.3,
                solid_capstyle="butt",
            )
            axis.plot([row.median_s], [at], color=style.colour, marker=style.marker, markersize=6.5)
            axis.annotate(seconds(row.median_s), (1, at), xycoords=("axes fraction", "data"), xytext=(6, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        axis.set_yticks(range(len(part)), [label(n, 24) for n in part["algorithm"]])
        for text, name in zip(axis.get_yticklabels(), part["algorithm"], strict=True):
            text.set_fontweight("bold" if name in winner else "normal")
        axis.set_ylim(-0.6, len(part) - 0.4)
        axis.set_xlim(low, high)
        value_ticks(axis, low, high, tick)
        axis.grid(True, axis="x")
        axis.tick_params(axis="y", length=0)
        axis.set_title(label(scene.case(spec), 70), fontsize=9.5, loc="left", fontweight="bold")
    head_line(figure, "Time per algorithm")
    reading = (
        "Fastest on top, names in bold are not surely slower; further left is faster; the scale is "
        "logarithmic. The wide band spans the launches, the processes in which it was measured anew."
    )
    seen = spans(rows, scene.winners[scene.winners["spec"].isin(specs)])
    yield f"times-few{scene.suffix}", "Time per algorithm", reading, seen, figure
