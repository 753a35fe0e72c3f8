"""Our algorithms against somebody else's: one row for each kind of work, with what it is to reach and whether
it does.

Ours is whatever ``auto`` chose; theirs is on each shape the best of the baseline's algorithms. Where both
took turns in the same launches the ratio is that of ``findings.ranking.compare``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from reports.findings.frame import GROUP, tuples
from reports.findings.ranking import compare, ranked

if TYPE_CHECKING:
    from bench.versus import Work

COLUMNS = [*GROUP, "work", "baseline", "specs", "of", "mean", "target", "worst", "worst_target",
           "worst_shape", "worst_noise", "ours_s", "baseline_s", "met", "note"]  # fmt: skip


def versus(frame: pd.DataFrame, works: Sequence[Work], machines: Mapping[str, Any]) -> pd.DataFrame:
    """One row for each (machine, threads, cold) in which ``auto`` was measured and each kind of work.

    ``specs`` of ``of`` shapes have both times; ``mean`` is the geometric mean of baseline time over ours, of
    a network the ratio of the sums ``baseline_s`` and ``ours_s``, NaN while a layer is missing; ``worst`` the
    smallest ratio, and ``worst_noise`` the factor by which identical code may differ there. ``met`` is "yes",
    "no", or "" where there is nothing to judge; ``note`` says what is missing.
    """
    rows = []
    for key, group in ranked(frame, with_auto=True).groupby(GROUP, sort=False):
        if (group["chosen"] == "").all():
            continue
        cases: dict[str, dict[str, Any]] = {}
        for row in tuples(group[group["device"] == "cpu"]):  # the fastest tunables of each come first
            cases.setdefault(row.spec, {}).setdefault(row.algorithm, row)
        where = dict(zip(GROUP, key, strict=True))
        here = frame[(frame[GROUP] == list(where.values())).all(axis=1)]
        peak = _peak(machines.get(where["machine"], {}), where["threads"])
        rows += [{**where, **_row(work, cases, peak, here)} for work in works]
    measured = {work.name for work in works if work.rivals}
    if not any(row["specs"] and row["work"] in measured for row in rows):
        rows = []  # a store of something else
    return pd.DataFrame(rows, columns=COLUMNS)


def _peak(machine: Mapping[str, Any], threads: int) -> float:
    """Operations per second in float32, as measured with so many threads."""
    rates = machine.get("peaks", {}).get("flops_per_s", {}).get("float32", {})
    return float(rates.get(str(threads), math.nan))


def _row(
    work: Work, cases: Mapping[str, Mapping[str, Any]], peak: float, here: pd.DataFrame
) -> dict[str, Any]:
    if work.rivals:
        pairs = [
            (layer, pair)
            for layer in work.layers
            if (pair := _pair(cases.get(str(layer.spec), {}), work.rivals))
        ]
        leads = [(layer.name, *_lead(here, *pair)) for layer, pair in pairs]
    else:
        rates = [(layer, _direct_rate(cases.get(str(layer.spec), {}))) for layer in work.layers]
        leads = [(layer.name, rate / peak, 1.0) for layer, rate in rates if rate / peak > 0]
    row: dict[str, Any] = {
        "work": work.name, "baseline": work.baseline, "specs": len(leads), "of": len(work.layers),
        "mean": math.nan, "target": _figure(work.target), "worst": math.nan,
        "worst_target": _figure(work.worst), "worst_shape": "", "worst_noise": math.nan, "ours_s": math.nan,
        "baseline_s": math.nan, "met": "", "note": "",
    }  # fmt: skip
    if len(leads) < len(work.layers):
        row["note"] = _missing(work, here)
    if not leads or (work.summed and len(leads) < len(work.layers)):
        return row
    if work.summed:
        row["ours_s"], row["baseline_s"] = (
            sum(p[side].median_s * layer.count for layer, p in pairs) for side in (0, 1)
        )
        row["mean"] = row["baseline_s"] / row["ours_s"]
    else:
        row["mean"] = math.exp(sum(math.log(ratio) for _, ratio, _ in leads) / len(leads))
    row["worst_shape"], row["worst"], row["worst_noise"] = min(leads, key=lambda lead: lead[1])
    # As fast as the baseline is what cannot be told from it; any other target is taken at its word.
    fine = work.worst is None or all(
        ratio * (noise if work.worst == 1 else 1) >= work.worst for _, ratio, noise in leads
    )
    if work.target is not None:
        row["met"] = "yes" if fine and row["mean"] >= work.target else "no"
    return row


def _figure(value: float | None) -> float:
    return math.nan if value is None else value


def _pair(case: Mapping[str, Any], rivals: tuple[str, ...]) -> tuple[Any, Any] | None:
    """Ours and the fastest rival's row of one spec."""
    theirs = [row for name, row in case.items() if name.startswith(rivals)]
    return (case["auto"], min(theirs, key=lambda row: row.median_s)) if theirs and "auto" in case else None


def _lead(frame: pd.DataFrame, ours: Any, theirs: Any) -> tuple[float, float]:
    """Theirs over ours, and the factor up to which the interval goes beyond that."""
    ratio = compare(frame, ours, theirs)
    return ratio.ratio, ratio.high / ratio.ratio


def _direct_rate(case: Mapping[str, Any]) -> float:
    """Operations per second of our fastest direct algorithm; NaN without one."""
    return max((1e9 * row.gflops for row in case.values() if row.family == "direct"), default=math.nan)


def _missing(work: Work, here: pd.DataFrame) -> str:
    """Why shapes have no ratio, where one reason holds for all of them."""
    if not work.rivals:
        return "needs a run with own"
    theirs = here[[name.startswith(work.rivals) for name in here["algorithm"]]]
    if theirs.empty:
        return "the peers were not measured"
    if (theirs["status"] == "unavailable").all():
        return str(theirs["reason"].iloc[0])
    return ""
