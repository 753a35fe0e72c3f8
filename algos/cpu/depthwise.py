"""Depthwise layers, one kernel for each input channel: tiles of outputs in registers, borders by masked loads.

Numba and LLVM IR. A tile is up to seven rows of outputs by one vector: each vector of the input is loaded once for all the
rows that it serves, and nothing is copied or packed. Rows above and below the picture are read from a row of zeros; the first
and the last vectors of a row load only the lanes that are inside, and the last overlaps the one before. Stride 2 picks even
and odd elements from two vectors within 128 bits, which is one instruction, and puts the lanes of the sums in order at the
end; strides 3 and 4 pick from three and four vectors, which serve all taps among them: 3 to 10 times as fast as one element
at a time. The kernel's size and strides and dilations up to 4 are in the types, so that one function compiles to unrolled code
for each of them; wider dilations and row strides are numbers at run time, and so is all of it for wider column strides, in one
loop over the taps (``algos/engine/planes.py``). Threads take planes through ``algos/engine/relay.py``.

Cost: 2 * O * taps operations for each output pixel; small layers are bound by memory. Workspace: a row of zeros.
Accuracy: componentwise. NaN and infinity spoil only the outputs whose window holds them.
Forward, 1-D and 2-D, float32 and float64, every stride, dilation and padding, up to ``MOST_TAPS`` taps; fast for column
strides 1 to 4. For one channel it is a picture's filter.

Source: Zhang, Lo and Lu, "High performance depthwise and pointwise convolutions on mobile devices", arXiv:2001.02504.
Equivalent: ``torch.nn.functional.conv2d(x, w, groups=x.shape[1])``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from algos.contract import Algorithm, Cost, forward_float
from algos.engine.blocks import axes
from algos.engine.jit import compile_for, compiled, linked
from algos.engine.memory import results_of
from algos.engine.planes import tile_rows, tile_size
from algos.engine.relay import CHUNKS, SHARES, SPIN_S, fork, helpers, new_job, part_of, peek, place_of
from algos.engine.simd import VECTOR_BYTES
from algos.spec import ConvSpec

MOST_TAPS = 256  # of unrolled code: more take seconds to compile, and are faster by other methods
ROWS, PRODUCTS = 7, 256  # rows of a tile, and products of one lane in it: beyond them sums leave the registers
# What is written into the code: column strides; row strides and dilations, at which rows of a tile share rows of the input.
UNROLLED_STRIDE, UNROLLED_STEP, UNROLLED_COLUMNS = 4, 4, 1 << 30
PICKING = 1, 1.5, 3.5, 3.5, 12  # what column strides 1 to 4, and wider ones, cost beside 1, measured
SHARED_S = 1e-5  # less work than this stays on one thread
FLOPS_PER_S = 5e10  # of one thread, float32, measured on AVX2


@linked(error_model="numpy")
def chunk_of_planes(x, y, w, zeros, table, chunks, shape, chunk, slot):
    """Bands of rows of planes; all are addresses, ``table`` of the numbers that ``Depthwise.prepare`` makes."""
    items, height, width, out_height = peek(table, 0), peek(table, 1), peek(table, 2), peek(table, 3)
    out_width, top, left, bands = peek(table, 4), peek(table, 5), peek(table, 6), peek(table, 7)
    channels, multiplier, taps, stride = peek(table, 8), peek(table, 9), peek(table, 10), peek(table, 13)
    rows, size = tile_size(shape)
    first, last = part_of(items, chunks, chunk)
    end = y + (last // bands * out_height + last % bands * out_height // bands) * out_width * size
    plane, band = first // bands, first % bands
    channel, copy = plane % channels, plane % multiplier
    source = x + plane // multiplier * height * width * size
    for _ in range(first, last):  # a small plane takes less time than the divisions that would find it
        row, stop = 0, out_height
        if bands > 1:
            row, stop = out_height * band // bands, out_height * (band + 1) // bands
        while row < stop:
            row = min(row, stop - rows)  # the last tile overlaps the one before
            target = y + (plane * out_height + row) * out_width * size
            tile_rows(source, w + channel * taps * size, target, end, zeros, height, width, out_width,
                      row * stride - top, left, table, shape)  # fmt: skip
            row += rows
        band += 1
        if band == bands:
            band, plane, channel, copy = 0, plane + 1, channel + 1, copy + 1
            if channel == channels:
                channel = 0
            if copy == multiplier:
                copy, source = 0, source + height * width * size


@compiled(error_model="numpy")
def depthwise_planes(x, y, w, zeros, table, shape, job, boxes, hands):
    """All planes; ``shape`` is (element, rows of a tile, kernel, strides, dilations), numbers given as tuples' lengths.

    A wide dilation or row stride is given as 0, and all that follows the rows as (column stride or 2) where that is wide:
    ``table`` has them then.
    """
    arguments = place_of(x), place_of(y), place_of(w), place_of(zeros), place_of(table), job[CHUNKS], shape
    fork(chunk_of_planes, arguments, job, boxes, hands)


def _written(spec: ConvSpec) -> tuple[int, ...]:
    """What of ``SHAPE`` is compiled into the code, 0 for what is a number at run time; or (column stride or 2), and no more."""
    row, col = axes(spec)
    if col.stride > UNROLLED_STRIDE or spec.padded_size[-1] > UNROLLED_COLUMNS:
        return (min(col.stride, 2),)
    down, row_gap, gap = (n if n <= UNROLLED_STEP else 0 for n in (row.stride, row.dilation, col.dilation))
    return row.kernel, col.kernel, down, col.stride, row_gap, gap


@dataclass(frozen=True)
class Depthwise(Algorithm):
    """Tiles in registers; see the module.

    Attributes
    ----------
    rows : int
        Rows of outputs in a tile; 0 is as many as keep the sums in registers.
    """

    name: str = "depthwise"
    family: str = "direct"
    runtime: str = "numba"
    rows: int = 0

    def unsupported(self, spec: ConvSpec) -> str | None:
        if reason := forward_float(spec, ndim=(1, 2)):
            return reason
        if spec.in_channels != spec.groups:
            return f"computes depthwise layers, with one input channel a group, not {spec.in_channels // spec.groups}"
        if math.prod(spec.kernel) > MOST_TAPS:
            return f"computes kernels of up to {MOST_TAPS} taps, not {math.prod(spec.kernel)}"
        return None

    def _seconds(self, spec: ConvSpec) -> float:
        """Of one thread: whole vectors of outputs, and for a few taps their loads and stores."""
        _, col = axes(spec)
        vector = VECTOR_BYTES // spec.in_dtype.itemsize
        vectors = math.prod(spec.output_shape) / col.outputs * -(-col.outputs // vector)
        each = math.prod(spec.kernel) * 2 * 8 / FLOPS_PER_S * (VECTOR_BYTES / 32) * PICKING[min(col.stride, len(PICKING)) - 1]
        few = 1 + 2.4 / self._rows(spec) ** 1.6  # measured: a row alone loads an input and a weight for each multiply-add
        return vectors * (each * few + 1e-9)

    def _rows(self, spec: ConvSpec) -> int:
        """Output rows of a tile."""
        row, _ = axes(spec)
        most = self.rows or max(1, min(ROWS, PRODUCTS // math.prod(spec.kernel)))
        return -(-row.outputs // -(-row.outputs // min(most, row.outputs)))

    def _cut(self, spec: ConvSpec, threads: int) -> tuple[int, int, int]:
        """(threads worth using, rows of a tile, bands of rows of a plane)."""
        row, _ = axes(spec)
        threads = threads if self._seconds(spec) > SHARED_S else 1
        rows = self._rows(spec)
        wanted = SHARES * threads if threads > 1 else 1
        return threads, rows, max(1, min(-(-wanted // (spec.batch * spec.out_channels)), row.outputs // rows))

    def alternatives(self, spec: ConvSpec, threads: int = 1) -> Sequence[Algorithm]:
        return self.variants(lambda one: one._cut(spec, threads), rows=range(1, ROWS + 1))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return axes(spec)[1].size * spec.in_dtype.itemsize

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        row, col = axes(spec)
        threads, rows, bands = self._cut(spec, threads)
        crew = helpers()
        hands = crew.hire(threads - 1)
        items = spec.batch * spec.out_channels * bands
        sizes = (row.kernel, col.kernel, row.stride, col.stride, row.dilation, col.dilation)
        shape = (spec.in_dtype.type(0), *((0,) * n for n in (rows, *_written(spec))))
        zeros = np.zeros(col.size, spec.in_dtype)
        table = np.array([items, row.size, col.size, row.outputs, col.outputs, row.before, col.before, bands, spec.out_channels,
                          spec.out_channels // spec.groups, math.prod(spec.kernel), *sizes], np.int64)  # fmt: skip
        job = new_job(items, hands + 1)
        image = np.empty((1,) * (spec.ndim + 2), spec.in_dtype)
        compile_for(depthwise_planes, image, image, weights, zeros, table, shape, job, crew.boxes, hands)
        boxes, long = crew.boxes, self._seconds(spec) > SPIN_S
        new_result = results_of(spec)

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = new_result() if out is None else out
            crew.wake(hands, long)
            depthwise_planes(x, y, weights, zeros, table, shape, job, boxes, hands)
            return y

        return run

    def compile_s(self, spec: ConvSpec) -> float:
        return 0.7 + 0.01 * (math.prod(spec.kernel) if len(_written(spec)) > 1 else 0)

    def specialised(self, spec: ConvSpec) -> tuple[Any, ...]:
        return spec.dtype, spec.ndim, self._rows(spec), *_written(spec)

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        parallel = threads > 1 and self._cut(spec, threads)[0] > 1
        return Cost(self._seconds(spec) * FLOPS_PER_S, spec.min_bytes, calls=2, flops_per_s=FLOPS_PER_S, parallel=parallel)


ALGORITHMS = [Depthwise()]
