"""Whom to use for what: a favourite for each kind of problem, and who stands out among many."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports.findings.frame import tuples

MOST_LINES = 8  # that stand out in a picture
# Columns that tell the kind of a problem
DECIDING = ["groups", "channels", "stride", "dtype", "rank", "direction", "kernel_side", "kernel"]
Kind = tuple[str, float, str]  # words for the sort of problem, the kernel's side, the kernel


def favourites(best: pd.DataFrame, rows: pd.DataFrame) -> dict[Kind, tuple[str, float]]:
    """Whom to use for each kind of problem, from ``winners`` and what was
    ``ranked``, and the most that it may lose.
    """
    kinds = rows[["spec", *DECIDING]].drop_duplicates("spec").set_index("spec").apply(_kind, axis=1)
    times = rows[["spec", "algorithm", "median_s"]]
    tied = {row.spec: row.tied for row in tuples(best)}
    chosen: dict[Kind, tuple[str, float]] = {}
    for kind in dict.fromkeys(kinds):
        specs = list(kinds.index[kinds == kind])
        chosen[kind] = _favourite(
            times[times["spec"].isin(specs)], [tied[spec] for spec in specs if spec in tied]
        )
    return chosen


def _kind(row: Any) -> Kind:
    """What advice is given for: words for the sort of problem, the kernel's side, the kernel."""
    depthwise = row["groups"] == row["channels"] > 1
    strided = set(str(row["stride"]).split("x")) - {"1"}
    words = " depthwise" if depthwise else " grouped" if row["groups"] > 1 else ""
    words += f" with stride {row['stride']}" if strided else ""
    words += f" in {row['dtype']}" if row["dtype"] not in ("float32", math.nan) else ""
    words += f" of rank {row['rank']:g}" if row["rank"] == row["rank"] else ""
    words += f" ({row['direction'].replace('_', ' ')})" if row["direction"] not in ("forward", "") else ""
    return words, float(row["kernel_side"]), str(row["kernel"])


def _favourite(rows: pd.DataFrame, tied: Sequence[tuple[str, ...]]) -> tuple[str, float]:
    """Whoever is nowhere surely slower, else whoever loses least; and the most
    that it may lose, 1 for the former.
    """
    table = rows.pivot_table(index="spec", columns="algorithm", values="median_s", aggfunc="min")
    losses = table.div(table.min(axis=1), axis=0).dropna(axis=1)
    if losses.empty:
        losses = table.div(table.min(axis=1), axis=0).fillna(np.inf)
    means = np.log(losses).mean().sort_values(kind="stable")
    safe = [name for name in means.index if all(name in names for names in tied)]
    name = str((safe or list(means.index))[0])
    return name, 1.0 if safe else float(losses[name].max())


def runs(chosen: Mapping[Kind, tuple[str, float]]) -> list[tuple[str, list[Kind]]]:
    """Neighbouring kernels of one sort of problem with the same favourite, smallest first."""
    runs: list[tuple[str, list[Kind]]] = []
    for kind in sorted(chosen):
        if runs and runs[-1][0] == kind[0] and chosen[runs[-1][1][-1]][0] == chosen[kind][0]:
            runs[-1][1].append(kind)
        else:
            runs.append((kind[0], [kind]))
    return runs


def standouts(rows: pd.DataFrame, best: pd.DataFrame, most: int = MOST_LINES) -> list[str]:
    """Whom a picture of ``rows`` is about, the most important first: auto, winners, who may be as fast, the
    best peers, the nearest.
    """
    specs = set(rows["spec"])
    best = best[best["spec"].isin(specs)]
    present = dict.fromkeys(rows["algorithm"])
    won = [name for name, _ in Counter(best["winner"]).most_common()]
    tied = [name for name, _ in Counter(name for names in best["tied"] for name in names).most_common()]
    fastest = rows.groupby("spec")["median_s"].min()
    losses = rows[["algorithm"]].assign(loss=np.log(rows["median_s"] / rows["spec"].map(fastest)))
    loss = losses.groupby("algorithm")["loss"].agg(["mean", "size"])
    near = list(loss[loss["size"] >= loss["size"].max() / 2].sort_values("mean", kind="stable").index)
    peers = set(rows.loc[rows["family"] == "peer", "algorithm"])
    some = [name for name in ("auto",) if name in present]
    order = [*some, *won[: most - 3], *[name for name in near if name in peers][:1], *won, *tied, *near]
    return [name for name in dict.fromkeys(order) if name in present][:most]
