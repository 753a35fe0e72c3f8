"""The input's gradient of a stride by the definition, with input channels in the vectors: for
``direct_channels``.

With an element's row i + top = s q + a and column likewise, tap k of an axis with k d mod s = a reads the
gradient k d // s before q. So the elements of all residues a read one patch of the gradient, in which output
channels of a position lie together; for each residue a few positions times a few vectors of input channels
stay in registers over its taps and output channels (``outer_runs``). The sums of all residues of a block of
rows leave together, transposed, in the order in which they lie in the result: each element is written once.
Elements that no tap reaches come from sums that stay zero. Where vectors of input channels would be mostly
empty, and all residues read the same windows, their channels lie side by side. Without a stride it is a
forward pass (``algos/lower/direction.py``).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from algos.contract import Cost
from algos.cpu._compiled import Work
from algos.cpu._residues import (
    WRITE_COST,
    lines_of,
    merged,
    places_of,
    reach_of,
    read_by,
    run_of,
    some_reached,
    way,
)
from algos.engine.blocks import axes
from algos.engine.jit import compiled, linked
from algos.engine.memory import aligned
from algos.engine.packing import packed, tap_offsets
from algos.engine.patches import PACK_COST, SHARED_FLOPS, STEPS, Cut, cut, elements, pack_patch, pixel_step
from algos.engine.relay import fork
from algos.engine.runs import ROWS, block_of, runs_block
from algos.engine.simd import address, advance, copy, lanes, move, transpose
from algos.engine.tables import named, table_of
from algos.engine.target import UNROLLED, VECTOR_BYTES
from algos.engine.threads import worth
from algos.host import caches
from algos.spec import ConvSpec, SpecError

FLAGS = {"error_model": "numpy"}
MOST_RESIDUES = 64  # whose sums a thread holds
SUMS_BYTES = 1 << 19  # of all residues of a block of rows


class Residue(NamedTuple):
    """Where the windows, weights and sums of one residue that any tap reaches begin, in their arrays."""

    starts: int
    n_starts: int
    singles: int
    n_singles: int
    element: int
    sums: int


class Layout(NamedTuple):
    """What compiled code knows besides the ``Cut`` of a ``Way``."""

    height: int
    width: int
    stride: int  # of rows
    step: int  # of columns
    begin: int  # the row of the result, maybe above the first, with which the first block begins
    left: int  # and the column
    lines: int  # of each residue
    columns: int
    wide: int  # columns of which there are places
    run: int  # elements from one row of the stride to the next in a block of all residues, or 0


class Windows(NamedTuple):
    """Where the elements of windows lie in a patch, and every element of the result in the sums."""

    pixels: np.ndarray
    starts: np.ndarray
    singles: np.ndarray
    places: np.ndarray


def beyond(spec: ConvSpec) -> str | None:
    """Why this is not the way to the input's gradient, or None."""
    if max(spec.stride) == 1:
        return "computes gradients of the input with a stride"
    if math.prod(spec.stride) > MOST_RESIDUES:
        return f"computes gradients of {MOST_RESIDUES} residues of the stride, not {math.prod(spec.stride)}"
    try:
        way(spec)
    except SpecError:
        return "computes gradients that something of what is given reaches"
    return None


@linked(**FLAGS)
def unpack_places(sums, places, y, plane, count, at, pixels, spare):
    """Elements [at, at + pixels) of ``count`` planes of y from ``plane`` on, each from one of ``places``
    of sums, a channel further for every plane; spare: a square of a vector's width.
    """
    wide, each, flat = VECTOR_BYTES // sums.itemsize, y.shape[2] * y.shape[3], y.reshape(y.size)
    found = sums.reshape(sums.size)
    for c in range(0, count, wide):
        j, to, some = 0, (plane + c) * each + at, min(count - c, wide)
        while j < pixels and pixels >= wide:
            j = min(j, pixels - wide)  # the last block overlaps the one before
            if some == wide:
                transpose(address(found, c), address(places, j), address(flat, to + j), each)
            else:  # a block of sums has whole vectors of channels
                transpose(address(found, c), address(places, j), spare, wide)
                for i in range(some):
                    copy(address(flat, to + i * each + j), advance(spare, i * wide), wide)
            j += wide
        for i in range(some):
            for k in range(j, pixels):
                flat[to + i * each + k] = found[places[k] + c + i]


