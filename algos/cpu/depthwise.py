"""Depthwise layers, one kernel for each input channel: tiles of outputs in registers, borders by masked loads.

Numba and LLVM IR. A tile is up to seven rows of outputs by one vector: each vector of the input is loaded once for all the
rows that it serves, and nothing is copied or packed. Rows above and below the picture are read from a row of zeros; the first
and the last vectors of a row load only the lanes that are inside, and the last overlaps the one before. Stride 2 picks even
and odd elements from two vectors within 128 bits, which is one instruction, and puts the lanes of the sums in order at the
end. All sizes of the kernel are in the types, so that one function compiles to unrolled code for each of them. Threads take
planes through ``algos/engine/relay.py``.

Cost: 2 * O * taps operations for each output pixel; small layers are bound by memory. Workspace: a row of zeros.
Accuracy: componentwise. NaN and infinity spoil only the outputs whose window holds them.
Forward, 1-D and 2-D, float32 and float64, every stride, dilation and padding, up to ``MOST_TAPS`` taps; fast for column
strides 1 and 2. For one channel it is a picture's filter.

Source: Zhang, Lo and Lu, "High performance depthwise and pointwise convolutions on mobile devices", arXiv:2001.02504.
Equivalent: ``torch.nn.functional.conv2d(x, w, groups=x.shape[1])``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.contract import Algorithm, Cost, forward_float
from algos.engine.blocks import axes
from algos.engine.jit import compile_for, compiled, linked
from algos.engine.memory import LINE, results_of
from algos.engine.relay import CHUNKS, SHARES, SPIN_S, fork, helpers, new_job, part_of, peek, place_of
from algos.engine.simd import I32, I64, VECTOR_BYTES, Emitter, simd
from algos.spec import ConvSpec

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say

MOST_TAPS = 256  # of unrolled code: more take seconds to compile, and are faster by other methods
ROWS, PRODUCTS = 7, 256  # rows of a tile, and products of one lane in it: beyond them sums leave the registers
SHARED_S = 1e-5  # less work than this stays on one thread
FLOPS_PER_S = 5e10  # of one thread, float32, measured on AVX2


class Rows:
    """Vectors of a row of the input: what each tap of a kernel's row multiplies, for consecutive outputs."""

    def __init__(self, builder: Any, element: Any, taps: int, stride: int, dilation: int) -> None:
        self.builder, self.stride = builder, stride
        self.emit = emit = Emitter(builder, element)
        self.taps = [k * dilation for k in range(taps)]
        self.index = ir.IntType(element.bitwidth)  # of columns, as wide as elements are: masks then need no conversion
        self.lane = ir.VectorType(self.index, emit.lanes)
        self.vector_at = emit.vector.as_pointer()
        bits = ir.VectorType(ir.IntType(1), emit.lanes)
        suffix = f"v{emit.lanes}{'f32' if element == types.float32 else 'f64'}.p0"
        get, module = cgutils.get_or_insert_function, builder.module
        load = ir.FunctionType(emit.vector, [self.vector_at, I32, bits, emit.vector])
        self._load = get(module, load, f"llvm.masked.load.{suffix}")
        store = ir.FunctionType(ir.VoidType(), [emit.vector, self.vector_at, I32, bits])
        self._store = get(module, store, f"llvm.masked.store.{suffix}")

        each = 16 // emit.bytes  # stride 2 picks from two vectors, 128 bits of each at a time
        order = [(c, v, i) for c in range(emit.lanes // each) for v in range(2) for i in range(0, each, 2)]
        self.picks = [[v * emit.lanes + c * each + i + odd for c, v, i in order] for odd in range(2)]
        outputs = [(v * emit.lanes + c * each + i) // 2 for c, v, i in order]
        self.restored = [outputs.index(i) for i in range(emit.lanes)]

        self.loose = stride > 2 or not (simd() != "plain" or binding.get_host_cpu_features().get("avx"))
        starts = self.taps if stride == 1 else [tap - tap % 2 for tap in self.taps]
        self.starts = sorted({start + i * emit.lanes for start in starts for i in range(stride)})
        self.span = self.taps[-1] + stride * (emit.lanes - 1) + 1 if stride > 2 else self.starts[-1] + emit.lanes

    def lane_numbers(self, first: Any, step: int = 1) -> Any:
        """A vector of first, first + step, ..."""
        steps = ir.Constant(self.lane, [i * step for i in range(self.emit.lanes)])
        return self.builder.add(self._splat(first), steps)

    def _splat(self, value: Any) -> Any:
        value = value if self.index == I64 else self.builder.trunc(value, self.index)
        first = self.builder.insert_element(ir.Constant(self.lane, ir.Undefined), value, ir.Constant(I32, 0))
        return self.emit.shuffle(first, first, [0] * self.emit.lanes)

    def masks(self, at: Any, width: Any) -> dict[int, Any]:
        """By start of a load, when the first tap of the first output is column ``at``: the lanes inside the row."""
        if self.loose:
            return {tap: (self.lane_numbers(self.builder.add(at, I64(tap)), self.stride), width) for tap in self.taps}
        count, first = self._splat(width), self.lane_numbers(at)
        moved = {start: ir.Constant(self.lane, [start] * self.emit.lanes) for start in self.starts}
        return {start: self.builder.icmp_unsigned("<", self.builder.add(first, by), count) for start, by in moved.items()}

    def vectors(self, row: Any, at: Any, masks: dict[int, Any] | None) -> list[Any]:
        """One vector for each tap, by masks at the borders of a row; ``at``: the first tap of the first output."""
        if self.stride > 2 or (self.loose and masks):
            return [self._one_by_one(row, at, tap, masks) for tap in self.taps]
        emit, found = self.emit, {}
        for start in self.starts:
            place = emit.at(row, at, start)
            if masks is None:
                found[start] = emit.load(place)
            else:
                place = self.builder.bitcast(place, self.vector_at)
                found[start] = self.builder.call(self._load, [place, I32(emit.bytes), masks[start], emit.zero])
        if self.stride == 1:
            return [found[tap] for tap in self.taps]
        return [emit.shuffle(found[tap - tap % 2], found[tap - tap % 2 + emit.lanes], self.picks[tap % 2]) for tap in self.taps]

    def _one_by_one(self, row: Any, at: Any, tap: int, masks: dict[int, Any] | None) -> Any:
        """A vector gathered by scalar loads."""
        builder, emit = self.builder, self.emit
        vector = emit.zero
        for i in range(emit.lanes):
            column = builder.add(at, I64(tap + i * self.stride))
            if masks is None:
                value = builder.load(emit.at(row, column))
            else:
                inside = builder.icmp_unsigned("<", column, masks[tap][1])
                value = builder.load(emit.at(row, builder.select(inside, column, I64(0))))
                value = builder.select(inside, value, ir.Constant(emit.scalar, 0.0))
            vector = builder.insert_element(vector, value, ir.Constant(I32, i))
        return vector if self.stride != 2 else emit.shuffle(vector, vector, [self.restored.index(i) for i in range(emit.lanes)])

    def ordered(self, sums: Any) -> Any:
        return self.emit.shuffle(sums, sums, self.restored) if self.stride == 2 else sums

    def store_first(self, value: Any, pointer: Any, count: Any) -> None:
        """Store the first ``count`` lanes."""
        mask = self.builder.icmp_unsigned("<", self.lane_numbers(I64(0)), self._splat(count))
        self.builder.call(self._store, [value, self.builder.bitcast(pointer, self.vector_at), I32(self.emit.bytes), mask])


@intrinsic
def tile_rows(typingctx, x, w, y, end, zeros, height, width, out_width, top, left, shape):
    """All columns of a tile's rows of outputs: addresses x, w of a plane and its kernel, y of the first of the rows.

    end: of the outputs that may be overwritten; zeros: a row of them; top, left: from the picture to the first tap of output 0.
    """

    def codegen(context, builder, sig, args):
        element, (kh, kw, row_stride, stride, row_dilation, dilation, count) = sig.args[-1][0], map(len, sig.args[-1][1:])
        x, w, y, end, zeros, height, width, out_width, top, left = args[:10]
        rows = Rows(builder, element, kw, stride, dilation)
        emit, pointer = rows.emit, rows.emit.scalar.as_pointer()
        size, lanes = I64(emit.bytes), I64(emit.lanes)
        line_bytes = builder.mul(width, size)
        w = builder.inttoptr(w, pointer)
        weights = [[emit.splat(builder.load(emit.at(w, t * kw + k))) for k in range(kw)] for t in range(kh)]
        uses: dict[int, list[tuple[int, int]]] = {}  # row of the input: outputs' rows that it serves, and by which tap
        for r in range(count):
            for t in range(kh):
                uses.setdefault(r * row_stride + t * row_dilation, []).append((r, t))
        sources = {}
        for q in sorted(uses):
            row = builder.add(top, I64(q))
            found = builder.add(x, builder.mul(row, line_bytes))
            found = builder.select(builder.icmp_unsigned("<", row, height), found, zeros)
            sources[q] = builder.inttoptr(found, pointer)
        pitch = builder.mul(out_width, size)
        targets = [builder.inttoptr(builder.add(y, builder.mul(I64(r), pitch)), pointer) for r in range(count)]
        below = builder.inttoptr(builder.add(x, builder.mul(builder.add(top, I64(max(uses) + 1)), line_bytes)), pointer)

        def tile(masks: Any) -> list[tuple[Any, Any]]:
            sums: list[Any] = [None] * count
            for q, users in sorted(uses.items()):
                for k, vector in enumerate(rows.vectors(sources[q], at, masks)):
                    for r, t in users:
                        weight = weights[t][k]
                        sums[r] = builder.fmul(weight, vector) if sums[r] is None else emit.fma(weight, vector, sums[r])
            return [(rows.ordered(value), emit.at(target, column)) for value, target in zip(sums, targets, strict=True)]

        before = builder.block
        head, middle, border, after, done = map(builder.append_basic_block, ("head", "middle", "border", "after", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        column = builder.phi(I64)
        column.add_incoming(I64(0), before)
        at = builder.sub(builder.mul(column, I64(stride)), left)
        inside = builder.icmp_signed("<=", builder.add(at, I64(rows.span)), width)
        builder.cbranch(builder.and_(builder.icmp_signed(">=", at, I64(0)), inside), middle, border)

        builder.position_at_end(middle)
        if stride == 2:  # two rows of the input for one of outputs: the machine's own prefetching falls behind
            _prefetch(emit, below, column, count * row_stride * stride)
        for value, place in tile(None):
            emit.store(value, place)
        builder.branch(after)

        builder.position_at_end(border)
        found = tile(rows.masks(at, width))
        # Rows narrower than a vector run over into the next ones, which are written later. One branch for all rows: with
        # one each LLVM sinks a row's sum below the stores before it, and spills every vector of the input.
        beyond = builder.ptrtoint(emit.at(found[-1][1], emit.lanes), I64)
        with builder.if_else(builder.icmp_unsigned("<=", beyond, end), likely=True) as (fits, short):
            with fits:
                for value, place in found:
                    emit.store(value, place)
            with short:
                for value, place in found:
                    rows.store_first(value, place, out_width)
        builder.branch(after)

        builder.position_at_end(after)
        following, last = builder.add(column, lanes), builder.sub(out_width, lanes)
        column.add_incoming(builder.select(builder.icmp_signed("<", following, last), following, last), after)
        builder.cbranch(builder.icmp_signed("<", following, out_width), head, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 10, shape), codegen


def _prefetch(emit: Emitter, pointer: Any, column: Any, each: int) -> None:
    """Ask for ``each`` elements for every column of a vector, of the region at ``pointer`` that the next tile reads."""
    kind = ir.FunctionType(ir.VoidType(), [emit.scalar.as_pointer(), I32, I32, I32])
    fetch = cgutils.get_or_insert_function(emit.builder.module, kind, "llvm.prefetch.p0")
    place = emit.at(pointer, emit.builder.mul(column, I64(each)))
    for line in range(0, each * emit.lanes * emit.bytes, LINE):
        emit.builder.call(fetch, [emit.at(place, line // emit.bytes), I32(0), I32(3), I32(1)])


@intrinsic
def tile_size(typingctx, shape):
    """(rows of a tile, bytes of an element)."""

    def codegen(context, builder, sig, args):
        return context.make_tuple(builder, sig.return_type, [I64(len(shape[7])), I64(shape[0].bitwidth // 8)])

    return types.UniTuple(types.intp, 2)(shape), codegen


@linked(error_model="numpy")
def chunk_of_planes(x, y, w, zeros, table, chunks, shape, chunk, slot):
    """Bands of rows of planes; all are addresses, ``table`` of the numbers that ``Depthwise.prepare`` makes."""
    items, height, width, out_height = peek(table, 0), peek(table, 1), peek(table, 2), peek(table, 3)
    out_width, stride, top, left, bands = peek(table, 4), peek(table, 5), peek(table, 6), peek(table, 7), peek(table, 8)
    channels, multiplier, taps = peek(table, 9), peek(table, 10), peek(table, 11)
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
                      row * stride - top, left, shape)  # fmt: skip
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
    """All planes; ``shape`` is (element, kernel, strides, dilations, rows of a tile), lengths given as tuples' lengths."""
    arguments = place_of(x), place_of(y), place_of(w), place_of(zeros), place_of(table), job[CHUNKS], shape
    fork(chunk_of_planes, arguments, job, boxes, hands)


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
        each = math.prod(spec.kernel) * 2 * 8 / FLOPS_PER_S * (VECTOR_BYTES / 32) * (1, 1, 1.5)[min(col.stride, 2)]
        few = 1 + 2.4 / self._rows(spec) ** 1.6  # measured: a row alone loads an input and a weight for each multiply-add
        return vectors * (each * few + 1e-9) * (1 if col.stride < 3 else 6)

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
        lengths = (row.kernel, col.kernel, row.stride, col.stride, row.dilation, col.dilation, rows)
        shape = (spec.in_dtype.type(0), *((0,) * n for n in lengths))
        zeros = np.zeros(col.size, spec.in_dtype)
        table = np.array([items, row.size, col.size, row.outputs, col.outputs, row.stride, row.before, col.before, bands,
                          spec.out_channels, spec.out_channels // spec.groups, math.prod(spec.kernel)], np.int64)  # fmt: skip
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

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        parallel = threads > 1 and self._cut(spec, threads)[0] > 1
        return Cost(self._seconds(spec) * FLOPS_PER_S, spec.min_bytes, calls=2, flops_per_s=FLOPS_PER_S, parallel=parallel)


ALGORITHMS = [Depthwise()]
