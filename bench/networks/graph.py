"""A network as data: nodes in the order in which they run, what shapes their results have, what they cost.

A node reads results by name; ``INPUT`` is what the network is given. Weights are arrays by the names that
``torch.nn`` modules of the same name give them: ``conv1.weight``, ``bn1.running_mean``, ``fc.bias``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from algos.grammar import ACTIVATIONS, meant, per_axis, times
from algos.spec import ConvSpec

INPUT = "input"
CONVOLUTIONS = ("conv", "transposed")
WEIGHTED = (*CONVOLUTIONS, "dense")
OPERATIONS = (
    *WEIGHTED, "batch_norm", "activation", "max_pool", "average_pool", "global_average", "add", "concat",
)  # fmt: skip
NORMS = ("weight", "bias", "running_mean", "running_var")

Shape = tuple[int, ...]
Pair = int | tuple[int, int]


class NetworkError(ValueError):
    """What is wrong with a network, its weights or its input, in one line that says what to change."""


@dataclass(frozen=True)
class Node:
    """One layer.

    Attributes
    ----------
    name : str
        Of its result.
    op : str
        One of ``OPERATIONS``.
    inputs : tuple of str
        Names of results, or ``INPUT``.
    out_channels : int
        Of a convolution or a dense layer.
    kernel, stride, padding, dilation, groups
        Of convolutions and pools, as in torch; ``stride`` of a transposed convolution is by how much it
        enlarges.
    ceil : bool
        Whether a pool's last window may hang over.
    bias : bool
        Whether it has one.
    activation : str
        What follows it: none, relu, relu6, sigmoid or silu.
    eps : float
        Of a batch normalisation.
    weights : str
        The name its weights have, its own where left out; nodes that name the same share them.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    out_channels: int = 0
    kernel: Pair = 1
    stride: Pair = 1
    padding: Pair = 0
    dilation: Pair = 1
    groups: int = 1
    ceil: bool = False
    bias: bool = True
    activation: str = "none"
    eps: float = 1e-5
    weights: str = ""

    @property
    def key(self) -> str:
        """The name of its weights."""
        return self.weights or self.name


@dataclass(frozen=True)
class Network:
    """Nodes in the order in which they run; the last one's result is the network's.

    Attributes
    ----------
    name : str
    shape : (C, H, W)
        Of one image.
    nodes : tuple of Node

    Raises
    ------
    NetworkError
        For a node that reads what is not there, or cannot compute it.
    """

    name: str
    shape: Shape
    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        known = {INPUT}
        for node in self.nodes:
            if node.op not in OPERATIONS:
                raise NetworkError(f"{node.name}: {node.op!r} is none, {meant(node.op, OPERATIONS, '')}")
            if node.activation not in ACTIVATIONS:
                raise NetworkError(f"{node.name}: unknown activation {node.activation!r}: use one of "
                                   f"{', '.join(ACTIVATIONS)}")  # fmt: skip
            if missing := [name for name in node.inputs if name not in known]:
                raise NetworkError(f"{node.name} reads {missing[0]}, which no node before it makes")
            if node.name in known:
                raise NetworkError(f"two nodes are named {node.name}: names must differ")
            known.add(node.name)
        if not self.nodes:
            raise NetworkError(f"{self.name} has no nodes: add a layer")
        self.shapes(1)

    def shapes(self, batch: int) -> dict[str, Shape]:
        """Of every result, for so many images."""
        return dict(_shapes(self, batch))

    @cached_property
    def output(self) -> str:
        return self.nodes[-1].name

    @cached_property
    def readers(self) -> dict[str, list[Node]]:
        """Who reads each result."""
        found: dict[str, list[Node]] = {name: [] for name in (INPUT, *(node.name for node in self.nodes))}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return found

    def spec(self, node: Node, batch: int) -> ConvSpec:
        """The problem of a convolution, with what follows it; a transposed one alone."""
        x, y = self.shapes(batch)[node.inputs[0]], self.shapes(batch)[node.name]
        return _spec(node, x, y)

    def weight_shapes(self) -> dict[str, Shape]:
        """Of every array that the network needs."""
        found: dict[str, Shape] = {}
        shapes = self.shapes(1)
        for node in self.nodes:
            x = shapes[node.inputs[0]]
            if node.op == "batch_norm":
                found |= {f"{node.key}.{name}": (x[1],) for name in NORMS}
            elif node.op in WEIGHTED:
                dense = (node.out_channels, math.prod(x[1:]))
                found[f"{node.key}.weight"] = (
                    dense if node.op == "dense" else self.spec(node, 1).weight_shape
                )
                if node.bias:
                    found[f"{node.key}.bias"] = (node.out_channels,)
        return found

    def parameters(self, node: Node) -> int:
        """Numbers that training would change."""
        x = self.shapes(1)[node.inputs[0]]
        if node.op == "batch_norm":
            return 2 * x[1]
        if node.op not in WEIGHTED:
            return 0
        reads = math.prod(x[1:]) if node.op == "dense" else math.prod(self.spec(node, 1).weight_shape)
        return reads * (node.out_channels if node.op == "dense" else 1) + node.out_channels * node.bias

    def macs(self, node: Node, batch: int = 1) -> int:
        """Multiply-adds of a convolution or a dense layer."""
        if node.op in CONVOLUTIONS:
            return self.spec(node, batch).macs
        x = self.shapes(batch)[node.inputs[0]]
        return math.prod(x) * node.out_channels if node.op == "dense" else 0


