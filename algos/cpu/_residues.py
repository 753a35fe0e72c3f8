"""The residues of a stride, for gradients of the input (``_inputs.py``): the forward problem that they are on
the gradient, which taps each has, and where its sums lie.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

import numpy as np

from algos.engine.blocks import Axis, axes
from algos.engine.patches import PACK_COST
from algos.engine.runs import block_of
from algos.engine.simd import lanes
from algos.spec import ConvSpec

WRITE_COST = 100.0  # multiply-adds in whose time columns that lie side by side in a vector are written


@lru_cache(maxsize=1024)
def run_of(spec: ConvSpec) -> int:
    """How many channels of a row of residues, a power of two, lie side by side where those of all do; 0 where
    it takes less time that each residue has its own, or where not all have taps for the whole window: NaN
    times zero would spoil what does not read it.
    """
    row, col = axes(spec)
    if any(axis.kernel != axis.stride * (reach_of(axis) + 1) for axis in (row, col)):
        return 0
    run, channels = 1 << (col.stride - 1).bit_length(), spec.in_channels // spec.groups
    if run > lanes(spec.in_dtype):
        return 0
    apart, together = _way(spec, 1), _way(spec, row.stride * run)
    each, whole = map(_filled, (apart, together))
    products = each * math.prod(spec.kernel) - whole * math.prod(together.kernel)
    written = row.stride * channels * (WRITE_COST - PACK_COST * col.stride)
    return run if products * (spec.out_channels // spec.groups) > written else 0


def way(spec: ConvSpec) -> ConvSpec:
    """A forward problem on the gradient whose outputs are q and m, and whose windows hold what any residue
    reads; its channels are those of one residue, or of all.

    Raises
    ------
    SpecError
        Where they hold nothing of it.
    """
    return _way(spec, axes(spec)[0].stride * run_of(spec) or 1)


@lru_cache(maxsize=1024)
def _way(spec: ConvSpec, times: int) -> ConvSpec:
    """With so many times the channels."""
    size, kernel, padding = [], [], []
    for axis in axes(spec):
        reach, first, count = reach_of(axis), axis.before // axis.stride, lines_of(axis)
        before = reach - first
        pair = before, count + reach - axis.outputs - before
        size.append(axis.outputs)
        kernel.append(reach + 1)
        padding.append(pair)
    return spec.with_(direction="forward", in_channels=spec.out_channels,
                      out_channels=times * spec.in_channels, size=tuple(size), kernel=tuple(kernel), stride=1,
                      dilation=1, padding=tuple(padding), rank=None)  # fmt: skip


def _filled(of: ConvSpec) -> int:
    """Output channels of a group, with what is empty of vectors."""
    return -(-of.out_channels // of.groups // block_of(of)) * block_of(of)


def reach_of(axis: Axis) -> int:
    """How far before q the last tap reads."""
    return (axis.kernel - 1) * axis.dilation // axis.stride


def lines_of(axis: Axis) -> int:
    """How many q there are."""
    return (axis.before + axis.size - 1) // axis.stride + 1 - axis.before // axis.stride


def taps_of(axis: Axis) -> list[list[int]]:
    """Of each residue of an axis, the taps that reach it."""
    found: list[list[int]] = [[] for _ in range(axis.stride)]
    for k in range(axis.kernel):
        found[k * axis.dilation % axis.stride].append(k)
    return found


def some_reached(spec: ConvSpec) -> list[tuple[int, int]]:
    """Residues that any tap reaches; of all together the first."""
    if run_of(spec):
        return [(0, 0)]
    rows, cols = ([a for a, taps in enumerate(taps_of(axis)) if taps] for axis in axes(spec))
    return list(product(rows, cols))


def read_by(axis: Axis, merged: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each residue, or of all, which of the weights there are along an axis, and the places in the window
    that they meet.
    """
    if merged:
        return [(np.arange(reach_of(axis) + 1),) * 2]
    found = (np.array(taps, np.int64) for taps in taps_of(axis))
    return [(taps, reach_of(axis) - taps * axis.dilation // axis.stride) for taps in found]


def merged(spec: ConvSpec, kernels: np.ndarray, run: int) -> np.ndarray:
    """(group, channel x row of the stride x column, output, *window) of weights (group, channel, output,
    *kernel), zeros in empty columns.
    """
    row, col = axes(spec)
    groups, channels, outputs = kernels.shape[:3]
    window = reach_of(row) + 1, reach_of(col) + 1
    whole = np.zeros((groups, channels, row.stride, run, outputs, *window), kernels.dtype)
    for i, j in np.ndindex(row.kernel, col.kernel):
        (down, a), (along, b) = divmod(i * row.dilation, row.stride), divmod(j * col.dilation, col.stride)
        whole[:, :, a, b, :, window[0] - 1 - down, window[1] - 1 - along] = kernels[..., i, j]
    return whole.reshape(groups, -1, outputs, *window)


def places_of(
    row: Axis, col: Axis, reached: list[tuple[int, int]], block: tuple[int, int], along: np.ndarray,
    positions: int,
) -> np.ndarray:
    """Of each element of a block of the result, in columns ``along`` of it, the position of its sum, over all
    residues one after another; the last of the first residue's, which stays zero, where no tap reaches.
    """
    numbers = np.full((row.stride, col.stride), -1)
    for number, at in enumerate(reached):
        numbers[at] = number
    down = np.arange(block[0] * row.stride)[:, None]
    own = numbers[down % row.stride, along % col.stride]
    within = down // row.stride * block[1] + along // col.stride
    return np.where(own < 0, positions - 1, own * positions + within).ravel()
