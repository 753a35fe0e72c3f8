"""One dimension as two, and three as two: two axes along which nothing is summed are one; otherwise planes
become images, whose depth taps lie among the channels (``axes``) or are problems apart, which keep the
channels that a group has (``depth``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from algos.engine.films import as_pictures, joined
from algos.engine.threads import share
from algos.lower.parts import MOST_LEAVES, Lowered, Move, Part, contiguous, count, inner, operand_shapes
from algos.spec import ConvSpec

SHARED = 1 << 18  # elements; fewer are copied by one thread


def axes(spec: ConvSpec) -> Lowered | None:
    """1-D with a row of one; 3-D as pictures, but for input gradients that sum along all axes."""
    if spec.ndim == 1:
        return _shaped(spec.with_(size=(1, *spec.size), kernel=(1, *spec.kernel), stride=(1, *spec.stride),
                                  dilation=(1, *spec.dilation), padding=((0, 0), *spec.padding)),
                       "a picture of one row")  # fmt: skip
    if spec.ndim != 3:
        return None
    if (first := joined(spec)) is not None:
        if max(spec.stride[first : first + 2]) == 1:
            return _shaped(_joined(spec, first), "two axes as one")
        if spec.direction != "input_gradient":
            return _sampled(spec, first)
    return _planes(spec) if spec.direction != "input_gradient" else None


def _sampled(spec: ConvSpec, first: int) -> Lowered:
    """What the strides leave of an axis and the next one, along which nothing is summed, as one."""
    part = _joined(spec, first)
    reshape = _shaped(part, "").parts[0].operands()
    steps = [step if axis in (first, first + 1) else 1 for axis, step in enumerate(spec.stride)]
    at = inner(slice(None, None, step) for step in steps)

    def move(x: Any, *rest: Any) -> tuple[Any, ...]:
        return reshape(contiguous(x[at]), *rest)

    one = Part(part, lambda w: w.reshape(part.weight_shape), lambda: move, copied=count(part.input_shape))
    return Lowered((one,), "what the strides leave, two axes as one")


def _joined(spec: ConvSpec, first: int) -> ConvSpec:
    """With an axis and the next one, along which nothing is summed, as one, without what strides skip."""

    def one(values: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
        return *values[:first], value, *values[first + 2 :]

    return spec.with_(size=one(spec.size, math.prod(spec.output_size[first : first + 2])),
                      kernel=one(spec.kernel, 1), stride=one(spec.stride, 1),
                      dilation=one(spec.dilation, 1), padding=one(spec.padding, (0, 0)))  # fmt: skip


def _shaped(part: ConvSpec, words: str) -> Lowered:
    """The same numbers in other shapes: nothing moves."""
    shapes = operand_shapes(part)

    def move(*operands: Any) -> tuple[Any, ...]:
        mine = (a.reshape(shape) for a, shape in zip(operands, shapes, strict=False))
        return *mine, *operands[len(shapes) :]

    return Lowered((Part(part, lambda w: w.reshape(part.weight_shape), lambda: move),), words)


def _flat(spec: ConvSpec) -> ConvSpec:
    """A 3-D problem's without its depth."""
    return spec.with_(size=spec.size[1:], kernel=spec.kernel[1:], stride=spec.stride[1:],
                      dilation=spec.dilation[1:], padding=spec.padding[1:])  # fmt: skip


