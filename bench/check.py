"""Judges one algorithm on one spec against the definition; never asserts, returns a verdict.

The algorithm runs through the door, like every user's call, wherever ``Judged`` runs it; the verdict is found
here. It meets seeded normals (a NaN and an infinity in them first, then in place without), a call into
guarded memory, repeated calls, small whole numbers where most algorithms must be exact, a photograph, images
and weights of very different size, and its whole batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from algos.dtypes import whole
from algos.spec import ConvSpec
from bench import trials
from bench.bounds import tolerance
from bench.court import AGAIN_S, Court, Described, Obeys, Sitting, WrongResultError, bits
from bench.data import SPAN, exact_limit, scaled
from bench.deviations import (
    LOCAL,
    allowed_error,
    difference,
    fits,
    judge,
    judge_gate,
    judge_rows,
    judge_spoilt,
    place,
    shown,
)
from bench.judged import Judged
from bench.oracle import border_value
from bench.trial import GATED, Judgeable, Trial, UnjudgedError
from bench.winograd import TransformsError, lowered, winograd_matrices

PICTURE_SIZE, PIXEL_SIZE = 512, 64  # of an axis of a photograph, and around a lone pixel, at most
# Largest |x| and |w| of the whole numbers, and the share of w that is not zero, from the most telling to the
# mildest.
SPANS = ((*SPAN, 1.0), (4, 2, 1.0), (2, 1, 1.0), (1, 1, 1.0), (1, 1, 0.25), (1, 1, 1 / 16), (1, 1, 1 / 64))


@dataclass(frozen=True)
class Verdict:
    """What checking one algorithm on one spec gave.

    Attributes
    ----------
    ok : bool
    reason : str
        What is wrong, in one line; empty when ok.
    max_error : float
        Largest absolute error against the definition; inf where the result is not finite.
    error_ratio : float
        Largest share of the tolerance that was used; above 1 is wrong.
    accuracy : str
        The class of bound that judged it.
    gate : str
        What the run on whole numbers demanded and found.
    deviations : float
        Largest error in units of u * sqrt(K) * Q, for componentwise float results; else 0.
    compared : int
        Elements compared on the seeded normals.
    nonzero : float
        Share of the compared results that are not zero.
    judged : bool
        False when no bound can decide: that is no fault of the algorithm.
    workspace_seen_bytes : int or None
        Peak of prepare and one run as traced, without operands and result; None where NumPy does not
        allocate.
    """

    ok: bool
    reason: str
    max_error: float
    error_ratio: float
    accuracy: str
    gate: str = ""
    deviations: float = 0.0
    compared: int = 0
    nonzero: float = 0.0
    judged: bool = True
    workspace_seen_bytes: int | None = None


def check(
    spec: ConvSpec | str, algorithm: Judgeable, threads: int = 1, seed: int = 0, judged: Obeys | None = None
) -> Verdict:
    """Judge ``algorithm`` on ``spec``: most of it with a batch of 2, once with the whole.

    Parameters
    ----------
    spec : ConvSpec or str
        One that the algorithm supports.
    algorithm : Algorithm
        Registered or not; or, where another process runs it, what is to be known of it here.
    threads : int
    seed : int
        Of the operands and of the elements chosen on large problems.
    judged : optional
        Who runs it; this process when left out.

    Returns
    -------
    Verdict

    Raises
    ------
    Exception
        Whatever the algorithm raises.
    """
    given = ConvSpec.parse(spec) if isinstance(spec, str) else spec
    judged = judged or Judged(algorithm, threads)  # type: ignore[arg-type]  # an Algorithm runs here
    algorithm = Described(algorithm.name, algorithm.family, algorithm.accuracy, judged.obey)
    court = Court(judged, algorithm)
    figures: dict[str, Any] = {"max_error": 0.0, "error_ratio": 0.0, "accuracy": algorithm.accuracy}
    try:
        spec = _smaller(given, court)
        normals, plan, result = _on_normals(spec, court, seed, figures)
        floats = spec.batch and not whole(spec.in_dtype)
        if spec.batch:
            figures["gate"] = _on_whole_numbers(spec, court, seed)
        else:
            court.prepare(normals, beside=True).call(normals.data.call)
        _called_again(normals, court, plan, result)
        if spec == given and spec.batch:
            figures["workspace_seen_bytes"] = _traced(spec, court, seed)
        if floats:
            _on_a_photograph(spec, court)
            _on_graded_sizes(spec, court, seed)
        elif spec.batch:
            _on_sums_beyond(spec, court, seed)
        if spec != given and (trial := trials.whole_batch(given, seed)) is not None:
            result = court.prepare(trial).call(trial.data.call, out=True)
            allowed = allowed_error(trial, algorithm)
            judge(trial, result, allowed, algorithm, "in the whole batch: ", deviations=False)
            figures["workspace_seen_bytes"] = _traced(given, court, seed)
        if spec.batch:
            _on_one_tap(spec, court, seed)
    except WrongResultError as wrong:
        return Verdict(False, str(wrong), **(figures | wrong.figures))
    except TransformsError as wrong:
        return Verdict(False, str(wrong), **figures)
    except UnjudgedError as limit:
        return Verdict(False, f"cannot be judged: {limit}", **figures, judged=False)
    return Verdict(True, "", **figures)


def _smaller(spec: ConvSpec, court: Court) -> ConvSpec:
    """A batch of 2, which still shows mistakes between images; of 1 for arrays beyond a
    gigabyte or sums too long to judge.
    """
    per_image = max(math.prod(spec.input_shape[1:]), math.prod(spec.output_shape[1:]))
    batch = 1 if per_image > 1 << 26 else 2
    if (
        spec.direction == "weight_gradient"
        and spec.out_dtype != np.float64
        and math.prod(spec.output_size) >= 1 << 22
    ):
        batch = 1
    return _supported(spec.with_(batch=min(spec.batch, batch)), spec, court)


def _no_larger(spec: ConvSpec, most: int, court: Court) -> ConvSpec:
    """Images of at most so many pixels along an axis, or four kernels."""
    fewer = (min(n, max(most, 4 * e)) for n, e in zip(spec.size, spec.kernel_extent, strict=True))
    return _supported(spec.with_(size=tuple(fewer)), spec, court)


def _supported(smaller: ConvSpec, spec: ConvSpec, court: Court) -> ConvSpec:
    """The smaller one, if the algorithm solves it."""
    if smaller == spec or court.judged.obey("supports", spec=str(smaller))["supported"]:
        return smaller
    return spec


# ---- seeded normals ----------------------------------------------------------------------------------------


def _on_normals(
    spec: ConvSpec, court: Court, seed: int, figures: dict[str, Any]
) -> tuple[Trial, Sitting, np.ndarray]:
    """What was judged, its plan and a result that is right; fills in the figures; raises WrongResultError."""
    algorithm, trial = court.algorithm, trials.seeded(spec, seed, "normal")
    if whole(trial.dtype) and spec.batch and not fits(trial):
        raise UnjudgedError(f"the sums do not fit {trial.dtype}")
    allowed = allowed_error(trial, algorithm)
    plan, call = court.prepare(trial), trial.data.call

    # Other operands first, so that neither a buffer that is kept nor memory that is freed holds the right
    # result.
    spoiled = [] if whole(spec.in_dtype) else trials.spoiled(spec, seed)
    other = call[0].copy() if spoiled else _other(call[0])
    # Activations are finite at infinity
    infinity = math.inf if spec.activation == "none" else math.nan
    for (element, _), value in zip(spoiled, (infinity, math.nan, -infinity), strict=False):
        other[element] = value
    first = plan.call((other, *call[1:]))
    result = plan.call(call, place=1, watch=True, after=True)
    if not np.array_equal(bits(plan.before), bits(first)):
        raise WrongResultError("the second call changed the result of the first: a buffer is reused")
    figures |= judge(trial, result, allowed, algorithm)
    if spoiled:
        judge_spoilt(trial, first, allowed, algorithm, seed)
    return trial, plan, result.copy()


def _called_again(trial: Trial, court: Court, plan: Sitting, result: np.ndarray) -> None:
    """The first plan still computes with its own weights after another of its spec was prepared and called.

    Once with ``out``, where images are as large as may be: powers of two change no digit.
    """
    court.back_to(plan)
    power, (first, *rest) = trials.high(trial.spec), trial.data.call
    out = plan.call((scaled(first, power) if power else first, *rest), out=True)
    out = scaled(out, -power) if power else out
    late = [(f"written into out=, images of 2^{power}: " if power else "written into out=: ", out)]
    for where, again in late + [("called again: ", again) for again in plan.again()]:
        if not np.array_equal(again, result):
            judge(trial, again, allowed_error(trial, court.algorithm), court.algorithm, where)


def _traced(spec: ConvSpec, court: Court, seed: int) -> int | None:
    """Bytes of workspace; the run in which they are seen has weights that are all the same."""
    trial = trials.flat(spec, seed)
    if not fits(trial):
        trial = trials.seeded(spec, seed, "normal")  # equal numbers would not fit the type of the result
    seen, result = court.traced(trial)
    if result is not None:
        judge(
            trial,
            result,
            allowed_error(trial, court.algorithm),
            court.algorithm,
            "with equal weights: ",
            deviations=False,
        )
    return seen


def _on_one_tap(spec: ConvSpec, court: Court, seed: int) -> None:
    """All weights but one tap are those of the plan before."""
    spec = _no_larger(spec, PIXEL_SIZE, court)
    trial = trials.one_tap(spec, seed, court.algorithm.accuracy in LOCAL)
    if trial is not None and fits(trial):
        result = court.prepare(trial).call(trial.data.call)
        allowed = allowed_error(trial, court.algorithm)
        judge(trial, result, allowed, court.algorithm, "with one tap unlike all others: ")


def _other(a: np.ndarray) -> np.ndarray:
    """An operand of the same range that gives other results; negating both operands would not."""
    if not whole(a.dtype) or not a.size:
        return -a
    return a.max() + (a.min() - a)  # modulo the range of its type, to which it comes back


# ---- photographs, and sizes far apart ----------------------------------------------------------------------


def _on_a_photograph(spec: ConvSpec, court: Court) -> None:
    """Filters of pictures also meet what they are made for: smooth, positive, under kernels with names."""
    filters_pictures = spec.ndim == 2 and spec.in_channels == spec.groups and spec.direction == "forward"
    if filters_pictures:
        trial = trials.photographed(_no_larger(spec.with_(batch=1), PICTURE_SIZE, court))
        if not fits(trial):
            return  # it would overflow a half type
        result = court.prepare(trial).call(trial.data.call)
        judge(
            trial,
            result,
            tolerance(trial, court.algorithm),
            court.algorithm,
            "on a photograph: ",
            deviations=False,
        )


def _on_graded_sizes(spec: ConvSpec, court: Court, seed: int) -> None:
    """A lone pixel under weights that fall off by powers of two, in one batch with images of another size."""
    plan: Sitting | None = None
    for graded in trials.graded(spec, seed):
        trial, (first, *rest) = graded.trial, graded.trial.data.call
        plan = plan or court.prepare(trial)
        images = scaled(first, graded.exponents.reshape(-1, *(1,) * (first.ndim - 1)))
        result = plan.call((images, *rest))
        assert trial.points is not None
        image = 0 if spec.direction == "weight_gradient" else trial.points[:, 0]
        powers = graded.exponents[image]
        exact = trial.exact * np.ldexp(1.0, powers)
        allowed = np.ldexp(tolerance(trial, court.algorithm), powers) + trial.floor
        have = trial.at(result)
        with np.errstate(invalid="ignore", over="ignore"):
            off = ~(np.abs(have.astype(exact.dtype) - exact) <= allowed)
        if off.any():
            at = int(np.argmax(off))
            raise WrongResultError(
                f"with images and weights of very different size {shown(have, at)} at {place(trial, at)} "
                f"should be {shown(exact, at)}; {int(off.sum())} of {off.size} elements are off"
            )
    zeros = [np.zeros_like(a) for a in trial.data.call] if plan is not None and plan.took_s <= AGAIN_S else []
    if plan is not None and zeros and plan.call(zeros).any():
        raise WrongResultError("what is computed from zeros is not zero")


# ---- whole numbers -----------------------------------------------------------------------------------------


def _on_whole_numbers(spec: ConvSpec, court: Court, seed: int) -> str:
    """What was demanded, in words: exact, exact after rounding, or only the bound; raises WrongResultError.
    """
    if not float(border_value(spec)).is_integer() or abs(border_value(spec)) > SPAN[0]:
        # A border that is not a small whole number allows no exact sums
        zero = spec.zero_points[0]
        spec = spec.with_(padding_mode=f"constant:{zero + 3 if zero < 100 else zero - 3}")
    if spec.activation in GATED:
        spec = spec.with_(activation="none")  # which gives no whole numbers
    algorithm = court.algorithm
    rounded, note, reach = algorithm.accuracy != "componentwise" and not whole(spec.in_dtype), "", 0.0
    allowed = np.zeros(0)
    for span in SPANS if rounded else SPANS[:1]:
        if math.prod(span) / math.prod(SPANS[0]) * reach > 0.5:
            continue  # bounds grow with the product of the operands: this span is known to be too wide
        trial = trials.seeded(spec, seed, "integer", span)
        if not rounded:
            break
        allowed = tolerance(trial, algorithm)
        if (
            algorithm.accuracy == "winograd"
            and _two_by_three(algorithm, spec)
            and _exact_in_quarters(trial, allowed)
        ):
            rounded = False
            break
        if float(allowed.max(initial=0)) < 0.5:
            break
        reach = float(allowed.max()) * math.prod(SPANS[0]) / math.prod(span)
    else:
        note = f"whole numbers not decisive: the bound reaches {float(allowed.max()):.2g}"
    result = court.prepare(trial, beside=True).call(trial.data.call)
    if note:
        judge_gate(
            trial, result, np.abs(difference(trial.at(result), trial.exact)) <= allowed, "within the bound"
        )
        return note
    have = np.rint(trial.at(result).astype(trial.exact.dtype)) if rounded else trial.at(result)
    demand = "exact after rounding" if rounded else "exact"
    same = have == trial.exact
    if not rounded and not same.all() and float(trial.magnitude.max()) >= exact_limit(spec):
        return "whole numbers not decisive: the sums are too long to be exact"
    judge_gate(trial, result, same, demand)
    surely = not rounded or float(allowed.max(initial=0)) < 0.25  # at elements that were not chosen as well
    if trial.points is not None and surely and (rows := trials.row_sums(spec, seed, span)) is not None:
        wide = result.astype(rows.dtype)
        judge_rows(np.rint(wide) if rounded else wide, rows)
    sparse = "" if span[2] == 1 else f", {span[2]:.2g} of the weights"
    return f"whole numbers {demand}" + ("" if span == SPANS[0] else f" up to {span[0]} and {span[1]}{sparse}")


def _on_sums_beyond(spec: ConvSpec, court: Court, seed: int) -> None:
    """What does not fit its type is refused: nothing wraps, and nothing saturates."""
    if (trial := trials.extreme(spec, seed)) is not None and not court.prepare(trial).refuses():
        raise WrongResultError(f"a sum that does not fit {spec.result_dtype} raises no OverflowError")


def _two_by_three(algorithm: Judgeable, spec: ConvSpec) -> bool:
    """F(2, 3) on every axis of more than one tap: its matrices hold only 0, 1 and 1/2, so that small whole
    numbers stay exact.
    """
    leaves = dict.fromkeys(lowered(algorithm, spec).leaves)
    matrices = [axis for leaf in leaves for axis in winograd_matrices(algorithm, leaf)]
    return all((back.shape[0], g.shape[1]) in ((2, 3), (1, 1)) for back, g, _ in matrices)


def _exact_in_quarters(trial: Trial, allowed: np.ndarray) -> bool:
    """Whether multiples of 2^-ndim up to S, which the bound is 4 u sqrt(q) >= 4 u times of, are exact."""
    return float(allowed.max(initial=0)) / (4 * trial.unit) * 2**trial.spec.ndim < exact_limit(trial.spec)
