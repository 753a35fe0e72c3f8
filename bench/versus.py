"""The suite ``versus``: every kind of work on which our algorithms are set against somebody else's, and how
far ahead they are to be.

A layer may stand in several kinds of work: those of whole networks are all there, each as often as it occurs.
Everything is measured at batch 1, LeNet-5 at 64.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from algos.contract import Algorithm
from algos.lower.search import chain
from algos.registry import algorithms, get
from algos.spec import ConvSpec
from bench.cases import Settings
from bench.timing import Budget
from bench.work import Layer, Suite, networks, pictures, tables

NETWORKS = (("vgg16", 1, 1.9), ("resnet50_v1_5", 1, 1.2), ("unet_paper", 1, 1.8),
            ("xnnpack_mobilenetv2", 1, 1.0), ("lenet5_slides", 64, 1.2), ("alexnet_owt", 1, 1.2))  # fmt: skip
DEEP = ("vgg16", "resnet50_v1_5", "unet_paper")
# Beside the layers of the networks: 5x5, rows and columns of 7, 1x1 with odd channels, strides, groups, large
# kernels.
MORE_DENSE = (
    ("googlenet_v1", "inception_3a/5x5"), ("googlenet_v1", "inception_4e/5x5"), ("alexnet_caffe", "conv2"),
    ("timm_inception_v3", "Mixed_6b.branch7x7_2.conv"), ("timm_inception_v3", "Mixed_6b.branch7x7_3.conv"),
    ("timm_resnext50_32x4d", "layer1.0.conv2"), ("timm_resnext50_32x4d", "layer2.1.conv2"),
    ("timm_resnext50_32x4d", "layer3.1.conv2"),
)  # fmt: skip
MANY_CHANNELS = 64
HOPELESS = 3.0  # times the best of its side by the cost model: not measured


@dataclass(frozen=True)
class Work:
    """One row of the table.

    Attributes
    ----------
    name, baseline : str
        What is computed, and whose time is the measure, in words.
    layers : tuple of Layer
    target : float or None
        What the geometric mean of baseline time over our time is to reach, or the ratio of the sums of a
        network; None where it is only reported.
    worst : float or None
        What every single shape is to reach; 1.0 is met by what the noise cannot tell from as fast.
    rivals : tuple of str
        How the names of the baseline's algorithms begin; the best of them counts on each shape. None of them
        for the arithmetic peak of the machine, which is compared with the best of our ``direct`` family.
    summed : bool
        Whether it is a network: the times of its layers are added, each as often as it occurs.
    """

    name: str
    baseline: str
    layers: tuple[Layer, ...]
    target: float | None
    worst: float | None
    rivals: tuple[str, ...]
    summed: bool = False


def _table(name: str, batch: int = 1) -> list[Layer]:
    return [Layer(f"{name} {layer.name}", layer.spec.with_(batch=batch),
                  layer.count) for layer in tables()[name].layers]


def _distinct(layers: list[Layer]) -> tuple[Layer, ...]:
    """One of each spec, the first that has it."""
    found: dict[ConvSpec, Layer] = {}
    for layer in layers:
        found.setdefault(layer.spec, layer)
    return tuple(found.values())


@cache
def works() -> tuple[Work, ...]:
    """The rows of the table, in its order."""
    whole = {name: _table(name, batch) for name, batch, _ in NETWORKS}
    every = [layer for layers in whole.values() for layer in layers]
    every += [{layer.name: layer for layer in _table(name)}[f"{name} {wanted}"] for name,
              wanted in MORE_DENSE]
    deep = [layer for name in DEEP for layer in whole[name]
            if layer.spec.kernel == (3, 3) and layer.spec.stride == (1, 1)]  # fmt: skip
    depthwise = [layer for layer in every if layer.spec.groups == layer.spec.in_channels > 1]
    taken = {layer.spec for layer in (*deep, *depthwise)}
    dense = [layer for layer in every if layer.spec not in taken]
    wide = [layer for layer in (*deep, *dense)
            if layer.spec.groups == 1 and min(layer.spec.in_channels,
                                              layer.spec.out_channels) >= MANY_CHANNELS]  # fmt: skip
    torch, filters = ("torch_",), ("opencv_", "scipy_")
    rows = [
        Work("3x3 layers of VGG, ResNet, U-Net", "torch", _distinct(deep), 2.0, 1.0, torch),
        Work("all other dense layers", "torch", _distinct(dense), 1.0, 0.8, torch),
        Work("depthwise layers of MobileNet", "torch", _distinct(_table("mobilenet_v1_dw") + depthwise), 1.2,
             0.9, torch),
    ]
    rows += [
        Work(f"network {name}" + (f" b{batch}" if batch > 1 else ""), "torch", tuple(whole[name]), target,
             None, torch, summed=True)
        for name, batch, target in NETWORKS
    ]  # fmt: skip
    general = pictures((256, 512, 1024, 2048), (3, 5, 7, 9, 15, 31, 63))
    separable = pictures((256, 512, 1024, 2048), (3, 7, 15, 31), "1x1x64x64,1x1x3x3,p1,rank1")
    double = pictures((256, 512, 1024, 2048), (3, 9, 31), "1x1x64x64,1x1x3x3,p1,float64")
    double_separable = pictures((512, 2048), (3, 15), "1x1x64x64,1x1x3x3,p1,rank1,float64")
    return (
        *rows,
        Work("pictures, general kernels", "OpenCV, SciPy", tuple(general), 1.5, 1.0, filters),
        Work("pictures, separable kernels", "OpenCV, SciPy", tuple(separable), 1.5, 1.0, filters),
        Work("float64 pictures, general kernels", "OpenCV, SciPy", tuple(double), None, None, filters),
        Work("float64 pictures, separable kernels", "OpenCV, SciPy", tuple(double_separable), None, None,
             filters),
        Work(f"direct kernels, from {MANY_CHANNELS} channels", "measured peak", _distinct(wide), 0.85, None,
             ()),
    )  # fmt: skip


def suite() -> Suite:
    """The layers of all rows, measured where it could matter."""
    return Suite(
        "versus",
        "against PyTorch, OpenCV and SciPy: a sample of every kind of work, see docs/speed.md",
        "layers of the other suites, pictures ours",
        lambda: [layer for work in works() for layer in work.layers],
        Settings(budget=Budget(case_s=0.5), slow_s=1.0, concerns=concerned),
        "cpu",
    )


def concerned(spec: ConvSpec, algorithm: Algorithm) -> bool:
    """Whether ``algorithm`` is measured on ``spec``: ours and the rivals,
    except those that have no hope there.
    """
    if algorithm.family == "auto":
        return True
    rival = algorithm.family == "peer"
    if rival and not algorithm.name.startswith(_rivals_of(spec)):
        return False
    times = _modelled(spec, rival)
    # Against each other, however fast Winograd is
    if algorithm.family == "direct" and spec in _held_to_the_peak():
        times = {name: s for name, s in times.items() if get(name).family == "direct"}
    return times.get(algorithm.name, 0.0) <= HOPELESS * min(times.values(), default=0.0)


@cache
def _held_to_the_peak() -> frozenset[ConvSpec]:
    return frozenset(layer.spec for work in works() if not work.rivals for layer in work.layers)


def _rivals_of(spec: ConvSpec) -> tuple[str, ...]:
    return _rivals().get(spec, ("",))  # every peer on what is not in the table, like another batch


@cache
def _rivals() -> dict[ConvSpec, tuple[str, ...]]:
    found: dict[ConvSpec, tuple[str, ...]] = {}
    for work in works():
        for layer in work.layers:
            found[layer.spec] = (*found.get(layer.spec, ()), *work.rivals)
    return found


@cache
def _modelled(spec: ConvSpec, rival: bool) -> dict[str, float]:
    """Expected seconds with one thread of the rivals, or of ours; one that
    cannot say is left to its own case.
    """
    times: dict[str, float] = {}
    for algorithm in algorithms(spec):
        peer = algorithm.family == "peer" and algorithm.name.startswith(_rivals_of(spec))
        if algorithm.device == "cpu" and (peer if rival else algorithm.family not in ("peer", "auto")):
            with suppress(Exception):
                times[algorithm.name] = chain(algorithm, spec).seconds()
    return times


def wanted(
    names: Sequence[str] | None, specs: Collection[str]
) -> tuple[list[tuple[str, list[tuple[str, str, int]]]], bool]:
    """The networks that a report on these suites shows, and whether it shows the targets of ``versus``.

    Where it is not known what was asked for, that is whatever ``specs`` hold all of, at whatever batch.
    """
    if names is None:
        held = {spec.partition("x")[2] for spec in specs}
        whole = [(name, layers) for name, layers in networks()
                 if all(spec.partition("x")[2] in held for _, spec, _ in layers)]  # fmt: skip
        return whole, all(str(layer.spec) in specs for layer in suite().layers)
    against = "versus" in names
    return networks({*names, *(name for name, *_ in NETWORKS if against)}), against
