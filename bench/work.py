"""Work to be measured, as data: layers, suites of them, sweeps over sizes and
kernels, and the tables in ``workloads/``.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

from algos.dtypes import COMPLEX_TYPES, FLOAT_TYPES, INTEGER_TYPES
from algos.grammar import DIRECTIONS
from algos.spec import ConvSpec
from bench.cases import Settings
from bench.csv_file import layer_spec
from bench.timing import Budget

PICTURE = "1x1x64x64,1x1x3x3,p1"
WORKLOADS = Path(__file__).parent / "workloads"
# In every type: a picture under a kernel, a layer, a filter of audio
TYPED = {
    "picture": "1x1x256x256,1x1x7x7,p3", "layer": "1x32x28x28,32x32x3x3,p1", "fir": "1x1x16384,1x1x127,p63",
}  # fmt: skip
MIXED_TYPES = ("int8>int32", "uint8>int32", "int16>int64", "uint8*int8>int32,zp128:0", "bfloat16>float32")
FOLLOWED = ("bias,relu", "bias,silu")  # a layer in these types, with what follows it
FOLLOWED_TYPES = ("float32", "float16", "bfloat16")
TRAINED, BATCHES = ("vgg16", "resnet50_v1_5", "timm_mobilenetv2_100", "unet_paper"), (1, 8)


@dataclass(frozen=True)
class Layer:
    """A spec by its name in the suite, and how often it occurs there.

    Attributes
    ----------
    name : str
    spec : ConvSpec
    count : int
    network : str
        Whose layer it is, where the suite has those of several.
    """

    name: str
    spec: ConvSpec
    count: int = 1
    network: str = ""


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
        return sum(
            layer.spec.macs * layer.count for layers in self.networks.values() for layer in layers
        )

    @property
    def networks(self) -> dict[str, list[Layer]]:
        """Its layers at batch 1 by their network, which is the suite itself unless they name one."""
        found: dict[str, dict[Layer, None]] = {}
        for layer in self.layers:
            one = replace(layer, spec=layer.spec.with_(batch=1))
            found.setdefault(layer.network or self.name, {})[one] = None
        return {name: list(layers) for name, layers in found.items()}


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
    """A table of layers, each row with its source, and with its network where there are several; a name that
    ends in ``*n`` occurs n times.

    A transposed layer is the input's gradient of the convolution that its spec names.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    layers = [
        Layer(name, ConvSpec.parse(row["spec"]) if "spec" in row else layer_spec(row), n,
              row.get("network", ""))
        for row in rows for name, n in [_occurrences(row["layer"])]
    ]  # fmt: skip
    count = sum(layer.count for layer in layers)
    about = f"{count} convolution{'s' * (count != 1)}"
    if transposed := sum(layer.count for layer in layers if layer.spec.direction == "input_gradient"):
        about += f", {'all' if transposed == count else transposed} transposed"
    if named := list(dict.fromkeys(layer.network for layer in layers if layer.network)):
        about += f", of {', '.join(named)}"
    about += f", batch {', '.join(dict.fromkeys(str(layer.spec.batch) for layer in layers))}"
    sources = dict.fromkeys(row["source"] for row in rows)
    return Suite(path.stem, about, "; ".join(sources), lambda: list(layers))


def _occurrences(layer: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*)\*([0-9]+)", layer)
    return (match[1], int(match[2])) if match else (layer, 1)


@cache
def training() -> Suite:
    """Forward and both gradients of the distinct layers of ``TRAINED``, direction by direction."""
    return Suite(
        "training",
        f"forward and both gradients of every distinct layer of {', '.join(TRAINED)}, "
        f"batch {', '.join(map(str, BATCHES))}",
        "; ".join(dict.fromkeys(tables()[name].source for name in TRAINED)),
        lambda: [
            layer
            for name, batch, direction in product(TRAINED, BATCHES, DIRECTIONS)
            for layer in _trained(name, batch, direction)
        ],
    )


@cache
def types() -> Suite:
    """The problems of ``TYPED`` in every type, and layers with what follows them."""
    options = (*FLOAT_TYPES, *COMPLEX_TYPES, *INTEGER_TYPES, *MIXED_TYPES)
    followed = (f"{dtype},{after}" for dtype, after in product(FOLLOWED_TYPES, FOLLOWED))
    wanted = [*product(TYPED, options), *(("layer", option) for option in followed)]
    return Suite(
        "types",
        f"a {', a '.join(TYPED)} in each of {len(options)} types, and layers with bias and activation",
        "ours",
        lambda: [
            Layer(f"{name} {option}", ConvSpec.parse(f"{TYPED[name]},{option}")) for name, option in wanted
        ],
        Settings(budget=Budget(turn_s=0.006, rounds=24), slow_s=0.3),
    )


def _trained(table: str, batch: int, direction: str) -> list[Layer]:
    layers = tables()[table].layers
    counts: Counter[ConvSpec] = Counter()
    for layer in layers:
        counts[layer.spec] += layer.count
    names = {layer.spec: layer.name for layer in reversed(layers)}
    network = table if direction == "forward" else f"{table} {direction.replace('_', ' ')}"
    return [
        Layer(names[spec], spec.with_(batch=batch).directed(direction), count, network)
        for spec, count in counts.items()
    ]


def networks(of: Collection[str] | None = None) -> list[tuple[str, list[tuple[str, str, int]]]]:
    """Those of ``tables`` and ``training``, or of the suites ``of`` these names, as reports want them: name,
    and layer, spec and count of each row.
    """
    found: dict[str, list[tuple[str, str, int]]] = {}
    for suite in (*tables().values(), training()):
        for name, layers in suite.networks.items() if of is None or suite.name in of else ():
            found.setdefault(name, [(layer.name, str(layer.spec), layer.count) for layer in layers])
    return list(found.items())
