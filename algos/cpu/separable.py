"""A kernel that is a sum of few outer products: one pass along the rows and one down the columns for each product.

Numba. The factors come from a singular value decomposition in double precision, in ``prepare``. Both passes run over one
block of rows while it is in the cache; the pass along the rows is never written to memory (fused against two passes over
the whole picture: 9.5 ms for 13.3 on 2048x2048 with 15x15, one thread).

Cost: 2 * rank * (KH + KW) operations for each output pixel and pair of channels, and rows of halo for each block.
Workspace: the factors, and for each thread a patch of the input, one pass of it and the sums, about half of the L2 cache each.
Accuracy: lowrank: rounding of both passes, and what the factors leave over. One NaN or infinity spoils the outputs
whose window holds it.
Forward, 1 to min(KH, KW) ranks that the spec promises (``plan()`` looks for a rank in up to 4 kernels), float32 and float64,
every stride, dilation, padding and number of groups; with many channels every pair is its own filter: no gain over GEMM.

Source: Treitel and Shanks, "The design of multistage separable planar filters", IEEE Trans. Geoscience Electronics, 1971.
Equivalent: ``scipy.signal.sepfir2d``, ``cv2.sepFilter2D`` for rank 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from algos.contract import Algorithm, Cost, forward_float
from algos.engine.blocks import FLAGS, LANES, Blocks, accumulate, axes, crop, locate, pack, shared_by
from algos.engine.jit import compile_for, compiled
from algos.engine.threads import share, split
from algos.machine import caches
from algos.spec import ConvSpec


def factors(weights: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """(o, i, rank, KH) columns and (o, i, rank, KW) rows whose outer products sum to ``weights``, equally scaled."""
    u, s, v = np.linalg.svd(weights.astype(np.float64), full_matrices=False)
    root = np.sqrt(s[..., :rank, None])
    down = np.swapaxes(u[..., :rank], -1, -2) * root
    along = v[..., :rank, :] * root
    return np.ascontiguousarray(down, weights.dtype), np.ascontiguousarray(along, weights.dtype)


@compiled(**FLAGS)
def separable_blocks(x, down, along, y, down_offsets, along_offsets, table, scratch, passed, sums, first, last):
    """x: (n, c, h, w); down: (o, i, rank, kh); along: (o, i, rank, kw); y: (n, o, oh, ow); items [first, last)."""
    pitch, plane, channel, inputs = table[2], table[3], table[4], table[7]
    row_phases, col_phases = table[17], table[18]
    for item in range(first, last):
        n, group, o0, o1, row0, rows, col0, cols = locate(item, table, y)
        for i in range(inputs):
            pack(x, n, group * inputs + i, scratch, i * channel, table, row0, rows, col0, cols)
        along_span = (rows + table[15] - 1) * pitch + cols
        for o in range(o0, o1):
            for i in range(inputs):
                for r in range(down.shape[2]):
                    for a in range(row_phases):
                        base = i * channel + a * col_phases * plane
                        accumulate(passed[a * plane :], along_span, scratch, base, along_offsets, along[o, i, r], True)
                    start = i == 0 and r == 0
                    accumulate(sums, (rows - 1) * pitch + cols, passed, 0, down_offsets, down[o, i, r], start)
            crop(sums, pitch, y, n, o, row0, rows, col0, cols)


@dataclass(frozen=True)
class Separable(Algorithm):
    """Two 1-D passes for each rank; see the module.

    Attributes
    ----------
    block_bytes : int
        Size of one thread's patch of the input; 0 is half of the L2 cache.
    """

    name: str = "separable"
    family: str = "separable"
    runtime: str = "numba"
    accuracy: str = "lowrank"
    block_bytes: int = 0

    def unsupported(self, spec: ConvSpec) -> str | None:
        if reason := forward_float(spec):
            return reason
        return None if spec.rank is not None else "the spec promises no rank: add rank1 if each kernel is an outer product"

    def _blocks(self, spec: ConvSpec, threads: int) -> Blocks:
        patch_cost = (spec.kernel[1] + 3) / spec.kernel[0]
        return Blocks.of(spec, threads, self.block_bytes or caches()["L2"] // 2, patch_cost)

    def _operations(self, spec: ConvSpec) -> float:
        """Both passes, the halo of the first included."""
        row, _ = axes(spec)
        halo = len(row.phases) * (1 + row.reach / self._blocks(spec, 1).rows)
        pairs = spec.batch * spec.out_channels * spec.in_channels // spec.groups * (spec.rank or 0)
        return 2.0 * pairs * math.prod(spec.output_size) * (spec.kernel[0] + spec.kernel[1] * halo)

    def _threads(self, spec: ConvSpec, threads: int) -> int:
        return shared_by(threads, self._operations(spec), spec)

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        threads = self._threads(spec, threads)
        blocks = self._blocks(spec, threads)
        row, _ = axes(spec)
        each = blocks.scratch + len(row.phases) * blocks.plane + LANES + blocks.span
        kept = spec.out_channels * spec.in_channels // spec.groups * (spec.rank or 0) * sum(spec.kernel)
        return (min(threads, blocks.items) * each + kept) * spec.in_dtype.itemsize

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        assert spec.rank is not None
        threads = self._threads(spec, threads)
        blocks = self._blocks(spec, threads)
        down, along = factors(weights, spec.rank)
        row, _ = axes(spec)
        cuts, table = split(blocks.items, threads), blocks.table
        scratch = np.zeros((len(cuts), blocks.scratch), spec.in_dtype)
        passed = np.zeros((len(cuts), len(row.phases) * blocks.plane + LANES), spec.in_dtype)
        sums = np.zeros((len(cuts), blocks.span), spec.in_dtype)
        along_offsets = blocks.offsets[0].copy()  # tap (0, 0) is phase 0, shift 0: these move along the row only
        shifts = map(row.phase_and_shift, range(row.kernel))
        down_offsets = np.array([phase * blocks.plane + shift * blocks.pitch for phase, shift in shifts], np.int64)
        image = np.empty((1, 1, 1, 1), spec.in_dtype)
        compile_for(separable_blocks, image, down, along, image, down_offsets, along_offsets, table, scratch[0], passed[0],
                    sums[0], 0, 1)  # fmt: skip

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out

            def job(part: int, _: int) -> None:
                separable_blocks(x, down, along, y, down_offsets, along_offsets, table, scratch[part], passed[part],
                                 sums[part], *cuts[part])  # fmt: skip

            share(job, len(cuts), len(cuts))
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        threads = self._threads(spec, threads)
        speed = 3.2e10 * 4 / spec.in_dtype.itemsize
        return Cost(self._operations(spec), spec.min_bytes, calls=4, flops_per_s=speed, parallel=threads > 1)


ALGORITHMS = [Separable()]
