"""Who wins, by how much, and whether the noise could explain it.

The launch is the sampling unit: samples within one process agree far better than two processes do. What launches of
identical code differ by is measured (A/A noise), and a lead that it could explain is a tie.

Launches of one spec with the same index took turns in the same minutes. What slowed all of them down alike, a neighbour on
the machine or a lower clock, says nothing about who is faster; so two algorithms are compared launch by launch, by the
median of the ratios, under the noise that is left when each launch's common part is taken out. That holds only where every
launch of both has its partner; otherwise their medians are compared under the whole noise.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from algos.grammar import meant
from reports.frame import CASE, GROUP, tuples

STANDARD_ERRORS = 3.0  # a lead beyond this many standard errors is a win
SMALLEST_LEAD = 0.01  # code alignment alone moves identical loops by this much
DEFAULT_NOISE = 0.05  # assumed between launches where it cannot be measured: identical code showed 3%
ENOUGH = 3  # records or pairs that make a measured noise
PAIRED_S = 900.0  # launches of one index that started further apart did not take turns
PRIOR_LAUNCHES = 3  # how many launches the pooled noise counts for beside a record's own spread


@dataclass(frozen=True)
class Noise:
    """How much launches of identical code differ, as a relative standard deviation.

    Attributes
    ----------
    launches : float
        From records with two launches or more, NaN without one.
    records : int
        How many those were.
    paired : float
        The same without what all launches of one spec and index have in common; NaN without three algorithms.
    paired_records : int
    pairs : float
        From ``auto`` beside the algorithm that it chose, identical code measured twice; NaN without a pair.
    pair_count : int
    measured : bool
        False where too little was seen, so that ``DEFAULT_NOISE`` is the least that is assumed.
    """

    launches: float
    records: int
    paired: float
    paired_records: int
    pairs: float
    pair_count: int
    measured: bool

    @property
    def sigma(self) -> float:
        """What decides ties between records whose launches did not take turns."""
        seen = [self.launches] if self.records >= ENOUGH else []
        seen += [self.pairs] if self.pair_count >= ENOUGH else []
        return max(seen) if self.measured else max([DEFAULT_NOISE, *seen])

    @property
    def paired_sigma(self) -> float:
        """What decides ties launch by launch; never above ``sigma``."""
        if self.paired_records < ENOUGH:
            return self.sigma
        return min(self.sigma, max(self.paired, self.pairs if self.pair_count >= ENOUGH else 0.0))

    def text(self) -> str:
        """One sentence for the reader."""
        parts = []
        if self.records:
            part = f"launches of one case differ by {self.launches:.1%}"
            if self.paired_records >= ENOUGH:
                part += f", and by {self.paired:.1%} beyond what slowed all algorithms of a spec alike"
            parts.append(f"{part} ({self.records} cases with 2 or more launches)")
        if self.pair_count:
            parts.append(f"auto and the algorithm it chose, identical code, by {self.pairs:.1%} ({self.pair_count} specs)")
        if not self.measured:
            parts.append(f"too few launches to measure the noise, so {DEFAULT_NOISE:.0%} is assumed")
        return f"{'; '.join(parts)}. A lead within {STANDARD_ERRORS:g} standard errors of that is a tie."


def _once_per_frame(function: Callable[..., Any]) -> Any:
    """Remember what ``function`` gave for a frame while the frame lives: half a dozen tables and pictures ask for it.

    A frame is not changed after ``to_frame``, and neither is a result.
    """
    kept: dict[tuple[Any, ...], tuple[weakref.ref, Any]] = {}

    @wraps(function)
    def remembered(frame: pd.DataFrame, *arguments: Any, **options: Any) -> Any:
        key = (id(frame), arguments, tuple(options.items()))
        if key not in kept or kept[key][0]() is not frame:
            kept[key] = (weakref.ref(frame, lambda _: kept.pop(key, None)), function(frame, *arguments, **options))
        return kept[key][1]

    return remembered


def _median_variance(launches: float) -> float:
    """Variance of the median of ``launches`` values of unit variance: the mean's up to 2, towards pi/2 of it beyond."""
    return (1.0 if launches <= 2 else 1.35 if launches == 3 else 1.5) / max(launches, 1)


def _robust_sigma(deviations: Sequence[float]) -> float:
    """Of a centred normal with heavy tails: the larger of what the middle and what the outer tenth tell."""
    if not deviations:
        return math.nan
    size = np.abs(deviations)
    return float(max(1.4826 * np.median(size), np.quantile(size, 0.9) / 1.6449))


