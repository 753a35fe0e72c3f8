"""What each algorithm solves, by direction and dimension, and by type: measured, and written as the page
``docs/support.md``.

    python -m bench.support > docs/support.md

Three kinds of problem stand for all: a layer, a depthwise layer, and a picture under a kernel of rank 1; for
the types a layer. A cell shows the kind in which the algorithm comes nearest to the fastest; it is filled
only by a result that was found right and takes at most ``SLOWEST`` times as long as that.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from algos.contract import Algorithm
from algos.lower.search import chain, unsupported
from algos.registry import registry, variant_name
from algos.spec import ConvSpec
from bench.cases import Settings, cases_of
from bench.record import Record
from bench.runner import Runner
from bench.store import Store
from bench.timing import Budget

SLOWEST = 20.0
DIRECTIONS = {name: name.replace(" ", "_") for name in ("forward", "input gradient", "weight gradient")}
KINDS = {
    1: ("4x16x4096,16x16x9,p4", "4x32x4096,32x1x9,p4"),
    2: ("2x32x56x56,32x32x3x3,p1", "2x64x56x56,64x1x3x3,p1", "1x1x256x256,1x1x9x9,p4,rank1"),
    3: ("1x16x12x28x28,16x16x3x3x3,p1", "1x32x12x28x28,32x1x3x3x3,p1"),
}
BUDGET = Budget(case_s=0.2, rounds=16, error=0.03)  # for ratios of two digits
SLOW_S = 1.0  # of a call: nothing as slow fills a cell
TYPED = "1x32x28x28,32x32x3x3,p1"
TYPES = ("float16", "bfloat16", "float64", "complex64", "complex128", "int8", "int8>int32",
         "uint8*int8>int32", "int16", "int32", "int64", "uint64")  # fmt: skip
HEAD = """# What each algorithm solves

Made by `python -m bench.support`: every cell was checked against the definition and measured,
{threads} on {cpu}. It shows how many times as long as the fastest the algorithm takes, **bold**
where it solves the problem itself; letters say how else it comes to it. Empty cells are explained
below. Of a layer, a depthwise layer and a picture under a kernel of rank 1 each cell shows the one
in which the algorithm comes nearest to the fastest; peers are other people's libraries. Cells over
{slowest:g} are left empty. Gradients count what a call takes with prepared weights.
"""


Column = tuple[str, str]  # a direction and a dimension, or "type" and which


class Cell(NamedTuple):
    """One algorithm in one column: the nearest it comes to the fastest, how, or why not."""

    ratio: float | None
    words: str
    reason: str


def specs() -> dict[ConvSpec, Column]:
    """Each problem with its column."""
    found = {
        ConvSpec.parse(text).directed(name): (direction, f"{ndim}-D")
        for direction, name in DIRECTIONS.items()
        for ndim, texts in KINDS.items()
        for text in texts
    }
    return found | {ConvSpec.parse(f"{TYPED},{dtype}"): ("type", dtype) for dtype in TYPES}


def cells(
    records: Iterable[Record], algorithms: Sequence[Algorithm], threads: int
) -> dict[tuple[str, Column], Cell]:
    """By algorithm and column."""
    times = {(r.spec, r.algorithm): r.median_s for r in records if r.status == "ok" and r.median_s}
    fastest: dict[str, float] = defaultdict(lambda: float("inf"))
    for (text, _), time_s in times.items():
        fastest[text] = min(fastest[text], time_s)
    failed = {(r.spec, r.algorithm): f"{r.status}: {r.reason}" for r in records if r.status != "ok"}
    found: dict[tuple[str, Column], Cell] = {}
    for algorithm in algorithms:
        for spec, column in specs().items():
            key, at = (algorithm.name, column), (str(spec), algorithm.name)
            if (reason := unsupported(algorithm, spec)) or at not in times:
                cell = Cell(None, "", reason or failed.get(at, "was not measured"))
            else:
                cell = Cell(times[at] / fastest[at[0]], chain(algorithm, spec, threads).words, "")
            before = found.get(key)
            if before is None or (cell.ratio or 1e9) < (before.ratio or 1e9):
                found[key] = cell
    return found


def page(found: dict[tuple[str, Column], Cell], cpu: str, threads: int) -> str:
    """The whole page, Markdown."""
    columns = list(dict.fromkeys(specs().values()))
    typed = [column for column in columns if column[0] == "type"]
    ways: dict[str, str] = {}
    missing: dict[tuple[str, str], list[str]] = defaultdict(list)
    lines = [HEAD.format(threads=f"{threads} threads", cpu=cpu, slowest=SLOWEST)]
    lines += _table(found, columns[: -len(typed)], ways, missing)
    lines += ["", f"## Types of elements, of `{TYPED}`", "", *_table(found, typed, ways, missing)]
    lines += ["", "## The ways", "", *(f"* {letter}: {words}" for words, letter in ways.items())]
    lines += ["", "## Why cells are empty", ""]
    lines += [f"* `{name}`, {', '.join(places)}: {reason}" for (name, reason), places in missing.items()]
    return "\n".join(lines) + "\n"


def _table(
    found: dict[tuple[str, Column], Cell], columns: Sequence[Column], ways: dict[str, str],
    missing: dict[tuple[str, str], list[str]],
) -> list[str]:  # fmt: skip
    """Lines of a table; gives letters to new ``ways``, and notes why cells are ``missing``."""
    heads = {column: column[1] if column[0] == "type" else " ".join(column) for column in columns}
    lines = [f"| algorithm | {' | '.join(heads.values())} |", f"|---|{'---:|' * len(columns)}"]
    for name in dict.fromkeys(name for name, _ in found):
        texts = []
        for column, head in heads.items():
            cell = found[name, column]
            if cell.ratio is None or cell.ratio > SLOWEST:
                texts.append("")
                much = cell.reason or f"{cell.ratio:.3g} times as long as the fastest"
                missing[name, much].append(head)
                continue
            figure = f"{cell.ratio:.2g}" if cell.ratio < 10 else f"{cell.ratio:.0f}"
            letter = f" {ways.setdefault(cell.words, _letter(len(ways)))}" if cell.words else ""
            texts.append(f"{figure}{letter}" if cell.words else f"**{figure}**")
        lines.append(f"| `{name}` | {' | '.join(texts)} |")
    return lines


def _letter(k: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_letter(k // 26 - 1) if k >= 26 else "") + chr(97 + k % 26)


def measured(algorithms: Sequence[Algorithm], threads: int) -> list[Record]:
    """One launch of everything, checked."""
    named = tuple(a.name for a in algorithms)
    settings = Settings(launches=1, named=named, budget=BUDGET, slow_s=SLOW_S)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store:
        return Runner(settings, store).run(cases_of(specs(), algorithms, [threads], settings)).records


def main() -> int:
    from algos.engine.threads import checked_threads
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
