"""Legal specs at the ends of what a text can say: huge strides, dilations,
borders, kernels, channel counts and sizes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from algos import ConvSpec
from algos.spec import SpecError

LARGEST = 1 << 45  # of one number; sizes multiply, and an array ends at 2**62 bytes


def number(rng: random.Random, largest: int) -> int:
    """From 1 to ``largest``, every order of magnitude as likely; powers of two and their neighbours are
    favoured.
    """
    value = 2 ** rng.uniform(0, largest.bit_length() - 1)
    if rng.random() < 0.3:
        value = 2 ** round(rng.uniform(0, largest.bit_length() - 1)) + rng.choice((-1, 0, 1))
    return max(1, min(largest, int(value)))


def extreme_specs(
    seed: int, count: int, largest: int = LARGEST, elements: int | None = None
) -> Iterator[ConvSpec]:
    """``count`` legal forward specs; with ``elements``, no operand or result has
    more, and no output sums over more.
    """
    rng = random.Random(seed)
    while count:
        ndim = rng.choice((1, 2, 2, 2, 3))
        size = tuple(number(rng, largest) for _ in range(ndim))
        kernel = tuple(number(rng, rng.choice((9, 9, 300, largest))) for _ in range(ndim))
        dilation = tuple(number(rng, rng.choice((1, 1, 5, largest))) for _ in range(ndim))
        stride = tuple(number(rng, rng.choice((1, 3, largest, 10**30))) for _ in range(ndim))
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        padding = []
        for n, e in zip(size, extent, strict=True):
            need = max(0, e - n + rng.choice((0, 1, 7, 100)))
            before = rng.choice((0, need, need // 2, min(need, number(rng, largest))))
            padding.append((before, max(0, need - before)))
        groups, each, filters = (number(rng, rng.choice((1, 1, 16, 5000))) for _ in range(3))
        rank = rng.choice((None, 1, 2)) if ndim == 2 and min(kernel) > 1 else None
        try:
            spec = ConvSpec(number(rng, rng.choice((1, 4, 1000))), groups * each, size, groups * filters,
                            kernel, stride, tuple(padding), dilation, groups, rank,
                            rng.choice(("float32", "float64")))  # fmt: skip
        except SpecError:
            continue
        if elements is None or (max(_elements(spec)) <= elements and spec.macs <= 100 * elements):
            count -= 1
            yield spec


def _elements(spec: ConvSpec) -> list[int]:
    from math import prod

    padded = spec.batch * spec.in_channels * prod(spec.padded_size)
    return [padded, prod(spec.weight_shape), prod(spec.output_shape)]
