"""The definition as one reads it: for every output, the sum over channels and taps of input times weight.

Cost: 2 * O * C/groups * taps operations for each output pixel, about 0.3 us a pair in the interpreter, so
problems above ``LARGEST`` multiply-adds are refused. Workspace: a view of each plane, and what every row and
column of the result reads. Accuracy: products and sums in double precision, rounded once. NaN and infinity
spoil only the outputs whose window holds them. Forward, 1-D to 3-D, float32 and float64; every stride,
dilation, padding and number of groups.

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285.
Equivalent: ``scipy.signal.correlate(x, w, mode="valid", method="direct")``, ``torch.nn.functional.conv2d``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.spec import ConvSpec

LARGEST = 200_000  # multiply-adds: about a tenth of a second


def inside(spec: ConvSpec, axis: int, output: int) -> tuple[list[int], list[int]]:
    """The taps of one output index of one axis that do not fall on the zero border, and what they read."""
    start = output * spec.stride[axis] - spec.padding[axis][0]
    reads = [start + tap * spec.dilation[axis] for tap in range(spec.kernel[axis])]
    taps = [tap for tap, at in enumerate(reads) if 0 <= at < spec.size[axis]]
    return taps, [reads[tap] for tap in taps]


def convolve(spec: ConvSpec, x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
    """x: (n, c, *size); w: (o, c / groups, *kernel); y: (n, o, *output size), written."""
    inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    axes = [[inside(spec, axis, index) for index in range(n)] for axis, n in enumerate(spec.output_size)]
    # Python reads numbers from a memoryview faster than from an array
    images, filters = ([[memoryview(plane) for plane in planes] for planes in a] for a in (x, w))
    for at in product(*map(range, spec.output_size)):
        taps, positions = zip(*(axis[index] for axis, index in zip(axes, at, strict=True)), strict=True)
        reads = [*zip(product(*taps), product(*positions), strict=True)]  # of all axes at once
        for n, o in product(range(spec.batch), range(spec.out_channels)):
            first = o // outputs * inputs  # the group's first input channel
            total = 0.0
            for pixels, weights in zip(images[n][first : first + inputs], filters[o], strict=True):
                for tap, position in reads:
                    total += pixels[position] * weights[tap]
            y[(n, o, *at)] = total


@dataclass(frozen=True)
class DirectLoops(Algorithm):
    """Plain Python loops; see the module."""

    name: str = "direct_loops"
    family: str = "direct"
    support: ClassVar[Support | None] = Support(ndim=(1, 2, 3))

    def beyond(self, spec: ConvSpec) -> str | None:
        if spec.macs > LARGEST:
            return f"plain Python loops are refused above {LARGEST} multiply-adds, this needs {spec.macs}"
        return None

    def unwise(self, spec: ConvSpec) -> str | None:
        return self.beyond(spec)  # nor in many small problems

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        planes = spec.batch * spec.in_channels + math.prod(spec.weight_shape[:2])
        axes = sum(n * (500 + 60 * k) for n, k in zip(spec.output_size, spec.kernel, strict=True))
        return 700 * planes + axes + 200 * math.prod(spec.kernel)  # bytes of Python's objects

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        weights = weights.copy()

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            convolve(spec, x, weights, y)
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        return Cost(spec.flops, spec.min_bytes, flops_per_s=6e6, parallel=False)


ALGORITHMS = [DirectLoops()]
