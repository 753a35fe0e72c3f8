"""Depthwise layers, one kernel for each input channel: tiles of outputs in registers, borders by masked
loads.

Numba and LLVM IR. A tile is up to seven rows of outputs by one vector: each vector of the input is loaded
once for all the rows that it serves, and nothing is copied or packed. Rows above and below the picture are
read from a row of zeros; the first and the last vectors of a row load only the lanes that are inside, and the
last overlaps the one before. Stride 2 picks even and odd elements from two vectors within 128 bits, which is
one instruction, and puts the lanes of the sums in order at the end; strides 3 and 4 pick from three and four
vectors, which serve all taps among them: 3 to 10 times as fast as one element at a time. The kernel's size
and strides and dilations up to 4 are in the types, so that one function compiles to unrolled code for each of
them; wider dilations and row strides are numbers at run time, and so is all of it for wider column strides,
in one loop over the taps (``algos/engine/planes.py``). Threads take planes through ``algos/engine/relay.py``.

The input's gradient of a stride 2 to 4 is of such tiles as well, of all residues of the stride, each element
of the result written once (``algos/engine/adjoint.py``); without a stride it is a forward pass.

The weights' gradient of a channel is one product of two pictures for each tap: rows of the gradient by rows
of the input, shifted, without a copy.

Cost: 2 * O * taps operations for each output pixel; small layers are bound by memory. Workspace: a row of
zeros, for the input's gradient one for each thread beside it. Accuracy: componentwise. NaN and infinity spoil
only the outputs whose window holds them. Forward and gradients, 1-D and 2-D, float32 and float64, every
stride, dilation and padding, forward and of the input up to ``MOST_TAPS`` taps; fast for column strides 1 to
4, gradients of weights for 1. For one channel it is a picture's filter.

Source: Zhang, Lo and Lu, "High performance depthwise and pointwise convolutions on mobile devices",
arXiv:2001.02504. Equivalent: ``torch.nn.functional.conv2d(x, w, groups=x.shape[1])``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.cpu._compiled import Compiled, Work
from algos.engine.adjoint import adjoint_rows
from algos.engine.blocks import Axis, axes
from algos.engine.epilogue import following
from algos.engine.jit import compiled, linked
from algos.engine.planes import Planes, element_size, tile_rows
from algos.engine.products import MOST_TAPS as MOST_SHARED
from algos.engine.products import add_products
from algos.engine.relay import BIAS, fork
from algos.engine.simd import place
from algos.engine.tables import named, table_of
from algos.engine.target import REGISTERS, VECTOR_BYTES
from algos.engine.threads import SHARES, worth
from algos.spec import ConvSpec

MOST_TAPS = 256  # of unrolled code: more take seconds to compile, and are faster by other methods
# Rows of a tile, and products of one lane in it: beyond them sums leave the registers
ROWS, PRODUCTS = 7, 256
PICKED_ROWS = 4  # of 16 registers, where column strides above 2 pick elements from as many vectors
# What is written into the code: column strides; row strides and dilations, at which rows of a tile share rows
# of the input.
UNROLLED_STRIDE, UNROLLED_STEP, UNROLLED_COLUMNS = 4, 4, 1 << 30
PICKING = 1, 1.5, 3.5, 3.5, 12  # what column strides 1 to 4, and wider ones, cost beside 1, measured
SHARED_S = 1e-5  # less work than this stays on one thread
# Of weight gradients, one thread, measured: a row of taps of a plane, a vector's masks, a product of two
# vectors at column strides 1, 2 and others.
TAPS_S, MASKS_S, PRODUCT_S = 2.5e-8, 2e-9, (9e-10, 4e-9, 1e-8)
# Of gradients of the input: a product of two vectors, and a vector of the result, 64 bytes each, measured
ADJOINT_S, ADJOINT_PRODUCTS = (4e-10, 6e-10), 64
FLOPS_PER_S = 5e10  # of one thread, float32, measured on AVX2


@linked(error_model="numpy")
def planes(x, y, w, zeros, table, biases, shape, slot, first, last):
    """Items [first, last), bands of rows of planes of y; all are addresses, ``table`` that of ``Planes``, and
    ``biases`` 0 for none.
    """
    layer = named(Planes, table)
    bands, channels, multiplier = layer.bands, layer.channels, layer.multiplier
    rows, size = len(shape[2]), element_size(shape)
    # Bytes of a plane of x, of a row of y
    picture, result = layer.height * layer.width * size, layer.out_width * size
    end = y + (last // bands * layer.out_height + last % bands * layer.out_height // bands) * result
    plane, band = first // bands, first % bands  # y[n][o] and x[n][c] count on over n
    channel, copy = plane % channels, plane % multiplier
    source = x + plane // multiplier * picture
    for _ in range(first, last):  # a small plane takes less time than the divisions that would find it
        oh, stop = 0, layer.out_height
        if bands > 1:
            oh, stop = layer.out_height * band // bands, layer.out_height * (band + 1) // bands
        while oh < stop:
            oh = min(oh, stop - rows)  # the last tile overlaps the one before
            target = y + (plane * layer.out_height + oh) * result  # y[n][o][oh][0]
            kernel = w + channel * layer.kernel_h * layer.kernel_w * size  # w[o][0][0][0]
            bias, top = biases + channel * size if biases != 0 else zeros, oh * layer.stride_h - layer.top
            tile_rows(source, kernel, target, end, zeros, bias, top, layer, shape)
            oh += rows
        band += 1
        if band == bands:
            band, plane, channel, copy = 0, plane + 1, channel + 1, copy + 1
            if channel == channels:
                channel = 0
            if copy == multiplier:
                copy, source = 0, source + picture


@compiled(error_model="numpy")
def all_planes(x, y, w, zeros, table, shape, job):
    """Every plane; ``shape`` is (element, what follows, rows of a tile, kernel, strides, dilations), numbers
    given as tuples' lengths.

    A wide dilation or row stride is given as 0, and all that follows the rows as (column stride or 2) where
    that is wide: ``table`` has them then.
    """
    addresses = place(x, 0), place(y, 0), place(w, 0), place(zeros, 0), place(table, 0), job[BIAS]
    fork(planes, (*addresses, shape), job)


@linked(error_model="numpy")
def products(x, y, dw, images, table, shape, slot, first, last):
    """Channels [first, last) of dw; all are addresses, of x, of the gradient y, of dw and of ``Planes``."""
    layer = named(Planes, table)
    taps, size = len(shape[1]), element_size(shape)
    stride, inputs = layer.stride_h, layer.channels // layer.multiplier
    picture, result = layer.height * layer.width * size, layer.out_height * layer.out_width * size
    for o in range(first, last):
        for n in range(images):
            source = x + (n * inputs + o // layer.multiplier) * picture  # x[n][c]
            given = y + (n * layer.channels + o) * result  # y[n][o]
            for kh in range(layer.kernel_h):
                shift = kh * layer.dilation_h - layer.top  # row oh reads oh * stride + shift
                low = max(0, (stride - 1 - shift) // stride)
                high = min(layer.out_height, (layer.height - 1 - shift) // stride + 1)
                if low >= high:
                    continue
                read = source + (low * stride + shift) * layer.width * size
                wanted = given + low * layer.out_width * size
                target = dw + (o * layer.kernel_h + kh) * layer.kernel_w * size  # dw[o][0][kh]
                for kw in range(0, layer.kernel_w, taps):
                    start = min(kw, layer.kernel_w - taps)  # the last ones overlap the ones before
                    add_products(read, wanted, target + start * size, high - low, start, kw - start, layer,
                                 shape)  # fmt: skip


@compiled(error_model="numpy")
def all_products(x, y, dw, table, shape, job):
    """Every channel; ``shape``: as ``add_products`` has it, beside ``Planes`` in ``table``."""
    dw[...] = 0
    arguments = place(x, 0), place(y, 0), place(dw, 0), len(x), place(table, 0), shape
    fork(products, arguments, job)


@linked(error_model="numpy")
def adjoint_planes(grad, y, w, zeros, spares, table, shape, slot, first, last):
    """Items [first, last), bands of rows of planes of y, each a row for every row of the stride; all are
    addresses, ``spares`` of a row of y for each thread.
    """
    layer = named(Planes, table)
    bands, channels, rows, size = layer.bands, layer.channels, len(shape[1]), element_size(shape)
    begin = layer.top // layer.stride_h
    count = (layer.top + layer.height - 1) // layer.stride_h + 1 - begin
    given, result = layer.out_height * layer.out_width * size, layer.height * layer.width * size
    for item in range(first, last):
        plane, band = item // bands, item % bands
        kernel = w + plane % channels * layer.kernel_h * layer.kernel_w * size  # w[c][0][0][0]
        row, stop = count * band // bands, count * (band + 1) // bands
        while row < stop:
            row = min(row, stop - rows)  # the last tile overlaps the one before
            adjoint_rows(grad + plane * given, kernel, y + plane * result, zeros,
                         spares + slot * layer.width * size, begin + row, layer, shape)  # fmt: skip
            row += rows


@compiled(error_model="numpy")
def all_adjoint(grad, y, w, zeros, spares, table, shape, job):
    """Every plane; ``shape``: as ``adjoint_rows`` has it."""
    addresses = place(grad, 0), place(y, 0), place(w, 0), place(zeros, 0), place(spares, 0), place(table, 0)
    fork(adjoint_planes, (*addresses, shape), job)


def _lines(axis: Axis) -> int:
    """Of each residue of the stride, the elements of an axis that the input's gradient takes at a time."""
    return (axis.before + axis.size - 1) // axis.stride + 1 - axis.before // axis.stride


