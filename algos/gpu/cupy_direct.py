"""The definition on a GPU: a block of threads stages a patch of the input and a few output channels' taps in
shared memory.

Each thread keeps ``PIXELS`` x ``CHANNELS`` sums in registers, so that every number read from shared memory
enters 4 or 8 multiply-adds. As many rows of the kernel are staged at a time as shared memory holds, so any
kernel size runs; patches too wide even for one row (large strides or dilations) go to a second kernel that
reads global memory. The kernel's geometry is compiled in, sizes are not: NVRTC compiles once for each
geometry, and CuPy keeps the result on disk.

Cost: 2 * O * C/groups * taps operations for each output pixel; the input is read once for each block of
output channels. Workspace: none. Accuracy: componentwise. NaN and infinity spoil only the outputs whose
window holds them. Forward, 1-D and 2-D, float32 and float64, every stride, dilation, padding and number of
groups; arrays of more than 2^31 elements (indices have 64 bits).

Source: Chen et al., "Optimizing memory efficiency for deep convolutional neural networks on GPUs", SC 2016.
Equivalent: ``torch.nn.functional.conv2d`` on CUDA with TF32 off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from algos.contract import Cost, Support
from algos.engine.blocks import axes
from algos.gpu._cupy import SHARED_BYTES, CupyAlgorithm, Kernel, blocks_for, c_type, defined, device_cost
from algos.spec import ConvSpec

# x: (n, groups * inputs, height, width); w: (groups * outputs, inputs, KH, KW); y: (n, groups * outputs, oh,
# ow)
SOURCE = r"""
typedef long long Index;

#define PATCH_ROWS ((TY * PIXELS - 1) * SH + (STEP - 1) * DH + 1)
#define PATCH_COLS ((TX - 1) * SW + (KW - 1) * DW + 1)

extern "C" __global__ void tiled(const T* __restrict__ x, const T* __restrict__ w, T* __restrict__ y,
                                 Index batch, Index groups, Index inputs, Index outputs, Index height,
                                 Index width, Index oh, Index ow,
                                 Index top, Index left) {
    __shared__ T patch[PATCH_ROWS * PATCH_COLS];
    __shared__ T taps[CHANNELS * STEP * KW];
    const int tx = threadIdx.x, ty = threadIdx.y, thread = ty * TX + tx;
    const Index across = (ow + TX - 1) / TX, down = (oh + TY * PIXELS - 1) / (TY * PIXELS);
    const Index parts = (outputs + CHANNELS - 1) / CHANNELS;
    for (Index block = blockIdx.x; block < batch * groups * parts * down * across; block += gridDim.x) {
        const Index ow0 = block % across * TX, oh0 = block / across % down * (TY * PIXELS);
        const Index o0 = block / (across * down) % parts * CHANNELS;
        const Index group = block / (across * down * parts) % groups;
        const Index n = block / (across * down * parts * groups);
        const int used = outputs - o0 < CHANNELS ? (int)(outputs - o0) : CHANNELS;
        T sums[PIXELS][CHANNELS];
        #pragma unroll
        for (int p = 0; p < PIXELS; ++p)
            #pragma unroll
            for (int c = 0; c < CHANNELS; ++c) sums[p][c] = 0;
        for (Index i = 0; i < inputs; ++i) {
            const T* plane = x + (n * groups * inputs + group * inputs + i) * height * width;
            const T* kernels = w + ((group * outputs + o0) * inputs + i) * (KH * KW);
            for (int kh0 = 0; kh0 < KH; kh0 += STEP) {
                const int rows = KH - kh0 < STEP ? KH - kh0 : STEP;
                for (int at = thread; at < PATCH_ROWS * PATCH_COLS; at += TX * TY) {
                    const Index ih = oh0 * SH + kh0 * DH - top + at / PATCH_COLS;
                    const Index iw = ow0 * SW - left + at % PATCH_COLS;
                    const bool inside = ih >= 0 && ih < height && iw >= 0 && iw < width;
                    patch[at] = inside ? plane[ih * width + iw] : (T)0;
                }
                for (int at = thread; at < CHANNELS * STEP * KW; at += TX * TY) {
                    const int c = at / (STEP * KW), tap = at % (STEP * KW);
                    const bool inside = c < used && tap < rows * KW;
                    taps[at] = inside ? kernels[c * inputs * (KH * KW) + kh0 * KW + tap] : (T)0;
                }
                __syncthreads();
                for (int kh = 0; kh < rows; ++kh)
                    for (int kw = 0; kw < KW; ++kw) {
                        T read[PIXELS];
                        #pragma unroll
                        for (int p = 0; p < PIXELS; ++p)
                            read[p] = patch[((ty + p * TY) * SH + kh * DH) * PATCH_COLS + tx * SW + kw * DW];
                        #pragma unroll
                        for (int c = 0; c < CHANNELS; ++c) {
                            const T tap = taps[(c * STEP + kh) * KW + kw];
                            #pragma unroll
                            for (int p = 0; p < PIXELS; ++p) sums[p][c] += tap * read[p];
                        }
                    }
                __syncthreads();
            }
        }
        #pragma unroll
        for (int p = 0; p < PIXELS; ++p) {
            const Index r = oh0 + ty + p * TY, c = ow0 + tx;
            if (r >= oh || c >= ow) continue;
            #pragma unroll  // an index that is not known when compiled would put the sums into memory
            for (int k = 0; k < CHANNELS; ++k)
                if (k < used)
                    y[((n * groups * outputs + group * outputs + o0 + k) * oh + r) * ow + c] = sums[p][k];
        }
    }
}

