"""How far launches differ beyond what their turns explain, learnt from all comparisons of a table together.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

# Relative spread between launches that is always assumed: the alignment of a loop alone moves it by that
LEAST = 0.005
MOST = 3.0
LEAST_FREEDOM, MOST_FREEDOM = 2.0, 30.0
LEARNT = 8  # comparisons of two launches or more from which the spread is learnt
APART = 0.10  # spread between launches that did not take turns, where nothing tells


def spread_apart(cases: Iterable[Sequence[float]]) -> float:
    """The spread of launches from their case, by the logarithms of the times of each case's launches."""
    deviations = [deviation for times in cases for deviation in _deviations(times)]
    return max(_robust(deviations), LEAST) if len(deviations) >= 2 * LEARNT else APART


def _deviations(times: Sequence[float]) -> list[float]:
    """Of launches from their case; none of a single one."""
    if len(times) < 2:
        return []
    centre, scale = math.fsum(times) / len(times), math.sqrt(len(times) / (len(times) - 1))
    return [(t - centre) * scale for t in times]


def _robust(values: Sequence[float]) -> float:
    """Standard deviation of a centred normal with heavy tails: the larger of what
    its middle and its outer tenth tell.
    """
    size = sorted(map(abs, values))
    return max(1.4826 * statistics.median(size), size[min(len(size) - 1, int(0.9 * len(size)))] / 1.6449)


def fit(seen: np.ndarray, own: np.ndarray, explained: np.ndarray) -> tuple[float, float]:
    """Spread between launches, and the degrees of freedom that it is known with (Smyth's estimators).

    From the variance seen between launches, its freedom, and the variance that turns explain, of each
    comparison. On the scale of logarithms: one disturbed comparison makes the freedom small, not everybody's
    spread large.
    """
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    luck = digamma(own / 2) - np.log(own / 2)

    def logs(process: float) -> np.ndarray:
        return np.log(np.maximum(seen, 1e-12) / (process**2 + explained)) - luck

    process, freedom = LEAST, MOST_FREEDOM
    for _ in range(8):
        left = float(np.var(logs(process), ddof=1) - polygamma(1, own / 2).mean())
        within = polygamma(1, MOST_FREEDOM / 2) < left < polygamma(1, LEAST_FREEDOM / 2)
        freedom = LEAST_FREEDOM if left > polygamma(1, MOST_FREEDOM / 2) else MOST_FREEDOM
        if within:
            freedom = brentq(
                lambda d, left=left: float(polygamma(1, d / 2)) - left, LEAST_FREEDOM, MOST_FREEDOM
            )
        goal = float(np.log(freedom / 2) - digamma(freedom / 2))
        spread = lambda p, goal=goal: float(logs(p).mean()) - goal  # noqa: E731
        process = LEAST if spread(LEAST) <= 0 else brentq(spread, LEAST, MOST) if spread(MOST) < 0 else MOST
    return process, freedom
