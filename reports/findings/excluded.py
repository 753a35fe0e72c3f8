"""What has no time, and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

SEVERITY = {"wrong": 0, "crashed": 1, "error": 2, "timeout": 3}


@dataclass(frozen=True)
class Excluded:
    """Algorithms that have no time on the same specs for the same reason.

    Attributes
    ----------
    algorithms : list of str
    where : dict
        The parts of the case that the records are told apart by.
    status, reason : str
        The reason as the first of the specs has it.
    several : bool
        Whether the figures in it differ from spec to spec.
    specs : list of str
    """

    algorithms: list[str]
    where: dict[str, Any]
    status: str
    reason: str
    several: bool
    specs: list[str]


def excluded(frame: pd.DataFrame, apart: Sequence[str]) -> list[Excluded]:
    """The gravest first; those that differ in a column of ``apart`` are never one,
    reasons that differ in figures are.
    """
    failed = frame[(frame["status"] != "ok") & ~frame["superseded"].astype(bool)]
    failed = failed.assign(kind=[re.sub(r"\d[\d.,]*", "#", reason) for reason in failed["reason"]])
    found: dict[tuple[Any, ...], Excluded] = {}
    for _, group in failed.groupby([*apart, "status", "algorithm", "kind"], sort=False):
        first, specs = group.iloc[0], list(dict.fromkeys(group["spec"]))
        where, several = {name: first[name] for name in apart}, group["reason"].nunique() > 1
        one = Excluded([], where, first["status"], first["reason"], several, specs)
        found.setdefault((*where.values(), one.status, one.reason, several, *specs), one).algorithms.append(
            first["algorithm"]
        )
    return sorted(found.values(), key=lambda one: SEVERITY.get(one.status, 9))
