"""Pictures put together from those of every residue of a stride, in one pass that the threads share.

NumPy writes each residue by itself, an element at a time, and comes past every line of the result each time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.engine.jit import compiled, linked
from algos.engine.lanes import Lanes
from algos.engine.relay import HELPERS, fork, helpers
from algos.engine.simd import I64, Emitter, copy_bytes, element, place
from algos.engine.tables import named, table_of

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say
FLAGS = {"error_model": "numpy"}
MOST_CELLS = 64
SHARED = 1 << 15  # elements; fewer stay on one thread
WIDE = {4: np.dtype(np.float32), 8: np.dtype(np.float64)}  # what elements of so many bytes are moved as


class Sizes(NamedTuple):
    """Of the result, and the strides, in space."""

    channels: int
    depth: int
    height: int
    width: int
    planes_apart: int
    rows_apart: int
    columns_apart: int


@intrinsic
def zipped(typingctx, y, target, first, second, count):
    """y from ``target`` on: ``count`` elements of the rows at ``first`` and ``second``, by turns."""

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, sig.args[0].dtype)
        lanes = Lanes(emit, emit.bytes * 8)
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        start = emit.at(data, args[1])
        rows = [builder.inttoptr(place, emit.scalar.as_pointer()) for place in args[2:4]]
        n, times = emit.lanes, builder.sdiv(args[4], I64(2 * emit.lanes))
        picks = [[half * n // 2 + i // 2 + i % 2 * n for i in range(n)] for half in range(2)]
        with cgutils.for_range(builder, times) as loop:
            at = builder.mul(loop.index, I64(n))
            a, b = (emit.load(emit.at(row, at)) for row in rows)
            for half in range(2):
                emit.store(emit.shuffle(a, b, picks[half]), emit.at(start, at, at, half * n))
        at = builder.mul(times, I64(n))
        left = builder.sub(args[4], builder.add(at, at))
        with builder.if_then(builder.icmp_signed(">", left, I64(0))):
            numbers = lanes.numbers(I64(0))
            owned = (builder.sdiv(builder.add(left, I64(more)), I64(2)) for more in (1, 0))
            a, b = (
                lanes.load(emit.at(row, at), lanes.below(numbers, own))
                for row, own in zip(rows, owned, strict=True)
            )
            lanes.store_first(emit.shuffle(a, b, picks[0]), emit.at(start, at, at), left)
            with builder.if_then(builder.icmp_signed(">", left, I64(n))):
                rest = builder.sub(left, I64(n))
                lanes.store_first(emit.shuffle(a, b, picks[1]), emit.at(start, at, at, n), rest)
        return context.get_dummy_value()

    return types.void(y, types.intp, types.intp, types.intp, types.intp), codegen


@linked(**FLAGS)
def some_planes(y, table, cells, slot, first, last):
    """Planes [first, last) of flat y; cells: of each residue its address, and the bytes from one image,
    channel, plane and row to the next.
    """
    sizes = named(Sizes, table)
    width, step = sizes.width, sizes.columns_apart
    for item in range(first, last):
        d, plane = item % sizes.depth, item // sizes.depth
        n, c, deep = plane // sizes.channels, plane % sizes.channels, d // sizes.planes_apart
        cell0, a, down = d % sizes.planes_apart * sizes.rows_apart * step, 0, 0
        for h in range(sizes.height):
            target, cell = (item * sizes.height + h) * width, cell0 + a * step
            at = row_at(cells, cell, n, c, deep, down)
            if step == 1:
                copy_bytes(place(y, target), at, width * y.itemsize)
            elif step == 2:
                zipped(y, target, at, row_at(cells, cell + 1, n, c, deep, down), width)
            else:
                for k in range(step):
                    at = row_at(cells, cell + k, n, c, deep, down)
                    for j in range((width - k + step - 1) // step):
                        y[target + k + j * step] = element(y, at + j * y.itemsize)
            a += 1
            if a == sizes.rows_apart:
                a, down = 0, down + 1


@linked(**FLAGS)
def row_at(cells, cell, n, c, deep, down):
    """The address of one row of a residue."""
    own = cells[cell]
    return own[0] + n * own[1] + c * own[2] + deep * own[3] + down * own[4]


@compiled(**FLAGS)
def all_planes(y, table, cells, job):
    """Every plane, shared with the helpers; ``table``: of ``Sizes``."""
    fork(some_planes, (y, table, cells), job)


def interleaved(
    y: np.ndarray, cells: dict[tuple[int, ...], np.ndarray], stride: tuple[int, ...], threads: int
) -> bool:
    """Write to y (n, c, *size) the pictures of each residue, by where they start, and zeros where there is
    none; whether that was possible.
    """
    apart = (*(1,) * (3 - len(stride)), *stride)
    each = (*cells.values(), y)
    if math.prod(apart) > MOST_CELLS or y.itemsize not in WIDE or not y.flags.c_contiguous or any(
        a.dtype != y.dtype or a.strides[-1] != a.itemsize for a in each
    ):
        return False
    kind: Any = WIDE[y.itemsize]
    nothing = np.zeros(-(-y.shape[-1] // stride[-1]), kind)  # the row of a residue that there is not
    table = np.zeros((*apart, 5), np.int64)
    table[..., 0] = nothing.ctypes.data
    for start, a in cells.items():
        batch, channel, *space = a.strides
        table[(*(0,) * (3 - len(stride)), *start)] = (a.ctypes.data, batch, channel,
                                                      *(0,) * (3 - len(space)), *space[:-1])  # fmt: skip
    sizes = Sizes(y.shape[1], *(1,) * (3 - len(stride)), *y.shape[2:], *apart)
    crew = helpers()
    planes = math.prod(y.shape[:2]) * sizes.depth
    job = crew.job(planes, threads if y.size >= SHARED else 1)
    crew.wake(int(job[HELPERS]))
    all_planes(y.reshape(-1).view(kind), table_of(sizes), table.reshape(-1, 5), job)
    return True
