"""Pictures of whole networks: a bar for the time of all layers with one
algorithm, or with the best of each layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.text import seconds
from reports.findings.networks import AUTO, MIXED, Bar, Network, Networks, networks_of
from reports.scene import Drawn, Scene, tick
from reports.sheet import canvas, grid, head_line, label
from reports.style import readable_on, short

MOST_NETWORKS, MOST_BARS = 24, 10
LONGEST = 4.0  # times the best; longer bars are cut


def network_figures(scene: Scene, networks: Networks) -> Iterator[Drawn]:
    """One figure with a panel per network."""
    found = networks_of(scene.rows, networks)[:MOST_NETWORKS]
    for network in found:
        bars = [bar for at, bar in enumerate(network.bars) if at < MOST_BARS or bar.name == AUTO]
        title = f"{network.name}: all convolutions, batch {network.batch}"
        name = f"network-{network.name}-b{network.batch}{scene.suffix}"
        yield name, title, _reading(network), _seen(bars), _figure(scene, bars, title)


def _seen(bars: Sequence[Bar]) -> str:
    return "; ".join(f"{bar.name} {seconds(bar.time_s)}" for bar in bars) + "."


def _reading(network: Network) -> str:
    text = (
        "Shorter is faster; a bar is the sum over the layers, left to right, each as often as it occurs. On "
        "top every layer by whoever is fastest on it, in that algorithm's colour, and so what auto, the "
        "automatic choice, ran; hatched parts are layers that an algorithm refuses or fails, "
        "computed by the best of the others."
    )
    if network.missing:
        text += f" Not measured, and in no bar: {network.missing} of {network.layers} layers."
    if len(network.bars) > MOST_BARS:
        text += f" The slowest {len(network.bars) - MOST_BARS} have no bar."
    return text


def _figure(scene: Scene, bars: Sequence[Bar], title: str) -> Figure:
    used = {part[1] for bar in bars for part in bar.parts}
    names = [name for name in scene.styles if name in used]
    figure, area = canvas(scene.caption, scene.styles, 9.0, 0.36 * len(bars) + 0.55, names, "patch")
    (axis,) = grid(figure, area, 1, 1, left=2.05, bottom=0.35, right=2.0)
    limit = LONGEST * bars[0].time_s
    longest = min(max(bar.time_s for bar in bars), limit)
    inches = axis.get_position().width * figure.get_size_inches()[0]
    for at, bar in enumerate(bars):
        _draw_bar(axis, scene, bar, at, longest, inches)
        note = "" if bar.own == bar.total else f", {bar.own} of {bar.total} layers"
        axis.annotate(f"{seconds(bar.time_s)}{note}", (min(bar.time_s, longest), at),
                      xytext=(5 if bar.time_s <= longest else 12, 0), textcoords="offset points", va="center",
                      fontsize=7.8)  # fmt: skip
    axis.set_yticks(range(len(bars)), [label(bar.name, 25) for bar in bars], fontsize=8)
    for text, bar in zip(axis.get_yticklabels(), bars, strict=True):
        text.set_fontweight("bold" if bar.name in MIXED else "normal")
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.set_xlim(0, longest * 1.001)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == 0 else tick(value)))
    axis.tick_params(axis="y", length=0)
    head_line(figure, title)
    return figure


def _draw_bar(axis: Axes, scene: Scene, bar: Bar, at: int, longest: float, inches: float) -> None:
    start, mixed = 0.0, bar.name in MIXED
    for index, (layer, algorithm, time_s) in enumerate(bar.parts):
        if start >= longest:
            break
        colour = scene.styles[algorithm].colour
        borrowed = not mixed and algorithm != bar.name
        shade = _lighter(colour, 0.6 if borrowed else 0.25 * (index % 2) if not mixed else 0.0)
        width = min(time_s, longest - start)
        look: dict[str, Any] = {"hatch": "////", "edgecolor": "white"} if borrowed else {"edgecolor": "white"}
        axis.barh(at, width, left=start, height=0.74, color=shade, linewidth=0.6, **look)
        room = int(width / longest * inches / 0.066)
        if room >= max(len(layer), 3) and not borrowed:
            axis.text(start + width / 2, at, short(layer, room), ha="center", va="center", fontsize=6.5,
                      color=readable_on(shade))  # fmt: skip
        start += time_s
    if bar.time_s > longest * 1.001:
        axis.annotate("»", (longest, at), xytext=(2, 0), textcoords="offset points", va="center", fontsize=10)


def _lighter(colour: str, share: float) -> str:
    """``colour`` mixed with white."""
    mixed = [c + (1 - c) * share for c in to_rgb(colour)]
    return "#" + "".join(f"{math.floor(c * 255 + 0.5):02X}" for c in mixed)
