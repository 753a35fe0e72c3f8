"""Compiled passes over elements that lie side by side: sums, and what normalisation makes of them.

The last vectors are masked, so that short rows cost as many instructions as they have vectors. Sums of blocks
are taken in four vectors of their own type, and from one block to the next in float64.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.engine.jit import linked
from algos.engine.lanes import Lanes
from algos.engine.products import sum_of
from algos.engine.simd import I64, Emitter, any_times, place

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say

BLOCK = 1 << 11  # elements whose sum is taken in their own type
TOGETHER = 4  # vectors, so that no sum waits for the one before
TOTAL, SQUARES, PRODUCTS = (), (0,), (0, 0)  # kinds of sums, known to compiled code as a tuple's length


@intrinsic
def block_sum(typingctx, kind, x, y, count, centre):
    """The sum of ``count`` elements, 1 or more, from x on; of the squares of x - centre; of (x - centre) y.

    x, y: addresses; centre: a float of the elements' type.
    """

    def codegen(context, builder, sig, args):
        _, x, y, count, centre = args
        emit = Emitter(builder, sig.args[4])
        lanes, pointer, form = Lanes(emit, 8 * emit.bytes), emit.scalar.as_pointer(), len(sig.args[0])
        x, y, middle = builder.inttoptr(x, pointer), builder.inttoptr(y, pointer), emit.splat(centre)

        def added(total: Any, at: Any, mask: Any = None) -> Any:
            if form == 0:
                return builder.fadd(total, lanes.load(emit.at(x, at), mask))
            value = builder.fsub(lanes.load(emit.at(x, at), mask, middle), middle)
            return emit.fma(value, value if form == 1 else lanes.load(emit.at(y, at), mask), total)

        def together(index: Any, sums: list[list[Any]]) -> list[list[Any]]:
            first = builder.mul(index, I64(TOGETHER * emit.lanes))
            return [[added(total, builder.add(first, I64(v * emit.lanes)))
                     for v, total in enumerate(sums[0])]]  # fmt: skip

        def whole(index: Any, sums: list[list[Any]]) -> list[list[Any]]:
            a, *rest = sums[0]
            return [[*rest, added(a, builder.add(done, builder.mul(index, I64(emit.lanes))))]]

        def last(index: Any, sums: list[list[Any]]) -> list[list[Any]]:
            at = builder.and_(count, I64(-emit.lanes))
            mask = lanes.below(lanes.numbers(I64(0)), builder.sub(count, at))
            a, *rest = sums[0]
            return [[*rest, added(a, at, mask)]]

        times = builder.udiv(count, I64(TOGETHER * emit.lanes))
        done = builder.mul(times, I64(TOGETHER * emit.lanes))
        sums = any_times(builder, emit.vector, times, together, [[emit.zero] * TOGETHER])
        vectors = builder.udiv(builder.sub(count, done), I64(emit.lanes))
        sums = any_times(builder, emit.vector, vectors, whole, sums)
        ragged = builder.icmp_unsigned("!=", builder.and_(count, I64(emit.lanes - 1)), I64(0))
        left = builder.zext(ragged, I64)
        a, b, c, d = any_times(builder, emit.vector, left, last, sums)[0]
        return sum_of(emit, builder.fadd(builder.fadd(a, b), builder.fadd(c, d)))

    return centre(kind, types.intp, types.intp, types.intp, centre), codegen


@linked(error_model="numpy")
def row_sum(kind, x, y, first, count, centre):
    """``block_sum`` of elements [first, first + count) of flat x and y, in float64."""
    found, centre = 0.0, x.dtype.type(centre)
    for at in range(first, first + count, BLOCK):
        found += block_sum(kind, place(x, at), place(y, at), min(BLOCK, first + count - at), centre)
    return found


def _each(emit: Emitter, count: Any, value: Any, target: Any) -> None:
    """Store ``value(lanes, column, mask)`` at every vector of ``count`` columns of ``target``; mask: None for
    all lanes.
    """
    lanes, builder = Lanes(emit, 8 * emit.bytes), emit.builder
    wide = TOGETHER * emit.lanes
    together, whole = (builder.and_(count, I64(-each)) for each in (wide, emit.lanes))
    with cgutils.for_range_slice(builder, I64(0), together, I64(wide), I64) as (column, _):
        columns = [builder.add(column, I64(v * emit.lanes)) for v in range(TOGETHER)]
        # All are loaded before any is stored, which might be what is loaded next for all that LLVM knows
        found = [value(lanes, each, None) for each in columns]
        for each, vector in zip(columns, found, strict=True):
            emit.store(vector, emit.at(target, each))
    with cgutils.for_range_slice(builder, together, whole, I64(emit.lanes), I64) as (column, _):
        emit.store(value(lanes, column, None), emit.at(target, column))
    left = builder.sub(count, whole)
    with builder.if_then(builder.icmp_unsigned("!=", left, I64(0))):
        mask = lanes.below(lanes.numbers(I64(0)), left)
        lanes.store(value(lanes, whole, mask), emit.at(target, whole), mask)


@intrinsic
def scale_row(typingctx, x, y, count, centre, scale, shift):
    """y = (x - centre) * scale + shift; x, y: addresses of ``count`` elements."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, sig.args[3])
        x, y = (builder.inttoptr(one, emit.scalar.as_pointer()) for one in args[:2])
        centre, scale, shift = map(emit.splat, args[3:])

        def value(lanes: Lanes, column: Any, mask: Any) -> Any:
            return emit.fma(builder.fsub(lanes.load(emit.at(x, column), mask), centre), scale, shift)

        _each(emit, args[2], value, y)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, centre, scale, shift), codegen


