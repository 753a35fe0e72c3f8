"""Crops, groups, strides, dilation and padding, for algorithms that know nothing of them.

All but the crop are applied only where an algorithm refuses the problem as it is; stride and dilation not to
input gradients, for which it would take zeros between the elements.
"""

from __future__ import annotations

from itertools import product
from math import gcd
from typing import Any

import numpy as np

from algos.lower.parts import MOST_LEAVES, Lowered, Move, Part, count, inner, operand_shapes, placed, taken
from algos.spec import ConvSpec


def crop(spec: ConvSpec) -> Lowered | None:
    """Negative padding: a picture without its edges, whose gradient there is zero."""
    if min(map(min, spec.padding)) >= 0:
        return None
    left = tuple(slice(max(-b, 0), n - max(-a, 0)) for n, (b, a) in zip(spec.size, spec.padding, strict=True))
    if any(at.stop <= at.start for at in left):
        return Lowered((), "crop of everything", cleared=True)
    size = tuple(at.stop - at.start for at in left)
    part = spec.with_(size=size, padding=tuple((max(b, 0), max(a, 0)) for b, a in spec.padding))
    if spec.direction == "input_gradient":
        return Lowered((Part(part, place=placed(inner(left))),), "crop", cleared=True)
    return Lowered((Part(part, operands=taken(inner(left)), copied=count(part.input_shape)),), "crop")


def groups(spec: ConvSpec) -> Lowered | None:
    """One problem for each group of channels."""
    if spec.groups == 1 or spec.groups > MOST_LEAVES:
        return None
    i, o = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    one = spec.with_(in_channels=i, out_channels=o, groups=1)
    parts = []
    for g in range(spec.groups):
        rows, inputs = slice(g * o, g * o + o), (slice(None), slice(g * i, g * i + i))
        outputs = slice(None), rows
        reads, writes = {"forward": ((inputs,), outputs), "input_gradient": ((outputs,), inputs),
                         "weight_gradient": ((inputs, outputs), (rows,))}[spec.direction]  # fmt: skip
        parts.append(Part(one, _rows(rows), taken(*reads), placed(writes),
                          copied=sum(map(count, operand_shapes(one)))))  # fmt: skip
    return Lowered(tuple(parts), f"{spec.groups} groups apart")


def _rows(at: slice) -> Any:
    return lambda w: w[at]


def stride(spec: ConvSpec) -> Lowered | None:
    """Every position, of which those of the stride are kept; of a weight gradient the taps of each phase
    apart.
    """
    if max(spec.stride) == 1 or spec.direction == "input_gradient":
        return None
    if spec.direction == "weight_gradient":
        return _phases_of_stride(spec)
    part = spec.with_(stride=1)
    at = inner(slice(None, None, s) for s in spec.stride)

    def place(y: Any, result: Any) -> None:
        y[...] = result[at]

    return Lowered((Part(part, place=place),), "every position, thinned")


