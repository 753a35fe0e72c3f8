"""Operands for a spec: (spec, seed) -> arrays, the same on every machine.

``normal`` are seeded standard normals (whole numbers for integer types, whose sums fit the type of the
result); ``integer`` are small whole numbers whose sums stay exact in the result's type, with kernels that
differ from their own mirror images and transposes. Those with a sign sum to zero in every plane: whoever
decides by a sum takes them for nothing. Zero points are added to whole numbers that were drawn around 0, and
both parts of complex numbers are drawn alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from algos.dtypes import kind as kind_of
from algos.dtypes import limits, real, whole
from algos.spec import ConvSpec
from bench.oracle import border_value, reduction

KINDS = ("normal", "integer")
SPAN = (8, 4)  # largest |x| and |w| of kind "integer"
ATTEMPTS = 100


@dataclass(frozen=True)
class Operands:
    """What one spec computes with; those that its direction doesn't take are None.

    Attributes
    ----------
    x : array (N, C, *size) of the spec's input type
    w : array (O, C / groups, *kernel) of the weights' type
    grad : array (N, O, *output size) of the spec's output type
    bias : array (O,) of the spec's output type
    """

    x: np.ndarray | None
    w: np.ndarray | None
    grad: np.ndarray | None
    bias: np.ndarray | None = None

    @property
    def call(self) -> tuple[np.ndarray, ...]:
        """What a plan is called with: (x,), (grad,) or (x, grad); w and bias were given when it was
        prepared.
        """
        return tuple(a for a in (self.x, self.grad) if a is not None)


def named_operands(spec: ConvSpec) -> dict[str, tuple[tuple[int, ...], np.dtype, int]]:
    """Shape, type and zero point of the two operands of the spec's direction, in the order of their product.
    """
    every = {
        "x": (spec.input_shape, spec.in_dtype, spec.zero_points[0]),
        "w": (spec.weight_shape, spec.w_dtype, spec.zero_points[1]),
        "grad": (spec.output_shape, spec.out_dtype, 0),
    }
    names = {"forward": "x w", "input_gradient": "grad w", "weight_gradient": "x grad"}[spec.direction]
    return {name: every[name] for name in names.split()}


def operands(
    spec: ConvSpec, seed: int = 0, kind: str = "normal", span: tuple[int, int] = SPAN, share: float = 1.0
) -> Operands:
    """Seeded operands of the spec's direction; weights keep its promise of rank.

    Parameters
    ----------
    spec : ConvSpec
    seed : int
    kind : str
        "normal" or "integer".
    span : (int, int)
        Largest absolute values of the first and the second operand of kind "integer"; narrowed further until
        every sum of products is exact in the type of the result.
    share : float
        Of the second operand of kind "integer" that is drawn; the rest is zero.

    Raises
    ------
    ValueError
        For an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: use {' or '.join(KINDS)}")
    numbers = kind == "integer" or whole(spec.in_dtype)
    *spans, most = (
        _spans(spec, span if kind == "integer" else (math.inf, math.inf)) if numbers else (0, 0, 1.0)
    )
    made: dict[str, np.ndarray] = {}
    for (name, (shape, dtype, point)), largest, dense in zip(
        named_operands(spec).items(), spans, (1.0, min(share, most)), strict=True
    ):
        rng = np.random.default_rng([seed, "xwg".index(name[0])])
        if not numbers:
            made[name] = (
                _ranked_normal(rng, spec) if name == "w" and spec.rank else _normal(rng, shape, dtype)
            )
            continue
        how = _ends(spec, dtype, point, largest), dense, kind == "integer"
        made[name] = _asymmetric(rng, spec, *how) if name == "w" else _whole(rng, shape, dtype, *how)
        if point:  # modulo the type's range, as the draw was
            made[name] += dtype.type(point)
    bias = _bias(spec, np.random.default_rng([seed, 3]), kind) if spec.bias else None
    return Operands(made.get("x"), made.get("w"), made.get("grad"), bias)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "c":
        parts = (_normal(rng, shape, real(dtype)) for _ in range(2))
        return next(parts) + next(parts) * dtype.type(1j)
    if dtype == np.float64:
        return rng.standard_normal(shape)
    return rng.standard_normal(shape, np.float32).astype(dtype, copy=False)


