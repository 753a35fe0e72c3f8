"""Winograd's minimal filtering: a tile of m x m outputs for (m + r - 1)^2 products instead of (m r)^2.

Tiles of the input are transformed (B^T d B), multiplied with the transformed weights, one matrix product over
the channels for each of the t^2 points, and transformed back (A^T m A). All of it happens block by block of
tiles, so that transformed data stay in the cache (``algos/engine/tiles.py``). Where the weights are few,
every thread works on blocks of its own; where reading the transformed weights is most of the work, the
threads share one block and each reads its part of them once.

Cost: for 3x3 kernels 2.25 (F2), 4 (F4) or 5.06 (F6) times fewer multiplications than the definition, and two
transforms per tile and channel. Workspace: t^2 / r^2 times the weights, and blocks of transformed tiles of
``block_bytes``. Accuracy: winograd: rounding is amplified by the transforms, little by F2, most by F6. One
NaN or infinity spoils the whole tiles around it: up to 16 (F2), 36 (F4) or 64 (F6) outputs instead of 9.
Range: that of the type. Weights and images near an end of it are scaled by powers of two, where they are read
and written. Whole numbers in pairs (``algos/lower/pairs.py``): F2 alone, exactly, since its A^T and B^T add
and subtract, and G is whole when doubled. Forward, 2-D and 3-D, stride 1, dilation 1, kernels of up to 9 - m
taps in height and width, float32 and float64, every padding and number of groups (with few channels in a
group the transforms cost more than they save). Along an axis with one tap there is nothing to save: tiles
have one output there, and kernels of 1xr, r x 1 and of signals take m r / (m + r - 1) times fewer
multiplications.

Films (3-D) are computed plane by plane, in tiles of height and width: a block holds the transformed tiles of
all planes that a run of its results reads, each transformed once, and products are summed over the taps along
the depth. Of pictures a block holds several where they are small beside their weights.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308.
Equivalent: ``torch.nn.functional.conv2d`` with stride 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from algos.contract import PLAIN_TYPES, PREPARE_S, Algorithm, Cost, Support
from algos.cpu._compiled import Compiled, Work
from algos.dtypes import PAIRS
from algos.engine.epilogue import After, after_of
from algos.engine.jit import compiled, linked
from algos.engine.memory import LINE, aligned
from algos.engine.ranges import ORDINARY, kind_of
from algos.engine.relay import CHUNKS, HELPERS, ITEMS, fork, helpers
from algos.engine.simd import address, element, lanes
from algos.engine.tables import named, table_of
from algos.engine.target import ROWS, VECTOR_BYTES, VECTORS
from algos.engine.threads import HAND_OVER_S, SHARES, TELL_S, busiest, worth
from algos.engine.tiles import (
    Tiles,
    block_of,
    image_and_depth,
    load_tiles,
    multiply,
    peak_of_rows,
    store_tiles,
    transform,
)
from algos.engine.toom_cook import Tiled, whole_by
from algos.spec import ConvSpec

FLAGS = {"error_model": "numpy"}
SHARED_FLOPS = 4e6
LONG = 4  # times a block: rows of tiles of so many bytes are cut
LARGER = 4  # times: blocks of large weights, which are read for each, and of each thread that shares one
FEW_TILES = 4  # take as long as reading their weights
TRANSFORMED = 15  # multiply-adds of the products: what transforming an element takes
MORE_RUNS = 4  # of planes than need be, so that threads have equal shares
PHASES, MULTIPLIED_PER_S = 3, 5e10  # of a block that threads share; multiply-adds of one thread
SHARED_COST = 1.08  # of a tile: what threads share is in no thread's own cache
TAP_S, POINT_S = 1.7e-9, 6e-10  # of a kernel's taps and its transform, one thread, measured


class Memory(NamedTuple):
    """What threads work in; spectra and products of each thread, or of all together."""

    spectra: np.ndarray
    products: np.ndarray
    scratch: np.ndarray  # of each thread
    kinds: np.ndarray  # of each picture of a block, or of all planes of a film's
    sums: np.ndarray  # of squares, by part of what is stored


class Phase(NamedTuple):
    """What is done at a time: 0 is all of every item; 1, 2 and 3 are loading, products and storing of one,
    ``after`` which comes what follows, in ``parts`` of the products and of each plane that is loaded or
    stored.
    """

    number: int
    item: int
    parts: int
    after: After


@linked(**FLAGS)
def do_phase(x, y, kernels, tiles, shape, faint, scales, memory, phase, slot, chunk, _):
    """All of item number ``chunk``, or part ``chunk`` of one phase of an item whose kinds are known.

    kernels: (group, point, block of outputs, tap along the depth and channel, its outputs); scales, faint: as
    ``winograd_tiles`` has them.
    """
    item, own, part, parts, plane = phase.item, 0, chunk, phase.parts, -1
    if phase.number == 0:
        item, own, part = chunk, slot, 0
    elif phase.number != 2:
        plane, part = chunk // parts, chunk % parts
    block, again = block_of(item, tiles), True
    spectra, products, kinds = memory.spectra[own], memory.products[own], memory.kinds[own]
    scratch, each = memory.scratch[slot], block.rows * block.cols
    if phase.number == 0:
        kinds[:] = ORDINARY
    while again:
        if phase.number <= 1:
            for i in range(max(0, plane), block.planes + tiles.taps - 1 if plane < 0 else plane + 1):
                down = scales[kinds[i * tiles.pictures], 0]
                load_tiles(x, block, i, tiles, shape, down, scratch, spectra, part, parts)
        if phase.number == 0 or phase.number == 2:
            count = block.planes * each
            multiply(spectra, kernels[block.group], products, tiles.taps, each, count, part, parts)
        again, squares = False, scales[0, 0] * 0
        if phase.number == 0 or phase.number == 3:
            for i in range(max(0, plane), block.planes if plane < 0 else plane + 1):
                up, more = scales[kinds[i * tiles.pictures], 1], scales[kinds[i * tiles.pictures], 2]
                squares += store_tiles(
                    products, y, block, i, tiles, shape, up, more, scratch, phase.after, part, parts
                )
                if faint is not None:  # noqa: SIM102 - Numba leaves code out by such a test alone
                    if plane < 0 and (tiles.pictures or i == block.planes - 1):
                        again |= is_other(x, block, i, tiles, shape, faint, squares, kinds, scratch)
                        squares *= 0
        if phase.number == 3:
            memory.sums[chunk] = squares


@linked(**FLAGS)
def is_other(x, block, plane, tiles, shape, faint, squares, kinds, scratch):
    """Whether a picture of a block, or all its planes, turn out to be of another kind, and are to be computed
    once more; what was read is looked at only where the squares of its results leave that open.
    """
    at = plane * tiles.pictures
    if kinds[at] != ORDINARY or faint < squares < np.inf:
        return False
    first, last = (plane, plane + 1) if tiles.pictures else (0, block.planes + tiles.taps - 1)
    m_h, m_w, most = len(shape[0]), len(shape[1]), 0
    ih0, iw0 = block.row * m_h - tiles.top, block.col * m_w - tiles.left
    rows, cols = ih0 + block.rows * m_h + len(shape[2]) - 1, iw0 + block.cols * m_w + len(shape[3]) - 1
    channels = x.shape[1] // tiles.depth // tiles.groups
    for i in range(first, last):
        n, d = image_and_depth(block, tiles, i)
        d -= tiles.front
        if 0 <= d < tiles.depth:
            source = n * x.shape[1] + block.group * channels * tiles.depth + d
            peak = peak_of_rows(x, source, tiles.depth, channels, (ih0, rows), (iw0, cols), scratch)
            most = max(most, peak)
    kinds[at] = kind_of(most, (tiles.faint, tiles.large))
    return kinds[at] != ORDINARY


@compiled(**FLAGS)
def winograd_tiles(x, y, kernels, table, shape, faint, scales, spectra, products, scratch, kinds, sums, job):
    """Every item, each by one thread, or each phase of one item after the other by all threads together.

    Operands are taken for ORDINARY, and an item whose results tell otherwise is computed once more: results
    whose squares overflow or sum to ``faint`` at most. scales: for items of each kind the factor of what is
    read, and two of results; faint: None for whole numbers, of which all are; table: of ``Tiles``; shape: as
    ``load_tiles`` has it.
    """
    tiles, memory = named(Tiles, table), Memory(spectra, products, scratch, kinds, sums)
    items = tiles.runs * tiles.groups * tiles.blocks * tiles.columns
    items *= 1 if tiles.pictures else x.shape[0]
    run, kinds[0] = 0, ORDINARY
    while run < (3 * items if tiles.together else 1):
        number, item = 1 + run % 3 if tiles.together else 0, run // 3
        block = block_of(item, tiles)
        parts = (1, tiles.loads, tiles.products, tiles.stores)[number]
        planes = (items, block.planes + tiles.taps - 1, 1, block.planes)[number]
        job[CHUNKS] = job[ITEMS] = planes * parts
        phase = Phase(number, item, parts, after_of(job))
        fork(do_phase, (x, y, kernels, tiles, shape, faint, scales, memory, phase), job)
        run += 1
        if number == 3:
            again = False
            if faint is not None:
                each = tiles.stores if tiles.pictures else tiles.stores * block.planes
                for i in range(planes if tiles.pictures else 1):
                    squares = sums[i * each : (i + 1) * each].sum()
                    again |= is_other(x, block, i, tiles, shape, faint, squares, kinds[0], scratch[0])
            if again:
                run -= 3
            else:
                kinds[0] = ORDINARY


class Weights(NamedTuple):
    """Where the elements of a layer's weights lie, in bytes, and how many there are."""

    outputs: int  # of a group
    channels: int
    place: int
    group: int
    output: int
    channel: int
    depth: int
    row: int
    column: int


