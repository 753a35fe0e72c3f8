"""A trained network with fewer passes over memory.

Normalisation becomes part of the weights before it, and an activation part of the layer that it follows.

With s = weight / sqrt(var + eps), a normalised convolution is that of w * s with the bias (b - mean) * s +
beta, computed in float64 and rounded once. A normalisation with no layer of its own before it becomes a
depthwise convolution of 1x1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bench.networks.graph import WEIGHTED, Network, Node
from bench.networks.weights import DTYPE, Weights

FOLLOWED = (*WEIGHTED, "add")  # can have an activation


@dataclass(frozen=True)
class Folded:
    """A network without normalisation, and what its layers multiply by.

    Attributes
    ----------
    network : Network
        Every layer with weights has a bias.
    weights : dict
        Weights and bias by the keys of nodes.
    """

    network: Network
    weights: dict[str, tuple[np.ndarray, np.ndarray]]


def folded(network: Network, weights: Weights) -> Folded:
    """``network`` with ``weights``, as it is run."""
    nodes: dict[str, Node] = {}
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    now: dict[str, str] = {}  # whose result has become whose
    for original in network.nodes:
        node = replace(original, inputs=tuple(now.get(name, name) for name in original.inputs))
        # What it could be made part of: a layer whose result nobody else reads
        before = nodes.get(node.inputs[0])
        alone = len(network.readers[original.inputs[0]]) == 1
        free = before is not None and alone and before.activation == "none"
        if node.op in WEIGHTED:
            nodes[node.name] = node = replace(node, bias=True, weights=node.key)
            found.setdefault(node.key, _own(node, weights))
        elif node.op == "batch_norm" and before is not None and free and before.op in WEIGHTED:
            key = f"{before.key} * {node.key}"
            found.setdefault(key, _normalised(before, found[before.key], node, weights))
            nodes[before.name] = replace(before, weights=key)
            now[node.name] = before.name
        elif node.op == "batch_norm":
            nodes[node.name], found[node.key] = _scaling(node, weights)
        elif node.op == "activation" and before is not None and free and before.op in FOLLOWED:
            nodes[before.name] = replace(before, activation=node.activation)
            now[node.name] = before.name
        else:
            nodes[node.name] = node
    used = {node.key for node in nodes.values()}
    made = Network(network.name, network.shape, tuple(nodes.values()))
    return Folded(made, {key: pair for key, pair in found.items() if key in used})


def _own(node: Node, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    w, bias = weights[f"{node.key}.weight"], weights.get(f"{node.key}.bias")
    return w, np.zeros(node.out_channels, DTYPE) if bias is None else bias


def _scale(norm: Node, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """What a normalisation multiplies by, and what it adds."""
    weight, bias, mean, variance = (
        weights[f"{norm.key}.{name}"].astype(np.float64)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(variance + norm.eps)
    return scale, bias - mean * scale


def _normalised(
    layer: Node, own: tuple[np.ndarray, np.ndarray], norm: Node, weights: Weights
) -> tuple[np.ndarray, np.ndarray]:
    (w, bias), (scale, added) = own, _scale(norm, weights)
    if layer.op == "transposed":  # w: (I, O / groups, KH, KW)
        inputs, per_group = w.shape[:2]
        each = scale.reshape(layer.groups, 1, per_group).repeat(inputs // layer.groups, 1)
        each = each.reshape(inputs, per_group, 1, 1)
    else:
        each = scale.reshape(-1, *(1,) * (w.ndim - 1))
    return (w * each).astype(DTYPE), (bias * scale + added).astype(DTYPE)


def _scaling(norm: Node, weights: Weights) -> tuple[Node, tuple[np.ndarray, np.ndarray]]:
    scale, added = _scale(norm, weights)
    channels = len(scale)
    node = replace(norm, op="conv", out_channels=channels, groups=channels, weights=norm.key)
    return node, (scale.astype(DTYPE).reshape(-1, 1, 1, 1), added.astype(DTYPE))
