"""The sheet a figure is drawn on: sizes in inches, with room of their own for title, axes, legend and
caption.

Nothing here knows what is drawn; nothing on the sheet can overlap anything else.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from reports.style import DARK, GREY, INK, Style, clean

RC: dict[Any, Any] = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9, "text.parse_math": False,
    "svg.hashsalt": "convbench", "svg.fonttype": "path", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#777777", "axes.linewidth": 0.7, "xtick.color": "#333333", "ytick.color": "#333333",
    "grid.color": "#E3E3E3", "grid.linewidth": 0.6, "hatch.linewidth": 0.8, "figure.facecolor": "white",
}  # fmt: skip
DPI = 130
MANY_MARKS = 5000  # in a figure: beyond, a file of pixels is smaller than one of shapes
HEAD = 0.48  # inches for a title
Area = tuple[float, float, float, float]  # left, bottom, right, top of what is free for axes, in inches


def label(name: object, width: int) -> str:
    """A name that the figure's font has all letters for and that a legend doesn't swallow."""
    text = "".join(c if " " <= c <= "~" or "\xa1" <= c <= "\xff" else "?" for c in clean(name))
    text = text if len(text) <= width else text[: width - 1] + "…"
    return f" {text}" if text.startswith("_") else text


def canvas(
    caption: str, look: dict[str, Style], width: float, height: float, names: Sequence[str],
    legend: str = "line", notes: Mapping[str, str] | None = None, others: int = 0,
) -> tuple[Figure, Area]:  # fmt: skip
    """A figure with room for a title above and, below the axes, a legend and the caption, none of which can
    overlap.

    ``notes`` stand behind names in the legend, where there is room for what would overlap beside the points.
    ``others`` are drawn in grey, and one entry of the legend says how many they are.
    """
    notes = notes or {}
    grey = f"{others} other{'s' if others > 1 else ''}"
    if others:
        names, look = [*names, grey], {**look, grey: Style(GREY, "o", "-")}
    columns = max(int((width - 0.3) / (1.95 + 0.065 * max(map(len, notes.values()), default=0))), 1)
    lines = math.ceil(len(names) / columns)
    written = textwrap.wrap(label(caption, 500), int(width * 19))
    below = 0.12 + 0.145 * len(written) + (0.12 + 0.19 * lines if names else 0.05)
    total = height + below + HEAD
    figure = Figure(figsize=(width, total), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.text(
        0.12 / width,
        0.1 / total,
        "\n".join(written),
        fontsize=7,
        color="#666666",
        va="bottom",
        linespacing=1.3,
    )
    if names:
        handles: list[Any] = []
        for name in names:
            style = look[name]
            if legend == "dot":
                handles.append(Line2D([], [], **dot(name, style)))
            elif legend == "patch":
                handles.append(Line2D([], [], color=style.colour, marker="s", linestyle="none", markersize=8))
            else:
                handles.append(Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.line,
                                      markersize=marker_size(style)))  # fmt: skip
        figure.legend(
            handles, [label(name, 25) + notes.get(name, "") for name in names],
            loc="lower left", ncol=columns, frameon=False, fontsize=8,
            bbox_to_anchor=(0.1 / width, (0.13 + 0.145 * len(written)) / total), borderaxespad=0,
            handlelength=2.6 if legend == "line" else 1.2,
            columnspacing=1.2, labelspacing=0.35, borderpad=0.1,
        )  # fmt: skip
    return figure, (0.0, below, width, total - HEAD)


def grid(
    figure: Figure, area: Area, lines: int, columns: int, left: float = 0.7, bottom: float = 0.5,
    right: float = 0.2, gap: tuple[float, float] = (0.3, 0.6), width: float | None = None, head: float = 0.0,
) -> list[Axes]:  # fmt: skip
    """Axes row by row, placed in inches within ``area``."""
    full_width, full_height = figure.get_size_inches()
    across = ((width or area[2] - left - right) - gap[0] * (columns - 1)) / columns
    down = (area[3] - area[1] - bottom - head - gap[1] * (lines - 1)) / lines
    axes = []
    for index in range(lines * columns):
        row, column = divmod(index, columns)
        x = left + column * (across + gap[0])
        y = area[3] - head - down - row * (down + gap[1])
        axes.append(
            figure.add_axes((x / full_width, y / full_height, across / full_width, down / full_height))
        )
    return axes


def head_line(figure: Figure, title: str) -> None:
    for axis in figure.axes:
        if not axis.has_data() and not axis.patches:
            axis.set_visible(False)
    width, height = figure.get_size_inches()
    text = label(title, int(width * 11.5))
    figure.text(0.12 / width, 1 - 0.13 / height, text, fontsize=11.5, fontweight="bold", va="top", ha="left")


def render(figure: Figure) -> tuple[bytes, bytes]:
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": "convbench"},
                   pil_kwargs={"compress_level": 3})  # as small as 6 in half the time
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "convbench"})
    return png.getvalue(), _following(svg.getvalue())


def _following(svg: bytes) -> bytes:
    """With colours for a dark page, which the browser chooses as it does for the page that shows the picture.
    """
    rules = f"svg{{fill:{DARK[INK.lower()]}}}"  # text in black names no colour
    for light, dark in DARK.items():
        rules += "".join(
            f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}' for kind in ("fill", "stroke")
        )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    return svg.replace(b"<defs>", style.encode() + b"<defs>", 1)


QUIET = "#999999"  # of lines that are no algorithm's


class Ending(NamedTuple):
    """The last point of a line, to be labelled there."""

    x: float
    y: float
    text: str
    colour: str


def end_labels(axis: Axes, endings: Sequence[Ending], size: float = 7.4) -> None:
    """Names at the right of the lines that they belong to, apart from each
    other; call it when the limits stand.
    """
    figure = axis.figure.get_figure(root=True)
    full = axis.get_position().height * figure.get_size_inches()[1]
    step = 1.25 * size / 72 / full
    place = axis.transScale + axis.transLimits  # data -> fraction of the axes
    wanted = sorted(
        ((min(max(place.transform((e.x, e.y))[1], 0.0), 1.0), e) for e in endings), key=lambda pair: pair[0]
    )
    heights = _apart([height for height, _ in wanted], step)
    for height, (_, ending) in zip(heights, wanted, strict=True):
        axis.annotate(
            label(ending.text, 24), (ending.x, ending.y), xytext=(1.035, height), textcoords="axes fraction",
            va="center", fontsize=size, annotation_clip=False,
            color="#666666" if ending.colour == QUIET else INK,
            arrowprops={"arrowstyle": "-", "color": ending.colour, "linewidth": 0.7, "shrinkA": 1,
                        "shrinkB": 2, "relpos": (0, 0.5)},
        )  # fmt: skip


def _apart(wanted: Sequence[float], step: float) -> list[float]:
    """The rising numbers nearest to ``wanted`` that differ by ``step``, within 0 to 1 as far as they fit."""
    blocks: list[list[float]] = []  # mean of what they want less their places, and how many
    for index, value in enumerate(wanted):
        blocks.append([value - index * step, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, count = blocks.pop()
            blocks[-1] = [
                (blocks[-1][0] * blocks[-1][1] + mean * count) / (blocks[-1][1] + count),
                blocks[-1][1] + count,
            ]
    levels = [mean for mean, count in blocks for _ in range(int(count))]
    highest = 1 - (len(wanted) - 1) * step
    return [max(min(level, highest), 0.0) + index * step for index, level in enumerate(levels)]


def marker_size(style: Style) -> float:
    """Stars and pointed pluses look smaller than they are."""
    return {"*": 7.5, "P": 6.0, "X": 5.6, ".": 6.0}.get(style.marker, 5.0)


def dot(algorithm: str, style: Style) -> dict[str, Any]:
    """How a lone point looks: filled, but for auto, a bar across the algorithm that it chose."""
    look = {"linestyle": "none", "marker": style.marker, "color": style.colour, "zorder": 3}
    look["markersize"] = marker_size(style)
    if algorithm == "auto":
        return look | {"marker": "|", "markersize": 10, "markeredgewidth": 1.4, "zorder": 4}
    return look | {"markeredgecolor": "white", "markeredgewidth": 0.4}


def log_ticks(axis: Axes, places: list[float], labels: list[str]) -> None:
    """Labels at the measured sizes, as many as fit, the larger first; room at both ends."""
    span = math.log(places[-1] / places[0]) if len(places) > 1 else 0.0
    width = axis.figure.get_figure(root=True).get_size_inches()[0]
    inches = axis.get_position().width * width * 0.86
    kept: list[int] = []
    for index in reversed(range(len(places))):
        needed = 0.08 + 0.085 * (len(labels[index]) + (len(labels[kept[0]]) if kept else 0)) / 2
        if not kept or math.log(places[kept[0]] / places[index]) / span * inches >= needed:
            kept.insert(0, index)
    axis.xaxis.set_major_locator(FixedLocator([places[i] for i in kept]))
    axis.xaxis.set_major_formatter(
        FuncFormatter(lambda _, at: labels[kept[at]] if at is not None and at < len(kept) else "")
    )
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    room = 0.08 * span or 0.5
    axis.set_xlim(places[0] * math.exp(-room), places[-1] * math.exp(room))


def value_ticks(axis: Axes, low: float, high: float, tick: Callable[[float], str]) -> None:
    """Powers of ten; within less than two decades also 2 and 5 times them."""
    steps = (1,) if math.log10(high / low) > 2 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    axis.xaxis.set_major_locator(
        FixedLocator([s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high])
    )
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axis.xaxis.set_minor_locator(NullLocator())


Words = Callable[[float], str]


def log_axes(axis: Axes, words_x: Words = "{:g}".format, words_y: Words = "{:g}".format) -> None:
    """Powers of ten on both axes; 2 and 5 times them where there is less than two decades."""
    for side, words, (low, high) in (
        (axis.xaxis, words_x, axis.get_xlim()),
        (axis.yaxis, words_y, axis.get_ylim()),
    ):
        steps = (1,) if math.log10(high / low) > 2 else (1, 2, 5)
        side.set_major_locator(LogLocator(10, subs=steps, numticks=15))
        side.set_major_formatter(FuncFormatter(lambda value, _, words=words: words(value)))
        side.set_minor_locator(NullLocator())
    axis.grid(True)
