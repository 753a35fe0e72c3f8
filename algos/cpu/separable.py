"""A kernel that is a sum of few outer products: one pass along the rows and one down the columns for each
product.

Numba. The factors are columns and rows of the kernel itself (``algos/engine/outer.py``). A strip of four rows
at a time: down the columns from the image itself into four padded rows, then along those while they are in
the first-level cache, so that nothing is computed twice and no image is padded. Both passes keep their sums
in registers (``algos/engine/strips.py``): down, a vector of the input serves four rows; along, it serves
every output vector whose tap it meets. More than 64 taps in a row are taken in equal pieces, each added to
the sums of the ones before, by the same code: 513 taps on 512x512 in 4 ms of one thread, 17 the general way.
Strides, dilation and pictures narrower than a block take that: blocks of outputs with one pass after the
other, at about half the speed.

Cost: 2 * rank * (KH + KW) operations for each output pixel and pair of channels, and rows of halo for each
block. Workspace: the factors, and for each thread about six rows; in the general way a patch of the input,
one pass of it and the sums, about half of the L2 cache each. Accuracy: lowrank: rounding of both passes; the
factors form each tap within a few roundings. One NaN or infinity spoils the outputs whose window holds it.
Forward, 1 to min(KH, KW) ranks that the spec promises (``plan()`` looks for a rank in up to 4 kernels),
float32 and float64, every stride, dilation, padding and number of groups; with many channels every pair is
its own filter: no gain over GEMM.

Source: Treitel and Shanks, "The design of multistage separable planar filters", IEEE Trans. Geoscience
Electronics, 1971. Equivalent: ``scipy.signal.sepfir2d``, ``cv2.sepFilter2D`` for rank 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from algos.contract import Cost, Support
from algos.cpu._compiled import Compiled, Work
from algos.engine.blocks import (
    FLAGS,
    LANES,
    Blocks,
    Geometry,
    accumulate,
    axes,
    crop,
    locate,
    pack,
    shared_by,
)
from algos.engine.epilogue import after_of, finish
from algos.engine.jit import compiled, linked
from algos.engine.memory import aligned
from algos.engine.outer import factor_bytes, factors
from algos.engine.relay import fork
from algos.engine.simd import address, advance, copy_bytes, lanes, place
from algos.engine.strips import SUMS, correlate_block, slide, slide_rows, strip_rows, strip_vectors
from algos.engine.tables import named, table_of
from algos.engine.target import VECTOR_BYTES
from algos.engine.threads import worth
from algos.host import caches
from algos.spec import ConvSpec

SHARED_S = 3e-5  # less work than this in strips stays on one thread
FLOPS_PER_S = 3.2e10  # of one thread, float32, measured on AVX2
SLID = 64  # taps of a row that are unrolled at most


class Memory(NamedTuple):
    """What threads work in: for each a patch of the input, one pass of it, and sums."""

    patches: np.ndarray
    passes: np.ndarray
    sums: np.ndarray


@linked(**FLAGS)
def separable_blocks(x, y, down, along, down_offsets, along_offsets, geometry, phases, memory, after,
                     slot, first, last):
    """Items [first, last); x: (n, c, h, w); y: (n, o, oh, ow); down: (o, i,
    rank, kh); along: (o, i, rank, kw).
    """
    patch, passed, sums = memory.patches[slot], memory.passes[slot], memory.sums[slot]
    pitch, plane, inputs = geometry.pitch, geometry.plane, geometry.inputs
    for item in range(first, last):
        block = locate(item, geometry, y)
        for i in range(inputs):
            pack(x, i, patch, geometry, phases, block)
        along_span = (block.rows + geometry.row_reach - 1) * pitch + block.cols
        for o in range(block.o0, block.o1):
            for i in range(inputs):
                for r in range(down.shape[2]):
                    for a in range(geometry.row_phases):
                        base = i * geometry.channel + a * geometry.col_phases * plane  # patch[i][a][0]
                        accumulate(passed[a * plane :], along_span, patch, base, along_offsets,
                                   along[o, i, r], True)
                    start = i == 0 and r == 0
                    span = (block.rows - 1) * pitch + block.cols
                    accumulate(sums, span, passed, 0, down_offsets, down[o, i, r], start)
            crop(sums, pitch, y, o, block)
            finish(after, y, block.n, o, 1, block.row0 * y.shape[3] + block.col0, block.rows, block.cols)


class Strips(NamedTuple):
    """How ``separable_strips`` works on a spec."""

    rows: int  # of a strip
    part: int  # rows of one slide
    pieces: int  # of a row of taps
    span: int  # taps of a piece
    items: int
    block: int  # columns
    vector: int
    before: int  # columns of padding
    pitch: int  # elements from one row that went down the columns to the next, in scratch
    zeros: int  # where scratch has a row of them,
    unwanted: int  # a row for outputs below the last,
    rest: int  # and the last columns of a strip's rows
    top: int  # rows of padding
    strips: int  # of a plane
    furthest: int  # tap with which a piece begins
    scratch: int  # elements
    pointers: int

    def in_pieces(self, along: np.ndarray) -> np.ndarray:
        """(..., kw) taps as (..., pieces, span); the last piece ends with the
        last tap, with zeros where it overlaps.
        """
        furthest = along.shape[-1] - self.span
        starts = np.minimum(np.arange(self.pieces) * self.span, furthest)
        cut = np.take(along, starts[:, None] + np.arange(self.span), -1)
        cut[..., -1, : (self.pieces - 1) * self.span - furthest] = 0
        return cut


@linked(**FLAGS)
def separable_strips(x, y, down, along, strips, shape, scratches, tables, after, slot, first, last):
    """x: (n, c, h, w); y: (n, o, oh, ow); down: (o, i, rank, kh); along: (o, i, rank, pieces, span); shape:
    see ``all_strips``.

    Strips [first, last) of rows. Down the columns first, from the image into a few padded rows, then along
    those while they are in the cache: nothing is computed twice. Columns after the last whole vector go
    through scratch.
    """
    scratch, pointers = scratches[slot], tables[slot]
    taps, strip, part = shape
    block, vector, pitch, rest = strips.block, strips.vector, strips.pitch, strips.rest
    size, channels, height, width = x.itemsize, x.shape[1], x.shape[2], x.shape[3]
    inputs, rank, kh = down.shape[1:4]
    pieces, span = along.shape[3:5]
    outputs, oh, ow = y.shape[1] * inputs // channels, y.shape[2], y.shape[3]
    rows_out = len(strip)
    rows_in = rows_out + kh - 1
    passed, result, remainder = rows_in, rows_in + rows_out, rows_in + 2 * rows_out
    whole = ow // vector
    for r in range(rows_out):
        pointers[passed + r] = place(scratch, r * pitch + strips.before)
        pointers[remainder + r] = place(scratch, rest + r * vector)
    for item in range(first, last):
        plane, row0 = item // strips.strips, item % strips.strips * rows_out
        n, group = plane * inputs // channels, plane * inputs % channels // inputs
        for o in range(group * outputs, (group + 1) * outputs):
            for r in range(rows_out):
                at = place(y, ((n * y.shape[1] + o) * oh + row0 + r) * ow)  # y[n][o][row0 + r][0]
                pointers[result + r] = at if row0 + r < oh else place(scratch, strips.unwanted)
            for i in range(inputs):
                for a in range(rows_in):
                    ih = row0 + a - strips.top
                    # x[n][c][ih][0]
                    at = place(x, ((n * channels + group * inputs + i) * height + ih) * width)
                    pointers[a] = at if 0 <= ih < height else place(scratch, strips.zeros)
                for r in range(rank):
                    pair, more = (o * inputs + i) * rank + r, i + r > 0
                    for b in range(-(-width // block)):
                        col = min(b * block, width - block)
                        rows, outs, weights = (
                            address(pointers, 0),
                            address(pointers, passed),
                            address(down, pair * kh),
                        )
                        correlate_block(rows, outs, weights, col, col, kh, 1, False, (0,), strip)
                    for piece in range(pieces):
                        weights = address(along, (pair * pieces + piece) * span)  # along[o][i][r][piece]
                        shift, again = min(piece * span, strips.furthest), more or piece > 0
                        for h in range(0, rows_out, len(part)):
                            source, outs = address(scratch, h * pitch + shift), address(pointers, result + h)
                            if whole:
                                slide(source, pitch, weights, outs, whole, again, taps, part)
                            if ow % vector:
                                source, outs = (
                                    advance(source, whole * vector),
                                    address(pointers, remainder + h),
                                )
                                slide(source, pitch, weights, outs, 1, again, taps, part)
            for r in range(min(rows_out, oh - row0)):
                at = place(y, ((n * y.shape[1] + o) * oh + row0 + r) * ow + whole * vector)
                copy_bytes(at, place(scratch, rest + r * vector), ow % vector * size)
            finish(after, y, n, o, 1, row0 * ow, min(rows_out, oh - row0), ow)


@compiled(**FLAGS)
def all_strips(x, y, down, along, table, shape, scratches, tables, job):
    """Every strip, shared with the helpers; ``table``: of ``Strips``.

    shape: (taps of a piece, rows of a strip, rows of a slide), numbers given as tuples' lengths.
    """
    arguments = x, y, down, along, named(Strips, table), shape, scratches, tables, after_of(job)
    fork(separable_strips, arguments, job)


@compiled(**FLAGS)
def all_blocks(x, y, down, along, down_offsets, along_offsets, table, phases, patches, passes, sums, job):
    """Every block, shared with the helpers; ``table``: of a ``Geometry``."""
    memory = Memory(patches, passes, sums)
    geometry, after = named(Geometry, table), after_of(job)
    arguments = (x, y, down, along, down_offsets, along_offsets, geometry, phases, memory, after)
    fork(separable_blocks, arguments, job)


@lru_cache(maxsize=1024)  # asked by prepare, workspace_bytes and cost alike
def strips_of(spec: ConvSpec) -> Strips | None:
    """None where the general way is taken: strides, dilation and pictures narrower than a block."""
    row, col = axes(spec)
    rows, vector = strip_rows(row.kernel), lanes(spec.in_dtype)
    block = strip_vectors(rows) * vector
    if {*spec.stride, *spec.dilation} != {1} or col.size < block:
        return None
    pieces = -(-col.kernel // min(SLID, SUMS * vector))
    span = -(-col.kernel // pieces)
    reach = -(-span // vector)
    pitch = vector * (reach + 1 + -(-max(col.outputs + col.kernel, col.before + col.size) // vector))
    strips, zeros = -(-row.outputs // rows), rows * pitch
    unwanted = zeros + col.size
    rest = unwanted + col.outputs
    items = spec.batch * spec.groups * strips
    return Strips(rows, slide_rows(rows, reach), pieces, span, items, block, vector, col.before, pitch, zeros,
                  unwanted, rest, row.before, strips, col.kernel - span, rest + rows * vector,
                  row.kernel - 1 + 4 * rows)  # fmt: skip


@dataclass(frozen=True)
class Separable(Compiled):
    """Two 1-D passes for each rank; see the module.

    Attributes
    ----------
    block_bytes : int
        Size of one thread's patch of the input; 0 is half of the L2 cache.
    """

    name: str = "separable"
    family: str = "separable"
    accuracy: str = "lowrank"
    block_bytes: int = 0
    support: ClassVar[Support | None] = Support(epilogues=True)

    def beyond(self, spec: ConvSpec) -> str | None:
        return (
            None
            if spec.rank is not None
            else "the spec promises no rank: add rank1 if each kernel is an outer product"
        )

    def _blocks(self, spec: ConvSpec, threads: int) -> Blocks:
        patch_cost = (spec.kernel[1] + 3) / spec.kernel[0]
        return Blocks.of(spec, threads, self.block_bytes or caches()["L2"] // 2, patch_cost)

    def _operations(self, spec: ConvSpec) -> float:
        """Both passes, the halo of blocks and what they compute between two rows included."""
        row, _ = axes(spec)
        if strips := strips_of(spec):
            taps: float = row.kernel + strips.pieces * strips.span
        else:
            blocks = self._blocks(spec, 1)
            halo = row.phase_count * (1 + row.reach / blocks.rows)
            taps = (row.kernel + spec.kernel[1] * halo) * blocks.pitch / blocks.cols
        pairs = spec.batch * spec.out_channels * spec.in_channels // spec.groups * (spec.rank or 0)
        return 2.0 * pairs * math.prod(spec.output_size) * taps

    def _threads(self, spec: ConvSpec, threads: int) -> int:
        if strips_of(spec):
            return worth(threads, self._operations(spec) / self._speed(spec), SHARED_S)
        return shared_by(threads, self._operations(spec), spec)

    def _speed(self, spec: ConvSpec) -> float:
        # Measured: AVX-512 is 1.5 to 1.6 times AVX2
        wider = (VECTOR_BYTES / 32) ** (2 / 3) if strips_of(spec) else 1.0
        return FLOPS_PER_S * wider * 4 / spec.in_dtype.itemsize

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        threads = self._threads(spec, threads)
        preparing = factor_bytes(spec.out_channels * spec.in_channels // spec.groups, *spec.kernel)
        if strips := strips_of(spec):
            each = strips.scratch * spec.in_dtype.itemsize + 8 * strips.pointers
            return (
                max(min(threads, strips.items) * each, preparing) + self._kept(spec) * spec.in_dtype.itemsize
            )
        blocks = self._blocks(spec, threads)
        row, _ = axes(spec)
        each = blocks.scratch + row.phase_count * blocks.plane + LANES + blocks.span
        held = min(threads, blocks.items) * each * spec.in_dtype.itemsize
        return max(held, preparing) + self._kept(spec) * spec.in_dtype.itemsize

    def _kept(self, spec: ConvSpec) -> int:
        """Elements of the factors, and of the rows in pieces."""
        strips = strips_of(spec)
        taps = sum(spec.kernel) + (strips.pieces * strips.span if strips else 0)
        return spec.out_channels * spec.in_channels // spec.groups * (spec.rank or 0) * taps

    def work(self, spec: ConvSpec, weights: np.ndarray, threads: int) -> Work:
        assert spec.rank is not None
        threads = self._threads(spec, threads)
        down, along = factors(weights, spec.rank)
        if strips := strips_of(spec):
            return self._in_strips(spec, strips, down, along, threads)
        blocks = self._blocks(spec, threads)
        row, _ = axes(spec)
        threads = min(threads, blocks.items)
        scratch = np.zeros((threads, blocks.scratch), spec.in_dtype)
        passed = np.zeros((threads, row.phase_count * blocks.plane + LANES), spec.in_dtype)
        sums = np.zeros((threads, blocks.span), spec.in_dtype)
        # Tap (0, 0) is phase 0, shift 0: these move along the row only
        along_offsets = blocks.offsets[0].copy()
        shifts = map(row.phase_and_shift, range(row.kernel))
        down_offsets = np.array(
            [phase * blocks.plane + shift * blocks.pitch for phase, shift in shifts], np.int64
        )
        table, phases = table_of(blocks.geometry), blocks.phases
        arguments = down, along, down_offsets, along_offsets, table, phases, scratch, passed, sums
        return Work(all_blocks, arguments, blocks.items, threads)

    def _in_strips(
        self, spec: ConvSpec, strips: Strips, down: np.ndarray, along: np.ndarray, threads: int
    ) -> Work:
        threads = min(threads, strips.items)
        along = strips.in_pieces(along)
        scratch = aligned((threads, strips.scratch), spec.in_dtype, zeros=True)
        pointers = np.zeros((threads, strips.pointers), np.int64)
        shape = (0,) * strips.span, (0,) * strips.rows, (0,) * strips.part
        arguments = down, along, table_of(strips), shape, scratch, pointers
        return Work(all_strips, arguments, strips.items, threads)

    def specialised(self, spec: ConvSpec) -> tuple[Any, ...]:
        strips = strips_of(spec)
        return spec.dtype, *((strips.span, strips.rows, strips.part) if strips else ())

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        threads = self._threads(spec, threads)
        return Cost(
            self._operations(spec),
            spec.min_bytes,
            calls=4,
            flops_per_s=self._speed(spec),
            parallel=threads > 1,
        )


ALGORITHMS = [Separable()]
