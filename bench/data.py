"""Operands for a spec: (spec, seed) -> arrays, the same on every machine.

``normal`` are seeded standard normals (whole numbers for integer types); ``integer`` are small whole numbers
whose sums stay exact in the result's type, with kernels that differ from their own mirror images and
transposes. Those with a sign sum to zero in every plane: whoever decides by a sum takes them for nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

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
    w : array (O, C / groups, *kernel) of the spec's input type
    grad : array (N, O, *output size) of the spec's output type
    """

    x: np.ndarray | None
    w: np.ndarray | None
    grad: np.ndarray | None

    @property
    def call(self) -> tuple[np.ndarray, ...]:
        """What a plan is called with: (x,), (grad,) or (x, grad); w was given when it was prepared."""
        return tuple(a for a in (self.x, self.grad) if a is not None)


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
    names = {"forward": ("x", "w"), "input_gradient": ("grad", "w"), "weight_gradient": ("x", "grad")}[
        spec.direction
    ]
    shapes = {
        "x": (spec.input_shape, spec.in_dtype),
        "w": (spec.weight_shape, spec.in_dtype),
        "grad": (spec.output_shape, spec.out_dtype),
    }
    whole = kind == "integer" or spec.in_dtype.kind != "f"
    *spans, most = _spans(spec, span if kind == "integer" else (math.inf, math.inf)) if whole else (0, 0, 1.0)
    made: dict[str, np.ndarray] = {}
    for name, largest, dense in zip(names, spans, (1.0, min(share, most)), strict=True):
        rng, (shape, dtype) = np.random.default_rng([seed, "xwg".index(name[0])]), shapes[name]
        if not whole:
            made[name] = (
                _ranked_normal(rng, spec) if name == "w" and spec.rank else _normal(rng, shape, dtype)
            )
        elif name == "w":
            made[name] = _asymmetric(rng, spec, largest, dense, kind == "integer")
        else:
            made[name] = _whole(rng, shape, dtype, largest, dense, kind == "integer")
    return Operands(made.get("x"), made.get("w"), made.get("grad"))


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype == np.float64:
        return rng.standard_normal(shape)
    return rng.standard_normal(shape, np.float32).astype(dtype, copy=False)


def _ranked_normal(rng: np.random.Generator, spec: ConvSpec) -> np.ndarray:
    """Each kernel a sum of ``rank`` outer products, rounded once at the end."""
    column, row = (rng.standard_normal((spec.rank or 1, *spec.weight_shape[:2], k)) for k in spec.kernel)
    return np.einsum("roih,roiw->oihw", column, row).astype(spec.in_dtype)


def exact_limit(spec: ConvSpec) -> int:
    """Whole numbers of a smaller magnitude are exact in the type of the result."""
    dtype = spec.out_dtype if spec.direction == "forward" else spec.in_dtype
    return 1 << (np.finfo(dtype).nmant + 1) if dtype.kind == "f" else int(np.iinfo(dtype).max)


def _spans(spec: ConvSpec, span: tuple[float, float]) -> tuple[int, int, float]:
    """Largest absolute values of both operands, and the share of the second that is not zero, for exact sums.
    """
    types = [spec.out_dtype if spec.direction == "input_gradient" else spec.in_dtype,
             spec.out_dtype if spec.direction == "weight_gradient" else spec.in_dtype]
    largest = [exact_limit(spec) if t.kind == "f" else int(np.iinfo(t).max) for t in types]
    a, b = (int(min(s, n)) for s, n in zip(span, largest, strict=True))
    if spec.rank:
        b = spec.rank * _factor(spec, min(b, SPAN[1])) ** 2
    border = abs(int(border_value(spec))) if spec.direction != "input_gradient" else 0
    limit, terms = exact_limit(spec), max(reduction(spec), 1)
    while terms * max(a, border) * b >= limit:
        if a > 1 and (a >= b or spec.rank):
            a //= 2
        elif b > 1 and not spec.rank:
            b //= 2
        else:  # too many terms even for ones: most of the second operand becomes zero
            return a, b, limit / (2 * terms * max(a, border) * b)
    return a, b, 1.0


def _factor(spec: ConvSpec, largest: int) -> int:
    """Largest element of the outer products that sum to at most ``largest``, but at least 1."""
    return max(math.isqrt(largest // (spec.rank or 1)), 1)


def _whole(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, largest: int, share: float,
    balanced: bool,
) -> np.ndarray:  # fmt: skip
    unsigned = dtype.kind == "u"
    draw = rng.integers(
        0 if unsigned else -largest, largest, shape, np.uint64 if unsigned else np.int64, endpoint=True
    )
    if share < 1:
        draw[rng.random(shape) >= share] = 0
    if balanced and not unsigned:
        _balance(draw, largest)
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
    rng: np.random.Generator, spec: ConvSpec, largest: int, share: float, balanced: bool
) -> np.ndarray:
    """Weights that no mirror image, transpose or shift of groups leaves as they are, where shapes allow."""
    for _ in range(ATTEMPTS):
        if spec.rank:
            f = _factor(spec, largest)
            shapes = [(spec.rank * spec.out_channels, spec.weight_shape[1], k) for k in spec.kernel]
            factors = (_whole(rng, s, spec.in_dtype, f, 1.0, balanced and s[-1] > 1) for s in shapes)
            column, row = (factor.reshape(spec.rank, *spec.weight_shape[:2], -1) for factor in factors)
            w = np.einsum("roih,roiw->oihw", column, row)
            w *= rng.random(w.shape[:2])[..., None, None] < share  # whole kernels: the others keep their rank
            w = w.astype(spec.in_dtype)
        else:
            w = _whole(rng, spec.weight_shape, spec.in_dtype, largest, share, balanced)
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