@lru_cache(maxsize=64)
def _shapes(network: Network, batch: int) -> Mapping[str, Shape]:
    found: dict[str, Shape] = {INPUT: (batch, *network.shape)}
    for node in network.nodes:
        inputs = [found[name] for name in node.inputs]
        try:
            found[node.name] = _result(node, inputs)
        except NetworkError:
            raise
        except ValueError as error:
            raise NetworkError(f"{node.name}: {error}") from None
    return found


def _result(node: Node, inputs: Sequence[Shape]) -> Shape:
    x = inputs[0]
    if node.op in ("add", "concat"):
        return _joined(node, inputs)
    if node.op in ("batch_norm", "activation"):
        return x
    if node.op == "dense":
        return x[0], node.out_channels
    if len(x) != 4:
        raise NetworkError(f"{node.name} reads vectors: {node.op} is of pictures")
    if node.op == "global_average":
        return *x[:2], 1, 1
    if node.op == "conv":
        return _spec(node, x, ()).output_shape
    if node.op == "transposed":
        axes = zip(x[2:], _pair(node.kernel), _pair(node.stride), _pair(node.padding),
                   _pair(node.dilation), strict=True)  # fmt: skip
        return x[0], node.out_channels, *((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in axes)
    return *x[:2], *_pooled(node, x[2:])


def _joined(node: Node, inputs: Sequence[Shape]) -> Shape:
    x, *others = inputs
    same = (lambda a: a) if node.op == "add" else (lambda a: (a[0], *a[2:]))
    if any(same(other) != same(x) for other in others):
        shown = ", ".join(map(times, inputs))
        raise NetworkError(f"{node.name} cannot {node.op} shapes {shown}: make them alike")
    return x if node.op == "add" else (x[0], sum(a[1] for a in inputs), *x[2:])


def _pooled(node: Node, size: Shape) -> Shape:
    """As torch counts windows: one that would begin in the padding behind is left out."""
    found = []
    for n, k, s, p, d in zip(size, *map(_pair, (node.kernel, node.stride, node.padding, node.dilation)),
                             strict=True):  # fmt: skip
        span = n + 2 * p - d * (k - 1) - 1
        if span < 0:
            window = d * (k - 1) + 1
            raise NetworkError(f"{node.name}: a window of {window} exceeds {n + 2 * p}: use a smaller one")
        count = (-(-span // s) if node.ceil else span // s) + 1
        found.append(count - (node.ceil and (count - 1) * s >= n + p))
    return tuple(found)


def _pair(value: Any) -> tuple[int, ...]:
    return per_axis("size", value, 2)


@lru_cache(maxsize=4096)
def _spec(node: Node, x: Shape, y: Shape) -> ConvSpec:
    rest: dict[str, Any] = {
        "kernel": _pair(node.kernel), "stride": _pair(node.stride), "dilation": _pair(node.dilation),
        "padding": tuple((p, p) for p in _pair(node.padding)), "groups": node.groups,
    }  # fmt: skip
    if node.op == "conv":
        return ConvSpec(x[0], x[1], x[2:], node.out_channels, **rest, bias=node.bias,
                        activation=node.activation)  # fmt: skip
    return ConvSpec(x[0], node.out_channels, y[2:], x[1], **rest, direction="input_gradient")
