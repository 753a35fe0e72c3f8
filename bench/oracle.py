"""The definition of the operation, in float64 or complex128 (exact for whole-number types); shares no code
with the algorithms.

For an input padded to ``p`` by index arithmetic, with s = stride, d = dilation and, when flipped, t -> k - 1
- t:

    forward          y[n, o, i]  = sum over c, t of  w[o, c, t] * p[n, c, i * s + t * d]
    input_gradient   dx[n, c, j] = sum of  w[o, c, t] * grad[n, o, i]  over all o, t, i that read x[n, c, j]
    weight_gradient  dw[o, c, t] = sum over n, i of  grad[n, o, i] * p[n, c, i * s + t * d]

Zero points are subtracted from p and w before, and padding with zeros holds 0 after that. Of complex numbers
the gradients conjugate w and p. A bias, then an activation, follow the forward sum.

One pass over the kernel's taps, each a small matrix product; ``oracle_at`` gives chosen elements of large
problems.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from algos.dtypes import kind, real, whole
from algos.spec import ConvSpec


def oracle(
    spec: ConvSpec,
    x: np.ndarray | None = None,
    w: np.ndarray | None = None,
    grad: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    precise: bool = False,
    fill: float | None = None,
) -> np.ndarray:
    """The result of ``spec``, with all its options, computed from the definition.

    Parameters
    ----------
    spec : ConvSpec
    x : array of ``spec.input_shape``, for forward and weight_gradient
    w : array of ``spec.weight_shape``, for forward and input_gradient
    grad : array of ``spec.output_shape``, for the gradients
    bias : array (O,), where the spec has one
    precise : bool
        Accumulate in long double, or two of them: slow, for judging float64 and complex128.
    fill : float, optional
        What lies in a constant border, instead of ``border_value(spec)``.

    Returns
    -------
    array of ``spec.result_shape``
        float64, or long double if ``precise``, complex ones of complex types; int64 for integer types,
        Python ints where int64 would overflow.
    """
    fill = border_value(spec) if fill is None else fill
    first, second = _pair(spec, x, w, grad)
    work, final = _types(spec, first, second, bias, precise, fill)
    a, b = _centred(first, spec.zero_points[0], work), _centred(second, spec.zero_points[1], work)
    groups, n, p = spec.groups, spec.batch, math.prod(spec.output_size)
    i, o = spec.in_channels // groups, spec.out_channels // groups
    if spec.direction == "forward":
        a = padded(spec, a, fill)
        y: np.ndarray = np.zeros((n, groups, o, p), work)
        for tap, window in _taps(spec):
            piece = a[_last(window)].reshape(n, groups, i, p)
            y += _matmul(b[_last(tap)].reshape(groups, o, i), piece)
        channels = np.arange(spec.out_channels).reshape(-1, *(1,) * spec.ndim)
        return _followed(spec, y.reshape(spec.output_shape), bias, channels).astype(final)
    if spec.direction == "input_gradient":
        a, b = a.reshape(n, groups, o, p), _conjugate(b)
        dx: np.ndarray = np.zeros((n, spec.in_channels, *spec.padded_size), work)
        for tap, window in _taps(spec):
            piece = _matmul(b[_last(tap)].reshape(groups, o, i).swapaxes(1, 2), a)
            dx[_last(window)] += piece.reshape(n, spec.in_channels, *spec.output_size)
        return _gathered(spec, dx).astype(final)
    a, b = _conjugate(padded(spec, a, fill)), b.reshape(n, groups, o, p)
    dw: np.ndarray = np.zeros(spec.weight_shape, work)
    for tap, window in _taps(spec):
        piece = a[_last(window)].reshape(n, groups, i, p).swapaxes(2, 3)
        dw[_last(tap)] = (b @ piece).sum(0).reshape(spec.out_channels, i)
    return dw.astype(final)


def oracle_at(
    spec: ConvSpec,
    x: np.ndarray | None,
    w: np.ndarray | None,
    grad: np.ndarray | None,
    indices: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    precise: bool = False,
    fill: float | None = None,
) -> np.ndarray:
    """``oracle(...)[tuple(indices.T)]`` at the cost of those elements only.

    Parameters
    ----------
    indices : int array (points, axes of the result)

    Returns
    -------
    array (points,)
    """
    fill = border_value(spec) if fill is None else fill
    first, second = _pair(spec, x, w, grad)
    work, final = _types(spec, first, second, bias, precise, fill)
    at = {"forward": _forward_at, "input_gradient": _input_gradient_at,
          "weight_gradient": _weight_gradient_at}[spec.direction]  # fmt: skip
    total = at(spec, first, second, np.asarray(indices), work, fill)
    return _followed(spec, total, bias, np.asarray(indices)[:, 1]).astype(final)


# ---- geometry ----------------------------------------------------------------------------------------------


def sources(spec: ConvSpec, axis: int, positions: np.ndarray | None = None) -> np.ndarray:
    """For every position of the padded axis, or those given, the index of the input that stands there.

    It is -1 for zeros or a constant.
    """
    size, (before, after), mode = spec.size[axis], spec.padding[axis], spec.padding_mode
    i = np.arange(-before, size + after) if positions is None else positions - before
    if mode == "replicate":
        return i.clip(0, size - 1)
    if mode == "circular":
        return i % size
    if mode == "reflect":
        i = i % max(2 * size - 2, 1)
        return np.where(i < size, i, 2 * size - 2 - i)
    if mode == "symmetric":
        i = i % (2 * size)
        return np.where(i < size, i, 2 * size - 1 - i)
    return np.where((i >= 0) & (i < size), i, -1)


def copies(spec: ConvSpec) -> list[np.ndarray]:
    """Per axis, how often each index of the input stands in the padded one: 1,
    and more where the border repeats it.
    """
    found = [sources(spec, axis) for axis in range(spec.ndim)]
    return [np.bincount(s[s >= 0], minlength=n) for s, n in zip(found, spec.size, strict=True)]


def reduction(spec: ConvSpec) -> int:
    """Products summed in one result element of the spec's direction, at most; 0 for gradients of nothing."""
    taps = math.prod(spec.kernel)
    if spec.direction == "forward":
        return spec.in_channels // spec.groups * taps
    if spec.direction == "weight_gradient":
        return spec.batch * math.prod(spec.output_size)
    return spec.out_channels // spec.groups * taps * math.prod(int(c.max()) for c in copies(spec))


