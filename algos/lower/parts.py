"""What a lowering gives: simpler problems, how their operands are made, and where their results belong.

Arrays are NumPy's or a device's, which have the same methods. Lowerings are kept and shared by all plans, so
that they hold no arrays: what a plan reuses from call to call is made by ``Part.operands()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

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
        The problem's weights -> those of the part, contiguous; at prepare.
    operands : callable
        Makes what turns a call's operands into the part's; that may keep a buffer from call to call.
    place : callable or None
        ``place(y, result)`` writes the part's result where it belongs in y, or adds it; None: it is y.
    weights_last : bool
        The last of its operands are its weights, which are then prepared at every call.
    copied : int
        Elements of its operands that a call copies.
    held : int
        Elements that stay in a buffer from call to call.
    beside : int
        Elements that are there for a moment while operands are made or results placed.
    made : bool
        Its weights are an array of their own, and no view of the problem's.
    """

    spec: ConvSpec
    weights: Callable[[Any], Any] = lambda w: w
    operands: Callable[[], Move] = lambda: unchanged
    place: Callable[[Any, Any], None] | None = None
    weights_last: bool = False
    copied: int = 0
    held: int = 0
    beside: int = 0
    made: bool = False


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
    """

    parts: tuple[Part, ...]
    words: str = ""
    cleared: bool = False
    spreads: bool = False


def inner(slices: Iterable[Any]) -> tuple[Any, ...]:
    """An index that takes all images, all channels and ``slices`` of space."""
    return (slice(None), slice(None), *slices)


def contiguous(array: Any) -> Any:
    """The same numbers in C order; a copy only where they lie otherwise."""
    return array if array.flags.c_contiguous else array.copy(order="C")


def taken(at: tuple[Any, ...]) -> Callable[[], Move]:
    """Operands whose first one is that part of a call's."""

    def move(first: Any, *rest: Any) -> tuple[Any, ...]:
        return contiguous(first[at]), *rest

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