def _reads(spec: ConvSpec) -> list[tuple[int, slice, slice]]:
    """By depth tap that reads anything: the planes of the result for which it does, and those that it reads.
    """
    step, gap, before, found = spec.stride[0], spec.dilation[0], spec.padding[0][0], []
    for tap in range(spec.kernel[0]):
        first = max(-(-(before - tap * gap) // step), 0)
        last = min((spec.size[0] - 1 + before - tap * gap) // step + 1, spec.output_size[0])
        start = first * step + tap * gap - before
        if last > first:
            end = start + (last - first - 1) * step + 1
            found.append((tap, slice(first, last), slice(start, end, step)))
    return found


def depth(spec: ConvSpec) -> Lowered | None:
    """3-D as pictures, those of each depth tap by themselves, summed."""
    if spec.ndim != 3 or spec.kernel[0] > MOST_LEAVES:
        return None
    flat, parts, reads = _flat(spec), [], _reads(spec)
    for tap, outputs, planes in reads:
        part = flat.with_(batch=spec.batch * (outputs.stop - outputs.start))
        of_x, of_y = inner([planes]), inner([outputs])
        taken, placed = {"forward": ((of_x,), of_y), "input_gradient": ((of_y,), of_x),
                         "weight_gradient": ((of_x, of_y), inner([tap]))}[spec.direction]  # fmt: skip
        parts.append(Part(part, _tap(tap), _pictures(taken), _summed(spec, placed), made=True,
                          copied=sum(map(count, operand_shapes(part)))))  # fmt: skip
    return Lowered(tuple(parts), f"planes as pictures, {len(parts)} taps apart", cleared=True)


def _tap(at: int) -> Any:
    return lambda w: contiguous(w[:, :, at])


def _pictures(parts: tuple[Any, ...]) -> Any:
    """Operands whose first ones are those planes of a call's, each an image."""

    def move(*operands: Any) -> tuple[Any, ...]:
        moved = (contiguous(a[at].swapaxes(1, 2)) for a, at in zip(operands, parts, strict=False))
        mine = (a.reshape(-1, *a.shape[2:]) for a in moved)  # [n][d][c] -> [n * d][c]
        return *mine, *operands[len(parts) :]

    return lambda: move


def _summed(spec: ConvSpec, at: tuple[Any, ...]) -> Any:
    def place(y: Any, result: Any) -> None:
        if spec.direction == "weight_gradient":
            y[at] = result
        else:
            y[at] += result.reshape(spec.batch, -1, *result.shape[1:]).swapaxes(1, 2)

    return place


def _planes(spec: ConvSpec) -> Lowered:
    """Each plane of the result is a picture's: its depth taps are KD times as many channels."""
    deep, taps, reads = spec.output_size[0], spec.kernel[0], _reads(spec)
    part = as_pictures(spec)

    def operands(threads: int) -> Move:
        kept: list[Any] = []

        def move(x: Any, *rest: Any) -> tuple[Any, ...]:
            if not kept:
                kept.append(np.zeros_like(x, shape=(spec.batch, deep, spec.in_channels, taps, *spec.size[1:]),
                                          order="C"))  # fmt: skip

            def copy(first: int, last: int) -> None:
                for tap, outputs, planes in reads:  # x[n][c][d] -> [n][od][c][kd]
                    kept[0][:, outputs, first:last, tap] = x[:, first:last, planes].swapaxes(1, 2)

            _shared(copy, spec.in_channels, threads, kept[0].size)
            x = kept[0].reshape(part.input_shape)
            if spec.direction == "forward":
                return x, *rest
            return x, contiguous(rest[0].swapaxes(1, 2)).reshape(part.output_shape)  # [n][o][d] -> [n][d][o]

        return move

    def place(y: Any, result: Any, threads: int) -> None:
        if spec.direction == "forward":
            planes = result.reshape(spec.batch, deep, *result.shape[1:]).swapaxes(1, 2)

            def copy(first: int, last: int) -> None:
                y[:, first:last] = planes[:, first:last]

            _shared(copy, spec.out_channels, threads, y.size)
        else:
            y[...] = result.reshape(y.shape)  # KD already beside C

    elements = count(part.input_shape)
    copied = elements + (0 if spec.direction == "forward" else count(part.output_shape))
    # (O, C / groups, KD, KH, KW), KD already beside C
    weights = lambda w: w.reshape(part.weight_shape)  # noqa: E731
    return Lowered(
        (Part(part, weights, operands, place, copied=copied, held=elements, shared=True),),
        "planes as pictures",
    )


def _shared(copy: Callable[[int, int], None], channels: int, threads: int, elements: int) -> None:
    """Copy channels, by all threads where it takes far longer than telling them."""
    share(copy, channels, threads if elements >= SHARED else 1)
