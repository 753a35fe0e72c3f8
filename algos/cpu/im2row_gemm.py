"""im2row: images that lie with their channels innermost (NHWC) as rows of windows, then one matrix product.

The channels of a pixel lie together, so that each tap of a window is one run of memory, and the product
writes the channels of an output together as well: nothing is reordered on the way in or out. A 1x1 kernel
needs no copy at all. Rows of ``block_bytes`` are made at a time, so that BLAS finds them in the cache.

Cost: 2 * O * C * taps operations for each output pixel in BLAS, and C * taps elements copied for each pixel.
Workspace: the weights, one block of rows and one padded image; copies of x and y where their channels lie
apart. Accuracy: componentwise. NaN and infinity spoil only the outputs whose window holds them. Forward, 1-D
to 3-D, float32 and float64, every stride, dilation and padding, one group.

Source: Chellapilla, Puri and Simard, "High performance convolutional neural networks for document
processing", 2006, in the memory order of Anderson et al., "Low-memory GEMM-based convolution",
arXiv:1709.03395 (im2row). Equivalent: ``torch.nn.functional.conv2d`` on tensors in ``torch.channels_last``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.spec import ConvSpec

COPIED_BYTES_PER_S = 1.6e10  # windows into rows


@dataclass(frozen=True)
class Im2rowGemm(Algorithm):
    """Windows as rows of channels, then BLAS; see the module.

    Attributes
    ----------
    block_bytes : int
        Size of the rows of one block, at least one line of outputs.
    """

    name: str = "im2row_gemm"
    family: str = "gemm"
    layout: str = "nhwc"
    block_bytes: int = 1 << 20
    support: ClassVar[Support | None] = Support(ndim=(1, 2, 3))

    def beyond(self, spec: ConvSpec) -> str | None:
        return f"computes one group, not {spec.groups}" if spec.groups > 1 else None

    def _lines(self, spec: ConvSpec) -> int:
        """Outputs of the first axis in a block."""
        line = spec.reduction_length * math.prod(spec.output_size[1:]) * spec.in_dtype.itemsize
        return min(spec.output_size[0], max(1, self.block_bytes // line))

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        elements = math.prod(spec.weight_shape)
        elements += math.prod(spec.input_shape) + math.prod(spec.output_shape)  # where arrays lie otherwise
        if not _pointwise(spec):
            elements += spec.reduction_length * self._lines(spec) * math.prod(spec.output_size[1:])
            elements += spec.in_channels * math.prod(spec.padded_size) * _padded(spec)
        return elements * spec.in_dtype.itemsize

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        # (taps, C, O) as a matrix: a row of windows is taps x channels
        w = np.ascontiguousarray(np.moveaxis(weights, (0, 1), (-1, -2))).reshape(-1, spec.out_channels)
        product = _rows_of_pixels if _pointwise(spec) else self._blocks(spec)

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            lying = np.ascontiguousarray(np.moveaxis(x, 1, -1))  # (N, *size, C); as it is where it lies so
            y = np.empty((spec.batch, *spec.output_size, spec.out_channels), spec.in_dtype)
            product(lying, w, y)
            result = np.moveaxis(y, -1, 1)
            if out is None:
                return result
            out[...] = result
            return out

        return run

    def _blocks(self, spec: ConvSpec) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
        lines, inner = self._lines(spec), spec.output_size[1:]
        rows = np.empty((lines * math.prod(inner), spec.reduction_length), spec.in_dtype)
        padded = np.zeros((*spec.padded_size, spec.in_channels), spec.in_dtype) if _padded(spec) else None
        core = tuple(slice(b, b + n) for n, (b, _) in zip(spec.size, spec.padding, strict=True))

        def product(x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
            for image, result in zip(x, y, strict=True):
                if padded is not None:
                    padded[core] = image
                    image = padded
                for first in range(0, spec.output_size[0], lines):
                    last = min(spec.output_size[0], first + lines)
                    view = _windows(image, spec, first, last)
                    block = rows[: (last - first) * math.prod(inner)]
                    np.copyto(block.reshape(view.shape), view)
                    np.matmul(block, w, out=result[first:last].reshape(len(block), -1))

        return product

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        speed = (6.5e10 if spec.out_channels >= 16 else 2e10) * 4 / spec.in_dtype.itemsize
        if _pointwise(spec):
            return Cost(spec.flops, spec.min_bytes, calls=6, flops_per_s=speed)
        copied = spec.macs // spec.out_channels * spec.in_dtype.itemsize
        blocks = spec.batch * -(-spec.output_size[0] // self._lines(spec))
        operations = spec.flops + copied * speed / COPIED_BYTES_PER_S
        return Cost(operations, spec.min_bytes, calls=6 * blocks + 10, flops_per_s=speed)


def _pointwise(spec: ConvSpec) -> bool:
    """Whether the pixels already are the rows."""
    return set(spec.kernel) == set(spec.stride) == {1} and not _padded(spec)


def _padded(spec: ConvSpec) -> bool:
    return any(map(any, spec.padding))


def _rows_of_pixels(x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
    np.matmul(x.reshape(-1, x.shape[-1]), w, out=y.reshape(-1, y.shape[-1]))


def _windows(image: np.ndarray, spec: ConvSpec, first: int, last: int) -> np.ndarray:
    """View (lines, *rest, *kernel, C) of an image (*size, C): what each output reads."""
    steps, channel = image.strides[:-1], image.strides[-1]
    shape = (last - first, *spec.output_size[1:], *spec.kernel, image.shape[-1])
    strides = (
        *(step * s for step, s in zip(steps, spec.stride, strict=True)),
        *(step * d for step, d in zip(steps, spec.dilation, strict=True)),
        channel,
    )
    return np.lib.stride_tricks.as_strided(image[first * spec.stride[0] :], shape, strides, writeable=False)


ALGORITHMS = [Im2rowGemm()]
