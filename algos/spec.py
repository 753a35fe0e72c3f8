"""ConvSpec: one convolution problem, without data; its text is its name everywhere.

``1x64x56x56,128x64x3x3,p1`` reads: input N x C x H x W, weights O x I x KH x KW, then options in the fixed
order stride, padding, dilation, rank, dtype, padding mode, direction, flip, bias, activation, zero points,
each left out at its default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from algos.dtypes import kind, named, whole
from algos.grammar import (
    ACTIVATIONS,
    DIRECTIONS,
    PADDING_MODES,
    SHAPE,
    SpecError,
    checked_dtype,
    checked_int,
    checked_ints,
    collapse,
    constant,
    constant_text,
    padding_pairs,
    parse_option,
    per_axis,
    shown,
    times,
)
from algos.held import held
from algos.reads import unread

Padding = int | str | Sequence[Any]

AXIS_NAMES = {1: ("column",), 2: ("row", "column"), 3: ("plane", "row", "column")}
LARGEST_BYTES = 1 << 62  # of one array; beyond it no index type can address the elements


@dataclass(frozen=True)
class ConvSpec:
    """The problem: shapes and parameters, never data. The operation is cross-correlation unless ``flip``.

    Parameters
    ----------
    batch, in_channels, out_channels : int
        N, C and O. A batch of 0 gives an empty output; every other size is at least 1.
    size, kernel : tuple of 1, 2 or 3 ints
        Spatial sizes of the input and of the weights.
    stride, dilation : int or one int per axis
    padding : int, one int per axis, (before, after) pairs, "same" (ONNX SAME_UPPER), "same_lower", "valid"
        or "full"
        Negative numbers crop.
    groups : int
        Divides both channel counts; weights are (O, C / groups, *kernel).
    rank : int, optional
        2-D only, and not for weight_gradient: promises that each channel's kernel is a sum of that many outer
        products.
    dtype : str
        A float, complex or integer type, or ``in>out`` such as ``int8>int32``, or ``x*w>out`` such as
        ``uint8*int8>int32``. Floats narrower than float32 are summed in float32 and rounded once; integers
        are exact, and a result that does not fit its type is an error.
    padding_mode : str
        zeros, reflect, replicate, circular, symmetric or ``constant:V``.
    direction : str
        forward, input_gradient or weight_gradient.
    flip : bool
        Reverse the weights in space: true convolution.
    bias : bool
        A number for each output channel is added. Forward only.
    activation : str
        none, relu, relu6, sigmoid or silu, of the result with its bias, before it is rounded. Forward only.
    zero_points : (int, int)
        Of whole numbers: what stands for 0 in x and in w, and is subtracted from them; what the padding holds
        is 0 after that. Forward only.

    Raises
    ------
    SpecError
        A ValueError whose one line says what to change.
    """

    batch: int
    in_channels: int
    size: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = 1  # type: ignore[assignment]  # broadcast below
    padding: tuple[tuple[int, int], ...] = 0  # type: ignore[assignment]
    dilation: tuple[int, ...] = 1  # type: ignore[assignment]
    groups: int = 1
    rank: int | None = None
    dtype: str = "float32"
    padding_mode: str = "zeros"
    direction: Literal["forward", "input_gradient", "weight_gradient"] = "forward"
    flip: bool = False
    bias: bool = False
    activation: str = "none"
    zero_points: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        size = checked_ints("size", self.size)
        ndim = len(size)
        if not 1 <= ndim <= 3:
            raise SpecError(f"size has {ndim} axes: give 1, 2 or 3")
        put("size", size)
        put("kernel", per_axis("kernel", self.kernel, ndim))
        put("stride", per_axis("stride", self.stride, ndim))
        put("dilation", per_axis("dilation", self.dilation, ndim))
        for name in ("batch", "in_channels", "out_channels", "groups"):
            put(name, checked_int(name, getattr(self, name)))
        if self.batch < 0:
            raise SpecError(f"batch is {self.batch}: it must be 0 or more")
        for name in ("in_channels", "out_channels", "groups", "size", "kernel", "stride", "dilation"):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise SpecError(f"{name} is {times(value)}: every {name} must be 1 or more")
        put("padding", self._pairs(self.padding))
        self._validate_channels()
        put("dtype", checked_dtype(self.dtype))
        put("padding_mode", self._mode(self.padding_mode))
        if not isinstance(self.direction, str) or self.direction not in DIRECTIONS:
            raise SpecError(f"unknown direction {shown(self.direction)}: use one of {', '.join(DIRECTIONS)}")
        if not isinstance(self.flip, bool | np.bool_):
            raise SpecError(f"flip is {shown(self.flip)}: use True or False")
        put("flip", bool(self.flip))
        self._validate_crop()
        self._validate_rank()
        self._validate_forward()
        for axis, (have, need) in enumerate(zip(self.padded_size, self.kernel_extent, strict=True)):
            if need > have:
                raise SpecError(
                    f"kernel extent {need} exceeds the padded input's {have} on axis {axis}: "
                    "add padding, or use a smaller kernel or dilation"
                )
        images = max(1, self.batch)  # an algorithm is asked about one where there is none
        padded, output = (images, self.in_channels, *self.padded_size), (images, *self.output_shape[1:])
        for shape in (padded, self.weight_shape, output):
            if math.prod(shape) * 8 > LARGEST_BYTES:
                raise SpecError(
                    f"an array of shape {times(shape)} is too large for any machine: use smaller sizes"
                )

    def _validate_channels(self) -> None:
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise SpecError(f"{name} {getattr(self, name)} is not divisible by groups {self.groups}")

    def _validate_crop(self) -> None:
        """All may be cropped of a transposed convolution only: its output padding is left, to which nothing
        is added.
        """
        if self.padding_mode == "zeros" and self.direction == "input_gradient":
            return
        for size, (before, after) in zip(self.size, self.padding, strict=True):
            if size + min(before, 0) + min(after, 0) < 1:
                raise SpecError(f"padding {before}:{after} crops all of an input of {size}: leave at least 1")

    def _validate_rank(self) -> None:
        if self.rank is None:
            return
        object.__setattr__(self, "rank", checked_int("rank", self.rank))
        if self.direction == "weight_gradient":
            raise SpecError("rank promises what weights are, a weight_gradient computes them: leave rank out")
        if self.ndim != 2:
            raise SpecError(f"rank is for 2-D kernels, this spec is {self.ndim}-D: leave rank out")
        if not 1 <= self.rank <= min(self.kernel):
            raise SpecError(
                f"rank {self.rank} is outside 1..{min(self.kernel)} for kernel {times(self.kernel)}"
            )

    def _validate_forward(self) -> None:
        """What forward passes alone have."""
        if not isinstance(self.bias, bool | np.bool_):
            raise SpecError(f"bias is {shown(self.bias)}: use True or False, and give its numbers to plan()")
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            raise SpecError(
                f"unknown activation {shown(self.activation)}: use one of {', '.join(ACTIVATIONS)}"
            )
        points = checked_ints("zero_points", self.zero_points)
        if len(points) != 2:
            raise SpecError(f"zero_points has {len(points)} entries: give two, of x and of w")
        object.__setattr__(self, "bias", bool(self.bias))
        object.__setattr__(self, "zero_points", points)
        x, w, y = self.in_dtype, self.w_dtype, self.out_dtype
        if self.direction != "forward" and (
            self.bias or self.activation != "none" or any(points) or x != w
        ):
            raise SpecError(
                f"{self.direction} has no bias, activation, zero points or type of its own for w: leave them "
                "out"
            )
        if self.activation != "none" and (kind(y) == "c" or (whole(y) and "relu" not in self.activation)):
            raise SpecError(f"there is no {self.activation} of {y}: leave it out")
        for name, point, dtype in zip("xw", points, (x, w), strict=True):
            if point and not whole(dtype):
                raise SpecError(f"zero points are of whole numbers, not of {dtype}: leave zp out")
            if point and not np.iinfo(dtype).min <= point <= np.iinfo(dtype).max:
                raise SpecError(f"the zero point {point} of {name} does not fit {dtype}")

    def _pairs(self, padding: Padding) -> tuple[tuple[int, int], ...]:
        if isinstance(padding, str):
            return self._named_padding(padding)
        return padding_pairs(padding, self.ndim)

    def _named_padding(self, name: str) -> tuple[tuple[int, int], ...]:
        if name == "valid":
            return ((0, 0),) * self.ndim
        if name == "full":
            return tuple((extent - 1, extent - 1) for extent in self.kernel_extent)
        if name in ("same", "same_lower"):
            pairs = []
            for size, extent, stride in zip(self.size, self.kernel_extent, self.stride, strict=True):
                total = max((-(-size // stride) - 1) * stride + extent - size, 0)
                less, more = total // 2, total - total // 2
                pairs.append((less, more) if name == "same" else (more, less))
            return tuple(pairs)
        raise SpecError(
            f'unknown padding {shown(name)}: use "same", "same_lower", "valid", "full" or numbers'
        )

    def _mode(self, mode: str) -> str:
        if isinstance(mode, str) and mode.startswith("constant:"):
            value = constant(mode.removeprefix("constant:"), self.in_dtype)
            return f"constant:{constant_text(value, self.in_dtype)}" if value else "zeros"
        if not isinstance(mode, str) or mode not in PADDING_MODES:
            raise SpecError(
                f"unknown padding mode {shown(mode)}: use {', '.join(PADDING_MODES)} or constant:V"
            )
        return mode

    # ---- derived figures -----------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        """Spatial axes: 1, 2 or 3."""
        return len(self.size)

    @held
    def in_dtype(self) -> np.dtype:
        """Type of x, and of w unless they differ."""
        return named(self.dtype.partition(">")[0].partition("*")[0])

    @held
    def w_dtype(self) -> np.dtype:
        """Type of w."""
        return named(self.dtype.partition(">")[0].rpartition("*")[2])

    @held
    def out_dtype(self) -> np.dtype:
        """Type of y."""
        return named(self.dtype.rpartition(">")[2])

    @held
    def border(self) -> int | float:
        """What lies around x where ``padding_mode`` is constant, exactly: a
        whole number for whole-number types.
        """
        if not self.padding_mode.startswith("constant:"):
            return 0
        value = constant(self.padding_mode.removeprefix("constant:"), self.in_dtype)
        return int(value) if whole(self.in_dtype) else float(value)

    @held
    def kernel_extent(self) -> tuple[int, ...]:
        """What the dilated kernel covers, per axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @held
    def padded_size(self) -> tuple[int, ...]:
        return tuple(n + before + after for n, (before, after) in zip(self.size, self.padding, strict=True))

    @held
    def output_size(self) -> tuple[int, ...]:
        """floor((size + padding - extent) / stride) + 1, per axis."""
        return tuple(
            (n - extent) // s + 1
            for n, extent, s in zip(self.padded_size, self.kernel_extent, self.stride, strict=True)
        )

    @held
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.size)

    @held
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @held
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """What a plan returns: y, dx or dw by direction."""
        return {
            "forward": self.output_shape,
            "input_gradient": self.input_shape,
            "weight_gradient": self.weight_shape,
        }[self.direction]

    @held
    def reduction_length(self) -> int:
        """K: products summed in one result of a forward pass, C / groups * taps."""
        return math.prod(self.weight_shape[1:])

    @held
    def macs(self) -> int:
        """Multiply-adds of the definition, padding included; the same in all three directions."""
        return math.prod(self.output_shape) * self.reduction_length

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def operations(self) -> int:
        """2 * macs - outputs: K products need only K - 1 additions (the count of the lectures)."""
        return 2 * self.macs - math.prod(self.output_shape)

    def parameters(self, bias: bool = False) -> int:
        return math.prod(self.weight_shape) + (self.out_channels if bias else 0)

    @property
    def finished(self) -> bool:
        """Whether anything follows the convolution: a bias or an activation."""
        return self.bias or self.activation != "none"

    @held
    def min_bytes(self) -> int:
        """x and w read once and y written once."""
        shapes = (self.input_shape, self.weight_shape, self.output_shape)
        types = (self.in_dtype, self.w_dtype, self.out_dtype)
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, types, strict=True))

    @property
    def result_dtype(self) -> np.dtype:
        """Of what a plan returns; gradients have the type of x and w."""
        return self.out_dtype if self.direction == "forward" else self.in_dtype

    @held
    def unread(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Per axis, how many indices of the input no output reads, since the stride
        steps over them, and the first six.
        """
        axes = zip(
            self.size, self.padding, self.output_size, self.kernel, self.stride, self.dilation, strict=True
        )
        return tuple(unread(n, before, *steps) for n, (before, _), *steps in axes)

    def unread_text(self) -> str:
        """``unread`` in words, empty when every element is read."""
        parts = []
        for name, (count, first) in zip(AXIS_NAMES[self.ndim], self.unread, strict=True):
            if count:
                listed = ", ".join(map(str, first)) + (", ..." if count > len(first) else "")
                parts.append(f"{count} {name}{'s' if count > 1 else ''} ({listed})")
        return f"never read: {' and '.join(parts)}" if parts else ""

    # ---- text ----------------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str) -> ConvSpec:
        """The spec that ``text`` names; the inverse of ``str``.

        Raises
        ------
        SpecError
            With the offending part and what would be right.
        """
        if not isinstance(text, str) or not text:
            raise SpecError("empty spec: write it like 1x64x56x56,128x64x3x3,p1")
        if len(text) > 1000:
            raise SpecError(f"spec text of {len(text)} characters is too long")
        shapes, options = text.split(",")[:2], text.split(",")[2:]
        for part in shapes:
            if not SHAPE.fullmatch(part):
                raise SpecError(
                    f"{part!r} is not a shape: write whole numbers joined by x, like 1x64x56x56,128x64x3x3,p1"
                )
        if len(shapes) < 2:
            raise SpecError(
                f"{text!r} has no weights: write input,weights[,options] like 1x64x56x56,128x64x3x3,p1"
            )
        x, w = (tuple(int(n) for n in part.split("x")) for part in shapes)
        if len(x) == len(w) == 2:
            x, w = _picture(x, w)
        if len(x) != len(w) or not 3 <= len(x) <= 5:
            raise SpecError(
                f"shapes of {len(x)} and {len(w)} numbers: write N x C x sizes and O x I x as many sizes, 1 "
                "to 3"
            )
        if w[1] < 1 or x[1] < 1 or x[1] % w[1]:
            advice = "; three numbers are a signal, N x C x length, a picture has four" if len(x) == 3 else ""
            raise SpecError(f"{x[1]} input channels are not divisible into groups of {w[1]}{advice}")
        given: dict[str, Any] = {}
        for option in options:
            name, value = parse_option(option, len(x) - 2)
            if name in given:
                raise SpecError(f"option {option!r} repeats {name}: give it once")
            given[name] = value
        return cls(x[0], x[1], x[2:], w[0], w[2:], groups=x[1] // w[1], **given)

    @classmethod
    def of(cls, spec: ConvSpec | str) -> ConvSpec:
        """``spec`` itself, or the one that its text names."""
        if isinstance(spec, cls):
            return spec
        if not isinstance(spec, str):
            raise SpecError(
                f"{shown(spec)} is no spec: give a ConvSpec, or its text like 1x64x56x56,128x64x3x3,p1"
            )
        return _parsed(spec)

    @held
    def _text(self) -> str:
        parts = [times(self.input_shape), times(self.weight_shape)]
        if set(self.stride) != {1}:
            parts.append("s" + collapse(self.stride))
        if any(map(any, self.padding)):
            parts.append("p" + collapse([str(b) if b == a else f"{b}:{a}" for b, a in self.padding]))
        if set(self.dilation) != {1}:
            parts.append("d" + collapse(self.dilation))
        if self.rank is not None:
            parts.append(f"rank{self.rank}")
        parts += [
            value
            for name, value in (
                ("dtype", self.dtype),
                ("padding_mode", self.padding_mode),
                ("direction", self.direction),
            )
            if value != _DEFAULTS[name]
        ]
        parts += ["flip"] * self.flip + ["bias"] * self.bias
        parts += [self.activation] * (self.activation != "none")
        if any(self.zero_points):
            parts.append("zp{}:{}".format(*self.zero_points))
        return ",".join(parts)

    def __str__(self) -> str:
        return self._text

    @held
    def _hash(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:  # its text is all that it is
        return self is other or (isinstance(other, ConvSpec) and self._text == other._text)

    def __hash__(self) -> int:  # specs are keys of every memo: the generated one takes microseconds
        return self._hash

    def with_(self, **changes: Any) -> ConvSpec:
        """A copy with some fields changed, validated again."""
        return replace(self, **changes)

    def directed(self, direction: str) -> ConvSpec:
        """The same convolution in another direction; no rank is promised of weights that are computed."""
        return self.with_(direction=direction, rank=None if direction == "weight_gradient" else self.rank)


@lru_cache(maxsize=1 << 16)
def _parsed(text: str) -> ConvSpec:
    """One object for equal texts: a picker is asked for the same ones again and again."""
    return ConvSpec.parse(text)


def _picture(x: tuple[int, ...], w: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of one channel from two numbers each; what may as well be a signal is refused."""
    picture = (1, 1, *x), (1, 1, *w)
    if 1 in x:
        along = 1 if x[0] == 1 else 0
        signal = (1, 1, x[along]), (w[1 - along], 1, w[along])
        asked, other = (",".join(map(times, shapes)) for shapes in (signal, picture))
        raise SpecError(f"{times(x)} may be a signal or a picture one pixel wide: write {asked} or {other}")
    return picture


_DEFAULTS = {f.name: f.default for f in fields(ConvSpec)}
