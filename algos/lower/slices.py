"""float64 through float32, for algorithms that have float32 alone: error-free slices of both operands.

Each operand is cut into digits of so few bits that every sum of products of two digits stays below 2^24: in
float32 it is exact, whatever its order (Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix
multiplication by using fast routines of matrix multiplication and its applications", 2012). Digits have the
same places in all numbers, so that sums of one place are exact in float64 as well, and only those of
different places are rounded. The numbers at hand tell how many digits there are: some ten for normals, and so
a hundred runs. However small beside others, a number keeps all its bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from algos.arrays import module_of
from algos.lower.parts import Lowered, Part, count, operand_shapes
from algos.lower.whole import SINGLE, terms
from algos.spec import ConvSpec

LEAST_BITS = 4  # of a digit: fewer would take thousands of runs
USUAL_BITS = 72  # of normals: from the last of the smallest to the first of the largest


def slices(spec: ConvSpec) -> Lowered | None:
    """A problem in float32 that is run for each pair of digits."""
    bits = (SINGLE.bit_length() - 1 - max(terms(spec) - 1, 0).bit_length()) // 2
    if spec.dtype != "float64" or bits < LEAST_BITS:
        return None
    digits = -(-USUAL_BITS // bits)
    shapes = operand_shapes(spec)
    elements = sum(map(count, shapes if len(shapes) == 2 else (*shapes, spec.weight_shape)))
    part = Part(spec.with_(dtype="float32", rank=None), weights_last=True, copied=digits * elements,
                held=digits * elements, beside=3 * (elements + count(spec.result_shape)))  # fmt: skip
    return Lowered((part,), f"about {digits} digits of {bits} bits of each operand in float32",
                   guard=partial(_over_digits, bits), runs=digits * digits)  # fmt: skip


class _Cut(NamedTuple):
    """An operand: digits by their places, and signs among infinities and NaNs where it has any."""

    digits: dict[int, Any]
    odd: Any


def _over_digits(bits: int, weights: Any, bias: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    """Adds up ``run``, which takes both operands, over all pairs of digits."""
    fixed = None if weights is None else _cut(weights, bits)

    def sliced(*operands: Any, out: Any = None) -> Any:
        first = _cut(operands[0], bits)
        second = _cut(operands[1], bits) if fixed is None else fixed
        xp, places = module_of(operands[0]), defaultdict(list)
        for i, a in first.digits.items():
            for j, b in second.digits.items():
                places[i + j].append((a, b))
        y = run(first.odd, second.odd).astype(np.float64)  # finite where the definition is
        y[xp.isfinite(y)] = 0
        with np.errstate(over="ignore"):  # as in a sum of float64
            for place in sorted(places):  # from the least, beside which roundings are small
                exact = sum(run(a, b).astype(np.float64) for a, b in places[place])
                y += xp.ldexp(exact, bits * place)
        if out is None:
            return y
        out[...] = y
        return out

    return sliced


def _cut(a: Any, bits: int) -> _Cut:
    """The number is the sum of its digits, whole numbers below 2^bits of its sign, times 2^(bits * place)."""
    xp, digits = module_of(a), {}
    finite = xp.isfinite(a)
    rest = xp.where(finite, a, 0.0)
    while largest := float(abs(rest).max(initial=0)):
        place = (int(np.frexp(largest)[1]) - 1) // bits
        digit = xp.trunc(xp.ldexp(rest, -bits * place))
        rest -= xp.ldexp(digit, bits * place)
        digits[place] = digit.astype(np.float32, order="C")
    return _Cut(digits, xp.where(finite, xp.sign(a), a).astype(np.float32, order="C"))
