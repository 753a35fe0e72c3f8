"""Overlap-save with everything fused: pairs of real tiles as complex ones, transformed in vectors that never leave the cache.

From naive to this, 1024x1024 with 31x31, float32, one thread of a Zen 3, where ``cv2.filter2D`` takes 14 ms:
``scipy.signal.fftconvolve`` 25 ms; the kernel transformed once (``fft``) 12; the same on ducc0 instead of scipy.fft 7; then
4.2 by tiles, with L transforms side by side in vectors (8 floats in AVX2) so that nothing is shuffled inside a transform; no
digit reversal, since the product does not care for the order; two real tiles as one complex tile, which needs no
untangling because the kernel is real; and rows forward, product and rows back in one visit of the cache. Reading and writing
four vectors of a row at a time keeps rows a power of two apart from evicting each other: reading alone became 2.9 times faster.
Radix 8 instead of 4 bought nothing on 16 registers.

Cost: for each pair of tiles of R x C points, about 4.25 R C log2(R C) operations for each input and output channel and 8 R C
for every pair of channels in a group; the tiles are those whose modelled time is least, from vectors to the whole image.
Workspace: the kernels' spectra (8 or 16 bytes x R C x O x C/groups), and for each thread the spectra of the inputs of a pair
of tiles. Many channels re-read many kernels: ``fft`` and ``fft_tiles`` do these as matrix products.
Accuracy: normwise. One NaN or infinity spoils the outputs of its tile and of that tile's partner.
Forward, 1-D and 2-D, float32 and float64, every stride (outputs are subsampled), dilation, padding and number of groups.

Source: Rabiner and Gold, "Theory and application of digital signal processing", 1975, section 2.25; Frigo and Johnson, "The
design and implementation of FFTW3", Proceedings of the IEEE 93(2), 2005.
Equivalent: ``scipy.signal.oaconvolve(x, w[..., ::-1, ::-1])``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from algos.contract import Algorithm, Cost, forward_float
from algos.engine.fourier import Transform, fast_lengths
from algos.engine.jit import compile_for
from algos.engine.memory import aligned, results_of
from algos.engine.overlap_save import STRIPS, all_lines, all_planes, kernel_lines, kernel_planes
from algos.engine.relay import helpers, new_job
from algos.engine.simd import lanes
from algos.host import caches
from algos.spec import ConvSpec

POINT_S = 11e-9  # of a complex point of a vector there and back: reading, two transpositions each way, writing
STAGE_S = 1.1e-9  # of a radix-4 stage for such a point, one way
BEYOND = 0.1  # of the time, for each doubling of tile and kernel beyond a quarter of the second-level cache
HAND_OVER_S, ITEM_S = 1e-5, 4e-6  # to a thread, cold caches and all; of a pair of tiles: its ragged edges
HOPELESS = 2.0  # times the modelled time of the best tiles: not tried
LONGEST = 1 << 12  # of a side of a tile: a strip of it still fits the cache


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
    for points in fast_lengths(multiple, whole):
        kept = min(outputs, (points - extent + 1) // stride * stride)
        if points >= whole:
            return [*found, Side(points, outputs, 1)]
        if kept > 0 and points <= longest:
            found.append(Side(points, kept, -(-outputs // kept)))
    raise AssertionError("fast_lengths goes past the longest")


class Plan(NamedTuple):
    """Tiles of rows x cols, how many run at a time (``items``), and the threads that share them."""

    rows: Side
    cols: Side
    items: int
    threads: int
    seconds: float


@lru_cache(maxsize=1024)
def plan_for(spec: ConvSpec, threads: int, longest: int) -> Plan:
    """The tiles that make the model of the run's time least."""
    multiple, dtype = lanes(spec.in_dtype), str(spec.in_dtype)
    inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    flat = spec.ndim == 1
    rows = [Side(multiple, 1, 1)] if flat else sides(spec, 0, multiple, longest)
    stages_down = [0.0 if flat else Transform(row.points, dtype).cost for row in rows]
    best: Plan | None = None
    for col in sides(spec, spec.ndim - 1, multiple, longest):
        along = Transform(col.points, dtype).cost
        for row, down in zip(rows, stages_down, strict=True):
            tiles = row.tiles * col.tiles
            count = spec.batch * -(-tiles // (2 * multiple)) if flat else -(-spec.batch * tiles // 2)
            items = count * spec.groups
            stages = along + down
            points = row.points * col.points / multiple
            moving = (inputs + outputs) * (POINT_S / 2 + STAGE_S * stages) + inputs * outputs * STAGE_S
            beyond = math.log2(max(1, points * multiple * 16 * spec.in_dtype.itemsize / caches()["L2"]))
            each = ITEM_S + points * moving * (1 + BEYOND * min(5, beyond))
            for used in {1, min(threads, items)}:
                seconds = -(-items // used) * each + (HAND_OVER_S if used > 1 else 0)
                if best is None or seconds < best.seconds:
                    best = Plan(row, col, items, used, seconds)
    assert best is not None
    return best


@dataclass(frozen=True)
class FftFused(Algorithm):
    """Overlap-save in Numba; see the module.

    Attributes
    ----------
    longest : int
        Points of the longest side of a tile that is not the whole image.
    """

    name: str = "fft_fused"
    family: str = "fft"
    runtime: str = "numba"
    accuracy: str = "normwise"
    longest: int = LONGEST

    def unsupported(self, spec: ConvSpec) -> str | None:
        return forward_float(spec, ndim=(1, 2))

    def _plan(self, spec: ConvSpec, threads: int) -> Plan:
        return plan_for(spec, threads, self.longest)

    def alternatives(self, spec: ConvSpec, threads: int = 1) -> Sequence[Algorithm]:
        found = self.variants(lambda one: one._plan(spec, threads), longest=(1 << n for n in range(5, 12)))
        limit = HOPELESS * self._plan(spec, threads).seconds
        return [other for other in found if other._plan(spec, threads).seconds < limit]

    def _spectra(self, spec: ConvSpec) -> int:
        """Spectra of pairs of tiles that a thread holds."""
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        return 1 if inputs == outputs == 1 else inputs + 1

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        plan = self._plan(spec, threads)
        points = plan.rows.points * plan.cols.points
        strip = 0 if spec.ndim == 1 else STRIPS * plan.rows.points * lanes(spec.in_dtype) * 2
        held = spec.out_channels * (spec.in_channels // spec.groups) * points * 2
        factors = 8 * (plan.rows.points + plan.cols.points)
        return spec.in_dtype.itemsize * (held + plan.threads * (self._spectra(spec) * points * 2 + strip) + points + factors)

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        flat = spec.ndim == 1
        plan, dtype, width = self._plan(spec, threads), str(spec.in_dtype), lanes(spec.in_dtype)
        rows, cols = plan.rows, plan.cols
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        taken = 2 * rows.points * cols.points
        along, down = Transform(cols.points, dtype), Transform(rows.points, dtype)
        spectra = aligned((plan.threads, self._spectra(spec) * taken), dtype)
        strips = aligned((plan.threads, 0 if flat else STRIPS * 2 * width * rows.points), dtype)
        kernels = aligned(spec.out_channels * inputs * taken, dtype)
        sizes = (cols.points,) if flat else (rows.points, cols.points)
        where = [-np.arange(k) * d % n for k, d, n in zip(spec.kernel, spec.dilation, sizes, strict=True)]
        pairs = weights.reshape(-1, *spec.kernel)
        if flat:
            kernel_lines(pairs, *where, width, cols.points, along.stages, along.factors, kernels)
        else:
            kernel_planes(pairs, *where, np.empty(sizes, dtype), width, along.stages, along.factors, down.stages, down.factors,
                          strips[0], kernels)  # fmt: skip
        channels = (spec.groups, inputs, outputs, width)
        crew, job = helpers(), new_job(plan.items, plan.threads)
        hands = crew.hire(plan.threads - 1)
        work: Any
        fixed: tuple[Any, ...]
        if flat:
            table = (*spec.size, *spec.output_size, cols.points, cols.kept, *spec.stride, spec.padding[0][0], *channels,
                     -(-cols.tiles // (2 * width)))  # fmt: skip
            work, fixed = all_lines, (table, along.stages, along.factors, spectra)
        else:
            table = (*spec.size, *spec.output_size, rows.points, cols.points, rows.kept, cols.kept, rows.tiles, cols.tiles,
                     *spec.stride, spec.padding[0][0], spec.padding[1][0], spec.batch, *channels,
                     plan.items // spec.groups)  # fmt: skip
            work, fixed = all_planes, (table, along.stages, along.factors, down.stages, down.factors, strips, spectra)
        fixed = (*fixed, plan.items, job, crew.boxes, hands)
        compile_for(work, kernels, kernels, kernels, *fixed)
        new_result = results_of(spec)

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = new_result() if out is None else out
            crew.wake(hands)
            work(x.reshape(-1), y.reshape(-1), kernels, *fixed)
            return y

        return run

    def compile_s(self, spec: ConvSpec) -> float:
        return 2.7

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        plan = self._plan(spec, threads)
        # Tiles are chosen by best times; what is seen over many runs is about 1.7 times as much. Layers read the spectra of
        # all their kernels for every pair of tiles.
        pairs, points = spec.out_channels * spec.in_channels // spec.groups, plan.rows.points * plan.cols.points
        spectra = 2.0 * points * pairs * spec.in_dtype.itemsize * plan.items / spec.groups if pairs > spec.groups else 0.0
        seconds = self._plan(spec, 1).seconds * 1.7
        return Cost(seconds * 2e10, spec.min_bytes + spectra, 4, 2e10, parallel=plan.threads > 1)


ALGORITHMS = [FftFused()]
