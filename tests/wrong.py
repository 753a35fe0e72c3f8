"""Deliberately wrong algorithms, one per fault that a convolution library really had, and the right one
beneath them.

``Right`` is windows and one matrix product, in every direction, written apart from the definition that judges
it. A fault overrides one of its four steps and says in ``shows`` on which specs it makes a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from algos.contract import Algorithm, Support
from algos.dtypes import accumulator, limits, whole
from algos.grammar import DIRECTIONS
from algos.lower.border import border
from algos.lower.parts import Lowered, Part
from algos.spec import ConvSpec


class Every(tuple[str, ...]):
    """All types, and all mixtures of them."""

    def __contains__(self, item: object) -> bool:
        return True


@dataclass(frozen=True)
class Right(Algorithm):
    """Correct in all directions and types, with zero points, bias and activations; sums floats in float32 at
    least, and integers without end.
    """

    name: str = "right"
    family: str = "gemm"
    support: ClassVar[Support | None] = Support((1, 2, 3), DIRECTIONS, Every(), epilogues=True)

    def unsupported(self, spec: ConvSpec) -> str | None:
        return None

    def workspace_bytes(self, spec: ConvSpec, threads: int = 1) -> int:
        """Operands in the wider type, and three times every window."""
        width = 60 if whole(spec.in_dtype) else spec.out_dtype.itemsize + 4
        return width * (3 * spec.macs // (spec.out_channels // spec.groups) + 4 * spec.min_bytes)

    def shows(self, spec: ConvSpec) -> bool:
        """Whether the fault changes anything for this spec."""
        return True

    def geometry(self, spec: ConvSpec) -> ConvSpec:
        return spec

    def kernel(self, spec: ConvSpec, w: np.ndarray) -> np.ndarray:
        return w

    def operand(self, spec: ConvSpec, a: np.ndarray) -> np.ndarray:
        return a

    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        if out is None:
            return y
        out[...] = y
        return out

    def sums(
        self, spec: ConvSpec, a: np.ndarray, w: np.ndarray | None, grad: np.ndarray | None
    ) -> np.ndarray:
        return convolved(spec, a, w, grad)

    def followed(self, spec: ConvSpec, y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        return activated(y if bias is None else y + bias.astype(y.dtype), spec.activation)

    def narrowed(self, spec: ConvSpec, y: np.ndarray) -> np.ndarray:
        """In the type of the result."""
        if whole(spec.result_dtype) and y.size and not fits(y, spec.result_dtype):
            raise OverflowError(f"a sum does not fit {spec.result_dtype}")
        return y.astype(spec.result_dtype)

    def prepare(
        self, spec: ConvSpec, weights: Any, threads: int = 1, bias: Any = None
    ) -> Callable[..., Any]:
        used, (of_x, of_w) = self.geometry(spec), spec.zero_points
        w = None if weights is None else less(self.kernel(spec, weights), of_w)

        def run(*operands: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            first, *rest = operands
            y = self.sums(used, less(self.operand(spec, first), of_x), w, rest[0] if rest else None)
            y = y[tuple(slice(0, n) for n in spec.result_shape)]
            y = self.narrowed(spec, self.followed(spec, y, bias))
            return self.result(spec, np.ascontiguousarray(y), operands, out)

        return run


def fits(y: np.ndarray, dtype: np.dtype) -> bool:
    return bool(np.iinfo(dtype).min <= y.min() and y.max() <= np.iinfo(dtype).max)


def less(a: np.ndarray, point: int) -> np.ndarray:
    return a.astype(object) - point if point else a


def activated(y: np.ndarray, activation: str) -> np.ndarray:
    if activation == "none":
        return y
    if activation in ("relu", "relu6"):
        return y.clip(0, 6 if activation == "relu6" else None)
    gate = 1 / (1 + np.exp(-y))
    return gate if activation == "sigmoid" else y * gate


def convolved(
    spec: ConvSpec, a: np.ndarray, w: np.ndarray | None, grad: np.ndarray | None = None, fill: int = 0
) -> np.ndarray:
    """The sums of ``spec`` with padding of ``fill`` and no flip; a is x, or grad for input_gradient."""
    small = spec.in_dtype.itemsize + spec.w_dtype.itemsize <= 4 and spec.out_dtype.itemsize <= 4
    integer: Any = np.int64 if small else object
    work = integer if whole(spec.out_dtype) else accumulator(spec.out_dtype)
    n, g, p, t = spec.batch, spec.groups, math.prod(spec.output_size), math.prod(spec.kernel)
    i, o = spec.in_channels // g, spec.out_channels // g
    a = a.astype(work)
    if w is not None:
        w = w.astype(work).reshape(g, o, i * t)
    if spec.direction == "input_gradient":
        assert w is not None
        w = w.conj() if w.dtype.kind == "c" else w
        columns = (w.swapaxes(1, 2) @ a.reshape(n, g, o, p)).reshape(
            n, spec.in_channels, *spec.kernel, *spec.output_size
        )
        dx = np.zeros((n, spec.in_channels, *spec.padded_size), work)
        for tap in np.ndindex(*spec.kernel):
            place = tuple(
                slice(k * d, k * d + (m - 1) * s + 1, s)
                for k, d, m, s in zip(tap, spec.dilation, spec.output_size, spec.stride, strict=True)
            )
            dx[(..., *place)] += columns[(slice(None), slice(None), *tap)]
        return dx[(..., *(slice(b, b + m) for (b, _), m in zip(spec.padding, spec.size, strict=True)))]
    x = np.full((n, spec.in_channels, *spec.padded_size), fill, work)
    x[(..., *(slice(b, b + m) for (b, _), m in zip(spec.padding, spec.size, strict=True)))] = a
    windows = np.lib.stride_tricks.sliding_window_view(x, spec.kernel_extent, tuple(range(2, x.ndim)))
    steps = (*(slice(None, None, s) for s in spec.stride), *(slice(None, None, d) for d in spec.dilation))
    columns = windows[(slice(None), slice(None), *steps)].reshape(n, g, i, p, t)
    if spec.direction == "forward":
        assert w is not None
        columns = columns.transpose(0, 1, 2, 4, 3).reshape(n, g, i * t, p)
        return (w @ columns).reshape(spec.output_shape)
    assert grad is not None
    columns = columns.conj() if columns.dtype.kind == "c" else columns
    columns = columns.transpose(0, 1, 3, 2, 4).reshape(n, g, p, i * t)
    return (grad.astype(work).reshape(n, g, o, p) @ columns).sum(0).reshape(spec.weight_shape)


# ---- wrong in the arithmetic -------------------------------------------------------------------------------


class FlippedKernel(Right):
    def shows(self, spec: ConvSpec) -> bool:
        return math.prod(spec.kernel) > 1

    def kernel(self, spec: ConvSpec, w: np.ndarray) -> np.ndarray:
        return np.flip(w, tuple(range(2, w.ndim)))


class ShiftedPadding(Right):
    """One column too many before, one too few after."""

    def operand(self, spec: ConvSpec, a: np.ndarray) -> np.ndarray:
        shifted = np.zeros_like(a)
        shifted[..., 1:] = a[..., :-1]
        return shifted


class SwappedAxes(Right):
    def shows(self, spec: ConvSpec) -> bool:
        return spec.ndim > 1 and spec.kernel[-1] == spec.kernel[-2] > 1

    def kernel(self, spec: ConvSpec, w: np.ndarray) -> np.ndarray:
        return w.swapaxes(-1, -2)


class IgnoredStride(Right):
    def shows(self, spec: ConvSpec) -> bool:
        return max(spec.stride) > 1 and math.prod(spec.output_size) > 1

    def geometry(self, spec: ConvSpec) -> ConvSpec:
        return spec.with_(stride=1)


class IgnoredDilation(Right):
    def shows(self, spec: ConvSpec) -> bool:
        return any(d > 1 and k > 1 for d, k in zip(spec.dilation, spec.kernel, strict=True))

    def geometry(self, spec: ConvSpec) -> ConvSpec:
        return spec.with_(dilation=1)


class MixedGroups(Right):
    """Each group reads its neighbour's channels."""

    def shows(self, spec: ConvSpec) -> bool:
        return spec.groups > 1

    def operand(self, spec: ConvSpec, a: np.ndarray) -> np.ndarray:
        return np.roll(a, a.shape[1] // spec.groups, axis=1)


class DroppedChannel(Right):
    def operand(self, spec: ConvSpec, a: np.ndarray) -> np.ndarray:
        kept = a.copy()
        kept[:, -1] = 0
        return kept


class Zeros(Right):
    def operand(self, spec: ConvSpec, a: np.ndarray) -> np.ndarray:
        return np.zeros_like(a)


class HalfInside(Right):
    """Operands rounded to half precision, sums in full."""

    def operand(self, spec: ConvSpec, a: np.ndarray) -> np.ndarray:
        return a.astype(np.float16).astype(a.dtype)


class SingleInside(Right):
    """float64 by way of float32."""

    def shows(self, spec: ConvSpec) -> bool:
        return spec.dtype == "float64"

    def operand(self, spec: ConvSpec, a: np.ndarray) -> np.ndarray:
        return a.astype(np.float32).astype(a.dtype)


class RepeatedImage(Right):
    """Every image of the batch gives the result of the first."""

    def shows(self, spec: ConvSpec) -> bool:
        return spec.batch > 1

    def operand(self, spec: ConvSpec, a: np.ndarray) -> np.ndarray:
        return np.broadcast_to(a[:1], a.shape)


# ---- wrong in a type ---------------------------------------------------------------------------------------


def narrow(dtype: np.dtype) -> bool:
    """A float type whose sums are taken in a wider one."""
    return accumulator(dtype) != dtype


class RoundedInside(Right):
    """The sums of both halves of the taps are rounded to a narrow type before they are added."""

    def shows(self, spec: ConvSpec) -> bool:
        return narrow(spec.result_dtype) and spec.direction == "forward" and spec.reduction_length > 1

    def sums(
        self, spec: ConvSpec, a: np.ndarray, w: np.ndarray | None, grad: np.ndarray | None
    ) -> np.ndarray:
        assert w is not None
        half = (np.arange(w[0].size) % 2).reshape(1, *w.shape[1:])
        parts = (convolved(spec, a, (w * k).astype(w.dtype)) for k in (half, 1 - half))
        return sum(part.astype(spec.result_dtype).astype(part.dtype) for part in parts)  # type: ignore[return-value]


class RoundedBeforeBias(Right):
    """A pass of its own adds the bias to what was rounded already."""

    def shows(self, spec: ConvSpec) -> bool:
        return narrow(spec.result_dtype) and spec.bias

    def followed(self, spec: ConvSpec, y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        return super().followed(spec, y.astype(spec.result_dtype).astype(y.dtype), bias)


class Truncated(Right):
    """The last bits are cut off, and not rounded to nearest."""

    def shows(self, spec: ConvSpec) -> bool:
        return narrow(spec.result_dtype)

    def narrowed(self, spec: ConvSpec, y: np.ndarray) -> np.ndarray:
        unit = np.exp2(np.floor(np.log2(np.maximum(np.abs(y), 1e-30))) - int(limits(spec.result_dtype).nmant))
        return (np.trunc(y / unit) * unit).astype(spec.result_dtype)


class Wraps(Right):
    """A sum that does not fit keeps its last bits."""

    def shows(self, spec: ConvSpec) -> bool:
        return whole(spec.result_dtype) and spec.result_dtype == spec.in_dtype and spec.activation != "relu6"

    def narrowed(self, spec: ConvSpec, y: np.ndarray) -> np.ndarray:
        bits = 8 * spec.result_dtype.itemsize
        return (y % (1 << bits)).astype(f"u{bits // 8}").view(spec.result_dtype)


class Saturates(Wraps):
    """A sum that does not fit becomes the largest or the smallest number."""

    def narrowed(self, spec: ConvSpec, y: np.ndarray) -> np.ndarray:
        info = np.iinfo(spec.result_dtype)
        return np.minimum(np.maximum(y, int(info.min)), int(info.max)).astype(spec.result_dtype)


class Complex(Right):
    """A fault of complex numbers."""

    def shows(self, spec: ConvSpec) -> bool:
        return spec.in_dtype.kind == "c"


class DroppedImaginaryPart(Complex):
    """Of the first operand."""

    def operand(self, spec: ConvSpec, a: np.ndarray) -> np.ndarray:
        return a.real.astype(a.dtype)


class DroppedImaginaryResult(Complex):
    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        return super().result(spec, y.real.astype(y.dtype), operands, out)


class ConjugatedForward(Complex):
    """As if a forward pass were an inner product."""

    def shows(self, spec: ConvSpec) -> bool:
        return super().shows(spec) and spec.direction == "forward"

    def kernel(self, spec: ConvSpec, w: np.ndarray) -> np.ndarray:
        return w.conj()


class UnconjugatedGradient(Complex):
    def shows(self, spec: ConvSpec) -> bool:
        return super().shows(spec) and spec.direction != "forward"

    def kernel(self, spec: ConvSpec, w: np.ndarray) -> np.ndarray:
        return w.conj()

    def operand(self, spec: ConvSpec, a: np.ndarray) -> np.ndarray:
        return a.conj() if spec.direction == "weight_gradient" else a


class ConjugatedResult(Complex):
    """The other operand of a gradient is conjugated."""

    def shows(self, spec: ConvSpec) -> bool:
        return super().shows(spec) and spec.direction != "forward"

    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        return super().result(spec, y.conj(), operands, out)


class ActivationBeforeBias(Right):
    def shows(self, spec: ConvSpec) -> bool:
        return spec.bias and spec.activation != "none"

    def followed(self, spec: ConvSpec, y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        assert bias is not None
        return activated(y, spec.activation) + bias.astype(y.dtype)


class BiasTwice(Right):
    def shows(self, spec: ConvSpec) -> bool:
        return spec.bias

    def followed(self, spec: ConvSpec, y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        assert bias is not None
        return super().followed(spec, y + bias.astype(y.dtype), bias)


class BiasOfTheFirstChannel(Right):
    def shows(self, spec: ConvSpec) -> bool:
        return spec.bias and spec.out_channels > 1

    def followed(self, spec: ConvSpec, y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        assert bias is not None
        return super().followed(spec, y, bias[:1])


class ForgottenActivation(Right):
    def shows(self, spec: ConvSpec) -> bool:
        return spec.activation != "none"

    def followed(self, spec: ConvSpec, y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        return super().followed(spec.with_(activation="none"), y, bias)


class RawPadding(Right):
    """The padding is 0 before the zero point is subtracted, and not after."""

    def shows(self, spec: ConvSpec) -> bool:
        return spec.zero_points[0] != 0 and any(map(any, spec.padding)) and spec.padding_mode == "zeros"

    def sums(
        self, spec: ConvSpec, a: np.ndarray, w: np.ndarray | None, grad: np.ndarray | None
    ) -> np.ndarray:
        return convolved(spec, a, w, grad, fill=-spec.zero_points[0])


class ForgottenZeroPoint(Right):
    """Of the weights."""

    def shows(self, spec: ConvSpec) -> bool:
        return spec.zero_points[1] != 0

    def kernel(self, spec: ConvSpec, w: np.ndarray) -> np.ndarray:
        return less(w, -spec.zero_points[1])


# ---- wrong in what is written ------------------------------------------------------------------------------


class ZeroedLastRow(Right):
    """The tail tile is forgotten."""

    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        last = y if y.ndim == 3 else y.swapaxes(-1, -2)
        last[..., -1] = 0
        return super().result(spec, y, operands, out)


class NanCorner(Right):
    def shows(self, spec: ConvSpec) -> bool:
        return spec.in_dtype.kind == "f"

    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        y[(-1,) * y.ndim] = np.nan
        return super().result(spec, y, operands, out)


class NanOfFaintImages(Right):
    """As from dividing by the largest element squared, which is zero in their type."""

    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        for image, source in zip(y, operands[0], strict=True):
            if 0 < np.abs(source).max(where=np.isfinite(source), initial=0) < 1e-12:
                image[...] = np.nan
        return super().result(spec, y, operands, out)


class UnwrittenCorner(Right):
    """Right by luck in fresh memory, but leaves one element of ``out`` as it was."""

    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        if out is None:
            return y
        y[(-1,) * y.ndim] = out[(-1,) * y.ndim]
        return super().result(spec, y, operands, out)


class IgnoredOut(Right):
    """Returns an array of its own."""

    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        return y


class AddsToOut(Right):
    """Accumulates into what it never cleared."""

    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        if out is None:
            return y
        out += y
        return out


class ChangedInput(Right):
    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        operands[0][(0,) * operands[0].ndim] += 1
        return super().result(spec, y, operands, out)


class InPlace(Right):
    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        if out is not None or y.size > operands[0].size:
            return super().result(spec, y, operands, out)
        held = operands[0].reshape(-1)[: y.size].reshape(y.shape)
        held[...] = y
        return held


class ChangedWeights(Right):
    def kernel(self, spec: ConvSpec, w: np.ndarray) -> np.ndarray:
        right = w.copy()
        w *= 2
        return right


class TransposedResult(Right):
    """Batch and channels exchanged in the shape."""

    def shows(self, spec: ConvSpec) -> bool:
        return spec.result_shape[0] != spec.result_shape[1]

    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        return y.swapaxes(0, 1)


class WrongType(Right):
    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        return y.astype(np.float32 if y.dtype == np.float64 else np.float64)


@dataclass(frozen=True)
class ReusedBuffer(Right):
    """Every call returns the same array."""

    buffer: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict, compare=False)

    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        kept = self.buffer.setdefault(y.shape, np.empty_like(y)) if out is None else out
        kept[...] = y
        return kept


@dataclass(frozen=True)
class Remembered(Right):
    """Answers the second call with the first result."""

    first: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict, compare=False)

    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        return super().result(spec, self.first.setdefault(y.shape, y).copy(), operands, out)


class Rescaled(Right):
    """A division too many, undone afterwards: within every bound of rounding, and never exact."""

    def kernel(self, spec: ConvSpec, w: np.ndarray) -> np.ndarray:
        return w / w.dtype.type(3)

    def result(self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...],
               out: np.ndarray | None) -> np.ndarray:
        return super().result(spec, y * y.dtype.type(3), operands, out)


# ---- wrong in gradients ------------------------------------------------------------------------------------


def _channels_by_group(spec: ConvSpec, w: np.ndarray) -> np.ndarray:
    """(O, C / groups, *k) -> (groups, O / groups, C / groups, *k)."""
    return w.reshape(spec.groups, -1, *w.shape[1:])


class Gradient(Right):
    """A fault of one direction, on the finished result."""

    direction = ""

    def shows(self, spec: ConvSpec) -> bool:
        return spec.direction == self.direction

    def changed(self, spec: ConvSpec, y: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        return y

    def result(
        self, spec: ConvSpec, y: np.ndarray, operands: tuple[np.ndarray, ...], out: np.ndarray | None
    ) -> np.ndarray:
        return super().result(spec, np.ascontiguousarray(self.changed(spec, y, out)), operands, out)


class UnflippedInputGradient(Right):
    """The forward kernel, as it is, slid over grad."""

    def shows(self, spec: ConvSpec) -> bool:
        return spec.direction == "input_gradient" and math.prod(spec.kernel) > 1

    def kernel(self, spec: ConvSpec, w: np.ndarray) -> np.ndarray:
        return np.flip(w, tuple(range(2, w.ndim)))


class FlippedWeightGradient(Gradient):
    direction = "weight_gradient"

    def shows(self, spec: ConvSpec) -> bool:
        return super().shows(spec) and math.prod(spec.kernel) > 1

    def changed(self, spec: ConvSpec, y: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        return np.flip(y, tuple(range(2, y.ndim)))


class SwappedChannels(Gradient):
    """O and C exchanged in name only: the shape is right, the memory was never transposed."""

    direction = "weight_gradient"

    def shows(self, spec: ConvSpec) -> bool:
        return spec.direction != "forward" and min(spec.out_channels, spec.in_channels) // spec.groups > 1

    def swapped(self, spec: ConvSpec, w: np.ndarray) -> np.ndarray:
        by_group = _channels_by_group(spec, w)
        return np.ascontiguousarray(by_group.swapaxes(1, 2)).reshape(w.shape)

    def kernel(self, spec: ConvSpec, w: np.ndarray) -> np.ndarray:
        return self.swapped(spec, w)

    def changed(self, spec: ConvSpec, y: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        return self.swapped(spec, y) if spec.direction == self.direction else y


class MixedResidues(Gradient):
    """With a stride, the elements of the first two residues of the last axis stand in each other's place."""

    direction = "input_gradient"

    def shows(self, spec: ConvSpec) -> bool:
        return super().shows(spec) and spec.stride[-1] > 1 and spec.size[-1] > 1

    def changed(self, spec: ConvSpec, y: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        mixed, step = y.copy(), spec.stride[-1]
        some = y[..., 1::step].shape[-1] * step
        mixed[..., 0:some:step], mixed[..., 1::step] = y[..., 1::step], y[..., 0:some:step]
        return mixed


class StrideForDilation(Right):
    """Each in the other's place, where the shapes allow it."""

    def shows(self, spec: ConvSpec) -> bool:
        steps = zip(spec.dilation, spec.stride, spec.output_size, spec.kernel, strict=True)
        return spec.direction != "forward" and any(
            d > s and min(n, k) > 1 for d, s, n, k in steps
        ) and all(d >= s for d, s in zip(spec.dilation, spec.stride, strict=True))  # fmt: skip

    def geometry(self, spec: ConvSpec) -> ConvSpec:
        after = ((n - 1) * d + (k - 1) * s + 1 - m - b for n, d, k, s, m, (b, _) in zip(
            spec.output_size, spec.dilation, spec.kernel, spec.stride, spec.size, spec.padding,
            strict=True))  # fmt: skip
        padding = tuple((b, a) for (b, _), a in zip(spec.padding, after, strict=True))
        return spec.with_(stride=spec.dilation, dilation=spec.stride, padding=padding)


class GroupsInAnotherOrder(Gradient):
    """Each group's weights get the gradient of its neighbour's."""

    direction = "weight_gradient"

    def shows(self, spec: ConvSpec) -> bool:
        return super().shows(spec) and spec.groups > 1

    def changed(self, spec: ConvSpec, y: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        return np.roll(_channels_by_group(spec, y), 1, axis=0).reshape(y.shape)


class MeanOfImages(Gradient):
    """A loss is often a mean over the batch, its gradient in a layer never."""

    direction = "weight_gradient"

    def shows(self, spec: ConvSpec) -> bool:
        return super().shows(spec) and spec.batch > 1

    def changed(self, spec: ConvSpec, y: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        return y / y.dtype.type(spec.batch)


class UnclearedBetween(Gradient):
    """What no output reads has no gradient, and keeps what stood in ``out``."""

    direction = "input_gradient"

    def shows(self, spec: ConvSpec) -> bool:
        return super().shows(spec) and spec.unread[-1][0] > 0

    def changed(self, spec: ConvSpec, y: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        unread = list(spec.unread[-1][1])
        if out is not None:
            y[..., unread] = out[..., unread]
        return y


# ---- wrong lowerings: of a step, on a problem that goes through it -----------------------------------------

Change = Callable[[Lowered, ConvSpec], Lowered]


def _parts(**fields: Callable[[Part], Any]) -> Change:
    """Every part with other ones of these fields."""

    def change(lowered: Lowered, spec: ConvSpec) -> Lowered:
        return replace(
            lowered,
            parts=tuple(
                replace(part, **{k: new(part) for k, new in fields.items()}) for part in lowered.parts
            ),
        )

    return change


def _combined(mistake: Callable[[Any], Any]) -> Change:
    """Results of all parts put together otherwise."""

    def change(lowered: Lowered, spec: ConvSpec) -> Lowered:
        if lowered.combine is None:
            return lowered
        wrong = mistake(lambda y, results: lowered.combine(y, results, 0))
        return replace(lowered, combine=lambda y, results, threads: wrong(y, results))

    return change


def _uncleared(combine: Any) -> Any:
    """Elements that meet no tap are left as they were."""

    def put(y: np.ndarray, results: list[np.ndarray]) -> None:
        before, met = y.copy(), np.zeros_like(y)
        combine(y, results)
        combine(met, [np.ones_like(result) for result in results])
        y[met == 0] = before[met == 0]

    return put


def _placed_elsewhere(lowered: Lowered, spec: ConvSpec) -> Lowered:
    """Each part's result where its neighbour's belongs."""
    places = [part.place for part in lowered.parts]
    parts = zip(lowered.parts, (*places[1:], places[0]), strict=True)
    return replace(lowered, parts=tuple(replace(part, place=place) for part, place in parts))


def _cropped(lowered: Lowered, spec: ConvSpec) -> Lowered:
    """The border's gradient is thrown away, where it must be added to what it repeats."""
    inside = (
        slice(None),
        slice(None),
        *(slice(b, b + n) for n, (b, _) in zip(spec.size, spec.padding, strict=True)),
    )

    def place(dx: np.ndarray, result: np.ndarray) -> None:
        dx[...] = result[inside]

    return replace(lowered, parts=(replace(lowered.parts[0], place=place),))


def _adding(place: Any) -> Any:
    """Adds to what stands there."""

    def add(y: np.ndarray, result: Any) -> None:
        own = np.zeros_like(y)
        place(own, result)
        y += own

    return add


def _once(make: Any) -> Any:
    """The first call's operands serve them all."""

    def operands() -> Any:
        move, kept = make(), []

        def moved(*arrays: np.ndarray) -> Any:
            kept.append(move(*arrays)) if not kept else None
            return kept[0]

        return moved

    return operands


def _mirrored(w: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.flip(w, tuple(range(2, w.ndim))))


def _untransposed(w: np.ndarray) -> np.ndarray:
    """(A, B, *k), where A and B were exchanged in the shape alone."""
    return np.ascontiguousarray(w.swapaxes(0, 1)).reshape(w.shape)


def _as_it_lies(y: np.ndarray, result: np.ndarray) -> None:
    y[...] = result.reshape(y.shape)


def _twice(place: Any) -> Any:
    """As a bias that a lowering adds, and the door adds again."""

    def both(y: np.ndarray, result: np.ndarray) -> None:
        place(y, result)
        y += result.reshape(-1)[0]

    return both


# name -> (step, its mistake, a problem that shows it); WITHOUT: the steps that would be taken in its stead
LOWERINGS: dict[str, tuple[str, Change, str]] = {
    "forgotten flip": ("residues", _parts(weights=lambda p: lambda w: _mirrored(p.weights(w))),
                       "2x3x8x8,4x3x3x3,p1,input_gradient"),
    "swapped channels": ("residues", _parts(weights=lambda p: lambda w: _untransposed(p.weights(w))),
                         "2x3x8x8,4x3x3x3,p1,input_gradient"),
    "residues mixed up": ("residues", _combined(lambda combine: lambda y, results: combine(y, results[::-1])),
                          "2x3x8x8,4x3x4x4,s2,p1,input_gradient"),
    "residues not cleared": ("residues", _combined(_uncleared), "2x3x11x11,4x3x2x2,s3,input_gradient"),
    "residues added": ("residues", _combined(_adding), "2x3x8x8,4x3x4x4,s2,p1,input_gradient"),
    "shuffled otherwise": ("shuffle",
                           _combined(lambda combine: lambda y, results: combine(y, [results[0][:, ::-1]])),
                           "2x3x8x8,4x3x4x4,s2,p1,input_gradient"),
    "taps forgotten": ("shuffle",
                       _parts(weights=lambda p: lambda w: p.weights(w * (np.arange(w.shape[-1])
                                                                         < w.shape[-1] - 1))),
                       "2x3x8x8,4x3x4x4,s2,p1,input_gradient"),
    "the first grad kept": ("spaced", _parts(operands=lambda p: _once(p.operands)),
                            "2x3x8x8,4x3x4x4,s2,p1,input_gradient"),
    "images for channels": ("exchange", _parts(place=lambda p: _as_it_lies),
                            "2x3x8x8,4x3x3x3,p1,weight_gradient"),
    "something added twice": ("exchange", _parts(place=lambda p: _twice(p.place)),
                              "2x3x8x8,4x3x3x3,p1,weight_gradient"),
    "border not folded back": ("border", _cropped, "2x3x8x8,4x3x3x3,p2,reflect,input_gradient"),
    "borders of zeros": ("border", lambda lowered,
                         spec: border(spec.with_(padding_mode="constant:0.5")) or lowered,
                         "2x3x8x8,4x3x3x3,p2,circular,weight_gradient"),
    "flip forgotten": ("flip", _parts(place=lambda p: _as_it_lies),
                       "2x3x8x8,4x3x3x3,p1,weight_gradient,flip"),
    "crop at the wrong end": ("crop", _parts(place=lambda p: lambda y, r: p.place(y[..., ::-1], r)),
                              "2x3x8x8,4x3x3x3,p-1:1,input_gradient"),
    "groups mixed": ("groups", _placed_elsewhere, "2x4x8x8,6x2x3x3,p1,input_gradient"),
    "phases mixed": ("dilation", _placed_elsewhere, "2x3x8x8,4x3x3x3,p2,d2,input_gradient"),
    "stride thinned from the second": ("stride",
                                       _parts(place=lambda p: lambda y, r: p.place(y, np.roll(r, -1, -1))),
                                       "2x3x9x9,4x3x3x3,s2,p1"),
    "planes out of order": ("axes", _parts(weights=lambda p: lambda w: p.weights(w[:, :, ::-1])),
                            "2x3x5x6x7,4x3x3x3x3,p1,input_gradient"),
}  # fmt: skip
WITHOUT = {"residues": ("shuffle",), "shuffle": ("residues",), "spaced": ("residues", "shuffle")}

TYPES = (
    RoundedInside,
    RoundedBeforeBias,
    Truncated,
    Wraps,
    Saturates,
    DroppedImaginaryPart,
    DroppedImaginaryResult,
    ConjugatedForward,
    UnconjugatedGradient,
    ConjugatedResult,
    ActivationBeforeBias,
    BiasTwice,
    BiasOfTheFirstChannel,
    ForgottenActivation,
    RawPadding,
    ForgottenZeroPoint,
)
ARITHMETIC = (
    FlippedKernel,
    ShiftedPadding,
    SwappedAxes,
    IgnoredStride,
    IgnoredDilation,
    MixedGroups,
    DroppedChannel,
    Zeros,
    RepeatedImage,
    HalfInside,
    SingleInside,
)
WRITING = (
    ZeroedLastRow,
    NanCorner,
    UnwrittenCorner,
    IgnoredOut,
    AddsToOut,
    ChangedInput,
    ChangedWeights,
    TransposedResult,
    WrongType,
    ReusedBuffer,
    Remembered,
)
GRADIENTS = (
    UnflippedInputGradient,
    FlippedWeightGradient,
    SwappedChannels,
    MixedResidues,
    StrideForDilation,
    MixedGroups,
    GroupsInAnotherOrder,
    MeanOfImages,
    UnclearedBetween,
)
