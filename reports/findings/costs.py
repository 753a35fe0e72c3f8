"""What speed costs: the one-off work before it, who is fastest for how many calls; and the error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from reports.findings.frame import PROBLEM, groups
from reports.findings.ranking import as_recorded, ranked

UNIT_ROUNDOFF = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
SHOWN_SPECS = 3


class Stretch(NamedTuple):
    """From this number of calls on, this algorithm takes least in all."""

    calls: int
    algorithm: str


COSTS = ("prepare_s", "median_s", "algorithm")


def envelope(costs: Iterable[tuple[float, float, str]]) -> list[Stretch]:
    """Who takes least for n calls with prepare + n * run seconds, for all n from 1 on.

    Parameters
    ----------
    costs : iterable
        ``COSTS`` of each; those without a known prepare are left out.
    """
    left = [cost for cost in costs if math.isfinite(cost[0]) and cost[1] > 0]
    found: list[Stretch] = []
    calls = 1
    while left:
        *_, name, once, each = min((once + calls * each, each, name, once, each) for once, each, name in left)
        found.append(Stretch(calls, name))
        left = [cost for cost in left if cost[1] < each]
        if left:  # the first whole number of calls at which somebody with a shorter run takes less
            calls = min(
                max(calls, math.floor((prepare - once) / (each - run)) + 1) for prepare, run, _ in left
            )
    return found


def break_even(frame: pd.DataFrame) -> pd.DataFrame:
    """``PROBLEM`` columns and ``stretches``: the ``envelope`` of the algorithms that
    compete, per case, in recorded order.
    """
    rows = [
        {**dict(zip(PROBLEM, key, strict=True)), "stretches": stretches}
        for key, costs in groups(ranked(frame), PROBLEM, COSTS)
        if (stretches := envelope(costs))
    ]
    return as_recorded(pd.DataFrame(rows, columns=[*PROBLEM, "stretches"]), frame)


def representative(cases: dict[str, list[Stretch]], work: dict[str, float]) -> list[str]:
    """Up to ``SHOWN_SPECS``: those with the most changes of winner, one for each sequence of winners; by
    work.
    """
    by_changes = sorted(cases, key=lambda spec: (-len(cases[spec]), -work[spec]))
    distinct = {tuple(s.algorithm for s in cases[spec]): spec for spec in reversed(by_changes)}
    first = [spec for spec in by_changes if spec in set(distinct.values())]
    chosen = (first + [spec for spec in by_changes if spec not in first])[:SHOWN_SPECS]
    return sorted(chosen, key=lambda spec: work[spec])


def errors(rows: pd.DataFrame) -> pd.DataFrame:
    """Per algorithm: ``time`` over the fastest's, ``error`` in rounding units of a typical result, ``specs``,
    ``front``.

    Both are geometric means over the forward, floating-point specs. Operands are standard normals, so that a
    typical result is the root of the reduction length; on the front nobody is both faster and more accurate.
    """
    known = _in_units(rows)
    logs = known[["algorithm"]].assign(time=np.log(known["time_ratio"]), error=np.log(known["error_units"]))
    table = logs.groupby("algorithm").mean().apply(np.exp)
    table["specs"] = known.groupby("algorithm").size()
    table["front"] = [
        not (
            (table["time"] <= t) & (table["error"] <= e) & ((table["time"] < t) | (table["error"] < e))
        ).any()
        for t, e in zip(table["time"], table["error"], strict=True)
    ]
    return table.reset_index()


def picks(rows: pd.DataFrame) -> list[tuple[float, float]]:
    """(time, error) as ``errors`` has them, of who is picked by these measurements for each spec: without a
    limit of the error first, then as it is lowered, as far as every spec has somebody below.
    """
    known = _in_units(rows)
    found: list[tuple[float, float]] = []
    for limit in sorted(set(known["error_units"]), reverse=True):
        allowed = known[known["error_units"] <= limit]
        if allowed["spec"].nunique() < known["spec"].nunique():
            break
        taken = allowed.loc[allowed.groupby("spec")["time_ratio"].idxmin()]
        here = tuple(float(np.exp(np.log(taken[name]).mean())) for name in ("time_ratio", "error_units"))
        if not found or here != found[-1]:
            found.append((here[0], here[1]))
    return found


def _in_units(rows: pd.DataFrame) -> pd.DataFrame:
    """The forward, floating-point rows with ``error_units`` and ``time_ratio``."""
    known = rows[
        (rows["direction"] == "forward") & rows["dtype"].isin(UNIT_ROUNDOFF) & (rows["max_error"] > 0)
    ]
    roundoff, typical = (
        known["dtype"].map(UNIT_ROUNDOFF).astype(float),
        np.sqrt(known["reduction"].astype(float)),
    )
    return known.assign(
        error_units=known["max_error"] / (roundoff * typical),
        time_ratio=known["median_s"] / known["spec"].map(rows.groupby("spec")["median_s"].min()),
    ).reset_index(drop=True)  # fmt: skip