def border_value(spec: ConvSpec) -> int | float:
    """What a constant border holds, rounded once to the type of x, or an exact whole number less the zero
    point of x; 0 in the other modes.
    """
    if not spec.padding_mode.startswith("constant:"):
        return 0
    exact = Fraction(spec.padding_mode.partition(":")[2])
    if whole(spec.in_dtype):
        return int(exact) - spec.zero_points[0]
    scalar = real(spec.in_dtype).type
    with np.errstate(all="ignore"):
        # Rounded twice, it may be a neighbour of the nearest, which is even where two are as near
        near = scalar(float(exact))
        candidates = (near, np.nextafter(near, scalar(-np.inf)), np.nextafter(near, scalar(np.inf)))
    return min(
        (float(c) for c in candidates if np.isfinite(c)),
        key=lambda c: (abs(Fraction(c) - exact), _odd(scalar(c))),
    )


def _odd(number: Any) -> int:
    return int.from_bytes(number.tobytes(), sys.byteorder) & 1


def padded(spec: ConvSpec, x: np.ndarray, fill: float) -> np.ndarray:
    """x (N, C, *size) with its border, (N, C, *padded_size)."""
    fill = int(fill) if x.dtype.kind in "iuO" else fill  # a float would turn Python ints inexact
    for axis in range(spec.ndim):
        source = sources(spec, axis)
        if not any(spec.padding[axis]):
            continue
        x = np.take(x, source.clip(0), axis=axis + 2)
        outside = (slice(None),) * (axis + 2) + (source < 0,)
        x[outside] = fill
    return x


