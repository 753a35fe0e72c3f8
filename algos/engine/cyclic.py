"""Cyclic convolutions that hold a linear one: the lengths to transform, shared by every FFT of whole images.
"""

from __future__ import annotations

from functools import lru_cache

from algos.spec import ConvSpec

SEARCHED = 1 << 32


@lru_cache(maxsize=4096)
def fast_length(least: int, factors: tuple[int, ...]) -> int:
    """The next length whose only prime factors are ``factors``, those that the transform has special code
    for; 2 is one.

    Beyond ``SEARCHED`` the next one that is a multiple of a power of two: choices are close together there.
    """
    unit = 1 << max(0, least.bit_length() - SEARCHED.bit_length())
    least = -(-least // unit)
    odd = {1}
    for factor in factors[1:]:
        for product_so_far in list(odd):
            while (product_so_far := product_so_far * factor) < least:
                odd.add(product_so_far)
    return unit * min(n << (-(-least // n) - 1).bit_length() for n in odd)


def least_lengths(spec: ConvSpec) -> list[int]:
    """For each axis, past the image, enough zeros for the longer of both borders."""
    lengths = []
    for axis, (size, (before, _)) in enumerate(zip(spec.size, spec.padding, strict=True)):
        last = (spec.output_size[axis] - 1) * spec.stride[axis]
        # Of the border, as far as some window reaches
        after = last + spec.kernel_extent[axis] - before - size
        lengths.append(max(size + max(before, after, 0), last + 1))
    return lengths
