"""A kernel that is a sum of few outer products, on a GPU: along the rows into shared memory, then down the
columns.

A block of threads makes 32 x 8 ``PIXELS`` outputs of one output channel. For every input channel and product
it filters the rows that its outputs need, straight from x into shared memory, then sums down the columns into
registers: what lies between the passes never leaves the chip, and no workspace is needed. As many rows as fit
are filtered at a time; where stride or dilation leave rows out, only those that some tap reads.

Cost: 2 * rank * KH operations for each output pixel and pair of channels, and 2 * rank * KW for each of the
rows between, (8 PIXELS + KH - 1) / (8 PIXELS) per output at stride 1. Workspace: the factors. Accuracy:
lowrank: rounding of both passes; the factors form each tap within a few roundings. One NaN or infinity spoils
the outputs whose window holds it. Forward, 1 to min(KH, KW) ranks that the spec promises (``plan()`` looks
for a rank in up to 4 kernels), float32 and float64, every stride, dilation, padding and number of groups;
with many channels every pair is its own filter: no gain over GEMM.

Source: Podlozhnyuk, "Image convolution with CUDA", NVIDIA, 2007.
Equivalent: ``cupyx.scipy.signal.sepfir2d`` for rank 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from algos.contract import Cost, Support
from algos.engine.blocks import axes
from algos.engine.outer import factor_bytes, factors
from algos.gpu._cupy import SHARED_BYTES, CupyAlgorithm, Kernel, c_type, defined, device_cost
from algos.spec import ConvSpec

# x: (n, groups * inputs, height, width); down: (o, inputs, RANK, KH); along: (o, inputs, RANK, KW); y: (n, o,
# oh, ow)
SOURCE = r"""
typedef long long Index;

#if GAPS
#define SLOTS (TY * PIXELS * STEP)
#define SLOT(row, tap) ((row) * STEP + (tap))
#define ROW_OF(slot) ((slot) / STEP * (Index)SH + (slot) % STEP * (Index)DH)
#else
#define SLOTS ((TY * PIXELS - 1) * SH + (STEP - 1) * DH + 1)
#define SLOT(row, tap) ((row) * SH + (tap) * DH)
#define ROW_OF(slot) (slot)
#endif

