"""What an algorithm is tried with: for each spec and seed, operands and what the definition says of them.

Every algorithm of a spec meets the same trials, and the definition costs more than most of them: trials are
kept for a while.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np

from algos.dtypes import accumulator, limits, whole
from algos.spec import ConvSpec
from bench.data import KINDS, SPAN, Operands, named_operands, operands, scaled, widened
from bench.footprint import ATTEMPTS, Reach, chosen, inside, reach, some, taps_between
from bench.oracle import activated, border_value, oracle, padded, reduction
from bench.photograph import filters
from bench.trial import MOST_DEVIATIONS, Trial, linear

# Every element is compared up to 2 G multiply-adds; less where the definition is bound by memory: few
# channels, many taps.
FULL_MACS = 2 << 30
FULL_UPDATES = 1 << 28  # result elements * taps
FULL_ELEMENTS = 1 << 23
POINTS = 4096
# Products in all chosen elements together: fewer points where one element sums millions
POINT_TERMS = 1 << 31
TAIL = 8  # last rows, columns and channels that a block may leave over
FEW_POINTS, FEW_TERMS = 256, 1 << 23  # of the trials beside the first
WHOLE_BYTES = 1 << 30  # of the arrays of a whole batch; beyond it two images stand for all
# By the largest exponent of the type: powers of two by which images are scaled up, at most, and down, so far
# that squares are zero, and by which weights fall off along each of three axes.
SCALES = {16: (2, -2, 2), 128: (100, -76, 12), 1024: (960, -540, 12)}
EXTREMES = 16  # results at which sums that do not fit are looked for
STEP = 4  # tolerances by which a tap differs from all others, where a bound holds tap by tap
ABOVE = 8  # powers of two by which single elements, and what is in between, exceed a standard deviation


@dataclass(frozen=True)
class Graded:
    """A single pixel far below images far above it, under weights of very different size.

    Attributes
    ----------
    trial : Trial
        Unscaled, at chosen points.
    exponents : int array (N,)
        Powers of two: image n of the operands, and of the results, is to be multiplied by 2 ** exponents[n].
    """

    trial: Trial
    exponents: np.ndarray


@dataclass(frozen=True)
class Late:
    """What the calls that were timed must have given: x with one element that changed from call to call.

    Attributes
    ----------
    points : int array (points, axes)
        Of the result.
    original : float
        What the changing element, or its real part, holds in the operands as they are made.
    base, slope : arrays (points,)
        The result is base + slope * value, and ``activation`` of it.
    activation : str
    """

    points: np.ndarray
    original: float
    base: np.ndarray
    slope: np.ndarray
    activation: str = "none"

    def error(self, values: np.ndarray, value: float | None) -> float:
        """Largest deviation of results at the points, over the largest that is right; None is the original
        value.
        """
        right = self.base + self.slope * (self.original if value is None else value)
        right = activated(right, self.activation)
        off = np.abs(np.asarray(values, right.dtype) - right)
        return float(np.where(np.isfinite(off), off, np.inf).max(initial=0)) / (
            float(np.abs(right).max(initial=0)) or 1.0
        )


@lru_cache(4)
def seeded(spec: ConvSpec, seed: int, kind: str, span: tuple[float, ...] = (*SPAN, 1.0)) -> Trial:
    """Seeded operands, at all results or at chosen points of large problems."""
    points = None
    size = math.prod(spec.result_shape)
    updates = math.prod(spec.output_shape) * math.prod(spec.kernel)
    if spec.macs > FULL_MACS or updates > FULL_UPDATES or size > FULL_ELEMENTS:
        rng = np.random.default_rng([seed, 3, KINDS.index(kind)])  # whole numbers are looked at elsewhere
        count = max(min(POINTS, POINT_TERMS // max(reduction(spec), 1)), 64)
        corners = np.array(list(np.ndindex(*(2,) * len(spec.result_shape)))) * (
            np.array(spec.result_shape) - 1
        )
        near = [some(reached, FEW_POINTS // 4, rng) for _, reached in spoiled(spec, seed)]
        points = np.unique(np.concatenate([_drawn(spec, count, rng), corners, *near]), axis=0)
    return Trial(spec, operands(spec, seed, kind, (int(span[0]), int(span[1])), span[2]), points)


@lru_cache(4)
def spoiled(spec: ConvSpec, seed: int) -> list[tuple[tuple[int, ...], Reach]]:
    """Three elements of the first operand's last image, for an infinity, a NaN
    and its negative, and what they reach.
    """
    rng = np.random.default_rng([seed, 5])
    elements = [element for element in (chosen(spec, rng) for _ in range(3)) if element is not None]
    return [(element, reach(spec, element)) for element in elements]


def high(spec: ConvSpec) -> int:
    """Power of two by which all images may be multiplied; 0 for whole numbers, a border of a constant, a bias
    and an activation.

    A transform that is normalised at its end, as many are, sums results over all its points before.
    """
    if whole(spec.in_dtype) or _unscaled(spec) != spec:
        return 0
    points = math.prod(p + e - 1 for p, e in zip(spec.padded_size, spec.kernel_extent, strict=True))
    room = limits(accumulator(spec.in_dtype)).maxexp - ABOVE
    sums = math.ceil(math.log2(points * math.sqrt(max(reduction(spec), 1))))
    return min(SCALES[limits(spec.in_dtype).maxexp][0], room - sums)


def _unscaled(spec: ConvSpec) -> ConvSpec:
    """The same without what is not scaled as images are: a border that stays as it is, bias and activation.
    """
    spec = linear(spec)
    return spec.with_(padding_mode="replicate") if spec.padding_mode.startswith("constant:") else spec


@lru_cache(4)
def graded(spec: ConvSpec, seed: int) -> list[Graded]:
    """A lone pixel among images of another size, and large images where none were tried yet."""
    tried = bool(high(spec))  # in the call that writes into an array
    spec = _unscaled(spec)
    _, low, fall = SCALES[limits(spec.in_dtype).maxexp]
    data = operands(spec, seed)
    if spec.direction == "weight_gradient":
        trial = Trial(spec, data, _few(spec, _drawn(spec, FEW_POINTS, np.random.default_rng([seed, 7]))))
        return [] if tried else [Graded(trial, np.full(spec.batch, high(spec)))]
    rng = np.random.default_rng([seed, 7])
    element = chosen(spec, rng)
    if element is None:
        return []
    first = data.call[0]
    data = replace(data, w=_falling(data.w, fall, element[1], rng))
    pixel = np.zeros_like(first[:1])
    pixel[(0, *element[1:])] = 1
    at = reach(spec, (0, *element[1:]))
    near, clear = some(at, FEW_POINTS // 2, rng), _drawn(spec, FEW_POINTS // 4, rng, image=0)
    rest = _drawn(spec, FEW_POINTS, rng, image=spec.batch - 1)
    if spec.batch > 1:
        image = np.concatenate([pixel, first[1:]])
        trial = Trial(spec, _with_first(spec, data, image), _few(spec, np.concatenate([near, clear, rest])))
        return [Graded(trial, np.array([low] + [high(spec)] * (spec.batch - 1)))]
    alone = Trial(spec, _with_first(spec, data, pixel), _few(spec, np.concatenate([near, clear])))
    lone, large = Graded(alone, np.array([low])), Graded(Trial(spec, data, _few(spec, rest)),
                                                         np.array([high(spec)]))  # fmt: skip
    return [lone] if tried else [lone, large]


@lru_cache(2)
def whole_batch(spec: ConvSpec, seed: int) -> Trial | None:
    """The batch as it is, at points of the images from the third on; None where it is too large to hold."""
    if spec.min_bytes > WHOLE_BYTES:
        return None
    rng = np.random.default_rng([seed, 9])
    if spec.direction == "weight_gradient":
        points = _drawn(spec, FEW_POINTS, rng)
    else:
        # All but of large ones
        images = np.unique(np.linspace(2, spec.batch - 1, min(spec.batch - 2, FEW_POINTS), dtype=int))
        count = max(FEW_POINTS // len(images), 4)
        points = np.concatenate([_drawn(spec, count, rng, image) for image in images])
    data = operands(spec, seed)
    if data.w is not None and not whole(spec.in_dtype):
        data = replace(data, w=_sparse(spec, seed))
    return Trial(spec, data, _few(spec, points))


@lru_cache(2)
def flat(spec: ConvSpec, seed: int) -> Trial:
    """Weights that are all one number, on an image that is and on others that
    are positive: what invites short cuts.
    """
    data, points = operands(spec, seed), _drawn(spec, FEW_POINTS, np.random.default_rng([seed, 15]))
    first = data.call[0] if whole(spec.in_dtype) else np.abs(data.call[0]).astype(data.call[0].dtype)
    first[:1] = 2
    w = None if data.w is None else np.full_like(data.w, 3)
    return Trial(spec, _with_first(spec, replace(data, w=w), first), _few(spec, points))


@lru_cache(4)
def one_tap(spec: ConvSpec, seed: int, local: bool) -> Trial | None:
    """The weights of ``flat`` but for one tap, and a lone pixel that it reaches; None where there is none.

    By little where the bound is ``local``: weights that are nearly all the same, mirrored or of rank 1 are
    not so, and one tap is all that a result reads. Else so that no transform hides it: weights that share a
    sample with others are others all the same. A promised rank keeps, for a whole plane of taps changes.
    """
    rng, data = np.random.default_rng([seed, 21]), flat(spec, seed).data
    element = chosen(spec, rng)
    if element is None or data.w is None:
        return None
    pixel, w = np.zeros_like(data.call[0]), data.w.copy()
    pixel[element] = 1
    reached = reach(spec, element)
    for _ in range(ATTEMPTS):
        (point,) = some(reached, 1, rng)
        o, c = (point[1], element[1]) if spec.direction == "forward" else (element[1], point[1])
        taps = tuple(int(rng.choice(t)) for t in taps_between(spec, element, point))
        place = (int(o), int(c) % w.shape[1], *taps)
        mirrors_itself = any(2 * t == n - 1 > 0 for t, n in zip(taps, spec.kernel, strict=True))
        if not mirrors_itself and 0 < np.ravel_multi_index(place, w.shape) < w.size - 1:
            break
    where = place if spec.rank is None else place[:2]
    w[where] = w[where] + 1 if whole(w.dtype) else w[where] * (1 + (_step(spec, data) if local else -2.0))
    plane = (*reached[:1], np.array([point[1]]), *reached[2:])
    points = some(plane, FEW_POINTS, rng)
    if math.prod(map(len, plane)) <= POINTS:
        points = np.stack(np.meshgrid(*plane, indexing="ij"), -1).reshape(-1, len(plane))
    points = np.unique(np.concatenate([points, point[None]]), axis=0)
    return Trial(spec, _with_first(spec, replace(data, w=w), pixel), points)


def _step(spec: ConvSpec, data: Operands) -> float:
    """By what share a tap must be another for its result to be wrong, and not by much more."""
    trial = Trial(spec, data)
    terms = min(trial.terms + 2, MOST_DEVIATIONS * math.sqrt(trial.terms))
    return STEP * max(terms * trial.unit, trial.out_unit, float(limits(spec.w_dtype).eps))


@lru_cache(2)
def extreme(spec: ConvSpec, seed: int) -> Trial | None:
    """Whole numbers, all as large as their types hold, at a few results of which one does not fit its type;
    None where all fit.
    """
    ends = [[(int(end) - point, end) for end in (np.iinfo(dtype).min, np.iinfo(dtype).max)]
            for _, dtype, point in named_operands(spec).values()]  # fmt: skip
    pair = max(product(*ends), key=lambda pair: pair[0][0] * pair[1][0])
    data = operands(spec, seed)
    made = {name: np.full(shape, end, dtype)
            for (name, (shape, dtype, _)), (_, end) in zip(named_operands(spec).items(), pair, strict=True)}
    points = _few(spec, _drawn(spec, EXTREMES, np.random.default_rng([seed, 19])))
    trial, info = Trial(spec, replace(data, **made), points), np.iinfo(spec.result_dtype)
    return None if all(info.min <= int(y) <= info.max for y in trial.exact) else trial


@lru_cache(2)
def photographed(spec: ConvSpec) -> Trial:
    """A smooth, positive picture under kernels with names."""
    return Trial(spec, Operands(*filters(spec), None, operands(spec).bias))


@lru_cache(2)
def row_sums(spec: ConvSpec, seed: int, span: tuple[float, ...]) -> np.ndarray | None:
    """What the rows of a forward result of small whole numbers sum to (N, O, *rows): all of it, for the price
    of a column.

    None in the other directions, after an activation, and for what is too large to hold.
    """
    if spec.direction != "forward" or spec.activation != "none" or 4 * spec.min_bytes > WHOLE_BYTES:
        return None
    trial = seeded(spec, seed, "integer", span)
    assert trial.data.x is not None and trial.data.w is not None
    x, w = (a.astype(np.float64) - point if whole(a.dtype) else widened(a)
            for a, point in zip((trial.data.x, trial.data.w), spec.zero_points, strict=True))  # fmt: skip
    x = padded(spec, x, border_value(spec))
    length, stride, dilation = spec.output_size[-1], spec.stride[-1], spec.dilation[-1]
    ends = [(k * dilation, k * dilation + (length - 1) * stride + 1) for k in range(spec.kernel[-1])]
    read = np.stack([x[..., low:high:stride].sum(-1) for low, high in ends], -1)  # by each tap of a row
    column = linear(spec).with_(size=read.shape[2:], stride=(*spec.stride[:-1], 1),
                                dilation=(*spec.dilation[:-1], 1), padding=0, padding_mode="zeros", rank=None,
                                dtype=x.dtype.name)  # fmt: skip
    rows = oracle(column, read, w)[..., 0]
    bias = trial.data.bias
    return rows if bias is None else rows + length * bias.astype(x.dtype).reshape(-1, *(1,) * (spec.ndim - 1))


def changing(spec: ConvSpec, seed: int, launch: int) -> tuple[int, ...] | None:
    """The element of the first operand that is another one in every call that
    is timed; None in a weight gradient.
    """
    return (
        None
        if spec.direction == "weight_gradient"
        else chosen(spec, np.random.default_rng([seed, launch, 11]))
    )


@lru_cache(2)
def late(spec: ConvSpec, seed: int, launch: int) -> Late:
    """For the operands that are timed: points all over the batch, and those that the changing element
    reaches.
    """
    rng, element = np.random.default_rng([seed, launch, 13]), changing(spec, seed, launch)
    near = (
        some(reach(spec, element), FEW_POINTS // 4, rng)
        if element
        else np.zeros((0, len(spec.result_shape)), np.int64)
    )
    points = _few(spec, np.concatenate([_drawn(spec, FEW_POINTS // 4, rng), near]))
    data, bare, original = operands(spec, seed), spec.with_(activation="none"), 0.0
    if element is None:
        base = Trial(bare, data, points).exact
        slope = np.zeros_like(base)
    else:
        first = data.call[0]
        original = float(first[element].real)
        first[element] -= first[element].real
        base = Trial(bare, data, points).exact
        first[element] += first.dtype.type(1)
        slope = Trial(bare, data, points).exact - base
    wide = np.complex128 if spec.in_dtype.kind == "c" else np.float64
    return Late(points, original, base.astype(wide), slope.astype(wide), spec.activation)


def _with_first(spec: ConvSpec, data: Operands, first: np.ndarray) -> Operands:
    return replace(data, **{"grad" if spec.direction == "input_gradient" else "x": first})


def _sparse(spec: ConvSpec, seed: int) -> np.ndarray:
    """Weights of rank 1 that are their own mirror images, most of them zero:
    the middle of all axes but the last.
    """
    rng = np.random.default_rng([seed, 17])
    kernel = rng.standard_normal(spec.kernel[-1])
    kernel = kernel + kernel[::-1]
    for size in reversed(spec.kernel[:-1]):
        middle = np.zeros(size)
        middle[[(size - 1) // 2, size // 2]] = 1
        kernel = np.multiply.outer(middle, kernel)
    planes = rng.standard_normal(spec.weight_shape[:2]).reshape(*spec.weight_shape[:2], *(1,) * spec.ndim)
    turned = planes * (1 + 1j) if spec.w_dtype.kind == "c" else planes
    return (turned * kernel).astype(spec.w_dtype)


def _falling(w: np.ndarray | None, most: int, faintest: int, rng: np.random.Generator) -> np.ndarray:
    """Weights times powers of two down to ``-most`` along each of channels, rows and columns, which keep
    their rank.

    The channel ``faintest`` meets the faintest; where there are several filters the last one is zero.
    """
    assert w is not None
    result = widened(w) * (np.arange(len(w)) < max(len(w) - 1, 1)).reshape(-1, *(1,) * (w.ndim - 1))
    for axis in (1, *range(w.ndim - 2, w.ndim)):
        if axis >= 1 and w.shape[axis] > 1:
            shape = [1] * w.ndim
            shape[axis] = w.shape[axis]
            fall = rng.permutation(np.linspace(0, most, w.shape[axis]).round().astype(int))
            if axis == 1:
                fall = np.roll(fall, faintest % len(fall) - fall.argmax())
            result = scaled(result, -fall.reshape(shape))
    return result.astype(w.dtype)


def _drawn(spec: ConvSpec, count: int, rng: np.random.Generator, image: int | None = None) -> np.ndarray:
    """Random places of the result (count, axes), of one image if given; every other one lies near the end of
    some axes.

    That is where blocks of rows, columns and channels do not come out even.
    """
    sizes = np.maximum(spec.result_shape, 1)
    found = rng.integers(0, sizes, (count, len(sizes)))
    late = sizes - 1 - rng.integers(0, np.minimum(sizes, TAIL), (count, len(sizes)))
    near = rng.random((count, len(sizes))) < 0.5
    near[::2] = False
    found = np.where(near, late, found)
    found[-1:] = sizes - 1
    if image is not None:
        found[:, 0] = image
    return found


def _few(spec: ConvSpec, points: np.ndarray) -> np.ndarray:
    """Distinct points, fewer where one result sums many products."""
    points = np.unique(points, axis=0)
    step = max(1, len(points) * max(reduction(spec), 1) // FEW_TERMS)
    return points[:: min(step, max(1, len(points) // 16))]


def untouched(trial: Trial, seed: int, others_only: bool) -> np.ndarray:
    """Which of the trial's results neither the NaN nor the infinity of ``spoiled`` may change: a mask like
    ``trial.exact``.

    With ``others_only`` those of the other images alone, for algorithms that spread a NaN over its whole
    image; a weight gradient sums over images, so that nothing is left then.
    """
    spec = trial.spec
    shape = spec.result_shape
    if others_only and spec.direction == "weight_gradient":
        return np.zeros(trial.exact.shape, bool)
    if trial.points is not None:
        mask = np.ones(len(trial.points), bool)
        for element, reached in spoiled(spec, seed):
            mask &= ~inside(trial.points, reached)
            if others_only:
                mask &= trial.points[:, 0] != element[0]
        return mask
    mask = np.ones(shape, bool)
    for element, reached in spoiled(spec, seed):
        mask[np.ix_(*reached)] = False
        if others_only:
            mask[element[0]] = False
    return mask


def spoilt(trial: Trial, seed: int) -> np.ndarray:
    """Which of the trial's results read the NaN or the infinity: a mask like ``trial.exact``."""
    return ~untouched(trial, seed, others_only=False)
