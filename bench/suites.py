"""What to run: suites (named lists of specs), specs, CSV files, and sweeps over sizes and kernels."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from algos.contract import Algorithm
from algos.grammar import meant
from algos.spec import ConvSpec
from bench.cases import Settings
from bench.csv_file import layer_spec, read_csv
from bench.timing import Budget

if TYPE_CHECKING:
    from bench.versus import Work

PICTURE = "1x1x64x64,1x1x3x3,p1"
WORKLOADS = Path(__file__).parent / "workloads"

# One of each kind: large and strided, four depths of 3x3, pointwise, many groups, depthwise, a row of taps, 5x5.
GPU_LAYERS = (
    ("resnet50_v1_5", "conv1"), ("vgg16", "conv2_2"), ("resnet50_v1_5", "res2a_branch2b"),
    ("resnet50_v1_5", "res3b_branch2b"), ("resnet50_v1_5", "res4b_branch2b"), ("resnet50_v1_5", "res5b_branch2b"),
    ("resnet50_v1_5", "res4b_branch2a"), ("timm_resnext50_32x4d", "layer2.1.conv2"), ("mobilenet_v1_dw", "conv2_1/dw"),
    ("mobilenet_v1_dw", "conv5_1/dw"), ("timm_inception_v3", "Mixed_6b.branch7x7_2.conv"), ("alexnet_owt", "conv2"),
)  # fmt: skip


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


def sweep(sizes: Sequence[tuple[int, ...]], kernels: Sequence[tuple[int, ...]], template: str = PICTURE) -> list[ConvSpec]:
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
def suites() -> dict[str, Suite]:
    """All suites by name."""
    found = [
        Suite(
            "quick", "a small sweep of pictures, in a minute or two", "ours",
            lambda: pictures((64, 128, 256), (3, 7, 15)),
            Settings(budget=Budget(turn_s=0.006, rounds=24), slow_s=0.08),
        ),
        Suite(
            "images", "pictures of 256 to 2048 pixels a side, kernels of 3 to 63", "ours",
            lambda: pictures((256, 512, 1024, 2048), (3, 5, 7, 9, 15, 31, 63)),
        ),
        Suite(
            "gpu", "for a machine with a GPU: pictures up to 4096 pixels a side, network layers at batch 1 and 32",
            f"ours; layers of {', '.join(dict.fromkeys(table for table, _ in GPU_LAYERS))}", _gpu,
            Settings(budget=Budget(case_s=0.3), slow_s=2.0), "cuda",
        ),
    ]
    found.append(
        Suite(
            "versus", "against PyTorch, OpenCV and SciPy: a sample of every kind of work, see docs/speed.md",
            "layers of the other suites, pictures ours", lambda: [layer for work in _versus() for layer in work.layers],
            Settings(budget=Budget(case_s=0.5), slow_s=1.0, concerns=_concerned), "cpu",
        )
    )
    found += [_workload(path) for path in sorted(WORKLOADS.glob("*.csv"))]
    return {suite.name: suite for suite in found}


def _versus() -> Sequence[Work]:
    from bench.versus import works

    return works()


def _concerned(spec: ConvSpec, algorithm: Algorithm) -> bool:
    from bench.versus import concerned

    return concerned(spec, algorithm)


def _gpu() -> list[Layer]:
    """Pictures, some with the promise of rank 1, and ``GPU_LAYERS``."""
    found = pictures((256, 512, 1024, 2048, 4096), (3, 7, 15, 31))
    for size, kernel in product((1024, 4096), (7, 31)):
        (spec,) = sweep([(size,)], [(kernel,)])
        found.append(Layer(str(spec.with_(rank=1)), spec.with_(rank=1)))
    for batch, (table, name) in product((1, 32), GPU_LAYERS):
        (layer,) = (layer for layer in suites()[table].layers if layer.name == name)
        found.append(Layer(f"{table} {name}", layer.spec.with_(batch=batch)))
    return found


def _workload(path: Path) -> Suite:
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
    """The suites that come from tables of layers, as reports want them: name, and layer, spec and count of each row."""
    return [
        (name, [(layer.name, str(layer.spec), layer.count) for layer in suite.layers])
        for name, suite in suites().items()
        if (WORKLOADS / f"{name}.csv").is_file()
    ]


def resolve(targets: Sequence[str], batch: int | None = None) -> tuple[list[ConvSpec], Settings]:
    """The specs that the targets name, in order and once each, at ``batch`` if given, and how to measure them.

    Raises
    ------
    ValueError
        For a target that is no suite, no spec and no CSV file.
    """
    specs: list[ConvSpec] = []
    for target in targets:
        if target in suites():
            specs += [layer.spec for layer in suites()[target].layers]
        elif target.lower().endswith(".csv") or ("," not in target and os.path.isfile(target)):
            specs += read_csv(Path(target))
        elif "," in target:
            specs.append(ConvSpec.parse(target))
        else:
            advice = meant(target, suites(), f"see convbench suites, or write a spec like {PICTURE} or the name of a CSV file")
            raise ValueError(f"{target!r} is no suite: {advice}")
    alone = suites()[targets[0]].settings if len(targets) == 1 and targets[0] in suites() else None
    if batch is not None:
        specs = [spec.with_(batch=batch) for spec in specs]
    return list(dict.fromkeys(specs)), alone or Settings()


def suited(targets: Sequence[str], algorithms: Sequence[Algorithm]) -> list[Algorithm]:
    """Those that the targets are meant for: the ones on a device where every target is a suite for it, else all.

    Raises
    ------
    ValueError
        With the reasons, when none of them is available on this machine.
    """
    devices = {suites()[target].device if target in suites() else None for target in targets}
    if len(devices) != 1 or None in devices:
        return list(algorithms)
    (device,) = devices
    found = [algorithm for algorithm in algorithms if algorithm.device == device]
    missing: dict[str, list[str]] = {}
    for algorithm in found:
        if reason := algorithm.unavailable():
            missing.setdefault(reason, []).append(algorithm.name)
    if sum(map(len, missing.values())) == len(found):
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in missing.items())
        raise ValueError(f"{', '.join(targets)} needs an algorithm on {device} and none runs here: {reasons}")
    return found
