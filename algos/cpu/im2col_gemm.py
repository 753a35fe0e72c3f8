"""im2col: copy every window into a column of a matrix, then one matrix product does all channels and taps.

Cost: 2 * O * C/groups * taps operations for each output pixel in BLAS, and C * taps elements copied for each
pixel. The column matrix is made for a block of rows at a time, ``block_bytes`` of it, so that BLAS finds it
in the cache and the workspace stays bounded: 4096x4096 with 3x3 took 51 ms so, 110 ms with one matrix of 600
MB. Each thread makes and multiplies blocks of its own, with BLAS held to one thread; only the 1x1 product is
left to BLAS's threads. A 1x1 kernel with stride 1 needs no copy. Workspace: the columns of a block for each
thread, and one padded image. Accuracy: componentwise. NaN and infinity spoil only the outputs whose window
holds them, as far as BLAS does not skip zeros. The weights' gradient multiplies the same columns by the
gradient of their outputs, and sums over blocks and images. The input's gradient makes columns by the product
of the weights, as they lie, with the gradient, a part of the channels at a time, and adds each tap's where it
read: nothing is prepared, so that new weights at every call cost nothing. Forward and gradients, 1-D to 3-D,
float32 and float64, every stride, dilation, padding and number of groups (many small products: slow).

Source: Chellapilla, Puri and Simard, "High performance convolutional neural networks for document
processing", 2006. Equivalent: ``w @ torch.nn.functional.unfold(x, kernel)``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from algos.contract import PREPARE_S, Algorithm, Cost, Support
from algos.engine.blas import blas_limit
from algos.engine.epilogue import in_a_pass, in_blocks
from algos.engine.threads import share, split
from algos.engine.windows import interior, padded_shape, reach, read_slice, windows
from algos.spec import ConvSpec

COPIED_BYTES_PER_S = 1.6e10  # windows into columns, measured
SHARED_FLOPS = 2e7  # below, one thread needs less than a few hand-overs


def is_pointwise(spec: ConvSpec) -> bool:
    """Whether the input already is its column matrix."""
    return set(spec.kernel) == set(spec.stride) == {1} and not any(map(any, spec.padding))


@dataclass(frozen=True)
class Im2colGemm(Algorithm):
    """Windows as columns, then BLAS; see the module.

    Attributes
    ----------
    block_bytes : int
        Size of the column matrix of one block, at least one row of outputs.
    """

    name: str = "im2col_gemm"
    family: str = "gemm"
    block_bytes: int = 2 << 20
    support: ClassVar[Support | None] = Support(
        ndim=(1, 2, 3), directions=("forward", "input_gradient", "weight_gradient"), epilogues=True
    )

    def _step(self, spec: ConvSpec, threads: int) -> int:
        """First-axis outputs in a block; equal blocks, as many for every thread."""
        row = (
            spec.in_channels
            * math.prod(spec.kernel)
            * math.prod(spec.output_size[1:])
            * spec.in_dtype.itemsize
        )
        rows = spec.output_size[0]
        blocks = -(-rows // max(1, self.block_bytes // row))
        return -(-rows // (-(-blocks // threads) * threads))

    def _threads(self, spec: ConvSpec, threads: int) -> int:
        """Threads that make and multiply blocks of their own; the hand-over costs 50 us for each image."""
        return (
            min(threads, spec.output_size[0])
            if spec.flops / spec.batch > SHARED_FLOPS and not is_pointwise(spec)
            else 1
        )

    def _columns(self, spec: ConvSpec, threads: int) -> int:
        """Elements of the column matrix of a block."""
        return (
            spec.in_channels
            * math.prod(spec.kernel)
            * self._step(spec, threads)
            * math.prod(spec.output_size[1:])
        )

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        sums = math.prod(spec.weight_shape) if spec.direction == "weight_gradient" else 0  # of one thread
        if is_pointwise(spec):
            return sums * spec.in_dtype.itemsize
        if spec.direction == "input_gradient":
            columns = self._adjoint_columns(spec, threads)
            adding = 2 * min(np.getbufsize(), columns // math.prod(spec.kernel))  # what NumPy adds through
            return self._shares(spec, threads) * (columns + adding) * spec.in_dtype.itemsize
        threads = self._threads(spec, threads)
        padded = math.prod(padded_shape(spec)) if any(map(any, spec.padding)) else 0
        return (threads * (self._columns(spec, threads) + 2 * sums) + padded) * spec.in_dtype.itemsize

    def prepare(
        self, spec: ConvSpec, weights: np.ndarray | None, threads: int = 1, bias: np.ndarray | None = None
    ) -> Callable[..., np.ndarray]:
        if weights is None:
            return self._weight_gradient(spec, threads)
        if spec.direction == "input_gradient":
            return self._input_gradient(spec, weights, threads)
        groups, outputs = spec.groups, spec.out_channels // spec.groups
        w = weights.reshape(groups, outputs, -1)
        finish = in_blocks(spec, bias)
        if is_pointwise(spec):
            finish_all = None if finish is None else in_a_pass(spec, bias, threads)

            def run_pointwise(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
                y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
                np.matmul(
                    w,
                    x.reshape(spec.batch, groups, w.shape[2], -1),
                    out=y.reshape(spec.batch, groups, outputs, -1),
                )
                if finish_all is not None:
                    finish_all(y)
                return y

            return run_pointwise

        walk, _ = self._blocks(spec, threads)

        def multiply(part: int, y: np.ndarray, n: int, pixels: slice, matrix: np.ndarray) -> None:
            np.matmul(w, matrix, out=y[n, :, :, pixels])
            if finish is not None:
                finish(y, n, 0, spec.out_channels, pixels.start, pixels.stop - pixels.start)

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            walk(x, y, multiply)
            return y

        return run

    def _blocks(self, spec: ConvSpec, threads: int) -> tuple[Callable[..., None], int]:
        """What makes the columns of every block and hands them on, and the threads that it shares the blocks
        among.

        ``walk(x, y, multiply)`` calls ``multiply(part, outputs, n, pixels, matrix)`` with the number of the
        thread, y or its gradient as (n, g, o, pixels), the image and pixels of the block, and its columns,
        (g, i * taps, pixels).
        """
        groups, outputs = spec.groups, spec.out_channels // spec.groups
        threads = self._threads(spec, threads)
        padded = np.zeros(padded_shape(spec), spec.in_dtype) if any(map(any, spec.padding)) else None
        columns = np.empty((threads, self._columns(spec, threads)), spec.in_dtype)
        step, rows, inner = self._step(spec, threads), spec.output_size[0], math.prod(spec.output_size[1:])
        core = interior(spec)
        parts = split(-(-rows // step), threads)

        def walk(
            x: np.ndarray, y: np.ndarray, multiply: Callable[[int, np.ndarray, int, slice, np.ndarray], None]
        ) -> None:
            flat = y.reshape(spec.batch, groups, outputs, rows * inner)
            with blas_limit(1) if len(parts) > 1 else contextlib.nullcontext():
                for n, image in enumerate(x):
                    if padded is not None:
                        padded[core] = image
                        image = padded

                    def blocks(part: int, _: int, n: int = n, image: np.ndarray = image) -> None:
                        for first in range(parts[part][0] * step, min(rows, parts[part][1] * step), step):
                            last = min(rows, first + step)
                            view = windows(image, spec, first, last)
                            block = columns[part, : view.size].reshape(view.shape)
                            np.copyto(block, view)
                            pixels = slice(first * inner, last * inner)
                            multiply(
                                part, flat, n, pixels, block.reshape(groups, -1, (last - first) * inner)
                            )

                    share(blocks, len(parts), len(parts))

        return walk, len(parts)

    def _weight_gradient(self, spec: ConvSpec, threads: int) -> Callable[..., np.ndarray]:
        """The same blocks of columns, each multiplied by the gradient of its outputs and summed by its
        thread.
        """
        groups, outputs = spec.groups, spec.out_channels // spec.groups
        taps = math.prod(spec.weight_shape[1:])
        if is_pointwise(spec):

            def run_pointwise(x: np.ndarray, grad: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
                dw = np.empty(spec.weight_shape, spec.in_dtype) if out is None else out
                total, product = dw.reshape(groups, outputs, taps), None
                total[...] = 0
                for image, given in zip(x, grad, strict=True):
                    matrix = image.reshape(groups, taps, -1).swapaxes(1, 2)
                    product = np.matmul(given.reshape(groups, outputs, -1), matrix, out=product)
                    total += product
                return dw

            return run_pointwise

        walk, parts = self._blocks(spec, threads)
        sums, products = np.empty((2, parts, groups, outputs, taps), spec.in_dtype)

        def multiply(part: int, grad: np.ndarray, n: int, pixels: slice, matrix: np.ndarray) -> None:
            np.matmul(grad[n, :, :, pixels], matrix.swapaxes(1, 2), out=products[part])
            np.add(sums[part], products[part], out=sums[part])

        def run(x: np.ndarray, grad: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            dw = np.empty(spec.weight_shape, spec.in_dtype) if out is None else out
            sums[...] = 0
            walk(x, grad, multiply)
            np.sum(sums, 0, out=dw.reshape(groups, outputs, taps))
            return dw

        return run

    def _shares(self, spec: ConvSpec, threads: int) -> int:
        """Threads that share an input's gradient."""
        return min(threads, spec.in_channels) if spec.flops > SHARED_FLOPS else 1

    def _units(self, spec: ConvSpec, threads: int) -> list[tuple[slice, slice]]:
        """Groups, and channels of each, whose columns are made at a time: as many for every thread."""
        each = math.prod(spec.kernel) * math.prod(spec.output_size) * spec.in_dtype.itemsize
        channels, shares = spec.in_channels // spec.groups, self._shares(spec, threads)
        most = max(1, min(self.block_bytes // each, -(-spec.in_channels // shares)))
        groups, some = max(1, most // channels), -(-channels // -(-channels // min(most, channels)))
        return [
            (slice(g, min(g + groups, spec.groups)), slice(c, min(c + some, channels)))
            for g in range(0, spec.groups, groups)
            for c in range(0, channels, some)
        ]

    def _adjoint_columns(self, spec: ConvSpec, threads: int) -> int:
        """Elements of the columns of a unit."""
        groups, channels = self._units(spec, threads)[0]
        wide = (groups.stop - groups.start) * (channels.stop - channels.start)
        return wide * math.prod(spec.kernel) * math.prod(spec.output_size)

    def _input_gradient(
        self, spec: ConvSpec, weights: np.ndarray, threads: int
    ) -> Callable[..., np.ndarray]:
        groups, outputs, taps = spec.groups, spec.out_channels // spec.groups, math.prod(spec.kernel)
        turned = weights.reshape(groups, outputs, -1).swapaxes(1, 2)
        pixels = math.prod(spec.output_size)
        if is_pointwise(spec):

            def run_pointwise(grad: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
                dx = np.empty(spec.input_shape, spec.in_dtype) if out is None else out
                given = grad.reshape(spec.batch, groups, outputs, pixels)
                np.matmul(turned, given, out=dx.reshape(spec.batch, groups, -1, pixels))
                return dx

            return run_pointwise

        shares, units = self._shares(spec, threads), self._units(spec, threads)
        columns = np.empty((shares, self._adjoint_columns(spec, threads)), spec.in_dtype)
        places = list(_places(spec))

        def run(grad: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            dx = np.empty(spec.input_shape, spec.in_dtype) if out is None else out
            planes = dx.reshape(spec.batch, groups, -1, *spec.size)
            given = grad.reshape(spec.batch, groups, outputs, pixels)

            def some(first: int, last: int, part: int) -> None:
                for item in range(first, last):
                    n, (group, channels) = item // len(units), units[item % len(units)]
                    target = planes[n, group, channels]
                    wide = target.shape[1] * taps
                    matrix = columns[part, : len(target) * wide * pixels].reshape(len(target), wide, pixels)
                    rows = slice(channels.start * taps, channels.start * taps + wide)
                    np.matmul(turned[group, rows], given[n, group], out=matrix)
                    found = matrix.reshape(*target.shape[:2], taps, *spec.output_size)
                    target[...] = 0
                    for tap, (read, by) in enumerate(places):
                        at: Any = (slice(None), slice(None), *read)
                        own: Any = (slice(None), slice(None), tap, *by)
                        target[at] += found[own]

            with blas_limit(1) if shares > 1 else contextlib.nullcontext():
                parts = split(spec.batch * len(units), shares)
                share(lambda part, _: some(*parts[part], part), len(parts), len(parts))
            return dx

        return run

    def prepare_s(self, spec: ConvSpec, threads: int = 1) -> float:
        """Nothing is written before a run."""
        return PREPARE_S

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        wide = spec.out_channels // spec.groups >= 16  # with few output channels BLAS waits for the columns
        speed = (6.5e10 if wide else 2e10) * 4 / spec.in_dtype.itemsize
        if is_pointwise(spec):
            again = 2 * math.prod(spec.output_shape) * spec.out_dtype.itemsize  # what follows is a pass
            return Cost(spec.flops, spec.min_bytes + again * spec.finished, calls=4, flops_per_s=speed)
        copied = spec.macs // (spec.out_channels // spec.groups) * spec.in_dtype.itemsize
        blocks = spec.batch * -(-spec.output_size[0] // self._step(spec, 1))
        operations = spec.flops + copied * speed / COPIED_BYTES_PER_S
        shared = wide or self._threads(spec, threads) > 1
        return Cost(operations, spec.min_bytes, calls=6 * blocks + 20, flops_per_s=speed, parallel=shared)


def _places(spec: ConvSpec) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Of each tap, what it reads of the image, and by which outputs."""
    for taps in np.ndindex(*spec.kernel):
        ends = [reach(spec, axis, tap) for axis, tap in enumerate(taps)]
        inside = all(first < last for first, last in ends)
        yield (
            tuple(read_slice(spec, axis, tap, *ends[axis]) if inside else slice(0) for axis, tap in
                  enumerate(taps)),
            tuple(slice(*end) if inside else slice(0) for end in ends),
        )  # fmt: skip


ALGORITHMS = [Im2colGemm()]
