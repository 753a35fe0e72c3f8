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
from algos.engine.threads import busiest
from algos.spec import ConvSpec

FLAGS = {"error_model": "numpy"}
SHARED_FLOPS = 2e6
CLOSE = 4  # columns apart
FEW_COLUMNS = 256  # of a signal, whose blocks are not made shorter for the cache
STEPS = 256  # of a block, before the next block takes the same weights: 16 KiB of them with AVX2
PACK_COST = 6.0  # multiply-adds of one output channel that packing an element of the patch costs
READ_COST = 8.0  # pixels in whose time a block's weights are read for the first time


class Cut(NamedTuple):
    """How the outputs of a spec are cut into items: blocks of rows, or of columns of a single row, and parts
    of a group's output channels. Of blocks all are as large, or one smaller.
    """

    groups: int
    parts: int
    row_blocks: int
    col_blocks: int
    rows: int  # output rows of a block, at most
    columns: int
    row_stride: int
    col_stride: int
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
    # Of films, whose planes are images, and the taps along the depth as many times the channels
    planes: int = 1  # of an image of the result
    depth: int = 1  # of x
    taps: int = 1
    depth_stride: int = 1
    depth_dilation: int = 1
    front: int = 0  # planes of padding


@linked(**FLAGS)
def pack_patch(x, plane0, apart, at, channels, row0, rows, left, cut, patch):
    """patch[r, j, at : at + channels] = x[plane0 :: apart, row0 + r * row_step, j * col_step - left], zero
    outside; x (n, c, h, w) as planes.
    """
    height, width = x.shape[2:]
    row_step, cols, col_step, step = cut.row_step, cut.cols, cut.col_step, cut.step
    wide = VECTOR_BYTES // x.itemsize
    plane, start, flat = height * width, row0 * width, x.reshape(x.size)
    apart *= plane
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
        source = plane0 * plane + start + r * row_step * width - left  # x[n][c0][ih][-left]
        for c in range(0, channels, wide):
            j = first
            if col_step == 1 and channels - c >= wide and last - first >= wide:
                while j < last:
                    j = min(j, last - wide)  # the last block overlaps the one before
                    to = address(patch, line + j * step + at + c)  # patch[r][j][at + c]
                    transpose(address(x, source + c * apart + j), apart, to, step)
                    j += wide
            for i in range(c, min(channels, c + wide)):
                for k in range(j, last):
                    patch[line + k * step + at + i] = flat[source + i * apart + k * col_step]


@linked(**FLAGS)
def clear_channels(patch, at, channels, pixels, step):
    """patch[:pixels, at : at + channels] = 0."""
    for pixel in range(pixels):
        clear(address(patch, pixel * step + at), channels)


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
def cut(spec: ConvSpec, threads: int, patch_bytes: int, whole: bool = False) -> Cut:
    """Blocks whose patch fits ``patch_bytes``, enough of them for the threads; ``whole``: of whole rows."""
    row, col = axes(spec)
    channels, step = spec.in_channels // spec.groups, pixel_step(spec)
    pixel = step * spec.in_dtype.itemsize
    line, rows, columns = _columns(col, col.outputs)[0] * pixel, row.outputs, col.outputs
    while rows > 1 and _patch_length(row, rows)[0] * line > patch_bytes:
        rows -= max(1, rows // 16)
    if row.outputs == 1 and not whole:
        tall = row.kernel * pixel
        while columns > FEW_COLUMNS and _columns(col, columns)[0] * tall > patch_bytes:
            columns -= max(1, columns // 16)
    row_blocks, col_blocks, parts = -(-row.outputs // rows), -(-col.outputs // columns), 1
    if row.outputs > 1 or whole:
        row_blocks, parts = _shares(spec, threads, row_blocks, row, col)
    else:
        col_blocks, parts = _shares(spec, threads, col_blocks, col, row)
    rows, columns = -(-row.outputs // row_blocks), -(-col.outputs // col_blocks)
    cols, col_step = _columns(col, columns)
    run = channels * (col.kernel if step == channels and col.dilation == 1 else 1)
    items = spec.batch * spec.groups * row_blocks * col_blocks * parts
    patch_rows, row_step = _patch_length(row, rows)
    starts = channels * math.prod(spec.kernel) // run * (run // UNROLLED)
    piece = max(1, -(-starts // max(1, -(-spec.reduction_length // STEPS))))
    return Cut(spec.groups, parts, row_blocks, col_blocks, rows, columns, row.stride, col.stride, row.before,
               patch_rows, row_step, col.before, cols, col_step, step, run, piece, items,
               min(threads, items))  # fmt: skip


def _columns(axis: Axis, outputs: int) -> tuple[int, int]:
    """As ``_patch_length``, with what lies between close columns: they are packed by whole vectors."""
    cols, step = _patch_length(axis, outputs)
    return ((cols - 1) * step + 1, 1) if 1 < step <= CLOSE else (cols, step)


def _shares(spec: ConvSpec, threads: int, fewest: int, long: Axis, short: Axis) -> tuple[int, int]:
    """Blocks of the axis ``long``, ``fewest`` or more, and parts of the channels, so that the thread that has
    most has least to do.
    """
    outer, block = spec.batch * spec.groups, block_of(spec)
    if outer * fewest % threads == 0:  # no thread is left idle at the end
        return fewest, 1
    blocks, elements = -(-spec.out_channels // spec.groups // block), spec.reduction_length
    channels, across = spec.in_channels // spec.groups, _patch_length(short, short.outputs)[0]
    between = max(0, long.extent - long.stride)  # lines of the input that two blocks read

    def load(ways: tuple[int, int]) -> float:
        count, parts = ways
        most, filters = -(-outer * count * parts // threads), -(-blocks // parts) * block
        lines = busiest(outer * parts, long.outputs, count, threads)
        moved = PACK_COST * (long.stride * across * channels + short.outputs * filters)
        again = READ_COST * filters * elements + PACK_COST * between * across * channels
        return lines * (short.outputs * filters * elements + moved) + most * again

    found = []
    for parts in range(1, min(blocks, threads) + 1):
        times = outer * fewest * parts // threads
        even = (-(-more * threads // (outer * parts)) for more in range(max(1, times), times + 4))
        found += [(max(fewest, min(count, long.outputs)), parts) for count in (fewest, *even)]
    return min(found, key=load)


def elements(taps: np.ndarray, run: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Elements of a window, ``run`` from each of ``taps`` on, as ``outer_runs`` wants
    them: starts, singles, their order.
    """
    whole = run // UNROLLED * UNROLLED
    tap, at, left = np.arange(taps.size)[:, None], np.arange(whole), np.arange(whole, run)
    starts = (taps[:, None] + at[::UNROLLED]).ravel()
    return starts, (taps[:, None] + left).ravel(), np.concatenate([(tap * run + at).ravel(),
                                                                   (tap * run + left).ravel()])
