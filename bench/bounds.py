"""How far a correct result may lie from the definition, element by element, for each class of accuracy.

u is the unit roundoff of the accumulator, B = |x| conv |w| and Q = sqrt(x^2 conv w^2) in the geometry of the
spec and in its direction, K the products in one result. componentwise and lowrank are proven bounds; normwise
and winograd are calibrated ones, which held with a margin of two on 10,872 checks. No algorithm supplies its
own bound.

Each part of a complex result sums 2 K real products, which are at most |x| |w| in pairs: both parts together
are off by sqrt(2) times the bound of such a sum. A bias adds a product and a rounding; an activation passes
on at most ``STEEPEST`` of an error and rounds a few times. Floats narrower than float32 are summed in float32
and rounded once, so that only the last rounding is of their own size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, lru_cache, reduce
from typing import Any, Protocol

import numpy as np

from algos.dtypes import accumulator, limits, real, whole
from algos.lower.chain import Node, compose, plain, tree
from algos.spec import ConvSpec
from bench.data import Operands, widened
from bench.oracle import activated, border_value, copies, oracle, oracle_at, padded, reduction

PRECISE_MACS = 1 << 26  # the definition is computed in long double up to here, about a third of a second
TILE_ELEMENTS = 1 << 22  # of a block of Winograd tiles
LEFT_OVER = 72  # roundings of a tap by which weights may miss the rank that their spec promises
TAKEN_OVER = 4  # of them where one row and one column of taps, each rounded, stand for a kernel of rank 1
STEEPEST = {"none": 1.0, "relu": 1.0, "relu6": 1.0, "sigmoid": 0.25, "silu": 1.1}  # slopes of activations
GATED = ("sigmoid", "silu")  # whose own steps round: an exponential, a sum, a quotient
GATES = 8  # roundings of them, at most
FAINTEST = 256  # smallest normal numbers by which their quotient may be off where the exponential overflows
Transforms = list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # per axis A^T (m, t), G (t, r), B^T (t, t)


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


class TransformsError(ValueError):
    """The matrices that an algorithm exposes do not compute correlation."""


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
        return self.evaluate(_absolute)

    @cached_property
    def deviation(self) -> np.ndarray:
        """Q = sqrt(x^2 conv w^2): the standard deviation of a sum of independent products."""
        return np.sqrt(self.evaluate(lambda a: np.square(_absolute(a))) + self.shift**2)

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


def tolerance(trial: Trial, algorithm: Judgeable) -> np.ndarray:
    """E + u_out * |y| + K * tiny, float64 in the shape of ``trial.exact``; for float and complex types.

    Raises
    ------
    UnjudgedError
        When K * u >= 0.5, or for a class of accuracy that says nothing about this spec.
    """
    if trial.terms * trial.unit >= 0.5:
        raise UnjudgedError(f"{trial.terms} products in one result are too many for a bound in {trial.dtype}")
    key: tuple[Any, ...] = (algorithm.accuracy,)
    if algorithm.accuracy == "winograd":
        node = lowered(algorithm, trial.spec)
        key += (node.words, *(_exposed(algorithm, leaf) for leaf in dict.fromkeys(node.leaves)))
    if key not in trial.tolerances:  # algorithms of a class share it
        bound = math.sqrt(trial.parts) * _BOUNDS[algorithm.accuracy](trial, algorithm)
        if trial.spec.bias:
            bound = bound + _growth(trial) * trial.shift + trial.unit * np.abs(trial.sums).astype(np.float64)
        bound = STEEPEST[trial.spec.activation] * (1 + trial.out_unit) * bound + trial.rounding
        if real(trial.dtype) == np.float64 and not trial.precise:
            bound = bound + math.sqrt(trial.parts) * _growth(trial) * (trial.magnitude + trial.shift)
        trial.tolerances[key] = bound  # the definition in float64 rounds as well
    return trial.tolerances[key]


def _growth(trial: Trial) -> float:
    """g_K = K u / (1 - K u): whatever the order of the sum, with or without fused multiply-adds."""
    share = trial.terms * trial.unit
    return share / (1 - share)


def _absolute(a: Any) -> Any:
    return np.abs(a).astype(np.float64)


def _componentwise(trial: Trial, algorithm: Judgeable) -> np.ndarray:
    return _growth(trial) * trial.magnitude


def _lowrank(trial: Trial, algorithm: Judgeable) -> np.ndarray:
    """(sum of kernel sizes + 2 + rank * channels) * u * |x| conv F, plus what r products leave over, up to
    ``LEFT_OVER`` u F.

    F is |w| for one product and where the spec promises no rank, so that no tap may be lost beside larger
    ones; for more products it is the sum of their magnitudes, since they cancel. Which products they are is
    the algorithm's choice: rounded taps have a rank only up to their rounding, and others than these leave
    over more, within the same limit.
    """
    spec, w = trial.spec, trial.data.w
    if w is None or spec.ndim != 2:
        raise UnjudgedError("a low-rank bound needs 2-D weights")
    size, most = _absolute(w), min(spec.kernel)
    rank = min(trial.parts * (spec.rank or most), most)  # of each part of a complex kernel
    steps = sum(spec.kernel) + 2 + rank * trial.inner_channels * trial.repeats
    if spec.rank is None:
        return steps * trial.unit * trial.magnitude
    parts = widened(w).reshape(1, *w.shape) if trial.parts == 1 else np.stack([w.real, w.imag])
    left, values, right = np.linalg.svd(widened(parts), full_matrices=False)
    left, right = left[..., :rank] * values[..., None, :rank], right[..., :rank, :]
    if rank > 1:
        size = np.maximum(size, (np.abs(left) @ np.abs(right)).sum(0))
    rounding = float(limits(w.dtype).eps) / 2  # of a tap, which a sum in a wider type does not hide
    over = LEFT_OVER * rounding * size
    if rank == 1:
        over = np.minimum(np.abs(parts - left @ right).sum(0), over)
        over = over + TAKEN_OVER * rounding * size if rounding > trial.unit else over
    return trial.evaluate(_absolute, steps * trial.unit * size + over)


# ---- FFT ---------------------------------------------------------------------------------------------------


def _normwise(trial: Trial, algorithm: Judgeable) -> np.ndarray:
    """16 u (sqrt(L) sqrt(2 ln n) sqrt(sum norm(x_c)^2 norm(w_c)^2 / N) + (sqrt(L) + sqrt(C)) max|y|), L =
    log2 N.

    N is the padded full size whatever the tiling, n the results, C the planes summed. Norms and max|y| are
    those of one plane of the result, an output channel of an image: nothing else may show in it. At chosen
    points max|y| is an image's.
    """
    spec, data = trial.spec, trial.data
    n, groups = spec.batch, spec.groups
    i, o = spec.in_channels // groups, spec.out_channels // groups
    planes = {"x": (n, groups, i), "grad": (n, groups, o), "w": (groups, o, i)}
    norms = {name: _squares(spec, name, getattr(data, name)).reshape(shape) for name, shape in planes.items()
             if getattr(data, name) is not None}
    if spec.direction == "forward":
        energy = np.einsum("ngi,goi->ngo", norms["x"], norms["w"]).reshape(n, -1)
    elif spec.direction == "input_gradient":
        energy = np.einsum("ngo,goi->ngi", norms["grad"], norms["w"]).reshape(n, -1)
    else:
        energy = np.einsum("ngi,ngo->goi", norms["x"], norms["grad"]).reshape(-1, i)
    points = math.prod(p + e - 1 for p, e in zip(spec.padded_size, spec.kernel_extent, strict=True))
    levels = math.sqrt(max(math.log2(points), 1.0))
    deviation = (
        levels
        * math.sqrt(2 * math.log(max(math.prod(spec.result_shape), 2)))
        * np.sqrt(energy / points).astype(float)
    )
    size = np.abs(trial.sums).astype(np.float64)
    if trial.points is None:
        largest = size.max(tuple(range(2, size.ndim)), initial=0)
    else:
        largest = np.zeros((len(deviation), 1))
        np.maximum.at(largest[:, 0], trial.points[:, 0], size)
    bound = (
        16 * trial.unit * trial.repeats * (deviation + (levels + math.sqrt(trial.inner_channels)) * largest)
    )
    if trial.points is not None:
        return bound[tuple(trial.points.T[:2])]
    return np.broadcast_to(bound.reshape(*bound.shape, *(1,) * spec.ndim), spec.result_shape)


def _squares(spec: ConvSpec, name: str, a: np.ndarray) -> np.ndarray:
    """Squared norm of every plane (first axis, second axis); of x with its border, each
    element as often as it stands there.
    """
    # Wider than squares of the type
    total = np.square(np.abs(a).astype(np.longdouble if real(a.dtype) == np.float64 else np.float64))
    if name != "x":
        return total.sum(tuple(range(2, a.ndim)))
    for count in reversed(copies(spec)):
        total = total @ count
    return total + border_value(spec) ** 2 * (math.prod(spec.padded_size) - math.prod(spec.size))


# ---- Winograd ----------------------------------------------------------------------------------------------


def _winograd(trial: Trial, algorithm: Judgeable) -> np.ndarray:
    """4 u sqrt(q) S with q = 2(2t + r) + C + 2 for two equal axes; lowered, that of
    each forward problem where it belongs.
    """
    node, spec = lowered(algorithm, trial.spec), linear(trial.spec)
    work = accumulator(real(trial.spec.out_dtype)).name

    def bound(part: Trial) -> np.ndarray:
        matrices = winograd_matrices(algorithm, plain(part.spec.with_(dtype=work)))
        channels = part.inner_channels * trial.parts
        q = sum(2 * g.shape[0] + g.shape[1] for _, g, _ in matrices) + channels + 2
        return 4 * trial.unit * math.sqrt(q) * amplified(part, matrices)

    if node.leaves == (plain(spec),):
        return bound(replace(trial, spec=spec))

    def solve(leaf: ConvSpec, w: Any, bias: Any) -> Callable[..., np.ndarray]:
        return lambda x, *late: bound(Trial(leaf, Operands(x, late[0] if w is None else w, None)))

    # The sums of absolute values: those of complex numbers are no complex problem, but a real one
    data, wide = trial.data, tree(spec.with_(dtype="float64"), _names(algorithm, trial.spec))
    weights = None if data.w is None else _absolute(data.w)
    return trial.at(compose(wide, weights, solve)(*map(_absolute, data.call)))


def lowered(algorithm: Judgeable, spec: ConvSpec) -> Node:
    """The forward problems that the algorithm solves for ``spec``."""
    return tree(spec, _names(algorithm, spec))


def _names(algorithm: Judgeable, spec: ConvSpec) -> tuple[str, ...]:
    asked = getattr(algorithm, "lowered", None)
    return asked(spec) if asked else ("border", "flip")


def winograd_matrices(algorithm: Judgeable, spec: ConvSpec) -> Transforms:
    """The algorithm's matrices in float64, after proving with fractions that they compute correlation.

    Raises
    ------
    UnjudgedError
        For a direction, stride or dilation that this bound doesn't cover.
        Also for an algorithm without ``transforms``.
    TransformsError
        For matrices that compute something else.
    """
    if spec.direction != "forward" or max(spec.stride) > 1 or max(spec.dilation) > 1:
        raise UnjudgedError("the Winograd bound covers forward passes of stride and dilation 1")
    exposed = _exposed(algorithm, spec)
    if exposed is None:
        raise UnjudgedError(
            f"{algorithm.name} exposes no transforms(spec), which the Winograd bound is computed from"
        )
    transforms, matrices = _numbers(exposed)
    if len(transforms) != spec.ndim:
        raise TransformsError(f"transforms gives {len(transforms)} axes: the spec has {spec.ndim}")
    for axis, (back, kernel, data) in enumerate(transforms):
        if problem := _misfit(back, kernel, data, spec.kernel[axis]):
            raise TransformsError(f"the transforms of axis {axis} do not compute correlation: {problem}")
    return matrices


def _exposed(algorithm: Judgeable, spec: ConvSpec) -> tuple[Any, ...] | None:
    """The matrices per axis as nested tuples of fractions, or of texts; None where none are exposed."""
    transforms = getattr(algorithm, "transforms", None)
    found = transforms and transforms(spec)
    return found and tuple(tuple(tuple(map(tuple, m)) for m in axis) for axis in found)


@lru_cache(64)
def _numbers(exposed: tuple[Any, ...]) -> tuple[tuple[Any, ...], Transforms]:
    """What is exposed as fractions, and in float64."""
    exact = tuple(tuple(tuple(tuple(map(Fraction, row)) for row in m) for m in axis) for axis in exposed)
    return exact, [tuple(np.array(m, np.float64) for m in axis) for axis in exact]  # type: ignore[misc]


@lru_cache(64)
def _misfit(back: Any, kernel: Any, data: Any, size: int) -> str | None:
    """Why sum over k of A^T[i, k] G[k, j] B^T[k, l] is not 1 where l = i + j and 0 elsewhere, or None."""
    m, t, r = len(back), len(data), len(kernel[0])
    if t != m + r - 1 or r != size or any(len(row) != t for row in (*back, *data)) or len(kernel) != t:
        return (
            f"A^T is {m}x{len(back[0])}, G {len(kernel)}x{r}, B^T {t}x{len(data[0])} for a kernel of {size}"
        )
    for i, j, k in np.ndindex(m, r, t):
        total = sum((back[i][p] * kernel[p][j] * data[p][k] for p in range(t)), Fraction(0))
        if total != (k == i + j):
            return f"output {i}, tap {j}, input {k} has the weight {total}"
    return None


def amplified(trial: Trial, matrices: Transforms) -> np.ndarray:
    """S: the bilinear form run on absolute values, |A^T| ((|G| |w|) * (|B^T|
    |x|)) summed over channels, per result.
    """
    spec, data = trial.spec, trial.data
    assert data.x is not None and data.w is not None
    ndim, groups = spec.ndim, spec.groups
    inner, outer = spec.in_channels // groups, spec.out_channels // groups
    m, t = ([len(a[which]) for a in matrices] for which in (0, 2))
    tiles = [-(-n // k) for n, k in zip(spec.output_size, m, strict=True)]
    x, x_exponent = _near_one(padded(spec, _absolute(data.x), abs(border_value(spec))))
    reach = [n * k + b - k for n, k, b in zip(tiles, m, t, strict=True)]
    x = np.pad(
        x, ((0, 0), (0, 0), *((0, max(n - have, 0)) for n, have in zip(reach, x.shape[2:], strict=True)))
    )
    windows = np.lib.stride_tricks.sliding_window_view(x, t, tuple(range(2, 2 + ndim)))
    steps: Any = (slice(None), slice(None), *(slice(0, n * k, k) for n, k in zip(tiles, m, strict=True)))
    windows = windows[steps]
    w, w_exponent = _near_one(_absolute(np.flip(data.w, tuple(range(2, 2 + ndim))) if spec.flip else data.w))
    kernel = _applied([g for _, g, _ in matrices], w)  # (O, C / groups, *t)
    # (prod t, groups, C / groups, O / groups)
    kernel = kernel.reshape(groups, outer, inner, -1).transpose(3, 0, 2, 1)

    places = (spec.batch, *tiles)
    if trial.points is None:
        chosen = np.arange(math.prod(places))
    else:
        n, channel, *place = trial.points.T
        tile = np.ravel_multi_index((n, *(p // k for p, k in zip(place, m, strict=True))), places)
        chosen, inverse = np.unique(tile, return_inverse=True)
    result = np.empty((len(chosen), spec.out_channels, *m))
    step = max(TILE_ELEMENTS // (max(spec.in_channels, spec.out_channels) * math.prod(t)), 1)
    for start in range(0, len(chosen), step):
        image, *index = np.unravel_index(chosen[start : start + step], places)
        at: Any = (image, slice(None), *index)
        block = windows[at]  # (tiles, C, *t)
        block = _applied([b for _, _, b in matrices], block).reshape(-1, groups, inner, math.prod(t))
        product = block.transpose(3, 1, 0, 2) @ kernel  # (prod t, groups, tiles, O / groups)
        product = product.transpose(2, 1, 3, 0).reshape(-1, spec.out_channels, *t)
        result[start : start + step] = _applied([a for a, _, _ in matrices], product)
    result = np.ldexp(result, x_exponent + w_exponent)
    if trial.points is not None:
        return result[(inverse, channel, *(p % k for p, k in zip(place, m, strict=True)))]
    whole = result.reshape(*places, spec.out_channels, *m)
    order = [0, ndim + 1] + [axis for k in range(ndim) for axis in (1 + k, ndim + 2 + k)]
    whole = whole.transpose(order).reshape(
        spec.batch, spec.out_channels, *(n * k for n, k in zip(tiles, m, strict=True))
    )
    inside: Any = (..., *(slice(0, n) for n in spec.output_size))
    return whole[inside]


def _near_one(a: np.ndarray) -> tuple[np.ndarray, int]:
    """a / 2^e, whose finite elements are 1 at most, and e: what grows inside must not overflow."""
    exponent = int(np.frexp(a.max(initial=0, where=np.isfinite(a)))[1])
    return np.ldexp(a, -exponent), exponent


def _applied(matrices: list[np.ndarray], a: np.ndarray) -> np.ndarray:
    """Absolute values of one matrix per trailing axis, applied to a (first, second, *axes) in one product."""
    joined = np.abs(reduce(np.kron, matrices))
    return (a.reshape(-1, joined.shape[1]) @ joined.T).reshape(*a.shape[:2], *map(len, matrices))


_BOUNDS: dict[str, Callable[[Trial, Judgeable], np.ndarray]] = {
    "componentwise": _componentwise,
    "lowrank": _lowrank,
    "normwise": _normwise,
    "winograd": _winograd,
}
