"""SciPy's own convolutions behind the contract: correlate2d, fftconvolve, oaconvolve and ndimage.correlate.

Each is called as a SciPy user would call it, in the mode that needs the fewest copies: borders wider than the
kernel are padded (``np.pad``), narrower ones come from mode "full" or from the function's own zero border,
and are cropped. What SciPy lacks is built around it, in the clock: channels are summed one call at a time
(fftconvolve and oaconvolve take all channels of an image in one call), a stride keeps every s-th output of a
full computation. Dilated kernels get zeros between their taps, and kernels that a convolution needs reversed
are reversed, in ``prepare``: nothing is converted in a run.

Cost: correlate2d and ndimage 2 operations for each output at stride 1, tap and pair of channels; fftconvolve
transforms image and kernel, to the size of the full output, at every call; oaconvolve does so by tiles.
Workspace: one or two padded images and results, and for the FFTs the transforms of a call. More than
``LARGEST_CALLS`` pairs of channels are refused. Accuracy: componentwise for correlate2d, which sums in the
input's type, and ndimage, which sums in double precision; normwise for the FFTs. NaN and infinity stay in the
windows that hold them, except in an FFT's whole image or tile. ndimage leaves out taps of 2.2e-16 and less in
magnitude, and NaN: such weights are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.cpu.fft import COMPLEX_FACTORS
from algos.engine.cyclic import fast_length
from algos.engine.windows import stuffed
from algos.spec import ConvSpec, SpecError

LEAST_TAP = float(np.finfo(np.float64).eps)  # of scipy.ndimage, whatever the type
LARGEST_CALLS = 4096  # pairs of channels, times images
# Of a transform's points: both spectra, the result, a padded copy, and rounding up the length
TRANSFORM_COPIES = 5.5
TILED_COPIES = 6.0
# Of NumPy's padding that CPython keeps for new ones: of a call, and of all
TUPLES_BYTES, MOST_TUPLES_BYTES = 300, 200_000
PLAIN_COPIES = 2.5  # where every axis has one tap and SciPy multiplies without a transform


def pairs_of(spec: ConvSpec) -> Iterator[tuple[int, int, int, int]]:
    """(image, output channel, input channel, its index in the group's weights)"""
    inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    for n, o, i in product(range(spec.batch), range(spec.out_channels), range(inputs)):
        yield n, o, o // outputs * inputs + i, i


def sum_pairs(spec: ConvSpec, y: np.ndarray, found: Callable[[int, int, int, int], np.ndarray]) -> None:
    """y[n, o] = the sum of ``found`` over the input channels; no result is kept while the next one is
    computed.
    """
    for n, o, c, i in pairs_of(spec):
        if i:
            y[n, o] += found(n, o, c, i)
        else:
            y[n, o] = found(n, o, c, i)


def is_centred(spec: ConvSpec) -> bool:
    """Whether mode "same" is what the spec asks: odd extents and half of each as padding."""
    return all(
        extent % 2 and pair == (extent // 2,) * 2
        for extent, pair in zip(spec.kernel_extent, spec.padding, strict=True)
    )


def every(spec: ConvSpec, first: tuple[int, ...]) -> tuple[slice, ...]:
    """The outputs among those at stride 1, of which number ``first`` is the spec's first."""
    return tuple(
        slice(at, at + (count - 1) * step + 1, step)
        for at, count, step in zip(first, spec.output_size, spec.stride, strict=True)
    )


def padded(x: np.ndarray, widths: tuple[tuple[int, int], ...]) -> np.ndarray:
    """x: (..., *size) with a border of zeros, or x itself where none is asked."""
    if not any(map(any, widths)):
        return x
    return np.pad(x, ((0, 0),) * (x.ndim - len(widths)) + widths)


@dataclass(frozen=True)
class Peer(Algorithm):
    """What the four have in common."""

    family: str = "peer"
    support: ClassVar[Support | None] = Support(ndim=(1, 2, 3))

    def beyond(self, spec: ConvSpec) -> str | None:
        count = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
        if count > LARGEST_CALLS:
            return f"{count} pairs of channels, each filtered on its own: at most {LARGEST_CALLS}"
        return None

    def tunables(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Correlate2d(Peer):
    """``scipy.signal.correlate2d`` for every pair of channels."""

    name: str = "scipy_correlate2d"
    support: ClassVar[Support | None] = Support()

    def beyond(self, spec: ConvSpec) -> str | None:
        if max(spec.dilation) > 1:
            return "knows no dilation, and zeros between the taps would spread a NaN"
        return super().beyond(spec)

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        """A padded copy, a full result at stride 1 and the weights."""
        unit = spec.in_dtype.itemsize
        copied = math.prod(spec.padded_size) if any(map(any, spec.padding)) and not is_centred(spec) else 0
        return unit * (copied + _stride1_outputs(spec) + math.prod(spec.weight_shape))

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        from scipy.signal import correlate2d

        mode, border = ("same", ((0, 0),) * 2) if is_centred(spec) else ("valid", spec.padding)
        kept = every(spec, (0, 0))

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            sum_pairs(
                spec, y, lambda n, o, c, i: correlate2d(padded(x[n, c], border), weights[o, i], mode)[kept]
            )
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        pairs = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
        operations = 2.0 * pairs * _stride1_outputs(spec) * math.prod(spec.kernel_extent)
        return Cost(operations, 4 * spec.min_bytes, calls=8 * pairs, flops_per_s=9e8, parallel=False)


@dataclass(frozen=True)
class NdimageCorrelate(Peer):
    """``scipy.ndimage.correlate`` with a constant border, for every pair of channels."""

    name: str = "scipy_ndimage_correlate"

    def _border(self, spec: ConvSpec) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
        """Zeros to add so that every output is centred inside the image, and where the first output then
        lies.
        """
        widths, firsts = [], []
        for axis, (size, extent, (before, _)) in enumerate(
            zip(spec.size, spec.kernel_extent, spec.padding, strict=True)
        ):
            first = extent // 2 - before  # ndimage centres a kernel on its element number extent // 2
            last = first + (spec.output_size[axis] - 1) * spec.stride[axis]
            widths.append((max(0, -first), max(0, last - size + 1)))
            firsts.append(max(0, first))
        return tuple(widths), tuple(firsts)

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        widths, _ = self._border(spec)
        image = math.prod(n + b + a for n, (b, a) in zip(spec.size, widths, strict=True))
        copies = 2 if any(map(any, widths)) else 1
        # ndimage keeps offsets for every tap at every distance from the border
        return spec.in_dtype.itemsize * (copies * image + _stuffed_elements(spec)) + 8 * math.prod(
            spec.kernel_extent
        )

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        from scipy.ndimage import correlate

        if not ((np.abs(weights) > LEAST_TAP) | (weights == 0)).all():
            raise SpecError(
                f"{self.name} leaves out weights that are NaN or no larger than {LEAST_TAP:.2g}: scale them "
                "up"
            )
        w = stuffed(weights, spec.dilation)
        widths, firsts = self._border(spec)
        kept = every(spec, firsts)

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            sum_pairs(
                spec, y, lambda n, o, c, i: correlate(padded(x[n, c], widths), w[o, i], mode="constant")[kept]
            )
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        pairs = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
        operations = 2.0 * pairs * math.prod(spec.size) * math.prod(spec.kernel)
        return Cost(operations, 4 * spec.min_bytes, calls=20 * pairs, flops_per_s=1.9e9, parallel=False)


@dataclass(frozen=True)
class FftConvolve(Peer):
    """``scipy.signal.fftconvolve``, all channels of an image in one call, with ``threads`` workers."""

    name: str = "scipy_fftconvolve"
    accuracy: str = "normwise"
    function: str = "fftconvolve"

    def _border(self, spec: ConvSpec) -> tuple[str, tuple[tuple[int, int], ...], tuple[int, ...]]:
        """Mode, zeros to add first, and where the first output lies in what comes back."""
        if not any(map(any, spec.padding)):
            return "valid", spec.padding, (0,) * spec.ndim
        if is_centred(spec):
            return "same", ((0, 0),) * spec.ndim, (0,) * spec.ndim
        over = tuple(
            (max(0, b - extent + 1), max(0, a - extent + 1))
            for extent, (b, a) in zip(spec.kernel_extent, spec.padding, strict=True)
        )
        firsts = tuple(
            max(0, extent - 1 - b) for extent, (b, _) in zip(spec.kernel_extent, spec.padding, strict=True)
        )
        return "full", over, firsts

    def _calls(self, spec: ConvSpec) -> int:
        return spec.batch * (1 if spec.in_channels == spec.out_channels == spec.groups else spec.out_channels)

    def _full(self, spec: ConvSpec) -> int:
        """Points of one transform."""
        _, over, _ = self._border(spec)
        return math.prod(
            n + b + a + extent - 1
            for n, extent, (b, a) in zip(spec.size, spec.kernel_extent, over, strict=True)
        )

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        return self._held(spec, TRANSFORM_COPIES, self._full(spec))

    def _channels(self, spec: ConvSpec) -> int:
        """Of one call."""
        return spec.in_channels if self._calls(spec) == spec.batch else spec.in_channels // spec.groups

    def _held(self, spec: ConvSpec, copies: float, points: int) -> int:
        """Bytes of the weights, twice while they are turned, or with a call's
        copies and other channels' bordered one.
        """
        _, over, _ = self._border(spec)
        image = (
            math.prod(n + b + a for n, (b, a) in zip(spec.size, over, strict=True))
            if any(map(any, over))
            else 0
        )
        copies = copies if max(spec.kernel) > 1 else PLAIN_COPIES
        run = copies * self._channels(spec) * points + (spec.in_channels - self._channels(spec)) * image
        return int(spec.in_dtype.itemsize * (_stuffed_elements(spec) + max(run, _stuffed_elements(spec))))

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        import scipy.fft
        import scipy.signal

        function = getattr(scipy.signal, self.function)
        w = np.ascontiguousarray(np.flip(stuffed(weights, spec.dilation), tuple(range(2, 2 + spec.ndim))))
        mode, border, firsts = self._border(spec)
        kept = every(spec, firsts)
        axes = tuple(range(1, 1 + spec.ndim))
        inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        depthwise = inputs == outputs == 1

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            with scipy.fft.set_workers(threads):
                for image, result in zip(x, y, strict=True):
                    image = padded(image, border)
                    if depthwise:
                        result[...] = function(image, w[:, 0], mode, axes=axes)[(slice(None), *kept)]
                        continue
                    for o in range(spec.out_channels):
                        some = image[o // outputs * inputs :][:inputs]
                        np.sum(
                            function(some, w[o], mode, axes=axes)[(slice(None), *kept)], axis=0, out=result[o]
                        )
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        points = self._full(spec)
        pairs = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
        transforms = 3 * 2.5 * points * math.log2(max(points, 2)) * pairs
        traffic = 30.0 * points * pairs * spec.in_dtype.itemsize
        return Cost(transforms + 3 * points * pairs, traffic, calls=40 * self._calls(spec), flops_per_s=7e9)


@dataclass(frozen=True)
class OaConvolve(FftConvolve):
    """``scipy.signal.oaconvolve``: the FFT by tiles (overlap-add)."""

    name: str = "scipy_oaconvolve"
    function: str = "oaconvolve"

    def _tiles(self, spec: ConvSpec) -> tuple[int, int]:
        """Points of one tile's transform and number of tiles, by SciPy's rule (it weighs
        a longer tile against its overlap).
        """
        _, over, _ = self._border(spec)
        points, tiles = 1, 1
        for n, extent, (before, after) in zip(spec.size, spec.kernel_extent, over, strict=True):
            long, short = max(n + before + after, extent), min(n + before + after, extent)
            overlap, tile = short - 1, long + short - 1
            if overlap and long != short:
                # Solves best = overlap * (1 + log(2 * best)), which is Lambert's W of SciPy's text
                best = 0.0
                for _ in range(20):
                    best = overlap * (1 + math.log(2 * max(best, overlap)))
                tile = fast_length(math.ceil(best), COMPLEX_FACTORS) if best < long else tile
            points *= tile
            tiles *= -(-(long + short - 1) // (tile - overlap)) if tile < long + short - 1 else 1
        return points, tiles

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        points, tiles = self._tiles(spec)
        kept = min(TUPLES_BYTES * self._calls(spec), MOST_TUPLES_BYTES)
        return self._held(spec, TILED_COPIES, points * tiles) + kept

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        points, tiles = self._tiles(spec)
        pairs = spec.batch * spec.out_channels * (spec.in_channels // spec.groups)
        operations = pairs * tiles * points * (2 * 2.5 * math.log2(max(points, 2)) + 3)
        traffic = 40.0 * points * tiles * pairs * spec.in_dtype.itemsize
        return Cost(operations, traffic, calls=80 * self._calls(spec), flops_per_s=5e9)


def _stride1_outputs(spec: ConvSpec) -> int:
    return math.prod(n - extent + 1 for n, extent in zip(spec.padded_size, spec.kernel_extent, strict=True))


def _stuffed_elements(spec: ConvSpec) -> int:
    return math.prod(spec.weight_shape[:2]) * math.prod(spec.kernel_extent)


ALGORITHMS = [Correlate2d(), FftConvolve(), OaConvolve(), NdimageCorrelate()]
