"""Passes over whole results, shared by threads: the sum of two with an activation, the bias of each channel.

Bound by memory: 12 bytes read or written for each float32 of a sum, 8 for a bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.engine.epilogue import CHUNK, SHARED, all_planes, applied, code_of
from algos.engine.jit import compile_for, compiled, linked
from algos.engine.lanes import Lanes
from algos.engine.relay import HELPERS, fork, helpers
from algos.engine.simd import I64, Emitter, place
from algos.spec import ACTIVATIONS

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say


@intrinsic
def sum_of(typingctx, a, b, y, count, element, activation):
    """``count`` elements like ``element`` from addresses a and b on, added, after activation number
    ``len(activation)``, to y, which may be either.
    """

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, element)
        lanes, pointer = Lanes(emit, 8 * emit.bytes), emit.scalar.as_pointer()
        places = [builder.inttoptr(argument, pointer) for argument in args[:3]]
        rest = builder.and_(args[3], I64(emit.lanes - 1))
        whole = builder.sub(args[3], rest)
        kind = ACTIVATIONS[len(activation)]
        with cgutils.for_range_slice(builder, I64(0), whole, I64(emit.lanes), I64) as (j, _):
            one, other, result = (emit.at(start, j) for start in places)
            emit.store(applied(emit, kind, emit.load(one), emit.load(other)), result)
        with builder.if_then(builder.icmp_unsigned("!=", rest, I64(0))):
            one, other, result = (emit.at(start, whole) for start in places)
            inside = lanes.below(lanes.numbers(I64(0)), rest)
            y = applied(emit, kind, lanes.load(one, inside), lanes.load(other, inside))
            lanes.store_first(y, result, rest)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, element, activation), codegen


@linked()
def some_sums(a, b, y, size, count, element, activation, slot, first, last):
    """Items [first, last), each CHUNK elements."""
    begin = first * CHUNK
    length = min(last * CHUNK, count) - begin
    sum_of(a + begin * size, b + begin * size, y + begin * size, length, element, activation)


@compiled()
def all_sums(a, b, y, element, activation, job):
    """act(a + b) of flat arrays, shared with the helpers."""
    arguments = (place(a, 0), place(b, 0), place(y, 0), y.itemsize, y.size, element, activation)
    fork(some_sums, arguments, job)


def summing(elements: int, dtype: np.dtype, activation: str, threads: int) -> Callable[..., None]:
    """``run(a, b, out)`` for arrays of so many elements in C order: out, which may be a or b, becomes act(a +
    b).
    """
    crew = helpers()
    job = crew.job(-(-elements // CHUNK), threads if elements > SHARED else 1)
    hands, rest = int(job[HELPERS]), (dtype.type(0), (0,) * ACTIVATIONS.index(activation), job)
    empty = np.empty(0, dtype)
    compile_for(all_sums, empty, empty, empty, *rest)

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        if hands:
            crew.wake(hands)
        all_sums(a.reshape(-1), b.reshape(-1), out.reshape(-1), *rest)

    return run


def finishing(shape: tuple[int, ...], bias: np.ndarray | None, activation: str,
              threads: int) -> Callable[[np.ndarray], None]:  # fmt: skip
    """``run(y)`` for float arrays (N, C, ...) in C order: bias and activation, in place; at least one of
    them.
    """
    dtype, plane = np.dtype(np.float32) if bias is None else bias.dtype, math.prod(shape[2:])
    crew, parts = helpers(), -(-plane // CHUNK)
    shared = threads if math.prod(shape) > SHARED else 1
    job = crew.job(shape[0] * shape[1] * parts, shared, code_of(dtype, activation), bias)
    hands, rest = int(job[HELPERS]), (shape[1], plane, parts, job)
    compile_for(all_planes, np.empty(0, dtype), *rest)

    def run(y: np.ndarray) -> None:
        if hands:
            crew.wake(hands)
        all_planes(y.reshape(-1), *rest)

    return run
