"""Average pooling into as many windows as are asked for: of size n into m, window i holds the elements from
floor(i n / m) to ceil((i + 1) n / m). One window is the mean of the whole picture.

Cost: one operation for each element of each window. Workspace: none.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from algos.engine.jit import compiled, linked
from algos.engine.relay import fork
from algos.engine.tables import named, table_of
from algos.functional import Ints
from algos.grammar import per_axis, times
from algos.layers._calls import Calls, filled, floats, for_dimensions, matching, remembered
from algos.layers._rows import TOTAL, row_sum
from algos.layers.pooling import checked_axes

SHORT = 12  # elements whose sum takes less one after another than in vectors
VECTOR = 16  # elements; of a row of so many times that, none is left over for a loop of single ones


class Parts(NamedTuple):
    """(depth, height, width) planes, and into how many windows each axis is divided."""

    depth: int
    height: int
    width: int
    out_depth: int
    out_height: int
    out_width: int


@linked(error_model="numpy")
def ends(index, size, count):
    """Window number ``index`` of ``count``."""
    if count == 1:  # without divisions, which take as long as the sum of a short row
        return 0, size
    return index * size // count, ((index + 1) * size + count - 1) // count


@linked(error_model="numpy")
def some_means(x, y, table, sums, slot, first, last):
    """Items [first, last), rows of flat y; sums: for each thread a row of x and a vector, in float64.

    The rows of the windows are added up before their columns. They run over into the next one as far as
    vectors do, where there is one.
    """
    g, line = named(Parts, table), sums[slot]
    if g.depth * g.height * g.out_width == 1:  # of whole planes
        for plane in range(first, last):
            y[plane] = row_sum(TOTAL, x, x, plane * g.width, g.width, 0.0) / g.width
        return
    plane, oh = first // g.out_height, first % g.out_height
    plane, od = plane // g.out_depth, plane % g.out_depth
    for item in range(first, last):
        (d, end_d), (h, end_h) = ends(od, g.depth, g.out_depth), ends(oh, g.height, g.out_height)
        line[:] = 0
        for i in range(d, end_d):
            for j in range(h, end_h):
                row = ((plane * g.depth + i) * g.height + j) * g.width  # x[plane][i][j]
                read = x[row : row + len(line)]
                for k in range(len(read)):
                    line[k] += read[k]
        for ow in range(g.out_width):
            w, end_w = ends(ow, g.width, g.out_width)
            found = 0.0
            if end_w - w > SHORT:
                found = row_sum(TOTAL, line, line, w, end_w - w, 0.0)
            else:
                for k in range(w, end_w):
                    found += line[k]
            y[item * g.out_width + ow] = found / ((end_d - d) * (end_h - h) * (end_w - w))
        oh += 1
        if oh == g.out_height:
            oh, od = 0, od + 1
            if od == g.out_depth:
                od, plane = 0, plane + 1


@compiled(error_model="numpy")
def all_means(x, y, table, sums, job):
    """Every row of flat y."""
    fork(some_means, (x, y, table, sums), job)


@linked(error_model="numpy")
def some_spread(grad, dx, table, slot, first, last):
    """Items [first, last), planes of flat dx."""
    g = named(Parts, table)
    for plane in range(first, last):
        size = g.depth * g.height * g.width
        dx[plane * size : (plane + 1) * size] = 0
        for od in range(g.out_depth):
            d, end_d = ends(od, g.depth, g.out_depth)
            for oh in range(g.out_height):
                h, end_h = ends(oh, g.height, g.out_height)
                for ow in range(g.out_width):
                    w, end_w = ends(ow, g.width, g.out_width)
                    at = ((plane * g.out_depth + od) * g.out_height + oh) * g.out_width + ow
                    share = dx.dtype.type(grad[at] / ((end_d - d) * (end_h - h) * (end_w - w)))
                    for i in range(d, end_d):
                        for j in range(h, end_h):
                            row = ((plane * g.depth + i) * g.height + j) * g.width  # dx[plane][i][j]
                            line = dx[row + w : row + end_w]
                            for k in range(len(line)):
                                line[k] += share


@compiled(error_model="numpy")
def all_spread(grad, dx, table, job):
    """Every plane of flat dx."""
    fork(some_spread, (grad, dx, table), job)


def _divided(threads: int, backward: bool, shape: tuple, dtype: np.dtype, ndim: int,
             output_size: Any) -> tuple[tuple[int, ...], Calls]:
    """The result's shape, and what writes it or the gradient."""
    checked_axes(shape, ndim)
    size, counts = shape[-ndim:], per_axis("output_size", output_size, ndim)
    if min(counts) < 1:
        raise ValueError(f"output_size is {times(counts)}: it must be 1 or more")
    if min(size) < 1:
        raise ValueError(f"x has size {times(size)}: there is nothing to pool")
    result, planes = (*shape[:-ndim], *counts), math.prod(shape[:-ndim])
    while len(size) > 1 and counts[-2:] == (1, 1):  # elements that one window holds lie side by side
        size, counts = (*size[:-2], size[-2] * size[-1]), counts[:-1]
    ones = (1,) * (3 - len(size))
    moved = dtype.itemsize * (math.prod(shape) + math.prod(result))
    items = planes if backward else planes * math.prod(counts[:-1])
    fixed = (table_of(Parts(*ones, *size, *ones, *counts)),)
    if backward:
        return result, Calls(all_spread, items, moved, threads, fixed)
    room = -(-size[-1] // VECTOR) * VECTOR
    return result, Calls(all_means, items, moved, threads, fixed, lambda count: (np.empty((count, room)),))


def _adaptive_avg_pool(ndim: int, x: Any, output_size: Ints, *, threads: int | None = None,
                       out: Any = None) -> np.ndarray:  # fmt: skip
    """The means of windows that divide the picture, as ``torch.nn.functional.adaptive_avg_pool2d``.

    Parameters
    ----------
    x : array (N, C, *size) or (C, *size)
        Floats.
    output_size : int or one for each axis
        How many windows.
    threads : int, optional
        The usable cores when left out.
    out : array, optional

    Returns
    -------
    array (N, C, *output_size) or (C, *output_size)
        Of the type of x.
    """
    held = floats("x", x)
    shape, calls = remembered(_divided, threads, False, held.shape, held.dtype, ndim, output_size)
    return filled(lambda y: calls(held.reshape(-1), y), shape, x, out)


def _adaptive_avg_pool_backward(ndim: int, grad: Any, x: Any, output_size: Ints, *,
                                threads: int | None = None, out: Any = None) -> np.ndarray:
    """The gradient with respect to x of ``adaptive_avg_pool2d(x, output_size)``, from that of its result."""
    held = floats("x", x)
    shape, calls = remembered(_divided, threads, True, held.shape, held.dtype, ndim, output_size)
    grad = matching("grad", grad, shape, held.dtype)
    return filled(lambda dx: calls(grad.reshape(-1), dx), held.shape, x, out, grad)


def global_avg_pool(x: Any, *, threads: int | None = None, out: Any = None) -> np.ndarray:
    """The mean of each channel: (N, C) from x (N, C, *size), with 1 to 3 axes of space."""
    held = floats("x", x)
    if not 3 <= held.ndim <= 5:
        raise ValueError(f"x has {held.ndim} axes: global pooling needs 3 to 5, (N, C, *size)")
    _, calls = remembered(_divided, threads, False, held.shape, held.dtype, held.ndim - 2, 1)
    return filled(lambda y: calls(held.reshape(-1), y), held.shape[:2], x, out)


def global_avg_pool_backward(grad: Any, x: Any, *, threads: int | None = None, out: Any = None) -> np.ndarray:
    """The gradient with respect to x of ``global_avg_pool(x)``, from that of its result (N, C)."""
    held = floats("x", x)
    if not 3 <= held.ndim <= 5:
        raise ValueError(f"x has {held.ndim} axes: global pooling needs 3 to 5, (N, C, *size)")
    _, calls = remembered(_divided, threads, True, held.shape, held.dtype, held.ndim - 2, 1)
    grad = matching("grad", grad, held.shape[:2], held.dtype)
    return filled(lambda dx: calls(grad.reshape(-1), dx), held.shape, x, out, grad)


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = for_dimensions(_adaptive_avg_pool)
(adaptive_avg_pool1d_backward, adaptive_avg_pool2d_backward,
 adaptive_avg_pool3d_backward) = for_dimensions(_adaptive_avg_pool_backward)  # fmt: skip
