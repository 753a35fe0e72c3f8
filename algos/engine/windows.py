"""Views: which outputs a tap reaches inside the image, and every window of a padded array without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from algos.spec import ConvSpec


def reach(spec: ConvSpec, axis: int, tap: int) -> tuple[int, int]:
    """The outputs [first, last) of ``axis`` for which ``tap`` reads inside the image rather than its zero
    border.
    """
    stride, size, outputs = spec.stride[axis], spec.size[axis], spec.output_size[axis]
    shift = tap * spec.dilation[axis] - spec.padding[axis][0]  # output o reads o * stride + shift
    first = max(0, -(shift // stride))
    last = min(outputs, (size - 1 - shift) // stride + 1)
    return min(first, outputs), max(min(first, outputs), last)


def pairs_inside(spec: ConvSpec, axis: int) -> int:
    """Pairs of an output and a tap of ``axis`` that read inside the image: the sum
    over taps of ``reach``, in closed form.
    """
    size, kernel, stride, dilation = (
        spec.size[axis],
        spec.kernel[axis],
        spec.stride[axis],
        spec.dilation[axis],
    )
    outputs, before = spec.output_size[axis], spec.padding[axis][0]

    def reading_below(end: int) -> int:
        """Pairs that read positions before ``end`` of the padded image."""
        # Outputs all of whose taps do
        whole = min(outputs, max(0, -(-(end - (kernel - 1) * dilation) // stride)))
        some = min(outputs, -(-end // stride))
        return kernel * whole + floor_sum(
            some - whole, dilation, stride, end - (some - 1) * stride + dilation - 1
        )

    return reading_below(before + size) - reading_below(before)


def floor_sum(count: int, divisor: int, step: int, first: int) -> int:
    """The sum of (first + i * step) // divisor over i < count, by Euclid's algorithm; nothing is negative."""
    total = 0
    while count > 0:
        total += count * (count - 1) // 2 * (step // divisor) + count * (first // divisor)
        last = (step % divisor) * count + first % divisor
        count, first, divisor, step = last // divisor, last % divisor, step % divisor, divisor
    return total


def read_slice(spec: ConvSpec, axis: int, tap: int, first: int, last: int) -> slice:
    """What ``tap`` reads of the image for the outputs [first, last), all inside it."""
    start = first * spec.stride[axis] + tap * spec.dilation[axis] - spec.padding[axis][0]
    return slice(start, start + (last - first - 1) * spec.stride[axis] + 1, spec.stride[axis])


def padded_shape(spec: ConvSpec) -> tuple[int, ...]:
    """Of one image with its zero border."""
    return (spec.in_channels, *spec.padded_size)


def interior(spec: ConvSpec) -> tuple[slice, ...]:
    """Where the image lies in its padded copy, channel axis first."""
    return (slice(None), *(slice(b, b + n) for n, (b, _) in zip(spec.size, spec.padding, strict=True)))


def windows(padded: np.ndarray, spec: ConvSpec, first: int = 0, last: int | None = None) -> np.ndarray:
    """View (c, *kernel, rows, *rest): what each tap reads for the outputs whose
    first spatial index is in [first, last).
    """
    steps = padded.strides[1:]
    stride, dilation = spec.stride, spec.dilation
    rows = (spec.output_size[0] if last is None else last) - first
    shape = (padded.shape[0], *spec.kernel, rows, *spec.output_size[1:])
    strides = (
        padded.strides[0],
        *(step * d for step, d in zip(steps, dilation, strict=True)),
        *(step * s for step, s in zip(steps, stride, strict=True)),
    )
    return np.lib.stride_tricks.as_strided(padded[:, first * stride[0] :], shape, strides, writeable=False)


def stuffed(weights: np.ndarray, dilation: Sequence[int]) -> np.ndarray:
    """``weights`` with dilation - 1 zeros between taps."""
    extents = [(k - 1) * d + 1 for k, d in zip(weights.shape[2:], dilation, strict=True)]
    result = np.zeros((*weights.shape[:2], *extents), weights.dtype)
    taps: Any = (..., *(slice(None, None, d) for d in dilation))
    result[taps] = weights
    return result