Launches = dict[int, tuple[float, float]]  # index -> start in seconds, NaN where unknown, and the logarithm of the median


@lru_cache(maxsize=1 << 16)
def _parsed(medians: str, starts: str) -> Launches:
    found: Launches = {}
    for median, entry in zip(medians.split(), starts.split(), strict=False):
        index, _, started = entry.partition("@")
        try:
            when = datetime.fromisoformat(started).timestamp()
        except (ValueError, OverflowError):
            when = math.nan
        if float(median) > 0:
            found[int(index)] = (when, math.log(float(median)))
    return found


def _launches(row: Any) -> Launches:
    return _parsed(row.launch_medians_s, row.launch_starts)


def _together(one: Launches, other: Launches) -> bool:
    """Whether every launch of both has a partner that took turns with it."""
    return one.keys() == other.keys() and all(abs(one[i][0] - other[i][0]) <= PAIRED_S for i in one)


def _residuals(group: pd.DataFrame) -> tuple[list[float], int]:
    """Deviations of the launches of a (machine, threads, cold) from their case, without each launch's common part.

    And of how many records they are.
    """
    found: list[float] = []
    records = 0
    for _, part in group[group["launch_count"] > 1].groupby("spec", sort=False):
        cases = [_launches(row) for row in tuples(part)]
        alike = [case for case in cases if _together(case, cases[0])]
        count, launches = len(alike), len(cases[0])
        if count >= ENOUGH and launches > 1:
            logs = np.array([[case[i][1] for i in sorted(case)] for case in alike])
            deviations = logs - logs.mean(axis=1, keepdims=True)
            left = deviations - np.median(deviations, axis=0)
            found += list((left * math.sqrt(launches / (launches - 1) * count / (count - 1))).ravel())
            records += count
    return found, records


@_once_per_frame
def noise(frame: pd.DataFrame) -> dict[tuple[Any, ...], Noise]:
    """The A/A noise of every (machine, threads, cold) in the frame."""
    found = {}
    measured = frame[(frame["status"] == "ok") & (frame["origin"] == "convbench") & (frame["launch_count"] > 0)]
    for key, group in measured.groupby(GROUP, sort=False):
        deviations: list[float] = []
        records = 0
        for text in group.loc[group["launch_count"] > 1, "launch_medians_s"]:
            logs = np.log([float(m) for m in text.split()])
            deviations += list((logs - logs.mean()) * math.sqrt(len(logs) / (len(logs) - 1)))
            records += 1
        left, together = _residuals(group[~group["superseded"]])
        pairs = [math.log(pair.auto_s / pair.chosen_s) / pair.scale for pair in _pairs(group)]
        found[key] = Noise(
            _robust_sigma(deviations), records, _robust_sigma(left), together, _robust_sigma(pairs), len(pairs),
            records >= ENOUGH or len(pairs) >= ENOUGH,
        )
    return found


@dataclass(frozen=True)
class _Pair:
    spec: str
    auto_s: float
    chosen_s: float
    scale: float  # standard deviation of the log ratio, in units of the noise of one launch


def _pairs(group: pd.DataFrame) -> list[_Pair]:
    """``auto`` and the algorithm that it chose, where both were measured."""
    current = group[~group["superseded"]]
    competing = current[current["competes"]].drop_duplicates(["spec", "algorithm"], keep=False)  # which tunables auto ran is
    chosen = {(r.spec, r.algorithm): r for r in tuples(competing)}  # certain where there is one set of them
    found = []
    for auto in tuples(current[current["chosen"] != ""]):
        if other := chosen.get((auto.spec, auto.chosen)):
            scale = math.sqrt(_median_variance(auto.launch_count) + _median_variance(other.launch_count))
            found.append(_Pair(auto.spec, auto.median_s, other.median_s, scale))
    return found