def _phases_of_stride(spec: ConvSpec) -> Lowered | None:
    """Taps that are s / gcd(s, d) apart read every s-th element: a problem without stride."""
    found = [_taps_of_phases(spec, axis) for axis in range(spec.ndim)]
    if count(map(len, found)) > MOST_LEAVES:
        return None
    parts = []
    for axes in product(*found):
        if any(last <= first for _, first, last, *_ in axes):  # they read nothing but padding
            continue
        taps, firsts, lasts, pairs, gaps = zip(*axes, strict=True)
        ends = list(zip(firsts, lasts, spec.stride, strict=True))
        reads = inner(slice(*end) for end in ends)
        size = tuple(-(-(last - first) // s) for first, last, s in ends)
        kernel = tuple(len(range(*at.indices(k))) for at, k in zip(taps, spec.kernel, strict=True))
        part = spec.with_(size=size, kernel=kernel, stride=1, padding=pairs, dilation=gaps)
        parts.append(Part(part, operands=taken(reads), place=placed(inner(taps)),
                          copied=count(part.input_shape)))  # fmt: skip
    complete = len(parts) == count(map(len, found))
    return Lowered(tuple(parts), f"{len(parts)} phases of the stride", cleared=not complete)


def _taps_of_phases(spec: ConvSpec, axis: int) -> list[tuple[slice, int, int, tuple[int, int], int]]:
    """Of each phase of the stride: its taps, first and last element of x that they read, the padding before
    and after, and the dilation that is left.
    """
    n, k, s, d = (values[axis] for values in (spec.size, spec.kernel, spec.stride, spec.dilation))
    before, common, found = spec.padding[axis][0], gcd(s, d), []
    for start in range(min(k, s // common, MOST_LEAVES + 1)):
        some = len(range(start, k, s // common))
        length = spec.output_size[axis] + (some - 1) * (d // common)  # of the phase, with its padding
        missing = max(-(-(before - start * d) // s), 0)  # places before the first element
        first = start * d - before + s * missing
        held = max(min(-(-(n - first) // s), length - missing), 0)
        found.append((slice(start, None, s // common), first, first + (held - 1) * s + 1 if held else first,
                      (missing, length - missing - held), d // common))  # fmt: skip
    return found


def dilation(spec: ConvSpec) -> Lowered | None:
    """Outputs d apart read elements d apart: one problem without dilation for each phase, whose gradients of
    the weights add up.
    """
    phases = [min(d, n) if d > 1 else 1 for d, n in zip(spec.dilation, spec.output_size, strict=True)]
    if max(spec.dilation) == 1 or count(phases) > MOST_LEAVES or spec.direction == "input_gradient":
        return None
    if any(d > 1 and s > 1 for d, s in zip(spec.dilation, spec.stride, strict=True)):
        return None  # the stride goes first
    adds = spec.direction == "weight_gradient"
    parts = []
    for phase in product(*map(range, phases)):
        axes = [_phase(spec, axis, r) for axis, r in enumerate(phase)]
        if any(last <= first for first, last, _, _ in axes):  # it reads nothing but padding
            continue
        step = [d if d > 1 else 1 for d in spec.dilation]
        reads = inner(slice(first, last, d) for (first, last, _, _), d in zip(axes, step, strict=True))
        writes = inner(slice(r, None, d) for r, d in zip(phase, step, strict=True))
        size = tuple(-(-(last - first) // d) for (first, last, _, _), d in zip(axes, step, strict=True))
        part = spec.with_(size=size, padding=tuple((b, a) for _, _, b, a in axes), dilation=1)
        operands, place = (taken(reads, writes), _added) if adds else (taken(reads), placed(writes))
        parts.append(Part(part, operands=operands, place=place,
                          copied=sum(map(count, operand_shapes(part)))))  # fmt: skip
    words = f"{len(parts)} phases of the dilation"
    return Lowered(tuple(parts), words, cleared=adds or len(parts) < count(phases))


def _added(dw: Any, result: Any) -> None:
    dw += result


def _phase(spec: ConvSpec, axis: int, r: int) -> tuple[int, int, int, int]:
    """Of outputs r, r + d, ...: first and last element of x that they read, and the padding before and after.
    """
    d, before, n, k = spec.dilation[axis], spec.padding[axis][0], spec.size[axis], spec.kernel[axis]
    if d == 1:
        return 0, n, *spec.padding[axis]
    length = -(-(spec.output_size[axis] - r) // d) + k - 1  # of the phase, with its padding
    missing = max(-(-(before - r) // d), 0)  # places before the first element
    first = r + d * missing - before
    held = max(min(-(-(n - first) // d), length - missing), 0)
    return first, first + (held - 1) * d + 1 if held else first, missing, length - missing - held


def padding(spec: ConvSpec) -> Lowered | None:
    """A copy with zeros around it, whose gradient is cropped."""
    if not any(map(any, spec.padding)):
        return None
    part = spec.with_(size=spec.padded_size, padding=0)
    at = inner(slice(b, b + n) for n, (b, _) in zip(spec.size, spec.padding, strict=True))
    if spec.direction == "input_gradient":

        def place(dx: Any, result: Any) -> None:
            dx[...] = result[at]

        return Lowered((Part(part, place=place),), "gradient of a padded copy")
    elements = count(part.input_shape)
    return Lowered(
        (Part(part, operands=lambda: _around(part, at), copied=elements, held=elements),), "padded copy"
    )


def _around(part: ConvSpec, at: tuple[Any, ...]) -> Move:
    kept: list[Any] = []

    def move(x: Any, *rest: Any) -> tuple[Any, ...]:
        if not kept:
            kept.append(np.zeros_like(x, shape=part.input_shape, order="C"))
        kept[0][at] = x
        return kept[0], *rest

    return move
