"""Bias and activation, in place, of outputs that were written a moment ago and still lie in the cache.

Machine code for each element type and activation is made once, and kernels call it by its address, which
stands with that of the bias in their job (``relay.py``): they are compiled once for all activations, and
where nothing follows a convolution it costs them one comparison for each region.

exp(x) is 2^n p(r) with n = round(x / ln 2), r = x - n ln 2 and Taylor's polynomial, of arguments down from 0:
nothing overflows. sigmoid(x) is 1 / (1 + e^-|x|), or e^-|x| times that below 0, to 2 ulp, and silu(x) is x
times it. As torch's, relu(NaN) is NaN, and so is silu(-inf), 0 times infinity.

Source: Cody and Waite, "Software manual for the elementary functions", 1980, chapter 6 (ln 2 in two parts).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.contract import PLAIN_TYPES
from algos.engine.activations import activated
from algos.engine.jit import compile_for, compiled, disabled, linked
from algos.engine.lanes import Lanes
from algos.engine.relay import AFTER, BIAS, HELPERS, fork, helpers
from algos.engine.simd import I64, Emitter, place
from algos.spec import ACTIVATIONS, ConvSpec

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say

LN2 = Fraction("0.6931471805599453094172321214581765680755")
# By bytes of an element: bits of ln 2 whose product with any n is exact, the exponent's place, Taylor's
# degree, and where exp(-x) is 0
EXPONENTIAL = {4: (9, 23, 7, 104.0), 8: (20, 52, 13, 746.0)}
REGION = ir.FunctionType(ir.VoidType(), [I64] * 7)
CHUNK = 1 << 14  # elements of an item of a pass of its own
# Elements of a pass from which threads share it: BLAS holds their cores for a while after a product, which
# costs them 0.1 ms, as much as one thread takes for some million
SHARED = 1 << 20


class After(NamedTuple):
    """What follows a convolution: addresses of machine code, 0 for nothing, and of the bias, 0 for none."""

    code: int
    bias: int


# ---- one vector --------------------------------------------------------------------------------------------


def following(spec: ConvSpec) -> tuple[int, ...]:
    """What follows ``spec`` as a tuple's length, for code that is compiled with it; empty for nothing."""
    return (0,) * (1 + ACTIVATIONS.index(spec.activation)) if spec.finished else ()


def applied(emit: Emitter, activation: str, x: Any, bias: Any) -> Any:
    """A vector of outputs after its bias and activation."""
    x = emit.add(x, bias)
    builder, zero = emit.builder, emit.zero
    constant = lambda value: emit.constant(Fraction(value))  # noqa: E731
    if activation in ("relu", "relu6"):  # comparisons with NaN are false, so that it stays
        x = builder.select(builder.fcmp_ordered("<", x, zero), zero, x)
        if activation == "relu6":
            x = builder.select(builder.fcmp_ordered(">", x, constant(6)), constant(6), x)
    elif activation in ("sigmoid", "silu"):
        below = builder.fcmp_ordered("<", x, zero)
        one, power = constant(1), _exponential(emit, builder.select(below, x, builder.fneg(x)))
        gate = builder.fdiv(builder.select(below, power, one), builder.fadd(one, power))
        x = gate if activation == "sigmoid" else builder.fmul(x, gate)
    return x


def _exponential(emit: Emitter, x: Any) -> Any:
    """e^x of x <= 0, denormal results included."""
    builder, constant = emit.builder, emit.constant
    exact, mantissa, degree, last = EXPONENTIAL[emit.bytes]
    whole = ir.VectorType(ir.IntType(8 * emit.bytes), emit.lanes)
    high = Fraction(int(LN2 * 2**exact), 2**exact)
    ends = constant(Fraction(-last))
    x = builder.select(builder.fcmp_ordered("<", x, ends), ends, x)
    magic = constant(Fraction(3 << (mantissa - 1)))  # a sum with it has whole units in its last place
    shifted = builder.fadd(builder.fmul(x, constant(1 / LN2)), magic)
    n = builder.fsub(shifted, magic)
    rest = emit.fma(n, constant(high - LN2), emit.fma(n, constant(-high), x))
    power = constant(Fraction(1, math.factorial(degree)))
    for k in range(degree - 1, -1, -1):
        power = emit.fma(power, rest, constant(Fraction(1, math.factorial(k))))
    # 2^n in two factors, since n may be an exponent that no number has
    bits, one = builder.bitcast(shifted, whole), builder.bitcast(constant(Fraction(1)), whole)
    number = lambda value: ir.Constant(whole, [value] * emit.lanes)  # noqa: E731
    half = builder.lshr(bits, number(1))
    for part in (half, builder.sub(bits, half)):
        factor = builder.add(builder.shl(part, number(mantissa)), one)
        power = builder.fmul(power, builder.bitcast(factor, emit.vector))
    return power


