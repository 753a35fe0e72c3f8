"""Judges one algorithm on one spec against the definition; never asserts, returns a verdict.

It runs through the door, like every user's call, twice on seeded normals (error bounds, and what a plan must leave alone)
and once on small whole numbers, where most algorithms must be exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from algos.contract import Algorithm
from algos.functional import Plan, prepared
from algos.spec import ConvSpec
from bench.bounds import Case, TransformsError, UnjudgedError, tolerance, winograd_matrices
from bench.data import SPAN, Operands, exact_limit, operands
from bench.oracle import border_value, reduction
from bench.photograph import filters

# Every element is compared up to 2 G multiply-adds; less where the definition is bound by memory: few channels, many taps.
FULL_MACS = 2 << 30
FULL_UPDATES = 1 << 28  # result elements * taps
FULL_ELEMENTS = 1 << 23
PHOTOGRAPHED = 1 << 18  # pixels; larger pictures show nothing new
POINTS = 4096
POINT_TERMS = 1 << 31  # products in all chosen elements together: fewer points where one element sums millions
MOST_SPREADS = 8.0  # of u * sqrt(K) * Q; correct sums stay below 4, half precision inside starts at 126
# Largest |x| and |w| of the whole numbers, and the share of w that is not zero, from the most telling to the mildest.
SPANS = ((*SPAN, 1.0), (4, 2, 1.0), (2, 1, 1.0), (1, 1, 1.0), (1, 1, 0.25), (1, 1, 1 / 16), (1, 1, 1 / 64))
POISON = {"f": math.nan, "i": 113, "u": 113}


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
    spreads : float
        Largest error in units of u * sqrt(K) * Q, for componentwise float results; else 0.
    compared : int
        Elements compared on the seeded normals.
    nonzero : float
        Share of the compared results that are not zero.
    judged : bool
        False when no bound can decide: that is no fault of the algorithm.
    """

    ok: bool
    reason: str
    max_error: float
    error_ratio: float
    accuracy: str
    gate: str = ""
    spreads: float = 0.0
    compared: int = 0
    nonzero: float = 0.0
    judged: bool = True


class _WrongResultError(Exception):
    """Carries a reason, and the figures known when it was found, to the verdict."""

    def __init__(self, reason: str, **figures: Any) -> None:
        super().__init__(reason)
        self.figures = figures


def check(spec: ConvSpec | str, algorithm: Algorithm, threads: int = 1, seed: int = 0) -> Verdict:
    """Judge ``algorithm`` on ``spec`` with a batch of 2 at most.

    Parameters
    ----------
    spec : ConvSpec or str
        One that the algorithm supports.
    algorithm : Algorithm
        Registered or not.
    threads : int
    seed : int
        Of the operands and of the elements chosen on large problems.

    Returns
    -------
    Verdict

    Raises
    ------
    Exception
        Whatever the algorithm raises.
    """
    spec = _smaller(ConvSpec.parse(spec) if isinstance(spec, str) else spec, algorithm)
    figures: dict[str, Any] = {"max_error": 0.0, "error_ratio": 0.0, "accuracy": algorithm.accuracy}
    try:
        figures |= _on_normals(spec, algorithm, threads, seed)
        if spec.batch and spec.in_dtype.kind == "f":
            figures["gate"] = _on_whole_numbers(spec, algorithm, threads, seed)
            _on_a_photograph(spec, algorithm, threads)
    except _WrongResultError as wrong:
        return Verdict(False, str(wrong), **(figures | wrong.figures))
    except TransformsError as wrong:
        return Verdict(False, str(wrong), **figures)
    except UnjudgedError as limit:
        return Verdict(False, f"cannot be judged: {limit}", **figures, judged=False)
    return Verdict(True, "", **figures)


