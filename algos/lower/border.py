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


def border(spec: ConvSpec) -> Lowered | None:
    """Any padding mode but zeros, whatever its amounts: beyond one turn, and negative, which crops."""
    if spec.padding_mode == "zeros":
        return None
    part = spec.with_(size=spec.padded_size, padding=0, padding_mode="zeros")
    if spec.direction != "input_gradient":
        elements = count(part.input_shape)
        return Lowered(
            (Part(part, operands=lambda: padding(spec), copied=elements, held=elements),), "border"
        )
    return Lowered((Part(part, place=lambda dx, result: fold(spec, result, dx)),), "border")


def source(size: int, pair: tuple[int, int], mode: str) -> np.ndarray:
    """Which of ``size`` elements stands at each place of the padded axis; -1 where none does."""
    at = np.arange(-pair[0], size + pair[1])
    if mode == "replicate":
        return at.clip(0, size - 1)
    if mode == "circular":
        return at % size
    if mode in ("reflect", "symmetric"):
        edge = mode == "symmetric"  # whether the outermost element is repeated
        at = at % max(2 * size - 2 + 2 * edge, 1)
        return np.where(at < size, at, 2 * size - 2 + edge - at)
    return np.where((at >= 0) & (at < size), at, -1)


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
        at = source(n, pair, spec.padding_mode)
        places = np.r_[: max(core.start, 0), core.stop : len(at)]
        if len(places) and not spec.padding_mode.startswith("constant:"):
            # Corners come by themselves: the axes before have their border by then.
            done, later = [slice(None)] * axis, cores[axis + 1 :]
            copies.append((inner((*done, places, *later)), inner((*done, at[places] + pair[0], *later))))
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
        at = source(n, pair, spec.padding_mode)
        first, last = max(-pair[0], 0), n - max(-pair[1], 0)  # of the axis: what stands at its own place
        all_before = (slice(None),) * axis
        shape = *padded.shape[:axis], n, *padded.shape[axis + 1 :]
        result = dx if axis == dx.ndim - 1 else np.empty_like(padded, shape=shape)
        result[...] = 0
        result[(*all_before, slice(first, last))] = padded[
            (*all_before, slice(first + pair[0], last + pair[0]))
        ]
        for place in (*range(first + pair[0]), *range(last + pair[0], len(at))):
            if at[place] >= 0 and not spec.padding_mode.startswith("constant:"):
                into, take = (*all_before, int(at[place])), (*all_before, place)
                result[into] += padded[take]
        padded = result