def _ranked_normal(rng: np.random.Generator, spec: ConvSpec) -> np.ndarray:
    """Each kernel a sum of ``rank`` outer products, rounded once at the end."""
    work = np.dtype(np.complex128 if spec.w_dtype.kind == "c" else np.float64)
    column, row = (_normal(rng, (spec.rank or 1, *spec.weight_shape[:2], k), work) for k in spec.kernel)
    return np.einsum("roih,roiw->oihw", column, row).astype(spec.w_dtype)


def _bias(spec: ConvSpec, rng: np.random.Generator, kind: str) -> np.ndarray:
    """As large as ``_spans`` leaves room for."""
    if kind == "normal" and not whole(spec.out_dtype):
        return _normal(rng, (spec.out_channels,), spec.out_dtype)
    most = _room(spec, kind)
    ends = (0 if spec.out_dtype.kind == "u" else -most, most)
    return _whole(rng, (spec.out_channels,), spec.out_dtype, ends, 1.0, False)


def _room(spec: ConvSpec, kind: str) -> int:
    """Largest bias of whole numbers."""
    if not spec.bias:
        return 0
    return SPAN[0] if kind == "integer" else exact_limit(spec) // 4


def widened(a: np.ndarray) -> np.ndarray:
    """Floats narrower than float64, or complex numbers of them, in float64."""
    return a.astype({"f": np.float64, "c": np.complex128}[kind_of(a.dtype)], copy=False)


def scaled(a: np.ndarray, powers: Any) -> np.ndarray:
    """a * 2 ** powers, rounded to its type."""
    return (widened(a) * np.ldexp(1.0, powers)).astype(a.dtype)


def exact_limit(spec: ConvSpec) -> int:
    """Whole numbers of a smaller magnitude are exact in the type of the result, or in its parts."""
    dtype = spec.result_dtype
    return int(np.iinfo(dtype).max) if whole(dtype) else 1 << (int(limits(dtype).nmant) + 1)


def _spans(spec: ConvSpec, span: tuple[float, float]) -> tuple[int, int, float]:
    """Largest absolute values of both operands, and the share of the second that is not zero, for exact sums.
    """
    largest = []
    for _, dtype, point in named_operands(spec).values():
        low, high = _ends(spec, dtype, point, None)
        largest.append(max(high, -low))
    a, b = (int(min(s, n)) for s, n in zip(span, largest, strict=True))
    if spec.rank:
        b = spec.rank * _factor(spec, min(b, SPAN[1])) ** 2
    border = abs(int(border_value(spec))) if spec.direction != "input_gradient" else 0
    limit = exact_limit(spec) - _room(spec, "normal" if math.isinf(span[0]) else "integer")
    terms = max(reduction(spec), 1) * (2 if kind_of(spec.in_dtype) == "c" else 1)
    while terms * max(a, border) * b >= limit:
        if a > 1 and (a >= b or spec.rank):
            a //= 2
        elif b > 1 and not spec.rank:
            b //= 2
        else:  # too many terms even for ones: most of the second operand becomes zero
            return a, b, limit / (2 * terms * max(a, border) * b)
    return a, b, 1.0


def _ends(spec: ConvSpec, dtype: np.dtype, point: int, largest: int | None) -> tuple[int, int]:
    """Least and greatest number to draw, before the zero point is added: what the type holds, up to
    ``largest``; where a result has no sign, neither have its operands.
    """
    info = np.iinfo(dtype) if whole(dtype) else None
    most = 1 << (int(limits(dtype).nmant) + 1) if info is None else int(info.max) - point
    low = -most if info is None else int(info.min) - point
    low = 0 if spec.result_dtype.kind == "u" else low
    return (low, most) if largest is None else (max(low, -largest), min(most, largest))


