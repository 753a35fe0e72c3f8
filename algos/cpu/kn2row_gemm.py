"""kn2row: one matrix product with every tap's weights at once, then each tap's product is added where it
belongs.

A 1x1 convolution is a matrix product without im2col; a K x K one is K^2 of them, shifted and added. The
product of a block of input rows holds O * taps values per pixel instead of the C * taps of im2col's columns:
less memory where there are more input than output channels, and the input is read in place.

Cost: 2 * O * C/groups * taps operations for each input pixel in BLAS, and as many additions as O * taps per
pixel. Workspace: the products of a block of rows, ``block_bytes`` of it; no column matrix. Accuracy:
componentwise. NaN and infinity spoil only the outputs whose window holds them. Forward, 1-D to 3-D, stride 1
(with a stride most products would be thrown away), float32 and float64, every dilation, padding and number of
groups.

Source: Anderson, Vasudevan, Keane and Gregg, "Low-memory GEMM-based convolution algorithms for deep neural
networks", arXiv:1709.03395. Equivalent: ``sum(torch.nn.functional.conv2d(shift(x, i, j), w[:, :, i, j, None,
None]))``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.engine.epilogue import in_blocks
from algos.engine.windows import reach, read_slice
from algos.spec import ConvSpec


@dataclass(frozen=True)
class Kn2rowGemm(Algorithm):
    """Products before shifts; see the module.

    Attributes
    ----------
    block_bytes : int
        Size of the products of one block, at least one row (or plane) of the input.
    """

    name: str = "kn2row_gemm"
    family: str = "gemm"
    block_bytes: int = 4 << 20
    support: ClassVar[Support | None] = Support(ndim=(1, 2, 3), weights_as_operands=True, epilogues=True)

    def beyond(self, spec: ConvSpec) -> str | None:
        return (
            "computes every position: with a stride most products would be thrown away"
            if set(spec.stride) != {1}
            else None
        )

    def _step(self, spec: ConvSpec) -> int:
        """First-axis input positions in a block."""
        row = spec.out_channels * math.prod(spec.kernel) * math.prod(spec.size[1:]) * spec.in_dtype.itemsize
        return max(1, min(spec.size[0], self.block_bytes // row))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        each = spec.out_channels * self._step(spec) * math.prod(spec.size[1:])  # products of one tap
        # NumPy's own, for sums over views
        products, buffers = each * math.prod(spec.kernel), 3 * min(each, np.getbufsize())
        # Of one tap they lie right already
        weights = math.prod(spec.weight_shape) if math.prod(spec.kernel) > 1 else 0
        return (products + buffers + weights) * spec.in_dtype.itemsize

    def prepare(
        self, spec: ConvSpec, weights: np.ndarray | None, threads: int = 1, bias: np.ndarray | None = None
    ) -> Callable[..., np.ndarray]:
        groups, outputs, taps = spec.groups, spec.out_channels // spec.groups, math.prod(spec.kernel)
        step, inner = self._step(spec), math.prod(spec.size[1:])
        buffer = np.empty(spec.out_channels * taps * step * inner, spec.in_dtype)
        finish, line = in_blocks(spec, bias), math.prod(spec.output_size[1:])
        # Outputs so far before the end of a block's inputs read nothing behind it
        late = spec.kernel_extent[0] - 1 - spec.padding[0][0]
        ranges = [[reach(spec, axis, t) for t in range(count)] for axis, count in enumerate(spec.kernel)]

        def packed(weights: np.ndarray) -> np.ndarray:
            """(groups, taps * outputs, inputs): all taps of an output channel's row stand in one matrix."""
            by_tap = weights.reshape(groups, outputs, -1, taps).transpose(0, 3, 1, 2)
            return np.ascontiguousarray(by_tap).reshape(groups, taps * outputs, -1)

        def multiplied(w: np.ndarray, x: np.ndarray, out: np.ndarray | None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            y[...] = 0
            for n, (image, result) in enumerate(zip(x, y.reshape(spec.batch, groups, outputs,
                                                                 *spec.output_size), strict=True)):
                flat, done = image.reshape(groups, w.shape[2], -1), 0
                for first in range(0, spec.size[0], step):
                    last = min(spec.size[0], first + step)
                    count = (last - first) * inner
                    block = buffer[: spec.out_channels * taps * count].reshape(groups, -1, count)
                    np.matmul(w, flat[..., first * inner : last * inner], out=block)
                    products = block.reshape(groups, taps, outputs, last - first, *spec.size[1:])
                    for index, tap in enumerate(itertools.product(*map(range, spec.kernel))):
                        inside = [ranges[axis][t] for axis, t in enumerate(tap)]
                        add(result, products[:, index], tap, inside, first, last)
                    if finish is not None:
                        end = last - late if last < spec.size[0] else spec.output_size[0]
                        if (end := min(end, spec.output_size[0])) > done:
                            finish(y, n, 0, spec.out_channels, done * line, (end - done) * line)
                            done = end
            return y

        def add(result: np.ndarray, product: np.ndarray, tap: tuple[int, ...], inside: list, first: int,
                last: int) -> None:
            """Add one tap's products of the input positions [first, last) to the outputs that they belong to.
            """
            shift = tap[0] * spec.dilation[0] - spec.padding[0][0]  # output o reads o + shift
            low, high = max(inside[0][0], first - shift), min(inside[0][1], last - shift)
            if low >= high or any(a >= b for a, b in inside[1:]):
                return
            rest = tuple(slice(a, b) for a, b in inside[1:])
            reads = tuple(read_slice(spec, axis, tap[axis], *inside[axis]) for axis in range(1, spec.ndim))
            result[:, :, low:high, *rest] += product[:, :, low + shift - first : high + shift - first, *reads]

        if weights is None:
            return lambda x, w, out=None: multiplied(packed(w), x, out)
        kept = packed(weights)
        return lambda x, out=None: multiplied(kept, x, out)

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        taps, pixels = math.prod(spec.kernel), spec.batch * math.prod(spec.size)
        added = 3.0 * taps * spec.out_channels * pixels * spec.in_dtype.itemsize
        operations = 2.0 * taps * spec.out_channels * (spec.in_channels // spec.groups) * pixels
        speed = 6e10 * 4 / spec.in_dtype.itemsize
        blocks = spec.batch * -(-spec.size[0] // self._step(spec))
        return Cost(operations + added * speed / 1.2e10, spec.min_bytes, 4 + blocks * (2 + 5 * taps), speed,
                    parallel=False)  # fmt: skip


ALGORITHMS = [Kn2rowGemm()]
