"""Patches of the input in which the channels of a pixel lie together: how outputs are cut into blocks that
read one, how it is packed, and where a window finds its elements.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from algos.engine.blocks import Axis, axes
from algos.engine.jit import linked
from algos.engine.memory import spread
from algos.engine.runs import block_of
from algos.engine.simd import address, clear, lanes, transpose
from algos.engine.target import UNROLLED, VECTOR_BYTES
from algos.spec import ConvSpec

FLAGS = {"error_model": "numpy"}
SHARED_FLOPS = 2e6
CLOSE = 4  # columns apart
STEPS = 256  # of a block, before the next block takes the same weights: 16 KiB of them with AVX2
PACK_COST = 6.0  # multiply-adds of one output channel that packing an element of the patch costs


class Cut(NamedTuple):
    """How the outputs of a spec are cut into items: blocks of rows, and parts of a group's output channels.
    """

    groups: int
    parts: int
    rows: int  # output rows of a block
    row_stride: int
    top: int  # rows of padding
    patch_rows: int
    row_step: int  # input rows from one row of the patch to the next
    left: int  # columns of padding
    cols: int  # of the patch
    col_step: int
    step: int  # elements from one pixel of the patch to the next
    run: int  # contiguous elements of a tap, or of a row of taps
    piece: int  # starts of ``outer_runs`` between two passes over the pixels
    items: int
    threads: int


@linked(**FLAGS)
def pack_patch(x, n, c0, channels, row0, rows, cut, patch):
    """patch[r, j, :channels] = x[n, c0:, row0 + r * row_step, j * col_step - left], zero outside."""
    height, width = x.shape[2:]
    row_step, left, cols, col_step, step = cut.row_step, cut.left, cut.cols, cut.col_step, cut.step
    wide = VECTOR_BYTES // x.itemsize
    plane, start, flat = height * width, row0 * width, x.reshape(x.size)
    if left == 0 and cols == width and col_step == row_step == 1 and row0 >= 0 and row0 + rows <= height:
        rows, cols, width = 1, rows * cols, rows * cols  # whole rows of the image are one
    first = min(cols, max(0, -(-left // col_step)))
    last = max(first, min(cols, (width - 1 + left) // col_step + 1))
    for r in range(rows):
        ih, line = row0 + r * row_step, r * cols * step  # patch[r][0][0]
        if ih < 0 or ih >= height:
            clear(address(patch, line), cols * step)
            continue
        clear(address(patch, line), first * step)
        clear(address(patch, line + last * step), (cols - last) * step)
        source = (n * x.shape[1] + c0) * plane + start + r * row_step * width - left  # x[n][c0][ih][-left]
        for c in range(0, channels, wide):
            j = first
            if col_step == 1 and channels - c >= wide and last - first >= wide:
                while j < last:
                    j = min(j, last - wide)  # the last block overlaps the one before
                    to = address(patch, line + j * step + c)  # patch[r][j][c]
                    transpose(address(x, source + c * plane + j), plane, to, step)
                    j += wide
            for i in range(c, min(channels, c + wide)):
                for k in range(j, last):
                    patch[line + k * step + i] = flat[source + i * plane + k * col_step]


def _patch_length(axis: Axis, outputs: int) -> tuple[int, int]:
    """Input positions that ``outputs`` outputs of an axis read, and the step between those kept."""
    if axis.kernel == 1:
        return outputs, axis.stride
    return (outputs - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1, 1


def pixel_step(spec: ConvSpec) -> int:
    """Elements from one pixel of a patch to the next."""
    channels, wide = spec.in_channels // spec.groups, lanes(spec.in_dtype)
    return channels if channels < wide else spread(-(-channels // wide) * wide, spec.in_dtype)


@lru_cache(maxsize=1024)
def cut(spec: ConvSpec, threads: int, patch_bytes: int) -> Cut:
    """Blocks whose patch fits ``patch_bytes``, and enough of them for the threads."""
    row, col = axes(spec)
    channels, filters = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    step = pixel_step(spec)
    cols, col_step = _patch_length(col, col.outputs)
    if 1 < col_step <= CLOSE:  # columns between those that are read, too: they are packed by whole vectors
        cols, col_step = (cols - 1) * col_step + 1, 1
    run = channels * (col.kernel if step == channels and col.dilation == 1 else 1)
    if spec.flops < SHARED_FLOPS:
        threads = 1
    line = cols * step * spec.in_dtype.itemsize
    rows = row.outputs
    while rows > 1 and _patch_length(row, rows)[0] * line > patch_bytes:
        rows -= max(1, rows // 16)
    count, outer = -(-row.outputs // rows), spec.batch * spec.groups
    blocks = -(-filters // block_of(spec))
    parts = 1
    if outer * count % threads and outer * count < 4 * threads:  # the last items would leave threads idle
        halo = _patch_length(row, 1)[0] / row.stride
        by_rows = min(row.outputs, -(-outer * count // threads) * threads // math.gcd(outer, threads))
        if blocks >= threads and blocks % threads == 0 and PACK_COST * halo < filters:
            parts = threads
        elif by_rows > count:
            count = by_rows
        elif blocks >= threads:
            parts = threads
    rows = -(-row.outputs // count)
    items = outer * -(-row.outputs // rows) * parts
    patch_rows, row_step = _patch_length(row, rows)
    starts = channels * math.prod(spec.kernel) // run * (run // UNROLLED)
    piece = max(1, -(-starts // max(1, -(-spec.reduction_length // STEPS))))
    return Cut(spec.groups, parts, rows, row.stride, row.before, patch_rows, row_step, col.before, cols,
               col_step, step, run, piece, items, min(threads, items))  # fmt: skip


def elements(taps: np.ndarray, run: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Elements of a window, ``run`` from each of ``taps`` on, as ``outer_runs`` wants
    them: starts, singles, their order.
    """
    whole = run // UNROLLED * UNROLLED
    tap, at, left = np.arange(taps.size)[:, None], np.arange(whole), np.arange(whole, run)
    starts = (taps[:, None] + at[::UNROLLED]).ravel()
    return starts, (taps[:, None] + left).ravel(), np.concatenate([(tap * run + at).ravel(),
                                                                   (tap * run + left).ravel()])