extern "C" __global__ void separable(const T* __restrict__ x, const T* __restrict__ down,
                                     const T* __restrict__ along, T* __restrict__ y, Index batch,
                                     Index groups, Index inputs, Index outputs, Index height,
                                     Index width, Index oh, Index ow, Index top, Index left) {
    __shared__ T passed[SLOTS * TX];
    const int tx = threadIdx.x, ty = threadIdx.y, thread = ty * TX + tx;
    const Index across = (ow + TX - 1) / TX, below = (oh + TY * PIXELS - 1) / (TY * PIXELS);
    const Index channels = groups * outputs;
    for (Index block = blockIdx.x; block < batch * channels * below * across; block += gridDim.x) {
        const Index ow0 = block % across * TX, oh0 = block / across % below * (TY * PIXELS);
        const Index o = block / (across * below) % channels, n = block / (across * below * channels);
        T sums[PIXELS];
        #pragma unroll
        for (int p = 0; p < PIXELS; ++p) sums[p] = 0;
        for (Index i = 0; i < inputs; ++i) {
            const T* plane = x + ((n * groups + o / outputs) * inputs + i) * height * width;
            for (int r = 0; r < RANK; ++r) {
                const T* columns = down + ((o * inputs + i) * RANK + r) * KH;
                const T* rows = along + ((o * inputs + i) * RANK + r) * KW;
                for (int kh0 = 0; kh0 < KH; kh0 += STEP) {
                    for (int at = thread; at < SLOTS * TX; at += TX * TY) {
                        const Index ih = oh0 * SH + kh0 * (Index)DH - top + ROW_OF(at / TX);
                        const Index iw = (ow0 + at % TX) * SW - left;
                        T sum = 0;
                        if (ih >= 0 && ih < height) {
                            const T* line = plane + ih * width;
                            if (iw >= 0 && iw + (KW - 1) * (Index)DW < width)
                                for (int kw = 0; kw < KW; ++kw) sum += line[iw + kw * (Index)DW] * rows[kw];
                            else
                                for (int kw = 0; kw < KW; ++kw) {
                                    const Index c = iw + kw * (Index)DW;
                                    if (c >= 0 && c < width) sum += line[c] * rows[kw];
                                }
                        }
                        passed[at] = sum;
                    }
                    __syncthreads();
                    const int taps = KH - kh0 < STEP ? KH - kh0 : STEP;
                    for (int kh = 0; kh < taps; ++kh) {
                        const T tap = columns[kh0 + kh];
                        #pragma unroll
                        for (int p = 0; p < PIXELS; ++p)
                            sums[p] += tap * passed[SLOT(ty + p * TY, kh) * TX + tx];
                    }
                    __syncthreads();
                }
            }
        }
        #pragma unroll
        for (int p = 0; p < PIXELS; ++p) {
            const Index r = oh0 + ty + p * TY, c = ow0 + tx;
            if (r < oh && c < ow) y[((n * channels + o) * oh + r) * ow + c] = sums[p];
        }
    }
}
"""


@dataclass(frozen=True)
class KernelCall:
    """The kernel for one spec, its number of blocks and its numbers."""

    kernel: Kernel
    blocks: int
    sizes: tuple[int, ...]


def kernel_call(spec: ConvSpec) -> KernelCall:
    """Tile and rows at a time for ``spec``."""
    row, col = axes(spec)
    across = next((n for n in (8, 16) if col.outputs <= n), 32)
    pixels = next((n for n in (1, 2) if row.outputs <= 8 * n), 4)
    most = SHARED_BYTES // (across * spec.in_dtype.itemsize)

    def held(step: int) -> tuple[int, bool]:
        """Rows between the passes, and whether only those that some tap reads."""
        range_of, read = (8 * pixels - 1) * row.stride + (step - 1) * row.dilation + 1, 8 * pixels * step
        return min(range_of, read), read < range_of

    step = next(n for n in range(row.kernel, 0, -1) if held(n)[0] <= most)
    text = defined(
        T=c_type(spec), RANK=spec.rank, KH=row.kernel, KW=col.kernel, SH=row.stride, SW=col.stride,
        DH=row.dilation, DW=col.dilation, TX=across, TY=8, PIXELS=pixels, STEP=step, GAPS=int(held(step)[1]),
    )
    sizes = (
        spec.batch, spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups, row.size,
        col.size, row.outputs, col.outputs, row.before, col.before,
    )  # fmt: skip
    tiles = -(-col.outputs // across) * -(-row.outputs // (8 * pixels))
    return KernelCall(
        Kernel("separable", text + SOURCE, (across, 8)), spec.batch * spec.out_channels * tiles, sizes
    )


@dataclass(frozen=True)
class CupySeparable(CupyAlgorithm):
    """Two 1-D passes for each rank, in one kernel; see the module."""

    name: str = "cupy_separable"
    family: str = "separable"
    accuracy: str = "lowrank"
    support: ClassVar[Support | None] = Support()

    def beyond(self, spec: ConvSpec) -> str | None:
        return (
            None
            if spec.rank is not None
            else "the spec promises no rank: add rank1 if each kernel is an outer product"
        )

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        pairs = spec.out_channels * (spec.in_channels // spec.groups)
        kept = pairs * (spec.rank or 0) * sum(spec.kernel) * spec.in_dtype.itemsize
        return kept + factor_bytes(pairs, *spec.kernel)  # these on the host

    def kernels(self, spec: ConvSpec) -> list[Kernel]:
        return [kernel_call(spec).kernel]

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        assert spec.rank is not None
        shape = kernel_call(spec)
        kernel = self.compiled(shape.kernel)
        down, along = (self.to_device(part) for part in factors(self.to_host(weights), spec.rank))

        def run(x: Any, out: Any = None) -> Any:
            y = self.xp.empty(spec.output_shape, spec.out_dtype) if out is None else out
            kernel(shape.blocks, x, down, along, y, *shape.sizes)
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        operations = (
            spec.flops
            * (spec.rank or 0)
            * (1 / spec.kernel[0] + 1 / spec.kernel[1] * (1 + spec.kernel[0] / 32))
        )
        return device_cost(spec, operations, spec.min_bytes, 1, 0.13)


ALGORITHMS = [CupySeparable()]
