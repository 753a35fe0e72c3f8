"""Pictures: a strip of four rows at a time, its sums in registers, read from the image itself.

Numba, with blocks of sums written as LLVM IR (``algos/engine/strips.py``): 4 rows by 3 vectors stay in
registers over all taps, so a vector of the input is loaded once for up to four output rows, and a weight once
for three vectors. At two loads and two multiply-adds a cycle that leaves arithmetic as the limit from 5x5 on;
3x3 is bound by its loads. The image is not padded: only the ends of rows whose windows hang over are copied,
with zeros, into a ring that moves down with the strip, and rows above and below the image are one row of
zeros. Against the same blocks left to LLVM's scheduling, which spills sums: 9x9 by 1.5 times.

Cost: 2 * O * C/groups * taps operations for each output pixel; columns are rounded up to whole blocks.
Workspace: for each thread the ends of KH + 3 rows of each input channel of a group, and two rows.
Accuracy: componentwise. NaN and infinity spoil only the outputs whose window holds them.
Forward, 1-D and 2-D, float32 and float64, every padding and number of groups; no stride, no dilation. Made
for few channels: with many a matrix product reuses more.

Equivalent: ``cv2.filter2D`` with a constant border, ``scipy.ndimage.correlate`` with mode "constant".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from algos.contract import Cost, Support
from algos.cpu._compiled import Compiled, Work
from algos.engine.blocks import FLAGS, axes, in_2d
from algos.engine.epilogue import after_of, finish
from algos.engine.jit import compiled, linked
from algos.engine.memory import aligned
from algos.engine.relay import fork
from algos.engine.simd import address, copy_bytes, lanes, place
from algos.engine.strips import UNROLLED, correlate_block, strip_rows, strip_vectors
from algos.engine.tables import named, table_of
from algos.engine.threads import worth
from algos.spec import ConvSpec

FLOPS_PER_S = 7e10  # of one thread, float32
SHARED_S = 3e-5  # less work than this stays on one thread


class Layout(NamedTuple):
    """How the outputs are cut into strips of rows and those into blocks of columns, and what scratch holds
    for them.

    Blocks before ``left`` and from ``right`` on reach beyond the image: they read copies of the rows' ends. A
    row's copy is the padding, its first ``head`` elements, then from ``tail_at`` on its last ``tail`` and
    zeros: columns ``skipped`` to the left of where the whole row has them. The last block goes through
    scratch unless it ends with the row.
    """

    rows: int  # of a strip
    items: int
    block: int  # columns
    blocks: int
    parts: int  # of a strip
    strips: int
    top: int  # rows of padding
    before: int  # columns of padding
    left: int
    right: int
    head: int
    tail: int
    tail_at: int
    skipped: int
    pitch: int  # elements of a row's copy
    zeros: int  # where scratch has a row of them,
    unwanted: int  # a row for outputs below the last,
    rest: int  # and the last blocks of a strip's rows
    scratch: int  # elements
    pointers: int


@linked(**FLAGS)
def correlate_strips(x, y, w, layout, taps, strip, scratches, tables, after, slot, first, last):
    """Items [first, last); x: (n, c, h, w); y: (n, o, oh, ow); w: (o, c / groups, kh, kw); scratches, tables:
    of each thread.

    tables hold addresses of a strip's input rows in the image, of the same rows' ends in scratch, of its
    output rows, and of where their last blocks go when they end inside one.
    """
    scratch, pointers = scratches[slot], tables[slot]
    block, blocks, parts, strips = layout.block, layout.blocks, layout.parts, layout.strips
    left, right, before, unwanted, rest = (
        layout.left,
        layout.right,
        layout.before,
        layout.unwanted,
        layout.rest,
    )
    size, channels, height, width = x.itemsize, x.shape[1], x.shape[2], x.shape[3]
    inputs, kh, kw = w.shape[1], w.shape[2], w.shape[3]
    outputs, oh, ow = y.shape[1] * inputs // channels, y.shape[2], y.shape[3]
    rows_out = len(strip)
    rows_in = rows_out + kh - 1
    for item in range(first, last):
        part, above = item % parts, item // parts
        plane, row0 = above // strips, above % strips * rows_out
        n, group = plane * inputs // channels, plane * inputs % channels // inputs
        b0, b1 = blocks * part // parts, blocks * (part + 1) // parts
        # Input rows whose ends the strip above copied
        kept = kh - 1 if item > first and row0 > 0 and parts == 1 else 0
        for o in range(group * outputs, (group + 1) * outputs):
            for r in range(rows_out):
                at = place(y, ((n * y.shape[1] + o) * oh + row0 + r) * ow)  # y[n][o][row0 + r][0]
                pointers[2 * rows_in + r] = at if row0 + r < oh else place(scratch, unwanted)
                pointers[2 * rows_in + rows_out + r] = place(scratch, rest + r * block - (blocks - 1) * block)
            for c in range(inputs):
                for i in range(rows_in):
                    ih = row0 + i - layout.top
                    if ih < 0 or ih >= height:
                        pointers[i] = pointers[rows_in + i] = place(scratch, layout.zeros)
                        continue
                    channel = n * channels + group * inputs + c
                    at = place(x, (channel * height + ih) * width)  # x[n][channel][ih][0]
                    ring = place(scratch, (c * rows_in + (row0 + i) % rows_in) * layout.pitch)
                    pointers[i], pointers[rows_in + i] = at - before * size, ring
                    if i >= kept and o == group * outputs:
                        if b0 < left:
                            copy_bytes(ring + before * size, at, layout.head * size)
                        if b1 > right:
                            end = at + (width - layout.tail) * size
                            copy_bytes(ring + layout.tail_at * size, end, layout.tail * size)
                weights = address(w, (o * inputs + c) * kh * kw)  # w[o][c][0][0]
                for b in range(b0, b1):
                    col = b * block
                    rows = address(pointers, 0 if left <= b < right else rows_in)
                    outs = address(pointers, 2 * rows_in + (rows_out if col + block > ow else 0))
                    shift = layout.skipped if b >= right else 0
                    correlate_block(rows, outs, weights, col - shift, col, kh, kw, c > 0, taps, strip)
            if b1 == blocks and ow % block:
                for r in range(min(rows_out, oh - row0)):
                    at = place(y, ((n * y.shape[1] + o) * oh + row0 + r) * ow + (blocks - 1) * block)
                    copy_bytes(at, place(scratch, rest + r * block), (ow - (blocks - 1) * block) * size)
            columns = min(ow, b1 * block) - b0 * block
            finish(after, y, n, o, 1, row0 * ow + b0 * block, min(rows_out, oh - row0), columns)


@compiled(**FLAGS)
def correlate_all(x, y, w, table, taps, strip, scratches, tables, job):
    """Every strip, shared with the helpers; ``table``: of a ``Layout``."""
    arguments = x, y, w, named(Layout, table), taps, strip, scratches, tables, after_of(job)
    fork(correlate_strips, arguments, job)


@lru_cache(maxsize=1024)  # asked by prepare, workspace_bytes and cost alike
def layout_of(spec: ConvSpec, threads: int) -> Layout:
    """How ``threads`` threads share a spec."""
    row, col = axes(spec)
    rows, vector = strip_rows(row.kernel), lanes(spec.in_dtype)
    block = strip_vectors(rows) * vector
    reach = block + col.kernel - 1
    starts = range(0, col.outputs, block)
    count = len(starts)
    left = min(count, -(-col.before // block))
    right = max(left, min(count, (col.before + col.size - reach) // block + 1))
    pitch = tail_at = starts[left - 1] + reach if left else 0
    head = max(0, min(col.size, pitch - col.before))
    skipped = tail = 0
    if right < count:
        skipped, tail = starts[right] - tail_at, max(0, col.before + col.size - starts[right])
        pitch += starts[-1] + reach - starts[right]
    pitch = -(-pitch // vector) * vector
    rows_in = rows + row.kernel - 1
    strips, planes = -(-row.outputs // rows), spec.batch * spec.groups
    # Of a strip: a signal is one
    parts = min(count, -(-4 * threads // (planes * strips))) if threads > 1 else 1
    zeros = spec.in_channels // spec.groups * rows_in * pitch
    unwanted = zeros + max(starts[-1] + reach, pitch)
    rest = unwanted + col.outputs
    return Layout(rows, planes * strips * parts, block, count, parts, strips, row.before, col.before, left,
                  right, head, tail,
               tail_at, skipped, pitch, zeros, unwanted, rest, rest + rows * block,
                  2 * (rows_in + rows))  # fmt: skip


@dataclass(frozen=True)
class NumbaPicture(Compiled):
    """Strips of rows with their sums in registers; see the module."""

    name: str = "numba_picture"
    family: str = "direct"
    support: ClassVar[Support | None] = Support(ndim=(1, 2), epilogues=True)

    def beyond(self, spec: ConvSpec) -> str | None:
        return (
            "computes every output of an undilated kernel" if {*spec.stride, *spec.dilation} != {1} else None
        )

    def _threads(self, spec: ConvSpec, threads: int) -> int:
        return worth(threads, self._operations(spec) / self._speed(spec), SHARED_S)

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        threads = self._threads(spec, threads)
        layout = layout_of(spec, threads)
        return min(threads, layout.items) * (layout.scratch * spec.in_dtype.itemsize + 8 * layout.pointers)

    @staticmethod
    def _written(spec: ConvSpec) -> tuple[int, int]:
        """What is written into the code: taps of a row, 0 for a loop, and rows of a strip."""
        row, col = axes(spec)
        return col.kernel if col.kernel <= UNROLLED else 0, strip_rows(row.kernel)

    def specialised(self, spec: ConvSpec) -> tuple[Any, ...]:
        return spec.dtype, *self._written(spec)

    def work(self, spec: ConvSpec, weights: np.ndarray, threads: int) -> Work:
        threads = self._threads(spec, threads)
        layout = layout_of(spec, threads)
        threads = min(threads, layout.items)
        w = in_2d(weights)
        scratch = aligned((threads, layout.scratch), spec.in_dtype, zeros=True)
        pointers = np.zeros((threads, layout.pointers), np.int64)
        taps, strip = ((0,) * count for count in self._written(spec))
        arguments = w, table_of(layout), taps, strip, scratch, pointers
        return Work(correlate_all, arguments, layout.items, threads, as_2d=True)

    def _operations(self, spec: ConvSpec) -> float:
        """Of whole blocks; an output costs about ten operations' time beside
        its taps, a strip's row about 2000.
        """
        layout = layout_of(spec, 1)
        rows = math.prod(spec.output_shape[:-1]) * spec.in_channels // spec.groups
        return rows * (layout.block * layout.blocks * (2.0 * math.prod(spec.kernel) + 10) + 2000)

    def _speed(self, spec: ConvSpec) -> float:
        return FLOPS_PER_S * 4 / spec.in_dtype.itemsize

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        shared = self._threads(spec, threads) > 1
        return Cost(
            self._operations(spec), spec.min_bytes, calls=4, flops_per_s=self._speed(spec), parallel=shared
        )


ALGORITHMS = [NumbaPicture()]
