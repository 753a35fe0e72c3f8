"""Types of elements that algorithms do not have, through float32 and float64.

* float16, bfloat16: all is computed in float32 and rounded once; so is a result of a wider float type.
* float32 where an algorithm is to round its operands: bfloat16 of which products are summed in float32.
* complex: real and imaginary parts are images of a batch twice as large, and those of the weights channels
  twice as many: four real products each, and two sums. Gradients conjugate what they are not the gradient of.
* integers: as floats in which every sum is exact (``whole.py``).
* float32 where an algorithm has float64 alone: computed there, and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from algos.arrays import module_of
from algos.dtypes import BFLOAT16, accumulator, kind, real, whole
from algos.engine.casts import LEAST, combined, convert, split
from algos.lower.border import border
from algos.lower.pairs import pairs
from algos.lower.parts import Lowered, Move, Part, converted, converting, count, operand_shapes
from algos.lower.whole import integers
from algos.spec import ConvSpec


def types(spec: ConvSpec) -> Lowered | None:
    """The same problem in float32 or float64, or two of its parts at once."""
    if kind(spec.in_dtype) == "c":
        return _planes(spec)
    if whole(spec.in_dtype):
        return integers(spec)
    work = accumulator(spec.out_dtype)
    return None if spec.in_dtype == work else _converted(spec, work)


def double(spec: ConvSpec) -> Lowered | None:
    """A problem in float32, in float64."""
    return _converted(spec, np.dtype(np.float64)) if spec.dtype == "float32" else None


def _converted(spec: ConvSpec, work: np.dtype) -> Lowered:
    """The same problem in another float type."""
    fixed = spec.padding_mode.startswith("constant:")  # the number that it is in the narrow type
    part = spec.with_(
        dtype=work.name, padding_mode=f"constant:{spec.border!r}" if fixed else spec.padding_mode
    )
    copied = sum(map(count, operand_shapes(spec)))
    operands = partial(converting, spec, work, convert)
    return Lowered((Part(part, partial(converted, dtype=work), operands, convert,
                         copied=copied, held=copied, made=True, bias=partial(converted, dtype=work),
                         shared=True),),
                   work.name)  # fmt: skip


def rounded(spec: ConvSpec) -> Lowered | None:
    """A problem in float32 with operands rounded to bfloat16, where pairs of those are multiplied."""
    if spec.dtype != "float32" or pairs(part := spec.with_(dtype=f"{BFLOAT16.name}>float32")) is None:
        return None
    copied = sum(map(count, operand_shapes(spec)))
    return Lowered((Part(part, partial(converted, dtype=BFLOAT16), partial(converting, spec, BFLOAT16),
                         copied=copied, held=copied, made=True, shared=True),),
                   "operands rounded to bfloat16")  # fmt: skip


# ---- complex -----------------------------------------------------------------------------------------------


def _planes(spec: ConvSpec) -> Lowered:
    """Images [real, imaginary]; in every group the filters, or of an input gradient the inputs, are [real,
    imaginary] as well.
    """
    bordered: Callable[[], Move] = lambda: lambda *operands: operands  # noqa: E731
    problem = spec
    if spec.padding_mode.startswith("constant:"):  # which an imaginary part does not have
        problem = spec.with_(padding_mode="zeros")
        if spec.direction != "input_gradient" and (lowered := border(spec)) is not None:
            problem, bordered = lowered.parts[0].spec, lowered.parts[0].operands
    doubled: Any = (
        {"in_channels": 2 * spec.in_channels}
        if spec.direction == "input_gradient"
        else {"out_channels": 2 * spec.out_channels}
    )
    rank = spec.rank and min(2 * spec.rank, min(spec.kernel))
    work = real(spec.out_dtype)
    part = problem.with_(batch=2 * spec.batch, dtype=work.name, rank=rank, bias=False, **doubled)
    copied = sum(map(count, operand_shapes(part)))
    weights = partial(
        _both, axis=1 if spec.direction == "input_gradient" else 0, groups=spec.groups, dtype=work
    )
    add = (lambda bias, threads: lambda y: np.add(y, bias, out=y)) if spec.bias else None
    return Lowered((Part(part, weights, partial(_splitting, spec, bordered, work), partial(_joined, spec),
                         copied=copied, held=copied, beside=2 * count(spec.result_shape), made=True,
                         shared=True),),
                   "real and imaginary parts", finish=add,
                   finished=spec.bias * count(spec.result_shape))  # fmt: skip


def _both(w: Any, axis: int, groups: int, dtype: Any) -> Any:
    """Weights of [real, imaginary] filters of each group, or inputs of each filter."""
    if axis:
        return module_of(w).concatenate([w.real, w.imag], axis=1).astype(dtype, copy=False)
    grouped = w.reshape(groups, len(w) // groups, *w.shape[1:])
    both = module_of(w).stack([grouped.real, grouped.imag], axis=1)
    return both.reshape(2 * len(w), *w.shape[1:]).astype(dtype, copy=False)


def _splitting(spec: ConvSpec, bordered: Callable[[], Move], dtype: Any, threads: int) -> Move:
    around, kept = bordered(), None

    def images(a: Any) -> Any:
        """[real, imaginary] of a batch, in a buffer that stays."""
        nonlocal kept
        if kept is None:
            kept = np.empty_like(a, shape=(2, *a.shape), dtype=dtype, order="C")
        split(a, kept[0], kept[1], threads)
        return kept.reshape(2 * a.shape[0], *a.shape[1:])

    if threads:  # now, and not in the first call
        complexes = [np.zeros(LEAST, spec.in_dtype) for _ in range(2)]
        reals = [np.zeros(LEAST, dtype) for _ in range(4)]
        split(complexes[0], reals[0], reals[1], threads)
        combined(complexes[1], (reals[:2], reals[2:]), False, threads)

    def move(*operands: Any) -> tuple[Any, ...]:
        first, *rest = around(*operands)
        if not rest:
            return (images(first),)
        grad = rest[0]  # what meets [real, imaginary] of x gives the gradient's real part, and its imaginary
        n, o, *size = grad.shape
        made = np.empty_like(
            grad, shape=(2, n, spec.groups, 2, o // spec.groups, *size), dtype=dtype, order="C"
        )
        grouped = grad.reshape(n, spec.groups, o // spec.groups, *size)
        made[0, :, :, 0], made[0, :, :, 1] = grouped.real, grouped.imag
        made[1, :, :, 0] = grouped.imag
        np.negative(grouped.real, out=made[1, :, :, 1])
        return images(first), made.reshape(2 * n, 2 * o, *size)

    return move


def _joined(spec: ConvSpec, y: Any, result: Any, threads: int) -> None:
    """The complex result of what the real problem gave."""
    if spec.direction == "weight_gradient":
        o, *inner = spec.weight_shape
        r = result.reshape(spec.groups, 2, o // spec.groups, *inner)
        grouped = y.reshape(spec.groups, o // spec.groups, *inner)
        grouped.real, grouped.imag = r[:, 0], r[:, 1]
        return
    n, c, *size = y.shape
    whole = y.reshape(n * spec.groups, c // spec.groups, *size)
    products = result.reshape(2, n * spec.groups, 2, c // spec.groups, *size).swapaxes(1, 2)
    conjugate = spec.direction != "forward"
    if whole[0].size < LEAST:
        combined(whole, products, conjugate, threads)
    else:  # one after another: the products of each lie together
        for k in range(len(whole)):
            combined(whole[k], products[:, :, k], conjugate, threads)
