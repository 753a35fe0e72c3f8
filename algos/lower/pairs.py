"""Narrow numbers as pairs of 16 bits, whose products one instruction adds in 32: twice as many as of floats
in the same registers.

Channels 2k and 2k + 1 of a group lie side by side in one element, in x and in w, less their zero points; a
last one alone is beside a zero. The rest of the problem is that of half as many channels, so that kernels
differ in one instruction (``Emitter.fma``), and a result of type int32 is written where it belongs.

Sums are taken modulo 2^32, in which neither order nor what lies between matters: they are right where the
types prove that the result, K a b at most, is below 2^31. Winograd's F(2, 3) multiplies G by 2 along each
axis and divides at the end, which asks for 4 K a b below 2^31; its transforms for 4 a and 9 b below 2^15. All
of it holds for 8 bits up to K = 8,256.

Pairs of bfloat16 are summed in float32, where the host has that (``simd.BRAINS``). The instruction takes
denormal operands for zeros, and results below the smallest normal number become zeros: K of those are less
than ``bench/bounds.py`` allows, and so are denormal numbers times weights of at most 1. All others are
computed in float32, as without the instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from algos.dtypes import BFLOAT16, BRAINS, PAIRS, whole
from algos.engine.casts import LEAST, convert, denormal, pair, pair_brains, store_whole
from algos.engine.pairs import paired
from algos.lower.parts import Lowered, Move, Part, converted, count
from algos.lower.whole import finishing, guarded_by, loop_bytes, widest
from algos.spec import ConvSpec

HALF, SUM, SPREAD = 1 << 15, 1 << 29, (4, 9)  # below which halves and results are, and transforms' growth


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
    wide = np.iinfo(spec.out_dtype).max >= bound
    if spec.finished and not wide:  # the sum alone may not fit
        return None
    mode = spec.padding_mode
    if mode.startswith("constant:"):
        fill = np.array([int(spec.border) - spec.zero_points[0]])
        mode = f"constant:{paired(fill, fill)[0]}"
    part = spec.with_(in_channels=spec.groups * -(-inner // 2), dtype=PAIRS, padding_mode=mode, rank=None,
                      bias=False, activation="none", zero_points=(0, 0))  # fmt: skip
    x, w = spec.zero_points
    elements = count(part.input_shape)
    one = Part(part, partial(_weights, point=w), partial(_pairing, spec, part, x),
               None if spec.out_dtype == np.int32 else store_whole,
               copied=elements, held=elements, made=True, shared=True)  # fmt: skip
    finish = partial(finishing, spec) if spec.finished else None
    return Lowered((one,), "whole numbers in pairs", finish=finish,
                   finished=spec.finished * count(spec.output_shape),
                   guard=partial(guarded_by, spec) if spec.bias else None,
                   instead=spec.bias * loop_bytes(spec))  # fmt: skip


def _weights(w: Any, point: int) -> Any:
    made = np.empty((len(w), -(-w.shape[1] // 2), *w.shape[2:]), np.int32)
    pair(made, w, point)
    return made


def _pairing(spec: ConvSpec, part: ConvSpec, point: int, threads: int) -> Move:
    rows, channels = spec.batch * spec.groups, spec.in_channels // spec.groups
    made = np.empty(part.input_shape, np.int32)
    grouped = made.reshape(rows, part.in_channels // spec.groups, *spec.size)

    def move(x: Any, *rest: Any) -> tuple[Any, ...]:
        pair(grouped, x.reshape(rows, channels, *spec.size), point, threads)
        return made, *rest

    move(np.broadcast_to(np.zeros((), spec.in_dtype), spec.input_shape))  # its pages
    if count(spec.input_shape) >= LEAST:  # and its code
        pair(np.empty((1, 1, LEAST), np.int32), np.zeros((1, 2, LEAST), spec.in_dtype), point, threads)
    if spec.out_dtype != np.int32 and count(spec.result_shape) >= LEAST:
        store_whole(np.empty(LEAST, spec.out_dtype), np.zeros(LEAST, np.int32), threads)
    return move


# ---- bfloat16 ----------------------------------------------------------------------------------------------


class _FaintError(Exception):
    """Some operand is denormal."""


def _brains(spec: ConvSpec) -> Lowered | None:
    from algos.engine import simd  # with the compiler, which importing the package does without

    inner = spec.in_channels // spec.groups
    if not simd.BRAINS or spec.direction != "forward" or inner == 1 or spec.out_dtype != BFLOAT16:
        return None
    mode = spec.padding_mode
    if mode.startswith("constant:"):
        fill = np.full((1, 2, 1), spec.border, BFLOAT16)
        if denormal(fill).any():
            return None
        mode = f"constant:{_brain_weights(fill).item()}"
    part = spec.with_(in_channels=spec.groups * -(-inner // 2), dtype=BRAINS, padding_mode=mode, rank=None)
    elements = count(part.input_shape)
    one = Part(part, _brain_weights, partial(_brain_pairing, spec, part), convert, copied=elements,
               held=elements, made=True, bias=partial(converted, dtype=np.float32), shared=True)  # fmt: skip
    return Lowered((one,), "bfloat16 in pairs", guard=_ranged, otherwise="types")


def _brain_weights(w: Any) -> Any:
    made = np.empty((len(w), -(-w.shape[1] // 2), *w.shape[2:]), np.uint32)
    pair_brains(made, w)
    return made


def _brain_pairing(spec: ConvSpec, part: ConvSpec, threads: int) -> Move:
    rows, channels = spec.batch * spec.groups, spec.in_channels // spec.groups
    made = np.zeros(part.input_shape, np.uint32)
    grouped = made.reshape(rows, part.in_channels // spec.groups, *spec.size)

    def move(x: Any, *rest: Any) -> tuple[Any, ...]:
        if pair_brains(grouped, x.reshape(rows, channels, *spec.size), threads):
            raise _FaintError
        return made, *rest

    made.fill(0)  # its pages; and the code
    if count(spec.input_shape) >= LEAST:
        pair_brains(np.empty((1, 1, LEAST), np.uint32), np.zeros((1, 2, LEAST), BFLOAT16), threads)
    if count(spec.result_shape) >= LEAST:
        convert(np.empty(LEAST, BFLOAT16), np.zeros(LEAST, np.float32), threads)
    return move


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
