"""The convolution as one sparse matrix: each row holds the weights of one output at the pixels that its
window covers.

For one channel it is the doubly blocked Toeplitz matrix of the textbooks; padding leaves entries out, stride
leaves rows out. It shows that a convolution is a linear map, and what its structure saves: the matrix stores
every weight once per output.

Cost: 2 operations for each stored entry, at the speed of memory: a column number is read with every weight.
Workspace: 8 (float32) or 12 bytes for each multiply-add of one image, and while it is built as much again for
one channel of the result; refused above ``ENTRIES`` multiply-adds. Accuracy: componentwise. NaN and infinity
spoil only the outputs whose window holds them. Forward, 1-D to 3-D, float32 and float64, every stride,
dilation, padding and number of groups.

Source: Goodfellow, Bengio and Courville, "Deep Learning", section 9.1.
Equivalent: ``scipy.linalg.convolution_matrix(w, n, mode="valid") @ x`` in 1-D.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from algos.contract import Algorithm, Cost, Support
from algos.engine.windows import pairs_inside
from algos.spec import ConvSpec

ENTRIES = 1 << 24


def _numbered(spec: ConvSpec) -> tuple[np.ndarray, np.ndarray]:
    """(outputs, taps): the index of the pixel in its channel, int32, and whether it lies inside the image;
    what does not has any index.
    """
    first, further, inside = np.zeros((), np.int64), np.zeros((), np.int64), np.ones((), bool)
    for axis, size in enumerate(spec.size):
        out = np.arange(spec.output_size[axis]) * spec.stride[axis] - spec.padding[axis][0]
        taps = np.arange(spec.kernel[axis]) * spec.dilation[axis]
        first, further = first[..., None] * size + out, further[..., None] * size + taps
        pixel, along = out[:, None] + taps, [1] * (2 * spec.ndim)
        along[axis], along[spec.ndim + axis] = pixel.shape
        inside = inside & ((pixel >= 0) & (pixel < size)).reshape(along)
    position = first.reshape(-1, 1).astype(np.int32) + further.reshape(-1).astype(np.int32)
    return position, inside.reshape(position.shape)


@dataclass(frozen=True)
class Toeplitz(Algorithm):
    name: str = "toeplitz"
    family: str = "toeplitz"
    support: ClassVar[Support | None] = Support(ndim=(1, 2, 3))

    def beyond(self, spec: ConvSpec) -> str | None:
        entries = spec.macs // spec.batch
        return f"its matrix would have {entries} entries, more than {ENTRIES}" if entries > ENTRIES else None

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        inputs, unit = spec.in_channels // spec.groups, spec.in_dtype.itemsize
        windows = math.prod(spec.output_size) * math.prod(spec.kernel)
        # Entries of one channel of y
        inside = inputs * math.prod(pairs_inside(spec, axis) for axis in range(spec.ndim))
        axes = 8 * max(n * k for n, k in zip(spec.output_size, spec.kernel, strict=True))
        numbering = windows * 5 + max(
            axes, windows * inputs * 5 + inside * max(4, unit) + 16 * math.prod(spec.output_size)
        )
        matrix = inside * spec.out_channels * (unit + 4) + 4 * math.prod(spec.output_shape[1:])
        return matrix + max(numbering, unit * math.prod(spec.output_shape[1:]))

    def prepare(self, spec: ConvSpec, weights: np.ndarray, threads: int = 1) -> Callable[..., np.ndarray]:
        import scipy.sparse

        groups, inputs, outputs = (
            spec.groups,
            spec.in_channels // spec.groups,
            spec.out_channels // spec.groups,
        )
        position, inside = _numbered(spec)
        pixels, count = len(position), math.prod(spec.size)
        kept = np.broadcast_to(inside[:, None], (pixels, inputs, position.shape[1]))
        lengths = inside.sum(1) * inputs
        entries = int(lengths.sum())
        ends = np.zeros(spec.out_channels * pixels + 1, np.int32)
        starts = np.arange(spec.out_channels, dtype=np.int32)[:, None] * np.int32(entries)
        np.add(starts, np.cumsum(lengths).astype(np.int32), out=ends[1:].reshape(-1, pixels))
        values = np.empty((spec.out_channels, entries), spec.in_dtype)
        columns = np.empty((spec.out_channels, entries), np.int32)
        for group in range(groups):
            channels = np.arange(group * inputs, (group + 1) * inputs, dtype=np.int32) * np.int32(count)
            mine = slice(group * outputs, (group + 1) * outputs)
            columns[mine] = (channels[:, None] + position[:, None])[kept]
            for o, taps in zip(range(groups * outputs)[mine], weights[mine].reshape(outputs, inputs, -1),
                               strict=True):
                values[o] = np.broadcast_to(taps, kept.shape)[kept]
        shape = (spec.out_channels * pixels, spec.in_channels * count)
        matrix = scipy.sparse.csr_array((values.ravel(), columns.ravel(), ends), shape)

        def run(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            y = np.empty(spec.output_shape, spec.out_dtype) if out is None else out
            for image, result in zip(x, y, strict=True):
                result[...] = (matrix @ image.reshape(-1)).reshape(result.shape)
            return y

        return run

    def cost(self, spec: ConvSpec, threads: int = 1) -> Cost:
        return Cost(spec.flops, spec.min_bytes + spec.macs * (spec.in_dtype.itemsize + 4), 10 * spec.batch,
                    2e9, parallel=False)  # fmt: skip


ALGORITHMS = [Toeplitz()]
