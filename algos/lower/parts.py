"""What a lowering gives: simpler problems, how their operands are made, and where their results belong.

Arrays are NumPy's or a device's, which have the same methods. Lowerings are kept and shared by all plans, so
that they hold no arrays: what a plan reuses from call to call is made by ``Part.operands()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from algos.engine.casts import LEAST, convert
from algos.spec import ConvSpec

MOST_LEAVES = 16

Move = Callable[..., tuple[Any, ...]]  # the operands of a call -> those of a part


def unchanged(*arrays: Any) -> tuple[Any, ...]:
    return arrays


@dataclass(frozen=True)
class Part:
    """One of the simpler problems.

    Attributes
    ----------
    spec : ConvSpec
    weights : callable
        The problem's weights -> those of the part, or a view of them; at prepare.
    operands : callable
        Makes what turns a call's operands into the part's; that may keep a buffer from call to call.
    place : callable or None
        ``place(y, result)`` writes the part's result where it belongs in y, or adds it; None: it is y, if in
        another shape.
    weights_last : bool
        The last of its operands are its weights, which are then prepared at every call.
    copied : int
        Elements of its operands that a call copies.
    held : int
        Elements that stay in a buffer from call to call.
    scattered : int
        Elements of its result that are written far from their neighbours.
    beside : int
        Elements that are there for a moment while operands are made or results placed.
    made : bool
        Its weights are an array of their own, and no view of the problem's.
    bias : callable
        The problem's bias -> that of the part, where the part has one; at prepare.
    constant : callable or None
        The problem's weights -> the bias of the part, where that is none of the problem's.
    shared : bool
        ``operands`` and ``place`` take ``threads``, 0 for arrays of a device; the former also has the code
        compiled that the latter runs.
    """

    spec: ConvSpec
    weights: Callable[[Any], Any] = lambda w: w
    operands: Callable[..., Move] = lambda: unchanged
    place: Callable[..., None] | None = None
    weights_last: bool = False
    copied: int = 0
    held: int = 0
    scattered: int = 0
    beside: int = 0
    made: bool = False
    bias: Callable[[Any], Any] = lambda bias: bias
    constant: Callable[[Any], Any] | None = None
    shared: bool = False

    def moving(self, threads: int) -> Move:
        """What makes its operands."""
        return self.operands(threads=threads) if self.shared else self.operands()

    def placing(self, threads: int) -> Callable[[Any, Any], None] | None:
        """What writes its results."""
        return partial(self.place, threads=threads) if self.place and self.shared else self.place


@dataclass(frozen=True)
class Lowered:
    """A problem as simpler ones.

    Attributes
    ----------
    parts : tuple of Part
    words : str
        What was done, for reports; empty for what costs nothing.
    cleared : bool
        y is zeros before the parts write to it: they add, or leave some of it alone.
    spreads : bool
        It adds products with zeros that the definition has not, so that a NaN reaches further.
    finish : callable or None
        ``finish(bias, threads)`` makes what is done in place to y after all parts; at prepare. No threads are
        for arrays of a device.
    finished : int
        Elements of y that it reads and writes.
    guard : callable or None
        ``guard(weights, bias, run)`` is what runs instead, where only the numbers themselves tell whether the
        parts may be used.
    instead : int
        Bytes that it holds for a moment.
    otherwise : str
        Another lowering of the same problem, through which goes what ``guard`` may run instead; its fourth
        argument makes that.
    combine : callable or None
        ``combine(y, results, threads)`` writes the results of all parts at once, which are held until then;
        no threads are for arrays of a device.
    runs : int
        How often ``guard`` runs the parts for one result, about.
    """

    parts: tuple[Part, ...]
    words: str = ""
    cleared: bool = False
    spreads: bool = False
    finish: Callable[[Any, int], Callable[[Any], None]] | None = None
    finished: int = 0
    guard: Callable[..., Callable[..., Any]] | None = None
    instead: int = 0
    otherwise: str = ""
    combine: Callable[[Any, list[Any], int], None] | None = None
    runs: int = 1


def inner(slices: Iterable[Any]) -> tuple[Any, ...]:
    """An index that takes all images, all channels and ``slices`` of space."""
    return (slice(None), slice(None), *slices)


def contiguous(array: Any) -> Any:
    """The same numbers in C order; a copy only where they lie otherwise."""
    return array if array.flags.c_contiguous else array.copy(order="C")


def taken(*parts: tuple[Any, ...]) -> Callable[[], Move]:
    """Operands whose first ones are those parts of a call's."""

    def move(*operands: Any) -> tuple[Any, ...]:
        moved = (contiguous(a[at]) for a, at in zip(operands, parts, strict=False))
        return *moved, *operands[len(parts) :]

    return lambda: move


def placed(at: tuple[Any, ...]) -> Callable[[Any, Any], None]:
    """Where a result belongs in y."""

    def place(y: Any, result: Any) -> None:
        y[at] = result

    return place


def turned(array: Any) -> Any:
    """Reversed in space."""
    return array[inner([slice(None, None, -1)] * (array.ndim - 2))]


def count(shape: Iterable[int]) -> int:
    return math.prod(shape)


def operand_shapes(spec: ConvSpec) -> tuple[tuple[int, ...], ...]:
    """Of a call's operands."""
    x, grad = spec.input_shape, spec.output_shape
    return {"forward": (x,), "input_gradient": (grad,), "weight_gradient": (x, grad)}[spec.direction]


def converted(a: Any, dtype: Any, point: int = 0) -> Any:
    """A copy in another type, less a zero point."""
    made = np.empty_like(a, dtype=dtype, order="C")
    convert(made, a, point=point)
    return made


def converting(spec: ConvSpec, dtype: Any, back: Callable[..., None] | None = None,
               points: tuple[int, ...] = (0, 0), threads: int = 0) -> Move:  # fmt: skip
    """Operands in another type, less their zero points, in buffers that stay; ``back``: what places results.
    """
    kept: list[Any] = []

    def move(*operands: Any) -> tuple[Any, ...]:
        if not kept:
            kept.extend(np.empty_like(a, dtype=dtype, order="C") for a in operands)
        for buffer, a, point in zip(kept, operands, points, strict=False):
            convert(buffer, a, threads, point)
        return tuple(kept)

    if threads:  # now, and not in the first call
        gradient = spec.out_dtype if spec.direction != "forward" else spec.in_dtype
        kinds = {"forward": (spec.in_dtype,), "input_gradient": (gradient,)}.get(
            spec.direction, (spec.in_dtype, gradient)
        )
        for shape, kind in zip(operand_shapes(spec), kinds, strict=True):
            kept.append(np.zeros(shape, dtype))
            if kept[-1].size >= LEAST:
                convert(np.empty(LEAST, dtype), np.zeros(LEAST, kind), threads)
            kept[-1].fill(0)  # zeros alone are no memory yet
        if back is not None and count(spec.result_shape) >= LEAST:
            back(np.empty(LEAST, spec.result_dtype), np.zeros(LEAST, dtype), threads)
    return move
