"""The pictures: each a ``Picture`` with its PNG and SVG, made with Matplotlib's object interface and no global figure.

``pictures`` makes them all, one set for every (machine, threads, cold). Specs that vary in image and kernel size only form
a sweep and get times, winner map and speed-up; everything else (the layers of a network) gets one row per spec.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reports import frame as statistics_of
from reports.frame import GROUP, tuples
from reports.sheet import RC, canvas, dot, grid, head_line, label, log_ticks, marker_size, render, value_ticks
from reports.style import Style, clean, machine_text, ratio_text, readable_on, short, styles, time_text

PANELS, CELLS, ROWS, PAGES = 9, 12, 60, 5  # the most in one figure; further pages are made up to PAGES
MOST_PICTURES = 40
SMALLEST_SWEEP, MOST_SWEEPS = 3, 6
WARM = "steady state, prepared weights, fresh output array, caches warm, transfers excluded"
COLD = "single calls after the caches were flushed, prepared weights, fresh output array, transfers excluded"


@dataclass(frozen=True)
class Picture:
    """One finished figure.

    Attributes
    ----------
    name : str
        File name without extension: letters, digits, dots and dashes.
    title, reading : str
        What it shows, and how to read it.
    section : str
        Machine and threads.
    png, svg : bytes
    """

    name: str
    title: str
    reading: str
    section: str
    png: bytes
    svg: bytes


@dataclass(frozen=True)
class Scene:
    """What the figures of one (machine, threads, cold) share."""

    section: str
    suffix: str
    caption: str
    styles: dict[str, Style]
    rows: pd.DataFrame  # ranked, with auto
    winners: pd.DataFrame
    speed: pd.DataFrame
    baseline: str


Drawn = tuple[str, str, str, Figure]  # name, title, reading, figure


def pictures(frame: pd.DataFrame, machines: dict[str, dict], baseline: Sequence[str] = ()) -> tuple[list[Picture], list[str]]:
    """All pictures, and sentences on what was left out.

    Raises
    ------
    ValueError
        When a baseline was not measured.
    """
    made: list[Picture] = []
    notes: list[str] = []
    with matplotlib.rc_context(RC):
        for scene in _scenes(frame, machines, baseline):
            for name, title, reading, figure in _draw(scene, notes):
                if len(made) == MOST_PICTURES:
                    notes.append(f"Only {MOST_PICTURES} pictures are shown: report on fewer machines, threads or suites.")
                    return made, list(dict.fromkeys(notes))
                made.append(Picture(_file_name(name, made), title, reading, scene.section, *render(figure)))
    return made, list(dict.fromkeys(notes))


def _scenes(frame: pd.DataFrame, machines: dict[str, dict], baseline: Sequence[str]) -> Iterator[Scene]:
    rows = statistics_of.ranked(frame, with_auto=True)
    speed, label = statistics_of.speed_ups(frame, baseline)
    best = statistics_of.winners(frame)
    look = styles(dict(zip(rows["algorithm"], rows["family"], strict=True)))
    several = {name: rows[name].nunique() > 1 for name in GROUP}
    for key in dict.fromkeys(best[GROUP].itertuples(index=False, name=None)):
        machine, threads, cold = key
        mine = [table[(table[GROUP] == list(key)).all(axis=1)] for table in (rows, best, speed)]
        about = machine_text(machine, machines)
        plural = f"{threads} thread{'s' if threads != 1 else ''}"
        launches = sorted(set(mine[0]["launch_count"]))
        counted = f"{launches[0]} to {launches[-1]}" if len(launches) > 1 else str(launches[0])
        suffix = (f"-{machine}" if several["machine"] else "") + f"-t{threads}" + ("-cold" if cold else "")
        yield Scene(
            section=f"{about}{f' ({clean(machine)})' if several['machine'] else ''}, {plural}{', cold caches' if cold else ''}",
            suffix=suffix,
            caption=f"{about}; {plural}; {counted} launch{'es' if launches[-1] > 1 else ''}; clock: {COLD if cold else WARM}",
            styles=look, rows=mine[0], winners=mine[1], speed=mine[2], baseline=label,
        )  # fmt: skip


def _draw(scene: Scene, notes: list[str]) -> Iterator[Drawn]:
    """The figures of a scene: per sweep times, map and speed-up; then whatever is no sweep."""
    loose = scene.rows
    sweeps = scene.rows.drop_duplicates("spec").groupby("sweep", sort=False)
    largest_first = sorted(((str(sweep), specs) for sweep, specs in sweeps), key=lambda item: -len(item[1]))
    found = [sweep for sweep, specs in largest_first if sweep and _is_sweep(specs, len(sweeps))]
    for index, sweep in enumerate(found[:MOST_SWEEPS]):
        rows = scene.rows[scene.rows["sweep"] == sweep]
        loose = loose[loose["sweep"] != sweep]
        number = f"-{index + 1}" if index else ""
        yield from _times_figures(scene, rows, sweep, number, notes)
        yield from _map_figures(scene, scene.winners[scene.winners["sweep"] == sweep], sweep, number, notes)
        yield from _speed_figures(scene, scene.speed[scene.speed["sweep"] == sweep], f": {sweep}", number, notes)
    if len(loose):
        count = loose["spec"].nunique()
        yield from (_few_figure if count <= 4 else _layer_figures)(scene, loose, notes)
        if count > 4:
            speed = scene.speed[scene.speed["spec"].isin(loose["spec"])]
            yield from _speed_figures(scene, speed, " per spec", "-layers", notes)


def _is_sweep(specs: pd.DataFrame, of: int) -> bool:
    """Equal sides, and enough of the grid of sizes and kernels to be drawn as one.

    Layers of a network that happen to share their channels are none: beside others (``of`` counts them), a sweep is of
    pictures, or varies both size and kernel.
    """
    sizes, kernels = specs["size"].nunique(), specs["kernel"].nunique()
    square = all(len(set(text.split("x"))) == 1 for text in {*specs["size"], *specs["kernel"]})
    meant = of == 1 or specs["sweep"].iloc[0].startswith("pictures") or min(sizes, kernels) > 1
    return meant and square and len(specs) >= (2 if of == 1 else SMALLEST_SWEEP) and len(specs) >= sizes * kernels / 2


# ---- (a) time against size -------------------------------------------------------------------------------------


def _times_figures(scene: Scene, rows: pd.DataFrame, sweep: str, number: str, notes: list[str]) -> Iterator[Drawn]:
    panel, across = ("kernel", "size") if rows["size"].nunique() > 1 else ("size", "kernel")
    words = {"size": "image size", "kernel": "kernel size"}
    values = list(rows.sort_values(f"{_side(panel)}")[panel].unique())
    for page, shown in _pages(values, PANELS, f"panels of {words[panel]}", notes):
        columns = min(3, len(shown))
        lines = math.ceil(len(shown) / columns)
        part = rows[rows[panel].isin(shown)]
        figure, area = canvas(scene.caption, scene.styles, max(3.3 * columns + 0.5, 7.0), 2.9 * lines, _names(scene, part))
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
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(True, axis="y")


def _tick(seconds: float) -> str:
    """1 ms, not 1.00 ms."""
    return re.sub(r"\.0+ ", " ", time_text(seconds))


# ---- (b) who wins ----------------------------------------------------------------------------------------------


def _map_figures(scene: Scene, best: pd.DataFrame, sweep: str, number: str, notes: list[str]) -> Iterator[Drawn]:
    sizes = list(best.sort_values("side")["size"].unique())
    kernels = list(best.sort_values("kernel_side")["kernel"].unique())
    cells = {(row.size, row.kernel): row for row in tuples(best)}
    for page, columns in _pages(sizes, CELLS, "image sizes of the winner map", notes):
        for second, lines in _pages(kernels, CELLS, "kernel sizes of the winner map", notes):
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
                "hatched, is a tie: the noise between launches could explain the difference. A star marks a peer."
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
    text = f"{_wrapped(row.winner)}\n= {_wrapped(row.tied[1])}{more}\ntie"
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


# ---- (c) speed-up, and specs that are no sweep ----------------------------------------------------------------


def _speed_figures(scene: Scene, speed: pd.DataFrame, what: str, number: str, notes: list[str]) -> Iterator[Drawn]:
    if speed.empty:
        notes.append("No speed-up was drawn where the baseline has no time.")
        return
    title = f"Speed-up over {short(scene.baseline, 60)}{what}"
    reading = (
        "Right of the line at 1x is faster than the baseline, by that factor; the scale is logarithmic. On the right the "
        "fastest algorithm and its factor; a tie if the noise could explain its lead. Rows: image size, kernel size."
    )
    yield from _dot_figures(
        scene, speed, "speed_up", f"speedup{number}", title, reading, lambda v: f"{v:g}x", ratio_text, notes
    )


def _layer_figures(scene: Scene, rows: pd.DataFrame, notes: list[str]) -> Iterator[Drawn]:
    reading = "One row per spec, further left is faster, the scale is logarithmic. Right: the fastest algorithm, its time."
    yield from _dot_figures(scene, rows, "median_s", "layers", "Time per spec", reading, _tick, time_text, notes)


def _dot_figures(
    scene: Scene, rows: pd.DataFrame, value: str, name: str, title: str, reading: str, tick: Callable[[float], str],
    words: Callable[[float], str], notes: list[str],
) -> Iterator[Drawn]:  # fmt: skip
    """One row per spec, a marker per algorithm, the winner in words on the right."""
    order = rows.drop_duplicates("spec").copy()
    if order["sweep"].nunique() == 1 and len(order) > 1:
        order = order.sort_values(["kernel_side", "side"])
        labels = {row.spec: f"{row.size}, {row.kernel}" for row in tuples(order)}
    else:
        known = {spec: index for index, spec in enumerate(scene.winners["spec"])}
        order = order.iloc[np.argsort([known.get(spec, len(known)) for spec in order["spec"]], kind="stable")]
        labels = {row.spec: row.spec for row in tuples(order)}
    best = {row.spec: row for row in tuples(scene.winners)}
    values = {(row.spec, row.algorithm): getattr(row, value) for row in tuples(rows)}
    for page, specs in _pages(list(order["spec"]), ROWS, "specs", notes):
        part = rows[rows["spec"].isin(specs)]
        wide = min(max(len(labels[s]) for s in specs), 46)
        figure, area = canvas(scene.caption, scene.styles, 8.6, 0.23 * len(specs) + 0.5, _names(scene, part), "dot")
        (axis,) = grid(figure, area, 1, 1, left=0.35 + 0.073 * wide, bottom=0.33, right=1.95)
        axis.set_xscale("log")
        for at, spec in enumerate(specs):
            inside = part.loc[part["spec"] == spec, value]
            axis.plot([inside.min(), inside.max()], [at, at], color="#D5D5D5", linewidth=1, zorder=1)
            winner = best.get(spec)
            if winner is not None:
                own = values.get((spec, winner.winner), math.nan)
                axis.annotate(
                    f"{label(winner.winner, 20)} {words(own)}{', tie' if winner.tie else ''}",
                    (1, at), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points", va="center",
                    fontsize=7.2,
                )  # fmt: skip
        places = {spec: at for at, spec in enumerate(specs)}
        for algorithm in _names(scene, part):
            dots = part[part["algorithm"] == algorithm]
            axis.plot(dots[value], [places[s] for s in dots["spec"]], **dot(algorithm, scene.styles[algorithm]))
        axis.set_yticks(range(len(specs)), [short(labels[s], 46) for s in specs], fontsize=7.5)
        axis.set_ylim(len(specs) - 0.4, -0.6)
        low, high = part[value].min(), part[value].max()
        axis.set_xlim(low / 1.25, high * 1.25)
        value_ticks(axis, low / 1.25, high * 1.25, tick)
        axis.grid(True, axis="x")
        axis.tick_params(axis="y", length=0)
        if value == "speed_up":
            axis.axvline(1, color="#333333", linewidth=1, zorder=2)
        head_line(figure, title)
        yield f"{name}{scene.suffix}{page}", title, reading, figure


def _few_figure(scene: Scene, rows: pd.DataFrame, notes: list[str]) -> Iterator[Drawn]:
    """One to four specs: a panel each, an algorithm per row, fastest on top."""
    specs = list(dict.fromkeys(rows["spec"]))
    most = max(rows.groupby("spec")["algorithm"].nunique())
    figure, area = canvas(scene.caption, scene.styles, 7.6, (0.24 * most + 0.85) * len(specs), ())
    axes = grid(figure, area, len(specs), 1, left=1.85, bottom=0.35, right=0.75, gap=(0, 0.75), head=0.22)
    low, high = rows["low_s"].min() / 1.4, rows["high_s"].max() * 1.25
    for axis, spec in zip(axes, specs, strict=True):
        part = rows[rows["spec"] == spec].sort_values("median_s", ascending=False)
        winner = next((set(w.tied) for w in tuples(scene.winners) if w.spec == spec), set())
        axis.set_xscale("log")
        for at, row in enumerate(tuples(part)):
            style = scene.styles[row.algorithm]
            axis.plot([low, row.median_s], [at, at], color=style.colour, linewidth=1.6, linestyle=style.line, alpha=0.8)
            axis.plot([row.low_s, row.high_s], [at, at], color=style.colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
            axis.plot([row.median_s], [at], color=style.colour, marker=style.marker, markersize=6.5)
            axis.annotate(time_text(row.median_s), (1, at), xycoords=("axes fraction", "data"), xytext=(6, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        axis.set_yticks(range(len(part)), [label(n, 24) for n in part["algorithm"]])
        for text, name in zip(axis.get_yticklabels(), part["algorithm"], strict=True):
            text.set_fontweight("bold" if name in winner else "normal")
        axis.set_ylim(-0.6, len(part) - 0.4)
        axis.set_xlim(low, high)
        value_ticks(axis, low, high, _tick)
        axis.grid(True, axis="x")
        axis.tick_params(axis="y", length=0)
        axis.set_title(short(spec, 70), fontsize=9.5, loc="left", fontweight="bold")
    head_line(figure, "Time per algorithm")
    reading = (
        "Fastest on top, names in bold won or tied; further left is faster; the scale is logarithmic. The wide band spans the "
        "launches."
    )
    yield f"times-few{scene.suffix}", "Time per algorithm", reading, figure


def _names(scene: Scene, rows: pd.DataFrame) -> list[str]:
    """Algorithms present, in the order of the styles."""
    present = set(rows["algorithm"])
    return [name for name in scene.styles if name in present]


def _pages(values: list[str], size: int, what: str, notes: list[str]) -> Iterator[tuple[str, list[str]]]:
    pages = [values[i : i + size] for i in range(0, len(values), size)]
    if len(pages) > PAGES:
        notes.append(f"Pictures show {size * PAGES} of {len(values)} {what}; the table below has all of them.")
    for index, page in enumerate(pages[:PAGES]):
        yield (f"-page{index + 1}" if len(pages) > 1 else ""), page


def _file_name(name: str, made: Sequence[Picture]) -> str:
    """Letters, digits and dashes only, and unlike any before."""
    slug = re.sub(r"[^A-Za-z0-9-]+", "-", name)[:80].strip("-") or "picture"
    taken = {picture.name for picture in made}
    return next(n for n in (slug, *(f"{slug}-{i}" for i in range(2, 1000))) if n not in taken)
