"""Borders that are not zeros, as a picture that has them: its copy with the border around it, then no padding
at all.

The gradient of a border folds back: what reached an element of it is added to the element that it repeats.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from algos.arrays import is_device_array, module_of
from algos.lower.parts import Lowered, Move, Part, count, inner
from algos.spec import ConvSpec

PAD_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap",
                             "symmetric": "symmetric"}  # fmt: skip

MOST_TURNS = 4  # of a border, that are folded one by one

Run = tuple[slice, slice, int]  # where it belongs, where it stands, and 1, -1 or 0


def border(spec: ConvSpec) -> Lowered | None:
    """Any padding mode but zeros, whatever its amounts: beyond one turn, and negative, which crops."""
    if spec.padding_mode == "zeros":
        return None
    part = spec.with_(size=spec.padded_size, padding=0, padding_mode="zeros")
    if spec.direction != "input_gradient":
        whole = Part(part, operands=lambda: padding(spec), copied=(elements := count(part.input_shape)),
                     held=elements, beside=_beside(spec))  # fmt: skip
        return Lowered((whole,), "border")
    stages = _stages(spec, spec.size, spec.padded_size)
    turning = (k for k in range(spec.ndim) if _turns(spec.size[k], spec.padding[k], spec.padding_mode))
    between = 2 * max(stages[:-1], default=0) + 2 * max((stages[k] for k in turning), default=0)
    return Lowered((Part(part, place=lambda dx, result: fold(spec, result, dx), beside=between),), "border")


def _stages(spec: ConvSpec, done: tuple[int, ...], coming: tuple[int, ...]) -> list[int]:
    """Elements of the picture after each axis, when axis by axis goes from one size to the other."""
    images = spec.batch * spec.in_channels
    return [images * count(done[: axis + 1]) * count(coming[axis + 1 :]) for axis in range(spec.ndim)]


def _beside(spec: ConvSpec) -> int:
    """What ``padding`` needs for a moment: an axis's border, or where it crops the picture between two axes.
    """
    stages = _stages(spec, spec.padded_size, spec.size)
    axes = list(zip(stages, spec.padded_size, spec.padding, strict=True))
    indices = -(-np.dtype(np.intp).itemsize // spec.in_dtype.itemsize)  # elements that one takes
    if min(map(min, spec.padding)) < 0:
        return max(stages) + 4 * indices * max(spec.padded_size)
    return max(elements // whole * sum(pair) for elements, whole, pair in axes) + 4 * indices * sum(
        sum(pair) for pair in spec.padding)  # fmt: skip


def source(size: int, pair: tuple[int, int], mode: str) -> np.ndarray:
    """Which of ``size`` elements stands at each place of the padded axis; -1 where none does."""
    return _repeated(np.arange(-pair[0], size + pair[1]), size, mode)


def _repeated(at: np.ndarray, size: int, mode: str) -> np.ndarray:
    """The same of places that are counted from the first element."""
    if mode == "replicate":
        return at.clip(0, size - 1)
    if turn := _turn(size, mode):
        at = at % turn
        return at if mode == "circular" else np.where(at < size, at, turn - at - (mode == "symmetric"))
    return np.where((at >= 0) & (at < size), at, -1)


def _turn(size: int, mode: str) -> int:
    """After how many places the border repeats itself; 0 where it does not."""
    # Symmetric repeats the outermost elements, reflect does not
    return {"circular": size, "symmetric": 2 * size, "reflect": max(2 * size - 2, 1)}.get(mode, 0)


def padding(spec: ConvSpec) -> Move:
    """x (N, C, *size) -> its copy with the border, (N, C, *padded_size), in the memory order of x."""
    kept: list[Any] = []
    core, copies = _copies(spec)
    constant, crops = spec.padding_mode.startswith("constant:"), min(map(min, spec.padding)) < 0

    def move(x: Any, *rest: Any) -> tuple[Any, ...]:
        if crops:
            return _gathered(spec, x), *rest
        if is_device_array(x):
            return _by_its_library(spec, x), *rest
        if not kept:
            kept.append(_empty_in_order_of(x, spec.padded_size))
            if constant:
                kept[0][...] = spec.border
        padded = kept[0]
        padded[core] = x
        for places, repeated in copies:
            padded[places] = padded[repeated]
        return padded, *rest

    return move


@lru_cache(1 << 10)
def _copies(spec: ConvSpec) -> tuple[tuple[Any, ...], list[tuple[tuple[Any, ...], tuple[Any, ...]]]]:
    """Where x lies in its padded copy, and which places of the border repeat which, axis by axis."""
    cores = [slice(before, before + n) for n, (before, _) in zip(spec.size, spec.padding, strict=True)]
    copies = []
    for axis, (n, pair, core) in enumerate(zip(spec.size, spec.padding, cores, strict=True)):
        places = np.r_[: max(core.start, 0), core.stop : n + sum(pair)]
        if len(places) and not spec.padding_mode.startswith("constant:"):
            # Corners come by themselves: the axes before have their border by then.
            repeated = _repeated(places - pair[0], n, spec.padding_mode) + pair[0]
            done, later = [slice(None)] * axis, cores[axis + 1 :]
            copies.append((inner((*done, places, *later)), inner((*done, repeated, *later))))
    return inner(cores), copies


def _empty_in_order_of(x: Any, size: tuple[int, ...]) -> Any:
    """Room for a larger x whose axes lie in memory as those of x do."""
    shape = (*x.shape[:2], *size)
    if x.flags.c_contiguous:
        return _like(x, shape)
    return np.moveaxis(_like(x, (shape[0], *size, shape[1])), -1, 1)


def _like(x: Any, shape: tuple[int, ...]) -> Any:
    return np.empty_like(x, shape=shape, order="C")  # CuPy's for its arrays, by NumPy's protocol


def _gathered(spec: ConvSpec, x: Any) -> Any:
    """Element by element, for what is cropped as well."""
    for axis, (n, pair) in enumerate(zip(spec.size, spec.padding, strict=True), start=2):
        at = source(n, pair, spec.padding_mode)
        indices = module_of(x).asarray(np.maximum(at, 0))
        x = x.take(indices, axis=axis)
        for place in np.flatnonzero(at < 0).tolist():
            x[(slice(None),) * axis + (place,)] = spec.border
    return x


def _by_its_library(spec: ConvSpec, x: Any) -> Any:
    """The same of a device's array, by ``pad`` as NumPy has it: indices would have to live there too."""
    xp = module_of(x)
    widths, options = [(0, 0), (0, 0), *spec.padding], {"mode": PAD_MODES.get(spec.padding_mode, "constant")}
    if options["mode"] == "constant":
        options["constant_values"] = spec.border
    if x.flags.c_contiguous:
        return xp.pad(x, widths, **options)
    padded = xp.pad(xp.moveaxis(x, 1, -1), [widths[0], *widths[2:], widths[1]], **options)
    return xp.moveaxis(padded, -1, 1)


