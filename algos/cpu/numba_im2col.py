"""im2col with compiled copies: threads fill columns for blocks of output rows and multiply them, without
leaving the cache.

The same matrix product as ``im2col_gemm``; the difference is who copies. Compiled loops know their strides,
write a zero border instead of padding the image first, and leave the interpreter out, which pays where blocks
are small.

Cost: 2 * O * C/groups * taps operations for each output pixel in BLAS, and C * taps elements copied for each
pixel. Workspace: the columns of a block for each thread, ``block_bytes`` each; no padded image. Accuracy:
componentwise. NaN and infinity spoil only the outputs whose window holds them. Forward, 2-D, float32 and
float64, every stride, dilation, padding and number of groups.

Source: Chellapilla, Puri and Simard, "High performance convolutional neural networks for document
processing", 2006. Equivalent: ``w @ torch.nn.functional.unfold(x, kernel)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.engine.blas import blas_limit
from algos.engine.jit import compile_for, compiled
from algos.engine.threads import share, split
from algos.spec import ConvSpec

SHARED_FLOPS = 2e7  # below, one thread needs less than a few hand-overs


@compiled(error_model="numpy")
def fill(x, n, c0, geometry, first, rows, columns):
    """columns (channels, KH, KW, >= rows, OW): what each tap reads for the output
    rows [first, first + rows) of image n.
    """
    stride_h, stride_w, dilation_h, dilation_w, top, left = geometry
    height, width, wide = x.shape[2], x.shape[3], columns.shape[4]
    for c in range(columns.shape[0]):
        for i in range(columns.shape[1]):
            for j in range(columns.shape[2]):
                shift = j * dilation_w - left
                for r in range(rows):
                    ih = (first + r) * stride_h + i * dilation_h - top
                    inside = 0 <= ih < height
                    low = min(wide, max(0, -(shift // stride_w))) if inside else wide
                    high = max(low, min(wide, (width - 1 - shift) // stride_w + 1)) if inside else wide
                    for k in range(low):
                        columns[c, i, j, r, k] = 0
                    if stride_w == 1:
                        for k in range(low, high):
                            columns[c, i, j, r, k] = x[n, c0 + c, ih, k + shift]
                    else:
                        for k in range(low, high):
                            columns[c, i, j, r, k] = x[n, c0 + c, ih, k * stride_w + shift]
                    for k in range(high, wide):
                        columns[c, i, j, r, k] = 0


@dataclass(frozen=True)
class NumbaIm2col(Algorithm):
    """Compiled columns, then BLAS; see the module.

    Attributes
    ----------
    block_bytes : int
        Size of one thread's columns, at least one row of outputs.
    """

    name: str = "numba_im2col"
    family: str = "gemm"
    runtime: str = "numba"
    block_bytes: int = 1 << 20
    support: ClassVar[Support | None] = Support()

    def _rows(self, spec: ConvSpec, threads: int) -> int:
        """Output rows in a block: as many as fit, and equally many blocks for every thread."""
        row = spec.reduction_length * spec.output_size[1] * spec.in_dtype.itemsize
        blocks = -(-spec.output_size[0] // max(1, self.block_bytes // row))
        return -(-spec.output_size[0] // min(spec.output_size[0], -(-blocks // threads) * threads))

    def _threads(self, spec: ConvSpec, threads: int) -> int:
        if spec.flops < SHARED_FLOPS:
            return 1
        return min(threads, spec.batch * spec.groups * -(-spec.output_size[0] // self._rows(spec, threads)))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        threads = self._threads(spec, threads)
        return (
            threads
            * spec.reduction_length
            * self._rows(spec, threads)
            * spec.output_size[1]
            * spec.in_dtype.itemsize
        )

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        threads = self._threads(spec, threads)
        groups, inputs, outputs = (
            spec.groups,
            spec.in_channels // spec.groups,
            spec.out_channels // spec.groups,
        )
        height, wide = spec.output_size
        rows = self._rows(spec, threads)
        blocks = -(-height // rows)
        parts = split(spec.batch * groups * blocks, threads)
        w = weights.reshape(groups, outputs, -1)
        columns = np.empty((len(parts), inputs, *spec.kernel, rows, wide), spec.in_dtype)
        geometry = (*spec.stride, *spec.dilation, spec.padding[0][0], spec.padding[1][0])
        compile_for(fill, np.empty((1, 1, 1, 1), spec.in_dtype), 0, 0, geometry, 0, 1, columns[0])

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            flat = y.reshape(spec.batch, groups, outputs, height * wide)

            def job(part: int, _: int) -> None:
                own = columns[part]
                matrix = own.reshape(w.shape[2], rows * wide)
                for item in range(*parts[part]):
                    rest, block = divmod(item, blocks)
                    n, group = divmod(rest, groups)
                    first = block * rows
                    count = min(rows, height - first)
                    fill(x, n, group * inputs, geometry, first, count, own)
                    result = flat[n, group, :, first * wide : (first + count) * wide]
                    np.matmul(w[group], matrix[:, : count * wide], out=result)

            with blas_limit(1):
                share(job, len(parts), len(parts))
            return y

        return run

    def compile_s(self, spec: ConvSpec) -> float:
        return 0.5

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        wide = spec.out_channels // spec.groups >= 16
        speed = (2.6e10 if wide else 1.3e10) * 4 / spec.in_dtype.itemsize
        copied = spec.macs // (spec.out_channels // spec.groups) * spec.in_dtype.itemsize
        items = spec.batch * spec.groups * -(-spec.output_size[0] // self._rows(spec, threads))
        return Cost(spec.flops + copied * speed / 1e10, spec.min_bytes, 8 + 4 * items, speed,
                    self._threads(spec, threads) > 1)  # fmt: skip


ALGORITHMS = [NumbaIm2col()]
