"""A picture of one network for a slide: its ways to run as bars, and where the time of the fastest goes."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from algos.registry import registry
from bench.networks.measured import BEST, TORCH, Layer, Measured, Way
from bench.text import seconds
from reports.scene import tick
from reports.sheet import RC, canvas, grid, head_line, label, render
from reports.style import Style, ratio_text, readable_on, short, styles

MOST_BARS = 10
TITLES = {BEST: "best of each layer", "auto": "auto, layer by layer"}
OTHERS = {"dense": "#5D6E06", "max_pool": "#9AA0A6"}  # what no algorithm of convolution computes
REST = "pools, sums"


def network_picture(found: Measured, machine: str) -> tuple[bytes, bytes]:
    """PNG and SVG."""
    with matplotlib.rc_context(RC):
        return render(_figure(found, machine))


def _figure(found: Measured, machine: str) -> Figure:
    ways = list(found.ways[:MOST_BARS])
    look = _look(found)
    names = list(dict.fromkeys(_kind(layer) for layer in found.layers))
    caption = (
        f"{machine}; batch {found.batch}, {found.threads} thread{'s' if found.threads > 1 else ''}, float32. "
        "Above: a call end to end, and times the best of each layer. Below: its layers in sequence."
    )
    figure, area = canvas(caption, look, 9.0, 0.34 * len(ways) + 2.0, names, "patch")
    upper, lower = grid(figure, area, 2, 1, left=2.15, bottom=0.45, right=1.35, gap=(0.3, 0.5))
    _bars(upper, ways)
    _strip(lower, found, look)
    share = 1.2 / (0.34 * len(ways) + 2.0)  # of the height, for the strip
    box, low = upper.get_position(), lower.get_position()
    top, bottom, gap = box.y1, low.y0, box.y0 - low.y1
    height = (top - bottom - gap) * share
    lower.set_position((low.x0, bottom, low.width, height))
    upper.set_position((box.x0, bottom + height + gap, box.width, top - bottom - height - gap))
    best, torch = found.way(BEST), found.torch
    title = f"{found.name}, batch {found.batch}: {seconds(best.seconds if best else None)}"
    if torch is not None:
        title += f", {ratio_text(torch.ratio)} as fast as PyTorch at its best"
    head_line(figure, title)
    return figure


def _look(found: Measured) -> dict[str, Style]:
    families = {name: algorithm.family for name, algorithm in registry().items()}
    used = {layer.algorithm for layer in found.layers if layer.algorithm}
    look = styles({name: families.get(name.partition(":")[0], "direct") for name in used})
    return {**look, "dense": Style(OTHERS["dense"], "s", "-"), REST: Style(OTHERS["max_pool"], "s", "-")}


def _kind(layer: Layer) -> str:
    return layer.algorithm or ("dense" if layer.op == "dense" else REST)


def _bars(axis: Axes, ways: Sequence[Way]) -> None:
    longest = max(way.seconds for way in ways)
    for at, way in enumerate(ways):
        colour = "#B72E7E" if way.name.startswith(TORCH) else "#1666C2" if way.name == BEST else "#4A95EB"
        axis.barh(at, way.seconds, height=0.72, color=colour)
        axis.annotate(f"{seconds(way.seconds)}  {ratio_text(way.ratio)}", (way.seconds, at), xytext=(5, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axis.set_yticks(range(len(ways)), [label(TITLES.get(w.name, w.name), 30) for w in ways], fontsize=8.5)
    axis.get_yticklabels()[[w.name for w in ways].index(BEST)].set_fontweight("bold")
    axis.set_ylim(len(ways) - 0.4, -0.6)
    _time_axis(axis, longest)


def _strip(axis: Axes, found: Measured, look: dict[str, Style]) -> None:
    start, total = 0.0, sum(layer.seconds for layer in found.layers)
    inches = axis.get_position().width * axis.figure.get_figure(root=True).get_size_inches()[0]
    for layer in found.layers:
        colour = look[_kind(layer)].colour
        axis.barh(0, layer.seconds, left=start, height=0.8, color=colour, edgecolor="white", linewidth=0.5)
        room = int(layer.seconds / total * inches / 0.066)
        if room >= max(4, min(len(layer.name), 8)):
            axis.text(start + layer.seconds / 2, 0, short(layer.name, room), ha="center", va="center",
                      fontsize=6.5, color=readable_on(colour))  # fmt: skip
        start += layer.seconds
    axis.set_yticks([0], ["layers in sequence"], fontsize=8.5)
    _time_axis(axis, total)


def _time_axis(axis: Axes, longest: float) -> None:
    axis.set_xlim(0, longest * 1.001)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == 0 else tick(value)))
    axis.tick_params(axis="y", length=0)
