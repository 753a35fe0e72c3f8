"""Products in the frequency domain: one transform of the image, one product, one transform back, whatever the
kernel's size.

The weights are transformed in ``prepare`` and buffers are kept, which makes a run 1.6 to 2.2 times faster
than ``scipy.signal.fftconvolve``. The kernel is placed so that the first output lands at index 0, and the
cyclic length need only reach size + max(padding): what wraps round meets zeros, or falls on outputs that are
not kept. Rows of zeros are never transformed, nor are rows of outputs that the stride drops.

Cost, for each image, with F = length of the cyclic grid: 2.5 F log2 F for every input and output channel, and
4 F operations for every pair of channels in a group. Workspace: transformed weights (4 or 8 bytes x F x O x
C/groups), and transformed channels of ``block_bytes`` of images. Accuracy: normwise: errors are relative to
the largest output, so small outputs beside huge ones are noise. One NaN or infinity in an image makes all
outputs of the channels that read it NaN. Range: that of the type. Weights are scaled by powers of two, and so
is a copy of an image near an end of it. Forward, 1-D to 3-D, float32 and float64, every stride (outputs are
subsampled), dilation (zeros between taps), padding, groups.

Source: Mathieu, Henaff and LeCun, "Fast training of convolutional networks through FFTs", arXiv:1312.5851.
Equivalent: ``scipy.signal.fftconvolve(x, w[..., ::-1, ::-1])``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, ClassVar

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.engine.blas import blas_limit
from algos.engine.cyclic import fast_length, least_lengths
from algos.engine.ranges import Scaling
from algos.engine.threads import share
from algos.host import caches
from algos.spec import ConvSpec

# As in scipy.fft.next_fast_len, without its slow import
REAL_FACTORS, COMPLEX_FACTORS = (2, 3, 5), (2, 3, 5, 7, 11)
# Up to here a pass over memory for each input channel beats a small product for each frequency
FEW_CHANNELS = 4
FREQUENCIES = 512  # multiplied at a time, so that both layouts of the channels stay in the cache
THREADED_POINTS = 250_000  # smaller transforms cost less than waking scipy.fft's threads (0.4 ms, measured)


@lru_cache(maxsize=1024)
def cyclic_size(spec: ConvSpec) -> tuple[int, ...]:
    """The lengths transformed, the last of which is real before."""
    *others, last = least_lengths(spec)
    return (*(fast_length(least, COMPLEX_FACTORS) for least in others), fast_length(last, REAL_FACTORS))


def placed(spec: ConvSpec, weights: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """(o, i, *lengths): tap t at index padding - t * dilation modulo the
    length, so that output 0 lands at index 0.
    """
    result = np.zeros((*weights.shape[:2], *lengths), weights.dtype)
    where = [
        (before - np.arange(k) * d) % length
        for k, d, (before, _), length in zip(spec.kernel, spec.dilation, spec.padding, lengths, strict=True)
    ]
    places: Any = (slice(None), slice(None), *np.ix_(*where))
    np.add.at(result, places, weights)
    return result


@dataclass(frozen=True)
class Fft(Algorithm):
    """scipy.fft, planned; see the module.

    Attributes
    ----------
    block_bytes : int
        Images are transformed together up to about this many bytes of transformed channels.
    """

    name: str = "fft"
    family: str = "fft"
    accuracy: str = "normwise"
    block_bytes: int = 32 << 20
    support: ClassVar[Support | None] = Support(ndim=(1, 2, 3))

    def _half(self, spec: ConvSpec) -> tuple[int, ...]:
        """Shape of one real channel's transform."""
        lengths = cyclic_size(spec)
        return (*lengths[:-1], lengths[-1] // 2 + 1)

    def _images(self, spec: ConvSpec) -> int:
        each = (
            (spec.in_channels + spec.out_channels) * math.prod(self._half(spec)) * 2 * spec.in_dtype.itemsize
        )
        return max(1, min(spec.batch, self.block_bytes // each))

    def _dense(self, spec: ConvSpec) -> bool:
        return spec.in_channels // spec.groups > FEW_CHANNELS

    def _workers(self, spec: ConvSpec, threads: int) -> int:
        channels = self._images(spec) * max(spec.in_channels, spec.out_channels)
        alone = spec.ndim == 1 and channels == 1  # scipy.fft's threads take whole lines
        return threads if channels * math.prod(self._half(spec)) > THREADED_POINTS and not alone else 1

    def _in_place(self, spec: ConvSpec) -> bool:
        """One channel in and one out in every group: the product overwrites the image's transform."""
        return spec.in_channels == spec.out_channels == spec.groups

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        half, images, unit = self._half(spec), self._images(spec), spec.in_dtype.itemsize
        points, inputs, outputs = math.prod(half), images * spec.in_channels, images * spec.out_channels
        kernels = spec.out_channels * (spec.in_channels // spec.groups) * points * 2
        # scipy.fft pads a copy
        rows_in = inputs * math.prod(spec.size[:-1]) * (half[-1] * 2 + cyclic_size(spec)[-1])
        rows_out = outputs * math.prod(spec.output_size[:-1]) * cyclic_size(spec)[-1]
        held = inputs * points * 2 if spec.ndim > 1 else 0
        products = 0 if self._in_place(spec) else outputs * points * 2
        if self._dense(spec):
            products += (
                min(FREQUENCIES * self._workers(spec, threads), points) * (3 * inputs + 2 * outputs) * 2
            )
        elif spec.in_channels > spec.groups:
            products += outputs * points * 2
        if images > 1:
            # Seen with several images: NumPy takes a copy of the result on its way
            products += outputs * points * 2
        scaling = 4 * spec.out_channels * (spec.in_channels // spec.groups) * math.prod(spec.kernel)
        placing = scaling + 3 * self._placed(spec) * (spec.in_channels // spec.groups) * math.prod(
            cyclic_size(spec)
        )
        return (kernels + max(held + products + max(rows_in, rows_out), placing)) * unit

    def _placed(self, spec: ConvSpec) -> int:
        """Output channels whose weights are transformed together in ``prepare``."""
        each = (
            3 * (spec.in_channels // spec.groups) * math.prod(self._half(spec)) * 2 * spec.in_dtype.itemsize
        )
        channels = spec.out_channels // spec.groups if self._dense(spec) else spec.out_channels
        return max(1, min(channels, self.block_bytes // each))

    def _kernels(self, spec: ConvSpec, weights: np.ndarray) -> np.ndarray:
        """(group, output, input, frequency), in the memory order that the product reads."""
        import scipy.fft

        lengths, points = cyclic_size(spec), math.prod(self._half(spec))
        groups = spec.groups
        inputs, outputs = spec.in_channels // groups, spec.out_channels // groups
        unit = np.result_type(spec.in_dtype, np.complex64)
        if self._dense(spec):
            result = np.empty((points, groups, inputs, outputs), unit).transpose(1, 3, 2, 0)
        else:
            result = np.empty((groups, outputs, inputs, points), unit)
        step, shares = self._placed(spec), groups if self._dense(spec) else 1
        grouped = weights.reshape(shares, -1, *weights.shape[1:])
        target = result.reshape(shares, -1, inputs, points)  # a view: without shares, memory is in this order
        for owner, first in product(range(shares), range(0, grouped.shape[1], step)):
            taps = grouped[owner, first : first + step]
            found = scipy.fft.rfftn(placed(spec, taps, lengths), axes=tuple(range(2, 2 + spec.ndim)))
            target[owner, first : first + step] = found.reshape(len(found), inputs, points)
            del found  # before the next one is made
        return result

    def _multiplication(
        self, spec: ConvSpec, kernels: np.ndarray, workers: int
    ) -> Callable[[np.ndarray], np.ndarray]:
        """What makes spectra of outputs from those of inputs."""
        groups, inputs, outputs = (
            spec.groups,
            spec.in_channels // spec.groups,
            spec.out_channels // spec.groups,
        )
        half, images, dense = self._half(spec), self._images(spec), self._dense(spec)
        points = math.prod(half)
        products = (
            None if self._in_place(spec) else np.empty((images, spec.out_channels, *half), kernels.dtype)
        )
        if dense:
            kernels = kernels.transpose(3, 0, 2, 1)  # (frequency, group, input, output), contiguous

        def multiply(spectra: np.ndarray) -> np.ndarray:
            """(n, c, *half) -> (n, o, *half)"""
            n = len(spectra)
            x = spectra.reshape(n, groups, inputs, points)
            if products is None:
                x *= kernels[:, 0]
                return spectra
            y = products[:n].reshape(n, groups, outputs, points)
            if dense:

                def block(first: int, last: int) -> None:
                    for start in range(first * FREQUENCIES, min(points, last * FREQUENCIES), FREQUENCIES):
                        part = slice(start, start + FREQUENCIES)
                        # (frequency, group, n, input)
                        columns = np.ascontiguousarray(x[..., part].transpose(3, 1, 0, 2))
                        y[..., part] = np.matmul(columns, kernels[part]).transpose(2, 1, 3, 0)

                # Thousands of small products: threads pay off over frequencies, not inside
                with blas_limit(1):
                    share(block, -(-points // FREQUENCIES), workers)
            else:
                np.multiply(x[:, :, :1], kernels[:, :, 0], out=y)
                for i in range(1, inputs):
                    y += x[:, :, i : i + 1] * kernels[:, :, i]
            return products[:n]

        return multiply

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        import scipy.fft

        lengths, half, images = cyclic_size(spec), self._half(spec), self._images(spec)
        axes = tuple(range(2, 2 + spec.ndim))
        workers = self._workers(spec, threads)
        scaling = Scaling(weights, math.prod(lengths))
        kernels = self._kernels(spec, scaling.weights)
        del scaling.weights  # their spectra are kept
        spectrum = np.zeros((images if spec.ndim > 1 else 0, spec.in_channels, *half), kernels.dtype)
        multiply = self._multiplication(spec, kernels, workers)

        def forward(x: np.ndarray) -> np.ndarray:
            """(n, c, *half): the transform of x, last axis first, leaving out the rows of zeros."""
            rows = scipy.fft.rfft(x, lengths[-1], workers=workers)
            if spec.ndim == 1:
                return rows
            result = spectrum[: len(x)]
            inside = tuple(slice(n) for n in spec.size[:-1])
            for axis, (size, length) in enumerate(zip(spec.size[:-1], lengths[:-1], strict=True), start=2):
                if size < length:
                    result[(slice(None),) * axis + (slice(size, None),)] = 0
            result[:, :, *inside] = rows
            for axis in reversed(axes[:-1]):
                part = result[(slice(None), slice(None), *inside[: axis - 2])]
                done = scipy.fft.fft(part, axis=axis, workers=workers, overwrite_x=True)
                if not np.may_share_memory(done, part):
                    part[...] = done
            return result

        def backward(spectra: np.ndarray, kinds: Sequence[int], y: np.ndarray) -> None:
            """Invert, first axis first, keeping only the rows that become outputs; ``kinds``: of ``scaling``.
            """
            for axis in axes[:-1]:
                spectra = scipy.fft.ifft(
                    spectra, axis=axis, norm="forward", workers=workers, overwrite_x=True
                )
                stop, step = (
                    (spec.output_size[axis - 2] - 1) * spec.stride[axis - 2] + 1,
                    spec.stride[axis - 2],
                )
                spectra = spectra[(slice(None),) * axis + (slice(0, stop, step),)]
            rows = scipy.fft.irfft(spectra, lengths[-1], norm="forward", workers=workers, overwrite_x=True)
            scaling.store(
                rows[..., : (spec.output_size[-1] - 1) * spec.stride[-1] + 1 : spec.stride[-1]], kinds, y
            )

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            for first in range(0, spec.batch, images):
                part = slice(first, first + images)
                some, kinds = scaling.load(x[part])
                backward(multiply(forward(some)), kinds, y[part])
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        points = math.prod(cyclic_size(spec))
        channels = spec.batch * (spec.in_channels + spec.out_channels)
        pairs = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
        transforms = 2.5 * points * math.log2(max(2, points)) * channels
        unit = spec.in_dtype.itemsize
        weights = pairs // spec.batch * points * unit * -(-spec.batch // self._images(spec))
        # A line beyond the caches is passed over, read and written, for each radix; with strides, which cost
        # memory four times.
        line, passes = cyclic_size(spec)[-1] * unit, 4.0
        if 2 * line > caches()["L2"]:
            passes += 2 * math.log(cyclic_size(spec)[-1], 4) * (4 if 2 * line > caches()["L3"] // 2 else 1)
        return Cost(
            transforms + 4 * points * pairs,
            spec.min_bytes + passes * points * channels * unit + weights,
            calls=20 + 20 * spec.ndim + (0.3 * math.prod(self._half(spec)) if self._dense(spec) else 0),
            flops_per_s=1e10 if spec.dtype == "float32" else 6e9,
            parallel=self._workers(spec, threads) > 1,
        )


ALGORITHMS = [Fft()]
