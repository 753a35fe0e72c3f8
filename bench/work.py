"""Work to be measured, as data: layers, suites of them, sweeps over sizes and
kernels, and the tables in ``workloads/``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from algos.spec import ConvSpec
from bench.cases import Settings
from bench.csv_file import layer_spec

PICTURE = "1x1x64x64,1x1x3x3,p1"
WORKLOADS = Path(__file__).parent / "workloads"


@dataclass(frozen=True)
class Layer:
    """A spec by its name in the suite, and how often it occurs there."""

    name: str
    spec: ConvSpec
    count: int = 1


@dataclass(frozen=True)
class Suite:
    """A named list of specs.

    Attributes
    ----------
    name, about, source : str
        What it is, and where its figures come from.
    make : callable
        Returns the layers.
    settings : Settings or None
        How it is measured when it is run alone; None for the default.
    device : str or None
        Whose algorithms it is meant for, unless others are named; None for all.
    """

    name: str
    about: str
    source: str
    make: Callable[[], list[Layer]]
    settings: Settings | None = None
    device: str | None = None

    @property
    def layers(self) -> list[Layer]:
        return self.make()

    @property
    def macs(self) -> int:
        """Multiply-adds per image: of all layers at batch 1, each as often as it occurs."""
        return sum(layer.spec.with_(batch=1).macs * layer.count for layer in self.layers)


def sweep(
    sizes: Sequence[tuple[int, ...]], kernels: Sequence[tuple[int, ...]], template: str = PICTURE
) -> list[ConvSpec]:
    """``template`` at every size and kernel; padding that keeps the template's size keeps every size."""
    base = ConvSpec.parse(template)
    same = base.padding == base.with_(padding="same").padding
    specs = []
    for size in sizes:
        for kernel in kernels:
            wide = size * base.ndim if len(size) == 1 else size
            taps = kernel * base.ndim if len(kernel) == 1 else kernel
            rank = base.rank if base.rank is None else min(base.rank, *taps)
            padding = "same" if same else base.padding
            specs.append(base.with_(size=wide, kernel=taps, padding=padding, rank=rank))
    return specs


def pictures(sizes: Sequence[int], kernels: Sequence[int], template: str = PICTURE) -> list[Layer]:
    """A ``sweep`` over squares, as layers named by their specs."""
    specs = sweep([(size,) for size in sizes], [(kernel,) for kernel in kernels], template)
    return [Layer(str(spec), spec) for spec in specs]


@cache
def tables() -> dict[str, Suite]:
    """The suites that come from tables of layers, by name."""
    return {path.stem: _table(path) for path in sorted(WORKLOADS.glob("*.csv"))}


def _table(path: Path) -> Suite:
    """A table of layers, each row with its source; a name that ends in ``*n`` occurs n times."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    count = sum(_occurrences(row["layer"])[1] for row in rows)
    sources = dict.fromkeys(row["source"] for row in rows)
    batches = ", ".join(dict.fromkeys(row["N"] for row in rows))
    return Suite(
        path.stem, f"{count} convolution{'s' * (count != 1)}, batch {batches}", "; ".join(sources),
        lambda: [Layer(name, layer_spec(row), n) for row in rows for name, n in [_occurrences(row["layer"])]],
    )


def _occurrences(layer: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*)\*([0-9]+)", layer)
    return (match[1], int(match[2])) if match else (layer, 1)


def networks() -> list[tuple[str, list[tuple[str, str, int]]]]:
    """Those of ``tables`` as reports want them: name, and layer, spec and count of each row."""
    return [
        (name, [(layer.name, str(layer.spec), layer.count) for layer in suite.layers])
        for name, suite in tables().items()
    ]
