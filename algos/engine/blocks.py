"""Blocks: any strided, dilated, padded 2-D correlation becomes shifted reads of one flat scratch array.

A block of outputs needs a patch of the input. ``pack`` copies the patch, zero border included, into scratch,
with rows and columns sorted by their phase modulo the stride; rows of outputs then lie ``pitch`` elements
apart, as rows of the patch do, and tap t of every output p of the block reads ``scratch[offset[t] + p]``. So
the whole sum is one loop over a table of offsets whose reads are contiguous, whatever the stride and
dilation; the few columns computed between two rows are dropped by ``crop``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numba import uintp

from algos.engine.jit import linked
from algos.engine.threads import worth
from algos.spec import ConvSpec

LANES = 32  # blocks are rounded up to whole vectors of any machine, so that loops have no remainder
FLOPS_PER_S, ELEMENTS_PER_S = 5e10, 5e9  # of one thread in these loops, measured on AVX2
SHARED_S = 1.5e-4  # less work than this stays on one thread
COLUMNS = (2048, 1024, 512, 256, 128)  # widths to choose from, when the whole row is not the best
ROW_COST = 100  # a loop's start and end, in elements of its body
SPILLED = 2.0  # how much longer a block takes whose patch leaves the cache
SHARED_HALO = 1.5  # of the work that blocks may add so that threads end together
SPAN = 2048  # outputs accumulated at a time: their sums stay in the first-level cache over all taps
# Fused multiply-adds only: NaN and rounding stay as written
FLAGS = {"fastmath": {"contract"}, "error_model": "numpy"}


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a spec, and how its taps map to phases of the stride."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    outputs: int

    @cached_property
    def phases(self) -> tuple[int, ...]:
        """Input positions modulo the stride that some tap reads."""
        return tuple(sorted({tap * self.dilation % self.stride for tap in range(self.kernel)}))

    @property
    def extent(self) -> int:
        """Positions from the first to the last tap."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def phase_count(self) -> int:
        """How many phases there are, without looking at every tap."""
        return min(self.kernel, self.stride // math.gcd(self.stride, self.dilation))

    @property
    def reach(self) -> int:
        """Patch elements of one phase beyond one per output."""
        return (self.kernel - 1) * self.dilation // self.stride

    def phase_and_shift(self, tap: int) -> tuple[int, int]:
        return self.phases.index(tap * self.dilation % self.stride), tap * self.dilation // self.stride


@lru_cache(maxsize=1024)  # asked by every family of algorithms
def axes(spec: ConvSpec) -> tuple[Axis, Axis]:
    """Rows and columns of a 1-D or 2-D spec; a 1-D one has a single row."""
    found = [
        Axis(size, kernel, stride, dilation, pair[0], outputs)
        for size, kernel, stride, dilation, pair, outputs in zip(
            spec.size, spec.kernel, spec.stride, spec.dilation, spec.padding, spec.output_size, strict=True
        )
    ]
    return (Axis(1, 1, 1, 1, 0, 1), found[0]) if spec.ndim == 1 else (found[0], found[1])


def in_2d(array: np.ndarray) -> np.ndarray:
    """(n, c, size) as (n, c, 1, size), (n, c, d, h, w) as (n, c * d, h, w)."""
    if array.ndim == 5:
        return array.reshape(len(array), -1, *array.shape[3:])
    return array if array.ndim == 4 else array.reshape(*array.shape[:2], 1, -1)


class Geometry(NamedTuple):
    """What compiled code knows of ``Blocks``."""

    rows: int  # of outputs
    cols: int
    pitch: int  # elements from one row of a block to the next
    plane: int  # elements of one phase of one channel in scratch
    channel: int  # elements of one channel in scratch
    parts: int  # of a group's output channels
    groups: int
    inputs: int  # of a group
    outputs: int
    row_blocks: int
    col_blocks: int
    row_stride: int
    col_stride: int
    top: int  # rows of padding
    left: int
    row_reach: int
    col_reach: int
    row_phases: int
    col_phases: int


class Block(NamedTuple):
    """Output channels [o0, o1) of a group, and rows and columns of theirs, of image n."""

    n: int
    group: int
    o0: int
    o1: int
    row0: int
    rows: int
    col0: int
    cols: int


@dataclass(frozen=True)
class Blocks:
    """How the outputs of a spec are cut into blocks whose patch fits ``block_bytes`` of cache.

    ``items`` blocks in all: batch x groups x row blocks x column blocks x parts of the group's output
    channels.
    """

    spec: ConvSpec
    rows: int
    cols: int
    parts: int

    @classmethod
    @lru_cache(maxsize=1024)  # asked by prepare, workspace_bytes and cost alike
    def of(
        cls, spec: ConvSpec, threads: int, block_bytes: int, patch_cost: float, whole: bool = False
    ) -> Blocks:
        """Blocks for ``threads`` threads; ``patch_cost``: work on an element of the patch over work on an
        output; ``whole``: of all the output channels.
        """
        row, col = axes(spec)
        planes = spec.in_channels // spec.groups * row.phase_count * col.phase_count
        elements = max(1, block_bytes // spec.in_dtype.itemsize // planes)
        best, rows, cols = math.inf, 1, 1
        halo = lambda rows: 1 + patch_cost * (1 + row.reach / rows)  # noqa: E731
        for narrow in {col.outputs, *(width for width in COLUMNS if width < col.outputs)}:
            pitch = narrow + col.reach
            # Few rows of a tall kernel are mostly halo: then rather more than fit the cache.
            for wanted in (elements // pitch - row.reach, row.reach // 2, row.reach):
                held = max(1, min(row.outputs, wanted))
                waste = halo(held) * pitch / narrow + ROW_COST / (held * pitch)
                if (held + row.reach) * pitch > elements:
                    waste *= SPILLED
                if waste < best:
                    best, rows, cols = waste, held, narrow
        outer, outputs = spec.batch * spec.groups * -(-col.outputs // cols), spec.out_channels // spec.groups
        count = -(-row.outputs // rows)
        wanted = 1 if threads == 1 else next(
            n for n in (4 * threads, 2 * threads, threads)
            if n == threads
            or halo(row.outputs / max(count, -(-n // outer))) <= SHARED_HALO * halo(row.outputs / count)
        )  # fmt: skip
        parts = 1
        if whole:  # the fewest with which the thread that has most has least: reading weights is as two rows
            more = (-(-row.outputs // n) for n in range(count, min(row.outputs, count + threads) + 1))
            rows = min(more, key=lambda rows: -(-outer * -(-row.outputs // rows) // threads) * (rows + 2))
            count = -(-row.outputs // rows)
        elif outer * count < wanted:
            parts = max(1, min(-(-wanted // (outer * count)), outputs // 8))
            if outer * count * parts < wanted:
                count = max(count, min(-(-wanted // (outer * parts)), -(-row.outputs // 8)))
        if row.outputs == 1 and outer * parts < wanted:
            images = spec.batch * spec.groups * parts
            cols = min(cols, -(-col.outputs * images // (wanted * LANES)) * LANES)
        return cls(spec, -(-row.outputs // count), cols, parts)

    @cached_property
    def pitch(self) -> int:
        """Elements from one row of a block to the next."""
        return self.cols + axes(self.spec)[1].reach

    @cached_property
    def plane(self) -> int:
        """Elements of one phase of one channel in scratch."""
        return (self.rows + axes(self.spec)[0].reach) * self.pitch

    @cached_property
    def channel(self) -> int:
        """Elements of one channel in scratch: all its phases."""
        row, col = axes(self.spec)
        return row.phase_count * col.phase_count * self.plane

    @property
    def span(self) -> int:
        """Outputs computed in one block, those between rows included, rounded up to whole vectors."""
        return -(-((self.rows - 1) * self.pitch + self.cols) // LANES) * LANES

    @property
    def items(self) -> int:
        row, col = axes(self.spec)
        return (
            self.spec.batch
            * self.spec.groups
            * self.parts
            * -(-row.outputs // self.rows)
            * -(-col.outputs // self.cols)
        )

    @property
    def scratch(self) -> int:
        """Elements of one thread's patch; reads of the rounded span run past its end by less than ``LANES``.
        """
        return self.spec.in_channels // self.spec.groups * self.channel + LANES

    @cached_property
    def offsets(self) -> np.ndarray:
        """(KH, KW) int64: where each tap of channel 0 reads for output 0."""
        row, col = axes(self.spec)
        table = np.empty((row.kernel, col.kernel), np.int64)
        for kh in range(row.kernel):
            row_phase, down = row.phase_and_shift(kh)
            for kw in range(col.kernel):
                col_phase, right = col.phase_and_shift(kw)
                table[kh,
                      kw] = (row_phase * len(col.phases) + col_phase) * self.plane + down * self.pitch + right
        return table

    @cached_property
    def geometry(self) -> Geometry:
        """What compiled code must know."""
        row, col = axes(self.spec)
        spec = self.spec
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        row_blocks, col_blocks = -(-row.outputs // self.rows), -(-col.outputs // self.cols)
        return Geometry(self.rows, self.cols, self.pitch, self.plane, self.channel, self.parts, spec.groups,
                        inputs, outputs, row_blocks, col_blocks, row.stride, col.stride, row.before,
                        col.before, row.reach, col.reach, len(row.phases), len(col.phases))  # fmt: skip

    @cached_property
    def phases(self) -> np.ndarray:
        """Those of rows, then those of columns."""
        row, col = axes(self.spec)
        return np.array([*row.phases, *col.phases], np.int64)


def shared_by(threads: int, operations: float, spec: ConvSpec) -> int:
    """``threads``, or 1 where one thread needs less than a few hand-overs (30
    to 50 us each) for all of the work.
    """
    moved = math.prod(spec.input_shape) + math.prod(spec.output_shape)
    seconds = operations / FLOPS_PER_S + moved / ELEMENTS_PER_S
    return worth(threads, seconds, SHARED_S)


@linked(**FLAGS)
def locate(item, geometry, y):
    """Block number ``item``; y: (n, o, oh, ow)."""
    parts, outputs = geometry.parts, geometry.outputs
    item, part = item // parts, item % parts
    item, col_block = item // geometry.col_blocks, item % geometry.col_blocks
    item, row_block = item // geometry.row_blocks, item % geometry.row_blocks
    n, group = item // geometry.groups, item % geometry.groups
    row0, col0 = row_block * geometry.rows, col_block * geometry.cols
    o0, o1 = group * outputs + outputs * part // parts, group * outputs + outputs * (part + 1) // parts
    return Block(n, group, o0, o1, row0, min(geometry.rows, y.shape[2] - row0), col0,
                 min(geometry.cols, y.shape[3] - col0))  # fmt: skip


@linked(**FLAGS)
def pack(x, i, scratch, geometry, phases, block):
    """Copy the patch of channel ``i`` of a block's group into scratch, by phases, zero border included."""
    n, c = block.n, block.group * geometry.inputs + i
    rows, cols = block.rows + geometry.row_reach, block.cols + geometry.col_reach
    row_phases, col_phases, col_stride = geometry.row_phases, geometry.col_phases, geometry.col_stride
    height, width = x.shape[2], x.shape[3]
    for a in range(row_phases):
        down = block.row0 * geometry.row_stride + phases[a] - geometry.top
        for b in range(col_phases):
            right = block.col0 * col_stride + phases[row_phases + b] - geometry.left
            # The first column inside the image: ceil(-right / stride)
            first = min(cols, max(0, -(right // col_stride)))
            last = max(first, min(cols, (width - 1 - right) // col_stride + 1))
            plane = i * geometry.channel + (a * col_phases + b) * geometry.plane  # scratch[i][a][b]
            for r in range(rows):
                at, ih = plane + r * geometry.pitch, down + r * geometry.row_stride
                if ih < 0 or ih >= height:
                    _clear(scratch, at, cols)
                    continue
                _clear(scratch, at, first)
                _clear(scratch, at + last, cols - last)
                if col_stride == 1:
                    _copy(x[n, c, ih], right + first, scratch, at + first, last - first)
                else:
                    source = x[n, c, ih]
                    for j in range(first, last):
                        scratch[at + j] = source[right + j * col_stride]


@linked(**FLAGS)
def crop(sums, pitch, y, o, block):
    """Write output channel ``o`` of a block, without what lies between its rows."""
    for r in range(block.rows):
        _copy(sums, r * pitch, y[block.n, o, block.row0 + r], block.col0, block.cols)


# Indices below are unsigned: a signed one may count from the end, and asking that at every element stops
# vectorisation. Slices would do as well, at three times the compilation.


@linked(**FLAGS)
def _clear(a, at, count):
    first = uintp(at)
    for j in range(uintp(max(count, 0))):
        a[first + j] = 0


@linked(**FLAGS)
def _copy(source, at, target, to, count):
    first, start = uintp(at), uintp(to)
    for j in range(uintp(max(count, 0))):
        target[start + j] = source[first + j]


@linked(**FLAGS)
def accumulate(sums, span, scratch, base, offsets, weights, set_first):
    """sums[p] += sum over t of weights[t] * scratch[base + offsets[t] + p] for p < span, rounded up to whole
    vectors.

    Nine or eight taps share one read and write of ``sums``: at two reads a cycle the loop runs near one
    multiply-add each. ``set_first`` forgets what ``sums`` held.
    """
    span = -(-span // LANES) * LANES
    for start in range(0, span, SPAN):
        count, at = min(SPAN, span - start), base + start
        if set_first:
            _clear(sums, start, count)
        left = len(weights)
        while left > 0:
            t = len(weights) - left
            if left >= 9 and left % 8 == 1:
                _add9(sums, start, count, scratch, at, offsets, weights, t)
                left -= 9
            elif left >= 8:
                _add8(sums, start, count, scratch, at, offsets, weights, t)
                left -= 8
            elif left >= 4:
                _add4(sums, start, count, scratch, at, offsets, weights, t)
                left -= 4
            elif left >= 2:
                _add2(sums, start, count, scratch, at, offsets, weights, t)
                left -= 2
            else:
                _add1(sums, start, count, scratch, at, offsets, weights, t)
                left -= 1


@linked(**FLAGS)
def _add9(y, start, n, x, at, o, w, t):
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = (
        w[t],
        w[t + 1],
        w[t + 2],
        w[t + 3],
        w[t + 4],
        w[t + 5],
        w[t + 6],
        w[t + 7],
        w[t + 8],
    )
    a0, a1, a2 = uintp(at + o[t]), uintp(at + o[t + 1]), uintp(at + o[t + 2])
    a3, a4, a5 = uintp(at + o[t + 3]), uintp(at + o[t + 4]), uintp(at + o[t + 5])
    a6, a7, a8 = uintp(at + o[t + 6]), uintp(at + o[t + 7]), uintp(at + o[t + 8])
    first = uintp(start)
    for j in range(uintp(n)):
        y[first + j] += (w0 * x[a0 + j] + w1 * x[a1 + j] + w2 * x[a2 + j] + w3 * x[a3 + j] + w4 * x[a4 + j]
                         + w5 * x[a5 + j] + w6 * x[a6 + j] + w7 * x[a7 + j] + w8 * x[a8 + j])  # fmt: skip


@linked(**FLAGS)
def _add8(y, start, n, x, at, o, w, t):
    w0, w1, w2, w3, w4, w5, w6, w7 = (
        w[t],
        w[t + 1],
        w[t + 2],
        w[t + 3],
        w[t + 4],
        w[t + 5],
        w[t + 6],
        w[t + 7],
    )
    a0, a1, a2, a3 = uintp(at + o[t]), uintp(at + o[t + 1]), uintp(at + o[t + 2]), uintp(at + o[t + 3])
    a4, a5, a6, a7 = uintp(at + o[t + 4]), uintp(at + o[t + 5]), uintp(at + o[t + 6]), uintp(at + o[t + 7])
    first = uintp(start)
    for j in range(uintp(n)):
        y[first + j] += (w0 * x[a0 + j] + w1 * x[a1 + j] + w2 * x[a2 + j] + w3 * x[a3 + j]
                         + w4 * x[a4 + j] + w5 * x[a5 + j] + w6 * x[a6 + j] + w7 * x[a7 + j])  # fmt: skip


@linked(**FLAGS)
def _add4(y, start, n, x, at, o, w, t):
    w0, w1, w2, w3 = w[t], w[t + 1], w[t + 2], w[t + 3]
    a0, a1, a2, a3 = uintp(at + o[t]), uintp(at + o[t + 1]), uintp(at + o[t + 2]), uintp(at + o[t + 3])
    first = uintp(start)
    for j in range(uintp(n)):
        y[first + j] += w0 * x[a0 + j] + w1 * x[a1 + j] + w2 * x[a2 + j] + w3 * x[a3 + j]


@linked(**FLAGS)
def _add2(y, start, n, x, at, o, w, t):
    w0, w1, a0, a1, first = w[t], w[t + 1], uintp(at + o[t]), uintp(at + o[t + 1]), uintp(start)
    for j in range(uintp(n)):
        y[first + j] += w0 * x[a0 + j] + w1 * x[a1 + j]


@linked(**FLAGS)
def _add1(y, start, n, x, at, o, w, t):
    w0, a0, first = w[t], uintp(at + o[t]), uintp(start)
    for j in range(uintp(n)):
        y[first + j] += w0 * x[a0 + j]
