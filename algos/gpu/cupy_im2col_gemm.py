"""im2col on a GPU: one kernel copies every window into a column of a matrix, then cuBLAS does all channels
and taps.

The columns of many images stand side by side in one matrix, as many as ``block_bytes`` hold, so that late
layers of 7x7 pixels still make one wide product; its result is copied into the order of y unless a single
block is all there is. The kernel reads x itself, zero border included, and each thread writes all taps of one
channel and pixel: neighbours write neighbouring columns. A 1x1 kernel with stride 1 needs no copy.

Cost: 2 * O * C/groups * taps operations for each output pixel in cuBLAS, and C * taps elements written and
read for each pixel. Workspace: the columns and the products of a block. Accuracy: componentwise: TF32 is
never used, the algorithm is unavailable where ``CUPY_TF32`` asks for it. NaN and infinity spoil only the
outputs whose window holds them. Forward, 1-D to 3-D, float32 and float64, every stride, dilation, padding and
number of groups (many small products: slow).

Source: Chellapilla, Puri and Simard, "High performance convolutional neural networks for document
processing", 2006. Equivalent: ``w @ torch.nn.functional.unfold(x, kernel)`` on CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from algos.contract import Cost, Support
from algos.gpu._cupy import CupyAlgorithm, Kernel, blocks_for, c_type, defined, device_cost
from algos.spec import ConvSpec

# x: (n, channels, depth, height, width); columns: (channels, KD, KH, KW, images, pixels) of images from n0,
# pixels from p0
SOURCE = r"""
typedef long long Index;

