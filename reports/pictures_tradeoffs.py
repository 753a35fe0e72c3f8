"""Pictures of what speed costs: error, one-off work, memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from bench.text import size, three_digits
from reports.findings.advice import MOST_LINES
from reports.findings.costs import COSTS, Stretch, envelope, errors, picks, representative
from reports.findings.frame import groups, tuples
from reports.scene import Drawn, Scene, tick
from reports.sheet import MANY_MARKS, Ending, canvas, dot, end_labels, grid, head_line, label, log_axes
from reports.style import Style, short
from reports.words import stretches_text

MOST_CALLS = 100_000
LEAST_WORKSPACE = 4096  # bytes; less is drawn as so much
SLACK_BYTES = 64 << 10  # Python's own objects, which are seen and not predicted


# ---- error against time ------------------------------------------------------------------------------------


def error_figures(scene: Scene) -> Iterator[Drawn]:
    """Error against time with the Pareto front, where at least two algorithms have both."""
    rows = scene.own_rows
    table = errors(rows)
    if len(table) < 2:
        return
    most = table["specs"].max()
    fewer = {row.algorithm: f" ({row.specs} of {most})" for row in tuples(table) if row.specs < most}
    names, look = scene.looks(
        rows[rows["algorithm"].isin(table["algorithm"])], list(table.loc[table["front"], "algorithm"])
    )
    figure, area = canvas(scene.caption, scene.styles, 7.6, 3.7, names, "dot", fewer, len(table) - len(names))
    (axis,) = grid(figure, area, 1, 1, left=0.75, bottom=0.48, right=0.4)
    axis.set_xscale("log")
    axis.set_yscale("log")
    front = table[table["front"]].sort_values("time")
    right, top = table["time"].max() * 1.5, table["error"].max() * 1.5
    steps = [
        (front["time"].iloc[0], top),
        *zip(front["time"], front["error"], strict=True),
        (right, front["error"].iloc[-1]),
    ]
    axis.step(
        [s[0] for s in steps], [s[1] for s in steps], where="post", color="#999999", linewidth=1.2, zorder=1
    )
    picked = picks(rows)
    axis.plot(*zip(*picked, strict=True), color="#000000", linewidth=1.2, linestyle=(0, (4, 2)), zorder=2)
    axis.plot(*picked[0], linestyle="none", marker="D", markersize=7, color="#000000", zorder=6)
    axis.annotate("pick", picked[0], (9, 3), textcoords="offset points", fontsize=9)
    for row in tuples(table):
        mark = dot(row.algorithm, look[row.algorithm])
        larger = 1.6 if row.algorithm in names else 1.0
        axis.plot([row.time], [row.error], **(mark | {"markersize": mark["markersize"] * larger}))
    axis.plot(front["time"], front["error"], linestyle="none", marker="o", markersize=14,
              markerfacecolor="none", markeredgecolor="#000000", markeredgewidth=0.8, zorder=5)  # fmt: skip
    axis.set_xlim(min(table["time"].min(), picked[0][0]) / 1.3, right)
    axis.set_ylim(min(table["error"].min(), picked[-1][1]) / 1.5, top)
    log_axes(axis, "{:g}x".format)
    axis.set_xlabel("time over the fastest's, mean over specs", labelpad=2)
    axis.set_ylabel("largest error, in rounding units", labelpad=2)
    head_line(figure, "Error against time")
    reading = (
        "Left is faster, lower is more accurate. Ringed, on the grey line: the Pareto front, where nobody is "
        "better in both. Both figures are geometric means over the specs that the algorithm supports; the "
        "error is the largest of a result, in units of the rounding of a typical one. The black mark is who "
        "is picked by these times, for each spec its own; along the dashed line the error that is granted "
        "falls."
    )
    if fewer:
        reading += f" Behind a name: of how many specs, where not of all {most}."
    exact = min(tuples(table), key=lambda row: row.error)
    seen = (
        f"On the front, from the fastest on: {', '.join(front['algorithm'])}. The most accurate, "
        f"{exact.algorithm}, takes {three_digits(exact.time)} times as long as the fastest; the least "
        f"accurate is {three_digits(table['error'].max() / exact.error)} times as far off."
    )
    yield f"error{scene.suffix}", "Error against time", reading, seen, figure


# ---- prepare against run -----------------------------------------------------------------------------------


def calls_figures(scene: Scene) -> Iterator[Drawn]:
    """Time per call when prepare is shared over so many calls; for a few specs, the table has the others."""
    rows = scene.own_rows
    rows = rows[rows["prepare_s"].notna() & (rows["median_s"] > 0)]
    costs = {
        spec: own for (spec,), own in groups(rows, ["spec"], COSTS) if len({name for *_, name in own}) > 1
    }
    cases = {spec: envelope(own) for spec, own in costs.items()}
    if not any(len(stretches) > 1 for stretches in cases.values()):
        return  # whoever runs fastest is also prepared fastest: nothing to see
    shown = representative(cases, dict(zip(rows["spec"], rows["flops"].astype(float), strict=True)))
    part = rows[rows["spec"].isin(shown)]
    grouped = {spec: own for (spec,), own in groups(part, ["spec"])}
    winning = dict.fromkeys(stretch.algorithm for spec in shown for stretch in cases[spec])
    names, look = scene.looks(part, list(winning)[:MOST_LINES])
    figure, area = canvas(scene.caption, scene.styles, 8.6, 3.1 * len(shown), ())
    axes = grid(figure, area, len(shown), 1, gap=(0, 0.85), left=0.85, bottom=0.48, head=0.42, right=1.8)
    last = max(stretches[-1].calls for stretches in cases.values())
    most = min(max(1000, 10.0 ** math.ceil(math.log10(last * 3))), MOST_CALLS)
    calls = np.geomspace(1, most, 60)
    for axis, spec in zip(axes, shown, strict=True):
        axis.set_xscale("log")
        axis.set_yscale("log")
        totals = {row.algorithm: row.prepare_s / calls + row.median_s for row in grouped[spec]}
        for name, total in totals.items():
            style, lead = look[name], name in names
            axis.plot(calls, total, color=style.colour, linestyle=style.line, linewidth=1.3 if lead else 0.7,
                      marker=style.marker if lead else "", markersize=4, markevery=[0, -1],
                      alpha=0.9 if lead else 0.6, zorder=3 if lead else 1)  # fmt: skip
        _who_takes_least(axis, cases[spec], {row.algorithm: row for row in grouped[spec]}, look, most)
        best = np.min(list(totals.values()), axis=0)
        axis.set_xlim(0.8, most * 1.25)
        axis.set_ylim(best.min() / 1.6, max(best.max() * 8, best.min() * 30))
        log_axes(axis, "{:,.0f}".format, tick)
        axis.set_xlabel("calls", labelpad=2)
        axis.set_ylabel("prepare / calls + run", labelpad=2)
        ends = [Ending(calls[-1], totals[n][-1], n, look[n].colour) for n in names if n in totals]
        end_labels(axis, [end for end in ends if end.y <= axis.get_ylim()[1]])
        text = axis.set_title(
            short(scene.case(spec), 80), fontsize=8.6, loc="left", fontweight="bold", pad=15
        )
        text.set_in_layout(False)
    head_line(figure, "Prepare against run")
    reading = (
        "Time per call when prepare, the one-off work for a problem and its weights, is shared over so many "
        "calls; lower is better. The broad line is whoever takes least, the figures on top are the calls "
        "from which the next one wins. Slower algorithms run out of the picture."
    )
    seen = " ".join(f"{scene.case(spec)}: {stretches_text(cases[spec])}." for spec in shown)
    yield f"calls{scene.suffix}", "Prepare against run", reading, seen, figure


def _who_takes_least(
    axis: Axes, stretches: Sequence[Stretch], rows: Mapping[str, Any], look: Mapping[str, Style], most: float
) -> None:
    """The broad line along the least, and above it from how many calls on the next one wins."""
    free = 1.0
    for index, (start, name) in enumerate(stretches):
        row = rows[name]
        until = stretches[index + 1].calls if index + 1 < len(stretches) else most
        inside = np.geomspace(start, max(min(until, most), start), 20)
        axis.plot(inside, row.prepare_s / inside + row.median_s, color=look[name].colour, linewidth=4,
                  alpha=0.45, solid_capstyle="butt", zorder=2)  # fmt: skip
        if index and start <= most:
            axis.axvline(start, color="#BBBBBB", linewidth=0.8, zorder=1)
            if start >= free:  # else its figure would stand on the one before
                axis.annotate(f"{start:,}", (start, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
                              textcoords="offset points", ha="center", fontsize=7,
                              color="#444444")  # fmt: skip
                free = start * (most * 1.5) ** (0.03 * len(f"{start:,}") + 0.01)


# ---- workspace ---------------------------------------------------------------------------------------------


def workspace_figures(scene: Scene) -> Iterator[Drawn]:
    """What was predicted over what was seen, where both are known."""
    rows = scene.own_rows
    rows = rows[rows["workspace_seen_bytes"].notna() & rows["workspace_bytes"].notna()]
    if rows.empty:
        return
    seen = rows["workspace_seen_bytes"].clip(lower=LEAST_WORKSPACE).astype(float)
    predicted = rows["workspace_bytes"].clip(lower=LEAST_WORKSPACE).astype(float)
    inside = (predicted >= seen) & (predicted <= 2 * seen)
    near = ~inside & (seen <= predicted + SLACK_BYTES) & (predicted <= 2 * seen + SLACK_BYTES)
    outside = rows[~inside & ~near]
    names, look = scene.looks(rows, scene.names(outside)[:MOST_LINES])
    others = rows["algorithm"].nunique() - len(names)
    figure, area = canvas(scene.caption, scene.styles, 7.6, 4.2, names, "dot", others=others)
    (axis,) = grid(figure, area, 1, 1, left=0.95, bottom=0.48, right=1.3)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    low, high = LEAST_WORKSPACE / 2, max(seen.max(), predicted.max(), 16 * LEAST_WORKSPACE) * 2
    axis.fill_between([low, high], [low, high], [2 * low, 2 * high], color="#DDDDDD", linewidth=0, zorder=0)
    axis.plot([low, high], [low, high], color="#888888", linewidth=1, zorder=1)
    for name in scene.names(rows):
        mine = rows["algorithm"] == name
        axis.plot(
            seen[mine],
            predicted[mine],
            **dot(name, look[name]),
            alpha=0.85,
            rasterized=len(rows) > MANY_MARKS,
        )
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    every = max(1, round(math.log2(high / low) / 8))
    places = [2.0**p for p in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1, every)]
    for side in (axis.xaxis, axis.yaxis):
        side.set_ticks(places, [_whole(size(place)) for place in places])
        side.set_minor_locator(NullLocator())
    axis.grid(True)
    axis.set_xlabel("seen", labelpad=2)
    axis.set_ylabel("predicted", labelpad=2)
    head_line(figure, "Workspace: predicted and seen")
    told = f"{inside.sum()} of {len(rows)} lie in it"
    if near.any():
        slack = _whole(size(SLACK_BYTES))
        told += f", {near.sum()} off it by less than {slack}, which Python's own objects may take"
    if len(outside):
        far = ", ".join(label(n, 30).strip() for n in scene.names(outside))
        told += f", and {len(outside)} outside: {far}"
    reading = (
        "Workspace is the memory that an algorithm needs beside x, w and y. On the line the prediction is "
        f"exact; the grey band is one to two times what was seen, where a prediction belongs: {told}. Seen "
        "is the peak of prepare and a run as Python's allocator counts it, without x, w and y; what a "
        f"library allocates by itself is not in it. Up to {_whole(size(LEAST_WORKSPACE))} counts as that "
        "much."
    )
    most = rows.iloc[int(np.argmax(seen))]
    shown = f"Of {len(rows)} points, {told}. Most is seen of {most['algorithm']}, {size(float(seen.max()))}."
    yield f"workspace{scene.suffix}", "Workspace: predicted and seen", reading, shown, figure


def _whole(text: str) -> str:
    """4 KiB, not 4.00 KiB."""
    number, _, unit = text.partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


