"""A matrix times a few vectors, bound by reading the matrix.

Each row is read once, four side by side, shared by threads that need no BLAS, whose own threads would take
their cores: in ResNet-18 its last layer took 6 ms by BLAS, and takes 40 us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.engine.jit import compile_for, compiled, linked
from algos.engine.lanes import Lanes
from algos.engine.relay import HELPERS, SPIN_S, fork, helpers
from algos.engine.simd import I64, Emitter, place
from algos.engine.threads import once

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say

ROWS, UNROLLED = 4, 2  # rows side by side, and vectors of each between two ends of the loop
BYTES_PER_S = 1.5e10  # of one thread
MOST_VECTORS = 4  # beyond, BLAS is faster


@intrinsic
def dot_rows(typingctx, w, step, x, count, y, bias, rows, element):
    """y[r] = w[r] . x + bias[r] for ``rows`` literal rows, ``step`` elements apart, of ``count`` elements;
    addresses, that of the bias 0 for none.
    """
    if not isinstance(rows, types.IntegerLiteral):
        return None
    number = rows.literal_value
    signature = types.void(*[types.intp] * 6, rows, element)

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, element)
        lanes, pointer = Lanes(emit, 8 * emit.bytes), emit.scalar.as_pointer()
        w, x, y = (builder.inttoptr(args[at], pointer) for at in (0, 2, 4))
        starts = [emit.at(w, builder.mul(args[1], I64(r))) for r in range(number)]
        sums = [[cgutils.alloca_once_value(builder, emit.zero) for _ in range(UNROLLED)] for _ in starts]
        count, width = args[3], UNROLLED * emit.lanes

        def step(at: Any, part: int, load: Callable[[Any], Any]) -> None:
            factor = load(emit.at(x, at))
            for start, own in zip(starts, sums, strict=True):
                total = emit.fma(load(emit.at(start, at)), factor, builder.load(own[part]))
                builder.store(total, own[part])

        whole = builder.sub(count, builder.urem(count, I64(width)))
        with cgutils.for_range_slice(builder, I64(0), whole, I64(width), I64) as (j, _):
            for part in range(UNROLLED):
                step(builder.add(j, I64(part * emit.lanes)), part, emit.load)
        with cgutils.for_range_slice(builder, whole, count, I64(emit.lanes), I64) as (j, _):
            inside = lanes.below(lanes.numbers(I64(0)), builder.sub(count, j))
            step(j, 0, lambda at: lanes.load(at, inside))
        biased = builder.icmp_unsigned("!=", args[5], I64(0))
        numbers = builder.inttoptr(args[5], pointer)
        for r, own in enumerate(sums):
            total = builder.load(own[0])
            for part in own[1:]:
                total = builder.fadd(total, builder.load(part))
            width = emit.lanes
            while width > 1:  # halves onto each other
                width //= 2
                halves = [emit.shuffle(total, total, range(first, first + width)) for first in (0, width)]
                total = builder.fadd(*halves)
            result = cgutils.alloca_once_value(builder, builder.extract_element(total, I64(0)))
            with builder.if_then(biased):
                added = builder.fadd(builder.load(result), builder.load(emit.at(numbers, r)))
                builder.store(added, result)
            builder.store(builder.load(result), emit.at(y, r))
        return context.get_dummy_value()

    return signature, codegen


@linked()
def some_rows(w, x, y, bias, size, images, rows, count, element, slot, first, last):
    """Blocks [first, last) of ROWS rows each."""
    row, end = first * ROWS, min(last * ROWS, rows)
    while row < end:
        block = w + row * count * size
        added = bias + row * size if bias != 0 else 0
        for n in range(images):
            operand, result = x + n * count * size, y + (n * rows + row) * size
            if row + ROWS <= end:
                dot_rows(block, count, operand, count, result, added, ROWS, element)
            else:
                for r in range(end - row):
                    one = added + r * size if bias != 0 else 0
                    single = block + r * count * size
                    dot_rows(single, count, operand, count, result + r * size, one, 1, element)
        row += ROWS


@compiled()
def all_rows(w, x, y, bias, element, job):
    """y (n, o) = x (n, i) w (o, i)^T + bias (o,), which is empty for none."""
    added = place(bias, 0) if bias.size else 0
    arguments = (place(w, 0), place(x, 0), place(y, 0), added, y.itemsize, x.shape[0], w.shape[0], x.shape[1],
                 element)  # fmt: skip
    fork(some_rows, arguments, job)


@once
def multiplying(rows: int, count: int, images: int, dtype: np.dtype, threads: int) -> Callable[..., None]:
    """``run(w, x, bias, y)`` for w (rows, count) and x (images, count) of floats in C order; bias (rows,) or
    empty.
    """
    crew, seconds = helpers(), rows * count * dtype.itemsize / BYTES_PER_S
    element = dtype.type(0)
    free: list[np.ndarray] = []
    hands = crew.hire(threads - 1) if seconds > 1e-5 else 0

    def run(w: np.ndarray, x: np.ndarray, bias: np.ndarray, y: np.ndarray) -> None:
        try:
            job = free.pop()  # serves one call at a time
        except IndexError:
            job = crew.job(-(-rows // ROWS), hands + 1)
            compile_for(all_rows, w, x, y, bias, element, job)
        if job[HELPERS]:
            crew.wake(int(job[HELPERS]), seconds > SPIN_S)
        all_rows(w, x, y, bias, element, job)
        free.append(job)

    return run