def _written(spec: ConvSpec) -> tuple[int, ...]:
    """What of ``SHAPE`` is compiled into the code, 0 for a number at run time; or (column stride or 2) alone.
    """
    row, col = axes(spec)
    if col.stride > UNROLLED_STRIDE or spec.padded_size[-1] > UNROLLED_COLUMNS:
        return (min(col.stride, 2),)
    down, row_gap, gap = (n if n <= UNROLLED_STEP else 0 for n in (row.stride, row.dilation, col.dilation))
    return row.kernel, col.kernel, down, col.stride, row_gap, gap


def _shared_taps(spec: ConvSpec) -> tuple[int, int]:
    """Of a row of the kernel, how many are summed at a time; the column stride, 0 for what is gathered."""
    _, col = axes(spec)
    far = col.stride > 2 or spec.padded_size[-1] > UNROLLED_COLUMNS
    return -(-col.kernel // -(-col.kernel // MOST_SHARED)), 0 if far else col.stride


@dataclass(frozen=True)
class Depthwise(Compiled):
    """Tiles in registers; see the module.

    Attributes
    ----------
    rows : int
        Rows of outputs in a tile; 0 is as many as keep the sums in registers.
    """

    name: str = "depthwise"
    family: str = "direct"
    rows: int = 0
    called: ClassVar[bool] = False
    support: ClassVar[Support | None] = Support(
        ndim=(1, 2), directions=("forward", "input_gradient", "weight_gradient"), epilogues=True
    )

    def beyond(self, spec: ConvSpec) -> str | None:
        if spec.in_channels != spec.groups:
            inputs = spec.in_channels // spec.groups
            return f"computes depthwise layers, with one input channel a group, not {inputs}"
        if spec.direction != "weight_gradient" and math.prod(spec.kernel) > MOST_TAPS:
            return f"computes kernels of up to {MOST_TAPS} taps, not {math.prod(spec.kernel)}"
        if spec.direction == "input_gradient":
            return self._beyond_adjoint(spec)
        return None

    def _beyond_adjoint(self, spec: ConvSpec) -> str | None:
        """Why it cannot compute the input's gradient itself."""
        if max(spec.stride) == 1 or max(spec.stride) > UNROLLED_STRIDE or max(spec.dilation) > UNROLLED_STEP:
            return f"computes gradients of strides 2 to {UNROLLED_STRIDE} and dilations to {UNROLLED_STEP}"
        if spec.out_channels != spec.groups:
            return f"computes gradients of one output channel a group, not {spec.out_channels // spec.groups}"
        if max(spec.padded_size[-1], spec.size[-1]) > UNROLLED_COLUMNS:
            return f"computes gradients of up to {UNROLLED_COLUMNS} columns"
        return None

    def _seconds(self, spec: ConvSpec) -> float:
        """Of one thread: whole vectors of outputs, and for a few taps their loads and stores."""
        row, col = axes(spec)
        vector = VECTOR_BYTES // spec.in_dtype.itemsize
        if spec.direction == "input_gradient":
            tiles = _lines(row) * -(-_lines(col) // vector)  # vectors for each residue of the stride
            each = math.prod(spec.kernel) * ADJOINT_S[0] + row.stride * col.stride * ADJOINT_S[1]
            return spec.batch * spec.groups * tiles * each * (VECTOR_BYTES / 64)
        if spec.direction == "weight_gradient":
            taps, stride = _shared_taps(spec)
            times = spec.batch * spec.out_channels * row.kernel * -(-col.kernel // taps)
            each = taps * row.outputs * PRODUCT_S[stride - 1]  # of a vector of columns; 0 is the last
            return times * (TAPS_S + -(-col.outputs // vector) * (MASKS_S + each))
        vectors = math.prod(spec.output_shape) / col.outputs * -(-col.outputs // vector)
        each = (
            math.prod(spec.kernel)
            * 2
            * 8
            / FLOPS_PER_S
            * (VECTOR_BYTES / 32)
            * PICKING[min(col.stride, len(PICKING)) - 1]
        )
        # Measured: a row alone loads an input and a weight for each multiply-add
        few = 1 + 2.4 / self._rows(spec) ** 1.6
        return vectors * (each * few + 1e-9)

    def _rows(self, spec: ConvSpec) -> int:
        """Rows of a tile: of outputs, or of the input's gradient for each row of the stride."""
        row, col = axes(spec)
        every, products = row.outputs, PRODUCTS
        most = ROWS if REGISTERS == 32 or col.stride < 3 else PICKED_ROWS
        if spec.direction == "input_gradient":
            every, products = _lines(row), ADJOINT_PRODUCTS
        most = self.rows or max(1, min(most, products // math.prod(spec.kernel)))
        return -(-every // -(-every // min(most, every)))

    def _cut(self, spec: ConvSpec, threads: int) -> tuple[int, int, int]:
        """(threads worth using, rows of a tile, bands of rows of a plane)."""
        row, _ = axes(spec)
        threads = worth(threads, self._seconds(spec), SHARED_S)
        if spec.direction == "weight_gradient":
            return min(threads, spec.out_channels), 1, 1
        rows = self._rows(spec)
        wanted = SHARES * threads if threads > 1 else 1
        every = row.outputs if spec.direction == "forward" else _lines(row)
        planes = spec.batch * spec.out_channels

        def tiles(bands: int) -> int:
            """Of the thread that has most."""
            return -(-planes * bands // threads) * -(-every // (bands * rows))

        # The most of those with which it has least: then none waits long for the last
        bands = min(range(max(1, min(-(-wanted // planes), every // rows)), 0, -1), key=tiles)
        return min(threads, planes * bands), rows, bands

    def alternatives(self, spec: ConvSpec, threads: int = 1) -> Sequence[Algorithm]:
        return self.variants(lambda one: one._cut(spec, threads), rows=range(1, ROWS + 1))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        if spec.direction == "weight_gradient":
            return 0
        _, col = axes(spec)
        zeros = col.size
        if spec.direction == "input_gradient":
            zeros = col.outputs + self._cut(spec, threads)[0] * col.size
        return zeros * spec.in_dtype.itemsize

    def work(self, spec: ConvSpec, weights: np.ndarray | None, threads: int) -> Work:
        row, col = axes(spec)
        threads, rows, bands = self._cut(spec, threads)
        planes = Planes(row.size, col.size, row.outputs, col.outputs, row.before, col.before, bands,
                        spec.out_channels, spec.out_channels // spec.groups, row.kernel, col.kernel,
                        row.stride, col.stride, row.dilation, col.dilation)  # fmt: skip
        if weights is None:
            shape = (spec.in_dtype.type(0), *((0,) * n for n in _shared_taps(spec)))
            return Work(all_products, (table_of(planes), shape), spec.out_channels, threads,
                        self._seconds(spec), as_2d=True)  # fmt: skip
        if spec.direction == "input_gradient":
            steps = row.kernel, col.kernel, row.stride, col.stride, row.dilation, col.dilation
            shape = (spec.in_dtype.type(0), *((0,) * n for n in (rows, *steps)))
            zeros, spares = (np.zeros(n, spec.in_dtype) for n in (col.outputs, threads * col.size))
            return Work(all_adjoint, (weights, zeros, spares, table_of(planes), shape),
                        spec.batch * spec.groups * bands, threads, self._seconds(spec))  # fmt: skip
        shape = (spec.in_dtype.type(0), following(spec), *((0,) * n for n in (rows, *_written(spec))))
        arguments = weights, np.zeros(col.size, spec.in_dtype), table_of(planes), shape
        return Work(all_planes, arguments, spec.batch * spec.out_channels * bands, threads,
                    self._seconds(spec))

    def compile_s(self, spec: ConvSpec) -> float:
        if spec.direction == "weight_gradient":
            return 0.35
        if spec.direction == "input_gradient":
            return 0.5 + 0.01 * math.prod(spec.kernel)
        return 0.7 + 0.01 * (math.prod(spec.kernel) if len(_written(spec)) > 1 else 0)

    def specialised(self, spec: ConvSpec) -> tuple[Any, ...]:
        if spec.direction == "weight_gradient":
            return spec.dtype, spec.ndim, spec.direction, *_shared_taps(spec)
        if spec.direction == "input_gradient":
            return (spec.dtype, spec.ndim, spec.direction, self._rows(spec), *spec.kernel, *spec.stride,
                    *spec.dilation)  # fmt: skip
        return spec.dtype, spec.ndim, len(following(spec)), self._rows(spec), *_written(spec)

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        parallel = threads > 1 and self._cut(spec, threads)[0] > 1
        return Cost(self._seconds(spec) * FLOPS_PER_S, spec.min_bytes, calls=2, flops_per_s=FLOPS_PER_S,
                    parallel=parallel)  # fmt: skip


ALGORITHMS = [Depthwise()]