# ---- machine code ------------------------------------------------------------------------------------------


@intrinsic
def machine_code(typingctx, element, activation):
    """Address of code that applies bias and activation number ``len(activation)`` to elements like
    ``element``.

    It takes what ``call`` does.
    """

    def codegen(context, builder, sig, args):
        module = builder.module
        code = ir.Function(module, REGION, module.get_unique_name("region"))
        code.linkage = "internal"
        inside = ir.IRBuilder(code.append_basic_block("entry"))
        _region(inside, element, ACTIVATIONS[len(activation)], *code.args)
        inside.ret_void()
        return builder.ptrtoint(code, I64)

    return types.intp(element, activation), codegen


def _region(builder: Any, element: Any, activation: str, y: Any, bias: Any, planes: Any, plane_step: Any,
            rows: Any, row_step: Any, cols: Any) -> None:  # fmt: skip
    emit = Emitter(builder, element)
    lanes, pointer = Lanes(emit, 8 * emit.bytes), emit.scalar.as_pointer()
    y, numbers = builder.inttoptr(y, pointer), builder.inttoptr(bias, pointer)
    biased = builder.icmp_unsigned("!=", bias, I64(0))
    rest = builder.and_(cols, I64(emit.lanes - 1))
    whole, ragged = builder.sub(cols, rest), builder.icmp_unsigned("!=", rest, I64(0))
    inside = lanes.below(lanes.numbers(I64(0)), rest)
    with cgutils.for_range(builder, planes, intp=I64) as plane:
        added = cgutils.alloca_once_value(builder, emit.scalar(0 if emit.whole else 0.0))
        with builder.if_then(biased):
            builder.store(builder.load(emit.at(numbers, plane.index)), added)
        term = emit.splat(builder.load(added))
        first = emit.at(y, builder.mul(plane.index, plane_step))
        with cgutils.for_range(builder, rows, intp=I64) as row:
            start = emit.at(first, builder.mul(row.index, row_step))
            with cgutils.for_range_slice(builder, I64(0), whole, I64(emit.lanes), I64) as (j, _):
                here = emit.at(start, j)
                emit.store(applied(emit, activation, emit.load(here), term), here)
            with builder.if_then(ragged):
                here = emit.at(start, whole)
                lanes.store_first(applied(emit, activation, lanes.load(here, inside), term), here, rest)


@compiled()
def compiled_code(element, activation):
    """``machine_code``, for Python."""
    return machine_code(element, activation)


@cache
def code_of(dtype: np.dtype, activation: str) -> int:
    """Address of the code of ``machine_code``; it stays as long as the process."""
    arguments = dtype.type(0), (0,) * ACTIVATIONS.index(activation)
    compile_for(compiled_code, *arguments)
    return int(compiled_code(*arguments))


