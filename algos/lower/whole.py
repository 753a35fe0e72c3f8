"""Integers through floats of a type in which every sum is exact, whatever its order: proven by the types
where they are narrow, else by the operands at hand, else loops over whole numbers.

A sum of K products of magnitudes up to a and b, and all its parts, are whole numbers up to K a b: exact in
float32 below 2^24, in float64 below 2^53. Long sums of narrow types are cut into runs of channels that are
exact in float32. A result that does not fit its type is an OverflowError: nothing wraps and nothing
saturates. Zero points are subtracted on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from algos.arrays import module_of, on_host
from algos.engine.activations import activated
from algos.engine.casts import beyond, store_whole
from algos.lower.border import source
from algos.lower.parts import MOST_LEAVES, Lowered, Move, Part, converted, converting, count, operand_shapes
from algos.spec import ConvSpec

SINGLE, DOUBLE, LONG = 1 << 24, 1 << 53, 1 << 63  # below which every whole number is exact


def integers(spec: ConvSpec) -> Lowered:
    """The differences from the zero points, in float32 or float64, alone or in runs of channels."""
    a, b = widest(spec)
    bound = terms(spec) * a * b
    guard = None if bound < DOUBLE and not spec.bias else partial(guarded_by, spec)
    if runs := _runs(spec, a * b):
        return _summed(spec, runs, guard)
    work = np.float32 if bound < SINGLE and not spec.bias else np.float64
    part, (x, w) = _floats(spec, work), spec.zero_points
    copied = sum(map(count, operand_shapes(spec)))
    operands = partial(converting, spec, work, store_whole, (x, 0))
    whole = Part(part, partial(converted, dtype=work, point=w), operands, store_whole,
                 copied=copied, held=copied, made=True, bias=partial(converted, dtype=work),
                 shared=True)  # fmt: skip
    words = f"whole numbers in {part.dtype}" + (" while sums stay below 2^53" if guard else "")
    return Lowered((whole,), words, guard=guard, instead=loop_bytes(spec) if guard else 0)


def widest(spec: ConvSpec) -> tuple[int, int]:
    """Largest magnitudes that the types of both operands hold, less their zero points."""
    first = spec.out_dtype if spec.direction == "input_gradient" else spec.in_dtype
    second = spec.out_dtype if spec.direction == "weight_gradient" else spec.w_dtype
    limits = (np.iinfo(dtype) for dtype in (first, second))
    a, b = (max(int(info.max) - point, point - int(info.min))
            for info, point in zip(limits, spec.zero_points, strict=True))  # fmt: skip
    return a, b  # which a border, of the same type, does not exceed


def border_of(spec: ConvSpec) -> int:
    return abs(int(spec.border) - spec.zero_points[0]) if spec.padding_mode.startswith("constant:") else 0


def terms(spec: ConvSpec) -> int:
    """Products in one result, at most."""
    if spec.direction == "forward":
        return spec.reduction_length
    if spec.direction == "weight_gradient":
        return spec.batch * math.prod(spec.output_size)
    around = spec.padding_mode != "zeros" and not spec.padding_mode.startswith("constant:")
    copies = math.prod(1 + max(b, 0) + max(a, 0) for b, a in spec.padding) if around else 1
    return spec.out_channels // spec.groups * math.prod(spec.kernel) * copies


def _floats(spec: ConvSpec, work: Any) -> ConvSpec:
    mode = spec.padding_mode
    if mode.startswith("constant:"):
        inside = spec.direction != "input_gradient"
        mode = f"constant:{int(spec.border) - spec.zero_points[0]}" if inside else "zeros"
    return spec.with_(dtype=np.dtype(work).name, zero_points=(0, 0), padding_mode=mode)


# ---- runs of channels --------------------------------------------------------------------------------------


def _runs(spec: ConvSpec, product: int) -> list[slice]:
    """Channels of a forward pass, as even as can be, whose sums are exact in float32; none where all are, or
    where float64 serves better.
    """
    taps, most = math.prod(spec.kernel), (SINGLE - 1) // product
    if spec.direction != "forward" or spec.groups > 1 or spec.reduction_length <= most or taps > most:
        return []
    pieces = -(-spec.in_channels // (most // taps))
    if pieces > MOST_LEAVES or spec.reduction_length * product > np.iinfo(spec.out_dtype).max:
        return []
    return list(_slices(spec.in_channels, pieces))


def _slices(length: int, pieces: int) -> Iterator[slice]:
    ends = [length * k // pieces for k in range(pieces + 1)]
    return (slice(*pair) for pair in pairwise(ends))


def _summed(spec: ConvSpec, runs: list[slice], guard: Any) -> Lowered:
    """The runs' results summed in the type of the result, which their types prove to be wide enough."""
    bare, (x, w) = _floats(spec, np.float32).with_(bias=False, activation="none"), spec.zero_points
    parts = []
    for at in runs:
        part = bare.with_(in_channels=at.stop - at.start)
        elements = count(part.input_shape)
        run = spec.with_(in_channels=at.stop - at.start)
        parts.append(Part(part, partial(_weights_of, at=at, point=w), partial(_converting_of, run, at, x),
                          _added, copied=elements, held=elements, beside=count(part.output_shape),
                          made=True, shared=True))  # fmt: skip
    finish = partial(finishing, spec) if spec.finished else None
    words = f"whole numbers in float32, {len(runs)} runs of channels"
    return Lowered(tuple(parts), words, cleared=True, finish=finish, guard=guard,
                   instead=loop_bytes(spec) if guard else 0)  # fmt: skip


