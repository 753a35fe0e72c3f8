"""The definition with output channels in the vectors: a block of pixels times a vector of channels stays in
registers.

Numba. A patch of the input is copied into scratch once for all outputs of a block of rows, zero border
included, transposed so that the channels of a pixel lie together: then tap (kh, kw) of any output pixel is
one run of memory, whatever the stride and dilation, and a microkernel (``outer_runs``) takes a few pixels
anywhere in the patch against packed weights. No column is computed for nothing, so small and strided maps
cost what they should. Sums of a block are transposed back on their way out. The weights' gradient has the
output channels in the vectors as well (``_weights.py``), the input's gradient of a stride its input channels
(``_inputs.py``).

Cost: the definition's operations; the patch is packed once per block of rows, halo included. Workspace: the
packed weights, and for each thread a patch (the size of the L2 cache) and the sums of one vector of channels.
Accuracy: componentwise. NaN and infinity spoil only the outputs whose window holds them. Forward in 1-D to
3-D, gradients in 1-D and 2-D, float32 and float64, every stride, dilation, padding and number of groups; with
few output channels in a group most of each vector is empty. Of films each plane of the result is an image,
whose patch has the channels of all planes that it reads.

Source: Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures",
arXiv:1808.05567. Equivalent: ``torch.nn.functional.conv2d``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from algos.contract import PLAIN_TYPES, PREPARE_S, Algorithm, Cost, Support
from algos.cpu import _inputs, _weights
from algos.cpu._compiled import Compiled, Work
from algos.dtypes import BRAINS, PAIRS, QUADS, accumulator
from algos.engine.blocks import axes
from algos.engine.epilogue import after_of
from algos.engine.films import as_pictures, better_joined
from algos.engine.jit import compiled, linked
from algos.engine.memory import aligned
from algos.engine.packing import packed, tap_offsets
from algos.engine.patches import (
    PACK_COST,
    SHARED_FLOPS,
    Cut,
    clear_channels,
    cut,
    elements,
    pack_patch,
)
from algos.engine.relay import fork
from algos.engine.runs import ROWS, block_of, runs_block, unpack_sums
from algos.engine.simd import address, advance, lanes
from algos.engine.tables import named, table_of
from algos.engine.target import UNROLLED
from algos.engine.threads import worth
from algos.host import caches
from algos.spec import ConvSpec

FLAGS = {"error_model": "numpy"}
PACKED_S = 1.4e-9  # a packed weight, one thread, measured
OTHERS: dict[str, Any] = {"input_gradient": _inputs, "weight_gradient": _weights}  # by direction


class Window(NamedTuple):
    """Where an output finds its elements in the patch; see ``outer_runs``."""

    pixels: np.ndarray  # of each output of a block
    starts: np.ndarray
    singles: np.ndarray


@linked(**FLAGS)
def direct_runs(x, y, w, cut, window, vectors, patches, all_sums, after, slot, first, last):
    """Items [first, last): image (or plane of a film) x group x block of rows x block of columns x part of
    the group's channels.

    w: (group, block of outputs, element of the window, outputs of a block), elements as ``window`` has them;
    vectors: a zero for each of a block of outputs; patches, all_sums: of each thread.
    """
    patch, sums = patches[slot], all_sums[slot]
    parts, pixels, starts, singles = cut.parts, window.pixels, window.starts, window.singles
    channels, filters = x.shape[1] // cut.depth // cut.groups, y.shape[1] // cut.planes // cut.groups
    blocks, elements, block, width = w.shape[1], w.shape[2], w.shape[3], y.shape[3]
    row_blocks, col_blocks, packed = cut.row_blocks, cut.col_blocks, -1
    for item in range(first, last):
        whole, part = item // parts, item % parts
        down, along = whole // col_blocks % row_blocks, whole % col_blocks
        n = whole // (row_blocks * col_blocks)
        n, group = n // cut.groups, n % cut.groups
        n, d = n // cut.planes, n % cut.planes
        oh0, ow0 = y.shape[2] * down // row_blocks, width * along // col_blocks
        count = y.shape[2] * (down + 1) // row_blocks - oh0
        if whole != packed:
            needed = cut.patch_rows - (cut.rows - count) * cut.row_stride // cut.row_step
            row0, left = oh0 * cut.row_stride - cut.top, cut.left - ow0 * cut.col_stride
            for tap in range(cut.taps):
                at, plane = tap * channels, d * cut.depth_stride + tap * cut.depth_dilation - cut.front
                if 0 <= plane < cut.depth:
                    plane += n * x.shape[1] + group * channels * cut.depth  # x[n][group][plane]
                    pack_patch(x, plane, cut.depth, at, channels, row0, needed, left, cut, patch)
                else:
                    clear_channels(patch, at, channels, needed * cut.cols, cut.step)
            packed = whole
        # Of several columns' blocks each has one row
        outputs = count * (width * (along + 1) // col_blocks - ow0)
        for b in range(blocks * part // parts, blocks * (part + 1) // parts):
            weights = address(w, (group * blocks + b) * elements * block)  # w[group][b][0][0]
            for s in range(0, max(1, starts.size), cut.piece):
                here = min(cut.piece, starts.size - s)
                ends = singles.size if s + here == starts.size else 0
                runs_block(address(patch, 0), outputs, pixels, address(starts, s), here, address(singles, 0),
                           ends, advance(weights, s * UNROLLED * block), sums, s > 0, vectors)  # fmt: skip
            o, here = group * filters + b * block, min(block, filters - b * block)
            plane = n * y.shape[1] + o * cut.planes + d  # y[n][o][d]
            unpack_sums(sums, y, plane, cut.planes, o, here, oh0 * width + ow0, outputs, after)


@compiled(**FLAGS)
def direct_all(x, y, w, table, pixels, starts, singles, vectors, patches, sums, job):
    """Every item, shared with the helpers; ``table``: of a ``Cut``."""
    window = Window(pixels, starts, singles)
    fork(direct_runs, (x, y, w, named(Cut, table), window, vectors, patches, sums, after_of(job)), job)


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
        ndim=(1, 2, 3), directions=("forward", *OTHERS), dtypes=(*PLAIN_TYPES, PAIRS, *BRAINS, QUADS),
        epilogues=True, strided_weights=True,
    )  # fmt: skip

    def beyond(self, spec: ConvSpec) -> str | None:
        if spec.ndim == 3 and spec.direction in OTHERS:
            return "computes gradients in 1-D and 2-D, not in 3-D"
        return _inputs.beyond(spec) if spec.direction == "input_gradient" else better_joined(spec)

    def _cut(self, spec: ConvSpec, threads: int) -> Cut:
        threads = worth(threads, spec.flops, SHARED_FLOPS)
        found = cut(as_pictures(spec), threads, self.patch_bytes or caches()["L2"])
        if spec.ndim < 3:
            return found
        (stride, *_), (dilation, *_), ((front, _), *_) = spec.stride, spec.dilation, spec.padding
        return found._replace(planes=spec.output_size[0], depth=spec.size[0], taps=spec.kernel[0],
                              depth_stride=stride, depth_dilation=dilation, front=front)  # fmt: skip

    def alternatives(self, spec: ConvSpec, threads: int = 1) -> Sequence[Algorithm]:
        if spec.direction in OTHERS:
            return []
        return self.variants(lambda one: one._cut(spec, threads), patch_bytes=(1 << n for n in range(15, 21)))

    def _sizes(self, spec: ConvSpec, found: Cut) -> tuple[int, int, int]:
        """Elements of the packed weights, of a patch, and rows of a thread's sums."""
        block = block_of(spec)
        filters = -(-spec.out_channels // spec.groups // block) * block * spec.groups
        weights = filters * (spec.in_channels // spec.groups) * math.prod(spec.kernel)
        patch = found.patch_rows * found.cols * found.step + lanes(spec.in_dtype)
        return weights, patch, found.rows * found.columns + ROWS

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        if other := OTHERS.get(spec.direction):
            return other.workspace_bytes(spec, threads)
        found = self._cut(spec, threads)
        weights, patch, pixels = self._sizes(spec, found)
        kept = weights + found.threads * (patch + pixels * block_of(spec))
        # Of the latter where they lie, and in what order, while they are packed
        return kept * spec.in_dtype.itemsize + 8 * (2 * pixels + 6 * spec.reduction_length)

    def work(self, spec: ConvSpec, weights: np.ndarray | None, threads: int) -> Work:
        if weights is None or spec.direction in OTHERS:
            return OTHERS[spec.direction].work(spec, weights, threads)
        block = block_of(spec)
        found = self._cut(spec, threads)
        row, col = axes(as_pictures(spec))
        _, patch_length, pixels_length = self._sizes(spec, found)
        channels, filters = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        pixel_rows = np.arange(found.rows) * (row.stride // found.row_step * found.cols)
        pixels = np.zeros(pixels_length, np.int64)
        pixels[:-ROWS] = (
            (pixel_rows[:, None] + np.arange(found.columns) * (col.stride // found.col_step)) * found.step
        ).ravel()
        taps = (
            np.arange(row.kernel)[:, None] * (row.dilation * found.cols)
            + np.arange(col.kernel) * col.dilation
        )
        taps = (taps * found.step)[:, : 1 if found.run > channels * found.taps else None].ravel()
        starts, singles, order = elements(taps, found.run)
        kernels = weights.reshape(spec.groups, filters, channels, *weights.shape[2:])
        depth, inner = (kernels.strides[3], kernels[:, :, :, 0]) if spec.ndim == 3 else (0, kernels)
        each = np.add.outer(np.arange(found.taps) * depth, np.arange(channels) * kernels.strides[2])
        steps = np.add.outer(tap_offsets(inner), each.ravel())
        w = packed(kernels, steps.ravel()[order], block, threads)
        patch = aligned((found.threads, patch_length), spec.in_dtype, zeros=True)
        sums = aligned((found.threads, pixels_length, block), accumulator(spec.out_dtype))
        vectors = (0,) * (block // lanes(spec.in_dtype))
        arguments = w, table_of(found), pixels, starts, singles, vectors, patch, sums
        return Work(direct_all, arguments, found.items, found.threads, as_2d=True)

    def prepare_s(self, spec: ConvSpec, threads: int = 1) -> float:
        """Of packing the weights."""
        packed = math.prod(spec.weight_shape) if spec.direction != "weight_gradient" else 0
        return PREPARE_S + packed * PACKED_S / threads

    def specialised(self, spec: ConvSpec) -> tuple[Any, ...]:
        if other := OTHERS.get(spec.direction):
            return spec.dtype, spec.direction, other.block_for(spec)
        return spec.dtype, block_of(spec)

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        if other := OTHERS.get(spec.direction):
            return other.cost(spec, threads)
        found = self._cut(spec, threads)
        weights, patch, _ = self._sizes(spec, found)
        pixels = spec.batch * math.prod(spec.output_size)
        packing = 2 * PACK_COST * (patch * found.items / found.parts + pixels * spec.out_channels)
        speed = 8e10 * 4 / spec.in_dtype.itemsize
        return Cost(2.0 * weights * pixels + packing, spec.min_bytes, 4, speed, found.threads > 1)


ALGORITHMS = [DirectChannels()]
