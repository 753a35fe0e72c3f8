"""Exact scaling by powers of two: transforms sum whole tiles, which may leave the type's range where the
result does not.

Weights are scaled once, so that the magnitudes of each output channel's sum to 1 at most: then no sum inside
exceeds that of the operand's magnitudes. Operands stay as they are, but for two kinds: LARGE ones, of which a
sum of as many elements as a transform has could overflow, are scaled down, and FAINT ones, whose rounding
would be that of subnormal numbers, up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from algos.engine.jit import linked

ORDINARY, LARGE, FAINT = range(3)
SPARE = 6  # bits: the partial sums of one butterfly, and parts of complex numbers


def unit_weights(weights: Any, xp: Any = np) -> tuple[Any, Any]:
    """Weights whose magnitudes sum to 1 at most for each output channel (axis 0), and the exponents (o,)
    taken out of them.

    ``weights`` are 2^exponent times the first, exactly but for taps that small beside the others vanish. A
    channel with a NaN or an infinity stays as it is.
    """
    flat = weights.reshape(len(weights), -1)
    largest = xp.frexp(abs(flat).max(1))[1]
    flat = xp.ldexp(flat, -largest[:, None])
    rest = xp.frexp(abs(flat).sum(1, dtype=np.float64))[1]
    return xp.ldexp(flat, -rest[:, None]).reshape(weights.shape), largest + rest


def powers_of_two(exponents: Any, dtype: np.dtype, xp: Any = np) -> Any:
    """(..., 2): two numbers of ``dtype`` whose product is 2^exponent, which alone may lie outside the type.
    """
    most = -np.finfo(dtype).minexp
    first = xp.clip(exponents, -most, most)
    return xp.ldexp(1.0, xp.stack((first, xp.clip(exponents - first, -most, most)), -1)).astype(dtype)


def thresholds(growth: int, dtype: np.dtype) -> tuple[tuple[float, float], np.ndarray]:
    """(faint, large) and the exponents (3,) that ORDINARY, LARGE and FAINT operands are scaled by.

    Operands whose largest magnitude is below faint or not below large are such; numbers inside exceed it
    ``growth`` times.
    """
    info, bits = np.finfo(dtype), math.ceil(math.log2(growth)) + SPARE
    digits = info.nmant + 1
    limits = math.ldexp(1.0, int(info.minexp) + 2 * digits), math.ldexp(1.0, int(info.maxexp) - bits)
    return limits, np.array([0, -bits, 4 * digits])


def limit_bits(limits: tuple[float, float], dtype: np.dtype) -> tuple[int, ...]:
    """The bits of ``thresholds``, which compare like the numbers, for ``kind_of``."""
    return tuple(int(np.array(limit, dtype).view(f"i{dtype.itemsize}")) for limit in limits)


@linked()
def kind_of(bits, limits):
    """ORDINARY, LARGE or FAINT, from the ``peak`` of an operand; zeros are ordinary, NaN is large."""
    if bits >= limits[1]:
        return LARGE
    return FAINT if 0 < bits < limits[0] else ORDINARY


class Scaling:
    """What a transform of ``points`` points, whose inverse multiplies by them, does to weights, operands and
    results.

    Attributes
    ----------
    weights : array (o, i, *kernel)
        Of ``unit_weights``, divided by what is no power of two in ``points``.
    limits, shifts
        Of ``thresholds``.
    factors : array (3, o, 2)
        What results of operands of each kind must be multiplied by, twice.
    """

    def __init__(self, weights: Any, points: int, xp: Any = np) -> None:
        dtype, whole = weights.dtype, points.bit_length() - 1
        with np.errstate(all="ignore"):
            self.weights, taken = unit_weights(weights, xp)
            self.weights *= dtype.type(2.0**whole / points)
        self.limits, self.shifts = thresholds(points, dtype)
        self.factors = powers_of_two(taken - whole - xp.asarray(self.shifts)[:, None], dtype, xp)
        self._shape = (-1, *(1,) * (weights.ndim - 2))
        first, second = (factor.reshape(self._shape) for factor in self.factors[ORDINARY].T)
        self._ordinary = first, None if bool((second == 1).all()) else second

    def load(self, images: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """``images`` (n, c, *size), scaled in a copy if any is not ORDINARY, and the kind of each."""
        faint, large = self.limits
        flat, kinds = images.reshape(len(images), -1), []
        for high, low in zip(np.maximum.reduce(flat, 1), np.minimum.reduce(flat, 1), strict=True):
            most = max(high, -low)
            kinds.append(LARGE if most >= large else FAINT if 0 < most < faint else ORDINARY)
        if any(kinds):
            downs = powers_of_two(self.shifts[kinds], images.dtype)[:, 0]
            images = images * downs.reshape(-1, *(1,) * (images.ndim - 1))
        return images, kinds

    def store(self, values: np.ndarray, kinds: Sequence[int], out: np.ndarray) -> None:
        """``values`` (n, o, *places): results as they should be, into ``out``."""
        first, second = self._ordinary
        if any(kinds):
            first, second = (self.factors[kinds, :, i].reshape(len(kinds), *self._shape) for i in range(2))
        np.multiply(values, first, out=out)
        if second is not None:
            out *= second