def _smaller(spec: ConvSpec, algorithm: Algorithm) -> ConvSpec:
    """A batch of 2, which still shows mistakes between images; of 1 for arrays beyond a gigabyte or sums too long to judge."""
    per_image = max(math.prod(spec.input_shape[1:]), math.prod(spec.output_shape[1:]))
    batch = 1 if per_image > 1 << 26 else 2
    if spec.direction == "weight_gradient" and spec.out_dtype != np.float64 and math.prod(spec.output_size) >= 1 << 22:
        batch = 1
    smaller = spec.with_(batch=min(spec.batch, batch))
    return smaller if algorithm.unsupported(smaller.received()) is None else spec


@lru_cache(3)  # every algorithm of a spec meets the same operands, and the definition costs more than most of them
def _case(spec: ConvSpec, seed: int, kind: str, span: tuple[int, int, float] = SPANS[0]) -> Case:
    points = None
    size = math.prod(spec.result_shape)
    updates = math.prod(spec.output_shape) * math.prod(spec.kernel)
    if spec.macs > FULL_MACS or updates > FULL_UPDATES or size > FULL_ELEMENTS:
        rng = np.random.default_rng([seed, 3])
        count = max(min(POINTS, POINT_TERMS // max(reduction(spec), 1)), 64)
        inside = np.stack([rng.integers(0, n, count) for n in spec.result_shape], 1)
        corners = np.array(list(np.ndindex(*(2,) * len(spec.result_shape)))) * (np.array(spec.result_shape) - 1)
        points = np.unique(np.concatenate([inside, corners]), axis=0)
    return Case(spec, operands(spec, seed, kind, span[:2], span[2]), points)


# ---- seeded normals ---------------------------------------------------------------------------------------------


def _on_normals(spec: ConvSpec, algorithm: Algorithm, threads: int, seed: int) -> dict[str, Any]:
    """Figures for the verdict; raises _WrongResultError."""
    case = _case(spec, seed, "normal")
    whole = case.dtype.kind in "iu"
    if whole and spec.batch and not _fits(case):
        raise UnjudgedError(f"the sums do not fit {case.dtype}")
    exact = whole or not spec.batch
    allowed = np.zeros(case.exact.shape) if exact else tolerance(case, algorithm)
    plan, w = _planned(case, algorithm, threads)
    call = [a.copy() for a in case.data.call]  # a plan that changes them must not spoil the next algorithm's check

    # Other operands first, so that neither a buffer that is kept nor memory that is freed holds the right result.
    first = _host(plan(_other(call[0]), *call[1:]), algorithm)
    _regular_result(first, case, call)
    kept = first.copy()
    result = _host(plan(*call), algorithm)
    if not np.array_equal(first, kept, equal_nan=not whole):
        raise _WrongResultError("the second call changed the result of the first: a buffer is reused")
    _regular_result(result, case, call)
    for name, have, want in (*zip(("first", "second"), call, case.data.call, strict=False), ("weights", w, case.data.w)):
        if want is not None and have is not None and not np.array_equal(have, want):
            raise _WrongResultError(f"the plan changed its {name}{' operand' if name != 'weights' else ''}")
    figures = _judge(case, result, allowed, algorithm)

    del first
    out = np.full(spec.result_shape, POISON[case.dtype.kind], case.dtype)
    returned = plan(*call, out=out)
    if returned is not out:
        raise _WrongResultError("a call with out= returned another array", **figures)
    if not np.array_equal(out, result):
        _judge(case, out, allowed, algorithm, "written into out=: ")
    return figures


def _planned(case: Case, algorithm: Algorithm, threads: int) -> tuple[Plan, np.ndarray | None]:
    w = None if case.data.w is None else case.data.w.copy()
    return prepared(case.spec, w, algorithm, threads), w


def _other(a: np.ndarray) -> np.ndarray:
    """An operand of the same range that gives other results; negating both operands would not."""
    return a.max(initial=0) - a if a.dtype.kind == "u" else -a


def _host(result: Any, algorithm: Algorithm) -> np.ndarray:
    """The door returns host arrays for host operands; this keeps a verdict, not an error, for what it lets through."""
    return result if isinstance(result, np.ndarray) else algorithm.to_host(result)


def _regular_result(result: Any, case: Case, call: list[np.ndarray]) -> None:
    if not isinstance(result, np.ndarray):
        raise _WrongResultError(f"the result is a {type(result).__name__}, not an array")
    if result.shape != case.spec.result_shape:
        raise _WrongResultError(f"the result has shape {result.shape}, not {case.spec.result_shape}")
    if result.dtype != case.dtype:
        raise _WrongResultError(f"the result is {result.dtype}, not {case.dtype}")
    if any(np.may_share_memory(result, operand) for operand in call):
        raise _WrongResultError("the result lies in the memory of an operand")


def _judge(
    case: Case, result: np.ndarray, allowed: np.ndarray, algorithm: Algorithm, where: str = "", spreads: bool = True
) -> dict[str, Any]:
    """Compare with the definition; figures, or _WrongResultError with the worst element."""
    exact, have = case.exact, case.at(result)
    figures: dict[str, Any] = {"compared": int(exact.size)}
    if not exact.size:
        return figures
    figures["nonzero"] = float(np.count_nonzero(have) / have.size)
    if result.dtype.kind == "f" and not np.isfinite(result).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(result))[0])
        raise _WrongResultError(f"{where}{result[at]} at {at}: {int((~np.isfinite(result)).sum())} elements are not finite",
                     **figures, max_error=math.inf, error_ratio=math.inf)
    error = np.abs(_difference(have, exact)).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error > 0, error / allowed, 0.0)
    figures |= {"max_error": float(error.max()), "error_ratio": float(ratio.max())}
    if figures["error_ratio"] > 1:
        worst = int(ratio.argmax())
        at = _place(case, worst)
        share = "" if math.isinf(figures["error_ratio"]) else f", {figures['error_ratio']:.3g} times the tolerance"
        raise _WrongResultError(
            f"{where}{have.flat[worst]:.9g} at {at} should be {exact.flat[worst]:.9g}{share}; "
            f"{int((ratio > 1).sum())} of {exact.size} elements are off",
            **figures,
        )
    if figures["nonzero"] < 0.5 * np.count_nonzero(exact) / exact.size and result.dtype.kind == "f":
        raise _WrongResultError(f"{where}only {figures['nonzero']:.0%} of the results are not zero", **figures)
    if spreads and algorithm.accuracy == "componentwise" and result.dtype.kind == "f":
        figures["spreads"] = _spreads(case, error)
        if figures["spreads"] > MOST_SPREADS:
            raise _WrongResultError(
                f"{where}the error is {figures['spreads']:.3g} times u * sqrt(K) * Q, at most {MOST_SPREADS:g} are right: "
                f"something computes in less than {np.promote_types(case.dtype, np.float32)}",
                **figures,
            )
    return figures


