"""Narrow numbers as pairs of 16 bits or fours of 8, whose products one instruction adds in 32: twice or four
times as many as of floats in the same registers.

Channels 2k and 2k + 1 of a group lie side by side in one element, in x and in w, less their zero points; a
last one alone is beside a zero. The rest of the problem is that of half as many channels, so that kernels
differ in one instruction (``Emitter.fma``), and a result of type int32 is written where it belongs.

Sums are taken modulo 2^32, in which neither order nor what lies between matters: they are right where the
types prove that the result, K a b at most, is below 2^31. Winograd's F(2, 3) multiplies G by 2 along each
axis and divides at the end, which asks for 4 K a b below 2^31; its transforms for 4 a and 9 b below 2^15. All
of it holds for 8 bits up to K = 8,256.

Fours of 8 bits (``simd.QUADS``) are unsigned in x and signed in w: x is off by 128 if its type has a sign,
and neither it nor its border is less the zero point, so that each channel's result is off by both times the
sum of its weights. That is subtracted as a bias, modulo 2^32 again.

Pairs of bfloat16 are summed in float32, where the host has that (``simd.BRAINS``). The instruction takes
denormal operands for zeros, and results below the smallest normal number become zeros: K of those are less
than ``bench/bounds.py`` allows, and so are denormal numbers times weights of at most 1. All others are
computed in float32, as without the instruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from algos.dtypes import BFLOAT16, BRAINS, PAIRS, QUADS, whole
from algos.engine.casts import LEAST, convert, denormal, pair, pair_brains, quadruple, store_whole
from algos.engine.pairs import paired
from algos.lower.parts import Lowered, Move, Part, converted, count
from algos.lower.whole import finishing, guarded_by, loop_bytes, widest
from algos.spec import ConvSpec

LEAST_QUADS = 3  # channels: two are a pair
HALF, SUM, SPREAD = 1 << 15, 1 << 29, (4, 9)  # below which halves and results are, and transforms' growth
WORD = 1 << 31


def pairs(spec: ConvSpec) -> Lowered | None:
    """The differences from the zero points, in pairs, where their types are narrow enough."""
    inner = spec.in_channels // spec.groups
    if spec.in_dtype == BFLOAT16:
        return _brains(spec)
    if spec.dtype == PAIRS or not whole(spec.in_dtype) or spec.direction != "forward" or inner == 1:
        return None
    a, b = widest(spec)
    bound = spec.reduction_length * a * b
    if bound >= SUM or any(most * by >= HALF for most, by in zip((a, b), SPREAD, strict=True)):
        return None
    mode = spec.padding_mode
    if mode.startswith("constant:"):
        fill = np.array([int(spec.border) - spec.zero_points[0]])
        mode = f"constant:{paired(fill, fill)[0]}"
    part = spec.with_(in_channels=spec.groups * -(-inner // 2), dtype=PAIRS, padding_mode=mode, rank=None,
                      bias=False, activation="none", zero_points=(0, 0))  # fmt: skip
    x, w = spec.zero_points
    move = partial(_moving, spec, part, np.int32, lambda made, a, threads: pair(made, a, x, threads))
    return _whole(spec, part, move, partial(_weights, point=w), bound, "whole numbers in pairs")


def _whole(
    spec: ConvSpec, part: ConvSpec, operands: Callable[..., Move], weights: Callable[[Any], Any], bound: int,
    words: str, constant: Callable[[Any], Any] | None = None,
) -> Lowered | None:  # fmt: skip
    """What is common to whole numbers, whose results are up to ``bound``."""
    held = np.iinfo(spec.out_dtype)
    if spec.finished and (held.max < bound or held.min == 0):  # the sum alone may not fit
        return None
    elements = count(part.input_shape)
    one = Part(part, weights, operands, None if spec.out_dtype == np.int32 else store_whole, copied=elements,
               held=elements, made=True, constant=constant, shared=True)  # fmt: skip
    finish = partial(finishing, spec) if spec.finished else None
    return Lowered((one,), words, finish=finish, finished=spec.finished * count(spec.output_shape),
                   guard=partial(guarded_by, spec) if spec.bias else None,
                   instead=spec.bias * loop_bytes(spec))  # fmt: skip


def _weights(w: Any, point: int) -> Any:
    made = np.empty((len(w), -(-w.shape[1] // 2), *w.shape[2:]), np.int32)
    pair(made, w, point)
    return made


def _moving(spec: ConvSpec, part: ConvSpec, dtype: Any, into: Callable[..., Any], threads: int) -> Move:
    """Operands side by side, as ``into(made, x, threads)`` puts them there."""
    rows, channels = spec.batch * spec.groups, spec.in_channels // spec.groups
    made = np.zeros(part.input_shape, dtype)
    grouped = made.reshape(rows, part.in_channels // spec.groups, *spec.size)

    def move(x: Any, *rest: Any) -> tuple[Any, ...]:
        into(grouped, x.reshape(rows, channels, *spec.size), threads)
        return made, *rest

    made.fill(0)  # its pages; and the code of all
    if count(spec.input_shape) >= LEAST:
        into(np.empty((1, 1, LEAST), dtype), np.zeros((1, 2, LEAST), spec.in_dtype), threads)
    if spec.out_dtype != part.out_dtype and count(spec.result_shape) >= LEAST:
        store = store_whole if whole(spec.out_dtype) else convert
        store(np.empty(LEAST, spec.out_dtype), np.zeros(LEAST, part.out_dtype), threads)
    return move


# ---- fours of 8 bits ---------------------------------------------------------------------------------------


def quads(spec: ConvSpec) -> Lowered | None:
    """x without a sign and weights less their zero point, in fours, where they fit 8 bits."""
    inner = spec.in_channels // spec.groups
    eight = whole(spec.in_dtype) and spec.in_dtype.itemsize == spec.w_dtype.itemsize == 1
    if not eight or spec.direction != "forward" or inner < LEAST_QUADS or not _dots():
        return None
    (x, w), info = spec.zero_points, np.iinfo(spec.w_dtype)
    bound = spec.reduction_length * math.prod(widest(spec))
    if bound >= WORD or int(info.min) - w < -128 or int(info.max) - w > 127:
        return None
    above, mode = 128 * (spec.in_dtype.kind == "i"), spec.padding_mode
    if mode == "zeros" or mode.startswith("constant:"):
        border = x if mode == "zeros" else int(spec.border)
        mode = f"constant:{(border + above) * 0x01010101}"
    part = spec.with_(in_channels=spec.groups * -(-inner // 4), dtype=QUADS, padding_mode=mode, rank=None,
                      bias=True, activation="none", zero_points=(0, 0))  # fmt: skip
    into = lambda made, a, threads: quadruple(made, a, above, threads)  # noqa: E731
    move = partial(_moving, spec, part, np.uint32, into)
    return _whole(spec, part, move, partial(_fours, point=w), bound, "whole numbers in fours",
                  partial(_offset, by=-(x + above), point=w))  # fmt: skip


def _dots() -> bool:
    from algos.engine import simd  # with the compiler, which importing the package does without

    return simd.QUADS


def _fours(w: Any, point: int) -> Any:
    made = np.empty((len(w), -(-w.shape[1] // 4), *w.shape[2:]), np.uint32)
    quadruple(made, (w.astype(np.int16) - point).astype(np.int8), 0)
    return made


def _offset(w: Any, by: int, point: int) -> Any:
    """``by`` times the sum of each channel's weights, modulo 2^32."""
    sums = w.reshape(len(w), -1).sum(1, dtype=np.int64) - point * w[0].size
    return (by * sums).astype(np.int32).reshape(-1, *(1,) * (w.ndim - 2))  # as a bias comes


