"""Loops that convert elements, written so that LLVM turns them into vectors, and shared with the helpers:
NumPy's take 2 to 4 ns an element to and from float16, and several passes where a type must be checked.

Each comes twice: what one thread does of it, items [first, last) of ``ITEM`` elements or as said there, and
all of it. They cut arrays first, since indices that may be
negative are tested one by one, and nothing becomes a vector.
"""

from __future__ import annotations

from llvmlite import ir
from numba import float32, int32, int64, types, uint16, uint32
from numba.extending import intrinsic

from algos.engine.jit import compiled, linked
from algos.engine.relay import fork, increment
from algos.engine.simd import place

FLAGS = {"error_model": "numpy"}
HALF, SINGLE = ir.HalfType(), ir.FloatType()
ITEM = 1 << 12
INFINITE, QUIET = 0x7F800000, 0x40  # bits of an infinity in float32, and what keeps a NaN one in bfloat16


@intrinsic
def from_half(typingctx, bits):
    """float16, given as its bits -> float32."""

    def code(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], HALF), SINGLE)

    return float32(uint16), code


@intrinsic
def to_half(typingctx, value):
    """float32 -> the bits of the nearest float16."""

    def code(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], HALF), ir.IntType(16))

    return uint16(float32), code


@intrinsic
def bits_of(typingctx, value):
    """float32 -> its bits."""

    def code(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return uint32(float32), code


@intrinsic
def of_bits(typingctx, bits):
    """Bits -> the float32 that they are."""

    def code(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], SINGLE)

    return float32(types.uint32), code


@linked(**FLAGS)
def some_halves_in(a, y, slot, first, last):
    a, y = a[first * ITEM : last * ITEM], y[first * ITEM : last * ITEM]
    for i in range(a.size):
        y[i] = from_half(a[i])


@compiled(**FLAGS)
def halves_in(a, y, job):
    fork(some_halves_in, (a, y), job)


@linked(**FLAGS)
def some_halves_out(a, y, slot, first, last):
    a, y = a[first * ITEM : last * ITEM], y[first * ITEM : last * ITEM]
    for i in range(a.size):
        y[i] = to_half(a[i])


@compiled(**FLAGS)
def halves_out(a, y, job):
    fork(some_halves_out, (a, y), job)


@linked(**FLAGS)
def some_brains_in(a, y, slot, first, last):
    a, y = a[first * ITEM : last * ITEM], y[first * ITEM : last * ITEM]
    for i in range(a.size):
        y[i] = of_bits(uint32(a[i]) << uint32(16))


@compiled(**FLAGS)
def brains_in(a, y, job):
    fork(some_brains_in, (a, y), job)


@linked(**FLAGS)
def some_brains_out(a, y, slot, first, last):
    a, y = a[first * ITEM : last * ITEM], y[first * ITEM : last * ITEM]
    for i in range(a.size):
        bits = bits_of(a[i])
        near = (bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16)
        lost = (bits >> uint32(16)) | uint32(QUIET)
        y[i] = uint16(lost if (bits & uint32(0x7FFFFFFF)) > uint32(INFINITE) else near)


@compiled(**FLAGS)
def brains_out(a, y, job):
    """To nearest, to even when halfway."""
    fork(some_brains_out, (a, y), job)


@linked(**FLAGS)
def some_differences(a, y, point, slot, first, last):
    a, y = a[first * ITEM : last * ITEM], y[first * ITEM : last * ITEM]
    for i in range(a.size):
        y[i] = a[i]
        y[i] -= point


@compiled(**FLAGS)
def differences(a, y, point, job):
    """Whole numbers less a zero point, in floats that hold all three."""
    fork(some_differences, (a, y, point), job)


@linked(**FLAGS)
def some_long_differences(a, y, point, slot, first, last):
    a, y = a[first * ITEM : last * ITEM], y[first * ITEM : last * ITEM]
    for i in range(a.size):
        y[i] = int64(a[i]) - point


@compiled(**FLAGS)
def long_differences(a, y, point, job):
    """The same of 64 bits, in floats that hold the differences alone."""
    fork(some_long_differences, (a, y, point), job)


@linked(**FLAGS)
def some_parts(a, y, z, slot, first, last):
    a, y, z = a[2 * first * ITEM :], y[first * ITEM : last * ITEM], z[first * ITEM :]
    for i in range(y.size):
        y[i] = a[2 * i]
        z[i] = a[2 * i + 1]


@compiled(**FLAGS)
def parts(a, y, z, job):
    """Real and imaginary parts of numbers that lie [real, imaginary, real, ...]."""
    fork(some_parts, (a, y, z), job)


