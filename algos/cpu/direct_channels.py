"""The definition with output channels in the vectors: a block of pixels times a vector of channels stays in
registers.

Numba. A patch of the input is copied into scratch once for all outputs of a block of rows, zero border
included, transposed so that the channels of a pixel lie together: then tap (kh, kw) of any output pixel is
one run of memory, whatever the stride and dilation, and a microkernel (``outer_runs``) takes a few pixels
anywhere in the patch against packed weights. No column is computed for nothing, so small and strided maps
cost what they should. Sums of a block are transposed back on their way out. The weights' gradient has the
output channels in the vectors as well (``_weights.py``).

Cost: the definition's operations; the patch is packed once per block of rows, halo included. Workspace: the
packed weights, and for each thread a patch (the size of the L2 cache) and the sums of one vector of channels.
Accuracy: componentwise. NaN and infinity spoil only the outputs whose window holds them. Forward and weight
gradient, 1-D and 2-D, float32 and float64, every stride, dilation, padding and number of groups; with few
output channels in a group most of each vector is empty.

Source: Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures",
arXiv:1808.05567. Equivalent: ``torch.nn.functional.conv2d``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from algos.contract import PLAIN_TYPES, Algorithm, Cost, Support
from algos.cpu import _weights
from algos.cpu._compiled import Compiled, Work
from algos.dtypes import BRAINS, PAIRS, QUADS, accumulator
from algos.engine.blocks import Axis, axes
from algos.engine.epilogue import after_of
from algos.engine.jit import compiled, linked
from algos.engine.memory import aligned, spread
from algos.engine.relay import fork
from algos.engine.runs import ROWS, block_of, runs_block, unpack_sums
from algos.engine.simd import address, advance, clear, lanes, transpose
from algos.engine.tables import named, table_of
from algos.engine.target import UNROLLED, VECTOR_BYTES
from algos.host import caches
from algos.spec import ConvSpec

FLAGS = {"error_model": "numpy"}
SHARED_FLOPS = 2e6
CLOSE = 4  # columns apart
STEPS = 256  # of a block, before the next block takes the same weights: 16 KiB of them with AVX2
PACK_COST = 6.0  # multiply-adds of one output channel that packing an element of the patch costs


class Cut(NamedTuple):
    """How the outputs of a spec are cut into items: blocks of rows, and parts of a group's output channels.
    """

    groups: int
    parts: int
    rows: int  # output rows of a block
    row_stride: int
    top: int  # rows of padding
    patch_rows: int
    row_step: int  # input rows from one row of the patch to the next
    left: int  # columns of padding
    cols: int  # of the patch
    col_step: int
    step: int  # elements from one pixel of the patch to the next
    run: int  # contiguous elements of a tap, or of a row of taps
    piece: int  # starts of ``outer_runs`` between two passes over the pixels
    items: int
    threads: int


class Window(NamedTuple):
    """Where an output finds its elements in the patch; see ``outer_runs``."""

    pixels: np.ndarray  # of each output of a block
    starts: np.ndarray
    singles: np.ndarray


@linked(**FLAGS)
def pack_patch(x, n, c0, channels, row0, rows, cut, patch):
    """patch[r, j, :channels] = x[n, c0:, row0 + r * row_step, j * col_step - left], zero outside."""
    height, width = x.shape[2:]
    row_step, left, cols, col_step, step = cut.row_step, cut.left, cut.cols, cut.col_step, cut.step
    wide = VECTOR_BYTES // x.itemsize
    plane, start, flat = height * width, row0 * width, x.reshape(x.size)
    if left == 0 and cols == width and col_step == row_step == 1 and row0 >= 0 and row0 + rows <= height:
        rows, cols, width = 1, rows * cols, rows * cols  # whole rows of the image are one
    first = min(cols, max(0, -(-left // col_step)))
    last = max(first, min(cols, (width - 1 + left) // col_step + 1))
    for r in range(rows):
        ih, line = row0 + r * row_step, r * cols * step  # patch[r][0][0]
        if ih < 0 or ih >= height:
            clear(address(patch, line), cols * step)
            continue
        clear(address(patch, line), first * step)
        clear(address(patch, line + last * step), (cols - last) * step)
        source = (n * x.shape[1] + c0) * plane + start + r * row_step * width - left  # x[n][c0][ih][-left]
        for c in range(0, channels, wide):
            j = first
            if col_step == 1 and channels - c >= wide and last - first >= wide:
                while j < last:
                    j = min(j, last - wide)  # the last block overlaps the one before
                    to = address(patch, line + j * step + c)  # patch[r][j][c]
                    transpose(address(x, source + c * plane + j), plane, to, step)
                    j += wide
            for i in range(c, min(channels, c + wide)):
                for k in range(j, last):
                    patch[line + k * step + i] = flat[source + i * plane + k * col_step]


@linked(**FLAGS)
def direct_runs(x, y, w, cut, window, vectors, patches, all_sums, after, slot, first, last):
    """Items [first, last): image x group x block of output rows x part of the group's output channels.

    w: (group, block of outputs, element of the window, outputs of a block), elements as ``window`` has them;
    vectors: a zero for each of a block of outputs; patches, all_sums: of each thread.
    """
    patch, sums = patches[slot], all_sums[slot]
    rows, parts, pixels, starts, singles = cut.rows, cut.parts, window.pixels, window.starts, window.singles
    channels, filters = x.shape[1] // cut.groups, y.shape[1] // cut.groups
    blocks, elements, block, width = w.shape[1], w.shape[2], w.shape[3], y.shape[3]
    row_blocks = -(-y.shape[2] // rows)
    packed = -1
    for item in range(first, last):
        whole, part = item // parts, item % parts
        n, group = whole // row_blocks // cut.groups, whole // row_blocks % cut.groups
        oh0 = whole % row_blocks * rows
        count = min(rows, y.shape[2] - oh0)
        if whole != packed:
            needed = cut.patch_rows - (rows - count) * cut.row_stride // cut.row_step
            pack_patch(x, n, group * channels, channels, oh0 * cut.row_stride - cut.top, needed, cut, patch)
            packed = whole
        outputs = count * width
        for b in range(blocks * part // parts, blocks * (part + 1) // parts):
            weights = address(w, (group * blocks + b) * elements * block)  # w[group][b][0][0]
            for s in range(0, max(1, starts.size), cut.piece):
                here = min(cut.piece, starts.size - s)
                ends = singles.size if s + here == starts.size else 0
                runs_block(address(patch, 0), outputs, pixels, address(starts, s), here, address(singles, 0),
                           ends, advance(weights, s * UNROLLED * block), sums, s > 0, vectors)  # fmt: skip
            o, here = group * filters + b * block, min(block, filters - b * block)
            unpack_sums(sums, y, n, o, here, oh0 * width, outputs, after)


@compiled(**FLAGS)
def direct_all(x, y, w, table, pixels, starts, singles, vectors, patches, sums, job):
    """Every item, shared with the helpers; ``table``: of a ``Cut``."""
    window = Window(pixels, starts, singles)
    fork(direct_runs, (x, y, w, named(Cut, table), window, vectors, patches, sums, after_of(job)), job)


def _patch_length(axis: Axis, outputs: int) -> tuple[int, int]:
    """Input positions that ``outputs`` outputs of an axis read, and the step between those kept."""
    if axis.kernel == 1:
        return outputs, axis.stride
    return (outputs - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1, 1


@lru_cache(maxsize=1024)
def cut(spec: ConvSpec, threads: int, patch_bytes: int) -> Cut:
    """Blocks whose patch fits ``patch_bytes``, and enough of them for the threads."""
    row, col = axes(spec)
    wide = lanes(spec.in_dtype)
    channels, filters = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    step = channels if channels < wide else spread(-(-channels // wide) * wide, spec.in_dtype)
    cols, col_step = _patch_length(col, col.outputs)
    if 1 < col_step <= CLOSE:  # columns between those that are read, too: they are packed by whole vectors
        cols, col_step = (cols - 1) * col_step + 1, 1
    run = channels * (col.kernel if step == channels and col.dilation == 1 else 1)
    if spec.flops < SHARED_FLOPS:
        threads = 1
    line = cols * step * spec.in_dtype.itemsize
    rows = row.outputs
    while rows > 1 and _patch_length(row, rows)[0] * line > patch_bytes:
        rows -= max(1, rows // 16)
    count, outer = -(-row.outputs // rows), spec.batch * spec.groups
    blocks = -(-filters // block_of(spec))
    parts = 1
    if outer * count % threads and outer * count < 4 * threads:  # the last items would leave threads idle
        halo = _patch_length(row, 1)[0] / row.stride
        by_rows = min(row.outputs, -(-outer * count // threads) * threads // math.gcd(outer, threads))
        if blocks >= threads and blocks % threads == 0 and PACK_COST * halo < filters:
            parts = threads
        elif by_rows > count:
            count = by_rows
        elif blocks >= threads:
            parts = threads
    rows = -(-row.outputs // count)
    items = outer * -(-row.outputs // rows) * parts
    patch_rows, row_step = _patch_length(row, rows)
    starts = channels * math.prod(spec.kernel) // run * (run // UNROLLED)
    piece = max(1, -(-starts // max(1, -(-spec.reduction_length // STEPS))))
    return Cut(spec.groups, parts, rows, row.stride, row.before, patch_rows, row_step, col.before, cols,
               col_step, step, run, piece, items, min(threads, items))  # fmt: skip


def elements(taps: np.ndarray, run: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Elements of a window, ``run`` from each of ``taps`` on, as ``outer_runs`` wants
    them: starts, singles, their order.
    """
    whole = run // UNROLLED * UNROLLED
    tap, at, left = np.arange(taps.size)[:, None], np.arange(whole), np.arange(whole, run)
    starts = (taps[:, None] + at[::UNROLLED]).ravel()
    return starts, (taps[:, None] + left).ravel(), np.concatenate([(tap * run + at).ravel(),
                                                                   (tap * run + left).ravel()])


