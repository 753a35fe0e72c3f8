"""Tiles of a plane filtered by one kernel: a few rows of outputs by one vector, in registers, read from the
image itself.

``Unrolled`` has the kernel and small strides and dilations written into the code: each vector of the input is
loaded once for all the rows that it serves. Code must not grow with numbers of a spec, nor be made anew for
each, so wide strides and dilations are numbers at run time, and ``Looped`` takes all of them so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.engine.epilogue import applied
from algos.engine.lanes import Lanes
from algos.engine.memory import LINE
from algos.engine.simd import I32, I64, Emitter, fresh, loaded_here, loop
from algos.engine.target import REGISTERS, compiles, simd
from algos.spec import ACTIVATIONS

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say

SHAPE = "kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w"
SPARE = 4  # registers for columns, masks and what picks them
MASKED = simd() != "plain" or compiles("avx")  # loads by masks are an instruction


class Planes(NamedTuple):
    """A depthwise layer: ``multiplier`` channels of y for each of x, every plane of y in ``bands`` of rows.
    """

    height: int
    width: int
    out_height: int
    out_width: int
    top: int  # rows of padding
    left: int
    bands: int
    channels: int  # of y
    multiplier: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int


class Unrolled(Lanes):
    """Sums of a tile, ``rows`` rows by a vector, with every tap in the code: column strides 1 to 4.

    shape: as in ``SHAPE``, 0 for a stride or dilation that is a number at run time, in ``sizes``; then no two
    rows of the outputs share a row of the input, and no two taps a vector. row_at: the row of the input so
    far below the first that the tile reads; w: a pointer to the weights.
    """

    def __init__(
        self, emit: Emitter, rows: int, shape: Sequence[int], sizes: Sequence[Any], row_at: Callable, w: Any
    ) -> None:
        # Columns as wide as elements are: masks then need no conversion
        super().__init__(emit, emit.bytes * 8)
        builder, lanes = self.builder, emit.lanes
        kh, kw, row_stride, self.stride, row_dilation, dilation = shape
        self.rows = rows
        each = 16 // emit.bytes  # stride 2 picks from two vectors, 128 bits of each at a time
        order = [(c, v, i) for c in range(lanes // each) for v in range(2) for i in range(0, each, 2)]
        self.picks = [[v * lanes + c * each + i + odd for c, v, i in order] for odd in range(2)]
        outputs = [(v * lanes + c * each + i) // 2 for c, v, i in order]
        self.restored = [outputs.index(i) for i in range(lanes)]
        self.w, self.kh, self.kw = w, kh, kw
        # Kept in registers over all columns where those do, beside the sums and what is multiplied
        self.weights: dict[int, list[Any]] = {}
        room = REGISTERS - SPARE - rows - self.stride
        if kh * kw <= room:
            self.weights = {k: self._weights(k, range(kh)) for k in range(kw)}

        # By what stands for it, the first column of each load, and for each tap its first load and which
        # element of that.
        self.taps: list[tuple[Any, int]] = [(k * dilation // self.stride * self.stride,
                                             k * dilation % self.stride) if dilation
                                            else ((k, 0), 0) for k in range(kw)]  # fmt: skip
        self.starts: dict[Any, Any] = {}
        for k, (tap, _) in enumerate(self.taps):
            first = I64(tap) if dilation else builder.mul(I64(k), sizes[5])
            for i in range(self.stride):
                self.starts[self._next(tap, i)] = builder.add(first, I64(i * lanes))
        last = I64((kw - 1) * dilation) if dilation else builder.mul(I64(kw - 1), sizes[5])
        self.span = builder.add(last, I64(self.stride * lanes))

        # Columns of the kernel that are taken together on all rows: all, those with the same loads, or one,
        # whose weights stay in registers meanwhile; for a tall kernel they are loaded where they are used.
        shared = [[k for k in range(kw) if self.taps[k][0] == tap] for tap, _ in self.taps]
        shared = [ks for i, ks in enumerate(shared) if ks not in shared[:i]]
        alone, most = [[k] for k in range(kw)], kh * max(map(len, shared))
        self.columns = [[*range(kw)]] if self.weights else alone if kh <= room < most else shared
        self.held = bool(self.weights) or kh <= room

        # By what stands for it, each row of the input, and the outputs' rows that it serves, by which row of
        # taps.
        self.uses: dict[Any, list[tuple[int, int]]] = {}
        self.sources: dict[Any, Any] = {}
        for r in range(rows):
            for t in range(kh):
                row = r * row_stride + t * row_dilation if row_stride and row_dilation else (r, t)
                self.uses.setdefault(row, []).append((r, t))
        for row in sorted(self.uses):
            r, t = self.uses[row][0]
            self.sources[row] = row_at(
                builder.add(builder.mul(I64(r), sizes[2]), builder.mul(I64(t), sizes[4]))
            )

    def _next(self, tap: Any, vectors: int) -> Any:
        """What stands for the load so many vectors after a tap's."""
        return (tap[0], vectors) if isinstance(tap, tuple) else tap + vectors * self.emit.lanes

    def sums(self, at: Any, width: Any) -> list[Any]:
        """Of consecutive outputs from the one whose first tap is column ``at``,
        inside a row so wide unless that is None.
        """
        sums: list[Any] = [None] * self.rows
        for taps in self.columns:
            sums = self._added(sums, taps, at, width)
        return [
            self.emit.shuffle(total, total, self.restored) if self.stride == 2 else total for total in sums
        ]

    def _weights(self, k: int, rows: Iterable[int]) -> list[Any]:
        builder, emit = self.builder, self.emit
        return [emit.splat(builder.load(emit.at(self.w, t * self.kw + k))) for t in rows]

    def _added(self, sums: list[Any], taps: list[int], at: Any, width: Any) -> list[Any]:
        """``sums`` and the products of some columns of the kernel."""
        emit = self.emit
        starts = list(dict.fromkeys(self._next(self.taps[k][0], i) for k in taps for i in range(self.stride)))
        masks = {}
        if width is not None:
            width = fresh(self.builder, width)
            at_each = {k: fresh(self.builder, self.builder.add(at, self.starts[k])) for k in starts}
            count = loaded_here(self.builder, ir.Constant(self.lane, list(range(emit.lanes))), emit.bytes)
            masks = {
                k: self.below(self.builder.add(self.splat(first), count), width)
                for k, first in at_each.items()
            }
        if not self.weights:
            (sums,) = emit.settled([sums])
        # Where all weights are held and neighbours share rows, LLVM's order is the faster one, and fits
        shared = self.stride == 1 and len(self.uses) == self.rows + self.kh - 1
        free = bool(self.weights) and shared and not masks
        weights = self.weights or ({k: self._weights(k, range(self.kh)) for k in taps} if self.held else {})
        for row, source in self.sources.items():
            if not free:
                (sums,) = emit.settled([sums])
            found = {}
            for k in starts:
                place = emit.at(source, at, self.starts[k])
                found[k] = self.load(place, masks[k]) if masks else emit.load(place)
            for k in taps:
                tap, first = self.taps[k]
                vector = self._every([found[self._next(tap, i)] for i in range(self.stride)], first)
                for r, t in self.uses[row]:
                    weight = weights[k][t] if weights else self._weights(k, [t])[0]
                    if sums[r] is None:
                        sums[r] = self.builder.fmul(weight, vector)
                    else:
                        sums[r] = emit.fma(weight, vector, sums[r])
        return sums

    def _every(self, vectors: list[Any], first: int) -> Any:
        """Elements first, first + n, ... of n vectors in a row; for stride 2 in the order that ``restored``
        ends.
        """
        emit = self.emit
        if self.stride == 2:
            return emit.shuffle(vectors[0], vectors[1], self.picks[first])
        return every(emit, vectors, first)


