"""Tiles: Winograd's transforms and products on vectors, one cache-sized block of tiles at a time.

Input rows are transformed where they lie, vectors along the row; then blocks of pixels are transposed in
registers so that vectors hold channels, and the columns of every tile are transformed without a gather.
Transformed data are (point, tile, channel): the products read rows of it as they are, and the way back
mirrors the way in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from algos.engine.butterflies import gather_peak, peak
from algos.engine.epilogue import finish_planes
from algos.engine.jit import linked
from algos.engine.simd import I64, Emitter, address, advance, clear, constants, copy, outer_rows, transpose
from algos.engine.target import ROWS, TAILS, VECTOR_BYTES, VECTORS
from algos.engine.toom_cook import Matrix, toom_cook, whole_by

FLAGS = {"error_model": "numpy"}
R1, R2 = TAILS


class Tiles(NamedTuple):
    """How the tiles of a layer are cut into items, one each for film x run of planes x group x block of tile
    rows x block of tile columns.

    The planes of a film are those of its depth; all images of a batch of pictures are the planes of one film.
    """

    groups: int
    pictures: int  # 1 or 0
    depth: int  # of a film, 1 of pictures
    planes: int  # of results, of all pictures or of a film
    runs: int  # of planes, as many in each as in every other, or one fewer
    taps: int  # along the depth
    front: int  # planes of padding
    tiles_h: int
    tiles_w: int
    blocks: int  # of tile rows, cut like planes
    columns: int  # blocks of tile columns, the same
    top: int  # rows of padding
    left: int
    together: int  # 1 where the threads share each item:
    loads: int  # in so many parts its tiles,
    products: int  # the products
    stores: int  # and the results
    faint: int  # limits of ``kind_of``
    large: int


class Block(NamedTuple):
    """What an item is: tile rows [row, row + rows) by columns [col, col + cols) of a group's channels, of
    planes [plane, plane + planes) of the results of film n.
    """

    n: int
    group: int
    plane: int
    planes: int
    row: int
    rows: int
    col: int
    cols: int


@linked(**FLAGS)
def block_of(item, tiles):
    """The ``Block`` of an item."""
    each = tiles.blocks * tiles.columns
    outer, which, at = item // each, item % each // tiles.columns, item % tiles.columns
    run = outer // tiles.groups % tiles.runs
    plane = tiles.planes * run // tiles.runs
    row, col = tiles.tiles_h * which // tiles.blocks, tiles.tiles_w * at // tiles.columns
    return Block(outer // tiles.groups // tiles.runs, outer % tiles.groups,
                 plane, tiles.planes * (run + 1) // tiles.runs - plane,
                 row, tiles.tiles_h * (which + 1) // tiles.blocks - row,
                 col, tiles.tiles_w * (at + 1) // tiles.columns - col)  # fmt: skip


@linked(**FLAGS)
def image_and_depth(block, tiles, plane):
    """Where plane number ``plane`` of a block's results lies; operands lie ``front`` before."""
    if tiles.pictures:
        return block.plane + plane, 0
    return block.n, block.plane + plane


@intrinsic
def transform(typingctx, outputs, taps, back, source, source_step, target, target_step):
    """target[i] = sum over k of M[i, k] * source[k], vectors a step apart; M is B^T of F(outputs, taps), A^T
    where ``back`` is (), G where it is (0,).

    The sizes are the lengths of tuples and ``back`` is a tuple or None: types, so that each is compiled for
    itself.
    """
    signature = types.void(outputs, taps, back, source, types.intp, target, types.intp)

    def codegen(context, builder, sig, args):
        _, _, _, source, source_step, target, target_step = args
        at, kernel, bt = toom_cook(len(sig.args[0]), len(sig.args[1]))
        matrix = bt if sig.args[2] == types.none else kernel if len(sig.args[2]) else at
        emit = Emitter(builder, sig.args[3].dtype)
        found = [
            emit.load(emit.at(source, builder.mul(source_step, ir.Constant(I64, k))))
            for k in range(len(matrix[0]))
        ]
        halves = ir.VectorType(ir.IntType(16), 2 * emit.lanes)  # pairs are transformed half by half
        if emit.whole and matrix is bt:
            found = [builder.bitcast(value, halves) for value in found]
        for i, value in combinations(emit, matrix, found):
            value = unscaled(emit, value, *map(len, sig.args[:2])) if matrix is at else value
            value = builder.bitcast(value, emit.vector)
            emit.store(value, emit.at(target, builder.mul(target_step, ir.Constant(I64, i))))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def rows_back(typingctx, outputs, taps, source, source_step, target, target_step, count, squares):
    """``transform`` back of ``count`` elements of rows a step apart, whole vectors; adds their squares to
    ``squares``.

    The squares are summed lane by lane: overflow and NaN stay in them, and so does a result too small for its
    square to count. Of whole numbers nobody asks.
    """
    signature = types.void(outputs, taps, source, types.intp, target, types.intp, types.intp, target)

    def codegen(context, builder, sig, args):
        _, _, source, source_step, target, target_step, count, squares = args
        matrix, _, _ = toom_cook(len(sig.args[0]), len(sig.args[1]))
        emit = Emitter(builder, sig.args[2].dtype)
        total = cgutils.alloca_once_value(builder, emit.load(squares))
        with cgutils.for_range_slice(builder, I64(0), count, I64(emit.lanes), I64) as (j, _):
            rows = [emit.at(source, j, builder.mul(source_step, I64(k))) for k in range(len(matrix[0]))]
            square = emit.zero
            for i, value in combinations(emit, matrix, [emit.load(row) for row in rows]):
                value = unscaled(emit, value, *map(len, sig.args[:2]))
                square = square if emit.whole else emit.fma(value, value, square)
                emit.store(value, emit.at(target, j, builder.mul(target_step, I64(i))))
            if not emit.whole:
                builder.store(builder.fadd(builder.load(total), square), total)
        emit.store(builder.load(total), squares)
        return context.get_dummy_value()

    return signature, codegen


