"""The weights' gradient by the definition, with output channels in the vectors: for ``direct_channels``.

dw[o, e] sums grad[o, p] * x[at[e] + from[p]] over all positions p of all images, for the elements e of a
window, (channel, kh, kw). A few elements times a few vectors of output channels stay in registers over a run
of positions (``outer_runs``): grad is copied so that the output channels of a position lie together, x is
read as it lies, or, where it has a border, from a copy with zeros around. Sums of a run of positions are
added to those of the runs before, and transposed on their way out.

Where there are fewer blocks of output channels than threads share well, the threads share the positions, and
sum what each of them found.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

from algos.contract import Cost
from algos.cpu._compiled import Work
from algos.engine.blocks import Axis, axes
from algos.engine.epilogue import After
from algos.engine.jit import compiled, linked
from algos.engine.lanes import Lanes
from algos.engine.memory import aligned
from algos.engine.relay import CHUNKS, ITEMS, fork
from algos.engine.runs import ROWS, block_of, runs_block, unpack_sums
from algos.engine.simd import I64, Emitter, address, copy, lanes, transpose
from algos.engine.tables import named, table_of
from algos.engine.target import RUN_VECTORS, VECTOR_BYTES
from algos.engine.threads import chunks_of, worth
from algos.spec import ConvSpec

intrinsic: Any = typed_intrinsic  # called without the typing context, which its type does not say
FLAGS = {"error_model": "numpy"}
RUN = 256  # positions whose gradients stay in the cache for all elements; of 64 to 512 the best
ELEMENTS = 1024  # whose sums a thread holds: 256 KiB with blocks of 64 output channels
PATCH_BYTES = 1 << 18  # of a thread's part of x
FAR = 1 << 20  # positions of a table
ALIKE = 16  # positions of which every run but the last has a multiple
SHARED_FLOPS = 3e6
# Operations in whose time an element is gathered, copied with its border, or summed with another share's
GATHERING, COPYING, ADDING = 12.0, 4.0, 12.0
NARROW_COST = 1.15  # of arithmetic in blocks of fewer vectors
SUMMED = 1 << 12  # elements of dw that are summed at a time


class Cut(NamedTuple):
    """Items: shares of the positions x groups x parts of a group's channels x blocks of its output channels.
    """

    groups: int
    stride: int  # of rows
    top: int  # rows of padding
    left: int  # columns of padding
    swapped: bool  # x and grad have changed places
    padded: bool  # x is copied, with a border
    pitch: int  # elements from a row of x or its copy to the next
    plane: int  # from a channel to the next
    rows: int  # of outputs, of whose x there is a copy at a time
    channels: int  # of a part
    taps: int
    reach: int  # rows of x that a row of outputs reads, less one
    blocks: int  # of output channels
    shares: int
    items: int
    threads: int
    chunks: int


class Memory(NamedTuple):
    """What each thread works in."""

    patches: np.ndarray
    grads: np.ndarray  # (position, o)
    sums: np.ndarray  # (element of the window, o)


@intrinsic
def widen(typingctx, source, width, left, target, vectors):
    """``vectors`` vectors of a row of ``width`` elements with ``left`` zeros before it and zeros behind."""
    signature = types.void(source, types.intp, types.intp, source, types.intp)

    def codegen(context, builder, sig, args):
        source, width, left, target, vectors = args
        emit = Emitter(builder, sig.args[0].dtype)
        masked = Lanes(emit, emit.bytes * 8)
        with cgutils.for_range(builder, vectors) as loop:
            to = builder.mul(loop.index, I64(emit.lanes))
            column = builder.sub(to, left)
            mask = masked.below(masked.numbers(column), width)
            emit.store(masked.load(emit.at(source, column), mask), emit.at(target, to))
        return context.get_dummy_value()

    return signature, codegen


@linked(**FLAGS)
def border(x, n, c0, channels, row0, rows, cut, patch):
    """patch[c, r] = row ``row0`` + r of x[n, c0 + c], between zeros; in order: each spills into the next."""
    height, width = x.shape[2:]
    vectors = -(-cut.pitch * x.itemsize // VECTOR_BYTES)
    for c in range(channels):
        for r in range(rows):
            ih, to = row0 + r, c * cut.plane + r * cut.pitch
            inside = 0 <= ih < height
            source = ((n * x.shape[1] + c0 + c) * height + ih) * width if inside else 0
            widen(address(x, source), width if inside else 0, cut.left, address(patch, to), vectors)


@linked(**FLAGS)
def gather(grad, start, plane, count, positions, block, target):
    """target[p, o] = grad.ravel()[start + o * plane + p] for o < ``count`` and p < ``positions``."""
    wide, flat = VECTOR_BYTES // grad.itemsize, grad.reshape(grad.size)
    for o in range(0, count, wide):
        at = 0
        if count - o >= wide and positions >= wide:
            while at < positions:
                at = min(at, positions - wide)  # the last block overlaps the one before
                to = address(target, at * block + o)
                transpose(address(grad, start + o * plane + at), plane, to, block)
                at += wide
        for i in range(o, min(count, o + wide)):
            for p in range(at, positions):
                target[p * block + i] = flat[start + i * plane + p]


@linked(**FLAGS)
def shares_of_positions(x, grad, y, cut, elements, positions, vectors, memory, slot, first, last):
    """Items [first, last); y: (share, o, 1, element of the window), or (share, c, 1, o) where x and grad are
    swapped.

    elements, positions: where x or its copy has them, of a part and the last part, and of a block of rows.
    """
    patch, given, sums = memory.patches[slot], memory.grads[slot], memory.sums[slot]
    block, out_width, plane = sums.shape[1], grad.shape[3], grad.shape[2] * grad.shape[3]
    channels, filters = x.shape[1] // cut.groups, grad.shape[1] // cut.groups
    row_blocks, parts = -(-grad.shape[2] // cut.rows), -(-channels // cut.channels)
    steps, packed = x.shape[0] * row_blocks, -1
    for item in range(first, last):
        b, rest = item % cut.blocks, item // cut.blocks
        part, group, share = rest % parts, rest // parts % cut.groups, rest // parts // cut.groups
        c0, o0 = part * cut.channels, group * filters + b * block
        some, count = min(cut.channels, channels - c0), min(block, filters - b * block)
        began = steps * share // cut.shares
        for step in range(began, steps * (share + 1) // cut.shares):
            n, oh0 = step // row_blocks, step % row_blocks * cut.rows
            rows = min(cut.rows, grad.shape[2] - oh0)
            if cut.padded:
                source, known = address(patch, 0), (step * cut.groups + group) * parts + part
                if known != packed:
                    needed = (rows - 1) * cut.stride + cut.reach + 1
                    border(x, n, group * channels + c0, some, oh0 * cut.stride - cut.top, needed, cut, patch)
                    packed = known
            else:  # x[n][c0][oh0 * stride][0]
                at = (n * x.shape[1] + group * channels + c0) * cut.plane
                source = address(x, at + oh0 * cut.stride * cut.pitch)
            runs = -(-rows * out_width // RUN)
            length = -(-rows * out_width // (runs * ALIKE)) * ALIKE
            for p in range(0, rows * out_width, length):
                here = min(length, rows * out_width - p)
                at = (n * grad.shape[1] + o0) * plane + oh0 * out_width + p  # grad[n][o0][oh0][p]
                gather(grad, at, plane, count, here, block, given)
                where = address(positions, p)
                runs_block(source, some * cut.taps, elements[int(some < cut.channels)], where, 0, where, here,
                           address(given, 0), sums, step > began or p > 0, vectors)  # fmt: skip
        if cut.swapped:
            for e in range(some):  # y[share][group][c0 + e][b * block]
                to = ((share * cut.groups + group) * channels + c0 + e) * filters + b * block
                copy(address(y, to), address(sums, e * block), count)
        else:
            channel = share * y.shape[1] + o0
            unpack_sums(sums, y, channel, 1, o0, count, c0 * cut.taps, some * cut.taps, After(0, 0))


@linked(**FLAGS)
def add_shares(found, dw, slot, first, last):
    """Elements [first, last) * SUMMED of dw, summed over the shares."""
    begin, end = first * SUMMED, min(dw.size, last * SUMMED)
    total, parts = dw.reshape(dw.size), found.reshape((found.shape[0], dw.size))
    for i in range(begin, end):
        total[i] = parts[0, i]
    for share in range(1, found.shape[0]):
        for i in range(begin, end):
            total[i] += parts[share, i]


@compiled(**FLAGS)
def all_weights(x, grad, dw, table, elements, positions, vectors, patches, grads, sums, found, job):
    """Every item, shared with the helpers, and then what the shares found; ``table``: of a ``Cut``."""
    cut = named(Cut, table)
    job[CHUNKS], job[ITEMS] = cut.chunks, cut.items
    each = elements, positions, vectors, Memory(patches, grads, sums)
    if cut.swapped:
        x, grad = grad, x
    if cut.shares == 1:
        whole = dw.reshape((1, dw.shape[0], 1, dw.size // dw.shape[0]))
        fork(shares_of_positions, (x, grad, whole, cut, *each), job)
        return
    fork(shares_of_positions, (x, grad, found, cut, *each), job)
    job[CHUNKS] = job[ITEMS] = -(-dw.size // SUMMED)
    fork(add_shares, (found, dw), job)


class Way(NamedTuple):
    """Whose channels lie in the vectors: those of grad in ``spec``, which has x and grad swapped where that
    is faster, and windows are one pixel.
    """

    spec: ConvSpec
    swapped: bool
    block: int  # channels in the vectors of a block


@lru_cache(maxsize=1024)
def way(spec: ConvSpec) -> Way:
    same = Way(spec, False, block_of(spec))
    if math.prod(spec.kernel) > 1 or max(spec.stride) > 1 or any(map(any, spec.padding)):
        return same
    turned = spec.with_(in_channels=spec.out_channels, out_channels=spec.in_channels)
    other = Way(turned, True, block_of(turned))
    return min(same, other, key=_operations)


def _operations(of: Way) -> float:
    """Of a position: multiply-adds with what is empty of vectors, and gathering channels."""
    filters = of.spec.out_channels // of.spec.groups
    blocks = -(-filters // of.block)
    narrow = 1 if of.block == RUN_VECTORS * lanes(of.spec.in_dtype) else NARROW_COST
    products = 2.0 * narrow * blocks * of.block * of.spec.reduction_length
    return of.spec.groups * (products + GATHERING * filters)


@lru_cache(maxsize=1024)
def cut(spec: ConvSpec, threads: int) -> Cut:
    """Parts whose sums and rows whose x fit their caches, and enough of them for the threads."""
    of, swapped, block = way(spec)
    row, col = axes(of)
    unit, taps = spec.in_dtype.itemsize, math.prod(spec.kernel)
    channels, filters = of.in_channels // spec.groups, of.out_channels // spec.groups
    threads = worth(threads, spec.flops, SHARED_FLOPS)
    blocks = -(-filters // block)
    outer, positions = blocks * spec.groups, spec.batch * math.prod(spec.output_size)

    def load(ways: tuple[int, int]) -> float:
        """Of the thread that has most, operations of each element of dw at each position."""
        parts, shares = ways
        items, adding = outer * parts * shares, ADDING * shares / positions if shares > 1 else 0.0
        most = -(-items // threads) / items
        return most * (2 + GATHERING * parts / (channels * taps) + adding)

    few = -(-channels // max(1, ELEMENTS // taps))
    more = range(few, min(channels, few + threads) + 1), range(1, min(threads, spec.batch * row.outputs) + 1)
    parts, shares = min(product(*more), key=load)
    some = -(-channels // parts)
    parts = -(-channels // some)
    outer *= parts
    padded = any(map(any, spec.padding))
    pitch = _read(col, col.outputs) if padded else col.size
    rows, reach = min(row.outputs, max(1, FAR // col.outputs)), (row.kernel - 1) * row.dilation
    while padded and rows > 1 and _read(row, rows) * pitch * some * unit > PATCH_BYTES:
        rows -= max(1, rows // 16)
    count = -(-row.outputs // rows)
    if shares > 1 and spec.batch % shares:
        count = min(row.outputs, -(-count // shares) * shares)
    rows = -(-row.outputs // count)
    plane = _read(row, rows) * pitch if padded else row.size * col.size
    items, chunks = outer * shares, chunks_of(outer * shares, threads)
    return Cut(spec.groups, row.stride, row.before, col.before, swapped, padded, pitch, plane, rows, some,
               taps, reach, blocks, shares, items, min(threads, items), chunks)  # fmt: skip


def _read(axis: Axis, outputs: int) -> int:
    """Positions from the first to the last that so many outputs read."""
    return (outputs - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1


def _lengths(found: Cut, spec: ConvSpec) -> tuple[int, ...]:
    """Elements of a thread's patch, gradients and sums, and of what the shares find."""
    block = way(spec).block
    patch = found.channels * found.plane + lanes(spec.in_dtype) if found.padded else 0
    shared = found.shares * math.prod(spec.weight_shape) if found.shares > 1 else 0
    return patch, (RUN + ALIKE) * block, (found.channels * found.taps + ROWS) * block, shared


