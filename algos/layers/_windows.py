"""Compiled code that slides windows over planes: the largest, the mean or the norm of each window.

A vector of outputs is made from the rows of its windows: for a column stride of n, n vectors side by side are
folded down the rows first and then picked apart once, so that n taps cost as many loads for each row and the
shuffles of one. Lanes outside of the picture are masked, in the first and last vectors of a row alone. A row
narrower than a vector runs over into the next one, which is written later.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.engine.jit import compiled, linked
from algos.engine.lanes import Lanes
from algos.engine.planes import each_vector, every, fetch
from algos.engine.relay import fork
from algos.engine.simd import I64, Emitter, loop, place
from algos.engine.tables import named

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say

PICKED = 4  # column strides that are written into the code; wider ones gather their elements
MAX, MEAN, NORM = range(3)  # what is made of a window: the largest, the mean, the root of the sum of squares


class Windows(NamedTuple):
    """Windows over (depth, height, width) planes; where a problem has fewer axes, the first are of length 1.

    front, top, left: padding.
    """

    depth: int
    height: int
    width: int
    out_depth: int
    out_height: int
    out_width: int
    kernel_d: int
    kernel_h: int
    kernel_w: int
    stride_d: int
    stride_h: int
    stride_w: int
    dilation_d: int
    dilation_h: int
    dilation_w: int
    front: int
    top: int
    left: int


class _Fold(Lanes):
    """Vectors of outputs; kind: ``MAX``, ``MEAN`` or ``NORM``; stride: 1 to ``PICKED``, or 0 for wider ones.
    """

    def __init__(self, emit: Emitter, kind: int, stride: int, numbers: dict[str, Any]) -> None:
        super().__init__(emit, 64 if stride == 0 else emit.bytes * 8)
        self.kind, self.stride, self.numbers_of = kind, stride, numbers
        lowest = ir.Constant(emit.vector, [float("-inf")] * emit.lanes)
        self.identity = lowest if kind == MAX else emit.zero
        # With a dilation the taps between two columns of a stride are others' than those that follow a tap
        self.each = stride if stride else 1
        self.step = numbers["stride_w"]

    def join(self, a: Any, b: Any) -> Any:
        """Two folds in one; NaN where either is."""
        if self.kind != MAX:
            return self.builder.fadd(a, b)
        larger = self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)  # b where it is NaN
        return self.builder.select(self.builder.fcmp_unordered("uno", a, a), a, larger)

    def add(self, total: Any, value: Any) -> Any:
        """One element more."""
        return self.emit.fma(value, value, total) if self.kind == NORM else self.join(total, value)

    def down(self, source: Any, at: Any, counts: tuple, steps: tuple, width: Any) -> list[Any]:
        """``each`` vectors from column ``at`` on, folded over the rows of a window from ``source`` on.

        width: of the picture where columns outside of it are to be left out.
        """
        emit, builder = self.emit, self.builder
        starts = [builder.add(at, I64(v * emit.lanes)) for v in range(self.each)]
        columns = [self.numbers(start, self.step if self.stride == 0 else None) for start in starts]
        every_lane = ir.Constant(self.bit, [1] * emit.lanes)
        masks = [every_lane if width is None else self.below(column, width) for column in columns]

        def deeper(d: Any, sums: list[list[Any]]) -> list[list[Any]]:
            plane = emit.at(source, builder.mul(d, steps[0]))

            def row(r: Any, sums: list[list[Any]]) -> list[list[Any]]:
                line = emit.at(plane, builder.mul(r, steps[1]))
                found = []
                for total, start, column, mask in zip(sums[0], starts, columns, masks, strict=True):
                    if self.stride == 0:
                        value = self.gather(line, column, mask)
                        value = builder.select(mask, value, self.identity)
                    elif width is None:
                        value = emit.load(emit.at(line, start))
                    else:
                        value = self.load(emit.at(line, start), mask, self.identity)
                    found.append(self.add(total, value))
                return [found]

            return loop(builder, emit.vector, counts[1], row, sums)

        (found,) = loop(builder, emit.vector, counts[0], deeper, [[self.identity] * self.each])
        return found

    def window(self, source: Any, at: Any, counts: tuple, steps: tuple, width: Any) -> Any:
        """A vector of outputs whose first tap is column ``at``."""
        builder, emit, numbers = self.builder, self.emit, self.numbers_of
        kernel, dilation = numbers["kernel_w"], numbers["dilation_w"]
        together = self.together(dilation)

        def taps(index: Any, sums: list[list[Any]]) -> list[list[Any]]:
            tap = builder.mul(index, together)
            column = builder.add(at, builder.mul(tap, dilation))
            vectors, total = self.down(source, column, counts, steps, width), sums[0][0]
            for v in range(self.each):
                wanted = builder.icmp_signed("<", I64(v), together)
                wanted = builder.and_(wanted, builder.icmp_signed("<", builder.add(tap, I64(v)), kernel))
                more = self.join(total, every(emit, vectors, v))
                total = more if v == 0 else builder.select(wanted, more, total)
            return [[total]]

        # A division by a constant, not by ``together``: it would take longer than a short row
        groups = builder.udiv(builder.add(kernel, I64(self.each - 1)), I64(self.each))
        groups = builder.select(builder.icmp_signed("==", together, I64(1)), kernel, groups)
        return loop(builder, emit.vector, groups, taps, [[self.identity]])[0][0]

    def together(self, dilation: Any) -> Any:
        """How many taps are folded at a time: those of a stride, where they lie side by side."""
        side_by_side = self.builder.icmp_signed("==", dilation, I64(1))
        return self.builder.select(side_by_side, I64(self.each), I64(1))

    def span(self) -> Any:
        """Elements from the first that a vector of outputs loads to the end of the last."""
        builder, numbers = self.builder, self.numbers_of
        last = builder.mul(builder.sub(numbers["kernel_w"], I64(1)), numbers["dilation_w"])
        wide = builder.mul(self.step, I64(self.emit.lanes))
        return builder.add(last, wide)

    def finished(self, total: Any, counts: Any, count: Any) -> Any:
        """What is stored; counts: a vector of taps by column, count: of the rest."""
        if self.kind == MEAN:
            return self.builder.fdiv(total, self.builder.fmul(counts, count))
        if self.kind == NORM:
            name = f"llvm.sqrt.v{self.emit.lanes}f{self.emit.bytes * 8}"
            kind = ir.FunctionType(self.emit.vector, [self.emit.vector])
            return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [total])
        return total


@intrinsic
def pool_row(typingctx, x, beyond, y, end, deep, rows, counts, count, layer, shape):
    """One row of outputs, at y.

    x: of the first row in the windows that lies inside; beyond: the end of what may be read; end: of what may
    be overwritten; deep, rows: how many planes and rows of the windows lie inside, one at least; counts: by
    column, the taps that a sum is divided by; count: of the other axes, a float. All are addresses. layer:
    ``Windows``; shape: (element, kind, column stride or 0), numbers given as tuples' lengths.
    """

    def codegen(context, builder, sig, args):
        element, kind, stride = sig.args[-1][0], *map(len, sig.args[-1][1:])
        numbers = dict(zip(sig.args[8].fields, cgutils.unpack_tuple(builder, args[8]), strict=True))
        emit = Emitter(builder, element)
        fold, pointer = _Fold(emit, kind, stride, numbers), emit.scalar.as_pointer()
        x, y, counted = (builder.inttoptr(args[i], pointer) for i in (0, 2, 6))
        width, out_width, left = (numbers[name] for name in ("width", "out_width", "left"))
        lines = builder.mul(numbers["dilation_h"], width)
        planes = builder.mul(numbers["dilation_d"], builder.mul(numbers["height"], width))
        within, steps = (args[4], args[5]), (planes, lines)
        last = [builder.mul(builder.sub(n, I64(1)), step) for n, step in zip(within, steps, strict=True)]
        span = builder.add(fold.span(), builder.add(*last))
        reach = builder.mul(builder.sub(numbers["kernel_w"], I64(1)), numbers["dilation_w"])
        others = emit.splat(args[7])
        below = emit.at(x, builder.mul(numbers["stride_h"], width))

        def vector_at(column: Any) -> None:
            at = builder.sub(builder.mul(column, fold.step), left)
            ends = builder.add(column, I64(emit.lanes))
            ends = builder.select(builder.icmp_signed("<", ends, out_width), ends, out_width)
            right = builder.sub(builder.mul(builder.sub(ends, I64(1)), fold.step), left)
            inside = builder.icmp_signed("<", builder.add(right, reach), width)
            inside = builder.and_(inside, builder.icmp_signed(">=", at, I64(0)))
            read = builder.ptrtoint(emit.at(x, at, span), I64)
            inside = builder.and_(inside, builder.icmp_unsigned("<=", read, args[1]))
            target = emit.at(y, column)
            if stride > 1:  # several rows of the input for one of outputs: prefetching falls behind
                fetch(emit, below, column, stride * stride)
            found = cgutils.alloca_once(builder, emit.vector)
            with builder.if_else(inside, likely=True) as (middle, border):
                with middle:
                    builder.store(fold.window(x, at, within, steps, None), found)
                with border:
                    builder.store(fold.window(x, at, within, steps, width), found)
            by_column = emit.load(emit.at(counted, column)) if kind == MEAN else None
            value = fold.finished(builder.load(found), by_column, others)
            fits = builder.icmp_unsigned("<=", builder.ptrtoint(emit.at(target, emit.lanes), I64), args[3])
            with builder.if_else(fits, likely=True) as (whole, short):
                with whole:
                    emit.store(value, target)
                with short:
                    fold.store_first(value, target, out_width)

        each_vector(emit, out_width, vector_at)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7, count, layer, shape), codegen


@linked(error_model="numpy")
def taps_inside(start, dilation, kernel, size):
    """First and last + 1 of the taps from ``start`` on that lie inside ``size``."""
    if start >= 0 and start + (kernel - 1) * dilation < size:  # without divisions, as long as a row
        return 0, kernel
    first = 0 if start >= 0 else (dilation - 1 - start) // dilation
    last = 0 if start >= size else (size - 1 - start) // dilation + 1
    return min(first, kernel), min(last, kernel)


@linked(error_model="numpy")
def some_rows(x, y, counts, table, nothing, shape, slot, first, last):
    """Items [first, last), rows of y; counts: for means, by depth, by row and by column one after another,
    with a vector's room; nothing: what a window without a tap inside gives.
    """
    g = named(Windows, table)
    beyond, end = place(x, len(x)), place(y, last * g.out_width)
    by_column = place(counts, g.out_depth + g.out_height)
    plane, oh = first // g.out_height, first % g.out_height
    plane, od = plane // g.out_depth, plane % g.out_depth
    for item in range(first, last):
        d, h = od * g.stride_d - g.front, oh * g.stride_h - g.top
        i, end_d = taps_inside(d, g.dilation_d, g.kernel_d, g.depth)
        j, end_h = taps_inside(h, g.dilation_h, g.kernel_h, g.height)
        if i < end_d and j < end_h:
            row = (plane * g.depth + d + i * g.dilation_d) * g.height + h + j * g.dilation_h
            count = counts[od] * counts[g.out_depth + oh] if len(shape[1]) == 1 else counts[0]
            pool_row(place(x, row * g.width), beyond, place(y, item * g.out_width), end, end_d - i, end_h - j,
                     by_column, count, g, shape)  # fmt: skip
        else:
            y[item * g.out_width : (item + 1) * g.out_width] = nothing
        oh += 1
        if oh == g.out_height:
            oh, od = 0, od + 1
            if od == g.out_depth:
                od, plane = 0, plane + 1


@compiled(error_model="numpy")
def all_rows(x, y, counts, table, nothing, shape, job):
    """Every row of flat y."""
    fork(some_rows, (x, y, counts, table, nothing, shape), job)