# ---- bfloat16 ----------------------------------------------------------------------------------------------


class _FaintError(Exception):
    """Some operand is denormal."""


def _brains(spec: ConvSpec) -> Lowered | None:
    from algos.engine import simd  # with the compiler, which importing the package does without

    inner = spec.in_channels // spec.groups
    if not simd.BRAINS or spec.direction != "forward" or inner == 1 or spec.out_dtype.itemsize > 4:
        return None
    mode = spec.padding_mode
    if mode.startswith("constant:"):
        fill = np.full((1, 2, 1), spec.border, BFLOAT16)
        if denormal(fill).any():
            return None
        mode = f"constant:{_brain_weights(fill).item()}"
    dtype = BRAINS[spec.finished or spec.out_dtype != BFLOAT16]  # what follows is computed in float32
    part = spec.with_(in_channels=spec.groups * -(-inner // 2), dtype=dtype, padding_mode=mode, rank=None)
    elements = count(part.input_shape)
    move = partial(_moving, spec, part, np.uint32, _brain_pair)
    place = convert if part.out_dtype != spec.out_dtype else None
    one = Part(part, _brain_weights, move, place, copied=elements, held=elements, made=True,
               bias=partial(converted, dtype=np.float32), shared=True)  # fmt: skip
    return Lowered((one,), "bfloat16 in pairs", guard=_ranged, otherwise="types")


def _brain_weights(w: Any) -> Any:
    made = np.empty((len(w), -(-w.shape[1] // 2), *w.shape[2:]), np.uint32)
    pair_brains(made, w)
    return made


def _brain_pair(made: Any, x: Any, threads: int) -> None:
    if pair_brains(made, x, threads):
        raise _FaintError


def _ranged(weights: Any, bias: Any, run: Callable[..., Any], other: Callable[[], Any]) -> Callable[..., Any]:
    """``run`` where no denormal number counts, else what ``other()`` makes."""
    if weights is not None and denormal(weights).any():
        return other()
    other = cache(other)

    def ranged(x: Any, *late: Any, **out: Any) -> Any:
        if late and denormal(late[0]).any():
            return other()(x, *late, **out)
        try:
            return run(x, *late, **out)
        except _FaintError:
            w = late[0] if late else weights
            if not (np.abs(w.astype(np.float32)) <= 1).all():
                return other()(x, *late, **out)
            return run(np.where(denormal(x), BFLOAT16.type(0), x), *late, **out)

    return ranged