@linked(**FLAGS)
def unpack_merged(sums, y, plane, planes, b, q, count, m, columns, layout):
    """Block ``b`` of channels of all residues: rows q to q + count and columns m to m + columns of each, of
    ``planes`` planes from ``plane`` on.
    """
    wide, block, height, width = VECTOR_BYTES // sums.itemsize, sums.shape[1], layout.height, layout.width
    flat, found, run, step = y.reshape(y.size), sums.reshape(sums.size), layout.run, layout.step
    left = layout.left + m * step
    end = min(width, left + columns * step)
    # What a whole vector writes beyond its run the next one writes again, or nobody may have written
    begin = min(columns, (max(0, -left) + step - 1) // step)
    whole = max(begin, min(columns, (end - wide - left) // step + 1))
    for k in range(block // run):
        c, a = (b * (block // run) + k) // layout.stride, (b * (block // run) + k) % layout.stride
        if c >= planes:
            break
        for i in range(count):
            row = layout.begin + (q + i) * layout.stride + a
            if row < 0 or row >= height:
                continue
            at, source = ((plane + c) * height + row) * width + left, i * columns * block + k * run
            for j in range(begin):
                for lane in range(max(0, -left - j * step), min(step, end - left - j * step)):
                    flat[at + j * step + lane] = found[source + j * block + lane]
            for j in range(begin, whole):
                move(address(flat, at + j * step), address(found, source + j * block), 1)
            for j in range(whole, columns):
                for lane in range(max(0, -left - j * step), min(step, end - left - j * step)):
                    flat[at + j * step + lane] = found[source + j * block + lane]


@linked(**FLAGS)
def residue_runs(grad, y, w, cut, layout, residues, windows, vectors, patches, all_sums, slot, first, last):
    """Items [first, last): image x group x block of rows x block of columns x part of the group's channels.

    w: (group, block of channels, element, channels of a block), the elements residue by residue; all_sums:
    (thread, residue, position, channels of a block).
    """
    patch, sums = patches[slot], all_sums[slot]
    rows, parts, width, stride, step = cut.rows, cut.parts, layout.width, layout.stride, layout.step
    outputs, channels = grad.shape[1] // cut.groups, y.shape[1] // cut.groups
    blocks, every, block = w.shape[1], w.shape[2], w.shape[3]
    row_blocks, col_blocks, wide = cut.row_blocks, cut.col_blocks, VECTOR_BYTES // grad.itemsize
    spare = address(patch, patch.size - wide * wide)
    packed = -1
    for item in range(first, last):
        whole, part = item // parts, item % parts
        down, along = whole // col_blocks % row_blocks, whole % col_blocks
        n = whole // (row_blocks * col_blocks)
        n, group = n // cut.groups, n % cut.groups
        q, m = layout.lines * down // row_blocks, layout.columns * along // col_blocks
        count = layout.lines * (down + 1) // row_blocks - q
        columns = layout.columns * (along + 1) // col_blocks - m
        if whole != packed:
            needed = cut.patch_rows - rows + count
            pack_patch(grad, n * grad.shape[1] + group * outputs, 1, 0, outputs, q - cut.top, needed,
                       cut.left - m, cut, patch)  # fmt: skip
            packed = whole
        top = layout.begin + q * stride
        low, high = max(0, top), min(layout.height, top + count * stride)
        places, at, pixels = windows.places[(low - top) * layout.wide :], low * width, (high - low) * width
        if col_blocks > 1:  # of a signal
            begin = layout.left + m * step
            at, pixels = max(0, begin), min(width, begin + columns * step) - max(0, begin)
            places = windows.places[at - begin :]
        for b in range(blocks * part // parts, blocks * (part + 1) // parts):
            weights = address(w, (group * blocks + b) * every * block)  # w[group][b][0][0]
            for r in range(residues.shape[0]):
                own = named(Residue, residues[r])
                pieces = max(1, -(-(own.n_starts * UNROLLED) // STEPS))
                piece = max(1, -(-own.n_starts // pieces))
                for s in range(0, max(1, own.n_starts), piece):
                    here = min(piece, own.n_starts - s)
                    ends = own.n_singles if s + here == own.n_starts else 0
                    taken = advance(weights, (own.element + s * UNROLLED) * block)
                    runs_block(address(patch, 0), count * columns, windows.pixels,
                               address(windows.starts, own.starts + s), here,
                               address(windows.singles, own.singles), ends, taken, sums[own.sums], s > 0,
                               vectors)  # fmt: skip
            c = group * channels + b * block
            if layout.run:
                plane = n * y.shape[1] + group * channels
                unpack_merged(sums[0], y, plane, channels, b, q, count, m, columns, layout)
                continue
            unpack_places(sums, places, y, n * y.shape[1] + c, min(block, channels - b * block), at, pixels,
                          spare)  # fmt: skip


@compiled(**FLAGS)
def all_inputs(grad, y, w, table, layout, residues, pixels, starts, singles, places, vectors, patches, sums,
               job):  # fmt: skip
    """Every item, shared with the helpers; ``table``: of a ``Cut``, ``layout``: of ``Layout``."""
    windows = Windows(pixels, starts, singles, places)
    fork(residue_runs, (grad, y, w, named(Cut, table), named(Layout, layout), residues, windows, vectors,
                        patches, sums), job)  # fmt: skip


def block_for(spec: ConvSpec) -> int:
    """Input channels in the vectors of a block."""
    return block_of(way(spec))


@lru_cache(maxsize=1024)
def cut_of(spec: ConvSpec, threads: int) -> Cut:
    """Blocks whose patch and sums fit the second-level cache together."""
    found, (_, col), unit = way(spec), axes(spec), spec.in_dtype.itemsize
    threads = worth(threads, spec.flops, SHARED_FLOPS)
    sums, pixel = len(some_reached(spec)) * block_of(found) * unit, pixel_step(found) * unit
    if spec.ndim == 1:
        room = (SUMS_BYTES // sums + reach_of(col)) * pixel
        return cut(found, threads, min(caches()["L2"], room))
    rows, line = max(1, SUMS_BYTES // (lines_of(col) * sums)), (lines_of(col) + reach_of(col)) * pixel
    return cut(found, threads, min(caches()["L2"], (rows + found.kernel[0] - 1) * line), whole=True)


def _sizes(spec: ConvSpec, found: Cut) -> tuple[int, int, int]:
    """Elements of the packed weights and of a patch, with a square behind it, and positions of a residue's
    sums.
    """
    of = way(spec)
    block = block_of(of)
    channels = -(-of.out_channels // of.groups // block) * block * of.groups
    weights = channels * (spec.out_channels // spec.groups)
    weights *= math.prod(of.kernel if run_of(spec) else spec.kernel)
    wide = lanes(spec.in_dtype)
    patch = found.patch_rows * found.cols * found.step + wide + wide**2
    return weights, patch, found.rows * found.columns + ROWS


def workspace_bytes(spec: ConvSpec, threads: int) -> int:
    found, (row, col) = cut_of(spec, threads), axes(spec)
    weights, patch, positions = _sizes(spec, found)
    kept = weights + found.threads * (patch + len(some_reached(spec)) * positions * block_for(spec))
    # Where elements of a window lie in weights, and in what order, while they are packed
    tables = positions + 7 * (spec.out_channels // spec.groups) * math.prod(spec.kernel)
    tables += 3 * found.rows * row.stride * (col.size + col.stride)
    kept += weights if run_of(spec) else 0  # in order, before they are packed
    return kept * spec.in_dtype.itemsize + 8 * tables


def work(spec: ConvSpec, weights: np.ndarray, threads: int) -> Work:
    """What ``direct_channels`` does for ``spec``."""
    found, of, (row, col) = cut_of(spec, threads), way(spec), axes(spec)
    block, reached = block_of(of), some_reached(spec)
    _, patch_length, positions = _sizes(spec, found)
    outputs = of.in_channels // of.groups
    pixels = np.zeros(positions, np.int64)
    pixels[:-ROWS] = (
        (np.arange(found.rows)[:, None] * found.cols + np.arange(found.columns)) * found.step
    ).ravel()
    kernels = weights.reshape(spec.groups, outputs, -1, *weights.shape[2:]).swapaxes(1, 2)
    run = run_of(spec)
    if run:
        kernels = merged(spec, kernels.reshape(*kernels.shape[:3], row.kernel, col.kernel), run)
    taps_at, offsets = tap_offsets(kernels), []
    residues: list[Residue] = []
    starts: list[np.ndarray] = []
    singles: list[np.ndarray] = []
    down, along, element = read_by(row, run), read_by(col, run), 0
    for number, (a, b) in enumerate(reached):
        (rows, up), (columns, left) = down[a], along[b]
        taps = ((up[:, None] * found.cols + left) * found.step).ravel()
        own, rest, order = elements(taps, outputs)
        some = taps_at[np.ix_(rows, columns)].ravel()
        offsets.append(np.add.outer(some, np.arange(outputs) * kernels.strides[2]).ravel()[order])
        residues.append(Residue(sum(one.size for one in starts), own.size, sum(one.size for one in singles),
                                rest.size, element, number))  # fmt: skip
        starts.append(own)
        singles.append(rest)
        element += order.size
    w = packed(kernels, np.concatenate(offsets), block, threads)
    wide, shift = col.size, col.before % col.stride
    if found.col_blocks > 1:
        wide, shift = found.columns * col.stride, 0
    layout = Layout(row.size, col.size, row.stride, col.stride, -(row.before % row.stride),
                    -(col.before % col.stride), lines_of(row), lines_of(col), wide, run)  # fmt: skip
    places = np.zeros(1, np.int64)
    if not run:
        lying = np.arange(wide) + shift
        places = places_of(row, col, reached, (found.rows, found.columns), lying, positions) * block
    patch = aligned((found.threads, patch_length), spec.in_dtype, zeros=True)
    sums = aligned((found.threads, len(reached), positions, block), spec.in_dtype, zeros=True)
    vectors = (0,) * (block // lanes(spec.in_dtype))
    arguments = (w, table_of(found), table_of(layout), np.array(residues, np.int64), pixels,
                 np.concatenate(starts), np.concatenate(singles), places, vectors, patch, sums)  # fmt: skip
    return Work(all_inputs, arguments, found.items, found.threads, as_2d=True)


def cost(spec: ConvSpec, threads: int) -> Cost:
    """Of arithmetic, with what is empty of vectors, and of packing and unpacking."""
    found, (row, col) = cut_of(spec, threads), axes(spec)
    weights, patch, _ = _sizes(spec, found)
    positions = spec.batch * lines_of(row) * lines_of(col)
    each = WRITE_COST / col.stride if run_of(spec) else PACK_COST
    packing = 2 * (PACK_COST * patch * found.items / found.parts + each * math.prod(spec.input_shape))
    speed = 8e10 * 4 / spec.in_dtype.itemsize
    return Cost(2.0 * weights * positions + packing, spec.min_bytes, 4, speed, found.threads > 1)
