"""How a result is held against what the definition says: what is off, where and by how much."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from algos.dtypes import accumulator, limits, whole
from bench import trials
from bench.bounds import tolerance
from bench.court import WrongResultError
from bench.trial import GATED, MOST_DEVIATIONS, Judgeable, Trial

LOCAL = ("componentwise", "lowrank", "rounded")  # classes in which a NaN spoils only what reads it


def allowed_error(trial: Trial, algorithm: Judgeable) -> np.ndarray:
    """The tolerance; nothing for whole numbers and empty batches."""
    exact = whole(trial.dtype) or not trial.spec.batch
    return np.zeros(trial.exact.shape) if exact else tolerance(trial, algorithm)


def judge_spoilt(
    trial: Trial, result: np.ndarray, allowed: np.ndarray, algorithm: Judgeable, seed: int
) -> None:
    """With a NaN and an infinity in the last image: what reads them is lost,
    and nothing else that should not be.
    """
    have = trial.at(result)
    reads = trials.spoilt(trial, seed)
    if (kept := reads & np.isfinite(have)).any():
        at = int(np.argmax(kept))
        raise WrongResultError(
            f"with NaN or infinity in its window {shown(have, at)} at {place(trial, at)} should not be "
            "finite"
        )
    clean = trials.untouched(trial, seed, others_only=algorithm.accuracy not in LOCAL)
    with np.errstate(invalid="ignore"):
        off = clean & ~(np.abs(have - trial.exact) <= allowed)
    if off.any():
        at = int(np.argmax(off))
        image = "" if algorithm.accuracy in LOCAL else " in another image"
        raise WrongResultError(
            f"NaN or infinity{image} outside its window turns {shown(trial.exact, at)} at "
            f"{place(trial, at)} into {shown(have, at)}"
        )


def judge(
    trial: Trial,
    result: np.ndarray,
    allowed: np.ndarray,
    algorithm: Judgeable,
    where: str = "",
    deviations: bool = True,
) -> dict[str, Any]:
    """Compare with the definition; figures, or WrongResultError with the worst element."""
    exact, have = trial.exact, trial.at(result)
    figures: dict[str, Any] = {"compared": int(exact.size)}
    if not exact.size:
        return figures
    figures["nonzero"] = float(np.count_nonzero(have) / have.size)
    floats = not whole(result.dtype)
    if floats and not np.isfinite(result).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(result))[0])
        raise WrongResultError(
            f"{where}{result[at]} at {at}: {int((~np.isfinite(result)).sum())} elements are not finite",
            **figures,
            max_error=math.inf,
            error_ratio=math.inf,
        )
    error = np.abs(difference(have, exact)).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error > 0, error / allowed, 0.0)
    figures |= {"max_error": float(error.max()), "error_ratio": float(ratio.max())}
    if figures["error_ratio"] > 1:
        worst = int(ratio.argmax())
        at = place(trial, worst)
        share = (
            ""
            if math.isinf(figures["error_ratio"])
            else f", {figures['error_ratio']:.3g} times the tolerance"
        )
        raise WrongResultError(
            f"{where}{shown(have, worst)} at {at} should be {shown(exact, worst)}{share}; "
            f"{int((ratio > 1).sum())} of {exact.size} elements are off",
            **figures,
        )
    if figures["nonzero"] < 0.5 * np.count_nonzero(exact) / exact.size and floats:
        raise WrongResultError(f"{where}only {figures['nonzero']:.0%} of the results are not zero", **figures)
    if deviations and algorithm.accuracy == "componentwise" and floats:
        figures["deviations"] = _deviations(trial, error)
        if figures["deviations"] > MOST_DEVIATIONS:
            raise WrongResultError(
                f"{where}the error is {figures['deviations']:.3g} times u * sqrt(K) * Q, at most "
                f"{MOST_DEVIATIONS:g} are right: something computes in less than {accumulator(trial.dtype)}",
                **figures,
            )
    return figures


def shown(a: np.ndarray, k: int) -> str:
    """The k-th element."""
    value = a.flat[k]
    return str(int(value)) if whole(a.dtype) or a.dtype == object else f"{value:.9g}"


def place(trial: Trial, k: int) -> tuple[int, ...]:
    """Where the k-th compared element stands in the result."""
    at: Any = np.unravel_index(k, trial.exact.shape) if trial.points is None else trial.points[k]
    return tuple(int(i) for i in at)


def _deviations(trial: Trial, error: np.ndarray) -> float:
    """Error beyond the final rounding in units of u * sqrt(K) * Q: K * u alone is loose for long sums."""
    rounded = trial.out_unit > trial.unit or trial.spec.activation in GATED
    error = np.maximum(error - trial.rounding, 0) if rounded else error
    unit = trial.unit * math.sqrt(max(trial.terms, 1)) * trial.deviation
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(error > 0, error / unit, 0.0).max())


def difference(have: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """have - exact without overflow: in the definition's type, or in Python ints."""
    if exact.dtype.kind in "fc":
        return have.astype(exact.dtype) - exact
    if (
        exact.dtype == np.int64
        and max(abs(int(exact.min())), abs(int(exact.max()))) < 1 << 62
        and have.dtype.itemsize < 8
    ):
        return have.astype(np.int64) - exact
    return have.astype(object) - exact.astype(object)


def fits(trial: Trial) -> bool:
    """Whether its results fit their type."""
    if not whole(trial.dtype):
        return bool(np.abs(trial.exact).max(initial=0) <= float(limits(trial.dtype).max))
    info = np.iinfo(trial.dtype)
    return int(trial.exact.min()) >= info.min and int(trial.exact.max()) <= info.max


def judge_gate(trial: Trial, result: np.ndarray, same: np.ndarray, demand: str) -> None:
    if same.all():
        return
    worst = int(np.argmin(same))
    raise WrongResultError(
        f"on whole numbers {shown(trial.at(result), worst)} at {place(trial, worst)} should be "
        f"{shown(trial.exact, worst)}, {demand}; {int((~same).sum())} of {same.size} elements are off"
    )


def judge_rows(result: np.ndarray, rows: np.ndarray) -> None:
    """Between the chosen points nothing is off either."""
    off = result.sum(-1) != rows
    if off.any():
        at = tuple(int(i) for i in np.argwhere(off)[0])
        raise WrongResultError(f"on whole numbers the row at {at} does not sum to {rows[at]:.9g}; "
                               f"{int(off.sum())} of {off.size} rows are off")
