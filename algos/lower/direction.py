"""Gradients as forward passes.

With b = padding before, s = stride and d = dilation, an element i of the input's gradient sums w[o, c, t] *
grad[n, o, p] over all p * s + t * d = i + b. Elements whose (i + b) mod s agrees meet the same taps, every s
/ gcd(s, d)-th, so that they are a convolution of grad with those taps, turned: ``residues`` makes one problem
of each, ``shuffle`` one of all, in which each residue has its own output channels.

The weights' gradient is a forward pass in which channels are images, images channels, and grad the weights,
with stride and dilation exchanged (``exchange``).

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285.
"""

from __future__ import annotations

from itertools import product
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from algos.lower.parts import MOST_LEAVES, Lowered, Move, Part, contiguous, count, inner, turned
from algos.spec import ConvSpec

MOST_SHUFFLED = 64  # residues that share one problem


class Residue(NamedTuple):
    """Of one axis: the elements first, first + s, ... of the gradient, which meet taps start, start + step,
    ...
    """

    elements: slice
    taps: slice
    gap: int  # dilation of the forward problem
    padding: tuple[int, int]


def _residues(spec: ConvSpec, axis: int) -> list[Residue]:
    """Those that meet any tap."""
    n, k, s, d = (values[axis] for values in (spec.size, spec.kernel, spec.stride, spec.dilation))
    before, outputs, common = spec.padding[axis][0], spec.output_size[axis], gcd(s, d)
    found = []
    for start in range(min(k, s // common)):
        first = (start * d - before) % s
        if first >= n:
            continue
        step, gap = s // common, d // common
        some, length = len(range(start, k, step)), len(range(first, n, s))
        # Element m reads grad at (first + before - start * d) / s + m - j * gap for its j-th tap.
        lead = (some - 1) * gap - (first + before - start * d) // s
        padding = lead, length - outputs + (some - 1) * gap - lead
        found.append(Residue(slice(first, None, s), slice(start, None, step), gap, padding))
        if len(found) > MOST_SHUFFLED:  # more than anybody takes
            break
    return found


def _exchanged(w: Any, groups: int) -> Any:
    """w (O, C / groups, *k) -> (C, O / groups, *k), turned in space, where they lie as far as they may."""
    o, c, *k = w.shape
    return turned(w.reshape(groups, o // groups, c, *k).swapaxes(1, 2).reshape(groups * c, o // groups, *k))


def _forward(spec: ConvSpec, out_channels: int, kernel: tuple[int, ...], dilation: Any,
             padding: Any) -> ConvSpec | None:
    """The forward problem on grad; None where grad lies outside of all that it could reach."""
    sizes = zip(spec.output_size, padding, strict=True)
    if any(n + min(b, 0) + min(a, 0) < 1 for n, (b, a) in sizes):
        return None
    return spec.with_(direction="forward", in_channels=spec.out_channels, out_channels=out_channels,
                      size=spec.output_size, kernel=kernel, stride=1, dilation=dilation, padding=padding,
                      rank=None)


def residues(spec: ConvSpec) -> Lowered | None:
    """The input's gradient: one forward problem for each residue of the stride."""
    if spec.direction != "input_gradient":
        return None
    cells = [_residues(spec, axis) for axis in range(spec.ndim)]
    parts: list[Part] = []
    found: list[tuple[Residue, ...]] = []
    if count(map(len, cells)) > MOST_LEAVES:
        return None
    for axes in product(*cells):
        taps = inner(r.taps for r in axes)
        kernel = tuple(_taken(r.taps, k) for r, k in zip(axes, spec.kernel, strict=True))
        part = _forward(spec, spec.in_channels, kernel, tuple(r.gap for r in axes),
                        tuple(r.padding for r in axes))
        if part is None:
            continue
        weights = _taps(taps, spec.groups)
        if max(spec.stride) == 1:
            rank = spec.rank and min(spec.rank, *kernel) if spec.ndim == 2 else None
            return Lowered(
                (Part(part.with_(rank=rank), weights, made=True),), "input gradient as a forward pass"
            )
        found.append(axes)
        parts.append(Part(part, weights, made=True))

    def combine(dx: Any, results: list[Any], threads: int) -> None:
        _put_together(dx, dict(zip(map(_starts, found), results, strict=True)), spec.stride, threads)

    return Lowered(tuple(parts), f"input gradient as {_problems(len(parts))}", combine=combine)


def _problems(number: int) -> str:
    return "a forward problem" if number == 1 else f"{number} forward problems"


def _taps(at: tuple[Any, ...], groups: int) -> Any:
    return lambda w: _exchanged(w[at], groups)


def _starts(axes: tuple[Residue, ...]) -> tuple[int, ...]:
    return tuple(r.elements.start for r in axes)


def _put_together(dx: Any, cells: dict[tuple[int, ...], Any], stride: tuple[int, ...], threads: int) -> None:
    """Write dx from the elements of each residue, by the first of them, and zeros elsewhere."""
    if threads and dx.size:
        from algos.engine.interleave import interleaved

        if interleaved(dx, cells, stride, threads):
            return
    dx[...] = 0
    for start, elements in cells.items():
        dx[inner(slice(first, None, s) for first, s in zip(start, stride, strict=True))] = elements


def shuffle(spec: ConvSpec) -> Lowered | None:
    """The input's gradient: one forward problem whose output channels hold every residue of the stride."""
    if spec.direction != "input_gradient":
        return None
    # With a single output the stride is free: beyond all elements and taps it leaves one to each other
    axes = zip(spec.stride, spec.output_size, spec.size, spec.padding, spec.kernel, spec.dilation,
               strict=True)  # fmt: skip
    spec = spec.with_(stride=tuple(s if outputs > 1 else (n + abs(before) + k) * d + 1
                                   for s, outputs, n, (before, _), k, d in axes))  # fmt: skip
    if max(spec.stride) == 1:
        return None
    cells = [_residues(spec, axis) for axis in range(spec.ndim)]
    if not all(cells) or count(map(len, cells)) > MOST_SHUFFLED:
        return None
    gaps = tuple(found[0].gap for found in cells)
    # The residues of an axis begin to read elsewhere: each finds its results some rows further down.
    lead = [max(r.padding[0] for r in found) for found in cells]
    kernel = tuple(max(_taken(r.taps, k) for r in found) for found, k in zip(cells, spec.kernel, strict=True))
    padding = []
    for found, first, width, gap, n, outputs in zip(
        cells, lead, kernel, gaps, spec.size, spec.output_size, strict=True
    ):
        rows = max(_taken(r.elements, n) + first - r.padding[0] for r in found)
        padding.append((first, rows - outputs + (width - 1) * gap - first))
    number, every = count(map(len, cells)), list(product(*cells))
    part = _forward(spec, spec.in_channels * number, kernel, gaps, tuple(padding))
    if part is None:
        return None

    def weights(w: Any) -> Any:
        shape = spec.in_channels, number, spec.out_channels // spec.groups, *kernel
        stacked = np.zeros_like(w, shape=shape, order="C")
        for k, cell in enumerate(every):
            own = _exchanged(w[inner(r.taps for r in cell)], spec.groups)
            at: Any = (slice(None), k, slice(None), *map(slice, own.shape[2:]))
            stacked[at] = own
        return stacked.reshape(part.weight_shape)

    def combine(dx: Any, results: list[Any], threads: int) -> None:
        split = results[0].reshape(spec.batch, spec.in_channels, number, *results[0].shape[2:])
        cells = {}
        for k, cell in enumerate(every):
            starts = (first - r.padding[0] for first, r in zip(lead, cell, strict=True))
            sizes = (_taken(r.elements, n) for r, n in zip(cell, spec.size, strict=True))
            rows = (slice(at, at + n) for at, n in zip(starts, sizes, strict=True))
            cells[_starts(cell)] = split[(slice(None), slice(None), k, *rows)]
        _put_together(dx, cells, spec.stride, threads)

    spreads = any(
        _taken(r.taps, k) < width
        for found, k, width in zip(cells, spec.kernel, kernel, strict=True) for r in found
    )  # fmt: skip
    words = "input gradient as a forward problem, shuffled"
    return Lowered((Part(part, weights, made=True),), words, spreads=spreads, combine=combine)


def _taken(at: slice, size: int) -> int:
    """How many elements of an axis a slice takes."""
    return len(range(*at.indices(size)))


def spaced(spec: ConvSpec) -> Lowered | None:
    """The input's gradient: one forward problem on grad with zeros between its
    elements, for strides of many residues.
    """
    if spec.direction != "input_gradient" or max(spec.stride) == 1:
        return None
    size = tuple((n - 1) * s + 1 for n, s in zip(spec.output_size, spec.stride, strict=True))
    reach = [extent - 1 for extent in spec.kernel_extent]
    padding = tuple(
        (e - b, n - m + b) for e, (b, _), n, m in zip(reach, spec.padding, spec.size, size, strict=True)
    )
    if any(m + min(b, 0) + min(a, 0) < 1 for m, (b, a) in zip(size, padding, strict=True)):
        return Lowered((), "input gradient of nothing", cleared=True)
    part = spec.with_(direction="forward", in_channels=spec.out_channels, out_channels=spec.in_channels,
                      size=size, stride=1, padding=padding, rank=None)
    at = inner(slice(None, None, s) for s in spec.stride)

    def operands() -> Move:
        kept: list[Any] = []

        def move(grad: Any) -> tuple[Any, ...]:
            if not kept:
                kept.append(np.zeros_like(grad, shape=part.input_shape, order="C"))
            kept[0][at] = grad
            return (kept[0],)

        return move

    elements = count(part.input_shape)
    whole = Part(part, lambda w: _exchanged(w, spec.groups), operands, copied=elements, held=elements,
                 made=True)
    return Lowered((whole,), "input gradient as a forward problem, zeros between")


def exchange(spec: ConvSpec) -> Lowered | None:
    """The weights' gradient: images and channels exchanged, grad as the weights of every call."""
    if spec.direction != "weight_gradient":
        return None
    g, c, o = spec.groups, spec.in_channels // spec.groups, spec.out_channels
    # Positions that no tap reads are left out, so that there are just as many results as taps.
    extents = ((n - 1) * s + 1 + (k - 1) * d for n, s, k, d in zip(
        spec.output_size, spec.stride, spec.kernel, spec.dilation, strict=True))
    padding = tuple((b, extent - n - b) for extent, n, (b, _) in zip(extents, spec.size, spec.padding,
                                                                     strict=True))
    words = "weight gradient as a forward pass with images and channels exchanged"
    if any(n + min(b, 0) + min(a, 0) < 1 for n, (b, a) in zip(spec.size, padding, strict=True)):
        return Lowered((), words, cleared=True)  # nothing of x is read
    part = spec.with_(direction="forward", batch=c, in_channels=g * spec.batch, out_channels=o,
                      kernel=spec.output_size, stride=spec.dilation, dilation=spec.stride, padding=padding,
                      rank=None)  # fmt: skip

    def move(x: Any, grad: Any) -> tuple[Any, ...]:
        images = x.reshape(spec.batch, g, c, *spec.size).swapaxes(0, 2)  # [n][g][c] -> [c][g][n]
        return contiguous(images).reshape(part.input_shape), contiguous(grad.swapaxes(0, 1))

    def place(dw: Any, result: Any) -> None:
        dw[...] = result.swapaxes(0, 1)

    copied = 0  # an axis of one changes places for nothing
    if sum(n > 1 for n in (spec.batch, g, c)) > 1:
        copied += count(spec.input_shape)
    if min(spec.batch, o) > 1:
        copied += count(spec.output_shape)
    scattered = count(spec.weight_shape) if min(c, o) > 1 else 0  # of (C, O) to (O, C)
    whole = Part(part, operands=lambda: move, place=place, weights_last=True, copied=copied,
                 scattered=scattered)  # fmt: skip
    return Lowered((whole,), words)
