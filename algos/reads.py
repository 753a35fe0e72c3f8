"""Which indices of an axis a convolution reads, counted in closed form: the largest sizes are answered at
once.

Output o reads the padded index o * stride + t * dilation at tap t.
"""

from __future__ import annotations

from bisect import bisect_left
from math import gcd

LISTED = 6


def unread(
    size: int, before: int, outputs: int, taps: int, stride: int, dilation: int
) -> tuple[int, tuple[int, ...]]:
    """How many of ``size`` indices behind a padding of ``before`` no output
    reads, and the first ``LISTED`` of them.
    """
    padding = _read_below(before, outputs, taps, stride, dilation)

    def unread_below(index: int) -> int:
        return index - _read_below(before + index, outputs, taps, stride, dilation) + padding

    count = unread_below(size)
    first = (bisect_left(range(size + 1), k, key=unread_below) - 1 for k in range(1, min(count, LISTED) + 1))
    return count, tuple(first)


def _read_below(limit: int, outputs: int, taps: int, stride: int, dilation: int) -> int:
    """How many padded indices below ``limit`` are read.

    With stride and dilation divided by their common divisor, (o, t) and (o + dilation, t - stride) are the
    same index and no others are, so that each index is a chain of pairs: it counts once when the links
    between them are taken off.
    """
    common = gcd(stride, dilation)
    s, d = stride // common, dilation // common
    links = _pairs_below(limit - s * d * common, outputs - d, taps - s, stride, dilation)
    return _pairs_below(limit, outputs, taps, stride, dilation) - links


def _pairs_below(limit: int, outputs: int, taps: int, stride: int, dilation: int) -> int:
    """How many pairs (o, t) read an index below ``limit``."""
    if min(limit, outputs, taps) <= 0:
        return 0
    some = min(taps, -(-limit // dilation))  # taps at which any output does
    # Taps at which each output does
    every = min(some, max(0, -(-(limit - (outputs - 1) * stride) // dilation)))
    last = limit - (some - 1) * dilation
    return outputs * every + _floor_sum(some - every, stride, dilation, last + stride - 1)


def _floor_sum(count: int, divisor: int, step: int, start: int) -> int:
    """The sum of (start + i * step) // divisor over i < count, by Euclid's steps."""
    total = 0
    while count:
        total += count * (count - 1) // 2 * (step // divisor) + count * (start // divisor)
        step, start = step % divisor, start % divisor
        end = count * step + start
        count, start, step, divisor = end // divisor, end % divisor, divisor, step
    return total
