"""Who wins, by how much, and whether the noise could explain it: findings of ``bench.noise``, spec by spec.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import pandas as pd

from algos.grammar import meant
from bench.noise import Model, Ratio, decisions
from reports.findings.frame import GROUP, PROBLEM, groups, tuples

OF_SPEED = ("size", "kernel", "side", "kernel_side", "sweep", "direction", "algorithm", "family", "median_s")


def _once_per_frame(function: Callable[..., Any]) -> Any:
    """Remember what ``function`` gave for a frame while the frame lives: half a dozen tables and pictures ask
    for it.

    A frame is not changed after ``to_frame``, and neither is a result.
    """
    kept: dict[tuple[Any, ...], tuple[weakref.ref, Any]] = {}

    @wraps(function)
    def remembered(frame: pd.DataFrame, *arguments: Any, **options: Any) -> Any:
        key = (id(frame), arguments, tuple(options.items()))
        if key not in kept or kept[key][0]() is not frame:
            kept[key] = (
                weakref.ref(frame, lambda _: kept.pop(key, None)),
                function(frame, *arguments, **options),
            )
        return kept[key][1]

    return remembered


@_once_per_frame
def models(frame: pd.DataFrame) -> dict[tuple[Any, ...], Model]:
    """The noise of every (machine, threads, cold) in the frame."""
    measured = frame[
        (frame["status"] == "ok") & (frame["origin"] == "convbench") & (frame["launch_count"] > 0)
    ]
    current = measured[~measured["superseded"]]
    return {
        key: Model.of([list(part) for _, part in group.groupby("spec", sort=False)["launches"]])
        for key, group in current.groupby(GROUP, sort=False)
    }


@_once_per_frame
def ranked(frame: pd.DataFrame, with_auto: bool = False, every: bool = False) -> pd.DataFrame:
    """The rows that compete, fastest first, of each algorithm the best tunables or ``every``.

    What ``auto`` ran competes under the name of what it chose, where that was not measured by its name.
    """
    auto = (
        (frame["chosen"] != "")
        & (frame["status"] == "ok")
        & ~frame["superseded"]
        & (frame["launch_count"] > 0)
    )
    auto &= frame["origin"] == "convbench"
    if with_auto and not auto.any():
        return ranked(frame, every=True) if every else ranked(frame)
    alike = [*PROBLEM, "algorithm", *(["tunables"] if every else [])]
    # Of a large frame all columns are copied once, when it is known which rows these are, and in what order
    names = [*PROBLEM, "algorithm", "tunables", "median_s", "chosen", "competes"]
    keys = frame[names].assign(at=np.arange(len(frame)))
    rows, unnamed = keys[keys["competes"]], keys[auto]
    named = set(rows[[*PROBLEM, "algorithm"]].itertuples(index=False, name=None))
    chosen = unnamed["chosen"].map(lambda name: name.partition(":")[0])
    cases = unnamed[PROBLEM].assign(algorithm=chosen).itertuples(index=False, name=None)
    new = np.array([case not in named for case in cases], bool)
    stand_ins = unnamed[new].assign(algorithm=chosen[new], chosen="", competes=True)
    rows = pd.concat([rows, stand_ins, unnamed] if with_auto else [rows, stand_ins])
    rows = rows.sort_values(["median_s", "algorithm"], kind="stable").drop_duplicates(alike)
    found = frame.iloc[rows["at"].to_numpy()]
    return found.assign(**{name: rows[name].array for name in ("algorithm", "chosen", "competes")})


def compare(frame: pd.DataFrame, first: Any, second: Any) -> Ratio:
    """The row ``second`` of ``ranked(frame)`` against ``first``: above 1, the first is faster."""
    return _model(frame, first).compare(first.launches, second.launches)


def _model(frame: pd.DataFrame, row: Any) -> Model:
    return models(frame)[row.machine, row.threads, row.cold]


@_once_per_frame
def winners(frame: pd.DataFrame) -> pd.DataFrame:
    """The fastest algorithm on every (machine, threads, cold, spec), in the order of the records.

    Columns beside the case, its spec and ``direction``: ``winner`` (the fastest measured), ``verdict``
    ("winner" where every rival is surely slower, "same" where those that are not are shown within 5% of it,
    "undecided", "alone" without rivals; a table's together keep the rate of false discoveries), ``tie`` (the
    second and third of them), ``tied`` (who is not surely slower, the winner first), ``peer``, ``median_s``,
    ``launch_count``, ``gflops``, ``runner_up``, ``margin`` (its time over the winner's, NaN when alone),
    ``ratio``, ``low``, ``high`` (the nearest rival's time over the winner's as it was judged, with its 98%
    interval), ``needed`` (launches that would decide what is undecided), ``contenders``, ``best_own``,
    ``best_peer`` and ``own_over_peer`` (best peer's time over our best's).
    """
    columns = [*PROBLEM, "size", "kernel", "side", "kernel_side", "sweep", "direction", "winner", "verdict",
               "tie", "tied", "peer", "median_s", "launch_count", "gflops", "runner_up", "margin", "ratio",
               "low", "high", "needed", "contenders", "best_own", "best_peer", "own_over_peer"]  # fmt: skip
    cases = [rows for _, rows in groups(ranked(frame), PROBLEM)]
    rows = []
    for decision in decisions(cases, lambda row: row.launches, model=lambda row: _model(frame, row)):
        first, verdict, rivals, left = decision.first, decision.verdict, decision.rivals, decision.left
        contenders = [first, *(row for row, *_ in rivals)]
        nearest = (left or rivals)[0][1] if rivals else None
        own = next((c for c in contenders if c.family != "peer"), None)
        peer = next((c for c in contenders if c.family == "peer"), None)
        model = _model(frame, first)
        rows.append(
            {
                **{
                    name: getattr(first, name)
                    for name in [*columns[:10], "median_s", "launch_count", "gflops"]
                },
                "winner": first.algorithm,
                "verdict": verdict,
                "tie": verdict in ("same", "undecided"),
                "tied": (first.algorithm, *(row.algorithm for row, _ in left)),
                "peer": first.family == "peer",
                "runner_up": rivals[0][0].algorithm if rivals else "",
                "margin": rivals[0][0].median_s / first.median_s if rivals else math.nan,
                "ratio": nearest.ratio if nearest else math.nan,
                "low": nearest.low if nearest else math.nan,
                "high": nearest.high if nearest else math.nan,
                "needed": float(max(model.launches_for(r) for _, r in left))
                if verdict == "undecided"
                else math.nan,
                "contenders": len(contenders),
                "best_own": own.algorithm if own else "",
                "best_peer": peer.algorithm if peer else "",
                "own_over_peer": peer.median_s / own.median_s if own and peer else math.nan,
            }
        )
    return as_recorded(pd.DataFrame(rows, columns=columns), frame)


@_once_per_frame
def auto_results(frame: pd.DataFrame) -> pd.DataFrame:
    """What ``auto`` chose on every spec and what that cost.

    ``best`` is the fastest of our own algorithms (auto runs no peer), ``ratio`` auto's time over its time,
    ``behind`` whether auto is surely slower, ``chosen_ratio`` auto's time over that of the same algorithm
    called by its name: identical code, so its distance from 1 is noise.
    """
    columns = [
        *PROBLEM,
        "size",
        "kernel",
        "chosen",
        "auto_s",
        "best",
        "best_s",
        "ratio",
        "behind",
        "chosen_ratio",
    ]
    rows, measured = [], ranked(frame)
    everything = ranked(frame, with_auto=True)
    autos = everything[everything["chosen"] != ""]
    measured = measured[measured["spec"].isin(autos["spec"])]
    cases = dict(groups(measured, PROBLEM))
    for auto in tuples(autos):
        own = [
            c
            for c in cases.get(tuple(getattr(auto, n) for n in PROBLEM), [])
            if c.family not in ("peer", "auto")
        ]
        best = own[0] if own else None
        times = {c.algorithm: c.median_s for c in own}
        judged = compare(frame, best, auto) if best else None
        rows.append(
            {
                **{name: getattr(auto, name) for name in [*PROBLEM, "size", "kernel", "chosen"]},
                "auto_s": auto.median_s,
                "best": best.algorithm if best else "",
                "best_s": best.median_s if best else math.nan,
                "ratio": judged.ratio if judged else math.nan,
                "behind": bool(
                    best and judged and auto.chosen != best.algorithm and judged.verdict == "slower"
                ),
                "chosen_ratio": auto.median_s / times.get(auto.chosen, math.nan),
            }
        )
    return as_recorded(pd.DataFrame(rows, columns=columns), frame)


def as_recorded(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Cases in the order in which they were first measured."""
    order = {
        case: index
        for index, case in enumerate(frame[PROBLEM].drop_duplicates().itertuples(index=False, name=None))
    }
    places = [order[case] for case in table[PROBLEM].itertuples(index=False, name=None)]
    return table.iloc[np.argsort(places, kind="stable")].reset_index(drop=True)


def speed_ups(frame: pd.DataFrame, baseline: Sequence[str] = ()) -> tuple[pd.DataFrame, str]:
    """Times of the baseline over everybody's, and words for the baseline.

    Parameters
    ----------
    baseline : sequence of str
        The baseline is the best of these on each spec. Default: all peers; without one ``direct_shift``;
        where that is missing on a spec, whoever is slowest on each.

    Returns
    -------
    table : DataFrame
        ``PROBLEM`` and ``OF_SPEED`` of ``ranked`` with ``baseline``, ``baseline_s`` and ``speed_up``, only
        the specs that the baseline was measured on.
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
    if chosen:
        base = rows[rows["algorithm"].isin(chosen)].drop_duplicates(PROBLEM)
    else:
        base = rows.drop_duplicates(PROBLEM, keep="last")
    base = base[[*PROBLEM, "algorithm", "median_s"]]
    base = base.rename(columns={"algorithm": "baseline", "median_s": "baseline_s"})
    table = rows[[*PROBLEM, *OF_SPEED]].merge(base, on=PROBLEM)
    table["speed_up"] = table["baseline_s"] / table["median_s"]
    return table, label


def noise_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """``models`` as plain dicts: machine, threads, cold, and the sentence."""
    return [
        {**dict(zip(GROUP, key, strict=True)), "text": model.text()} for key, model in models(frame).items()
    ]