def _on_a_photograph(spec: ConvSpec, algorithm: Algorithm, threads: int) -> None:
    """Filters of pictures also meet what they are made for: smooth, positive, under kernels with names."""
    filters_pictures = spec.ndim == 2 and spec.in_channels == spec.groups and spec.direction == "forward"
    if filters_pictures and math.prod(spec.size) <= PHOTOGRAPHED:
        case = _photographed(spec.with_(batch=1))
        plan, _ = _planned(case, algorithm, threads)
        result = _host(plan(*(a.copy() for a in case.data.call)), algorithm)
        _judge(case, result, tolerance(case, algorithm), algorithm, "on a photograph: ", spreads=False)


@lru_cache(3)
def _photographed(spec: ConvSpec) -> Case:
    return Case(spec, Operands(*filters(spec), None))


def _place(case: Case, k: int) -> tuple[int, ...]:
    """Where the k-th compared element stands in the result."""
    at: Any = np.unravel_index(k, case.exact.shape) if case.points is None else case.points[k]
    return tuple(int(i) for i in at)


def _spreads(case: Case, error: np.ndarray) -> float:
    """Error beyond the final rounding in units of u * sqrt(K) * Q: K * u alone is loose for long sums."""
    error = np.maximum(error - case.rounding, 0) if case.out_unit > case.unit else error
    unit = case.unit * math.sqrt(max(case.terms, 1)) * case.spread
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(error > 0, error / unit, 0.0).max())


