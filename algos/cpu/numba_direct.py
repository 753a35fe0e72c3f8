"""The definition, compiled: shifted multiply-adds over blocks of outputs that stay in the cache.

Numba. A block's patch of the input is packed into scratch once for all output channels of its group, zero
border included and sorted by the phases of the stride, so that every tap is a contiguous read at an offset
(``algos/engine/blocks.py``); the inner loop adds nine or eight taps for each read and write of a sum. From
naive to this, one thread, 512x512 with 3x3: the definition's loops compiled as they stand 3.5 ms; one tap at
a time over packed blocks 0.38 ms; nine taps at a time 0.20 ms (0.05 of them packing, 0.04 cropping).

Cost: 2 * O * C/groups * taps operations for each output pixel, and (pitch - columns) / columns more for
columns between rows. Workspace: for each thread a patch (half of the L2 cache) and the sums of one output
channel's block. Accuracy: componentwise. NaN and infinity spoil only the outputs whose window holds them.
Forward, 1-D and 2-D, float32 and float64, every stride, dilation, padding and number of groups.

Source: Zhang, Franchetti and Low, "High performance zero-memory overhead direct convolutions",
arXiv:1809.10170. Equivalent: ``torch.nn.functional.conv2d``; for a picture ``cv2.filter2D`` with a constant
border.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from algos.contract import Cost, Support
from algos.cpu._compiled import Compiled, Work
from algos.engine.blocks import FLAGS, Blocks, Geometry, accumulate, axes, crop, locate, pack, shared_by
from algos.engine.epilogue import after_of, finish
from algos.engine.jit import compiled, linked
from algos.engine.relay import fork
from algos.engine.tables import named, table_of
from algos.host import caches
from algos.spec import ConvSpec


@linked(**FLAGS)
def direct_blocks(x, y, w, offsets, geometry, phases, patches, all_sums, after, slot, first, last):
    """Items [first, last); x: (n, c, h, w); y: (n, o, oh, ow); w: (o, c / groups *
    taps); patches, all_sums: of each thread.
    """
    patch, sums, pitch = patches[slot], all_sums[slot], geometry.pitch
    packed = (-1, -1, -1, -1)
    for item in range(first, last):
        block = locate(item, geometry, y)
        # Parts of a block's output channels follow each other
        if packed != (block.n, block.group, block.row0, block.col0):
            for i in range(geometry.inputs):
                pack(x, i, patch, geometry, phases, block)
            packed = (block.n, block.group, block.row0, block.col0)
        for o in range(block.o0, block.o1):
            accumulate(sums, (block.rows - 1) * pitch + block.cols, patch, 0, offsets, w[o], True)
            crop(sums, pitch, y, o, block)
            finish(after, y, block.n, o, 1, block.row0 * y.shape[3] + block.col0, block.rows, block.cols)


@compiled(**FLAGS)
def all_blocks(x, y, w, offsets, table, phases, patches, sums, job):
    """Every block, shared with the helpers; ``table``: of a ``Geometry``."""
    arguments = x, y, w, offsets, named(Geometry, table), phases, patches, sums, after_of(job)
    fork(direct_blocks, arguments, job)


@dataclass(frozen=True)
class NumbaDirect(Compiled):
    """Compiled shifted multiply-adds over cache blocks; see the module.

    Attributes
    ----------
    block_bytes : int
        Size of one thread's patch of the input; 0 is half of the L2 cache.
    """

    name: str = "numba_direct"
    family: str = "direct"
    block_bytes: int = 0
    support: ClassVar[Support | None] = Support(ndim=(1, 2), epilogues=True)

    def _threads(self, spec: ConvSpec, threads: int) -> int:
        return shared_by(threads, spec.flops, spec)

    def _blocks(self, spec: ConvSpec, threads: int) -> Blocks:
        uses = math.prod(spec.kernel) * spec.out_channels // spec.groups
        return Blocks.of(spec, threads, self.block_bytes or caches()["L2"] // 2, 3 / uses)

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        threads = self._threads(spec, threads)
        blocks = self._blocks(spec, threads)
        each = (blocks.scratch + blocks.span) * spec.in_dtype.itemsize
        return min(threads, blocks.items) * each + 8 * spec.reduction_length

    def work(self, spec: ConvSpec, weights: np.ndarray, threads: int) -> Work:
        threads = self._threads(spec, threads)
        blocks = self._blocks(spec, threads)
        threads = min(threads, blocks.items)
        channels = np.arange(spec.in_channels // spec.groups)
        offsets = (channels[:, None] * blocks.channel + blocks.offsets.ravel()).ravel()
        w = weights.reshape(spec.out_channels, -1)
        scratch = np.zeros((threads, blocks.scratch), spec.in_dtype)
        sums = np.zeros((threads, blocks.span), spec.in_dtype)
        arguments = w, offsets, table_of(blocks.geometry), blocks.phases, scratch, sums
        return Work(all_blocks, arguments, blocks.items, threads, as_2d=True)

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        threads = self._threads(spec, threads)
        blocks = self._blocks(spec, 1)
        row, _ = axes(spec)
        # A pass over a block's sums takes about 100 elements' time to start, a packed or cropped row about 10
        # ns.
        passes = (1 + 100 / (blocks.rows * blocks.pitch)) * blocks.pitch / blocks.cols
        halo = 1 + row.reach / blocks.rows
        moved = math.prod(spec.input_shape) * halo + math.prod(spec.output_shape)
        lines = moved / min(blocks.cols, spec.size[-1])
        operations = spec.flops * passes + 8 * moved + 500 * lines
        return Cost(operations, spec.min_bytes, calls=4, flops_per_s=2.3e10 * 4 / spec.in_dtype.itemsize,
                    parallel=threads > 1)  # fmt: skip


ALGORITHMS = [NumbaDirect()]
