"""The matrices of Winograd's minimal filtering F(m, r), built from points with exact fractions.

m outputs of an r-tap filter need only t = m + r - 1 products: A^T ((G g) * (B^T d)). The filter and the data
are evaluated at t points, one of them infinity; any distinct points do, and small ones whose pairs nearly
cancel keep the rounding small.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308; Barabasz,
Anderson, Soodhalter and Gregg, "Error analysis and improving the accuracy of Winograd convolution",
arXiv:1803.10986.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np

from algos.contract import Support
from algos.dtypes import PAIRS
from algos.engine.films import better_joined
from algos.engine.ranges import limit_bits, powers_of_two, thresholds
from algos.spec import ConvSpec

Matrix = tuple[tuple[Fraction, ...], ...]
LARGEST_TILE = 8
PLAIN = 32  # weights whose largest lies within 2^-32 and 2^32 are not scaled

# The finite points, by their number. Pairs of opposite points halve the arithmetic of the transforms, and 1/2
# with 2 keeps the powers small: in 2-D, F(4, 3) amplifies the worst case 54-fold, against 97 for 0, 1, -1,
# 1/2, -2 and 256 for 0, +-1, +-2.
POINTS = {
    count: tuple(map(Fraction, text.split()))
    for count, text in (
        (0, ""), (1, "0"), (2, "0 1"), (3, "0 1 -1"), (4, "0 1 -1 1/2"), (5, "0 1/2 -1/2 2 -2"),
        (6, "0 1/2 -1/2 2 -2 1"), (7, "0 1 -1 1/2 -1/2 2 -2"),
    )
}  # fmt: skip


@cache
def toom_cook(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """A^T (m, t), G (t, r) and B^T (t, t) of F(m, r).

    Raises
    ------
    ValueError
        For more outputs and taps than there are points.
    """
    t = m + r - 1
    if t - 1 not in POINTS:
        raise ValueError(f"F({m}, {r}) needs {t - 1} points, {max(POINTS)} are known")
    points = POINTS[t - 1]
    back = [[a**i for a in points] + [Fraction(i == m - 1)] for i in range(m)]
    kernel, data = [], []
    for a in points:
        others = [b for b in points if b != a]
        scale = Fraction(1)
        for b in others:
            scale *= a - b
        kernel.append(tuple(a**j / scale for j in range(r)))
        data.append((*_from_roots(others), Fraction(0)))
    kernel.append(tuple(Fraction(j == r - 1) for j in range(r)))
    data.append(tuple(_from_roots(points)))
    return tuple(map(tuple, back)), tuple(kernel), tuple(data)


def sums_of(r: int) -> tuple[Matrix, Matrix, Matrix]:
    """A^T (1, r), G (r, r) and B^T (r, r) of the definition, for one output."""
    one = tuple(tuple(Fraction(i == j) for j in range(r)) for i in range(r))
    return ((Fraction(1),) * r,), one, one


def whole_by(m: int, r: int) -> int:
    """The number that makes all of G whole, a power of two; 0 where A^T or B^T hold more than 0, 1 and -1."""
    back, kernel, data = toom_cook(m, r)
    if any(abs(v) not in (0, 1) for matrix in (back, data) for row in matrix for v in row):
        return 0
    return math.lcm(*(v.denominator for row in kernel for v in row))


def _from_roots(roots: tuple[Fraction, ...] | list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), lowest first."""
    product = [Fraction(1)]
    for root in roots:
        product = [
            low - root * high
            for low, high in zip([Fraction(0), *product], [*product, Fraction(0)], strict=True)
        ]
    return product


class Tiled:
    """What every algorithm on tiles of F(m x m, r x r) says of itself, on whatever device."""

    m: int

    support: ClassVar[Support | None] = Support()

    def beyond(self, spec: ConvSpec) -> str | None:
        if set(spec.stride) != {1} or set(spec.dilation) != {1}:
            return "tiles save work for stride 1 and dilation 1 only"
        if self.m < 1:
            return f"tiles have at least one output along an axis, not m={self.m}"
        if not 2 <= max(spec.kernel[-2:]) <= LARGEST_TILE + 1 - self.m:
            kh, kw = spec.kernel[-2:]
            return f"transforms kernels of 2 to {LARGEST_TILE + 1 - self.m} taps on an axis, not {kh}x{kw}"
        if reason := better_joined(spec):
            return reason
        if spec.dtype == PAIRS and not all(map(whole_by, self.outputs(spec)[-2:], spec.kernel[-2:])):
            return "its roundings may change whole numbers"
        return None

    def outputs(self, spec: ConvSpec) -> tuple[int, ...]:
        """Of a tile along each axis: one where there is nothing to save, a kernel of one tap, and along the
        depth.
        """
        return (*(1 for _ in spec.kernel[:-2]), *(self.m if r > 1 else 1 for r in spec.kernel[-2:]))

    def growth(self, spec: ConvSpec) -> int:
        """The most that numbers inside exceed the product of the largest element and the largest weight by.
        """
        largest = [
            max(sum(map(abs, row)) for row in matrix) for axis in self.transforms(spec) for matrix in axis
        ]
        return math.ceil(
            math.prod(max(Fraction(1), total) for total in largest) * spec.in_channels / spec.groups
        )

    def scaling(self, spec: ConvSpec, largest: float) -> tuple[int, np.floating, tuple[int, ...], np.ndarray]:
        """What range asks of operands and results, for weights whose largest is given.

        Returns
        -------
        exponent : int
            Taken out of the weights.
        faint : number of the spec's dtype
            More than the squares of all results that FAINT operands have sum to.
        limits : (int, int)
            The bits of ``thresholds``.
        factors : array (3, 3)
            What operands of each kind are multiplied by, and results twice.
        """
        return self._scaled(spec, math.frexp(largest)[1] if 0 < largest < math.inf else None)

    @lru_cache(maxsize=1024)  # noqa: B019 - few instances, which live as long as the process
    def _scaled(self, spec: ConvSpec, exponent: int | None) -> tuple[int, Any, tuple[int, ...], np.ndarray]:
        """``scaling`` for largest weights of that exponent; None for 0, infinity and NaN."""
        # 2^-taken is a float64, also for the smallest of them
        taken = max(exponent, -1023) if exponent is not None and abs(exponent) > PLAIN else 0
        limits, shifts = thresholds(2**PLAIN * self.growth(spec), spec.in_dtype)
        terms, results = (
            spec.in_channels // spec.groups * math.prod(spec.kernel),
            math.prod(spec.output_shape),
        )
        most = math.log2(limits[0] * terms) + (exponent - taken if exponent is not None else 0)
        squares = math.ceil(2 * most + math.log2(max(1, results)))
        faint = spec.in_dtype.type(2.0 ** min(0, max(squares, np.finfo(spec.in_dtype).minexp)))
        scales = powers_of_two(shifts, spec.in_dtype)[:, :1], powers_of_two(taken - shifts, spec.in_dtype)
        return taken, faint, limit_bits(limits, spec.in_dtype), np.concatenate(scales, axis=1)

    def transforms(self, spec: ConvSpec) -> tuple[tuple[Matrix, Matrix, Matrix], ...]:
        """A^T, G and B^T of each axis, as exact fractions; along the depth products are summed."""
        summed = (sums_of(r) for r in spec.kernel[:-2])
        return (*summed, *map(toom_cook, self.outputs(spec)[-2:], spec.kernel[-2:]))
