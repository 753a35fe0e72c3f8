"""Winograd's minimal filtering: a tile of m x m outputs for (m + r - 1)^2 products instead of (m r)^2.

Tiles of the input are transformed (B^T d B), multiplied with the transformed weights, one matrix product over the channels
for each of the t^2 points, and transformed back (A^T m A). Everything happens block by block of tiles, so that transformed
data stay in the cache; compiled code transforms all tiles of a block at once, with the tiles as the contiguous axis, and
BLAS multiplies, held to one thread while our threads work on blocks of their own.

Cost: for 3x3 kernels 2.25 (F2) or 4 (F4) times fewer multiplications than the definition, and two transforms per tile and
channel. Workspace: t^2 / r^2 times the weights, and for each thread a block of transformed tiles of ``block_bytes``.
Accuracy: winograd: rounding is amplified by the transforms, little by F2, more by F4. One NaN or infinity spoils the whole
tiles around it: up to 16 (F2) or 36 (F4) outputs instead of 9.
Forward, 2-D, stride 1, dilation 1, kernels of 2 to 5 on each axis, float32 and float64, every padding and number of groups
(with few channels in a group the transforms cost more than they save).

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308.
Equivalent: ``torch.nn.functional.conv2d`` with stride 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from algos.contract import Algorithm, Cost, forward_float
from algos.engine.jit import compile_for, compiled
from algos.engine.threads import blas_limit, share, split
from algos.engine.toom_cook import Matrix, toom_cook
from algos.spec import ConvSpec

FLAGS = {"fastmath": {"contract"}, "error_model": "numpy"}
LARGEST_TILE = 8
SHARED_FLOPS = 2e7


@compiled(**FLAGS)
def down(matrix, source, target, width, length):
    """target[i * width + j] = sum over k of matrix[i, k] * source[k * width + j]: the columns of every tile.

    Rows are indexed, not sliced: every slice would count references, which costs more than the arithmetic.
    """
    for i in range(matrix.shape[0]):
        for j in range(width):
            to, first = i * width + j, True
            for k in range(matrix.shape[1]):
                factor, row = matrix[i, k], k * width + j
                if factor == 0:
                    continue
                if first:
                    for x in range(length):
                        target[to, x] = factor * source[row, x]
                else:
                    for x in range(length):
                        target[to, x] += factor * source[row, x]
                first = False


@compiled(**FLAGS)
def along(matrix, source, target, c, height, length):
    """target[i * width + j, c] = sum over k of matrix[j, k] * source[i * points + k]: the rows of every tile."""
    width, points = matrix.shape
    for i in range(height):
        for j in range(width):
            to, first = i * width + j, True
            for k in range(points):
                factor, row = matrix[j, k], i * points + k
                if factor == 0:
                    continue
                if first:
                    for x in range(length):
                        target[to, c, x] = factor * source[row, x]
                else:
                    for x in range(length):
                        target[to, c, x] += factor * source[row, x]
                first = False


@compiled(**FLAGS)
def gather(x, n, c, top, left, m_h, m_w, t_h, t_w, first, rows, tiles_w, points):
    """points[i * t_w + j, tile] = the pixel (i, j) of each tile of the tile rows [first, first + rows), zero outside."""
    height, width = x.shape[2], x.shape[3]
    for r in range(rows):
        at = r * tiles_w
        for i in range(t_h):
            ih = (first + r) * m_h + i - top
            inside = 0 <= ih < height
            for j in range(t_w):
                to, shift = i * t_w + j, j - left
                low = min(tiles_w, max(0, -(shift // m_w))) if inside else tiles_w  # tiles left of it start outside
                high = max(low, min(tiles_w, (width - 1 - shift) // m_w + 1)) if inside else tiles_w
                for k in range(low):
                    points[to, at + k] = 0
                for k in range(low, high):
                    points[to, at + k] = x[n, c, ih, k * m_w + shift]
                for k in range(high, tiles_w):
                    points[to, at + k] = 0


@compiled(**FLAGS)
def transform_in(x, n, c0, top, left, m_h, m_w, bt_h, bt_w, first, rows, tiles_w, points, half, spectra):
    """spectra (t_h * t_w, channels, tiles) of the tile rows [first, first + rows) of image n; points and half are scratch."""
    t_h, t_w, length = bt_h.shape[0], bt_w.shape[0], rows * tiles_w
    for c in range(spectra.shape[1]):
        gather(x, n, c0 + c, top, left, m_h, m_w, t_h, t_w, first, rows, tiles_w, points)
        down(bt_h, points, half, t_w, length)
        along(bt_w, half, spectra, c, t_h, length)


@compiled(**FLAGS)
def transform_out(products, y, n, o0, m_h, m_w, at_h, at_w, first, rows, tiles_w, points, half, sums):
    """Write the outputs of the tile rows [first, first + rows) from products (t_h * t_w, channels, tiles)."""
    t_w, length = at_w.shape[1], rows * tiles_w
    height, width = y.shape[2], y.shape[3]
    for o in range(products.shape[1]):
        for p in range(products.shape[0]):
            for x in range(length):
                points[p, x] = products[p, o, x]
        down(at_h, points, half, t_w, length)
        along(at_w, half, sums, 0, m_h, length)
        for r in range(rows):
            at = r * tiles_w
            for i in range(min(m_h, height - (first + r) * m_h)):
                oh = (first + r) * m_h + i
                for j in range(m_w):
                    row = i * m_w + j
                    for k in range((width - j + m_w - 1) // m_w):
                        y[n, o0 + o, oh, k * m_w + j] = sums[row, 0, at + k]


@dataclass(frozen=True)
class Winograd(Algorithm):
    """F(m x m, r x r) on blocks of tiles; see the module.

    Attributes
    ----------
    m : int
        Outputs of a tile along each axis.
    block_bytes : int
        Transformed input and products of one thread's block.
    """

    name: str = "winograd_f2"
    family: str = "winograd"
    runtime: str = "numba"
    accuracy: str = "winograd"
    m: int = 2
    block_bytes: int = 4 << 20

    def unsupported(self, spec: ConvSpec) -> str | None:
        if reason := forward_float(spec):
            return reason
        if set(spec.stride) != {1} or set(spec.dilation) != {1}:
            return "tiles save work for stride 1 and dilation 1 only"
        if min(spec.kernel) < 2 or self.m + max(spec.kernel) - 1 > LARGEST_TILE:
            return f"transforms kernels of 2 to {LARGEST_TILE + 1 - self.m} on each axis, not {spec.kernel[0]}x{spec.kernel[1]}"
        return None

    def transforms(self, spec: ConvSpec) -> tuple[tuple[Matrix, Matrix, Matrix], ...]:
        """A^T, G and B^T of each axis, as exact fractions."""
        return tuple(toom_cook(self.m, r) for r in spec.kernel)

    def _tile(self, spec: ConvSpec) -> tuple[int, int]:
        return self.m + spec.kernel[0] - 1, self.m + spec.kernel[1] - 1

    def _block(self, spec: ConvSpec, threads: int) -> tuple[int, int, int]:
        """Tile rows, tiles in a row, and tile rows of a block: as many as fit, and enough blocks for the threads."""
        tiles_h, tiles_w = (-(-n // self.m) for n in spec.output_size)
        row = math.prod(self._tile(spec)) * tiles_w * (spec.in_channels + spec.out_channels) // spec.groups
        rows = max(1, min(tiles_h, self.block_bytes // (row * spec.in_dtype.itemsize)))
        blocks = -(-tiles_h // rows)
        wanted = -(-blocks // threads) * threads if spec.batch * spec.groups == 1 else blocks
        return tiles_h, tiles_w, -(-tiles_h // min(tiles_h, wanted))

    def _threads(self, spec: ConvSpec, threads: int) -> int:
        if spec.flops < SHARED_FLOPS:
            return 1
        tiles_h, _, rows = self._block(spec, threads)
        return min(threads, spec.batch * spec.groups * -(-tiles_h // rows))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        threads = self._threads(spec, threads)
        _, tiles_w, rows = self._block(spec, threads)
        points = math.prod(self._tile(spec))
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        weights = points * inputs * spec.out_channels
        building = weights * 24  # the transform in double precision, half done and done, and rounded
        held = weights * spec.in_dtype.itemsize
        running = threads * points * rows * tiles_w * (inputs + outputs + 3) * spec.in_dtype.itemsize
        return max(held + running, building)

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        threads = self._threads(spec, threads)
        groups, inputs, outputs, m = spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups, self.m
        (at_h, g_h, bt_h), (at_w, g_w, bt_w) = (
            tuple(np.array(matrix, np.float64) for matrix in axis) for axis in self.transforms(spec)
        )
        points = math.prod(self._tile(spec))
        kernels = weights.reshape(groups, outputs, inputs, *spec.kernel)
        kernels = np.einsum("ik,gockl,jl->gijoc", g_h, kernels, g_w, optimize=True)
        kernels = kernels.reshape(groups, points, outputs, inputs).astype(spec.in_dtype)
        at_h, at_w, bt_h, bt_w = (matrix.astype(spec.in_dtype) for matrix in (at_h, at_w, bt_h, bt_w))
        tiles_h, tiles_w, rows = self._block(spec, threads)
        blocks, length = -(-tiles_h // rows), rows * tiles_w
        items = spec.batch * groups * blocks
        parts = split(items, threads)
        spectra = np.empty((len(parts), points, inputs, length), spec.in_dtype)
        products = np.empty((len(parts), points, outputs, length), spec.in_dtype)
        scratch = np.empty((len(parts), 3, points, length), spec.in_dtype)
        (top, _), (left, _) = spec.padding
        image = np.empty((1, 1, 1, 1), spec.in_dtype)
        compile_for(transform_in, image, 0, 0, top, left, m, m, bt_h, bt_w, 0, 1, 1, scratch[0, 0], scratch[0, 0], spectra[0])
        compile_for(transform_out, products[0], image, 0, 0, m, m, at_h, at_w, 0, 1, 1, scratch[0, 0], scratch[0, 0],
                    scratch[0, 2][:, None])  # fmt: skip

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out

            def job(part: int, _: int) -> None:
                (pixels, half, sums), into, product = scratch[part], spectra[part], products[part]
                sums = sums[:, None]  # (m * m, one channel, tiles)
                for item in range(*parts[part]):
                    rest, block = divmod(item, blocks)
                    n, group = divmod(rest, groups)
                    first = block * rows
                    count = min(rows, tiles_h - first)
                    transform_in(x, n, group * inputs, top, left, m, m, bt_h, bt_w, first, count, tiles_w, pixels, half, into)
                    used = slice(count * tiles_w)
                    np.matmul(kernels[group], into[..., used], out=product[..., used])
                    transform_out(product, y, n, group * outputs, m, m, at_h, at_w, first, count, tiles_w, pixels, half,
                                  sums)  # fmt: skip

            with blas_limit(1):
                share(job, len(parts), len(parts))
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        t_h, t_w = self._tile(spec)
        tiles = spec.batch * math.prod(-(-n // self.m) for n in spec.output_size)
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        products = 2.0 * t_h * t_w * tiles * inputs * spec.out_channels
        transforms = 10.0 * t_h * t_w * tiles * (spec.in_channels + spec.out_channels)  # at a quarter of the product's speed
        few = 4.0 if min(inputs, outputs) < 8 else 1.0
        speed = 6e10 * 4 / spec.in_dtype.itemsize
        items = spec.batch * spec.groups * -(-t_h // self._block(spec, threads)[2])
        return Cost(products * few + 4 * transforms, spec.min_bytes, 20 + 6 * items, speed, self._threads(spec, threads) > 1)


ALGORITHMS = [Winograd(), Winograd("winograd_f4", m=4)]
