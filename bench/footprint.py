"""Which results one element of an operand reaches, by index arithmetic: what a NaN
there must spoil, and all that it may.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from algos.spec import ConvSpec
from bench.oracle import offset, sources

ATTEMPTS = 20

Reach = tuple[np.ndarray, ...]  # per axis of the result, the indices that are reached


def chosen(spec: ConvSpec, rng: np.random.Generator) -> tuple[int, ...] | None:
    """An element of the first operand's last image that some result reads; None when none was found."""
    shape = spec.output_shape if spec.direction == "input_gradient" else spec.input_shape
    if not spec.batch:
        return None
    for _ in range(ATTEMPTS):
        place: list[int] = []
        for axis in range(spec.ndim):
            i, tap = int(rng.integers(spec.output_size[axis])), int(rng.integers(spec.kernel[axis]))
            (source,) = sources(spec, axis, np.array([i * spec.stride[axis] + offset(spec, axis, tap)]))
            if source < 0:
                break
            place.append(i if spec.direction == "input_gradient" else int(source))
        else:
            return (shape[0] - 1, int(rng.integers(shape[1])), *place)
    return None


def reach(spec: ConvSpec, element: Sequence[int]) -> Reach:
    """Where one element of the first operand (of x in a weight gradient) enters the result."""
    image, channel, *place = element
    inner, outer = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    if spec.direction == "input_gradient":
        channels = channel // outer * inner + np.arange(inner)
        return (np.array([image]), channels, *(_copies(spec, axis, i) for axis, i in enumerate(place)))
    channels = channel // inner * outer + np.arange(outer)
    pairs = [_readers(spec, axis, h) for axis, h in enumerate(place)]
    if spec.direction == "weight_gradient":
        return (channels, np.array([channel % inner]), *(taps for _, taps in pairs))
    return (np.array([image]), channels, *(outputs for outputs, _ in pairs))


def taps_between(spec: ConvSpec, element: Sequence[int], point: Sequence[int]) -> Reach:
    """Per axis the taps by which a result reads an element of the first operand; not of a weight gradient."""
    found = []
    for axis, (inner, outer) in enumerate(zip(element[2:], point[2:], strict=True)):
        source, output = (inner, outer) if spec.direction == "forward" else (outer, inner)
        found.append(np.flatnonzero(_sources(spec, axis, output) == source))
    return tuple(found)


def inside(points: np.ndarray, reached: Reach) -> np.ndarray:
    """Which of ``points`` (points, axes) are reached."""
    found = np.ones(len(points), bool)
    for axis, indices in enumerate(reached):
        found &= np.isin(points[:, axis], indices)
    return found


def some(reached: Reach, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` points (count, axes) drawn from what is reached; none when nothing is."""
    if not all(len(indices) for indices in reached):
        return np.zeros((0, len(reached)), np.int64)
    return np.stack([rng.choice(indices, count) for indices in reached], 1)


def _readers(spec: ConvSpec, axis: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and taps along one axis that read the element ``index`` of x."""
    before, _ = spec.padding[axis]
    zeros = spec.padding_mode == "zeros" or spec.padding_mode.startswith("constant:")
    positions = np.array([index + before]) if zeros else np.flatnonzero(sources(spec, axis) == index)
    offsets = np.array([offset(spec, axis, tap) for tap in range(spec.kernel[axis])])
    starts, rest = np.divmod(positions[:, None] - offsets, spec.stride[axis])
    hit = (rest == 0) & (starts >= 0) & (starts < spec.output_size[axis])
    return np.unique(starts[hit]), np.unique(np.nonzero(hit)[1])


def _copies(spec: ConvSpec, axis: int, output: int) -> np.ndarray:
    """Elements of x along one axis that an output reads, through the border as well."""
    read = _sources(spec, axis, output)
    return np.unique(read[read >= 0])


def _sources(spec: ConvSpec, axis: int, output: int) -> np.ndarray:
    """Which element of x each tap along one axis reads for an output; -1 for a border of a constant."""
    offsets = np.array([offset(spec, axis, tap) for tap in range(spec.kernel[axis])])
    return sources(spec, axis, output * spec.stride[axis] + offsets)
