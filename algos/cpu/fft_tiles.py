"""Overlap-save: the image is cut into overlapping tiles that fit the cache, each convolved in the frequency
domain.

A tile of N points gives N - K + 1 right outputs for each axis of K taps; the rest wraps round and is dropped.
The transforms are short, so they stay in the cache and cost log N instead of the logarithm of the whole
image; the price is the overlap. Threads take blocks of tiles of their own.

Cost: for each tile 2.5 N^d log2 N^d for every input and output channel and 4 N^d for every pair of channels
in a group; N is chosen to make that least per output. Workspace: transformed weights, one padded image, and
for each thread a block of tiles and of their transforms, about ``block_bytes``. Accuracy: normwise, like fft.
One NaN or infinity spoils the outputs of the tiles that hold it. Range: that of the type. Weights are scaled
by powers of two, and so is a copy of an image near an end of it. Forward, 1-D and 2-D, float32 and float64,
every stride (outputs are subsampled), dilation, padding and number of groups.

Source: Rabiner and Gold, "Theory and application of digital signal processing", 1975, section 2.25.
Equivalent: ``scipy.signal.oaconvolve(x, w[..., ::-1, ::-1])``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.cpu.fft import REAL_FACTORS
from algos.engine.blas import blas_limit
from algos.engine.cyclic import fast_length
from algos.engine.ranges import Scaling
from algos.engine.threads import share, split
from algos.engine.windows import stuffed
from algos.host import caches
from algos.spec import ConvSpec

LONGEST = 1 << 15  # of all points of a tile: its transform still fits a second-level cache
FLOPS_PER_S = 8e9  # of one thread in transforms, copies between them included
SHARED_S = 3e-4


@lru_cache(maxsize=1024)
def tile_size(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Points of a tile along each axis, and the outputs (before the stride drops any) that it gives there."""
    choices = []
    for axis, (extent, stride) in enumerate(zip(spec.kernel_extent, spec.stride, strict=True)):
        whole = (spec.output_size[axis] - 1) * stride + extent
        best, chosen = math.inf, (0, 0)
        for factor in (1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64):
            points = fast_length(min(max(16, extent + stride, int(extent * factor)), whole + stride),
                                 REAL_FACTORS)
            kept = (points - extent + 1) // stride * stride
            if kept < 1 or (points > round(LONGEST ** (1 / spec.ndim)) and chosen[0]):
                continue
            tiles = -(-(whole - extent + 1) // kept)
            cost = tiles * points * math.log2(points)
            if cost < best:
                best, chosen = cost, (points, kept)
        choices.append(chosen)
    return tuple(c[0] for c in choices), tuple(c[1] for c in choices)


def _products(x: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Spectra of outputs (groups, outputs, tiles, frequencies), of x (groups, inputs, tiles, frequencies);
    kernels: (frequencies, groups, inputs, outputs), or of a single input (groups, outputs, 1, frequencies).
    """
    if x.shape[1] == 1:
        return x * kernels.reshape(len(x), -1, 1, x.shape[-1])
    return np.matmul(np.ascontiguousarray(x.transpose(3, 0, 2, 1)), kernels).transpose(1, 3, 2, 0)


@dataclass(frozen=True)
class FftTiles(Algorithm):
    """Overlap-save on scipy.fft; see the module.

    Attributes
    ----------
    block_bytes : int
        Transforms of the tiles that one thread works on at a time.
    """

    name: str = "fft_tiles"
    family: str = "fft"
    accuracy: str = "normwise"
    block_bytes: int = 1 << 20
    support: ClassVar[Support | None] = Support(ndim=(1, 2))

    def _tiles(self, spec: ConvSpec) -> tuple[int, ...]:
        _, kept = tile_size(spec)
        return tuple(-(-((n - 1) * s + 1) // k) for n, s,
                     k in zip(spec.output_size, spec.stride, kept, strict=True))

    def _covered(self, spec: ConvSpec) -> tuple[int, ...]:
        """Size of the padded image that the tiles read."""
        points, kept = tile_size(spec)
        return tuple((t - 1) * k + n for t, k, n in zip(self._tiles(spec), kept, points, strict=True))

    def _half(self, spec: ConvSpec) -> int:
        points, _ = tile_size(spec)
        return math.prod(points[:-1]) * (points[-1] // 2 + 1)

    def _step(self, spec: ConvSpec) -> int:
        """Tile rows in a block."""
        row = math.prod(self._tiles(spec)[1:]) * self._half(spec) * (spec.in_channels + spec.out_channels)
        return max(1, min(self._tiles(spec)[0], self.block_bytes // (row * 2 * spec.in_dtype.itemsize)))

    def _blocks(self, spec: ConvSpec) -> int:
        """Of an image: threads share those, one image after the other."""
        return -(-self._tiles(spec)[0] // self._step(spec))

    def _threads(self, spec: ConvSpec, threads: int) -> int:
        return 1 if self.cost(spec).operations / FLOPS_PER_S < SHARED_S else min(threads, self._blocks(spec))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        unit = spec.in_dtype.itemsize
        points, half, step = math.prod(tile_size(spec)[0]), self._half(spec), self._step(spec)
        weights = spec.out_channels * (spec.in_channels // spec.groups)
        tiles = step * math.prod(self._tiles(spec)[1:])
        image = spec.in_channels * math.prod(self._covered(spec)) * unit
        spectra = 2 * half * unit * tiles
        dense = spec.in_channels > spec.groups
        copies = 2 if spec.ndim > 1 else 1  # scipy.fft's pass along the last axis, and those along the others
        reading = (points * unit * tiles + copies * spectra) * spec.in_channels
        product = spectra * (spec.in_channels * (2 if dense else 1) + spec.out_channels)
        kept = math.prod(tile_size(spec)[1]) // math.prod(spec.stride) * unit * tiles
        writing = (spectra + points * unit * tiles + kept) * spec.out_channels + spectra * spec.in_channels
        each = max(reading, product, writing)
        held = weights * half * 2 * unit
        building = weights * (
            4 * math.prod(spec.kernel) * unit + points * unit + half * 2 * unit * (2 if dense else 1)
        )
        return max(building, held + image + self._threads(spec, threads) * each)

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        import scipy.fft

        threads = self._threads(spec, threads)
        points, kept = tile_size(spec)
        tiles, step, half = self._tiles(spec), self._step(spec), self._half(spec)
        groups = spec.groups
        inputs, outputs = spec.in_channels // groups, spec.out_channels // groups
        axes = tuple(range(-spec.ndim, 0))
        scaling = Scaling(weights, math.prod(points))
        kernels = scipy.fft.rfftn(stuffed(scaling.weights, spec.dilation), points, axes=axes).conj()
        del scaling.weights  # their spectra are kept
        kernels = kernels.reshape(groups, outputs, inputs, half)
        if inputs > 1:
            kernels = np.ascontiguousarray(kernels.transpose(3, 0, 2, 1))  # (frequency, group, input, output)
        padded = np.zeros((spec.in_channels, *self._covered(spec)), spec.in_dtype)
        seen = tuple(min(n, room - b) for n, room, (b, _)
                     in zip(spec.size, self._covered(spec), spec.padding, strict=True))  # fmt: skip
        core = tuple(slice(b, b + n) for n, (b, _) in zip(seen, spec.padding, strict=True))
        image_core: Any = (0, slice(None), *(slice(n) for n in seen))
        views = np.lib.stride_tricks.sliding_window_view(padded, points, axes)
        views = views[(slice(None), *(slice(None, None, k) for k in kept))]  # (c, *tiles, *points)
        parts = split(self._blocks(spec), threads)
        outs = tuple(k // s for k, s in zip(kept, spec.stride, strict=True))
        cropped = (..., *(slice(0, k, s) for k, s in zip(kept, spec.stride, strict=True)))
        order = (0, *(axis for i in range(spec.ndim) for axis in (1 + i, 1 + spec.ndim + i)))

        def block_of(first: int, kinds: Sequence[int], result: np.ndarray) -> None:
            """Outputs of the tile rows [first, first + step), into result (1, o, *output_size)."""
            last = min(tiles[0], first + step)
            chosen = views[:, first:last]
            grid = chosen.shape[1 : 1 + spec.ndim]
            spectra = scipy.fft.rfftn(np.ascontiguousarray(chosen), axes=axes)
            product = _products(spectra.reshape(groups, inputs, -1, half), kernels)
            product = product.reshape(spec.out_channels, *grid, *spectra.shape[1 + spec.ndim :])
            y = scipy.fft.irfftn(product, points, axes=axes, norm="forward", overwrite_x=True)[cropped]
            y = y.transpose(order).reshape(
                spec.out_channels, *(n * k for n, k in zip(grid, outs, strict=True))
            )
            rows = slice(first * outs[0], min(spec.output_size[0], last * outs[0]))
            y = y[(slice(None), slice(rows.stop - rows.start), *(slice(n) for n in spec.output_size[1:]))]
            scaling.store(y[None], kinds, result[:, :, rows])

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            for n in range(spec.batch):
                image, kinds = scaling.load(x[n : n + 1])
                padded[(slice(None), *core)] = image[image_core]

                def job(
                    part: int, _: int, result: np.ndarray = y[n : n + 1], kinds: Sequence[int] = kinds
                ) -> None:
                    for block in range(*parts[part]):
                        block_of(block * step, kinds, result)

                with blas_limit(1):
                    share(job, len(parts), len(parts))
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        points = math.prod(tile_size(spec)[0])
        tiles = spec.batch * math.prod(self._tiles(spec))
        pairs = spec.out_channels * (spec.in_channels // spec.groups)
        transforms = 2.5 * points * math.log2(points) * (spec.in_channels + spec.out_channels)
        blocks = spec.batch * self._blocks(spec)
        slower = 2 if 2 * points * spec.in_dtype.itemsize > caches()["L2"] else 1
        operations = tiles * (transforms * slower + 4 * points * pairs)
        shared = threads > 1 and operations / FLOPS_PER_S >= SHARED_S and self._blocks(spec) > 1
        return Cost(operations, spec.min_bytes, 20 + 60 * blocks, FLOPS_PER_S, shared)


ALGORITHMS = [FftTiles()]
