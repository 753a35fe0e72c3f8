"""Which pictures are made: one set for every (machine, threads, cold), PNG and SVG, with no global figure.

Whole networks come first. Then comes a set for each direction, forward or either gradient: specs that vary in
image and kernel size only form a sweep and get a winner map, times against either size and speed-up;
everything else (the layers of a network) gets one row per spec. Then, where the records allow it: roofline,
error against time, the same of each problem in several types, prepare against run, workspace. Over several
numbers of threads, the scaling.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import matplotlib
import pandas as pd

from reports.findings.networks import Networks
from reports.pictures_machine import roofline_figures, scaling_figures
from reports.pictures_networks import network_figures
from reports.pictures_specs import few_figure, layer_figures, speed_figures
from reports.pictures_sweep import crossover_figures, map_figures, times_figures
from reports.pictures_tradeoffs import calls_figures, error_figures, workspace_figures
from reports.pictures_types import type_figures
from reports.scene import MANY, Drawn, Picture, Scene, scenes
from reports.sheet import RC, render

MOST_PICTURES = 60
SMALLEST_SWEEP, MOST_SWEEPS = 3, 6


def pictures(
    frame: pd.DataFrame, machines: dict[str, dict], baseline: Sequence[str] = (), networks: Networks = ()
) -> tuple[list[Picture], list[str]]:
    """All pictures, and sentences on what was left out.

    Raises
    ------
    ValueError
        When a baseline was not measured.
    """
    made: list[Picture] = []
    notes: list[str] = []
    with matplotlib.rc_context(RC):
        shown = list(scenes(frame, machines, baseline, networks))
        for section, (name, title, reading, seen, figure) in _all(shown, networks, notes):
            if len(made) == MOST_PICTURES:
                notes.append(
                    f"Only {MOST_PICTURES} pictures are shown: report on fewer machines, threads or suites."
                )
                break
            made.append(Picture(_file_name(name, made), title, reading, seen, section, *render(figure)))
    return made, list(dict.fromkeys(notes))


def _all(shown: list[Scene], networks: Networks, notes: list[str]) -> Iterator[tuple[str, Drawn]]:
    directed: list[Scene] = []
    for scene in shown:
        for drawn in _safely(notes, network_figures, scene, networks):
            yield scene.section, drawn
        for part in scene.by_direction():
            directed.append(part)
            of = f"{part.direction.capitalize()}. " if part.direction else ""
            for name, title, reading, seen, figure in _draw(part, notes):
                yield part.section, (name, title, of + reading, of + seen, figure)
    yield from _safely(notes, scaling_figures, directed)


def _draw(scene: Scene, notes: list[str]) -> Iterator[Drawn]:
    """The figures of a scene of one direction: per sweep times, map and speed-up; then whatever is
    no sweep; then what spans all specs.
    """
    loose = scene.rows
    sweeps = scene.rows.drop_duplicates("spec").groupby("sweep", sort=False)
    largest_first = sorted(((str(sweep), specs) for sweep, specs in sweeps), key=lambda item: -len(item[1]))
    found = [sweep for sweep, specs in largest_first if sweep and _is_sweep(specs, len(sweeps))]
    for index, sweep in enumerate(found[: MOST_SWEEPS if len(scene.rows) <= MANY else 1]):
        rows = scene.rows[scene.rows["sweep"] == sweep]
        loose = loose[loose["sweep"] != sweep]
        number = f"-{index + 1}" if index else ""
        yield from _safely(
            notes, map_figures, scene, scene.winners[scene.winners["sweep"] == sweep], sweep, number, notes
        )
        yield from _safely(notes, crossover_figures, scene, rows, sweep, number, notes)
        yield from _safely(notes, times_figures, scene, rows, sweep, number, notes)
        yield from _safely(
            notes,
            speed_figures,
            scene,
            scene.speed[scene.speed["sweep"] == sweep],
            f": {sweep}",
            number,
            notes,
        )
    if len(loose):
        count = loose["spec"].nunique()
        yield from _safely(notes, few_figure if count <= 4 else layer_figures, scene, loose, notes)
        if count > 4:
            speed = scene.speed[scene.speed["spec"].isin(loose["spec"])]
            yield from _safely(notes, speed_figures, scene, speed, " per spec", "-layers", notes)
    yield from _safely(notes, roofline_figures, scene)
    yield from _safely(notes, error_figures, scene)
    yield from _safely(notes, type_figures, scene, notes)
    yield from _safely(notes, calls_figures, scene)
    yield from _safely(notes, workspace_figures, scene)


def _safely(notes: list[str], draw: Callable[..., Iterable[Any]], *arguments: Any) -> Iterator[Any]:
    """A picture that cannot be drawn is said to be missing; it costs neither the tables nor the other
    pictures.
    """
    try:
        yield from draw(*arguments)
    except Exception as error:
        notes.append(f"A picture is missing, {draw.__name__} failed: {type(error).__name__}: {error}")


def _is_sweep(specs: pd.DataFrame, of: int) -> bool:
    """Equal sides, and enough of the grid of sizes and kernels to be drawn as one.

    Layers of a network that happen to share their channels are none: beside others (``of`` counts them), a
    sweep is of pictures, or varies both size and kernel.
    """
    sizes, kernels = specs["size"].nunique(), specs["kernel"].nunique()
    square = all(len(set(text.split("x"))) == 1 for text in {*specs["size"], *specs["kernel"]})
    meant = of == 1 or specs["sweep"].iloc[0].startswith("pictures") or min(sizes, kernels) > 1
    return (
        meant
        and square
        and len(specs) >= (2 if of == 1 else SMALLEST_SWEEP)
        and len(specs) >= sizes * kernels / 2
    )


def _file_name(name: str, made: Sequence[Picture]) -> str:
    """Letters, digits and dashes only, and unlike any before."""
    slug = re.sub(r"[^A-Za-z0-9-]+", "-", name)[:80].strip("-") or "picture"
    taken = {picture.name for picture in made}
    return next(n for n in (slug, *(f"{slug}-{i}" for i in range(2, 1000))) if n not in taken)
