"""One dimension as two, and three as two: planes become images whose depth taps lie among the channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from algos.lower.parts import Lowered, Move, Part, contiguous, count, operand_shapes
from algos.spec import ConvSpec


def axes(spec: ConvSpec) -> Lowered | None:
    """1-D with a row of one; 3-D as pictures, but for input gradients."""
    if spec.ndim == 1:
        return _row(spec)
    return _planes(spec) if spec.ndim == 3 and spec.direction != "input_gradient" else None


def _row(spec: ConvSpec) -> Lowered:
    """A signal is a picture of one row: nothing moves."""
    part = spec.with_(size=(1, *spec.size), kernel=(1, *spec.kernel), stride=(1, *spec.stride),
                      dilation=(1, *spec.dilation), padding=((0, 0), *spec.padding))

    shapes = operand_shapes(part)

    def move(*operands: Any) -> tuple[Any, ...]:
        mine = (a.reshape(shape) for a, shape in zip(operands, shapes, strict=False))
        return *mine, *operands[len(shapes) :]

    def place(y: Any, result: Any) -> None:
        y[...] = result.reshape(y.shape)

    return Lowered((Part(part, lambda w: w.reshape(part.weight_shape), lambda: move, place),),
                   "a picture of one row")


def _planes(spec: ConvSpec) -> Lowered:
    """Each plane of the result is a picture's: its depth taps are KD times as many channels."""
    deep, (taps, step, gap, (before, _)) = spec.output_size[0], (
        spec.kernel[0], spec.stride[0], spec.dilation[0], spec.padding[0])
    part = spec.with_(batch=spec.batch * deep, in_channels=spec.in_channels * taps, size=spec.size[1:],
                      kernel=spec.kernel[1:], stride=spec.stride[1:], dilation=spec.dilation[1:],
                      padding=spec.padding[1:])
    reads = []  # by tap: the planes of the result that find it inside, and what they read
    for tap in range(taps):
        first = max(-(-(before - tap * gap) // step), 0)
        last = min((spec.size[0] - 1 + before - tap * gap) // step + 1, deep)
        start = first * step + tap * gap - before
        reads.append((tap, slice(first, last), slice(start, start + max(last - first, 0) * step, step)))

    def operands() -> Move:
        kept: list[Any] = []

        def move(x: Any, *rest: Any) -> tuple[Any, ...]:
            if not kept:
                kept.append(np.zeros_like(x, shape=(spec.batch, deep, spec.in_channels, taps, *spec.size[1:]),
                                          order="C"))  # fmt: skip
            for tap, outputs, planes in reads:
                if outputs.stop > outputs.start:
                    # x[n][c][d] -> [n][od][c][kd]
                    kept[0][:, outputs, :, tap] = x[:, :, planes].swapaxes(1, 2)
            x = kept[0].reshape(part.input_shape)
            if spec.direction == "forward":
                return x, *rest
            return x, contiguous(rest[0].swapaxes(1, 2)).reshape(part.output_shape)  # [n][o][d] -> [n][d][o]

        return move

    def place(y: Any, result: Any) -> None:
        if spec.direction == "forward":
            y[...] = result.reshape(spec.batch, deep, *result.shape[1:]).swapaxes(1, 2)
        else:
            y[...] = result.reshape(y.shape)  # KD already beside C

    elements = count(part.input_shape)
    copied = elements + (0 if spec.direction == "forward" else count(part.output_shape))
    # (O, C / groups, KD, KH, KW), KD already beside C
    weights = lambda w: w.reshape(part.weight_shape)  # noqa: E731
    return Lowered(
        (Part(part, weights, operands, place, copied=copied, held=elements),), "planes as pictures"
    )
