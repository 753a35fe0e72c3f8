"""Products in the frequency domain with cuFFT: both plans, the transformed weights and the buffers are made
in ``prepare``.

The kernel is placed so that the first output lands at index 0, and the cyclic length need only reach size +
max(padding): what wraps round meets zeros, or falls on outputs that are not kept. With few channels a pass
over memory for each input channel makes the products; with more, frequencies become the leading axis and
cuBLAS multiplies one small matrix for each of them.

Cost, for each image, with F = length of the cyclic grid: 2.5 F log2 F for every input and output channel, and
4 F operations for every pair of channels in a group. Workspace: transformed weights (4 or 8 bytes x F x O x
C/groups), images and transforms of ``block_bytes`` of images, and cuFFT's own work areas, reckoned as large
as the transforms. Accuracy: normwise: errors are relative to the largest output, so small outputs beside huge
ones are noise. One NaN or infinity in an image makes all outputs of the channels that read it NaN. Range:
weights are scaled by powers of two; images are not: see ``caveat``. Forward, 1-D to 3-D, float32 and float64,
every stride (outputs are subsampled), dilation (zeros between taps), padding, groups.

Source: Mathieu, Henaff and LeCun, "Fast training of convolutional networks through FFTs", arXiv:1312.5851.
Equivalent: ``cupyx.scipy.signal.fftconvolve(x, w[..., ::-1, ::-1])``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, ClassVar

import numpy as np

from algos.contract import Cost, Support
from algos.engine.cyclic import fast_length, least_lengths
from algos.engine.ranges import Scaling, thresholds
from algos.gpu._cupy import CupyAlgorithm, broken, device_cost
from algos.spec import ConvSpec

FACTORS = (2, 3, 5, 7)  # cuFFT has special code for these
# Up to here a pass over memory for each input channel beats a small product for each frequency
FEW_CHANNELS = 4
FREQUENCIES = 1 << 14  # multiplied at a time, which bounds both reordered copies and cuBLAS's batch


@lru_cache(maxsize=1024)
def cyclic_size(spec: ConvSpec) -> tuple[int, ...]:
    """The lengths transformed; 2 at least, since plans want axes that are axes."""
    return tuple(fast_length(max(least, 2), FACTORS) for least in least_lengths(spec))


def positions(spec: ConvSpec, axis: int) -> np.ndarray:
    """(taps, length): a single 1 in each row, where the tap stands: at padding
    - tap * dilation, modulo the length.
    """
    length, (before, _) = cyclic_size(spec)[axis], spec.padding[axis]
    result = np.zeros((spec.kernel[axis], length), spec.in_dtype)
    taps = np.arange(spec.kernel[axis])
    result[taps, (before - taps * spec.dilation[axis]) % length] = 1
    return result


@dataclass(frozen=True)
class CupyFft(CupyAlgorithm):
    """cuFFT, planned; see the module.

    Attributes
    ----------
    block_bytes : int
        Images are transformed together up to about this many bytes of transformed channels.
    """

    name: str = "cupy_fft"
    family: str = "fft"
    accuracy: str = "normwise"
    block_bytes: int = 512 << 20

    library: ClassVar[str] = "cufft"

    def unavailable(self) -> str | None:
        return super().unavailable() or broken("cublas")

    support: ClassVar[Support | None] = Support(ndim=(1, 2, 3))

    @property
    def fft(self) -> Any:
        """The module with ``rfftn`` and ``irfftn``."""
        import cupyx.scipy.fft

        return cupyx.scipy.fft

    def plan(self, array: Any, lengths: tuple[int, ...], axes: tuple[int, ...], kind: str) -> Any:
        """A cuFFT plan, to be used as a context, for arrays of this shape; ``kind`` is R2C or C2R."""
        return self.fft.get_fft_plan(array, lengths, axes, value_type=kind)

    def _half(self, spec: ConvSpec) -> tuple[int, ...]:
        """Shape of one real channel's transform."""
        lengths = cyclic_size(spec)
        return (*lengths[:-1], lengths[-1] // 2 + 1)

    def _images(self, spec: ConvSpec) -> int:
        """Images of a block: equal blocks, since a plan knows one shape."""
        each = (
            (spec.in_channels + spec.out_channels) * math.prod(self._half(spec)) * 2 * spec.in_dtype.itemsize
        )
        return -(-spec.batch // -(-spec.batch // max(1, self.block_bytes // each)))

    def _dense(self, spec: ConvSpec) -> bool:
        return spec.in_channels // spec.groups > FEW_CHANNELS

    def _in_place(self, spec: ConvSpec) -> bool:
        """One channel in and one out in every group: the product overwrites the image's transform."""
        return spec.in_channels == spec.out_channels == spec.groups

    def _placed(self, spec: ConvSpec) -> tuple[int, int]:
        """Groups, and output channels of each, whose weights are transformed together."""
        outputs = spec.out_channels // spec.groups
        each = (spec.in_channels // spec.groups) * math.prod(cyclic_size(spec)) * spec.in_dtype.itemsize
        most = max(1, self.block_bytes // (6 * each))
        return (min(spec.groups, most // outputs), outputs) if most >= outputs else (1, most)

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        lengths, images, unit = math.prod(cyclic_size(spec)), self._images(spec), spec.in_dtype.itemsize
        points, inputs, outputs = (
            math.prod(self._half(spec)),
            images * spec.in_channels,
            images * spec.out_channels,
        )
        kernels = spec.out_channels * (spec.in_channels // spec.groups) * points * 2
        products = 0 if self._in_place(spec) else outputs * points * 2
        if self._dense(spec):
            products += min(FREQUENCIES, points * spec.groups) * (inputs + 2 * outputs) // spec.groups * 2
        elif spec.in_channels > spec.groups:
            products += outputs * points * 2
        planned = 2 * points * (inputs + outputs)
        running = inputs * lengths + inputs * points * 2 + products + outputs * lengths
        placing = (
            math.prod(self._placed(spec)) * (spec.in_channels // spec.groups) * (2 * lengths + 4 * points)
        )
        placing += sum(k * n for k, n in zip(spec.kernel, cyclic_size(spec), strict=True))
        return (kernels + planned + max(running, inputs * lengths + placing)) * unit

    def _kernels(self, spec: ConvSpec, weights: Any) -> Any:
        """(group, output, input, frequency), or dense (frequency, group, input, output)."""
        xp, lengths, points = self.xp, cyclic_size(spec), math.prod(self._half(spec))
        groups = spec.groups
        inputs, outputs = spec.in_channels // groups, spec.out_channels // groups
        unit = np.result_type(spec.in_dtype, np.complex64)
        dense, axes = self._dense(spec), tuple(range(2, 2 + spec.ndim))
        result = xp.empty((points, groups, inputs, outputs) if dense else (groups, outputs, inputs, points),
                          unit)
        taps = weights.reshape(groups, outputs, inputs, *spec.kernel)
        where = [xp.asarray(positions(spec, axis)) for axis in range(spec.ndim)]
        many, step = self._placed(spec)
        plans: dict[int, Any] = {}
        for group, first in product(range(0, groups, many), range(0, outputs, step)):
            owners, part = slice(group, group + many), slice(first, first + step)
            chosen = taps[owners, part]
            placed = chosen.reshape(-1, inputs, *spec.kernel)
            for ones in where:  # each takes the first spatial axis away and appends it, as long as the grid
                placed = xp.tensordot(placed, ones, axes=(2, 0))
            if len(placed) not in plans:
                plans[len(placed)] = self.plan(placed, lengths, axes, "R2C")
            with plans[len(placed)]:
                found = self.fft.rfftn(placed, axes=axes)
            found = found.reshape(*chosen.shape[:2], inputs, points)
            if dense:
                result[:, owners, :, part] = found.transpose(3, 0, 2, 1)
            else:
                result[owners, part] = found
        return result

    def prepare(self, spec: ConvSpec, weights: Any, threads: int = 1) -> Callable[..., Any]:
        xp, fft, lengths = self.xp, self.fft, cyclic_size(spec)
        half, images = self._half(spec), self._images(spec)
        groups, inputs, outputs = (
            spec.groups,
            spec.in_channels // spec.groups,
            spec.out_channels // spec.groups,
        )
        axes, points = tuple(range(2, 2 + spec.ndim)), math.prod(half)
        scaling = Scaling(weights, math.prod(lengths), xp)
        kernels = self._kernels(spec, scaling.weights)
        image = xp.zeros((images, spec.in_channels, *lengths), spec.in_dtype)  # its border stays zero
        products = (
            None if self._in_place(spec) else xp.empty((images, spec.out_channels, *half), kernels.dtype)
        )
        forward = self.plan(image, lengths, axes, "R2C")
        spectra = (
            products if products is not None else xp.empty((images, spec.in_channels, *half), kernels.dtype)
        )
        backward = self.plan(spectra, lengths, axes, "C2R")
        del spectra
        inside = tuple(slice(n) for n in spec.size)
        kept = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(spec.output_size, spec.stride, strict=True))

        def multiply(spectra: Any) -> Any:
            """(images, c, *half) -> (images, o, *half)"""
            x = spectra.reshape(images, groups, inputs, points)
            if products is None:
                x *= kernels[:, 0]
                return spectra
            y = products.reshape(images, groups, outputs, points)
            if self._dense(spec):
                step = max(1, FREQUENCIES // groups)
                for first in range(0, points, step):
                    part = slice(first, first + step)
                    # (frequency, group, n, input)
                    columns = xp.ascontiguousarray(x[..., part].transpose(3, 1, 0, 2))
                    y[..., part] = xp.matmul(columns, kernels[part]).transpose(2, 1, 3, 0)
                return products
            xp.multiply(x[:, :, :1], kernels[:, :, 0], out=y)
            for i in range(1, inputs):
                y += x[:, :, i : i + 1] * kernels[:, :, i]
            return products

        def run(x: Any, out: Any = None) -> Any:
            y = xp.empty(spec.output_shape, spec.out_dtype) if out is None else out
            for first in range(0, spec.batch, images):
                some = min(images, spec.batch - first)
                image[(slice(some), slice(None), *inside)] = x[first : first + some]
                with forward:
                    spectra = fft.rfftn(image, axes=axes)
                spectra = multiply(spectra)
                with backward:
                    rows = fft.irfftn(spectra, lengths, axes=axes, norm="forward", overwrite_x=True)
                scaling.store(rows[(slice(some), slice(None), *kept)], (), y[first : first + some])
            return y

        return run

    def caveat(self, spec: ConvSpec) -> str:
        (_, large), _ = thresholds(math.prod(cyclic_size(spec)), spec.in_dtype)
        return f"sums inside may overflow from elements of {large:.0e} on"

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        points, unit = math.prod(cyclic_size(spec)), spec.in_dtype.itemsize
        channels = spec.batch * (spec.in_channels + spec.out_channels)
        pairs = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
        operations = 2.5 * points * math.log2(max(2, points)) * channels + 4 * points * pairs
        blocks = -(-spec.batch // self._images(spec))
        weights = pairs // spec.batch * points * unit * blocks
        moved = spec.min_bytes + 8 * points * channels * unit + weights
        return device_cost(spec, operations, moved, 6.5 * blocks, 0.13)


ALGORITHMS = [CupyFft()]
