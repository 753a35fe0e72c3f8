"""Pictures of a training: how the loss fell, what the first filters became, what they see in a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from bench.training import Training
from reports.sheet import RC, canvas, grid, head_line, render

LOSS, MEAN, RIGHT = "#B8C7DA", "#2F5D9B", "#C2410C"
ACROSS = 10  # filters or maps in a line
SMOOTHED = 10  # steps


def training_figures(found: Training, name: str, classes: str) -> Iterator[tuple[str, bytes]]:
    """(Name, PNG) of each."""
    drawn = {"loss": lambda: _loss(found, name), "filters": lambda: _filters(found, name),
             "maps": lambda: _maps(found, name, classes)}  # fmt: skip
    for each, draw in drawn.items():
        with matplotlib.rc_context(RC):
            yield each, render(draw())[0]


def _loss(found: Training, name: str) -> Figure:
    caption = (f"Cross-entropy of each step, and its mean over {SMOOTHED}; below, the share of the "
               f"{len(found.pictures.held_x)} pictures held back that are told right after each pass.")
    figure, area = canvas(caption, {}, 7.5, 3.9, ())
    above, below = grid(figure, area, 2, 1, bottom=0.45, gap=(0.3, 0.35), left=0.75)
    losses = np.array(found.losses)
    steps = np.arange(1, len(losses) + 1)
    above.plot(steps, losses, color=LOSS, linewidth=0.8)
    count = min(SMOOTHED, len(losses))
    above.plot(steps[count - 1 :], np.convolve(losses, np.full(count, 1 / count), "valid"), color=MEAN)
    above.set_yscale("log")
    above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    above.yaxis.set_minor_formatter(NullFormatter())
    above.set_ylabel("loss")
    passes = len(found.accuracies)
    ends = steps[-1] * np.arange(1, passes + 1) / passes
    below.plot(ends, found.accuracies, color=RIGHT, marker="o", markersize=4)
    below.annotate(f"{found.accuracies[-1]:.1%}", (ends[-1], found.accuracies[-1]), xytext=(-4, -12),
                   textcoords="offset points", ha="right", fontsize=8, color=RIGHT)  # fmt: skip
    below.yaxis.set_major_formatter(PercentFormatter(1))
    below.set_ylabel("right")
    below.set_xlabel("step")
    for axis in (above, below):
        axis.set_xlim(0, steps[-1] * 1.02)
        axis.grid(True, axis="y")
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    head_line(figure, f"Training {name}")
    return figure


def _shown(axis: Axes, picture: np.ndarray, limit: float, title: str, colours: str) -> None:
    low: Any = -limit if colours == "RdBu_r" else None
    axis.imshow(picture, cmap=colours, vmin=low, vmax=limit if low else None, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=7.5, pad=3)


def _sheet(caption: str, lines: int, columns: int) -> tuple[Figure, list[Axes]]:
    width = max(0.3 + 0.95 * columns, 4.5)
    figure, area = canvas(caption, {}, width, 1.05 * lines, ())
    return figure, grid(figure, area, lines, columns, left=0.15, right=0.15, bottom=0.08, head=0.12,
                        gap=(0.12, 0.25))  # fmt: skip


def _filters(found: Training, name: str) -> Figure:
    w = found.network.layers[0].weights[0][:, 0]
    caption = "The filters of the first layer: red adds what is bright, blue takes it away."
    columns = min(len(w), ACROSS)
    figure, axes = _sheet(caption, -(-len(w) // columns), columns)
    for at, (axis, kernel) in enumerate(zip(axes, w, strict=False)):
        _shown(axis, kernel, float(abs(w).max()), str(at + 1), "RdBu_r")
    head_line(figure, f"What {name} looks for")
    return figure


def _maps(found: Training, name: str, classes: str) -> Figure:
    """One picture of the first two classes held back, each with its maps after pooling and ReLU."""
    pictures, rows = found.pictures, []
    for number in (0, 1):
        x = pictures.held_x[pictures.held_target == number][:1]
        first, pooled = found.network.layers[:2]
        maps = pooled.forward(first.forward(x))[0]
        rows.append((classes[number], x[0, 0], maps[: ACROSS - 1]))
    caption = "Pictures held back, and what the first filters make of them after pooling and ReLU."
    per_row = len(rows[0][2]) + 1
    figure, axes = _sheet(caption, 2, per_row)
    for line, (label, picture, maps) in enumerate(rows):
        _shown(axes[line * per_row], picture, 1, label, "gray")
        for at, one in enumerate(maps):
            _shown(axes[line * per_row + at + 1], one, 1, f"map {at + 1}", "gray")
    head_line(figure, f"What {name} sees")
    return figure