@linked(**FLAGS)
def transform_kernels(table, kernels, shape, factor, whole, scratch, slot, first, last):
    """Items [first, last): group x block of outputs x tap along the depth and channel; kernels: as
    ``do_phase`` has them, a block's missing outputs zeros.

    Taps are multiplied by ``factor`` and transformed in double precision; ``whole``: None, or True for pairs.
    The last elements of scratch hold the largest magnitude of taps, lane by lane; NaN is the largest of all.
    """
    at, (outputs_h, outputs_w, taps_h, taps_w) = named(Weights, table), shape
    blocks, channels, block = kernels.shape[2], kernels.shape[3], kernels.shape[4]
    rows, cols, lanes = len(taps_h), len(taps_w), VECTOR_BYTES // 8
    t_h, t_w = len(outputs_h) + rows - 1, len(outputs_w) + cols - 1
    # Where they begin in scratch
    taps, half, done = 0, rows * cols * block, (rows + t_h) * cols * block
    own, peaks = scratch[slot], done + t_h * t_w * block
    for item in range(first, last):
        c, b, group = item % channels, item // channels % blocks, item // channels // blocks
        count = min(block, at.outputs - b * block)
        for number in range(1 if whole is None else 2):
            for lane in range(block):
                source = at.place + group * at.group + (b * block + lane) * at.output
                source += c // at.channels * at.depth + c % at.channels * at.channel
                for kh in range(rows):
                    for kw in range(cols):
                        value = 0.0
                        if lane < count:
                            tap = element(kernels, source + kh * at.row + kw * at.column)
                            if whole is None:
                                value = tap * factor
                            else:
                                value = (tap >> 16 if number else np.int16(tap)) * factor
                        own[taps + (kh * cols + kw) * block + lane] = value
            for tap in range(rows * cols):
                for lane in range(block):
                    size, known = abs(own[taps + tap * block + lane]), own[peaks + lane]
                    own[peaks + lane] = known if size <= known or known != known else size
            for lane in range(0, block, lanes):
                for kw in range(cols):
                    transform(outputs_h, taps_h, (0,), address(own, taps + kw * block + lane), cols * block,
                              address(own, half + kw * block + lane), cols * block)  # fmt: skip
                for i in range(t_h):
                    transform(outputs_w, taps_w, (0,), address(own, half + i * cols * block + lane), block,
                              address(own, done + i * t_w * block + lane), block)  # fmt: skip
            for p in range(t_h * t_w):
                for lane in range(block):
                    value = own[done + p * block + lane]
                    if whole is None:
                        kernels[group, p, b, c, lane] = value
                    elif number:
                        kernels[group, p, b, c, lane] |= np.int32(value) << 16
                    else:
                        kernels[group, p, b, c, lane] = np.int32(value) & 0xFFFF


