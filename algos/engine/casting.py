"""Loops that convert elements, written so that LLVM turns them into vectors: NumPy's take 2 to 4 ns an
element to and from float16, and several passes where a type must be checked.
"""

from __future__ import annotations

from llvmlite import ir
from numba import float32, types, uint16, uint32
from numba.extending import intrinsic

from algos.engine.jit import compiled

FLAGS = {"error_model": "numpy"}
HALF, SINGLE = ir.HalfType(), ir.FloatType()
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


@compiled(**FLAGS)
def halves_in(a, y):
    for i in range(a.size):
        y[i] = from_half(a[i])


@compiled(**FLAGS)
def halves_out(a, y):
    for i in range(a.size):
        y[i] = to_half(a[i])


@compiled(**FLAGS)
def brains_in(a, y):
    for i in range(a.size):
        y[i] = of_bits(uint32(a[i]) << uint32(16))


@compiled(**FLAGS)
def brains_out(a, y):
    """To nearest, to even when halfway."""
    for i in range(a.size):
        bits = bits_of(a[i])
        near = (bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16)
        lost = (bits >> uint32(16)) | uint32(QUIET)
        y[i] = uint16(lost if (bits & uint32(0x7FFFFFFF)) > uint32(INFINITE) else near)


@compiled(**FLAGS)
def differences(a, y, point):
    """Whole numbers less a zero point, in floats that hold both."""
    for i in range(a.size):
        y[i] = a[i] - point


@compiled(**FLAGS)
def wholes_out(a, y, low, high):
    """Whole numbers that floats hold, into a type from ``low`` to ``high``; how many do not fit."""
    beyond = 0
    for i in range(a.size):
        value = a[i]
        near = value if value > low else low
        near = near if near < high else high
        y[i] = near
        beyond += near != value
    return beyond


@compiled(**FLAGS)
def parts(a, y, z):
    """Real and imaginary parts of numbers that lie [real, imaginary, real, ...]."""
    for i in range(y.size):
        y[i] = a[2 * i]
        z[i] = a[2 * i + 1]


@compiled(**FLAGS)
def joined(a, b, c, d, sign, y):
    """y = [a - sign d, b + sign c], [real, imaginary] of each element."""
    for i in range(a.size):
        y[2 * i] = a[i] - sign * d[i]
        y[2 * i + 1] = b[i] + sign * c[i]