@intrinsic
def call(typingctx, code, y, bias, planes, plane_step, rows, row_step, cols):
    """Apply ``code`` to ``planes`` planes of ``rows`` x ``cols`` elements from address y on.

    bias: address of the first plane's, or 0; steps: in elements.
    """

    def codegen(context, builder, sig, args):
        builder.call(builder.inttoptr(args[0], REGION.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8), codegen


# ---- in kernels --------------------------------------------------------------------------------------------


@linked()
def after_of(job):
    """What follows the convolution that ``job`` is for."""
    return After(job[AFTER], job[BIAS])


@linked()
def finish_at(after, y, size, o, planes, plane_step, rows, row_step, cols):
    """Bias and activation of ``planes`` channels from o on, the first at address y; elements of ``size``
    bytes.
    """
    if after.code != 0:
        if rows > 1 and row_step == cols:
            rows, cols = 1, rows * cols
        bias = after.bias + o * size if after.bias != 0 else 0
        call(after.code, y, bias, planes, plane_step, rows, row_step, cols)


@linked()
def finish(after, y, n, o, planes, pixel, rows, cols):
    """The same of y (n, o, oh, ow): ``rows`` x ``cols`` pixels from number ``pixel`` of their plane on."""
    finish_planes(after, y, n * y.shape[1] + o, 1, o, planes, pixel, rows, cols)


@linked()
def finish_planes(after, y, first, step, o, planes, pixel, rows, cols):
    """The same of planes (oh, ow) of y, from number ``first`` on and a step apart, of channels from o on."""
    if after.code != 0:
        plane = y.shape[2] * y.shape[3]
        at = place(y, first * plane + pixel)
        finish_at(after, at, y.itemsize, o, planes, step * plane, rows, y.shape[3], cols)


@linked()
def finish_plane(after, y, at, o, rows, row_step, cols):
    """The same of ``rows`` x ``cols`` elements of channel o, from element ``at`` of flat y on."""
    finish_at(after, place(y, at), y.itemsize, o, 1, 0, rows, row_step, cols)


# ---- from Python -------------------------------------------------------------------------------------------


@compiled()
def of_region(y, pixel, o, planes, plane_step, pixels, job):
    """``finish`` of ``pixels`` pixels in a row, the first of which is number ``pixel`` of flat y."""
    finish_at(after_of(job), place(y, pixel), y.itemsize, o, planes, plane_step, 1, pixels, pixels)


@linked()
def some_planes(y, size, channels, pixels, parts, after, slot, first, last):
    """Items [first, last), parts of planes of (n, o, pixels) at address y."""
    while first < last:
        plane, part = first // parts, first % parts
        begin, count = pixels * part // parts, 1
        if parts == 1:  # as many planes of an image as there are
            count = min(last - first, channels - plane % channels)
        here = pixels * (part + 1) // parts - begin
        at = y + (plane * pixels + begin) * size
        finish_at(after, at, size, plane % channels, count, pixels, 1, here, here)
        first += count


@compiled()
def all_planes(y, channels, pixels, parts, job):
    """Every element of flat y, shared with the helpers."""
    fork(some_planes, (place(y, 0), y.itemsize, channels, pixels, parts, after_of(job)), job)


def code_and_bias(spec: ConvSpec, bias: Any, called: bool = True) -> tuple[int, np.ndarray | None]:
    """What ``Helpers.job`` takes for what follows ``spec``; no code where it is not ``called``."""
    code = code_of(spec.out_dtype, spec.activation) if called and spec.finished else 0
    return code, None if bias is None else bias.ravel()


def in_blocks(spec: ConvSpec, bias: Any) -> Callable[..., None] | None:
    """``apply(y, n, o, planes, pixel, pixels)`` for algorithms in Python, or None where nothing follows.

    y: (n, o, *size) in C order; pixels of a plane are counted over all its axes.
    """
    if not spec.finished:
        return None
    channels, plane = spec.out_channels, math.prod(spec.output_size)
    if spec.activation == "none" or disabled():  # a bias alone is one pass as it is, and compiles nothing

        def applied(y: np.ndarray, n: int, o: int, planes: int, pixel: int, pixels: int) -> None:
            region = y.reshape(spec.batch, channels, plane)[n, o : o + planes, pixel : pixel + pixels]
            if bias is not None:
                region += bias.reshape(-1, 1)[o : o + planes]
            activated(region, spec.activation)

        return applied
    job = helpers().job(1, 1, *code_and_bias(spec, bias))
    empty = np.empty(0, spec.out_dtype)
    compile_for(of_region, empty, 0, 0, 0, 0, 0, job)

    def apply(y: np.ndarray, n: int, o: int, planes: int, pixel: int, pixels: int) -> None:
        of_region(y.reshape(-1), (n * channels + o) * plane + pixel, o, planes, plane, pixels, job)

    return apply


def in_a_pass(spec: ConvSpec, bias: Any, threads: int) -> Callable[[Any], None]:
    """``apply(y)`` after the convolution, shared by the threads where y is large; 0 threads: of a device."""

    def in_words(y: Any) -> None:
        if bias is not None:
            y += bias
        activated(y, spec.activation)

    if not threads or spec.activation == "none" or spec.out_dtype.name not in PLAIN_TYPES or disabled():
        return in_words
    elements, plane = math.prod(spec.output_shape), math.prod(spec.output_size)
    crew, parts = helpers(), -(-plane // CHUNK)
    items = spec.batch * spec.out_channels * parts
    threads, code = threads if elements > SHARED else 1, code_of(spec.out_dtype, spec.activation)
    job = crew.job(items, threads, *code_and_bias(spec, bias))
    activation = crew.job(items, threads, code)  # of channels that lie together, after their bias
    hands, channels = int(job[HELPERS]), spec.out_channels
    compile_for(all_planes, np.empty(0, spec.out_dtype), channels, plane, parts, job)

    def apply(y: Any) -> None:
        if hands:
            crew.wake(hands)
        if y.flags.c_contiguous:
            all_planes(y.reshape(-1), channels, plane, parts, job)
        elif (together := np.moveaxis(y, 1, -1)).flags.c_contiguous:
            if bias is not None:
                y += bias
            all_planes(together.reshape(-1), channels, plane, parts, activation)
        else:
            in_words(y)

    return apply