def workspace_bytes(spec: ConvSpec, threads: int) -> int:
    found = cut(spec, threads)
    *each, shared = _lengths(found, spec)
    tables = 2 * (found.channels * found.taps + ROWS) + found.rows * axes(spec)[1].outputs
    return (found.threads * sum(each) + shared) * spec.in_dtype.itemsize + 8 * tables


def block_for(spec: ConvSpec) -> int:
    """Channels in the vectors of a block."""
    return way(spec).block


def work(spec: ConvSpec, weights: None, threads: int) -> Work:
    """What ``direct_channels`` does for ``spec``."""
    found, (of, _, block) = cut(spec, threads), way(spec)
    row, col = axes(spec)
    down = np.arange(row.kernel)[:, None] * (row.dilation * found.pitch)
    taps = down + np.arange(col.kernel) * col.dilation
    last = of.in_channels // spec.groups % found.channels or found.channels
    elements = np.zeros((2, found.channels * found.taps + ROWS), np.int64)  # of any part, and of the last
    for own, some in zip(elements, (found.channels, last), strict=True):  # a block's rest is the first again
        own[: some * found.taps] = (np.arange(some)[:, None] * found.plane + taps.ravel()).ravel()
    rows = np.arange(found.rows)[:, None] * (row.stride * found.pitch)
    positions = (rows + np.arange(col.outputs) * col.stride).ravel()
    patch, given, sums, shared = _lengths(found, spec)
    vectors = (0,) * (block // lanes(spec.in_dtype))
    patches, grads = (aligned((found.threads, n), spec.in_dtype, zeros=True) for n in (patch, given))
    parts = aligned((found.threads, sums // block, block), spec.in_dtype)
    each = (found.shares, spec.out_channels, 1, math.prod(spec.weight_shape[1:])) if shared else (1, 1, 1, 1)
    found_by = aligned(each, spec.in_dtype)
    arguments = table_of(found), elements, positions, vectors, patches, grads, parts, found_by
    return Work(all_weights, arguments, found.items, found.threads, as_2d=True)


def cost(spec: ConvSpec, threads: int) -> Cost:
    """Of arithmetic, of gathering for each part of the channels, and of copying x for each block of outputs.
    """
    found, of = cut(spec, threads), way(spec)
    parts = -(-of.spec.in_channels // spec.groups // found.channels)
    positions, gathered = spec.batch * math.prod(spec.output_size), GATHERING * of.spec.out_channels
    copied = COPYING * found.blocks * math.prod(spec.input_shape) * found.padded
    operations = positions * (_operations(of) + gathered * (parts - 1)) + copied
    speed = 8e10 * 4 / spec.in_dtype.itemsize
    return Cost(operations, spec.min_bytes, 4, speed, found.threads > 1)