@_once_per_frame
def ranked(frame: pd.DataFrame, with_auto: bool = False, every: bool = False) -> pd.DataFrame:
    """The rows that compete, of each algorithm the best tunables or ``every``, with ``error``: the relative standard error.

    ``paired_sigma`` is what ``compare`` assumes between launches that took turns. A record's own spread counts
    beside the pooled noise, and never makes it smaller: few launches often agree by luck.
    """
    rows = frame[frame["competes"]]
    if with_auto:
        auto = (frame["chosen"] != "") & (frame["status"] == "ok") & ~frame["superseded"] & (frame["launch_count"] > 0)
        rows = frame[frame["competes"] | (auto & (frame["origin"] == "convbench"))]
    alike = [*CASE, "algorithm", *(["tunables"] if every else [])]
    rows = rows.sort_values(["median_s", "algorithm"]).drop_duplicates(alike).copy()
    pooled = noise(frame)
    errors = []
    for row in tuples(rows):
        sigma = pooled[row.machine, row.threads, row.cold].sigma
        own = row.launch_count - 1
        if own and math.isfinite(row.noise):
            blended = (PRIOR_LAUNCHES * sigma**2 + own * row.noise**2) / (PRIOR_LAUNCHES + own)
            sigma = max(sigma, math.sqrt(blended))
        errors.append(sigma * math.sqrt(_median_variance(row.launch_count)))
    rows["error"] = errors
    rows["paired_sigma"] = [pooled[key].paired_sigma for key in rows[GROUP].itertuples(index=False, name=None)]
    return rows


def needed_ratio(error: float, other: float) -> float:
    """How many times as long the slower of two must take before the faster one has won."""
    return max(math.exp(STANDARD_ERRORS * math.hypot(error, other)), 1 + SMALLEST_LEAD)


class Lead(NamedTuple):
    """How many times as long the slower takes, how many times the noise asks for, and whether it was told by launch."""

    ratio: float
    needed: float
    paired: bool

    @property
    def won(self) -> bool:
        return self.ratio > self.needed


def compare(first: Any, second: Any) -> Lead:
    """The lead of the row ``first`` of ``ranked`` over ``second``: launch by launch where every launch has its partner.

    Two ratios in one launch differ by the noise of both; their own spread counts beside it, and never makes it smaller.
    """
    one, other = _launches(first), _launches(second)
    count = len(one)
    if count < 2 or count != first.launch_count or not _together(one, other):
        return Lead(second.median_s / first.median_s, needed_ratio(first.error, second.error), False)
    logs = [other[i][1] - one[i][1] for i in one]
    pooled = 2 * first.paired_sigma**2
    blended = (PRIOR_LAUNCHES * pooled + (count - 1) * float(np.var(logs, ddof=1))) / (PRIOR_LAUNCHES + count - 1)
    error = math.sqrt(max(pooled, blended) * _median_variance(count))
    return Lead(math.exp(float(np.median(logs))), needed_ratio(error, 0.0), True)


@_once_per_frame
def winners(frame: pd.DataFrame) -> pd.DataFrame:
    """The fastest algorithm on every (machine, threads, cold, spec), in the order of the records.

    Columns beside the case and its spec: ``winner`` (the fastest measured), ``tie`` and ``tied`` (all that the noise
    cannot tell from it, itself first), ``peer``, ``median_s``, ``launch_count``, ``gflops``, ``runner_up``, ``margin``
    (runner-up's time over the winner's, NaN when alone), ``lead`` and ``needed`` (the ratio to the first of the tied, else
    to the runner-up, as it was judged, and the ratio that the noise asks for), ``contenders``, ``best_own``, ``best_peer``
    and ``own_over_peer`` (best peer's time over our best's).
    """
    columns = [*CASE, "size", "kernel", "side", "kernel_side", "sweep", "winner", "tie", "tied", "peer", "median_s",
               "launch_count", "gflops", "runner_up", "margin", "lead", "needed", "contenders", "best_own", "best_peer",
               "own_over_peer"]  # fmt: skip
    rows = []
    for _, group in ranked(frame).groupby(CASE, sort=False):
        contenders = list(tuples(group))
        first, second = contenders[0], contenders[1] if len(contenders) > 1 else None
        tied = [c for c in contenders[1:] if not compare(first, c).won]
        rival = tied[0] if tied else second
        judged = compare(first, rival) if rival else None
        own = next((c for c in contenders if c.family != "peer"), None)
        peer = next((c for c in contenders if c.family == "peer"), None)
        rows.append(
            {
                **{name: getattr(first, name) for name in [*columns[:9], "median_s", "launch_count", "gflops"]},
                "winner": first.algorithm,
                "tie": bool(tied),
                "tied": (first.algorithm, *(c.algorithm for c in tied)),
                "peer": first.family == "peer",
                "runner_up": second.algorithm if second else "",
                "margin": second.median_s / first.median_s if second else math.nan,
                "lead": judged.ratio if judged else math.nan,
                "needed": judged.needed if judged else math.nan,
                "contenders": len(contenders),
                "best_own": own.algorithm if own else "",
                "best_peer": peer.algorithm if peer else "",
                "own_over_peer": peer.median_s / own.median_s if own and peer else math.nan,
            }
        )
    return _as_recorded(pd.DataFrame(rows, columns=columns), frame)