def _gathered(spec: ConvSpec, dx: np.ndarray) -> np.ndarray:
    """The gradient of the padded input, each border position added to the input element that it copies."""
    for axis in range(spec.ndim):
        source, (before, after), size = sources(spec, axis), spec.padding[axis], spec.size[axis]
        moved = np.moveaxis(dx, axis + 2, 0)
        inside = range(max(before, 0), before + size - max(-after, 0))  # positions that hold the input itself
        result = np.zeros_like(moved, shape=(size, *moved.shape[1:]))
        if inside:
            result[inside.start - before : inside.stop - before] = moved[inside.start : inside.stop]
        for position, index in enumerate(source):
            if index >= 0 and position not in inside:
                result[index] += moved[position]
        dx = np.moveaxis(result, 0, axis + 2)
    return np.ascontiguousarray(dx)


def offset(spec: ConvSpec, axis: int, tap: int) -> int:
    """Where a tap lies behind the first position that its output reads, in the padded input."""
    return (spec.kernel[axis] - 1 - tap if spec.flip else tap) * spec.dilation[axis]


def _taps(spec: ConvSpec) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Every tap of the kernel with the positions of the padded input that it meets, one per output."""
    for tap in np.ndindex(*spec.kernel):
        offsets = [offset(spec, axis, t) for axis, t in enumerate(tap)]
        reach = [(n - 1) * s + 1 for n, s in zip(spec.output_size, spec.stride, strict=True)]
        yield tap, tuple(slice(o, o + r, s) for o, r, s in zip(offsets, reach, spec.stride, strict=True))


def _last(index: Sequence[Any]) -> Any:
    """An index of the last axes."""
    return (..., *index)


# ---- numbers -----------------------------------------------------------------------------------------------


def _pair(
    spec: ConvSpec, x: np.ndarray | None, w: np.ndarray | None, grad: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The two operands of the direction, their shapes verified."""
    named = {"x": (x, spec.input_shape), "w": (w, spec.weight_shape), "grad": (grad, spec.output_shape)}
    needed = {"forward": ("x", "w"), "input_gradient": ("grad", "w"), "weight_gradient": ("x", "grad")}[
        spec.direction
    ]
    found = []
    for name in needed:
        array, shape = named[name]
        if array is None or array.shape != shape:
            raise ValueError(
                f"{spec.direction} needs {name} of shape {shape}, not "
                f"{None if array is None else array.shape}"
            )
        found.append(array)
    return found[0], found[1]


def _types(
    spec: ConvSpec, a: np.ndarray, b: np.ndarray, bias: np.ndarray | None, precise: bool, fill: float
) -> tuple[Any, Any]:
    """(type to compute in, type of the result). Whole numbers below 2^53 are exact
    in float64, whose products are fast.
    """
    if not whole(a.dtype):
        work = {("f", False): np.float64, ("f", True): np.longdouble,
                ("c", False): np.complex128, ("c", True): np.clongdouble}[kind(a.dtype), precise]  # fmt: skip
        return work, work
    largest = [_largest(v) + abs(point) for v, point in zip((a, b), spec.zero_points, strict=True)]
    if spec.direction != "input_gradient":
        largest[0] = max(largest[0], abs(math.ceil(fill)))
    bound = max(reduction(spec), 1) * max(largest[0], 1) * max(largest[1], 1)
    bound += 0 if bias is None else _largest(bias)
    if bound < 1 << 53:
        return np.float64, np.int64
    return (np.int64, np.int64) if bound < 1 << 63 else (object, object)


def _largest(a: np.ndarray) -> int:
    return max(abs(int(a.max(initial=0))), abs(int(a.min(initial=0))))


def _centred(a: np.ndarray, point: int, work: Any) -> np.ndarray:
    """In the type to compute in, less a zero point."""
    wide = a.astype(work)
    return wide - point if point else wide


def _conjugate(a: np.ndarray) -> np.ndarray:
    return a.conj() if a.dtype.kind == "c" else a


def _followed(spec: ConvSpec, y: np.ndarray, bias: np.ndarray | None, channels: np.ndarray) -> np.ndarray:
    """y, whose elements lie in those output channels, with its bias and its activation."""
    if spec.bias:
        if bias is None or bias.shape != (spec.out_channels,):
            raise ValueError(f"bias must have the shape ({spec.out_channels},)")
        y = y + bias.astype(y.dtype)[channels]
    return activated(y, spec.activation)


