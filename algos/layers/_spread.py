"""Compiled gradients of windows: what each output's gradient gives to the elements of its window."""

from __future__ import annotations

import math

from algos.engine.jit import compiled, linked
from algos.engine.relay import fork
from algos.engine.tables import named
from algos.layers._windows import MAX, MEAN, Windows, taps_inside


@linked(error_model="numpy")
def largest(x, at, window, steps):
    """Where the first largest tap of a window from flat x[at] on lies, or its last NaN.

    window: taps by axis; steps: between them, in elements.
    """
    best, found = x[at], at
    for i in range(window[0]):
        for j in range(window[1]):
            here = at + i * steps[0] + j * steps[1]
            for _ in range(window[2]):
                value = x[here]
                more = (value > best) | (value != value)  # no branch: who is larger cannot be foreseen
                best, found = (value if more else best), (here if more else found)
                here += steps[2]
    return found


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
    if len(kind) == MAX:
        dx[largest(x, at, window, steps)] += grad
        return
    divisor = count if len(kind) == MEAN else norm(x, at, window, steps)
    share = dx.dtype.type(grad / divisor if divisor != 0 else 0)
    for i in range(window[0]):
        for j in range(window[1]):
            here = at + i * steps[0] + j * steps[1]
            for _ in range(window[2]):
                dx[here] += share if len(kind) == MEAN else share * x[here]
                here += steps[2]


@linked(error_model="numpy")
def some_planes(grad, x, dx, counts, table, shape, slot, first, last):
    """Items [first, last), planes of flat dx; counts, shape: as ``_windows.some_rows`` has them."""
    g, kind = named(Windows, table), shape[1]
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
def all_planes(grad, x, dx, counts, table, shape, job):
    """Every plane of flat dx."""
    fork(some_planes, (grad, x, dx, counts, table, shape), job)