def _factor(spec: ConvSpec, largest: int) -> int:
    """Largest element of the outer products that sum to at most ``largest``, but at least 1."""
    return max(math.isqrt(largest // (spec.rank or 1)), 1)


def _whole(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, ends: tuple[int, int], share: float,
    balanced: bool,
) -> np.ndarray:  # fmt: skip
    if dtype.kind == "c":
        parts = (_whole(rng, shape, real(dtype), ends, share, balanced) for _ in range(2))
        return next(parts) + next(parts) * dtype.type(1j)
    low, high = ends
    draw = rng.integers(low, high, shape, np.uint64 if low >= 0 else np.int64, endpoint=True)
    if share < 1:
        draw[rng.random(shape) >= share] = 0
    if balanced and 0 < high == -low:
        _balance(draw, high)
    return draw.astype(dtype)


def _balance(draw: np.ndarray, largest: int) -> None:
    """Make every plane of (first, second, *axes) sum to zero, or every image whose planes are one element."""
    axes = 2 if math.prod(draw.shape[2:]) > 1 else 1
    count = math.prod(draw.shape[axes:])
    lines = draw.reshape(*draw.shape[:axes], count)
    # The second half is the negated first; an odd number leaves three over.
    half = max(count // 2 - count % 2, 0)
    lines[..., half : 2 * half] = -lines[..., :half]
    if count % 2 and count > 1:
        a, b = lines[..., -3], lines[..., -2]
        b[np.abs(a + b) > largest] *= -1
        lines[..., -1] = -(a + b)


def _asymmetric(
    rng: np.random.Generator, spec: ConvSpec, ends: tuple[int, int], share: float, balanced: bool
) -> np.ndarray:
    """Weights that no mirror image, transpose or shift of groups leaves as they are, where shapes allow."""
    low, high = ends
    f = min(_factor(spec, max(high, -low)), max(high, -low))
    factor = (-f if low == -high else 0, f)
    wide = np.int64 if whole(spec.w_dtype) else np.complex128 if spec.w_dtype.kind == "c" else np.float64
    for _ in range(ATTEMPTS):
        if spec.rank:
            shapes = [(spec.rank * spec.out_channels, spec.weight_shape[1], k) for k in spec.kernel]
            types = (spec.w_dtype, real(spec.w_dtype))  # of complex numbers one factor is real
            factors = (_whole(rng, s, t, factor, 1.0, balanced and s[-1] > 1)
                       for s, t in zip(shapes, types, strict=True))  # fmt: skip
            column, row = (
                made.astype(wide).reshape(spec.rank, *spec.weight_shape[:2], -1) for made in factors
            )
            w = np.einsum("roih,roiw->oihw", column, row)
            w = -w if high < -low else w
            w *= rng.random(w.shape[:2])[..., None, None] < share  # whole kernels: the others keep their rank
            w = w.astype(spec.w_dtype)
        else:
            w = _whole(rng, spec.weight_shape, spec.w_dtype, ends, share, balanced)
        if not symmetric(w):
            break
    return w


def symmetric(w: np.ndarray) -> bool:
    """Whether reversing or exchanging axes of w (O, C / groups, *kernel) leaves it
    unchanged although it could change.
    """
    space = range(2, w.ndim)
    mirrored = any(w.shape[a] > 1 and np.array_equal(w, np.flip(w, a)) for a in range(w.ndim))
    turned = math.prod(w.shape[2:]) > 1 and np.array_equal(w, np.flip(w, tuple(space)))
    swapped = any(
        w.shape[a] == w.shape[b] > 1 and np.array_equal(w, w.swapaxes(a, b))
        for a in space
        for b in space
        if a < b
    )
    return bool(mirrored or turned or swapped)