def activated(y: np.ndarray, activation: str) -> np.ndarray:
    """What follows the sum and its bias."""
    if activation in ("relu", "relu6"):
        y = np.maximum(y, 0)
        return np.minimum(y, 6) if activation == "relu6" else y
    if activation == "none":
        return y
    with np.errstate(over="ignore"):
        gate = 1 + np.exp(-y)
    return y / gate if activation == "silu" else 1 / gate


def _matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b; a reduction over one element is a plain product, which broadcasts faster."""
    return a * b if a.shape[-1] == 1 else a @ b


# ---- chosen elements ---------------------------------------------------------------------------------------


def _forward_at(
    spec: ConvSpec, x: np.ndarray, w: np.ndarray, at: np.ndarray, work: Any, fill: float
) -> np.ndarray:
    n, o, *place = at.T
    fill = int(fill) if work is object else fill
    inner = spec.in_channels // spec.groups
    # (points, C / groups)
    channel = (o // (spec.out_channels // spec.groups) * inner)[:, None] + np.arange(inner)
    table = [sources(spec, axis) for axis in range(spec.ndim)]
    total: np.ndarray = np.zeros(len(at), work)
    of_x, of_w = spec.zero_points
    for tap in np.ndindex(*spec.kernel):
        index = [
            table[axis][place[axis] * spec.stride[axis] + offset(spec, axis, t)] for axis, t in enumerate(tap)
        ]
        values = _centred(x[(n[:, None], channel, *(i.clip(0)[:, None] for i in index))], of_x, work)
        values[np.min(index, axis=0) < 0] = fill
        total += (values * _centred(w[(o, slice(None), *tap)], of_w, work)).sum(1)
    return total


def _input_gradient_at(
    spec: ConvSpec, grad: np.ndarray, w: np.ndarray, at: np.ndarray, work: Any, fill: float
) -> np.ndarray:
    n, c, *place = at.T
    inner, outer = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    channel = (c // inner * outer)[:, None] + np.arange(outer)  # (points, O / groups)
    # Per axis (size, copies): where each input element stands in the padded axis, -1 beyond its copies
    tables = []
    for axis, count in enumerate(copies(spec)):
        table, source = np.full((spec.size[axis], count.max()), -1), sources(spec, axis)
        for k in range(spec.size[axis]):
            table[k, : count[k]] = np.flatnonzero(source == k)
        tables.append(table[place[axis]])
    total: np.ndarray = np.zeros(len(at), work)
    for copy in np.ndindex(*(table.shape[1] for table in tables)):
        position = [table[:, k] for table, k in zip(tables, copy, strict=True)]
        for tap in np.ndindex(*spec.kernel):
            read = np.min(position, axis=0) >= 0
            index: list[np.ndarray] = []
            for axis, t in enumerate(tap):
                quotient, rest = np.divmod(position[axis] - offset(spec, axis, t), spec.stride[axis])
                read &= (rest == 0) & (quotient >= 0) & (quotient < spec.output_size[axis])
                index.append(quotient)
            if not read.any():
                continue
            values: np.ndarray = grad[(n[read, None], channel[read], *(i[read, None] for i in index))].astype(
                work
            )
            taps: np.ndarray = w[(channel[read], c[read, None] % inner, *tap)].astype(work)
            total[read] += (values * _conjugate(taps)).sum(1)
    return total


def _weight_gradient_at(
    spec: ConvSpec, x: np.ndarray, grad: np.ndarray, at: np.ndarray, work: Any, fill: float
) -> np.ndarray:
    inner, outer = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    windows = dict(_taps(spec))

    @lru_cache(1)
    def plane(channel: int) -> np.ndarray:
        return _conjugate(padded(spec, x[:, channel : channel + 1].astype(work), fill)[:, 0])

    total: np.ndarray = np.zeros(len(at), work)
    for k in np.lexsort(at.T[1::-1]):  # by output channel, then by channel: neighbours share the padded plane
        o, c, *tap = (int(v) for v in at[k])
        window = windows[tuple(tap)]
        total[k] = (plane(o // outer * inner + c)[_last(window)] * grad[:, o].astype(work)).sum()
    return total
