"""What to run: suites, specs, CSV files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path

from algos.contract import Algorithm
from algos.grammar import meant, shown
from algos.spec import ConvSpec, SpecError
from bench import versus
from bench.cases import Settings
from bench.csv_file import read_csv
from bench.timing import Budget
from bench.work import PICTURE, Layer, Suite, pictures, sweep, tables, training, types

# One of each kind: large and strided, four depths of 3x3, pointwise, many groups, depthwise, a row of taps,
# 5x5.
GPU_LAYERS = (
    ("resnet50_v1_5", "conv1"), ("vgg16", "conv2_2"), ("resnet50_v1_5", "res2a_branch2b"),
    ("resnet50_v1_5", "res3b_branch2b"), ("resnet50_v1_5", "res4b_branch2b"),
    ("resnet50_v1_5", "res5b_branch2b"), ("resnet50_v1_5", "res4b_branch2a"),
    ("timm_resnext50_32x4d", "layer2.1.conv2"), ("mobilenet_v1_dw", "conv2_1/dw"),
    ("mobilenet_v1_dw", "conv5_1/dw"), ("timm_inception_v3", "Mixed_6b.branch7x7_2.conv"),
    ("alexnet_owt", "conv2"),
)  # fmt: skip


@cache
def suites() -> dict[str, Suite]:
    """All suites by name."""
    found = [
        Suite(
            "quick",
            "a small sweep of pictures, in a minute or two",
            "ours",
            lambda: pictures((64, 128, 256), (3, 7, 15)),
            Settings(budget=Budget(turn_s=0.006, rounds=24), slow_s=0.08),
        ),
        Suite(
            "images",
            "pictures of 256 to 2048 pixels a side, kernels of 3 to 63",
            "ours",
            lambda: pictures((256, 512, 1024, 2048), (3, 5, 7, 9, 15, 31, 63)),
        ),
        Suite(
            "gpu",
            "for a machine with a GPU: pictures up to 4096 pixels a side, network layers at batch 1 and 32",
            f"ours; layers of {', '.join(dict.fromkeys(table for table, _ in GPU_LAYERS))}",
            _gpu,
            Settings(budget=Budget(case_s=0.3), slow_s=2.0),
            "cuda",
        ),
    ]
    return {suite.name: suite for suite in (*found, types(), versus.suite(), training(), *tables().values())}


def _gpu() -> list[Layer]:
    """Pictures, some with the promise of rank 1, and ``GPU_LAYERS``."""
    found = pictures((256, 512, 1024, 2048, 4096), (3, 7, 15, 31))
    for size, kernel in product((1024, 4096), (7, 31)):
        (spec,) = sweep([(size,)], [(kernel,)])
        found.append(Layer(str(spec.with_(rank=1)), spec.with_(rank=1)))
    for batch, (table, name) in product((1, 32), GPU_LAYERS):
        (layer,) = (layer for layer in tables()[table].layers if layer.name == name)
        found.append(Layer(f"{table} {name}", layer.spec.with_(batch=batch)))
    return found


def resolve(targets: Sequence[str], batch: int | None = None) -> tuple[list[ConvSpec], Settings]:
    """The specs that the targets name, in order and once each, at ``batch`` if given, and how to measure
    them.

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
            specs.append(_parsed(target, among=len(targets)))
        else:
            advice = meant(
                target,
                suites(),
                f"see convbench suites, or write a spec like {PICTURE} or the name of a CSV file",
            )
            raise ValueError(f"{target!r} is no suite: {advice}")
    alone = suites()[targets[0]].settings if len(targets) == 1 and targets[0] in suites() else None
    if batch is not None:
        specs = [spec.with_(batch=batch) for spec in specs]
    return list(dict.fromkeys(specs)), alone or Settings()


def _parsed(text: str, among: int) -> ConvSpec:
    """The spec of that text, which an error names where there are others."""
    try:
        return ConvSpec.parse(text)
    except SpecError as error:
        if among == 1:
            raise
        raise SpecError(f"{shown(text)}: {error}") from None


def suited(targets: Sequence[str], algorithms: Sequence[Algorithm]) -> list[Algorithm]:
    """Those that the targets are meant for: the ones on a device where every target is a suite for it, else
    all.

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