extern "C" __global__ void plain(const T* __restrict__ x, const T* __restrict__ w, T* __restrict__ y,
                                 Index batch, Index groups, Index inputs, Index outputs, Index height,
                                 Index width, Index oh, Index ow,
                                 Index top, Index left) {
    const Index count = batch * groups * outputs * oh * ow, step = (Index)gridDim.x * blockDim.x;
    for (Index at = (Index)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += step) {
        const Index c = at % ow, r = at / ow % oh, channels = groups * outputs;
        const Index o = at / (ow * oh) % channels, n = at / (ow * oh * channels);
        const T* image = x + (n * groups + o / outputs) * inputs * height * width;
        const T* kernel = w + o * inputs * (KH * KW);
        T sum = 0;
        for (Index i = 0; i < inputs; ++i)
            for (int kh = 0; kh < KH; ++kh) {
                const Index ih = r * SH + kh * (Index)DH - top;
                if (ih < 0 || ih >= height) continue;
                for (int kw = 0; kw < KW; ++kw) {
                    const Index iw = c * SW + kw * (Index)DW - left;
                    if (iw >= 0 && iw < width)
                        sum += image[(i * height + ih) * width + iw] * kernel[(i * KH + kh) * KW + kw];
                }
            }
        y[at] = sum;
    }
}
"""


ROUND_S, TAP_S, SUM_S = 5e-7, 1.2e-8, 6e-9  # measured with few blocks


@dataclass(frozen=True)
class KernelCall:
    """The kernel for one spec, its number of blocks and its numbers."""

    kernel: Kernel
    blocks: int
    sizes: tuple[int, ...]


def kernel_call(spec: ConvSpec) -> KernelCall:
    """Tile, staging and text for ``spec``."""
    row, col = axes(spec)
    unit = spec.in_dtype.itemsize
    inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    across = next((n for n in (8, 16) if col.outputs <= n), 32)
    pixels = next((n for n in (1, 2) if row.outputs <= 8 * n), 4)
    channels = next((n for n in (1, 4) if outputs <= n), 8)
    if unit == 8:
        pixels = min(pixels, 2)
    width = (across - 1) * col.stride + (col.kernel - 1) * col.dilation + 1

    def staged(step: int) -> int:
        height = (8 * pixels - 1) * row.stride + (step - 1) * row.dilation + 1
        return (height * width + channels * step * col.kernel) * unit

    step = next((n for n in range(row.kernel, 0, -1) if staged(n) <= SHARED_BYTES), 0)
    text = defined(
        T=c_type(spec), KH=row.kernel, KW=col.kernel, SH=row.stride, SW=col.stride, DH=row.dilation,
        DW=col.dilation, TX=across, TY=8, PIXELS=pixels, CHANNELS=channels, STEP=step or 1,
    )
    head, tiled, plain = SOURCE.split('extern "C"', 2)
    sizes = (spec.batch, spec.groups, inputs, outputs, row.size, col.size, row.outputs, col.outputs,
             row.before, col.before)  # fmt: skip
    if step:
        tiles = -(-col.outputs // across) * -(-row.outputs // (8 * pixels)) * -(-outputs // channels)
        kernel = Kernel("tiled", f'{text}{head}extern "C"{tiled}', (across, 8))
        return KernelCall(kernel, spec.batch * spec.groups * tiles, sizes)
    total = spec.batch * spec.out_channels * row.outputs * col.outputs
    return KernelCall(Kernel("plain", f'{text}{head}extern "C"{plain}'), blocks_for(total), sizes)


@dataclass(frozen=True)
class CupyDirect(CupyAlgorithm):
    """Tiles in shared memory, sums in registers; see the module."""

    name: str = "cupy_direct"
    family: str = "direct"
    support: ClassVar[Support | None] = Support(ndim=(1, 2))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return 0

    def kernels(self, spec: ConvSpec) -> list[Kernel]:
        return [kernel_call(spec).kernel]

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        shape = kernel_call(spec)
        kernel = self.compiled(shape.kernel)

        def run(x: Any, out: Any = None) -> Any:
            y = self.xp.empty(spec.output_shape, spec.out_dtype) if out is None else out
            kernel(shape.blocks, x, weights, y, *shape.sizes)
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        channels, taps = min(8, spec.out_channels // spec.groups), math.prod(spec.kernel)
        # The whole block waits for each channel of a patch, which is so many times as large as its tile
        each = ROUND_S * math.prod(spec.stride) + (TAP_S + SUM_S * channels) * taps
        waited_s = spec.in_channels // spec.groups * each
        return device_cost(spec, spec.flops, spec.min_bytes, 1, 0.2 * taps / (taps + 4), waited_s)


ALGORITHMS = [CupyDirect()]