@_once_per_frame
def auto_results(frame: pd.DataFrame) -> pd.DataFrame:
    """What ``auto`` chose on every spec and what that cost.

    ``best`` is the fastest of our own algorithms (auto runs no peer), ``ratio`` auto's time over its time, ``behind``
    whether that is beyond the noise, ``chosen_ratio`` auto's time over that of the same algorithm called by its name:
    identical code, so its distance from 1 is noise.
    """
    columns = [*CASE, "size", "kernel", "chosen", "auto_s", "best", "best_s", "ratio", "behind", "chosen_ratio"]
    rows = []
    for _, group in ranked(frame, with_auto=True).groupby(CASE, sort=False):
        own = [c for c in tuples(group) if c.family not in ("peer", "auto") and c.competes]
        times = {c.algorithm: c.median_s for c in own}
        for auto in tuples(group[group["chosen"] != ""]):
            best = own[0] if own else None
            ratio = auto.median_s / best.median_s if best else math.nan
            rows.append(
                {
                    **{name: getattr(auto, name) for name in [*CASE, "size", "kernel", "chosen"]},
                    "auto_s": auto.median_s,
                    "best": best.algorithm if best else "",
                    "best_s": best.median_s if best else math.nan,
                    "ratio": ratio,
                    "behind": bool(best and auto.chosen != best.algorithm and compare(best, auto).won),
                    "chosen_ratio": auto.median_s / times.get(auto.chosen, math.nan),
                }
            )
    return _as_recorded(pd.DataFrame(rows, columns=columns), frame)


def _as_recorded(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Cases in the order in which they were first measured."""
    order = {case: index for index, case in enumerate(dict.fromkeys(frame[CASE].itertuples(index=False, name=None)))}
    places = [order[case] for case in table[CASE].itertuples(index=False, name=None)]
    return table.iloc[np.argsort(places, kind="stable")].reset_index(drop=True)


def speed_ups(frame: pd.DataFrame, baseline: Sequence[str] = ()) -> tuple[pd.DataFrame, str]:
    """Times of the baseline over everybody's, and words for the baseline.

    Parameters
    ----------
    baseline : sequence of str
        The baseline is the best of these on each spec. Default: all peers; without one ``direct_shift``; where that is
        missing on a spec, whoever is slowest on each.

    Returns
    -------
    table : DataFrame
        ``ranked`` with ``baseline``, ``baseline_s`` and ``speed_up``, only the specs that the baseline was measured on.
    label : str

    Raises
    ------
    ValueError
        When a named algorithm has no measured time.
    """
    rows = ranked(frame, with_auto=True)
    names = set(rows["algorithm"])
    if unknown := [name for name in baseline if name not in names]:
        advice = meant(unknown[0], names, f"choose from {', '.join(sorted(names)) or 'nothing yet'}")
        raise ValueError(f"baseline {unknown[0]!r} was not measured: {advice}")
    if baseline:
        chosen, label = list(dict.fromkeys(baseline)), " or ".join(dict.fromkeys(baseline))
    elif peers := sorted(set(rows.loc[rows["family"] == "peer", "algorithm"])):
        chosen, label = peers, f"best of {len(peers)} peers" if len(peers) > 1 else peers[0]
    elif rows.loc[rows["algorithm"] == "direct_shift", "spec"].nunique() == rows["spec"].nunique() > 0:
        chosen, label = ["direct_shift"], "direct_shift"
    else:
        chosen, label = [], "the slowest"
    if len(chosen) > 1 and baseline:
        label = f"best of {', '.join(chosen)}"
    base = rows[rows["algorithm"].isin(chosen)].drop_duplicates(CASE) if chosen else rows.drop_duplicates(CASE, keep="last")
    base = base[[*CASE, "algorithm", "median_s"]]
    base = base.rename(columns={"algorithm": "baseline", "median_s": "baseline_s"})
    table = rows.merge(base, on=CASE)
    table["speed_up"] = table["baseline_s"] / table["median_s"]
    return table, label


def noise_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """``noise`` as plain dicts: machine, threads, cold, the figures, ``sigma`` and the sentence."""
    return [
        {**dict(zip(GROUP, key, strict=True)), **asdict(value), "sigma": value.sigma, "text": value.text()}
        for key, value in noise(frame).items()
    ]