@linked(**FLAGS)
def some_joined(a, b, c, d, sign, y, slot, first, last):
    a, y = a[first * ITEM : last * ITEM], y[2 * first * ITEM :]
    b, c, d = b[first * ITEM :], c[first * ITEM :], d[first * ITEM :]
    for i in range(a.size):
        y[2 * i] = a[i] - sign * d[i]
        y[2 * i + 1] = b[i] + sign * c[i]


@compiled(**FLAGS)
def joined(a, b, c, d, sign, y, job):
    """y = [a - sign d, b + sign c], [real, imaginary] of each element."""
    fork(some_joined, (a, b, c, d, sign, y), job)


@linked(**FLAGS)
def some_wholes_out(a, y, low, high, beyond, slot, first, last):
    count = 0
    a, y = a[first * ITEM : last * ITEM], y[first * ITEM : last * ITEM]
    for i in range(a.size):
        value = a[i]
        near = value if value > low else low
        near = near if near < high else high
        y[i] = near
        count += near != value
    increment(place(beyond, 0), 0, count)


@compiled(**FLAGS)
def wholes_out(a, y, low, high, beyond, job):
    """Whole numbers into a type from ``low`` to ``high``; ``beyond[0]`` counts those that do not fit."""
    fork(some_wholes_out, (a, y, low, high, beyond), job)


@linked(**FLAGS)
def some_pairs(a, y, point, slot, first, last):
    channels, halves = a.shape[1], y.shape[1]
    for item in range(first, last):
        n, k = item // halves, item % halves
        x, one, pairs = a[n, 2 * k], a[n, min(2 * k + 1, channels - 1)], y[n, k]
        if 2 * k + 1 < channels:
            for i in range(pairs.size):
                low, high = int32(x[i]) - point, int32(one[i]) - point
                pairs[i] = (low & int32(0xFFFF)) | (high << int32(16))
        else:
            for i in range(pairs.size):
                pairs[i] = (int32(x[i]) - point) & int32(0xFFFF)


@linked(**FLAGS)
def some_quads(a, y, turned, slot, first, last):
    channels, fours = a.shape[1], y.shape[1]
    for item in range(first, last):
        n, c, four = item // fours, 4 * (item % fours), y[item // fours, item % fours]
        here, end = min(4, channels - c), channels - 1
        kept = uint32(0xFFFFFFFF) >> uint32(32 - 8 * here)
        flip = turned & kept
        x0, x1, x2, x3 = a[n, c], a[n, min(c + 1, end)], a[n, min(c + 2, end)], a[n, min(c + 3, end)]
        for i in range(four.size):
            low = uint32(x0[i]) | uint32(x1[i]) << uint32(8)
            high = uint32(x2[i]) | uint32(x3[i]) << uint32(8)
            four[i] = (low | high << uint32(16)) & kept ^ flip


@compiled(**FLAGS)
def quads(a, y, turned, job):
    """Channels 4k to 4k + 3 of a (n, channels, elements) side by side in y (n, fours, elements), bits turned
    where ``turned`` says; items are channels of y.
    """
    fork(some_quads, (a, y, turned), job)


@linked(**FLAGS)
def some_brain_pairs(a, y, faint, slot, first, last):
    channels, halves, found = a.shape[1], y.shape[1], uint32(0)
    for item in range(first, last):
        n, k = item // halves, item % halves
        x, one, pairs = a[n, 2 * k], a[n, min(2 * k + 1, channels - 1)], y[n, k]
        kept = uint32(0xFFFF if 2 * k + 1 < channels else 0)
        for i in range(pairs.size):
            both = uint32(x[i]) | (uint32(one[i]) & kept) << uint32(16)
            pairs[i] = both
            # From 1 to 0x7F: the first sum reaches 0x8000, the second does not, and neither its neighbour
            size = both & uint32(0x7FFF7FFF)
            found |= ((size + uint32(0x7FFF7FFF)) & ~(size + uint32(0x7F807F80))) & uint32(0x80008000)
    increment(place(faint, 0), 0, int64(found != 0))


@compiled(**FLAGS)
def brain_pairs(a, y, faint, job):
    """Channels 2k and 2k + 1 of bfloat16, given as their bits, side by side; ``faint[0]`` is above 0 where
    one is denormal.
    """
    fork(some_brain_pairs, (a, y, faint), job)


@compiled(**FLAGS)
def pairs(a, y, point, job):
    """Channels 2k and 2k + 1 of a (n, channels, elements), less ``point``, as halves of y (n, halves,
    elements); items are channels of y.
    """
    fork(some_pairs, (a, y, point), job)
