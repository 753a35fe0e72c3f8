"""One-off cost against the cost of each call: who is fastest for how many calls, and from which call on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from reports.frame import CASE, groups
from reports.ranking import ranked


class Stretch(NamedTuple):
    """From this number of calls on, this algorithm takes least in all."""

    calls: int
    algorithm: str


def envelope(rows: Iterable[Any]) -> list[Stretch]:
    """Who takes least for n calls with prepare + n * run seconds, for all n from 1 on.

    Parameters
    ----------
    rows : iterable
        With ``algorithm``, ``prepare_s`` and ``median_s``; those without a known prepare are left out.
    """
    left = [row for row in rows if math.isfinite(row.prepare_s) and row.median_s > 0]
    found: list[Stretch] = []
    calls = 1
    while left:
        best = min(left, key=lambda row: (row.prepare_s + calls * row.median_s, row.median_s, row.algorithm))
        found.append(Stretch(calls, best.algorithm))
        left = [row for row in left if row.median_s < best.median_s]
        if left:  # the first whole number of calls at which somebody with a shorter run takes less
            calls = min(
                max(calls, math.floor((row.prepare_s - best.prepare_s) / (best.median_s - row.median_s)) + 1) for row in left
            )
    return found


def break_even(frame: pd.DataFrame) -> pd.DataFrame:
    """``CASE`` columns and ``stretches``: the ``envelope`` of the algorithms that compete, per case, in recorded order."""
    rows = [
        {**dict(zip(CASE, key, strict=True)), "stretches": stretches}
        for key, rivals in groups(ranked(frame), CASE)
        if (stretches := envelope(rivals))
    ]
    order = {key: at for at, key in enumerate(dict.fromkeys(frame[CASE].itertuples(index=False, name=None)))}
    rows.sort(key=lambda row: order[tuple(row[name] for name in CASE)])
    return pd.DataFrame(rows, columns=[*CASE, "stretches"])


def stretches_text(stretches: list[Stretch]) -> str:
    """``im2col_gemm; from 3 calls on fft``."""
    first, *others = stretches
    return "; ".join([first.algorithm, *(f"from {s.calls:,} calls on {s.algorithm}" for s in others)])
