"""Weights put in the order in which a kernel reads them, from wherever they lie, in one pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from algos.engine.jit import compile_for, compiled, linked
from algos.engine.memory import aligned
from algos.engine.relay import HELPERS, fork, helpers
from algos.engine.simd import element
from algos.engine.tables import named, table_of

FLAGS = {"error_model": "numpy"}
PIECE = 256  # elements of a block that are packed at a time
SHARED = 1 << 15  # elements; fewer stay on one thread


class Source(NamedTuple):
    """Where weights lie: the address of the first, bytes between those of groups and of channels of a group
    that lie side by side in a block, and how many of the latter there are.
    """

    place: int
    group: int
    channel: int
    channels: int


@linked(**FLAGS)
def pack_blocks(w, table, offsets, order, slot, first, last):
    """Items [first, last): group x block of channels x piece of a block's elements."""
    source, (_, blocks, elements, block) = named(Source, table), w.shape
    pieces = -(-elements // PIECE)
    for item in range(first, last):
        piece, b, group = item % pieces, item // pieces % blocks, item // pieces // blocks
        count = min(block, source.channels - b * block)
        begin = source.place + group * source.group + b * block * source.channel
        for k in range(piece * PIECE, min(elements, (piece + 1) * PIECE)):
            own = w[group, b, order[k]]
            at = begin + offsets[order[k]]
            for lane in range(count):
                own[lane] = element(w, at + lane * source.channel)
            for lane in range(count, block):
                own[lane] = 0


@compiled(**FLAGS)
def all_blocks(w, table, offsets, order, job):
    """Every item, shared with the helpers; ``table``: of a ``Source``."""
    fork(pack_blocks, (w, table, offsets, order), job)


def packed(weights: np.ndarray, offsets: np.ndarray, block: int, threads: int) -> np.ndarray:
    """(group, block, element, channel of a block) of weights whose first two axes are groups and the channels
    that lie side by side in a block, zeros where a last block has fewer.

    Parameters
    ----------
    weights : array (groups, channels, ...)
        Its elements may lie anywhere.
    offsets : (elements,) int64
        Bytes from the first of a channel's elements to each, in the order in which they are packed.
    block, threads : int
    """
    groups, channels = weights.shape[:2]
    w = aligned((groups, -(-channels // block), offsets.size, block), weights.dtype)
    source = Source(weights.ctypes.data, weights.strides[0], weights.strides[1], channels)
    crew = helpers()
    items = w.shape[0] * w.shape[1] * -(-offsets.size // PIECE)
    job = crew.job(items, threads if w.size > SHARED else 1)
    # In the order in which they lie, so that a line is read once
    arguments = w, table_of(source), offsets, np.argsort(offsets), job
    compile_for(all_blocks, *arguments)
    crew.wake(int(job[HELPERS]))
    all_blocks(*arguments)
    return w


def tap_offsets(weights: np.ndarray) -> np.ndarray:
    """Bytes from the first tap to each of (group, channel, channel, *kernel), as a picture of one row where
    that has one axis.
    """
    steps = [np.arange(n) * step for n, step in zip(weights.shape[3:], weights.strides[3:], strict=True)]
    rows = steps[0] if len(steps) > 1 else np.zeros(1, np.int64)
    return np.add.outer(rows, steps[-1])
