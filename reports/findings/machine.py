"""What the machine allows: its measured peaks, and what more threads gain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd


def peak(about: dict[str, Any], kind: str, name: str, threads: int) -> float | None:
    """A measured peak of a machine's description, or None.

    Parameters
    ----------
    about : dict
        The description; ``peaks`` within it is as ``bench.peaks`` makes it, or absent, or anything at all.
    kind, name : str
        ``flops_per_s`` of a dtype, or ``bytes_per_s`` of a cache level.
    threads : int
        Between one and all cores, what so many times one thread reach, at most what all reach together.
    """
    found: Any = about.get("peaks")
    for key in (kind, name):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return None
    rates = {
        int(k): v
        for k, v in found.items()
        if str(k).isdecimal() and isinstance(v, int | float) and 0 < v < math.inf
    }
    if threads in rates:
        return float(rates[threads])
    return float(min(threads * rates[1], max(rates.values()))) if 1 in rates else None


def gains(by_threads: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """Rows (algorithm, spec, flops, threads, gain) of what was measured with the
    first number of threads and others.
    """
    wanted = ["algorithm", "spec", "flops", "median_s"]
    (_, base), *others = by_threads.items()
    first = base[base["device"] == "cpu"][wanted]
    tables = []
    for threads, rows in others:
        both = first.merge(rows[wanted[:2] + wanted[3:]], on=wanted[:2], suffixes=("", "_many"))
        tables.append(both.assign(threads=threads, gain=both["median_s"] / both["median_s_many"]))
    return (
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*wanted, "threads", "gain"])
    )
