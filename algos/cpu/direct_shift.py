"""One multiply-add of whole arrays per tap: y += w[tap] * x shifted by the tap.

Single channels and depthwise layers multiply the shifted view into scratch and add; with channels, the
shifted patch (C/groups, pixels) is copied and multiplied by that tap's (O/groups, C/groups) matrix. Taps are
clipped against the border instead of padding a copy. Cost: 2 * O * C/groups * taps operations for each output
pixel, 2 NumPy calls for each tap and block (3 with channels). Blocks of ``block_bytes`` keep scratch and sums
in the cache: 4096x4096 with 3x3 took 62 ms so, 136 ms in whole-picture passes. Workspace: one block of
products, and of patches with channels, and a copy of the weights. Accuracy: componentwise. NaN and infinity
spoil only the outputs whose window holds them. The weights' gradient multiplies, tap by tap, the gradient by
what that tap read. Forward and weight gradient, 1-D to 3-D, float32 and float64, every stride, dilation,
padding and number of groups; one thread, BLAS aside.

Source: Vasudevan, Anderson and Gregg, "Parallel multi channel convolution using general matrix
multiplication", arXiv:1704.04428 (there the shifts come after the products). Equivalent:
``torch.nn.functional.conv2d``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product as product_of
from typing import Any, ClassVar

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.engine.epilogue import in_blocks
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
    support: ClassVar[Support | None] = Support(ndim=(1, 2, 3), directions=("forward", "weight_gradient"),
                                              epilogues=True)  # fmt: skip

    def _block(self, spec: ConvSpec) -> tuple[int, int]:
        """Groups and first-axis outputs computed at a time."""
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        row = (
            (outputs + (inputs if inputs > 1 else 0))
            * math.prod(spec.output_size[1:])
            * spec.in_dtype.itemsize
        )
        rows = max(1, min(spec.output_size[0], self.block_bytes // row))
        return max(1, min(spec.groups, self.block_bytes // (row * rows))), rows

    def _scratch(self, spec: ConvSpec) -> tuple[int, int]:
        """Elements of products and of patches."""
        groups, rows = self._block(spec)
        pixels = groups * rows * math.prod(spec.output_size[1:])
        inputs = spec.in_channels // spec.groups
        return pixels * (spec.out_channels // spec.groups), pixels * inputs if inputs > 1 else 0

    def _gradient_step(self, spec: ConvSpec) -> int:
        """First-axis outputs whose input and gradient, of all channels, are copied at a time."""
        row = (
            (spec.in_channels + spec.out_channels) * math.prod(spec.output_size[1:]) * spec.in_dtype.itemsize
        )
        return max(1, min(spec.output_size[0], self.block_bytes // row))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        if spec.direction == "weight_gradient":
            pixels = self._gradient_step(spec) * math.prod(spec.output_size[1:])
            channels = spec.in_channels + spec.out_channels
            products = 2 * math.prod(spec.weight_shape[:2])  # of a tap, and what is added to them
            sums = math.prod(spec.weight_shape)
            return (pixels * channels + products + sums) * spec.in_dtype.itemsize
        products, patches = self._scratch(spec)
        buffers = 2 * min(products, np.getbufsize())  # NumPy's own, for sums over views
        return (products + patches + buffers + math.prod(spec.weight_shape)) * spec.in_dtype.itemsize

    def prepare(
        self, spec: ConvSpec, weights: np.ndarray | None, threads: int = 1, bias: np.ndarray | None = None
    ) -> Callable[..., np.ndarray]:
        if weights is None:
            return self._weight_gradient(spec)
        groups = spec.groups
        inputs, outputs = spec.in_channels // groups, spec.out_channels // groups
        # (taps, groups, outputs, inputs), so that every tap's matrices are contiguous
        taps = np.moveaxis(weights.reshape(groups, outputs, inputs, -1), -1, 0).copy()
        products, patches = (np.empty(count, spec.in_dtype) for count in self._scratch(spec))
        group_step, row_step = self._block(spec)
        reaches = [[reach(spec, axis, tap) for tap in range(k)] for axis, k in enumerate(spec.kernel)]
        finish, inner = in_blocks(spec, bias), math.prod(spec.output_size[1:])

        def add_tap(
            x: np.ndarray, y: np.ndarray, tap: tuple[int, ...], w: np.ndarray, row0: int, row1: int
        ) -> None:
            """x: (g, i, *size); y: (g, o, *outputs); w: (g, o, i); outputs
            whose first index is in [row0, row1).
            """
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
            for n, g, row in product_of(
                range(spec.batch), range(0, groups, group_step), range(0, spec.output_size[0], row_step)
            ):
                part = slice(g, g + group_step)
                grouped_y[n, part, :, row : row + row_step] = 0
                for index, tap in enumerate(product_of(*map(range, spec.kernel))):
                    add_tap(
                        grouped_x[n, part], grouped_y[n, part], tap, taps[index, part], row, row + row_step
                    )
                if finish is not None:
                    channels = outputs * (min(groups, g + group_step) - g)
                    rows = min(spec.output_size[0], row + row_step) - row
                    finish(y, n, g * outputs, channels, row * inner, rows * inner)
            return y

        return run

    def _weight_gradient(self, spec: ConvSpec) -> Callable[..., np.ndarray]:
        """For each tap the product of the gradient and what that tap read, over blocks of rows."""
        groups, inputs, outputs = (
            spec.groups,
            spec.in_channels // spec.groups,
            spec.out_channels // spec.groups,
        )
        step, rest = self._gradient_step(spec), math.prod(spec.output_size[1:])
        patch = np.empty(groups * inputs * step * rest, spec.in_dtype)
        given = np.empty(groups * outputs * step * rest, spec.in_dtype)
        sums = np.empty((math.prod(spec.kernel), groups, outputs, inputs), spec.in_dtype)
        product = np.empty(sums.shape[1:], spec.in_dtype)
        reaches = [[reach(spec, axis, tap) for tap in range(k)] for axis, k in enumerate(spec.kernel)]

        def copied(view: np.ndarray, scratch: np.ndarray) -> np.ndarray:
            """view: (channels, *pixels) -> (g, channels / g, pixels), contiguous."""
            block = scratch[: view.size].reshape(view.shape)
            np.copyto(block, view)
            return block.reshape(groups, len(view) // groups, -1)

        def run(x: np.ndarray, grad: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            dw = np.empty(spec.weight_shape, spec.in_dtype) if out is None else out
            sums[...] = 0
            for n, row in product_of(range(spec.batch), range(0, spec.output_size[0], step)):
                for index, tap in enumerate(product_of(*map(range, spec.kernel))):
                    ranges = [reaches[axis][t] for axis, t in enumerate(tap)]
                    ranges[0] = max(ranges[0][0], row), min(ranges[0][1], row + step)
                    if any(first >= last for first, last in ranges):
                        continue
                    reads: Any = (
                        n,
                        slice(None),
                        *(read_slice(spec, axis, t, *ranges[axis]) for axis, t in enumerate(tap)),
                    )
                    writes: Any = (n, slice(None), *(slice(*r) for r in ranges))
                    block, wanted = copied(x[reads], patch), copied(grad[writes], given)
                    np.matmul(wanted, block.swapaxes(1, 2), out=product)
                    np.add(sums[index], product, out=sums[index])
            np.copyto(dw.reshape(groups, outputs, inputs, -1), np.moveaxis(sums, 0, -1))  # [tap][g][o][i]
            return dw

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        if spec.direction == "weight_gradient":
            taps, pixels = math.prod(spec.kernel), spec.batch * math.prod(spec.output_size)
            blocks = spec.batch * -(-spec.output_size[0] // self._gradient_step(spec))
            speed = 5e10 * 4 / spec.in_dtype.itemsize
            copied = taps * pixels * (spec.in_channels + spec.out_channels)
            operations = spec.flops + copied * speed / ELEMENTS_PER_S
            return Cost(
                operations, spec.min_bytes, calls=blocks * taps * 8, flops_per_s=speed, parallel=False
            )
        group_step, row_step = self._block(spec)
        blocks = spec.batch * -(-spec.groups // group_step) * -(-spec.output_size[0] // row_step)
        taps, pixels = math.prod(spec.kernel), spec.batch * math.prod(spec.output_size)
        dense = spec.in_channels > spec.groups
        # By passes over scratch
        touched = taps * pixels * (spec.out_channels + (spec.in_channels if dense else 0))
        speed = 7e10 * 4 / spec.in_dtype.itemsize
        operations = (spec.flops if dense else 0) + touched * speed / ELEMENTS_PER_S
        return Cost(
            operations,
            spec.min_bytes,
            calls=blocks * taps * (6 if dense else 4),
            flops_per_s=speed,
            parallel=False,
        )


ALGORITHMS = [DirectShift()]
