"""Compiled gradients of windows: what each output's gradient gives to the elements of its window."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.engine.jit import compiled, linked
from algos.engine.lanes import Lanes
from algos.engine.planes import each_vector
from algos.engine.relay import fork
from algos.engine.simd import I64, Emitter, place
from algos.engine.tables import named
from algos.layers._windows import MAX, MEAN, Windows, taps_inside

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say


@intrinsic
def largest_of_row(typingctx, x, found, deep, rows, layer, element):
    """Where the first largest tap of each window in a row of outputs lies, or its last NaN; -1 without taps.

    x: address of the first row in the windows that lies inside; found: of int64s, elements from there, with a
    vector's room; deep, rows: how many planes and rows of the windows lie inside; layer: ``Windows``. Who is
    larger cannot be foreseen: there is no branch.
    """

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, sig.args[5])
        lanes = Lanes(emit, 64)
        numbers = dict(zip(sig.args[4].fields, cgutils.unpack_tuple(builder, args[4]), strict=True))
        x, found = (builder.inttoptr(args[0], emit.scalar.as_pointer()),
                    builder.inttoptr(args[1], I64.as_pointer()))  # fmt: skip
        width, step = numbers["width"], numbers["stride_w"]
        lines = builder.mul(numbers["dilation_h"], width)
        planes = builder.mul(numbers["dilation_d"], builder.mul(numbers["height"], width))
        nowhere = ir.Constant(lanes.lane, [-1] * emit.lanes)
        best, where = cgutils.alloca_once(builder, emit.vector), cgutils.alloca_once(builder, lanes.lane)

        def tap(row: Any, columns: Any) -> None:
            mask = lanes.below(columns, width)
            value = lanes.gather(emit.at(x, row), columns, mask)
            old, at = builder.load(best), builder.load(where)
            more = builder.or_(builder.fcmp_ordered(">", value, old),
                               builder.fcmp_unordered("uno", value, value))  # fmt: skip
            more = builder.and_(builder.or_(more, builder.icmp_signed("==", at, nowhere)), mask)
            builder.store(builder.select(more, value, old), best)
            builder.store(builder.select(more, builder.add(columns, lanes.splat(row)), at), where)

        def vector_at(column: Any) -> None:
            builder.store(nowhere, where)
            builder.store(emit.zero, best)
            first = lanes.numbers(builder.sub(builder.mul(column, step), numbers["left"]), step)
            with cgutils.for_range(builder, args[2], intp=I64) as i:
                above = builder.mul(i.index, planes)
                with cgutils.for_range(builder, args[3], intp=I64) as j:
                    row = builder.add(above, builder.mul(j.index, lines))
                    with cgutils.for_range(builder, numbers["kernel_w"], intp=I64) as k:
                        away = builder.mul(k.index, numbers["dilation_w"])
                        tap(row, builder.add(first, lanes.splat(away)))
            target = builder.bitcast(builder.gep(found, [column]), lanes.lane.as_pointer())
            builder.store(builder.load(where), target).align = 8

        each_vector(emit, numbers["out_width"], vector_at)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, layer, element), codegen


@linked(error_model="numpy")
def norm(x, at, window, steps):
    """The root of the sum of squares of a window."""
    total = 0.0
    for i in range(window[0]):
        for j in range(window[1]):
            here = at + i * steps[0] + j * steps[1]
            for _ in range(window[2]):
                total += x[here] * x[here]
                here += steps[2]
    return math.sqrt(total)


@linked(error_model="numpy")
def spread(kind, grad, x, dx, at, count, window, steps):
    """Add one output's gradient to its window; count: what a mean was divided by."""
    divisor = count if len(kind) == MEAN else norm(x, at, window, steps)
    share = dx.dtype.type(grad / divisor if divisor != 0 else 0)
    for i in range(window[0]):
        for j in range(window[1]):
            here = at + i * steps[0] + j * steps[1]
            for _ in range(window[2]):
                dx[here] += share if len(kind) == MEAN else share * x[here]
                here += steps[2]


@linked(error_model="numpy")
def some_planes(grad, x, dx, counts, table, shape, places, slot, first, last):
    """Items [first, last), planes of flat dx; counts, shape: as ``_windows.some_rows`` has them; places: for
    each thread, a row of outputs and a vector.
    """
    g, kind, found = named(Windows, table), shape[1], places[slot]
    size, result = g.depth * g.height * g.width, g.out_depth * g.out_height * g.out_width
    steps = g.dilation_d * g.height * g.width, g.dilation_h * g.width, g.dilation_w
    for plane in range(first, last):
        dx[plane * size : (plane + 1) * size] = 0
        given = plane * result
        for od in range(g.out_depth):
            d = od * g.stride_d - g.front
            kd, end_d = taps_inside(d, g.dilation_d, g.kernel_d, g.depth)
            for oh in range(g.out_height):
                h = oh * g.stride_h - g.top
                kh, end_h = taps_inside(h, g.dilation_h, g.kernel_h, g.height)
                line = plane * size + ((d + kd * g.dilation_d) * g.height + h + kh * g.dilation_h) * g.width
                if len(kind) == MAX:
                    if kd < end_d and kh < end_h:
                        largest_of_row(place(x, line), place(found, 0), end_d - kd, end_h - kh, g, shape[0])
                        for ow in range(g.out_width):
                            if found[ow] >= 0:
                                dx[line + found[ow]] += grad[given + ow]
                    given += g.out_width
                    continue
                for ow in range(g.out_width):
                    w, kw, end_w = ow * g.stride_w - g.left, 0, g.kernel_w
                    if w < 0 or w + (g.kernel_w - 1) * g.dilation_w >= g.width:
                        kw, end_w = taps_inside(w, g.dilation_w, g.kernel_w, g.width)
                    count = 1.0
                    if len(kind) == MEAN:
                        count = counts[od] * counts[g.out_depth + oh]
                        count *= counts[g.out_depth + g.out_height + ow]
                    if kd < end_d and kh < end_h and kw < end_w:
                        window = end_d - kd, end_h - kh, end_w - kw
                        at = line + w + kw * g.dilation_w
                        spread(kind, grad[given], x, dx, at, count, window, steps)
                    given += 1


@compiled(error_model="numpy")
def all_planes(grad, x, dx, counts, table, shape, places, job):
    """Every plane of flat dx."""
    fork(some_planes, (grad, x, dx, counts, table, shape, places), job)
