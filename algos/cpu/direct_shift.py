"""One multiply-add of whole arrays per tap: y += w[tap] * x shifted by the tap.

Single channels and depthwise layers multiply the shifted view into scratch and add; with channels, the shifted patch
(C/groups, pixels) is copied and multiplied by that tap's (O/groups, C/groups) matrix. Taps are clipped against the border
instead of padding a copy. Cost: 2 * O * C/groups * taps operations for each output pixel, 2 NumPy calls for each tap and
block (3 with channels). Blocks of ``block_bytes`` keep scratch and sums in the cache: 4096x4096 with 3x3 took 62 ms so, 136 ms
in whole-picture passes. Workspace: one block of products, and of patches with channels, and a copy of the weights.
Accuracy: componentwise. NaN and infinity spoil only the outputs whose window holds them.
Forward, 1-D to 3-D, float32 and float64, every stride, dilation, padding and number of groups; one thread, BLAS aside.

Source: Vasudevan, Anderson and Gregg, "Parallel multi channel convolution using general matrix multiplication",
arXiv:1704.04428 (there the shifts come after the products). Equivalent: ``torch.nn.functional.conv2d``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Any

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.engine.windows import reach, read_slice
from algos.spec import ConvSpec

ELEMENTS_PER_S = 1e9  # multiplied or copied, then added, in the cache; measured


@dataclass(frozen=True)
class DirectShift(Algorithm):
    """NumPy, one multiply-add per tap; see the module.

    Attributes
    ----------
    block_bytes : int
        Scratch is held to about this size, so that products are added while they are in the cache.
    """

    name: str = "direct_shift"
    family: str = "direct"
    block_bytes: int = 1 << 20
    support: ClassVar[Support | None] = Support(ndim=(1, 2, 3))

    def _block(self, spec: ConvSpec) -> tuple[int, int]:
        """Groups and first-axis outputs computed at a time."""
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        row = (outputs + (inputs if inputs > 1 else 0)) * math.prod(spec.output_size[1:]) * spec.in_dtype.itemsize
        rows = max(1, min(spec.output_size[0], self.block_bytes // row))
        return max(1, min(spec.groups, self.block_bytes // (row * rows))), rows

    def _scratch(self, spec: ConvSpec) -> tuple[int, int]:
        """Elements of products and of patches."""
        groups, rows = self._block(spec)
        pixels = groups * rows * math.prod(spec.output_size[1:])
        inputs = spec.in_channels // spec.groups
        return pixels * (spec.out_channels // spec.groups), pixels * inputs if inputs > 1 else 0

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        products, patches = self._scratch(spec)
        buffers = 2 * min(products, np.getbufsize())  # NumPy's own, for sums over views
        return (products + patches + buffers + math.prod(spec.weight_shape)) * spec.in_dtype.itemsize

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        groups, inputs, outputs = spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups
        # (taps, groups, outputs, inputs), so that every tap's matrices are contiguous
        taps = np.moveaxis(weights.reshape(groups, outputs, inputs, -1), -1, 0).copy()
        products, patches = (np.empty(count, spec.in_dtype) for count in self._scratch(spec))
        group_step, row_step = self._block(spec)
        reaches = [[reach(spec, axis, tap) for tap in range(k)] for axis, k in enumerate(spec.kernel)]

        def add_tap(x: np.ndarray, y: np.ndarray, tap: tuple[int, ...], w: np.ndarray, row0: int, row1: int) -> None:
            """x: (g, i, *size); y: (g, o, *outputs); w: (g, o, i); outputs whose first index is in [row0, row1)."""
            ranges = [reaches[axis][t] for axis, t in enumerate(tap)]
            ranges[0] = max(ranges[0][0], row0), min(ranges[0][1], row1)
            if any(first >= last for first, last in ranges):
                return
            reads: Any = (..., *(read_slice(spec, axis, t, *ranges[axis]) for axis, t in enumerate(tap)))
            writes: Any = (..., *(slice(*r) for r in ranges))
            source, target = x[reads], y[writes]
            size = source.shape[2:]
            product_shape = (len(x), outputs, *size)
            result = products[: math.prod(product_shape)].reshape(product_shape)
            if inputs == 1:
                np.multiply(source, w.reshape(*w.shape[:2], *(1,) * spec.ndim), out=result)
            else:
                patch = patches[: source.size].reshape(len(x), inputs, -1)
                np.copyto(patch.reshape(source.shape), source)
                np.matmul(w, patch, out=result.reshape(len(x), outputs, -1))
            np.add(target, result, out=target)

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            grouped_x = x.reshape(spec.batch, groups, inputs, *spec.size)
            grouped_y = y.reshape(spec.batch, groups, outputs, *spec.output_size)
            for n, g, row in product(
                range(spec.batch), range(0, groups, group_step), range(0, spec.output_size[0], row_step)
            ):
                part = slice(g, g + group_step)
                grouped_y[n, part, :, row : row + row_step] = 0
                for index, tap in enumerate(product(*map(range, spec.kernel))):
                    add_tap(grouped_x[n, part], grouped_y[n, part], tap, taps[index, part], row, row + row_step)
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        group_step, row_step = self._block(spec)
        blocks = spec.batch * -(-spec.groups // group_step) * -(-spec.output_size[0] // row_step)
        taps, pixels = math.prod(spec.kernel), spec.batch * math.prod(spec.output_size)
        dense = spec.in_channels > spec.groups
        touched = taps * pixels * (spec.out_channels + (spec.in_channels if dense else 0))  # by passes over scratch
        speed = 7e10 * 4 / spec.in_dtype.itemsize
        operations = (spec.flops if dense else 0) + touched * speed / ELEMENTS_PER_S
        return Cost(operations, spec.min_bytes, calls=blocks * taps * (6 if dense else 4), flops_per_s=speed, parallel=False)


ALGORITHMS = [DirectShift()]