def _weights_of(w: Any, at: slice, point: int) -> Any:
    return converted(w[:, at], np.float32, point)


def _converting_of(run: ConvSpec, at: slice, point: int, threads: int) -> Move:
    move = converting(run, np.float32, None, (point,), threads)
    return lambda x: move(x[:, at])


def _added(y: Any, result: Any, threads: int) -> None:
    y += result.astype(y.dtype)


def finishing(spec: ConvSpec, bias: Any, threads: int) -> Callable[[Any], None]:
    """Adds a bias to whole numbers, and applies an activation; the guard has seen that float64 holds both."""

    def finish(y: Any) -> None:
        total = y.astype(np.float64)
        if bias is not None:
            total += bias
        store_whole(y, activated(total, spec.activation))

    return finish


# ---- where the types prove nothing -------------------------------------------------------------------------


def guarded_by(spec: ConvSpec, weights: Any, bias: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` where the numbers at hand prove that float64 is exact, else loops over whole numbers."""
    x, w = spec.zero_points
    fixed = max(_largest(weights, w), 1) if weights is not None else 1
    added, border = _largest(bias, 0) if bias is not None else 0, border_of(spec)

    def guarded(*operands: Any, out: Any = None) -> Any:
        sizes = [_largest(a, point) for a, point in zip(operands, (x, 0), strict=False)]
        bound = terms(spec) * fixed * math.prod([max(sizes[0], border), *sizes[1:]]) + added
        if bound < DOUBLE:
            return run(*operands) if out is None else run(*operands, out=out)
        xp = module_of(operands[0])  # a device's numbers are summed on the host
        y = _exactly(spec, tuple(map(on_host, operands)), on_host(weights), on_host(bias), bound)
        if spec.activation != "none":
            y = activated(y, spec.activation)
        made = xp.empty(spec.result_shape, spec.result_dtype) if out is None else out
        made[...] = xp.asarray(_fitting(spec, y))
        return made

    return guarded


def loop_bytes(spec: ConvSpec) -> int:
    """Of ``_exactly`` at its peak where sums fit 64 bits: operands with borders, what a tap meets, sums,
    and those of a tap.
    """
    arrays = (spec.input_shape, spec.weight_shape, spec.output_shape)
    x, w, y = map(count, arrays)
    window = spec.batch * spec.in_channels * count(spec.output_size)
    padded = spec.batch * spec.in_channels * count(map(max, spec.padded_size, spec.size))
    words = {"forward": x + 2 * padded + window + 3 * y + 2 * w,
             "input_gradient": y + 2 * padded + 2 * window + 2 * x + w,
             "weight_gradient": x + 2 * padded + window + 2 * y + 3 * w}[spec.direction]  # fmt: skip
    return 8 * words


def _largest(a: Any, point: int) -> int:
    if not a.size:
        return 0
    return max(int(a.max()) - point, point - int(a.min()))


def _exactly(spec: ConvSpec, operands: tuple[Any, ...], weights: Any, bias: Any, bound: int) -> Any:
    """The sums in whole numbers; ``bound``: of the magnitudes of each sum's terms.

    Beyond 64 bits they are taken modulo 2^64, and float64 tells how often that went around: never, if they
    fit. Where it cannot tell, or an activation brings back what does not fit, Python's integers do.
    """
    if bound < LONG:
        return _sums(spec, operands, weights, bias, np.int64)
    if (terms(spec) + 4) * bound < DOUBLE * LONG // 4:  # float64 is off by less than 2^62
        near = _sums(spec, operands, weights, bias, np.float64)
        y = _sums(spec, operands, weights, bias, np.uint64).view(
            np.int64 if spec.result_dtype.kind == "i" else np.uint64
        )
        near -= y
        worst = np.unravel_index(int(np.abs(near).argmax()), near.shape)
        rounds = round(float(near[worst]) / (2 * LONG))
        if not rounds:
            return y
        if spec.activation == "none":
            raise OverflowError(beyond(int(y[worst]) + 2 * rounds * LONG, spec.result_dtype))
    return _sums(spec, operands, weights, bias, object)


def _sums(spec: ConvSpec, operands: tuple[Any, ...], weights: Any, bias: Any, work: Any) -> Any:
    """The definition, tap by tap, with its bias."""
    whole = lambda number: np.array(number).astype(work)[()]  # noqa: E731 - modulo 2^64 in its type
    first, *rest = (a.astype(work) for a in operands)
    n, g, p = spec.batch, spec.groups, math.prod(spec.output_size)
    i, o = spec.in_channels // g, spec.out_channels // g
    tables = [source(*axis, spec.padding_mode) for axis in zip(spec.size, spec.padding, strict=True)]
    forward = spec.direction != "input_gradient"
    if forward:
        first -= whole(spec.zero_points[0])
    a = _surrounded(spec, first, tables, whole) if forward else first.reshape(n, g, o, p)
    second = rest[0].reshape(n, g, o, p) if rest else weights.astype(work) - whole(spec.zero_points[1])
    y = np.zeros((n, spec.in_channels, *spec.padded_size) if not forward else
                 spec.weight_shape if rest else (n, g, o, p), work)  # fmt: skip
    for tap in np.ndindex(*spec.kernel):
        reads = zip(tap, spec.kernel, spec.dilation, spec.stride, spec.output_size, strict=True)
        starts = [((k - 1 - t if spec.flip else t) * d, s, length) for t, k, d, s, length in reads]
        window: Any = (..., *(slice(at, at + (length - 1) * s + 1, s) for at, s, length in starts))
        if rest:
            y[(..., *tap)] = (second @ a[window].reshape(n, g, i, p).swapaxes(2, 3)).sum(0).reshape(g * o, i)
        elif forward:
            y += second[(..., *tap)].reshape(g, o, i) @ a[window].reshape(n, g, i, p)
        else:
            kernel = second[(..., *tap)].reshape(g, o, i).swapaxes(1, 2)
            y[window] += (kernel @ a).reshape(n, g * i, *spec.output_size)
    if rest:
        return y
    if not forward:
        for axis, table in enumerate(tables):
            moved = np.moveaxis(y, axis + 2, 0)
            folded = np.zeros((spec.size[axis], *moved.shape[1:]), work)
            np.add.at(folded, table[table >= 0], moved[table >= 0])
            y = np.moveaxis(folded, 0, axis + 2)
        return y
    y = y.reshape(spec.output_shape)
    if bias is not None:
        y += bias.astype(work)
    return y


def _surrounded(spec: ConvSpec, x: Any, tables: list[np.ndarray], whole: Callable[[int], Any]) -> Any:
    """x with its border."""
    fill = whole(int(spec.border) - spec.zero_points[0] if spec.padding_mode.startswith("constant:") else 0)
    for axis, table in enumerate(tables):
        x = np.take(x, table.clip(0), axis=axis + 2)
        x[(slice(None),) * (axis + 2) + (table < 0,)] = fill
    return x


def _fitting(spec: ConvSpec, y: Any) -> Any:
    """y, where its type holds it."""
    info = np.iinfo(spec.result_dtype)
    for value in (int(y.min()), int(y.max())):
        if not info.min <= value <= info.max:
            raise OverflowError(beyond(value, spec.result_dtype))
    return y