extern "C" __global__ void unfold(const T* __restrict__ x, T* __restrict__ columns, Index n0, Index images,
                                  Index p0, Index pixels, Index channels, Index depth, Index height,
                                  Index width, Index oh, Index ow,
                                  Index front, Index top, Index left) {
    const Index row = images * pixels, step = (Index)gridDim.x * blockDim.x;
    for (Index at = (Index)blockIdx.x * blockDim.x + threadIdx.x; at < channels * row; at += step) {
        const Index column = at % row, c = at / row, n = n0 + column / pixels, p = p0 + column % pixels;
        const Index id0 = p / (oh * ow) * SD - front, ih0 = p / ow % oh * SH - top, iw0 = p % ow * SW - left;
        const T* image = x + (n * channels + c) * depth * height * width;
        T* to = columns + c * (KD * KH * KW) * row + column;
        for (int kd = 0; kd < KD; ++kd)
            for (int kh = 0; kh < KH; ++kh) {
                const Index id = id0 + kd * (Index)DD, ih = ih0 + kh * (Index)DH;
                const bool inside = id >= 0 && id < depth && ih >= 0 && ih < height;
                for (int kw = 0; kw < KW; ++kw, to += row) {
                    const Index iw = iw0 + kw * (Index)DW;
                    *to = inside && iw >= 0 && iw < width ? image[(id * height + ih) * width + iw] : (T)0;
                }
            }
    }
}
"""


def is_pointwise(spec: ConvSpec) -> bool:
    """Whether the input already is its column matrix."""
    return set(spec.kernel) == set(spec.stride) == {1} and not any(map(any, spec.padding))


def in_3d(values: tuple[int, ...], fill: int) -> tuple[int, ...]:
    """Depth, height and width, with ``fill`` for the axes that the spec lacks."""
    return (fill,) * (3 - len(values)) + tuple(values)


@dataclass(frozen=True)
class CupyIm2colGemm(CupyAlgorithm):
    """Windows as columns, then cuBLAS; see the module.

    Attributes
    ----------
    block_bytes : int
        Size of the column matrix of one block, at least one column.
    """

    name: str = "cupy_im2col_gemm"
    family: str = "gemm"
    block_bytes: int = 256 << 20

    library: ClassVar[str] = "cublas"
    support: ClassVar[Support | None] = Support(ndim=(1, 2, 3))

    def _block(self, spec: ConvSpec) -> tuple[int, int]:
        """Images and pixels of a block: whole images, or equal parts of one."""
        pixels = math.prod(spec.output_size)
        most = max(1,
                   self.block_bytes // (spec.in_channels * math.prod(spec.kernel) * spec.in_dtype.itemsize))
        if most >= pixels:
            return -(-spec.batch // -(-spec.batch // (most // pixels))), pixels
        return 1, -(-pixels // -(-pixels // most))

    def _straight(self, spec: ConvSpec) -> bool:
        """Whether a block's product is y itself."""
        return spec.batch == 1 and self._block(spec)[1] == math.prod(spec.output_size)

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        if is_pointwise(spec):
            return 0
        rows = spec.in_channels * math.prod(spec.kernel) + (0 if self._straight(spec) else spec.out_channels)
        return rows * math.prod(self._block(spec)) * spec.in_dtype.itemsize

    def kernels(self, spec: ConvSpec) -> list[Kernel]:
        if is_pointwise(spec):
            return []
        geometry = {
            f"{letter}{axis}": value
            for letter, values in (("K", spec.kernel), ("S", spec.stride), ("D", spec.dilation))
            for axis, value in zip("DHW", in_3d(values, 1), strict=True)
        }
        return [Kernel("unfold", defined(T=c_type(spec), **geometry) + SOURCE)]

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        xp, groups, outputs, channels = (
            self.xp,
            spec.groups,
            spec.out_channels // spec.groups,
            spec.in_channels,
        )
        w = weights.reshape(groups, outputs, -1)
        total = math.prod(spec.output_size)
        if is_pointwise(spec):

            def run_pointwise(x: Any, out: Any = None) -> Any:
                y = xp.empty(spec.output_shape, spec.out_dtype) if out is None else out
                xp.matmul(w, x.reshape(spec.batch, groups, -1, total),
                          out=y.reshape(spec.batch, groups, outputs, total))  # fmt: skip
                return y

            return run_pointwise

        (kernel,) = map(self.compiled, self.kernels(spec))
        images, pixels = self._block(spec)
        rows = channels * math.prod(spec.kernel)
        columns = xp.empty(rows * images * pixels, spec.in_dtype)
        products = (
            None if self._straight(spec) else xp.empty(spec.out_channels * images * pixels, spec.in_dtype)
        )
        depth, height, width = in_3d(spec.size, 1)
        _, oh, ow = in_3d(spec.output_size, 1)
        sizes = (
            channels,
            depth,
            height,
            width,
            oh,
            ow,
            *in_3d(tuple(before for before, _ in spec.padding), 0),
        )

        def run(x: Any, out: Any = None) -> Any:
            y = xp.empty(spec.output_shape, spec.out_dtype) if out is None else out
            result = y.reshape(spec.batch, spec.out_channels, total)
            for n in range(0, spec.batch, images):
                for p in range(0, total, pixels):
                    some, part = min(images, spec.batch - n), min(pixels, total - p)
                    block = columns[: rows * some * part]
                    kernel(blocks_for(channels * some * part), x, block, n, some, p, part, *sizes)
                    matrix = block.reshape(groups, rows // groups, some * part)
                    if products is None:
                        xp.matmul(w, matrix, out=y.reshape(groups, outputs, total))
                        continue
                    product = products[: spec.out_channels * some * part].reshape(
                        groups, outputs, some * part
                    )
                    xp.matmul(w, matrix, out=product)
                    result[n : n + some, :, p : p + part] = product.reshape(-1, some, part).transpose(1, 0, 2)
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        copied = 0 if is_pointwise(spec) else spec.batch * math.prod(spec.output_size) * (
            2 * spec.in_channels * math.prod(spec.kernel) + 3 * spec.out_channels
        ) * spec.in_dtype.itemsize
        blocks = -(-spec.batch * math.prod(spec.output_size) // math.prod(self._block(spec)))
        wide = spec.out_channels // spec.groups >= 16
        calls = 1.7 if is_pointwise(spec) else 3 * blocks
        return device_cost(spec, spec.flops, spec.min_bytes + copied, calls, 0.5 if wide else 0.06)


ALGORITHMS = [CupyIm2colGemm()]