def every(emit: Emitter, vectors: list[Any], first: int) -> Any:
    """Elements first, first + n, ... of n vectors in a row, n up to 4."""
    lanes, n = emit.lanes, len(vectors)
    if n == 1:
        return vectors[0]
    if n % 2 == 0:
        picks = range(first % 2, 2 * lanes, 2)
        halves = [emit.shuffle(vectors[i], vectors[i + 1], picks) for i in range(0, n, 2)]
        return every(emit, halves, first // 2)
    # N is odd: no two of them lie in the same lane of two vectors
    places = range(first, first + n * lanes, n)
    owner = {place % lanes: place // lanes for place in places}
    merged = vectors[0]
    for v in range(1, n):
        merged = emit.shuffle(
            merged, vectors[v], [lane + lanes * (owner[lane] == v) for lane in range(lanes)]
        )
    return emit.shuffle(merged, merged, [place % lanes for place in places])


class Looped(Lanes):
    """As ``Unrolled``, with one loop over taps of any number, strides and dilations, all
    i64; ``wide``: not column stride 1.
    """

    def __init__(
        self, emit: Emitter, rows: int, shape: Sequence[Any], row_at: Callable[[Any], Any], w: Any,
        wide: bool, zeros: Any,
    ) -> None:  # fmt: skip
        super().__init__(emit, 64)
        self.zeros = self.builder.inttoptr(zeros, w.type)
        self.rows, self.row_at, self.w, self.wide = rows, row_at, w, wide
        self.kh, self.kw, self.row_stride, self.stride, self.row_dilation, self.dilation = shape
        reach = self.builder.mul(self.builder.sub(self.kw, I64(1)), self.dilation)
        last = self.builder.mul(self.stride, I64(emit.lanes - 1))
        self.span = self.builder.add(self.builder.add(reach, last), I64(1))

    def sums(self, at: Any, width: Any) -> list[Any]:
        builder, emit = self.builder, self.emit

        def row_of_taps(t: Any, sums: list[list[Any]]) -> list[list[Any]]:
            down = builder.mul(t, self.row_dilation)
            rows = [
                self.row_at(builder.add(down, builder.mul(I64(r), self.row_stride))) for r in range(self.rows)
            ]

            def tap(k: Any, sums: list[list[Any]]) -> list[list[Any]]:
                weight = emit.splat(builder.load(emit.at(self.w, builder.mul(t, self.kw), k)))
                column, new = builder.add(at, builder.mul(k, self.dilation)), [list(row) for row in sums]
                for r, vector in enumerate(self._vectors(rows, column, width)):
                    new[r] = [emit.fma(weight, vector, sums[r][0])]
                    if not MASKED:
                        new = emit.settled(new)
                return new

            return loop(builder, emit.vector, self.kw, tap, sums)

        return [
            total for [total] in loop(builder, emit.vector, self.kh, row_of_taps, [[emit.zero]] * self.rows)
        ]

    def _vectors(self, rows: list[Any], start: Any, width: Any) -> Iterable[Any]:
        """One for each row, of the columns ``start``, ``start`` + stride, ..."""
        if width is None and not self.wide:
            return [self.emit.load(self.emit.at(row, start)) for row in rows]
        if not MASKED:
            steps = (self.builder.mul(self.stride, I64(lane)) for lane in range(self.emit.lanes))
            places = [self.builder.add(start, step) for step in steps]
            return (self._one_by_one(row, places, width) for row in rows)
        columns = self.numbers(start, self.stride)
        mask = ir.Constant(self.bit, [1] * self.emit.lanes) if width is None else self.below(columns, width)
        if self.wide:
            return [self.gather(row, columns, mask) for row in rows]
        return [self.load(self.emit.at(row, start), mask) for row in rows]

    def _one_by_one(self, row: Any, places: list[Any], width: Any) -> Any:
        """Masks are many instructions and registers where the machine has none: a
        zero is read instead of what lies outside.
        """
        builder, found = self.builder, self.emit.zero
        for lane, column in enumerate(places):
            place = self.emit.at(row, column)
            if width is not None:
                place = builder.select(builder.icmp_unsigned("<", column, width), place, self.zeros)
            found = builder.insert_element(found, builder.load(place), I32(lane))
        return found


@intrinsic
def tile_rows(typingctx, x, w, y, end, zeros, bias, top, layer, shape):
    """All columns of a tile's rows of outputs: addresses x, w of a plane and its kernel, y of the first of
    the rows.

    end: of the outputs that may be overwritten; zeros: a row of them; bias: address of what is added where
    something follows; top: the row of x that the tile's first tap reads; layer: ``Planes``; shape: as
    ``depthwise.all_planes`` has it.
    """

    def codegen(context, builder, sig, args):
        element, following, count, *known = sig.args[-1][0], *map(len, sig.args[-1][1:])
        x, w, y, end, zeros, bias, top = args[:7]
        numbers = dict(zip(sig.args[7].fields, cgutils.unpack_tuple(builder, args[7]), strict=True))
        height, width, out_width, left = (numbers[name] for name in ("height", "width", "out_width", "left"))
        emit = Emitter(builder, element)
        pointer, size = emit.scalar.as_pointer(), I64(emit.bytes)
        line_bytes, pitch = builder.mul(width, size), builder.mul(out_width, size)
        w = builder.inttoptr(w, pointer)
        targets = [
            builder.inttoptr(builder.add(y, builder.mul(I64(r), pitch)), pointer) for r in range(count)
        ]

        def row_at(down: Any) -> Any:
            row = builder.add(top, down)
            found = builder.add(x, builder.mul(row, line_bytes))
            return builder.inttoptr(
                builder.select(builder.icmp_unsigned("<", row, height), found, zeros), pointer
            )

        inner: Unrolled | Looped
        outer: Unrolled | Looped
        unrolled, lines = len(known) == len(SHAPE), 0
        written = known if unrolled else [0] * len(SHAPE)
        sizes = [I64(n) if n else numbers[name] for n, name in zip(written, SHAPE, strict=True)]
        stride = sizes[3]
        if unrolled:
            inner = Unrolled(emit, count, known, sizes, row_at, w)
            outer = inner if MASKED else Looped(emit, count, sizes, row_at, w, known[3] > 1, zeros)
            if all(known) and known[3] == 2:
                lines = max(inner.uses) + 1
        else:
            inner = outer = Looped(emit, count, sizes, row_at, w, known[0] > 1, zeros)
        below = builder.inttoptr(
            builder.add(x, builder.mul(builder.add(top, I64(lines)), line_bytes)), pointer
        )

        added = emit.splat(builder.load(builder.inttoptr(bias, pointer))) if following else None

        def finished(sums: list[Any]) -> list[Any]:
            return (
                [applied(emit, ACTIVATIONS[following - 1], total, added) for total in sums]
                if following
                else sums
            )

        def vector_at(column: Any) -> None:
            at = builder.sub(builder.mul(column, stride), left)
            inside = builder.icmp_signed("<=", builder.add(at, inner.span), width)
            inside = builder.and_(builder.icmp_signed(">=", at, I64(0)), inside)
            with builder.if_else(inside) as (middle, border):
                with middle:
                    # Two rows of the input for one of outputs: the machine's own prefetching falls behind
                    if lines:
                        fetch(emit, below, column, count * known[2] * known[3])
                    for value, target in zip(finished(inner.sums(at, None)), targets, strict=True):
                        emit.store(value, emit.at(target, column))
                with border:
                    places = [emit.at(target, column) for target in targets]
                    _store_at_border(outer, finished(outer.sums(at, width)), places, end, out_width)

        each_vector(emit, out_width, vector_at)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7, layer, shape), codegen


def each_vector(emit: Emitter, count: Any, step: Callable[[Any], None]) -> None:
    """``step(column)`` for every vector of ``count`` columns, at least one; the last overlaps the one before.
    """
    builder, before = emit.builder, emit.builder.block
    head, done = builder.append_basic_block("head"), builder.append_basic_block("done")
    builder.branch(head)
    builder.position_at_end(head)
    column = builder.phi(I64)
    column.add_incoming(I64(0), before)
    step(column)
    following, last = builder.add(column, I64(emit.lanes)), builder.sub(count, I64(emit.lanes))
    column.add_incoming(
        builder.select(builder.icmp_signed("<", following, last), following, last), builder.block
    )
    builder.cbranch(builder.icmp_signed("<", following, count), head, done)
    builder.position_at_end(done)


def _store_at_border(
    tile: Unrolled | Looped, values: list[Any], places: list[Any], end: Any, out_width: Any
) -> None:
    """Rows narrower than a vector run over into the next ones, which are written later, but never past
    ``end``.

    One branch for all rows: with one each LLVM sinks a row's sum below the stores before it, and spills every
    vector of the input.
    """
    builder, emit = tile.builder, tile.emit
    beyond = builder.ptrtoint(emit.at(places[-1], emit.lanes), I64)
    with builder.if_else(builder.icmp_unsigned("<=", beyond, end), likely=True) as (fits, short):
        with fits:
            for value, place in zip(values, places, strict=True):
                emit.store(value, place)
        with short:
            for value, place in zip(values, places, strict=True):
                tile.store_first(value, place, fresh(builder, out_width))


def fetch(emit: Emitter, pointer: Any, column: Any, each: int) -> None:
    """Ask for ``each`` elements for every column of a vector, of the region at
    ``pointer`` that the next tile reads.
    """
    kind = ir.FunctionType(ir.VoidType(), [emit.scalar.as_pointer(), I32, I32, I32])
    ask = cgutils.get_or_insert_function(emit.builder.module, kind, "llvm.prefetch.p0")
    place = emit.at(pointer, emit.builder.mul(column, I64(each)))
    for line in range(0, each * emit.lanes * emit.bytes, LINE):
        emit.builder.call(ask, [emit.at(place, line // emit.bytes), I32(0), I32(3), I32(1)])


@intrinsic
def element_size(typingctx, shape):
    """Bytes of the element that comes first in a shape."""

    def codegen(context, builder, sig, args):
        return I64(shape[0].bitwidth // 8)

    return types.intp(shape), codegen
