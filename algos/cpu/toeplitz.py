"""The convolution as one sparse matrix: each row holds the weights of one output at the pixels that its window covers.

For one channel it is the doubly blocked Toeplitz matrix of the textbooks; padding leaves entries out, stride leaves rows out.
It shows that a convolution is a linear map, and what its structure saves: the matrix stores every weight once per output.

Cost: 2 operations for each stored entry, at the speed of memory: a column number is read with every weight.
Workspace: 8 (float32) or 12 bytes for each multiply-add of one image, three times that while it is built; refused above
``ENTRIES`` of them.
Accuracy: componentwise. NaN and infinity spoil only the outputs whose window holds them.
Forward, 1-D to 3-D, float32 and float64, every stride, dilation, padding and number of groups.

Source: Goodfellow, Bengio and Courville, "Deep Learning", section 9.1.
Equivalent: ``scipy.linalg.convolution_matrix(w, n, mode="valid") @ x`` in 1-D.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from algos.contract import Algorithm, Cost, forward_float
from algos.engine.windows import pairs_inside
from algos.spec import ConvSpec

ENTRIES = 1 << 24
ROWS_BYTES = 700  # SciPy's own of one output channel's matrix


def _numbered(spec: ConvSpec) -> tuple[np.ndarray, np.ndarray]:
    """(*outputs, *taps): the index of the pixel in its channel, and whether it lies inside the image."""
    position = np.zeros((1,) * (2 * spec.ndim), np.int64)
    inside = np.ones_like(position, dtype=bool)
    for axis, size in enumerate(spec.size):
        out = np.arange(spec.output_size[axis]) * spec.stride[axis]
        pixel = out[:, None] + np.arange(spec.kernel[axis]) * spec.dilation[axis] - spec.padding[axis][0]
        shape = [1] * (2 * spec.ndim)
        shape[axis], shape[spec.ndim + axis] = pixel.shape
        position = position * size + pixel.reshape(shape)
        inside = inside & ((pixel >= 0) & (pixel < size)).reshape(shape)
    return position, inside


@dataclass(frozen=True)
class Toeplitz(Algorithm):
    name: str = "toeplitz"
    family: str = "toeplitz"

    def unsupported(self, spec: ConvSpec) -> str | None:
        if reason := forward_float(spec, ndim=(1, 2, 3)):
            return reason
        entries = spec.macs // spec.batch
        return f"its matrix would have {entries} entries, more than {ENTRIES}" if entries > ENTRIES else None

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        inputs = spec.in_channels // spec.groups
        windows = math.prod(spec.output_size) * math.prod(spec.kernel)
        kept = math.prod(pairs_inside(spec, axis) for axis in range(spec.ndim))  # of output and tap
        numbering = windows * 9 + windows * inputs * 12  # positions, a mask, and columns in two integer types
        entries = kept * inputs * spec.out_channels * (spec.in_dtype.itemsize + 4)
        stacking = 3 if spec.out_channels > 1 else 1  # the rows of each output, and all of them in one matrix
        return numbering + entries * stacking + 12 * math.prod(spec.output_shape) // spec.batch + ROWS_BYTES * spec.out_channels

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        import scipy.sparse

        groups, inputs, outputs = spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups
        position, inside = _numbered(spec)
        pixels, taps, count = math.prod(spec.output_size), math.prod(spec.kernel), math.prod(spec.size)
        position, inside = position.reshape(pixels, 1, taps), inside.reshape(pixels, 1, taps)
        blocks = []
        for group in range(groups):
            columns = ((group * inputs + np.arange(inputs))[:, None] * count + position).astype(np.int32)
            kept = np.broadcast_to(inside, columns.shape)
            ends = np.concatenate(([0], np.cumsum(kept.reshape(pixels, -1).sum(1))))
            for o in range(group * outputs, (group + 1) * outputs):
                values = np.broadcast_to(weights[o].reshape(inputs, taps), columns.shape)[kept]
                blocks.append(scipy.sparse.csr_array((values, columns[kept], ends), (pixels, spec.in_channels * count)))
        matrix = scipy.sparse.vstack(blocks, format="csr") if len(blocks) > 1 else blocks[0]

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            for image, result in zip(x, y, strict=True):
                result[...] = (matrix @ image.reshape(-1)).reshape(result.shape)
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        return Cost(spec.flops, spec.min_bytes + spec.macs * (spec.in_dtype.itemsize + 4), 10 * spec.batch, 2e9, parallel=False)


ALGORITHMS = [Toeplitz()]
