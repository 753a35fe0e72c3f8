"""The definition with pixels in the vectors: a few output channels times a block of pixels stays in
registers.

Numba. Outputs leave the registers as vectors along the rows of y, where they belong, so nothing is
transposed: the best form where the reduction is short beside the outputs, in 1x1 layers and in first layers
of few channels. A 1x1 layer is a matrix product over the whole plane: blocks of pixels are copied into
panels, one vector block after the other. Other kernels read a packed patch through a table of offsets
(``algos/engine/blocks.py``), one for each tap, any stride and dilation.

Cost: the definition's operations; a row's last vector is partly empty. Workspace: the packed weights, and for
each thread a patch (half of the L2 cache) or a panel (half of the L1 cache with AVX2; of the L2 cache where
outputs are few). Accuracy: componentwise. NaN and infinity spoil only the outputs whose window holds them.
Forward, 1-D and 2-D, float32 and float64, every stride, dilation, padding and number of groups.

Source: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34, 2008.
Equivalent: ``torch.nn.functional.conv2d``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, NamedTuple

import numpy as np

from algos.contract import PLAIN_TYPES, Algorithm, Cost, Support
from algos.cpu._compiled import Compiled, Work
from algos.dtypes import BFLOAT16, BRAINS, PAIRS, QUADS
from algos.engine.blocks import Blocks, Geometry, axes, locate, pack
from algos.engine.epilogue import after_of, finish
from algos.engine.jit import compiled, linked
from algos.engine.memory import LINE, aligned
from algos.engine.relay import fork
from algos.engine.simd import address, advance, copy, lanes, move, outer_rows, prefetch
from algos.engine.tables import named, table_of
from algos.engine.target import ROWS, TAILS, VECTOR_BYTES, VECTORS
from algos.engine.threads import SHARES, busiest, worth
from algos.host import caches
from algos.spec import ConvSpec

FLAGS = {"error_model": "numpy"}
R1, R2 = TAILS
SHARED_FLOPS = 2e6
PACK_COST = 30.0, 160.0  # operations that packing an element costs, of whole runs and of every other column
STEPS = 256  # channels of a panel: 16 KiB with AVX2
FEW = 2  # blocks of outputs that do not hide the reading of a panel
PACKING = 1  # blocks of outputs whose arithmetic takes as long as packing their panel


@linked(**FLAGS)
def block_of_outputs(w, first, source, taps, k, y, plane, filters, pixels, wide, spare, more):
    """y[i * plane + p] for i < filters, at most ROWS, and p < pixels, at most a block, from step ``first`` of
    the weights on.

    ``spare`` takes what would overrun them.
    """
    step = VECTORS * wide
    if filters >= ROWS and pixels >= step:
        outer_rows(advance(w, first * ROWS), None, source, taps, k, y, plane, more, ROWS, VECTORS)
        return
    if more:
        for i in range(min(filters, ROWS)):
            copy(advance(spare, i * step), advance(y, i * plane), min(pixels, step))
    if pixels > wide:
        if filters > R1:
            outer_rows(advance(w, first * ROWS), None, source, taps, k, spare, step, more, ROWS, VECTORS)
        elif filters > R2:
            outer_rows(advance(w, first * R1), None, source, taps, k, spare, step, more, R1, VECTORS)
        else:
            outer_rows(advance(w, first * R2), None, source, taps, k, spare, step, more, R2, VECTORS)
    elif filters > R1:
        outer_rows(advance(w, first * ROWS), None, source, taps, k, spare, step, more, ROWS, 1)
    elif filters > R2:
        outer_rows(advance(w, first * R1), None, source, taps, k, spare, step, more, R1, 1)
    else:
        outer_rows(advance(w, first * R2), None, source, taps, k, spare, step, more, R2, 1)
    for i in range(min(filters, ROWS)):
        copy(advance(y, i * plane), advance(spare, i * step), min(pixels, step))


@linked(**FLAGS)
def pack_panel(x, start, plane, rows, count, panel):
    """panel[b, r] = x.ravel()[start + r * plane :][b * block :] for r < rows and the blocks of ``count``
    pixels.

    The last block has rows of one vector if its pixels fit, and anything behind them.
    """
    wide = VECTOR_BYTES // x.itemsize
    block = VECTORS * wide
    whole = count // block
    if whole == 1:  # without the loop inside, which costs as much as the copy
        for r in range(rows):
            move(address(panel, r * block), address(x, start + r * plane), VECTORS)
    else:
        for r in range(rows):
            for b in range(whole):
                move(
                    address(panel, (b * rows + r) * block), address(x, start + r * plane + b * block), VECTORS
                )
    rest, to, start = count - whole * block, whole * rows * block, start + whole * block
    length = block if rest > wide else wide
    safe = max(0, min(rows, (x.size - length - start) // plane + 1))  # rows that may be read as whole vectors
    if rest > wide:
        for r in range(safe):
            move(address(panel, to + r * length), address(x, start + r * plane), VECTORS)
    elif rest > 0:
        for r in range(safe):
            move(address(panel, to + r * length), address(x, start + r * plane), 1)
    if rest > 0:
        for r in range(safe, rows):
            copy(address(panel, to + r * length), address(x, start + r * plane), rest)


class Panels(NamedTuple):
    """How a 1x1 layer is cut into items: image x group x slab of pixels x part of the group's output
    channels.
    """

    groups: int
    parts: int
    slabs: int  # of an image
    width: int  # pixels of a panel
    items: int


@linked(**FLAGS)
def pieces_of(channels, y):
    """Of a panel's channels; their sums are kept in y between them, unless that rounds."""
    return -(-channels // STEPS) if y.itemsize >= 4 else 1


@linked(**FLAGS)
def direct_panels(x, y, w, cut, panels, spares, after, slot, first, last):
    """1x1 layers, items [first, last); x: (n, c, h, w); y: (n, o, h, w); panels, spares: of each thread.

    w: (o * k), the weights of ROWS outputs after one another, k by k. A panel, some channels of ``width``
    pixels, is copied into the cache before all outputs are made of it.
    """
    panel, aside = panels[slot], address(spares[slot], 0)
    parts, slabs, width = cut.parts, cut.slabs, cut.width
    channels, filters = x.shape[1] // cut.groups, y.shape[1] // cut.groups
    plane, wide = x.shape[2] * x.shape[3], VECTOR_BYTES // x.itemsize
    block = VECTORS * wide
    pixels, blocks = -(-plane // block), -(-filters // ROWS)
    pieces = pieces_of(channels, y)
    for item in range(first, last):
        whole, part = item // parts, item % parts
        n, group, slab = whole // slabs // cut.groups, whole // slabs % cut.groups, whole % slabs
        begin, end = pixels * slab // slabs * block, min(plane, pixels * (slab + 1) // slabs * block)
        o0, o1 = blocks * part // parts * ROWS, min(filters, blocks * (part + 1) // parts * ROWS)
        source = (n * x.shape[1] + group * channels) * plane  # x[n][c0 of the group][0][0]
        target = (n * y.shape[1] + group * filters) * plane  # y[n][o0 of the group][0][0]
        for piece in range(pieces):
            c0, c1 = channels * piece // pieces, channels * (piece + 1) // pieces
            k = c1 - c0
            for at in range(begin, end, width):
                stop = min(end, at + width)
                pack_panel(x, source + c0 * plane + at, plane, k, stop - at, panel)
                # Channels lie far apart, where no hardware prefetches: ask for those of the next panel
                # meanwhile.
                lines = k if width == block and stop + block <= end else 0
                each, ahead = -(-lines // (-(-(o1 - o0) // ROWS))), source + c0 * plane + stop + block - 1
                for o in range(o0, o1, ROWS):
                    for _ in range(min(each, lines)):
                        for line in range(max(1, VECTORS * VECTOR_BYTES // LINE)):
                            prefetch(address(x, ahead - line * LINE // x.itemsize))
                        ahead += plane
                    lines -= each
                    weights = address(w, (group * blocks * ROWS + o) * channels)  # w[group][o][0]
                    for b in range(at, stop, block):
                        block_of_outputs(weights, c0, address(panel, (b - at) * k), None, k,
                                         address(y, target + o * plane + b), plane, filters - o, stop - b,
                                         wide, aside, piece > 0)  # fmt: skip
                if piece == pieces - 1:
                    finish(after, y, n, group * filters + o0, o1 - o0, at, 1, stop - at)


@linked(**FLAGS)
def direct_patches(x, y, w, offsets, geometry, phases, patches, spares, after, slot, first, last):
    """Blocks [first, last); x: (n, c, h, w); y: (n, o, oh, ow); w as in
    ``direct_panels``; patches, spares: of each thread.
    """
    patch, spare = patches[slot], address(spares[slot], 0)
    wide = VECTOR_BYTES // x.itemsize
    taps, plane, blocks = address(offsets, 0), y.shape[2] * y.shape[3], -(-geometry.outputs // ROWS)
    for item in range(first, last):
        block = locate(item, geometry, y)
        for i in range(geometry.inputs):
            pack(x, i, patch, geometry, phases, block)
        for o in range(block.o0, block.o1, ROWS):
            # w[group][o - o0][0]
            weights = address(w, (block.group * blocks * ROWS + o - block.o0) * offsets.size)
            for r in range(block.rows):
                # y[n][o][row0 + r][col0]
                to = (block.n * y.shape[1] + o) * plane + (block.row0 + r) * y.shape[3] + block.col0
                for j in range(0, block.cols, VECTORS * wide):
                    block_of_outputs(weights, 0, address(patch, r * geometry.pitch + j), taps, offsets.size,
                                     address(y, to + j), plane, block.o1 - o, block.cols - j, wide, spare,
                                     False)  # fmt: skip
                finish(after, y, block.n, o, min(ROWS, block.o1 - o),
                       (block.row0 + r) * y.shape[3] + block.col0, 1, block.cols)  # fmt: skip


@compiled(**FLAGS)
def all_panels(x, y, w, table, panels, spares, job):
    """Every item of ``direct_panels``, shared with the helpers; ``table``: of ``Panels``."""
    fork(direct_panels, (x, y, w, named(Panels, table), panels, spares, after_of(job)), job)


@compiled(**FLAGS)
def all_patches(x, y, w, offsets, table, phases, patches, spares, job):
    """Every item of ``direct_patches``, shared with the helpers; ``table``: of a ``Geometry``."""
    arguments = x, y, w, offsets, named(Geometry, table), phases, patches, spares, after_of(job)
    fork(direct_patches, arguments, job)


@dataclass(frozen=True)
class DirectPixels(Compiled):
    """A few output channels times vectors of pixels; see the module.

    Attributes
    ----------
    patch_bytes : int
        Size of one thread's patch of the input, of a 1x1 layer's outputs that pieces of its channels add up
        to, and of its panel where its outputs are few; 0 is half of the L2 cache.
    """

    name: str = "direct_pixels"
    family: str = "direct"
    patch_bytes: int = 0
    support: ClassVar[Support | None] = Support(
        ndim=(1, 2), dtypes=(*PLAIN_TYPES, PAIRS, *BRAINS, QUADS), epilogues=True
    )

    def _threads(self, spec: ConvSpec, threads: int) -> int:
        return worth(threads, spec.flops, SHARED_FLOPS)

    def _budget(self) -> int:
        return self.patch_bytes or caches()["L2"] // 2

    @staticmethod
    def _flat(spec: ConvSpec) -> bool:
        """Whether every output reads one pixel, its own."""
        return math.prod(spec.kernel) == 1 and math.prod(spec.stride) == 1 and not any(map(sum, spec.padding))

    def _panels(self, spec: ConvSpec, threads: int) -> Panels:
        """The cut of a 1x1 layer."""
        block, filters = VECTORS * lanes(spec.in_dtype), spec.out_channels // spec.groups
        blocks = -(-filters // ROWS)
        pixels, outer, parts = -(-math.prod(spec.size) // block), spec.batch * spec.groups, 1
        slabs = 1
        if spec.in_channels // spec.groups > _steps(spec):  # sums come back for every piece of them
            slabs = min(pixels, -(-pixels * block * filters * spec.in_dtype.itemsize // self._budget()))
        if threads > 1 and outer * slabs < SHARES * threads and outer * slabs % threads:

            def load(ways: tuple[int, int]) -> float:
                """Of the thread that has most, blocks of pixels times those of outputs, and packing each."""
                slabs, parts = ways
                return busiest(outer * parts, pixels, slabs, threads) * (-(-blocks // parts) + PACKING)

            by_both = product(range(slabs, min(pixels, threads) + 1), range(2, min(threads, blocks) + 1))
            slabs, parts = min([(min(pixels, SHARES * threads), 1), *by_both], key=load)
        width = 1
        # Little to do with a panel but to read it: long rows, which the hardware prefetches
        if blocks <= FEW:
            k = _steps(spec)
            width = max(1, min(-(-pixels // slabs), self._budget() // (k * block * spec.in_dtype.itemsize)))
        return Panels(spec.groups, parts, slabs, width * block, outer * slabs * parts)

    def _blocks(self, spec: ConvSpec, threads: int) -> Blocks:
        cost = 6 / (math.prod(spec.kernel) * spec.out_channels / spec.groups)
        return Blocks.of(spec, threads, self._budget(), cost, whole=True)

    def alternatives(self, spec: ConvSpec, threads: int = 1) -> Sequence[Algorithm]:
        cut = DirectPixels._panels if self._flat(spec) else DirectPixels._blocks
        used = self._threads(spec, threads)
        return self.variants(lambda one: cut(one, spec, used), patch_bytes=(1 << n for n in range(14, 21)))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        threads = self._threads(spec, threads)
        block, k = VECTORS * lanes(spec.in_dtype), spec.reduction_length
        weights = k * -(-spec.out_channels // spec.groups // ROWS) * ROWS * spec.groups
        if self._flat(spec):
            panels = self._panels(spec, threads)
            items, each = panels.items, _steps(spec) * panels.width
        else:
            blocks = self._blocks(spec, threads)
            items, each = blocks.items, blocks.scratch + block
        return (weights + min(threads, items) * (each + ROWS * block)) * spec.in_dtype.itemsize + 8 * k

    def work(self, spec: ConvSpec, weights: np.ndarray, threads: int) -> Work:
        threads, unit = self._threads(spec, threads), spec.in_dtype
        block, k = VECTORS * lanes(unit), spec.reduction_length
        w = _packed(weights.reshape(spec.groups, -1, k))
        flat = self._flat(spec)
        kernel: Any
        fixed: tuple[Any, ...]
        if flat:
            panels = self._panels(spec, threads)
            items, length = panels.items, _steps(spec) * panels.width
            kernel, fixed = all_panels, (table_of(panels),)
        else:
            blocks = self._blocks(spec, threads)
            channels = np.arange(spec.in_channels // spec.groups)
            offsets = (channels[:, None] * blocks.channel + blocks.offsets.ravel()).ravel()
            # Reads of a row's last block run past its end
            items, length = blocks.items, blocks.scratch + block
            kernel, fixed = all_patches, (offsets, table_of(blocks.geometry), blocks.phases)
        threads = min(threads, items)
        patch = aligned((threads, length), unit, zeros=True)
        spare = aligned((threads, ROWS * block), np.uint16 if spec.out_dtype == BFLOAT16 else spec.out_dtype)
        return Work(kernel, (w, *fixed, patch, spare), items, threads, as_2d=True)

    def specialised(self, spec: ConvSpec) -> tuple[Any, ...]:
        return spec.dtype, self._flat(spec)

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        threads, block = self._threads(spec, threads), VECTORS * lanes(spec.in_dtype)
        pixels = math.prod(spec.output_size)
        if self._flat(spec):
            waste = -(-pixels // block) * block / pixels
        else:
            col = axes(spec)[1]
            waste = -(-col.outputs // block) * block / col.outputs
        # A block of few rows waits for its sums: two rows take as long as four.
        filters = spec.out_channels // spec.groups
        rest = filters % ROWS
        waste *= (filters - rest + (0 if not rest else ROWS if rest > R1 else R1)) / filters
        speed = 1.3e11 * 4 / spec.in_dtype.itemsize
        packing = PACK_COST[spec.stride[-1] > 1] * math.prod(spec.input_shape)
        moved = packing + 4 * math.prod(spec.output_shape)
        return Cost(spec.flops * waste + moved, spec.min_bytes, 4, speed, threads > 1)


def _steps(spec: ConvSpec) -> int:
    """Channels of a panel; see ``pieces_of``."""
    channels = spec.in_channels // spec.groups
    return min(STEPS, channels) if spec.out_dtype.itemsize >= 4 else channels


def _packed(weights: np.ndarray) -> np.ndarray:
    """(group, output, k) as one array: for every ROWS outputs of a group, k by k; the
    last ones of a group with fewer rows.
    """
    groups, outputs, k = weights.shape
    w = np.zeros(groups * -(-outputs // ROWS) * ROWS * k, weights.dtype)
    for group in range(groups):
        for o in range(0, outputs, ROWS):
            part = weights[group, o : o + ROWS]
            rows = next(room for room in (R2, R1, ROWS) if len(part) <= room)
            start = (group * -(-outputs // ROWS) * ROWS + o) * k
            w[start : start + k * rows].reshape(k, rows)[:, : len(part)] = part.T
    return w


ALGORITHMS = [DirectPixels()]
