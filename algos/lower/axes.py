"""One dimension as two, and three as two: planes become images whose depth taps lie among the channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from algos.lower.parts import Lowered, Move, Part, count
from algos.spec import ConvSpec


def axes(spec: ConvSpec) -> Lowered | None:
    """1-D with a row of one, 3-D as pictures; of forward passes."""
    if spec.ndim == 1:
        return _row(spec)
    return _planes(spec) if spec.ndim == 3 else None


def _row(spec: ConvSpec) -> Lowered:
    """A signal is a picture of one row: nothing moves."""
    part = spec.with_(size=(1, *spec.size), kernel=(1, *spec.kernel), stride=(1, *spec.stride),
                      dilation=(1, *spec.dilation), padding=((0, 0), *spec.padding))

    def move(x: Any, *rest: Any) -> tuple[Any, ...]:
        return x.reshape(part.input_shape), *rest

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
            return kept[0].reshape(part.input_shape), *rest

        return move

    def place(y: Any, result: Any) -> None:
        y[...] = result.reshape(spec.batch, deep, *result.shape[1:]).swapaxes(1, 2)

    elements = count(part.input_shape)
    # (O, C / groups, KD, KH, KW), KD already beside C
    weights = lambda w: w.reshape(part.weight_shape)  # noqa: E731
    return Lowered(
        (Part(part, weights, operands, place, copied=elements, held=elements),), "planes as pictures"
    )
