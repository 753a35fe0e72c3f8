"""Winograd's minimal filtering on a GPU: a tile of m x m outputs for (m + r - 1)^2 products instead of (m
r)^2.

One kernel transforms tiles of the input (B^T d B), one thread for a tile and channel; cuBLAS multiplies with
the transformed weights, a matrix product over the channels for each of the t^2 points; another kernel
transforms back (A^T m A). The matrices are written into the kernels as sums, so that zeros and ones cost
nothing. Tiles of all images stand in one row, as many as ``block_bytes`` hold.

Cost: for 3x3 kernels 2.25 (F2) or 4 (F4) times fewer multiplications than the definition, and two transforms
per tile and channel. Workspace: t^2 / r^2 times the weights, and a block of transformed tiles of the input
and of products. Accuracy: winograd: rounding is amplified by the transforms, little by F2, more by F4; TF32
is never used. One NaN or infinity spoils the whole tiles around it: up to 16 (F2) or 36 (F4) outputs instead
of 9. Range: weights near an end of the type are scaled by powers of two; images are not: see ``caveat``.
Forward, 2-D, stride 1, dilation 1, kernels of 2 to 5 on each axis, float32 and float64, every padding and
number of groups (with few channels in a group the transforms cost more than they save).

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308.
Equivalent: ``torch.nn.functional.conv2d`` on CUDA with stride 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from algos.contract import Cost
from algos.engine.ranges import thresholds
from algos.engine.toom_cook import PLAIN, Matrix, Tiled
from algos.gpu._cupy import CupyAlgorithm, Kernel, blocks_for, c_type, defined, device_cost
from algos.spec import ConvSpec

# x: (n, groups * inputs, height, width); spectra: (groups, TH * TW, inputs, tiles) of ``count`` tiles from
# ``first``; products: (groups, TH * TW, outputs, tiles); y: (n, groups * outputs, oh, ow), to be multiplied
# by both of ``ups``. into_h and its like apply one matrix.
SPREAD = r"""
extern "C" __global__ void spread(const T* __restrict__ x, T* __restrict__ spectra, Index first, Index count,
                                  Index groups, Index inputs, Index height, Index width, Index tiles_h,
                                  Index tiles_w, Index top,
                                  Index left) {
    const Index step = (Index)gridDim.x * blockDim.x;
    for (Index at = (Index)blockIdx.x * blockDim.x + threadIdx.x; at < groups * inputs * count; at += step) {
        const Index tile = at % count, c = at / count, place = first + tile;
        const Index n = place / (tiles_h * tiles_w);
        const Index ih0 = place / tiles_w % tiles_h * MH - top;
        const Index iw0 = place % tiles_w * MW - left;
        const T* plane = x + (n * groups * inputs + c) * height * width;
        T half[TH][TW];
        #pragma unroll
        for (int j = 0; j < TW; ++j) {
            const Index iw = iw0 + j;
            T pixels[TH], sums[TH];
            #pragma unroll
            for (int i = 0; i < TH; ++i) {
                const Index ih = ih0 + i;
                pixels[i] = ih >= 0 && ih < height && iw >= 0 && iw < width ? plane[ih * width + iw] : (T)0;
            }
            into_h(pixels, sums);
            #pragma unroll
            for (int i = 0; i < TH; ++i) half[i][j] = sums[i];
        }
        T* to = spectra + (c / inputs * (TH * TW) * inputs + c % inputs) * count + tile;
        #pragma unroll
        for (int i = 0; i < TH; ++i) {
            T sums[TW];
            into_w(half[i], sums);
            #pragma unroll
            for (int j = 0; j < TW; ++j) to[(i * TW + j) * inputs * count] = sums[j];
        }
    }
}
"""
GATHER = r"""
extern "C" __global__ void gather(const T* __restrict__ products, const T* __restrict__ ups,
                                  T* __restrict__ y, Index first, Index count, Index groups,
                                  Index outputs, Index oh, Index ow, Index tiles_h, Index tiles_w) {
    const Index step = (Index)gridDim.x * blockDim.x;
    for (Index at = (Index)blockIdx.x * blockDim.x + threadIdx.x; at < groups * outputs * count; at += step) {
        const Index tile = at % count, o = at / count, place = first + tile;
        const Index n = place / (tiles_h * tiles_w);
        const Index oh0 = place / tiles_w % tiles_h * MH, ow0 = place % tiles_w * MW;
        const T* from = products + (o / outputs * (TH * TW) * outputs + o % outputs) * count + tile;
        T half[TH][MW];
        #pragma unroll
        for (int i = 0; i < TH; ++i) {
            T points[TW];
            #pragma unroll
            for (int j = 0; j < TW; ++j) points[j] = from[(i * TW + j) * outputs * count];
            from_w(points, half[i]);
        }
        T* plane = y + (n * groups * outputs + o) * oh * ow;
        #pragma unroll
        for (int j = 0; j < MW; ++j) {
            T points[TH], sums[MH];
            #pragma unroll
            for (int i = 0; i < TH; ++i) points[i] = half[i][j];
            from_h(points, sums);
            #pragma unroll
            for (int i = 0; i < MH; ++i)
                if (oh0 + i < oh && ow0 + j < ow) plane[(oh0 + i) * ow + ow0 + j] = sums[i] * ups[0] * ups[1];
        }
    }
}
"""


def product_code(name: str, matrix: Matrix) -> str:
    """A device function ``name(a, b)`` that writes b = matrix a, every row as one sum."""
    lines = []
    for i, row in enumerate(matrix):
        terms = []
        for k, factor in enumerate(row):
            if factor:
                size = abs(factor)
                scale = "" if size == 1 else f"(T)({size.numerator}.0 / {size.denominator}.0) * "
                terms.append(f"{'-' if factor < 0 else '+'} {scale}a[{k}]")
        lines.append(f"    b[{i}] = {' '.join(terms).removeprefix('+ ')};\n")
    return f"static __device__ __forceinline__ void {name}(const T* a, T* b) {{\n{''.join(lines)}}}\n"


@dataclass(frozen=True)
class CupyWinograd(Tiled, CupyAlgorithm):
    """F(m x m, r x r) on blocks of tiles; see the module.

    Attributes
    ----------
    m : int
        Outputs of a tile along each axis.
    block_bytes : int
        Transformed input and products of a block.
    """

    name: str = "cupy_winograd_f2"
    family: str = "winograd"
    accuracy: str = "winograd"
    m: int = 2
    block_bytes: int = 512 << 20

    library: ClassVar[str] = "cublas"

    def _points(self, spec: ConvSpec) -> int:
        return math.prod(m + r - 1 for m, r in zip(self.outputs(spec), spec.kernel, strict=True))

    def _tiles(self, spec: ConvSpec) -> tuple[int, int]:
        tiles_h, tiles_w = (-(-n // m) for n, m in zip(spec.output_size, self.outputs(spec), strict=True))
        return tiles_h, tiles_w

    def _block(self, spec: ConvSpec) -> int:
        """Tiles of a block, of all images together; equal blocks."""
        total = spec.batch * math.prod(self._tiles(spec))
        each = self._points(spec) * (spec.in_channels + spec.out_channels) * spec.in_dtype.itemsize
        return -(-total // -(-total // max(1, self.block_bytes // each)))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        points, unit = self._points(spec), spec.in_dtype.itemsize
        pairs = spec.out_channels * (spec.in_channels // spec.groups)
        running = points * (spec.in_channels + spec.out_channels) * self._block(spec)
        # In double precision, half done and done
        building = pairs * (2 * points + math.prod(spec.kernel)) * 8
        return max((pairs * points + running) * unit, building + pairs * points * unit)

    def kernels(self, spec: ConvSpec) -> list[Kernel]:
        (at_h, _, bt_h), (at_w, _, bt_w) = self.transforms(spec)
        sizes = {"MH": len(at_h), "MW": len(at_w), "TH": len(bt_h), "TW": len(bt_w)}
        head = defined(T=c_type(spec), **sizes) + "typedef long long Index;\n"
        into = product_code("into_h", bt_h) + product_code("into_w", bt_w)
        back = product_code("from_h", at_h) + product_code("from_w", at_w)
        return [Kernel("spread", head + into + SPREAD), Kernel("gather", head + back + GATHER)]

    def _weights(self, spec: ConvSpec, weights: Any, taken: int) -> Any:
        """(groups * points, outputs, inputs): G g G^T of weights * 2^-taken, computed in double precision."""
        xp = self.xp
        kernels = xp.ldexp(weights, -taken).astype(np.float64)
        for axis in self.transforms(spec):  # each takes the first spatial axis away and appends its transform
            kernels = xp.tensordot(kernels, xp.asarray(np.array(axis[1], np.float64)), axes=(2, 1))
        shape = (spec.groups, spec.out_channels // spec.groups, spec.in_channels // spec.groups,
                 self._points(spec))
        ordered = kernels.reshape(shape).transpose(0, 3, 1, 2).astype(spec.in_dtype)
        return xp.ascontiguousarray(ordered).reshape(-1, *shape[1:3])

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        xp, groups, points = self.xp, spec.groups, self._points(spec)
        inputs, outputs = spec.in_channels // groups, spec.out_channels // groups
        spread, gather = map(self.compiled, self.kernels(spec))
        taken, _, _, scales = self.scaling(spec, float(abs(weights).max()))
        kernels, ups = self._weights(spec, weights, taken), xp.asarray(scales[0, 1:])
        tiles, block = self._tiles(spec), self._block(spec)
        total = spec.batch * math.prod(tiles)
        spectra = xp.empty(groups * points * inputs * block, spec.in_dtype)
        products = xp.empty(groups * points * outputs * block, spec.in_dtype)
        before, size = tuple(pair[0] for pair in spec.padding), spec.output_size

        def run(x: Any, out: Any = None) -> Any:
            y = xp.empty(spec.output_shape, spec.out_dtype) if out is None else out
            for first in range(0, total, block):
                some = min(block, total - first)
                into = spectra[: groups * points * inputs * some].reshape(groups * points, inputs, some)
                product = products[: groups * points * outputs * some].reshape(groups * points, outputs, some)
                spread(blocks_for(spec.in_channels * some), x, into, first, some, groups, inputs, *spec.size,
                       *tiles, *before)  # fmt: skip
                xp.matmul(kernels, into, out=product)
                gather(
                    blocks_for(spec.out_channels * some),
                    product,
                    ups,
                    y,
                    first,
                    some,
                    groups,
                    outputs,
                    *size,
                    *tiles,
                )
            return y

        return run

    def caveat(self, spec: ConvSpec) -> str:
        (_, large), _ = thresholds(2**PLAIN * self.growth(spec), spec.in_dtype)
        return f"sums inside may overflow from elements of {large:.0e} on"

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        points, tiles = self._points(spec), spec.batch * math.prod(self._tiles(spec))
        inputs, channels = spec.in_channels // spec.groups, spec.in_channels + spec.out_channels
        operations = 2.0 * points * tiles * (inputs * spec.out_channels + 5 * channels)
        moved = spec.min_bytes + 2 * points * tiles * channels * spec.in_dtype.itemsize
        wide = min(inputs, spec.out_channels // spec.groups) >= 16
        calls = 3.2 * -(-tiles // self._block(spec))
        return device_cost(spec, operations, moved, calls, 0.5 if wide else 0.06)


ALGORITHMS = [CupyWinograd(), CupyWinograd("cupy_winograd_f4", m=4)]
