"""Pictures of what the machine allows: the roofline under its measured peaks, and scaling over its threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.text import three_digits
from reports.findings.machine import gains, peak
from reports.scene import COLD, WARM, Drawn, Scene
from reports.sheet import MANY_MARKS, Ending, canvas, dot, end_labels, grid, head_line, log_axes, marker_size
from reports.style import Style, machine_text, ratio_text

LEVELS: dict[str, Any] = {"L1d": "-", "L2": (0, (6, 2)), "L3": (0, (6, 2, 1, 2)), "memory": (0, (1, 1.6))}
ROOF = "#444444"
DEPTH = 50  # times slower than the slowest winner: points beyond it are below the picture


# ---- roofline ----------------------------------------------------------------------------------------------


RING: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 9, "markerfacecolor": "none",
                        "markeredgecolor": "#000000", "markeredgewidth": 0.8}  # fmt: skip


def roofline_figures(scene: Scene) -> Iterator[Drawn]:
    """Rates over arithmetic intensity, on the CPU, where its peaks were measured."""
    rows = scene.own_rows
    rows = rows[(rows["device"] == "cpu") & (rows["gflops"] > 0)]
    flops = {
        str(d): rate
        for d in rows["dtype"].unique()
        if (rate := peak(scene.about, "flops_per_s", str(d), scene.threads))
    }
    moved = {
        level: rate for level in LEVELS if (rate := peak(scene.about, "bytes_per_s", level, scene.threads))
    }
    rows = rows[rows["dtype"].isin(flops)]
    if rows.empty or not moved:
        return
    names, look = scene.looks(rows)
    others = rows["algorithm"].nunique() - len(names)
    figure, area = canvas(scene.caption, scene.styles, 8.6, 4.4, names, "dot", others=others)
    (axis,) = grid(figure, area, 1, 1, left=0.75, bottom=0.48, right=2.2)
    axis.set_xscale("log")
    axis.set_yscale("log")
    intensity = rows["flops"] / rows["min_bytes"]
    top = max(flops.values()) / 1e9
    ridge = top * 1e9 / min(moved.values())
    left, right = min(intensity.min() / 1.6, ridge / 8), max(intensity.max() * 1.6, ridge * 1.6)
    fastest = rows.loc[rows.groupby("spec")["median_s"].idxmin()]
    bottom = max(rows["gflops"].min(), fastest["gflops"].min() / DEPTH) / 1.6
    below = int((rows["gflops"] < bottom).sum())
    _roofs(axis, moved, flops, (left, right))
    for algorithm in scene.names(rows):
        mine = rows["algorithm"] == algorithm
        mark = dot(algorithm, look[algorithm]) | ({} if algorithm in names else {"zorder": 2})
        axis.plot(
            intensity[mine], rows.loc[mine, "gflops"], **mark, alpha=0.85, rasterized=len(rows) > MANY_MARKS
        )
    axis.plot(fastest["flops"] / fastest["min_bytes"], fastest["gflops"], **RING, zorder=5)
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, max(top, rows["gflops"].max()) * 1.7)
    axis.set_xlabel("operations per byte of x, w and y, each moved once", labelpad=2)
    axis.set_ylabel("GFLOP/s of the definition", labelpad=2)
    log_axes(axis)
    head_line(figure, "Roofline")
    reading = (
        "A point per algorithm and spec: higher is faster, and the nearer to the roofs the less is left to "
        "gain: the slanted ones are what copying reaches by where the data lies, the flat one is arithmetic. "
        "Winograd and FFT do fewer operations than the definition, which is what is counted, so they may "
        "stand above the flat roof."
    )
    if below:
        reading += f" {below} slow point{'s lie' if below > 1 else ' lies'} below the picture."
    share = fastest["gflops"] * 1e9 / fastest["dtype"].map(flops)
    best, worst = fastest.iloc[int(np.argmax(share))], fastest.iloc[int(np.argmin(share))]
    seen = (
        f"The fastest of a problem reaches from {share.min():.1%} ({worst['algorithm']} on {worst['spec']}) "
        f"to {share.max():.1%} ({best['algorithm']} on {best['spec']}) of the arithmetic peak."
    )
    yield f"roofline{scene.suffix}", "Roofline", reading, seen, figure


def _roofs(
    axis: Axes, moved: dict[str, float], flops: dict[str, float], ends: tuple[float, float]
) -> None:
    """What copying from each level and arithmetic in each type reach between these intensities, and what the
    lines and rings are.
    """
    left, right = ends
    legend = []
    for level, rate in moved.items():
        until = min(max(flops.values()) / rate, right)
        line = {"color": ROOF, "linewidth": 1.1, "linestyle": LEVELS[level]}
        axis.plot([left, until], [rate * left / 1e9, rate * until / 1e9], **line)
        name = "memory" if level == "memory" else level.removesuffix("d")
        legend.append((Line2D([], [], **line), f"{name}: {rate / 1e9:.3g} GB/s"))
    for dtype, rate in flops.items():
        axis.plot([rate / max(moved.values()), right], [rate / 1e9] * 2, color="#000000", linewidth=1.6)
        axis.annotate(f"{rate / 1e9:.3g} GFLOP/s\n{dtype}", (1, rate / 1e9),
                      xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    legend.append((Line2D([], [], **RING), "fastest of its spec"))
    axis.legend(
        *zip(*legend, strict=True), loc="lower left", bbox_to_anchor=(1.01, 0.0), frameon=False, fontsize=8,
        handlelength=2.8, title="measured copy rates", title_fontsize=8, alignment="left", borderaxespad=0.2,
    )  # fmt: skip


# ---- threads -----------------------------------------------------------------------------------------------


def scaling_figures(scenes: Sequence[Scene]) -> Iterator[tuple[str, Drawn]]:
    """Speed-up over the smallest number of threads, with its heading, per machine,
    state of the caches and direction that has several.
    """
    groups: dict[tuple[str, bool, str], list[Scene]] = {}
    for scene in scenes:
        groups.setdefault((scene.machine, scene.cold, scene.direction), []).append(scene)
    for found in groups.values():
        ordered = sorted(found, key=lambda scene: scene.threads)
        table = gains({scene.threads: scene.own_rows for scene in ordered})
        if len(ordered) > 1 and len(table):
            threads = ", ".join(str(scene.threads) for scene in ordered)
            section = ordered[0].section.replace(f"{ordered[0].threads} thread", f"{threads} thread", 1)
            yield section, _scaling_figure(ordered, table)


def _scaling_figure(scenes: Sequence[Scene], table: pd.DataFrame) -> Drawn:
    base, counts = scenes[0].threads, sorted(set(table["threads"]))
    first, most = scenes[0], counts[-1]
    names = first.names(table)
    threads = ", ".join(str(scene.threads) for scene in scenes)
    about = machine_text(first.machine, {first.machine: first.about})
    of = f"{first.direction}; " if first.direction else ""
    caption = f"{of}{about}; threads {threads}; clock: {COLD if first.cold else WARM}"
    lead, look = first.looks(first.own_rows[first.own_rows["algorithm"].isin(names)])
    figure, area = canvas(caption, first.styles, 9.4, 3.5, lead, "dot", others=len(names) - len(lead))
    left, right = grid(figure, area, 1, 2, left=0.6, bottom=0.48, right=0.2, gap=(2.0, 0), head=0.24)
    low, high = min(0.9, table["gain"].min() / 1.1), max(most / base, table["gain"].max()) * 1.1
    endings = [end for end in _gains(left, table, base, {name: look[name] for name in names})
               if end.text in lead]  # fmt: skip
    for name in names:
        large = table[(table["algorithm"] == name) & (table["threads"] == most)]
        right.plot(large["flops"], large["gain"], **dot(name, look[name]), alpha=0.85)
    right.set_xscale("log")
    for axis in (left, right):
        axis.set_yscale("log")
        axis.set_ylim(low, high)
    right.set_xlabel("operations of the spec", labelpad=2)
    right.set_xlim(table["flops"].min() / 1.6, table["flops"].max() * 1.6)
    log_axes(right, _count)
    right.grid(False, axis="x")
    right.set_title(f"with {most} threads, spec by spec", fontsize=9.5, loc="left", fontweight="bold")
    for level in (1.0, most / base):
        right.axhline(level, color="#999999", linewidth=1, zorder=1)
    for axis in (left, right):
        axis.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 3, 5), numticks=20))
        axis.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{three_digits(value).rstrip('0').rstrip('.')}x")
        )
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(True, axis="y")
    end_labels(left, endings)
    title = f"Scaling: time with {base} thread{'s' if base > 1 else ''} over time with more"
    head_line(figure, title)
    reading = (
        "Higher is better; the grey lines are no gain and the ideal. Left the geometric mean over the specs, "
        "bars from the worst spec to the best; right every spec by its size: small ones gain little, since "
        "handing work over costs time."
    )
    suffix = scenes[0].suffix.replace(f"-t{base}", "", 1)
    means = np.exp(np.log(table["gain"]).groupby(table["algorithm"]).mean()).sort_values()
    seen = (
        f"{means.index[-1]} gains most by threads, {ratio_text(means.iloc[-1])} in the mean over the "
        f"problems; {means.index[0]} least, {ratio_text(means.iloc[0])}."
    )
    return f"scaling{suffix}", title, reading, seen, figure


def _gains(axis: Axes, table: pd.DataFrame, base: int, look: dict[str, Style]) -> list[Ending]:
    """The mean gain of each algorithm by its threads, with bars from the worst spec to the best."""
    counts = sorted(set(table["threads"]))
    most, endings = counts[-1], []
    apart = 0.16 * (counts[0] - base) / max(len(look), 1)
    for place, (name, style) in enumerate(look.items()):
        mine = table[table["algorithm"] == name]
        by_count = mine.groupby("threads")["gain"]
        middle = np.exp(np.log(mine["gain"]).groupby(mine["threads"]).mean())
        shifted = [float(t) + apart * (place - (len(look) - 1) / 2) for t in middle.index]
        axis.vlines(shifted, by_count.min(), by_count.max(), color=style.colour, linewidth=1.2, alpha=0.6)
        axis.plot([base, *shifted], [1.0, *middle], color=style.colour, marker=style.marker,
                  linestyle=style.line, markersize=marker_size(style), markeredgecolor="white",
                  markeredgewidth=0.4, linewidth=1.4)  # fmt: skip
        endings.append(Ending(shifted[-1], float(middle.iloc[-1]), name, style.colour))
    axis.plot(
        [base, *counts], [count / base for count in [base, *counts]], color="#999999", linewidth=1, zorder=1
    )
    axis.set_xlim(base - 0.06 * (most - base), most + 0.14 * (most - base))
    axis.xaxis.set_major_locator(FixedLocator([base, *counts]))
    axis.set_xlabel("threads", labelpad=2)
    axis.set_title("mean over the specs", fontsize=9.5, loc="left", fontweight="bold")
    return endings


def _count(value: float) -> str:
    """3 M, 10 G."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g}"