def unscaled(emit: Emitter, total: Any, outputs: int, taps: int) -> Any:
    """A sum of whole numbers divided, without rest, by what their weights were multiplied by."""
    if not emit.whole:
        return total
    bits = ir.Constant(emit.vector, [whole_by(outputs, taps).bit_length() - 1] * emit.lanes)
    return emit.builder.ashr(total, bits)


def combinations(emit: Emitter, matrix: Matrix, vectors: list[Any]) -> Iterator[tuple[int, Any]]:
    """The rows of ``matrix`` by number, times ``vectors``; opposite points share the sums of their even and
    odd terms. Each comes as soon as it can be stored, so that registers do.

    B^T has pairs of rows, A^T pairs of columns that differ in the sign of every other term.
    """
    columns = list(zip(*matrix, strict=True))
    factors = sorted({float(f) for row in matrix for f in row if f not in (0, 1)})
    constant = constants(emit.builder, emit.vector, [] if emit.whole else factors)
    terms: list[tuple[tuple[Fraction, ...], Any]] = list(zip(columns, vectors, strict=True))
    # A^T: replace a pair of columns by the sum and the difference of its vectors
    if len(matrix) < len(columns):
        for a, b in _opposite(columns):
            x, y = terms[a][1], terms[b][1]
            even = tuple(v if v == w else Fraction(0) for v, w in zip(columns[a], columns[b], strict=True))
            odd = tuple(v if v != w else Fraction(0) for v, w in zip(columns[a], columns[b], strict=True))
            terms[a], terms[b] = (even, emit.add(x, y)), (odd, emit.subtract(x, y))
        for i in range(len(matrix)):
            yield i, _sum(emit, constant, [(column[i], vector) for column, vector in terms])
        return
    paired = set()
    for a, b in _opposite(list(matrix)):
        both = list(zip(matrix[a], matrix[b], vectors, strict=True))
        even = _sum(emit, constant, [(v, x) for v, w, x in both if v == w])
        odd = _sum(emit, constant, [(v, x) for v, w, x in both if v != w])
        yield a, emit.add(even, odd)
        yield b, emit.subtract(even, odd)
        paired |= {a, b}
    for i, row in enumerate(matrix):
        if i not in paired:
            yield i, _sum(emit, constant, list(zip(row, vectors, strict=True)))


def _opposite(rows: list[tuple[Fraction, ...]]) -> list[tuple[int, int]]:
    """Pairs of rows with equal even terms and opposite odd terms, or the other way round in every term."""
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for a in range(len(rows)):
        for b in range(a + 1, len(rows)):
            same = [k for k, (v, w) in enumerate(zip(rows[a], rows[b], strict=True)) if v == w != 0]
            flipped = [k for k, (v, w) in enumerate(zip(rows[a], rows[b], strict=True)) if v == -w != 0]
            matched = len(same) + len(flipped) == sum(
                v != 0 or w != 0 for v, w in zip(rows[a], rows[b], strict=True)
            )
            if matched and same and flipped and not {a, b} & used:
                pairs.append((a, b))
                used |= {a, b}
    return pairs


def _sum(emit: Emitter, constant: Callable[[float], Any], terms: list[tuple[Fraction, Any]]) -> Any:
    """Sum of factor * vector; factors of one cost no multiplication."""
    terms = sorted(((f, x) for f, x in terms if f != 0), key=lambda term: abs(term[0]) != 1)
    (factor, total), rest = terms[0], terms[1:]
    if factor == -1 and any(f == 1 for f, _ in rest):
        first = next(k for k, (f, _) in enumerate(rest) if f == 1)
        (factor, total), rest[first] = rest[first], (factor, total)
    if factor != 1:
        total = emit.builder.fmul(total, constant(float(factor)))
    for factor, vector in rest:
        if abs(factor) == 1:
            total = emit.add(total, vector) if factor == 1 else emit.subtract(total, vector)
        else:
            total = emit.fma(vector, constant(float(factor)), total)
    return total


