"""A network's result by its definition, in float64: the oracle's convolutions, and the rest in NumPy's words.

It shares no code with what it judges, nor with the folding: normalisation and activations are passes of their
own.
"""

from __future__ import annotations

import math

import numpy as np

from bench.networks.graph import CONVOLUTIONS, INPUT, Network, Node
from bench.networks.weights import Weights
from bench.oracle import oracle


def reference(network: Network, weights: Weights, x: np.ndarray) -> np.ndarray:
    """The network's result for images x, in float64."""
    found = {INPUT: np.asarray(x, np.float64)}
    for node in network.nodes:
        result = _result(network, node, weights, [found[name] for name in node.inputs])
        found[node.name] = _activated(result, node.activation)
        for name in set(node.inputs):
            if network.readers[name][-1].name == node.name:
                del found[name]
    return found[network.output]


def _result(network: Network, node: Node, weights: Weights, inputs: list[np.ndarray]) -> np.ndarray:
    x = inputs[0]
    if node.op == "add":
        return np.sum(inputs, axis=0)
    if node.op == "concat":
        return np.concatenate(inputs, axis=1)
    if node.op == "activation":
        return x
    if node.op == "global_average":
        return x.mean(axis=(2, 3), keepdims=True)
    if node.op in ("max_pool", "average_pool"):
        return _pooled(network, node, x)
    mine = {part: np.asarray(weights[f"{node.key}.{part}"], np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
            if f"{node.key}.{part}" in weights and (node.bias or part != "bias")}  # fmt: skip
    columns = {part: array.reshape(-1, *(1,) * (x.ndim - 2)) for part, array in mine.items()}
    if node.op == "batch_norm":
        scaled = (x - columns["running_mean"]) / np.sqrt(columns["running_var"] + node.eps)
        return scaled * columns["weight"] + columns["bias"]
    if node.op == "dense":
        return x.reshape(len(x), -1) @ mine["weight"].T + mine.get("bias", 0)
    assert node.op in CONVOLUTIONS
    spec = network.spec(node, len(x)).with_(bias=False, activation="none", dtype="float64")
    forward = node.op == "conv"
    y = oracle(spec, x if forward else None, mine["weight"], None if forward else x)
    return y + columns.get("bias", 0)


def _pooled(network: Network, node: Node, x: np.ndarray) -> np.ndarray:
    pairs = [(v, v) if isinstance(v, int) else v
             for v in (node.kernel, node.stride, node.padding, node.dilation)]  # fmt: skip
    kernel, stride, padding, dilation = pairs
    most = node.op == "max_pool"
    y = np.empty(network.shapes(len(x))[node.name])
    for i, j in np.ndindex(*y.shape[2:]):
        rows, columns = (
            [at for tap in range(k) if 0 <= (at := o * s - p + tap * d) < n]
            for o, k, s, p, d, n in zip((i, j), kernel, stride, padding, dilation, x.shape[2:], strict=True)
        )
        window = x[:, :, rows][:, :, :, columns]
        # As torch: what the padding holds counts, what hangs over beyond it does not
        counted = math.prod(
            min(o * s - p + k, n + p) - (o * s - p)
            for o, k, s, p, n in zip((i, j), kernel, stride, padding, x.shape[2:], strict=True)
        )
        y[:, :, i, j] = window.max(axis=(2, 3)) if most else window.sum(axis=(2, 3)) / counted
    return y


def _activated(y: np.ndarray, kind: str) -> np.ndarray:
    if kind in ("sigmoid", "silu"):
        gate = 0.5 * (1 + np.tanh(y / 2))
        return gate if kind == "sigmoid" else y * gate
    return y if kind == "none" else np.clip(y, 0, 6 if kind == "relu6" else None)
