"""How large the error of a result may become, relative to the largest output, before anything is computed.

On seeded normals, as ``convbench check`` draws them, errors stay below these numbers: they are the bounds of
docs/accuracy.md with expected magnitudes in place of the operands'. Of other data they say what is typical,
and nothing where products cancel as a whole: there the largest output itself is small.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from algos.contract import Algorithm
from algos.dtypes import BFLOAT16, accumulator, limits, real, whole
from algos.lower.chain import Chain
from algos.spec import ConvSpec

RARE = 1e-6  # how often the largest of so many outputs is smaller than it is counted with
LEFT_OVER = 72  # roundings of a tap by which weights may miss their rank


def error_bound(way: Chain) -> float:
    """Of a way to solve a problem: the largest error over the largest output; 0 for whole numbers."""
    spec = way.spec
    if whole(spec.out_dtype):
        return 0.0
    unit = float(limits(np.dtype(accumulator(real(spec.out_dtype)))).eps) / 2
    once = float(limits(real(spec.out_dtype)).eps) / 2
    parts = 2.0 if spec.in_dtype.kind == "c" else 1.0
    return parts * unit * _CLASSES[way.algorithm.accuracy](way, parts) + once


def terms(spec: ConvSpec) -> int:
    """Products that one result sums, in the spec's direction."""
    taps = math.prod(spec.kernel)
    return {
        "forward": spec.in_channels // spec.groups * taps,
        "input_gradient": spec.out_channels // spec.groups * taps,
        "weight_gradient": max(1, spec.batch) * math.prod(spec.output_size),
    }[spec.direction]


@lru_cache(maxsize=1 << 10)
def largest(count: int) -> float:
    """Of so many normal numbers the largest magnitude, which it reaches but for one time in a million."""
    return max(1e-3, NormalDist().inv_cdf((1 + RARE ** (1 / max(count, 1))) / 2))


def _size(way: Chain) -> float:
    """The largest output, in units of the root of its terms."""
    return largest(math.prod(way.spec.result_shape))


def _componentwise(way: Chain, parts: float) -> float:
    """8 sqrt(K) Q, which checks enforce: Q is the root of K, at most twice."""
    return 16 * math.sqrt(parts * terms(way.spec)) / _size(way)


def _rounded(way: Chain, parts: float) -> float:
    """As before, and of each product two factors that are off by 0.4 roundings on average: 4 sqrt(K) of those
    roundings are seven standard deviations of a sum.
    """
    coarser = float(limits(BFLOAT16).eps) / float(limits(np.dtype(np.float32)).eps)
    return _componentwise(way, parts) + 4 * coarser / _size(way)


def _lowrank(way: Chain, parts: float) -> float:
    spec = way.spec
    rank = spec.rank or min(spec.kernel)
    steps = sum(spec.kernel) + 2 + parts * rank * terms(spec) / math.prod(spec.kernel)
    return (steps + LEFT_OVER) * math.sqrt(parts * terms(spec)) / _size(way)


def _normwise(way: Chain, parts: float) -> float:
    spec = way.spec
    points = math.prod(p + e - 1 for p, e in zip(spec.padded_size, spec.kernel_extent, strict=True))
    levels = math.sqrt(max(1.0, math.log2(points)))
    outputs = max(2, math.prod(spec.result_shape))
    channels = max(1.0, terms(spec) / math.prod(spec.kernel))
    spread = levels * math.sqrt(2 * math.log(outputs)) / _size(way)
    return 16 * parts * (spread + levels + math.sqrt(channels))


def _winograd(way: Chain, parts: float) -> float:
    """4 sqrt(q) S: the matrices on absolute values, which are 0.8 on average, of each leaf."""
    worst = 0.0
    for leaf in dict.fromkeys(way.leaves):
        amplified, sizes = _amplified(way.algorithm, leaf)
        channels = parts * leaf.in_channels // leaf.groups
        summed = channels * math.prod(leaf.kernel[:-2])
        worst = max(worst, 4 * math.sqrt(sizes + summed + 2) * channels * amplified)
    return len(way.leaves) * worst / (math.sqrt(terms(way.spec)) * _size(way))


@lru_cache(maxsize=1 << 10)
def _amplified(algorithm: Algorithm, leaf: ConvSpec) -> tuple[float, int]:
    """By how much the transforms of a tile may enlarge a product of averages; the lengths of their sums."""
    product, sizes = 1.0, 0
    for output, kernel, tile in algorithm.transforms(leaf):  # type: ignore[attr-defined]
        a, g, b = (np.abs(np.array(matrix, float)) for matrix in (output, kernel, tile))
        product *= float((a @ (g.sum(1) * b.sum(1))).max())
        sizes += 2 * g.shape[0] + g.shape[1]
    return product, sizes


_CLASSES = {
    "componentwise": _componentwise, "rounded": _rounded, "lowrank": _lowrank, "normwise": _normwise,
    "winograd": _winograd,
}  # fmt: skip