@linked(**FLAGS)
def scale(data, at, count, factor):
    """``count`` elements times ``factor``."""
    for i in range(at, at + count):
        data[i] *= factor


@linked(**FLAGS)
def load_tiles(x, block, plane, tiles, shape, down, scratch, spectra, part, parts):
    """Transform the tiles of a plane that a block reads, part ``part`` of ``parts`` of its rows for each
    vector of channels.

    x: (n, c * depth, h, w), to be multiplied by ``down``; spectra: (point, tile, channel); scratch: this
    thread's; shape: (outputs of a column, of a row, taps of a column, of a row), numbers given as tuples'
    lengths.
    """
    height, width = x.shape[2:]
    channels, tiles_w = x.shape[1] // tiles.depth // tiles.groups, block.cols
    outputs_h, outputs_w, taps_h, taps_w = shape
    m_h, m_w, c0 = len(outputs_h), len(outputs_w), block.group * channels
    t_h, t_w = m_h + len(taps_h) - 1, m_w + len(taps_w) - 1
    lanes = VECTOR_BYTES // x.itemsize
    pitch = -(-(tiles_w * m_w + t_w - m_w) // lanes) * lanes
    strip, half, line = 0, t_h * pitch, t_h * pitch * (1 + lanes)
    point, tile = spectra.shape[1] * spectra.shape[2], spectra.shape[2]
    iw0 = block.col * m_w - tiles.left
    before, first = min(max(0, -iw0), pitch), max(0, iw0)
    inside = min(max(0, width - first), pitch - before)
    n, d = image_and_depth(block, tiles, plane)
    d -= tiles.front
    every = -(-channels // lanes) * block.rows
    for number in range(every * part // parts, every * (part + 1) // parts):
        group, r = number // block.rows, number % block.rows
        ih0 = (block.row + r) * m_h - tiles.top
        for lane in range(lanes):
            c = group * lanes + lane
            for i in range(t_h):
                ih, at = ih0 + i, strip + i * pitch
                if c < channels and 0 <= ih < height and 0 <= d < tiles.depth:
                    # x[n][c0 + c][d][ih][first]
                    source = (n * x.shape[1] + (c0 + c) * tiles.depth + d) * height + ih
                    source = source * width + first
                    clear(address(scratch, at), before)
                    copy(address(scratch, at + before), address(x, source), inside)
                    clear(address(scratch, at + before + inside), pitch - before - inside)
                    if down != 1:  # looked at here: a call for each row costs 2 to 5% of all the time
                        scale(scratch, at + before, inside, down)
                else:
                    clear(address(scratch, at), pitch)
            for j in range(0, pitch, lanes):
                transform(outputs_h, taps_h, None, address(scratch, strip + j), pitch,
                          address(scratch, half + lane * pitch + j), lanes * pitch)  # fmt: skip
        for i in range(t_h):
            for j in range(0, pitch, lanes):
                transpose(address(scratch, half + i * lanes * pitch + j), pitch,
                          address(scratch, line + j * lanes), lanes)  # fmt: skip
            # spectra[i, 0][plane, r, 0][c]
            to = i * t_w * point + (plane * block.rows + r) * tiles_w * tile + group * lanes
            to = address(spectra, to)
            for k in range(tiles_w):
                transform(outputs_w, taps_w, None, address(scratch, line + k * m_w * lanes), lanes,
                          advance(to, k * tile), point)  # fmt: skip


@linked(**FLAGS)
def peak_of_rows(x, plane, step, channels, rows, cols, scratch):
    """The ``peak`` of finite elements of x in rows [first, last) by columns, where it has them, of
    ``channels`` planes, a step apart.
    """
    height, width = x.shape[2:]
    lanes = VECTOR_BYTES // x.itemsize
    (first, last), iw0 = rows, max(0, cols[0])
    count = max(0, min(width, cols[1]) - iw0)
    line = -(-count // lanes) * lanes
    clear(address(scratch, 0), lanes + line)
    for c in range(channels):
        for ih in range(max(0, first), min(height, last)):
            source = ((plane + c * step) * height + ih) * width + iw0  # x[n][c0 + c][d][ih][iw0]
            copy(address(scratch, lanes), address(x, source), count)
            gather_peak(scratch, lanes, line, 0)
    return peak(scratch, 0, lanes)


@linked(**FLAGS)
def multiply(spectra, kernels, products, taps, plane, tiles, part, parts):
    """products[p] = spectra[p] @ kernels[p], part ``part`` of ``parts`` of the points' blocks of outputs;
    kernels: (point, block, tap and channel, its outputs).

    Of ``tiles`` results each is the sum over ``taps`` of tiles that lie a ``plane`` of them apart.
    """
    blocks, channels, block = kernels.shape[1], kernels.shape[2] // taps, kernels.shape[3]
    left, right, every = spectra.shape[2], products.shape[2], spectra.shape[0] * blocks
    for number in range(every * part // parts, every * (part + 1) // parts):
        p, b, at = number // blocks, number % blocks, 0
        while at < tiles:
            rows = ROWS if tiles - at > R1 else R1 if tiles - at > R2 else R2
            target = address(products, (p * products.shape[1] + at) * right + b * block)
            for tap in range(taps):
                source = address(spectra, (p * spectra.shape[1] + at + tap * plane) * left)
                weights = address(kernels, (number * taps + tap) * channels * block)
                if rows == ROWS:
                    outer_rows(source, left, weights, None, channels, target, right, tap > 0, ROWS, VECTORS)
                elif rows == R1:
                    outer_rows(source, left, weights, None, channels, target, right, tap > 0, R1, VECTORS)
                else:
                    outer_rows(source, left, weights, None, channels, target, right, tap > 0, R2, VECTORS)
            at += rows


@linked(**FLAGS)
def store_tiles(products, y, block, plane, tiles, shape, up, again, scratch, after, part, parts):
    """Write a plane of a block's outputs, part ``part`` of ``parts`` of its rows for each vector of channels;
    y: (n, o * depth, oh, ow); the rest as ``load_tiles``.

    They are multiplied by ``up`` and then by ``again``, and then comes what is ``after``. Returns the sum of
    their squares before that.
    """
    height, width = y.shape[2:]
    depth = 1 if tiles.pictures else tiles.planes
    channels, tiles_w = y.shape[1] // depth // tiles.groups, block.cols
    outputs_h, outputs_w, taps_h, taps_w = shape
    m_h, m_w, o0 = len(outputs_h), len(outputs_w), block.group * channels
    t_h, t_w = m_h + len(taps_h) - 1, m_w + len(taps_w) - 1
    lanes = VECTOR_BYTES // y.itemsize
    pitch = -(-(tiles_w * m_w) // lanes) * lanes
    line, half, strip = 0, lanes * pitch, lanes * pitch * (1 + t_h)
    squares = strip + m_h * pitch
    ow0 = block.col * m_w
    cols = min(tiles_w * m_w, width - ow0)
    point, tile = products.shape[1] * products.shape[2], products.shape[2]
    # Columns beyond the last tile
    clear(address(scratch, line + tiles_w * m_w * lanes), (pitch - tiles_w * m_w) * lanes)
    clear(address(scratch, squares), lanes)
    n, d = image_and_depth(block, tiles, plane)
    every = -(-channels // lanes) * block.rows
    number, end = every * part // parts, every * (part + 1) // parts
    while number < end:
        group, first = number // block.rows, number % block.rows
        last = min(block.rows, first + end - number)
        number += last - first
        for r in range(first, last):
            for i in range(t_h):
                source = i * t_w * point + (plane * block.rows + r) * tiles_w * tile + group * lanes
                source = address(products, source)
                for k in range(tiles_w):
                    transform(outputs_w, taps_w, (), advance(source, k * tile), point,
                              address(scratch, line + k * m_w * lanes), lanes)  # fmt: skip
                for j in range(0, pitch, lanes):
                    transpose(
                        address(scratch, line + j * lanes),
                        lanes,
                        address(scratch, half + i * lanes * pitch + j),
                        pitch,
                    )
            oh0 = (block.row + r) * m_h
            for lane in range(min(lanes, channels - group * lanes)):
                rows_back(outputs_h, taps_h, address(scratch, half + lane * pitch), lanes * pitch,
                          address(scratch, strip), pitch, pitch, address(scratch, squares))  # fmt: skip
                for i in range(min(m_h, height - oh0)):
                    o = o0 + group * lanes + lane
                    to = (n * y.shape[1] + o * depth + d) * height + oh0 + i
                    to = to * width + ow0  # y[n][o][d][oh][ow0]
                    if up != 1 or again != 1:
                        scale(scratch, strip + i * pitch, cols, up)
                        scale(scratch, strip + i * pitch, cols, again)
                    copy(address(y, to), address(scratch, strip + i * pitch), cols)
        o, row = o0 + group * lanes, (block.row + first) * m_h
        rows = min(height, (block.row + last) * m_h) - row
        at, count = n * y.shape[1] + o * depth + d, min(lanes, channels - group * lanes)
        finish_planes(after, y, at, depth, o, count, row * width + ow0, rows, cols)
    total = scratch[squares]
    for lane in range(1, lanes):
        total += scratch[squares + lane]
    return total