@intrinsic
def scale_columns(typingctx, x, y, count, centres, scales, shifts, element):
    """``scale_row`` with centres, scales and shifts of columns, at addresses; element: one like theirs."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, element)
        x, y, *each = (builder.inttoptr(args[i], emit.scalar.as_pointer()) for i in (0, 1, 3, 4, 5))

        def value(lanes: Lanes, column: Any, mask: Any) -> Any:
            read, centre, scale, shift = (lanes.load(emit.at(row, column), mask) for row in (x, *each))
            return emit.fma(builder.fsub(read, centre), scale, shift)

        _each(emit, args[2], value, y)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6, element), codegen


@intrinsic
def weigh_row(typingctx, x, w, b, y, count, centre, scale):
    """y = (x - centre) * scale * w + b, with a weight and a bias for each of ``count`` elements: addresses.
    """

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, sig.args[5])
        x, w, b, y = (builder.inttoptr(one, emit.scalar.as_pointer()) for one in args[:4])
        centre, scale = map(emit.splat, args[5:])

        def value(lanes: Lanes, column: Any, mask: Any) -> Any:
            read, weight, bias = (lanes.load(emit.at(row, column), mask) for row in (x, w, b))
            return emit.fma(builder.fmul(builder.fsub(read, centre), scale), weight, bias)

        _each(emit, args[4], value, y)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5, centre, scale), codegen


@intrinsic
def blend_row(typingctx, g, x, y, count, centre, scale, slope, shift):
    """y = g * scale + (x - centre) * slope + shift; g, x, y: addresses of ``count`` elements."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, sig.args[4])
        g, x, y = (builder.inttoptr(one, emit.scalar.as_pointer()) for one in args[:3])
        centre, scale, slope, shift = map(emit.splat, args[4:])

        def value(lanes: Lanes, column: Any, mask: Any) -> Any:
            given, read = (lanes.load(emit.at(row, column), mask) for row in (g, x))
            return emit.fma(given, scale, emit.fma(builder.fsub(read, centre), slope, shift))

        _each(emit, args[3], value, y)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, centre, scale, slope, shift), codegen


@intrinsic
def bend_row(typingctx, g, x, y, count, slope, top):
    """y = g where 0 < x < top or x is NaN; slope * g where x is 0 or less, 0 for a slope of 0; 0 elsewhere.
    """

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, sig.args[4])
        g, x, y = (builder.inttoptr(one, emit.scalar.as_pointer()) for one in args[:3])
        flat = builder.fcmp_ordered("==", args[4], ir.Constant(emit.scalar, 0.0))
        slope, top = map(emit.splat, args[4:])

        def value(lanes: Lanes, column: Any, mask: Any) -> Any:
            given, read = (lanes.load(emit.at(row, column), mask) for row in (g, x))
            below = builder.select(flat, emit.zero, builder.fmul(given, slope))
            found = builder.select(builder.fcmp_ordered("<=", read, emit.zero), below, given)
            return builder.select(builder.fcmp_ordered(">=", read, top), emit.zero, found)

        _each(emit, args[3], value, y)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, slope, top), codegen