def fold(spec: ConvSpec, padded: Any, dx: Any) -> None:
    """The adjoint of ``padding``: dx (N, C, *size) from the gradient of the padded picture."""
    for axis, (n, pair) in enumerate(zip(spec.size, spec.padding, strict=True), start=2):
        first, last = max(-pair[0], 0), n - max(-pair[1], 0)  # of the axis: what stands at its own place
        all_before = (slice(None),) * axis
        shape = *padded.shape[:axis], n, *padded.shape[axis + 1 :]
        result = dx if axis == dx.ndim - 1 else np.empty_like(padded, shape=shape)
        result[...] = 0
        borders = [(0, first + pair[0]), (last + pair[0], n + sum(pair))]
        if _turns(n, pair, spec.padding_mode):
            turn = _turn(n, spec.padding_mode)
            padded, borders = _one_turn(padded, axis, turn), [(0, turn)]
        else:
            result[(*all_before, slice(first, last))] = padded[
                (*all_before, slice(first + pair[0], last + pair[0]))
            ]
        for begin, end in borders:
            for target, taken, step in _runs(n, pair, spec.padding_mode, begin, end):
                reached = padded[(*all_before, taken)]
                result[(*all_before, target)] += reached if step else reached.sum(axis, keepdims=True)
        padded = result


def _turns(n: int, pair: tuple[int, int], mode: str) -> bool:
    """Whether the border goes round so often that its turns are summed before they are folded."""
    return 0 < MOST_TURNS * _turn(n, mode) < n + sum(pair)


def _one_turn(padded: Any, axis: int, turn: int) -> Any:
    """The sum of all turns along the axis, the last of which may be a part of one."""
    turns = padded.shape[axis] // turn
    whole, rest = ((slice(None),) * axis + (at,) for at in (slice(turns * turn), slice(turns * turn, None)))
    shape = *padded.shape[:axis], turns, turn, *padded.shape[axis + 1 :]
    total = padded[whole].reshape(shape).sum(axis)
    total[(slice(None),) * axis + (slice(padded.shape[axis] - turns * turn),)] += padded[rest]
    return total


@lru_cache(256)
def _runs(n: int, pair: tuple[int, int], mode: str, begin: int, end: int) -> tuple[Run, ...]:
    """From ``begin`` to ``end`` of the padded axis, stretches in which what is repeated goes up, down, or
    stays.
    """
    if mode.startswith("constant:") or begin >= end:
        return ()
    at = _repeated(np.arange(begin, end) - pair[0], n, mode)
    steps = np.diff(at)
    turns, found, k = np.flatnonzero(np.diff(steps)) + 1, [], 0
    while k < len(at):
        step, stop = 1, k + 1
        if k < len(steps) and abs(steps[k]) <= 1:
            step, later = int(steps[k]), int(np.searchsorted(turns, k, "right"))
            stop = (int(turns[later]) if later < len(turns) else len(steps)) + 1
        low, high = sorted((int(at[k]), int(at[stop - 1])))
        stands = slice(begin + k, begin + stop) if step >= 0 else slice(
            begin + stop - 1, begin + k - 1 if begin + k else None, -1)  # fmt: skip
        found.append((slice(low, high + 1), stands, step))
        k = stop
    return tuple(found)
