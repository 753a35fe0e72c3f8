"""Sums of ``outer_runs`` for any number of rows, and their way out, transposed: for layers, and for the
gradients of their weights.
"""

from __future__ import annotations

from algos.engine.epilogue import finish_planes
from algos.engine.jit import linked
from algos.engine.simd import address, lanes, outer_runs, put, transpose
from algos.engine.target import RUN_ROWS, RUN_VECTORS, VECTOR_BYTES
from algos.spec import ConvSpec

FLAGS = {"error_model": "numpy"}
ROWS, R1, R2 = RUN_ROWS, RUN_ROWS * 2 // 3, RUN_ROWS // 3  # pixels of a block, and of a last one
NARROW = 2  # vectors of a block where ``RUN_VECTORS`` would leave more than an eighth of all empty
PIXELS = 256  # that leave a block of sums at a time


@linked(**FLAGS)
def unpack_sums(sums, y, plane0, apart, o, count, at, pixels, after):
    """Write sums (pixel, channel) of ``count`` channels from o on to pixels [at, at + pixels) of y's planes
    plane0, plane0 + apart, ..., and do what comes ``after``, so few at a time that both find them in the
    cache.
    """
    wide = VECTOR_BYTES // sums.itemsize
    block, plane, flat = sums.shape[1], y.shape[2] * y.shape[3], y.reshape(y.size)
    first, end = 0, 0
    while end < pixels:
        first, end = end, end + PIXELS if pixels - end >= 2 * PIXELS else pixels
        for c in range(0, count, wide):
            j, to = first, (plane0 + c * apart) * plane + at
            if count - c >= wide and end - first >= wide:
                while j < end:
                    j = min(j, end - wide)  # the last block overlaps the one before
                    transpose(address(sums, j * block + c), block, address(y, to + j), apart * plane)
                    j += wide
            for i in range(min(count - c, wide)):
                for k in range(j, end):
                    put(address(flat, to + i * apart * plane + k), sums[k, c + i])
            some = min(count - c, wide)
            finish_planes(after, y, plane0 + c * apart, apart, o + c, some, at + first, 1, end - first)


@linked(**FLAGS)
def runs_block(source, outputs, pixels, starts, n_starts, singles, n_singles, w, sums, more, vectors):
    """Sums (pixel, channel) of one block of channels over the elements that
    ``outer_runs`` says, added to if ``more``.
    """
    block, at = sums.shape[1], 0
    while at < outputs:
        pixel, to = address(pixels, at), address(sums, at * block)
        if outputs - at > R1:
            outer_runs(source, pixel, starts, n_starts, singles, n_singles, w, to, more, ROWS, vectors)
            at += ROWS
        elif outputs - at > R2:
            outer_runs(source, pixel, starts, n_starts, singles, n_singles, w, to, more, R1, vectors)
            at += R1
        else:
            outer_runs(source, pixel, starts, n_starts, singles, n_singles, w, to, more, R2, vectors)
            at += R2


def block_of(spec: ConvSpec) -> int:
    """Output channels in the vectors of a block: as many vectors as hide the latency of the
    sums, fewer where most would be empty.
    """
    filters, wide = spec.out_channels // spec.groups, lanes(spec.in_dtype)
    wanted = -(-filters // (NARROW * wide)) * NARROW
    return (
        RUN_VECTORS if -(-filters // (RUN_VECTORS * wide)) * RUN_VECTORS <= wanted * 9 // 8 else NARROW
    ) * wide
