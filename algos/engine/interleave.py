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
from algos.engine.relay import HELPERS, fork, helpers
from algos.engine.simd import I64, Emitter, element
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
    """Elements of two rows at addresses ``first`` and ``second`` by turns, whole vectors of either, to y from
    ``target`` on, where there is room for ``count``; how many were written.
    """

    def codegen(context, builder, sig, args):
        emit = Emitter(builder, sig.args[0].dtype)
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        rows = [builder.inttoptr(place, emit.scalar.as_pointer()) for place in args[2:4]]
        n, times = emit.lanes, builder.sdiv(args[4], I64(2 * emit.lanes))
        with cgutils.for_range(builder, times) as loop:
            at = builder.mul(loop.index, I64(n))
            a, b = (emit.load(emit.at(row, at)) for row in rows)
            for half in range(2):
                picks = [half * n // 2 + i // 2 + i % 2 * n for i in range(n)]
                emit.store(emit.shuffle(a, b, picks), emit.at(data, args[1], at, at, half * n))
        return builder.mul(times, I64(2 * n))

    return types.intp(y, types.intp, types.intp, types.intp, types.intp), codegen


@linked(**FLAGS)
def row_at(cells, cell, n, c, deep, down):
    """The address of one row of a residue."""
    own = cells[cell]
    return own[0] + n * own[1] + c * own[2] + deep * own[3] + down * own[4]


@linked(**FLAGS)
def some_rows(y, table, cells, slot, first, last):
    """Rows [first, last) of flat y; cells: of each residue its address, 0 for zeros, and the bytes from one
    image, channel, plane and row to the next.
    """
    sizes = named(Sizes, table)
    width, step = sizes.width, sizes.columns_apart
    for row in range(first, last):
        h, rest = row % sizes.height, row // sizes.height
        d, plane = rest % sizes.depth, rest // sizes.depth
        n, c = plane // sizes.channels, plane % sizes.channels
        cell = (d % sizes.planes_apart * sizes.rows_apart + h % sizes.rows_apart) * step
        down, deep = h // sizes.rows_apart, d // sizes.planes_apart
        done = 0
        if step == 2 and cells[cell, 0] != 0 and cells[cell + 1, 0] != 0:
            starts = row_at(cells, cell, n, c, deep, down), row_at(cells, cell + 1, n, c, deep, down)
            done = zipped(y, row * width, starts[0], starts[1], width)
        for k in range(step):
            there, at = cells[cell + k, 0] != 0, row_at(cells, cell + k, n, c, deep, down)
            for j in range(done // step, (width - k + step - 1) // step):
                y[row * width + k + j * step] = element(y, at + j * y.itemsize) if there else 0


@compiled(**FLAGS)
def all_rows(y, table, cells, job):
    """Every row, shared with the helpers; ``table``: of ``Sizes``."""
    fork(some_rows, (y, table, cells), job)


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
    table = np.zeros((*apart, 5), np.int64)
    for start, a in cells.items():
        batch, channel, *space = a.strides
        table[(*(0,) * (3 - len(stride)), *start)] = (a.ctypes.data, batch, channel,
                                                      *(0,) * (3 - len(space)), *space[:-1])  # fmt: skip
    sizes = Sizes(y.shape[1], *(1,) * (3 - len(stride)), *y.shape[2:], *apart)
    crew = helpers()
    job = crew.job(y.size // y.shape[-1], threads if y.size >= SHARED else 1)
    crew.wake(int(job[HELPERS]))
    all_rows(y.reshape(-1).view(kind), table_of(sizes), table.reshape(-1, 5), job)
    return True
