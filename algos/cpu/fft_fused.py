"""Overlap-save with everything fused: real tiles as complex ones of half the size, in vectors that never
leave the cache.

From naive to this, 1024x1024 with 31x31, float32, one thread of a Zen 3, where ``cv2.filter2D`` takes 14 ms:
``scipy.signal.fftconvolve`` 25 ms; the kernel transformed once (``fft``) 12; the same on ducc0 instead of
scipy.fft 7; then 4.2 by tiles, with L transforms side by side in vectors (8 floats in AVX2) so that nothing
is shuffled inside a transform; no digit reversal, since the product does not care for the order; a real
tile's two halves as the parts of one complex tile, which needs no untangling modulo z^n - i; and rows
forward, product and rows back in one visit of the cache. Reading and writing four vectors of a row at a time
keeps rows a power of two apart from evicting each other: reading alone became 2.9 times faster. Radix 8
instead of 4 bought nothing on 16 registers.

Cost: for each tile of R x C points, about 2.2 R C log2(R C) operations for each input and output channel and
4 R C for every pair of channels in a group; the tiles are those whose modelled time is least, from vectors to
the whole image. Workspace: the kernels' spectra (4 or 8 bytes x R C x O x C/groups), and for each thread the
spectra of the inputs of a tile. Many channels re-read many kernels: ``fft`` and ``fft_tiles`` do these as
matrix products. Accuracy: normwise, tile by tile. One NaN or infinity spoils the outputs of its tile; signals
go side by side, as many tiles of one as a vector has lanes, and those alone that hold it are spoilt. Range:
that of the type. Weights are scaled by powers of two, and so are tiles near an end of it. Forward, 1-D and
2-D, float32 and float64, every stride (outputs are subsampled), dilation, padding and number of groups.

Source: Rabiner and Gold, "Theory and application of digital signal processing", 1975, section 2.25; Frigo and
Johnson, "The design and implementation of FFTW3", Proceedings of the IEEE 93(2), 2005; Crandall and Fagin,
"Discrete weighted transforms and large-integer arithmetic", Mathematics of Computation 62, 1994 (modulo z^n -
i). Equivalent: ``scipy.signal.oaconvolve(x, w[..., ::-1, ::-1])``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.cpu._compiled import Compiled, Work
from algos.engine.fourier import Transform, fast_lengths
from algos.engine.memory import aligned
from algos.engine.overlap_save import (
    STRIPS,
    LineTiles,
    PlaneTiles,
    all_lines,
    all_planes,
    kernel_lines,
    kernel_planes,
)
from algos.engine.ranges import Scaling, limit_bits, powers_of_two
from algos.engine.simd import lanes
from algos.engine.tables import table_of
from algos.host import caches
from algos.spec import ConvSpec

# Of a complex point of a vector there and back: reading, turning, two transpositions each way, writing
POINT_S = 12e-9
STAGE_S = 1.1e-9  # of a radix-4 stage for such a point, one way
BEYOND = 0.1  # of the time, for each doubling of tile and kernel beyond a quarter of the second-level cache
# Times the time, the same for signals beyond half of it: on Zen 5 1.1 to 1.2, from 131,072 points on 1.4
STAGES_BEYOND = 1.25
HAND_OVER_S, ITEM_S = 1e-5, 4e-6  # to a thread, cold caches and all; of a tile: its ragged edges
HOPELESS = 2.0  # times the modelled time of the best tiles: not tried
LONGEST = 1 << 12  # of a side of a tile: a strip of it still fits the cache
SIGNAL = 64  # times as long are the tiles of a signal: there is one axis alone


class Side(NamedTuple):
    """One axis of the tiles: points, outputs (before the stride drops any) that a tile gives, tiles."""

    points: int
    kept: int
    tiles: int


def sides(spec: ConvSpec, axis: int, multiple: int, longest: int) -> list[Side]:
    """What to choose from: tiles of every fast length up to ``longest``, and one that is the whole image.

    The whole needs only max(padding) zeros past the image: what wraps round meets them.
    """
    extent, stride, size = spec.kernel_extent[axis], spec.stride[axis], spec.size[axis]
    before = spec.padding[axis][0]
    outputs = (spec.output_size[axis] - 1) * stride + 1
    whole = max(size + max(before, outputs - 1 + extent - before - size, 0), outputs)
    found: list[Side] = []
    for points in fast_lengths(multiple, 1 << (whole - 1).bit_length()):  # the same for like sizes
        kept = min(outputs, (points - extent + 1) // stride * stride)
        if points >= whole:
            return [*found, Side(points, outputs, 1)]
        if kept > 0 and points <= longest:
            found.append(Side(points, kept, -(-outputs // kept)))
    raise AssertionError("fast_lengths goes past the longest")


def _whole(first: Side, multiple: int) -> int:
    """Rows of complex points, the last vector of which may lack some."""
    return -(-first.points // 2 // multiple) * multiple


class Plan(NamedTuple):
    """Tiles of first x last points (last: the L of ``lines`` in 1-D), items to share, threads that share
    them.
    """

    first: Side
    last: Side
    items: int
    threads: int
    seconds: float


@lru_cache(maxsize=1024)
def plan_for(spec: ConvSpec, threads: int, longest: int) -> Plan:
    """The tiles that make the model of the run's time least."""
    firsts, lasts, items, each = _choices(spec, longest)
    alone = items * each
    # As many as ``worth`` has, of all choices at once
    used = np.clip(2 * alone / HAND_OVER_S, 1, np.minimum(threads, items)).astype(np.int64)
    shared = -(-items // used) * each + HAND_OVER_S * (used > 1)
    seconds = np.minimum(alone, shared)
    at = int(seconds.argmin())
    first, last = divmod(at, len(lasts))
    several = shared.flat[at] < alone.flat[at]
    return Plan(firsts[first], lasts[last], int(items.flat[at]), int(used.flat[at]) if several else 1,
                float(seconds.flat[at]))  # fmt: skip


@lru_cache(maxsize=64)
def _choices(spec: ConvSpec, longest: int) -> tuple[list[Side], list[Side], np.ndarray, np.ndarray]:
    """First and last sides, and for each pair of them the items and the modelled seconds of one."""
    multiple, dtype = lanes(spec.in_dtype), str(spec.in_dtype)
    inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    flat = spec.ndim == 1
    firsts = sides(spec, 0, 2 * multiple, longest * SIGNAL) if flat else sides(spec, 0, multiple, longest)
    lasts = [Side(multiple, 1, 1)] if flat else sides(spec, 1, multiple, longest)
    along = np.array([0.0 if flat else _stages(last.points, dtype) for last in lasts])
    halves = [first.points // 2 for first in firsts]
    wholes = np.array([_whole(first, multiple) for first in firsts])
    across = np.array([_stages(half, dtype) for half in halves]) * halves / wholes
    if flat:
        tiles = np.array([[-(-first.tiles // multiple)] for first in firsts])
    else:
        tiles = np.multiply.outer([first.tiles for first in firsts], [last.tiles for last in lasts])
    points = np.multiply.outer(wholes, [last.points for last in lasts]) / multiple
    moving = (inputs + outputs) * (POINT_S / 2 + STAGE_S * np.add.outer(across, along))
    moving += inputs * outputs * STAGE_S
    size, cache = multiple * 16 * spec.in_dtype.itemsize, caches()["L2"]
    beyond = np.log2(np.maximum(1, points * size / cache))
    slower = STAGES_BEYOND ** np.maximum(0, beyond - 1) if flat else 1 + BEYOND * np.minimum(5, beyond)
    return firsts, lasts, spec.batch * spec.groups * tiles, ITEM_S + points * moving * slower


@lru_cache(maxsize=1024)
def _stages(points: int, dtype: str) -> float:
    return Transform(points, dtype).cost


@dataclass(frozen=True)
class FftFused(Compiled):
    """Overlap-save in Numba; see the module.

    Attributes
    ----------
    longest : int
        Points of the longest side of a tile that is not the whole image.
    """

    name: str = "fft_fused"
    family: str = "fft"
    accuracy: str = "normwise"
    longest: int = LONGEST
    support: ClassVar[Support | None] = Support(ndim=(1, 2), epilogues=True)

    def _plan(self, spec: ConvSpec, threads: int) -> Plan:
        return plan_for(spec, threads, self.longest)

    def alternatives(self, spec: ConvSpec, threads: int = 1) -> Sequence[Algorithm]:
        found = self.variants(lambda one: one._plan(spec, threads), longest=(1 << n for n in range(5, 12)))
        limit = HOPELESS * self._plan(spec, threads).seconds
        return [other for other in found if other._plan(spec, threads).seconds < limit]

    def _spectra(self, spec: ConvSpec) -> int:
        """Spectra of tiles that a thread holds."""
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        return 1 if inputs == outputs == 1 else inputs + 1

    def _taken(self, spec: ConvSpec, plan: Plan) -> int:
        """Elements of the spectrum of a tile of ``planes``, or of L of ``lines``."""
        return 2 * _whole(plan.first, lanes(spec.in_dtype)) * plan.last.points

    def _strip(self, spec: ConvSpec, plan: Plan) -> int:
        """Elements that a thread holds of columns, or of the ends of signals."""
        width = lanes(spec.in_dtype)
        return width * (width if spec.ndim == 1 else STRIPS * 2 * _whole(plan.first, width))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        plan, pairs = self._plan(spec, threads), spec.out_channels * (spec.in_channels // spec.groups)
        points = self._taken(spec, plan)
        strip = self._strip(spec, plan)
        running = points + plan.threads * (self._spectra(spec) * points + strip)
        factors = 8 * (plan.first.points + plan.last.points) + 8 * spec.out_channels
        scaling = 5 * pairs * math.prod(spec.kernel)
        return spec.in_dtype.itemsize * (pairs * points + running + factors + scaling)

    def work(self, spec: ConvSpec, weights: np.ndarray, threads: int) -> Work:
        plan, dtype, width = self._plan(spec, threads), str(spec.in_dtype), lanes(spec.in_dtype)
        first, last, half = plan.first, plan.last, plan.first.points // 2
        spectra = aligned((plan.threads, self._spectra(spec) * self._taken(spec, plan)), dtype)
        strips = aligned((plan.threads, self._strip(spec, plan)), dtype, zeros=True)
        scaling = Scaling(weights, half * (1 if spec.ndim == 1 else last.points))
        shifts = powers_of_two(scaling.shifts, spec.in_dtype)[None]
        scales = np.concatenate([shifts, scaling.factors.swapaxes(0, 1)]).ravel()
        kernels = self._kernels(spec, plan, scaling.weights, scales, strips[0])
        turned, along = Transform(half, dtype), Transform(last.points, dtype)
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        before = [pair[0] for pair in spec.padding]
        channels, limits = (spec.groups, inputs, outputs, width), limit_bits(scaling.limits, spec.in_dtype)
        stages: tuple[Any, ...]
        tiles: LineTiles | PlaneTiles
        if spec.ndim == 1:
            kernel, stages = all_lines, (turned.arrays, turned.turns)
            bundles = -(-first.tiles // width)
            numbers = (*spec.size, *spec.output_size, half, first.kept, *spec.stride, *before, *channels,
                       bundles, *limits)  # fmt: skip
            tiles = LineTiles._make(numbers)
        else:
            kernel, stages = all_planes, (along.arrays, turned.arrays, turned.turns)
            shape = half, last.points, first.kept, last.kept, first.tiles, last.tiles
            numbers = (*spec.size, *spec.output_size, *shape, *spec.stride, *before, *channels,
                       plan.items // spec.groups, *limits)  # fmt: skip
            tiles = PlaneTiles._make(numbers)
        arguments = kernels, table_of(tiles), *stages, scales, strips, spectra
        return Work(kernel, arguments, plan.items, plan.threads)

    def _kernels(
        self, spec: ConvSpec, plan: Plan, weights: np.ndarray, scales: np.ndarray, strip: np.ndarray
    ) -> np.ndarray:
        """Spectra of every pair of channels' kernel; ``weights`` are spoilt."""
        first, last, half, dtype = plan.first, plan.last, plan.first.points // 2, str(spec.in_dtype)
        pairs, width = weights.reshape(-1, *spec.kernel), lanes(spec.in_dtype)
        kernels = aligned(len(pairs) * self._taken(spec, plan), dtype)
        turned, along = Transform(half, dtype), Transform(last.points, dtype)
        sizes = (first.points, last.points)[: spec.ndim]
        taps = [-np.arange(k) * d for k, d in zip(spec.kernel, spec.dilation, strict=True)]
        where = [tap % n for tap, n in zip(taps, sizes, strict=True)]
        signs = 1 - 2 * (taps[0] // first.points % 2)  # z^first.points is -1
        pairs *= signs.reshape(-1, *(1,) * (spec.ndim - 1)).astype(dtype)
        if spec.ndim == 1:
            kernel_lines(pairs, *where, width, half, turned.arrays, turned.turns, scales, kernels)
        else:
            tile = np.empty(sizes, dtype)
            stages = along.arrays, turned.arrays, turned.turns
            kernel_planes(pairs, *where, tile, width, *stages, scales, strip, kernels)
        return kernels

    def compile_s(self, spec: ConvSpec) -> float:
        return 2.7

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        plan = self._plan(spec, threads)
        # Tiles are chosen by best times; what is seen over many runs is about 1.7 times as much, or 0.85 of
        # signals, which are transposed once each way instead of twice. Layers read the spectra of all their
        # kernels for every tile.
        pairs, points = spec.out_channels * spec.in_channels // spec.groups, self._taken(spec, plan)
        spectra = (
            1.0 * points * pairs * spec.in_dtype.itemsize * plan.items / spec.groups
            if pairs > spec.groups
            else 0.0
        )
        inputs = spec.in_channels // spec.groups
        if inputs * points * spec.in_dtype.itemsize >= caches()["L2"] // 4:
            spectra *= 1.5  # beside the kernels' those of the inputs leave the cache, for each output again
        seconds = self._plan(spec, 1).seconds * (0.85 if spec.ndim == 1 else 1.7)
        return Cost(seconds * 2e10, spec.min_bytes + spectra, 4, 2e10, parallel=plan.threads > 1)


ALGORITHMS = [FftFused()]
