"""What an algorithm is held against: a spec with operands, and what the definition says of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from algos.dtypes import accumulator, limits, real, whole
from algos.spec import ConvSpec
from bench.data import Operands
from bench.oracle import activated, border_value, copies, oracle, oracle_at, reduction

PRECISE_MACS = 1 << 26  # the definition is computed in long double up to here, about a third of a second
GATED = ("sigmoid", "silu")  # activations whose own steps round: an exponential, a sum, a quotient
GATES = 8  # roundings of them, at most
MOST_DEVIATIONS = 8.0  # of u * sqrt(K) * Q; correct sums stay below 4, half precision inside starts at 126
FAINTEST = 256  # smallest normal numbers by which their quotient may be off where the exponential overflows


class Judgeable(Protocol):
    """What a judge must know of an algorithm; ``transforms(spec)`` as well, where its class is winograd."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...

    @property
    def accuracy(self) -> str: ...


class UnjudgedError(Exception):
    """No bound fits this spec and class of accuracy; the message says why."""


@dataclass(frozen=True)
class Trial:
    """A spec with operands, and what the definition says about them, at all results or at chosen points only.

    Attributes
    ----------
    spec : ConvSpec
    data : Operands
    points : int array (points, axes of the result) or None for all
    """

    spec: ConvSpec
    data: Operands
    points: np.ndarray | None = None
    tolerances: dict[Any, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def evaluate(
        self, change: Callable[[Any], Any] = lambda a: a, w: np.ndarray | None = None, precise: bool = False
    ) -> np.ndarray:
        """The sums of the definition, without bias and activation, on changed operands, such as the absolute
        values of their differences from zero points, with w in place of the weights if given.
        """
        spec, data, (of_x, of_w) = linear(self.spec), self.data, self.spec.zero_points
        x, grad = _less(data.x, of_x), data.grad
        w = _less(data.w, of_w) if w is None else w
        x, w, grad = (None if a is None else change(a) for a in (x, w, grad))
        fill = float(change(np.float64(border_value(self.spec))))
        if self.points is None:
            return oracle(spec, x, w, grad, precise=precise, fill=fill)
        return oracle_at(spec, x, w, grad, self.points, precise=precise, fill=fill)

    def at(self, result: np.ndarray) -> np.ndarray:
        """The elements of a whole result that this trial knows about."""
        return result if self.points is None else result[tuple(self.points.T)]

    @cached_property
    def exact(self) -> np.ndarray:
        """The definition; for float64 in long double where that is affordable."""
        spec, data = self.spec, self.data
        if not whole(spec.in_dtype):
            shift = 0 if data.bias is None else data.bias.astype(self.sums.dtype)[self.channels]
            return activated(self.sums + shift, spec.activation)
        if self.points is None:
            return oracle(spec, data.x, data.w, data.grad, data.bias)
        return oracle_at(spec, data.x, data.w, data.grad, self.points, data.bias)

    @cached_property
    def sums(self) -> np.ndarray:
        """Of floats: what the definition sums, before a bias and an activation."""
        return self.evaluate(precise=self.precise)

    @cached_property
    def shift(self) -> Any:
        """|bias| of each result."""
        return 0.0 if self.data.bias is None else np.abs(self.data.bias).astype(np.float64)[self.channels]

    @property
    def channels(self) -> np.ndarray:
        """In which output channel each result of a forward pass lies, or what broadcasts to it."""
        if self.points is not None:
            return self.points[:, 1]
        return np.arange(self.spec.out_channels).reshape(-1, *(1,) * self.spec.ndim)

    @cached_property
    def magnitude(self) -> np.ndarray:
        """B = |x| conv |w|."""
        return self.evaluate(absolute)

    @cached_property
    def deviation(self) -> np.ndarray:
        """Q = sqrt(x^2 conv w^2): the standard deviation of a sum of independent products."""
        return np.sqrt(self.evaluate(lambda a: np.square(absolute(a))) + self.shift**2)

    @property
    def parts(self) -> int:
        """Of a number: a complex one has two, each of which sums two products for one."""
        return 2 if self.dtype.kind == "c" else 1

    @property
    def terms(self) -> int:
        """K, of each part, a bias included."""
        return self.parts * reduction(self.spec) + self.spec.bias

    @property
    def inner_channels(self) -> int:
        """Operand planes that are summed for one plane of the result: channels or images."""
        groups = self.spec.groups
        return {
            "forward": self.spec.in_channels // groups,
            "input_gradient": self.spec.out_channels // groups,
            "weight_gradient": self.spec.batch,
        }[self.spec.direction] * self.parts

    @property
    def dtype(self) -> np.dtype:
        """Of the result."""
        return self.spec.result_dtype

    @property
    def unit(self) -> float:
        """u of the accumulator, which is float32 at least."""
        return float(limits(accumulator(self.dtype)).eps) / 2

    @property
    def out_unit(self) -> float:
        return float(limits(self.dtype).eps) / 2

    @property
    def precise(self) -> bool:
        """Whether the definition itself rounds far less than what is judged: float64 alone can't judge
        float64.
        """
        return bool(
            real(self.dtype) == np.float64
            and np.finfo(np.longdouble).eps < 2.0**-60
            and (self.terms * len(self.points) if self.points is not None else self.spec.macs * self.parts**2)
            <= PRECISE_MACS
        )

    @property
    def repeats(self) -> int:
        """How many border elements input_gradient adds to one element; 1 in the other directions."""
        found = copies(self.spec) if self.spec.direction == "input_gradient" else []
        return math.prod(int(count.max()) for count in found)

    @cached_property
    def rounding(self) -> np.ndarray:
        """u_out * |y| + K * tiny: the last rounding, and what underflow may cost, gradual or flushed to zero;
        and what an activation rounds.

        A border is folded back in the type of the result, so that what is added there was rounded to it
        before.
        """
        size = np.abs(self.exact).astype(np.float64)
        last = self.out_unit * size + self.floor
        if self.spec.activation in GATED:
            last = last + GATES * self.unit * size + FAINTEST * float(limits(accumulator(self.dtype)).tiny)
        return last + self.repeats * self.out_unit * self.magnitude if self.repeats > 1 else last

    @property
    def floor(self) -> float:
        """What underflow may cost, gradual or flushed to zero."""
        tiny, smallest = limits(accumulator(self.dtype)).tiny, limits(self.dtype).smallest_subnormal
        return math.sqrt(self.parts) * (self.terms * float(tiny) + float(smallest))


def linear(spec: ConvSpec) -> ConvSpec:
    """The sums alone: no zero points, bias and activation."""
    if spec.bias or spec.activation != "none" or any(spec.zero_points):
        return spec.with_(bias=False, activation="none", zero_points=(0, 0))
    return spec


def _less(a: np.ndarray | None, point: int) -> np.ndarray | None:
    """Whole numbers less their zero point, in a type that holds them."""
    return a if a is None or not point else a.astype(object) - point


def absolute(a: Any) -> Any:
    """Magnitudes, in float64."""
    return np.abs(a).astype(np.float64)