def _difference(have: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """have - exact without overflow: in the definition's type, or in Python ints."""
    if exact.dtype.kind == "f":
        return have.astype(exact.dtype) - exact
    if exact.dtype == np.int64 and max(abs(int(exact.min())), abs(int(exact.max()))) < 1 << 62 and have.dtype.itemsize < 8:
        return have.astype(np.int64) - exact
    return have.astype(object) - exact.astype(object)


def _fits(case: Case) -> bool:
    limits = np.iinfo(case.dtype)
    return int(case.exact.min()) >= limits.min and int(case.exact.max()) <= limits.max


# ---- whole numbers ----------------------------------------------------------------------------------------------


def _on_whole_numbers(spec: ConvSpec, algorithm: Algorithm, threads: int, seed: int) -> str:
    """What was demanded, in words: exact, exact after rounding, or only the bound; raises _WrongResultError."""
    if not float(border_value(spec)).is_integer() or abs(border_value(spec)) > SPAN[0]:
        spec = spec.with_(padding_mode="constant:3")  # a border that is not a small whole number allows no exact sums
    rounded, note, reach = algorithm.accuracy != "componentwise", "", 0.0
    allowed = np.zeros(0)
    for span in SPANS if rounded else SPANS[:1]:
        if math.prod(span) / math.prod(SPANS[0]) * reach > 0.5:
            continue  # bounds grow with the product of the operands: this span is known to be too wide
        case = _case(spec, seed, "integer", span)
        if not rounded:
            break
        allowed = tolerance(case, algorithm)
        if algorithm.accuracy == "winograd" and _two_by_three(algorithm, spec) and _exact_in_quarters(case, allowed):
            rounded = False
            break
        if float(allowed.max(initial=0)) < 0.5:
            break
        reach = float(allowed.max()) * math.prod(SPANS[0]) / math.prod(span)
    else:
        note = f"whole numbers not decisive: the bound reaches {float(allowed.max()):.2g}"
    plan, _ = _planned(case, algorithm, threads)
    result = _host(plan(*(a.copy() for a in case.data.call)), algorithm)
    if note:
        _judge_gate(case, result, np.abs(_difference(case.at(result), case.exact)) <= allowed, "within the bound")
        return note
    have = np.rint(case.at(result)) if rounded else case.at(result)
    demand = "exact after rounding" if rounded else "exact"
    same = have == case.exact
    if not rounded and not same.all() and float(case.magnitude.max()) >= exact_limit(spec):
        return "whole numbers not decisive: the sums are too long to be exact"
    _judge_gate(case, result, same, demand)
    sparse = "" if span[2] == 1 else f", {span[2]:.2g} of the weights"
    return f"whole numbers {demand}" + ("" if span == SPANS[0] else f" up to {span[0]} and {span[1]}{sparse}")


def _judge_gate(case: Case, result: np.ndarray, same: np.ndarray, demand: str) -> None:
    if same.all():
        return
    worst = int(np.argmin(same))
    raise _WrongResultError(
        f"on whole numbers {case.at(result).flat[worst]:.9g} at {_place(case, worst)} should be "
        f"{case.exact.flat[worst]:.9g}, {demand}; {int((~same).sum())} of {same.size} elements are off"
    )


def _two_by_three(algorithm: Algorithm, spec: ConvSpec) -> bool:
    """F(2, 3) on every axis: its matrices hold only 0, 1 and 1/2, so that small whole numbers stay exact."""
    return all(back.shape[0] == 2 and g.shape[1] == 3 for back, g, _ in winograd_matrices(algorithm, spec))


def _exact_in_quarters(case: Case, allowed: np.ndarray) -> bool:
    """Whether multiples of 2^-ndim up to S, which the bound is 4 u sqrt(q) >= 4 u times of, are exact."""
    return float(allowed.max(initial=0)) / (4 * case.unit) * 2**case.spec.ndim < exact_limit(case.spec)