@dataclass(frozen=True)
class DirectChannels(Compiled):
    """Blocks of pixels times vectors of output channels; see the module.

    Attributes
    ----------
    patch_bytes : int
        Size of one thread's patch of the input; 0 is that of the L2 cache.
    """

    name: str = "direct_channels"
    family: str = "direct"
    patch_bytes: int = 0
    support: ClassVar[Support | None] = Support(
        ndim=(1, 2), directions=("forward", "weight_gradient"), dtypes=(*PLAIN_TYPES, PAIRS, *BRAINS, QUADS),
        epilogues=True,
    )  # fmt: skip

    def _cut(self, spec: ConvSpec, threads: int) -> Cut:
        return cut(spec, threads, self.patch_bytes or caches()["L2"])

    def alternatives(self, spec: ConvSpec, threads: int = 1) -> Sequence[Algorithm]:
        if spec.direction == "weight_gradient":
            return []
        return self.variants(lambda one: one._cut(spec, threads), patch_bytes=(1 << n for n in range(15, 21)))

    def _sizes(self, spec: ConvSpec, found: Cut) -> tuple[int, int, int]:
        """Elements of the packed weights, of a patch, and rows of a thread's sums."""
        _, col = axes(spec)
        block = block_of(spec)
        filters = -(-spec.out_channels // spec.groups // block) * block * spec.groups
        weights = filters * (spec.in_channels // spec.groups) * math.prod(spec.kernel)
        patch = found.patch_rows * found.cols * found.step + lanes(spec.in_dtype)
        return weights, patch, found.rows * col.outputs + ROWS

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        if spec.direction == "weight_gradient":
            return _weights.workspace_bytes(spec, threads)
        block = block_of(spec)
        found = self._cut(spec, threads)
        weights, patch, pixels = self._sizes(spec, found)
        packing = 2 * spec.groups * spec.reduction_length * block  # one block's weights, and they in order
        kept = weights + max(found.threads * (patch + pixels * block), packing)
        return kept * spec.in_dtype.itemsize + 8 * (2 * pixels + spec.reduction_length)

    def work(self, spec: ConvSpec, weights: np.ndarray | None, threads: int) -> Work:
        if weights is None:
            return _weights.work(spec, threads)
        block = block_of(spec)
        found = self._cut(spec, threads)
        row, col = axes(spec)
        _, patch_length, pixels_length = self._sizes(spec, found)
        channels, filters = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        pixel_rows = np.arange(found.rows) * (row.stride // found.row_step * found.cols)
        pixels = np.zeros(pixels_length, np.int64)
        pixels[:-ROWS] = (
            (pixel_rows[:, None] + np.arange(col.outputs) * (col.stride // found.col_step)) * found.step
        ).ravel()
        taps = (
            np.arange(row.kernel)[:, None] * (row.dilation * found.cols)
            + np.arange(col.kernel) * col.dilation
        )
        taps = (taps * found.step)[:, : 1 if found.run > channels else None].ravel()
        starts, singles, order = elements(taps, found.run)
        w = aligned((spec.groups, -(-filters // block), order.size, block), spec.in_dtype, zeros=True)
        # (group, tap, channel, output)
        kernels = weights.reshape(spec.groups, filters, channels, -1).transpose(0, 3, 2, 1)
        for b in range(w.shape[1]):
            part = kernels[..., b * block : (b + 1) * block]
            w[:, b, :, : part.shape[3]] = part.reshape(spec.groups, -1, part.shape[3])[:, order]
        patch = aligned((found.threads, patch_length), spec.in_dtype, zeros=True)
        sums = aligned((found.threads, pixels_length, block), accumulator(spec.out_dtype))
        vectors = (0,) * (block // lanes(spec.in_dtype))
        arguments = w, table_of(found), pixels, starts, singles, vectors, patch, sums
        return Work(direct_all, arguments, found.items, found.threads, as_2d=True)

    def specialised(self, spec: ConvSpec) -> tuple[Any, ...]:
        if spec.direction == "weight_gradient":
            return spec.dtype, spec.direction, _weights.way(spec).block
        return spec.dtype, block_of(spec)

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        if spec.direction == "weight_gradient":
            return _weights.cost(spec, threads)
        found = self._cut(spec, threads)
        weights, patch, _ = self._sizes(spec, found)
        pixels = spec.batch * math.prod(spec.output_size)
        packing = 2 * PACK_COST * (patch * found.items / found.parts + pixels * spec.out_channels)
        speed = 8e10 * 4 / spec.in_dtype.itemsize
        return Cost(2.0 * weights * pixels + packing, spec.min_bytes, 4, speed, found.threads > 1)


ALGORITHMS = [DirectChannels()]
