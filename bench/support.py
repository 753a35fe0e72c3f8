"""What each algorithm solves, by direction and dimension: measured, and written as the page
``docs/support.md``.

    python -m bench.support > docs/support.md

Three kinds of problem stand for all: a layer, a depthwise layer, and a picture under a kernel of rank 1. A
cell shows the kind in which the algorithm comes nearest to the fastest; it is filled only by a result that
was found right and takes at most ``SLOWEST`` times as long as that.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from algos.contract import Algorithm
from algos.lower.chain import chain, unsupported
from algos.registry import registry, variant_name
from algos.spec import ConvSpec
from bench.cases import Settings, cases_of
from bench.record import Record
from bench.runner import Runner
from bench.store import Store

SLOWEST = 20.0
DIRECTIONS = {name: name.replace(" ", "_") for name in ("forward", "input gradient", "weight gradient")}
KINDS = {
    1: ("4x16x4096,16x16x9,p4", "4x32x4096,32x1x9,p4"),
    2: ("2x32x56x56,32x32x3x3,p1", "2x64x56x56,64x1x3x3,p1", "1x1x256x256,1x1x9x9,p4,rank1"),
    3: ("1x16x12x28x28,16x16x3x3x3,p1", "1x32x12x28x28,32x1x3x3x3,p1"),
}
HEAD = """# What each algorithm solves

Made by `python -m bench.support`: every cell was checked against the definition and measured,
{threads} on {cpu}. It shows how many times as long as the fastest the algorithm takes, **bold**
where it solves the problem itself; letters say how else it comes to it. Empty cells are explained
below. Of a layer, a depthwise layer and a picture under a kernel of rank 1 each cell shows the one
in which the algorithm comes nearest to the fastest; peers are other people's libraries. Cells over
{slowest:g} are left empty. Gradients count what a call takes with prepared weights.
"""


class Cell(NamedTuple):
    """One algorithm, direction and dimension: the nearest it comes to the fastest, how, or why not."""

    ratio: float | None
    words: str
    reason: str


def specs() -> dict[ConvSpec, tuple[str, int]]:
    """Each problem with its direction and dimension."""
    return {
        ConvSpec.parse(text).directed(name): (direction, ndim)
        for direction, name in DIRECTIONS.items()
        for ndim, texts in KINDS.items()
        for text in texts
    }


def cells(
    records: Iterable[Record], algorithms: Sequence[Algorithm], threads: int
) -> dict[tuple[str, str, int], Cell]:
    """By algorithm, direction and dimension."""
    times = {(r.spec, r.algorithm): r.median_s for r in records if r.status == "ok" and r.median_s}
    fastest: dict[str, float] = defaultdict(lambda: float("inf"))
    for (text, _), time_s in times.items():
        fastest[text] = min(fastest[text], time_s)
    failed = {(r.spec, r.algorithm): f"{r.status}: {r.reason}" for r in records if r.status != "ok"}
    found: dict[tuple[str, str, int], Cell] = {}
    for algorithm in algorithms:
        for spec, (direction, ndim) in specs().items():
            key, at = (algorithm.name, direction, ndim), (str(spec), algorithm.name)
            if (reason := unsupported(algorithm, spec)) or at not in times:
                cell = Cell(None, "", reason or failed.get(at, "was not measured"))
            else:
                cell = Cell(times[at] / fastest[at[0]], chain(algorithm, spec, threads).words, "")
            before = found.get(key)
            if before is None or (cell.ratio or 1e9) < (before.ratio or 1e9):
                found[key] = cell
    return found


def page(found: dict[tuple[str, str, int], Cell], cpu: str, threads: int) -> str:
    """The whole page, Markdown."""
    names = list(dict.fromkeys(name for name, _, _ in found))
    columns = [(direction, ndim) for direction in DIRECTIONS for ndim in KINDS]
    ways: dict[str, str] = {}
    rows, missing = [], []
    for name in names:
        texts = []
        for column in columns:
            cell = found[name, *column]
            if cell.ratio is None or cell.ratio > SLOWEST:
                texts.append("")
                much = cell.reason or f"{cell.ratio:.3g} times as long as the fastest"
                missing.append((name, column, much))
                continue
            figure = f"{cell.ratio:.2g}" if cell.ratio < 10 else f"{cell.ratio:.0f}"
            letter = f" {ways.setdefault(cell.words, chr(97 + len(ways)))}" if cell.words else ""
            texts.append(f"{figure}{letter}" if cell.words else f"**{figure}**")
        rows.append(f"| `{name}` | {' | '.join(texts)} |")
    heads = " | ".join(f"{direction} {ndim}-D" for direction, ndim in columns)
    lines = [HEAD.format(threads=f"{threads} threads", cpu=cpu, slowest=SLOWEST)]
    lines += [f"| algorithm | {heads} |", f"|---|{'---:|' * len(columns)}", *rows, "", "## The ways", ""]
    lines += [f"* {letter}: {words}" for words, letter in ways.items()]
    lines += ["", "## Why cells are empty", ""]
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, (direction, ndim), reason in missing:
        grouped[name, reason].append(f"{direction} {ndim}-D")
    lines += [f"* `{name}`, {', '.join(places)}: {reason}" for (name, reason), places in grouped.items()]
    return "\n".join(lines) + "\n"


def measured(algorithms: Sequence[Algorithm], threads: int) -> list[Record]:
    """One launch of everything, checked."""
    named = tuple(a.name for a in algorithms)
    settings = Settings(launches=1, named=named)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store:
        return Runner(settings, store).run(cases_of(specs(), algorithms, [threads], settings)).records


def main() -> int:
    from algos.functional import checked_threads
    from algos.host import fingerprint

    threads = checked_threads(None)
    every = [
        a for a in registry().values() if a.device == "cpu" and a.family != "auto" and not a.unavailable()
    ]
    chosen = [a for a in every if variant_name(a) == a.name]
    sys.stdout.write(page(cells(measured(chosen, threads), chosen, threads), fingerprint()["cpu"], threads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