@compiled(**FLAGS)
def all_kernels(table, kernels, shape, factor, whole, scratch, job):
    """Every item of ``transform_kernels``, shared with the helpers; ``table``: of ``Weights``."""
    fork(transform_kernels, (table, kernels, shape, factor, whole, scratch), job)


class Tiling(NamedTuple):
    """How the tiles of a spec are cut into blocks."""

    all_planes: int  # of results: all pictures, or those of a film
    tiles_h: int
    tiles_w: int
    runs: int  # of planes
    blocks: int  # of tile rows
    columns: int  # blocks of tile columns
    together: bool  # the threads share each block:
    parts: tuple[int, int, int]  # in so many each plane of its tiles, the products and each plane of results
    threads: int

    @property
    def planes(self) -> int:
        """Of the results of a block, at most."""
        return -(-self.all_planes // self.runs)

    @property
    def rows(self) -> int:
        """Tile rows of a block, at most."""
        return -(-self.tiles_h // self.blocks)

    @property
    def cols(self) -> int:
        """Tile columns of a block, at most."""
        return -(-self.tiles_w // self.columns)


def parts_of(first: int, second: int, threads: int) -> int:
    """Parts into which threads cut ``first`` times ``second`` pieces of work: each of the first is one, or
    several of equal size, the fewest that end together.
    """
    cuts = range(1, min(second, -(-SHARES * threads // first)) + 1)
    return first * min(cuts, key=lambda cut: -(-first * cut // threads) * -(-second // cut))


def _depth(spec: ConvSpec) -> tuple[int, int, int]:
    """Planes of results, taps along them, and films; all pictures are one film, of which none reads another.
    """
    return (spec.batch, 1, 1) if spec.ndim == 2 else (spec.output_size[0], spec.kernel[0], spec.batch)


@dataclass(frozen=True)
class Winograd(Tiled, Compiled):
    """F(m x m, r x r) on blocks of tiles; see the module.

    Attributes
    ----------
    m : int
        Outputs of a tile along each axis.
    block_bytes : int
        Transformed input and products of one thread's block.
    shared_bytes : int
        With more transformed weights than this blocks are larger, and the threads share them.
    """

    name: str = "winograd_f2"
    family: str = "winograd"
    accuracy: str = "winograd"
    m: int = 2
    block_bytes: int = 1 << 20
    shared_bytes: int = 4 << 20
    support: ClassVar[Support | None] = Support((2, 3), dtypes=(*PLAIN_TYPES, PAIRS), epilogues=True,
                                              strided_weights=True)  # fmt: skip

    def _tile(self, spec: ConvSpec) -> tuple[int, int]:
        (m_h, m_w), (r_h, r_w) = self.outputs(spec)[-2:], spec.kernel[-2:]
        return m_h + r_h - 1, m_w + r_w - 1

    @lru_cache(maxsize=1024)  # noqa: B019 - few instances, which live as long as the process
    def _tiling(self, spec: ConvSpec, threads: int) -> Tiling:
        *_, tiles_h, tiles_w = (-(-n // m) for n, m in zip(spec.output_size, self.outputs(spec), strict=True))
        planes, taps, films = _depth(spec)
        threads = worth(threads, spec.flops, SHARED_FLOPS)
        unit, points, wide = spec.in_dtype.itemsize, math.prod(self._tile(spec)), lanes(spec.in_dtype)
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups

        def row(count: int) -> int:
            """Bytes of a row of tiles of so many planes of results."""
            return points * cols * (inputs * (count + taps - 1) + outputs * count) * unit

        works, columns, cols = films * planes * spec.groups, 1, tiles_w
        if row(1) >= LONG * self.block_bytes:
            columns = -(-row(1) // self.block_bytes)
        if tiles_h == 1 and spec.kernel[-2] == 1:  # a signal
            columns = max(columns, SHARES * threads // works if threads > 1 else 1)
        columns = min(columns, tiles_w)
        works, cols = works // planes * columns, -(-tiles_w // columns)

        def fewest(room: int, runs: int) -> int:
            """Blocks of rows that fit."""
            return -(-tiles_h // max(1, min(tiles_h, room // row(-(-planes // runs)))))

        def fewest_runs(room: int) -> int:
            """Runs of planes that fit: of whole ones, or of rows where planes share their transforms."""
            rows = tiles_h if taps == 1 else 1
            most = (room // rows - row(0)) // (row(1) - row(0))
            return -(-planes // max(1, min(planes, most)))

        def lasting(each: int) -> float:
            """How many times as long a tile takes, for planes beside the ``each`` of a block."""
            return 1 + TRANSFORMED / (taps * outputs) * (taps - 1) / each

        def load(cut: tuple[int, int]) -> float:
            """Of the thread that has most, in tiles: rows of planes, and reading the weights once for each
            block.
            """
            runs, blocks = cut
            each = -(-planes // runs)
            most = -(-works * runs * blocks // threads)
            rows = busiest(works * runs, tiles_h, blocks, threads)
            return rows * cols * each * lasting(each) + most * FEW_TILES

        large = points * taps * inputs * outputs * unit > self.shared_bytes
        room = self.block_bytes * (LARGER if large else 1)
        least = fewest_runs(room)
        own = min(
            ((runs, blocks)
             for runs in {*range(least, min(planes, least + MORE_RUNS) + 1), planes}
             for first in [fewest(room, runs)]
             for blocks in range(first, min(tiles_h, first + SHARES * threads) + 1)), key=load)  # fmt: skip
        # What small weights would gain, blocks of several planes lose outside of a thread's own cache
        runs = fewest_runs(self.block_bytes * LARGER * threads) if large else planes
        some = worth(threads, spec.flops / (works * runs), PHASES * SHARED_FLOPS)
        room = self.block_bytes * LARGER * some
        runs = fewest_runs(room) if large else planes
        shared, pieces = fewest(room, runs), points * -(-outputs // (VECTORS * wide))
        each, items = -(-planes // runs), works * runs * shared
        tiles = works * planes * tiles_h * cols * lasting(each) + items * FEW_TILES
        tiles *= -(-pieces // some) / pieces
        tile_s = points * taps * inputs * outputs / MULTIPLIED_PER_S
        waiting = PHASES * items * (HAND_OVER_S + TELL_S * some) / tile_s
        if some > 1 and (large or SHARED_COST * tiles + waiting < load(own)):
            rows, loaded = tiles_h // shared, each + taps - 1
            parts = (parts_of(loaded * -(-inputs // wide), rows, some) // loaded,
                     parts_of(points, pieces // points, some),
                     parts_of(each * -(-outputs // wide), rows, some) // each)  # fmt: skip
            return Tiling(planes, tiles_h, tiles_w, runs, shared, columns, True, parts, some)
        threads = min(threads, works * math.prod(own))
        return Tiling(planes, tiles_h, tiles_w, *own, columns, False, (1, 1, 1), threads)

    def alternatives(self, spec: ConvSpec, threads: int = 1) -> Sequence[Algorithm]:
        return self.variants(lambda one: one._tiling(spec, threads),
                             block_bytes=(1 << n for n in range(19, 23)),
                             shared_bytes=(0, self.shared_bytes, 1 << 40))  # fmt: skip

    def _shapes(self, spec: ConvSpec, tiling: Tiling) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Shapes of spectra and products of a block, and the elements of a thread's scratch."""
        wide, points = lanes(spec.in_dtype), math.prod(self._tile(spec))
        block = VECTORS * wide
        inputs = -(-spec.in_channels // spec.groups // wide) * wide
        outputs = -(-spec.out_channels // spec.groups // block) * block
        tiles, (_, taps, _) = tiling.rows * tiling.cols, _depth(spec)
        (t_h, t_w), m_w = self._tile(spec), self.outputs(spec)[-1]
        pitch = -(-(tiling.cols * m_w + t_w - m_w) // wide) * wide
        # A power of two between tiles or points would map all of them to the same few sets of the first-level
        # cache.
        line = LINE // spec.in_dtype.itemsize
        return (
            (points, tiles * (tiling.planes + taps - 1) + ROWS, inputs + line),
            (points, tiles * tiling.planes + ROWS, outputs + line),
            pitch * (t_h + wide + t_h * wide) + wide,
        )

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        tiling = self._tiling(spec, threads)
        spectra, products, scratch = self._shapes(spec, tiling)
        inputs = spec.in_channels // spec.groups
        weights = spectra[0] * inputs * _depth(spec)[1] * products[2] * spec.groups
        building = 8 * tiling.threads * self._building(spec)
        copies = 1 if tiling.together else tiling.threads
        running = copies * (math.prod(spectra) + math.prod(products)) + tiling.threads * scratch
        unit = spec.in_dtype.itemsize
        return weights * unit + max(running * unit, building)

    def _building(self, spec: ConvSpec) -> int:
        """Elements in double precision that a thread holds: of a block taps, half and wholly transformed, and
        the largest of each output.
        """
        (t_h, t_w), (rows, cols) = self._tile(spec), spec.kernel[-2:]
        return (rows * cols + t_h * cols + t_h * t_w + 1) * VECTORS * lanes(spec.in_dtype)

    def _kernels(self, spec: ConvSpec, weights: np.ndarray, threads: int) -> tuple[np.ndarray, Any]:
        """(group, point, block of outputs, tap along the depth and channel, outputs of a block), the last
        block filled with zeros; their ``scaling``.
        """
        groups = spec.groups
        outputs, inputs = spec.out_channels // groups, spec.in_channels // groups
        block, pairs = VECTORS * lanes(spec.in_dtype), spec.dtype == PAIRS
        elements = _depth(spec)[1] * inputs
        kernels = aligned((groups, math.prod(self._tile(spec)), -(-outputs // block), elements, block),
                          spec.in_dtype)  # fmt: skip
        output, channel, *steps = weights.strides
        steps = steps if spec.ndim == 3 else [0, *steps]
        place = weights.ctypes.data
        table = table_of(Weights(outputs, inputs, place, output * outputs, output, channel, *steps))
        shape = self._shape(spec)
        items = groups * kernels.shape[2] * elements
        crew = helpers()
        job = crew.job(items, threads)
        crew.wake(int(job[HELPERS]))
        scratch = aligned((threads, self._building(spec)), np.float64, zeros=True)
        if pairs:
            factor = float(math.prod(map(whole_by, self.outputs(spec)[-2:], spec.kernel[-2:])))
            all_kernels(table, kernels, shape, factor, True, scratch, job)
            return kernels, (0, None, (0, 0), np.ones((3, 3), np.int32))
        all_kernels(table, kernels, shape, 1.0, None, scratch, job)
        scaling = self.scaling(spec, float(scratch[:, -block:].max()))
        if taken := scaling[0]:  # weights near an end of the type's range, once more
            all_kernels(table, kernels, shape, math.ldexp(1.0, -taken), None, scratch, job)
        return kernels, scaling

    def work(self, spec: ConvSpec, weights: np.ndarray, threads: int) -> Work:
        tiling = self._tiling(spec, threads)
        planes, tiles_h, tiles_w, runs, blocks, columns, together, parts, threads = tiling
        kernels, (_, faint, limits, scales) = self._kernels(spec, weights, threads)
        spectra_shape, products_shape, length = self._shapes(spec, tiling)
        copies = 1 if together else threads
        spectra = aligned((copies, *spectra_shape), spec.in_dtype, zeros=True)
        products = aligned((copies, *products_shape), spec.in_dtype)
        scratch = aligned((threads, length), spec.in_dtype)
        *front, top, left = (first for first, _ in spec.padding)
        _, taps, films = _depth(spec)
        pictures = spec.ndim == 2
        sums = np.empty(tiling.planes * parts[2], spec.in_dtype)
        kinds = np.zeros((copies, tiling.planes if pictures else 1), np.int64)
        depth = math.prod(spec.size[:-2]), planes, runs, taps, sum(front)
        area = tiles_h, tiles_w, blocks, columns, top, left
        table = table_of(Tiles(spec.groups, pictures, *depth, *area, together, *parts, *limits))
        fixed = kernels, table, self._shape(spec), faint, scales, spectra, products, scratch, kinds, sums
        items = films * spec.groups * runs * blocks * columns
        return Work(winograd_tiles, fixed, items, threads, as_2d=True)

    def _shape(self, spec: ConvSpec) -> tuple[tuple[int, ...], ...]:
        """Outputs and taps of a tile, as ``load_tiles`` has them."""
        return tuple((0,) * n for n in (*self.outputs(spec)[-2:], *spec.kernel[-2:]))

    def prepare_s(self, spec: ConvSpec, threads: int = 1) -> float:
        """Of the weights' transforms: of their taps and of the points."""
        kernels = spec.in_channels // spec.groups * spec.out_channels
        each = math.prod(spec.kernel[-2:]) * TAP_S + math.prod(self._tile(spec)) * POINT_S
        return PREPARE_S + _depth(spec)[1] * kernels * each / threads

    def compile_s(self, spec: ConvSpec) -> float:
        return 2.5

    def specialised(self, spec: ConvSpec) -> tuple[Any, ...]:
        return spec.dtype, self.m, *spec.kernel[-2:]

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        t_h, t_w = self._tile(spec)
        tiling = self._tiling(spec, threads)
        planes, taps, films = _depth(spec)
        tiles, more = films * planes * tiling.tiles_h * tiling.tiles_w, 1 + (taps - 1) / tiling.planes
        inputs, wide = spec.in_channels // spec.groups, lanes(spec.in_dtype)
        outputs = -(-spec.out_channels // spec.groups // (VECTORS * wide)) * VECTORS * wide * spec.groups
        # Reading its weights takes each thread as long as a few tiles do
        products = 2.0 * t_h * t_w * (tiles + FEW_TILES * tiling.threads) * taps * inputs * outputs
        moved = -(-inputs // wide) * wide * spec.groups * more + outputs
        transforms = 2.0 * TRANSFORMED * t_h * t_w * tiles * moved
        if spec.kernel[-1] == 1:  # rows of few pixels fill no vector
            transforms *= -(-tiling.tiles_w // wide) * wide / tiling.tiles_w
        weights = t_h * t_w * taps * inputs * outputs * spec.in_dtype.itemsize
        speed = 1.3e11 * 4 / spec.in_dtype.itemsize
        return Cost(products + transforms, spec.min_bytes + weights, 20, speed, tiling.threads > 1)


ALGORITHMS = [Winograd(), Winograd("winograd_f4", m=4), Winograd("winograd_f6", m=6)]
