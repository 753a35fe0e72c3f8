"""Which other tunables beat an algorithm's own on a spec, beyond the noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from bench.noise import Ratio
from reports.findings.frame import PROBLEM, tuples
from reports.findings.ranking import compare, ranked


class Tuning(NamedTuple):
    """The fastest other tunables of an algorithm on a spec, as JSON text, and their lead over its own."""

    case: dict[str, object]
    algorithm: str
    own_s: float
    tunables: str
    tuned_s: float
    lead: Ratio

    @property
    def won(self) -> bool:
        return self.lead.verdict == "slower"  # its own tunables are


def tunings(frame: pd.DataFrame, own: Mapping[str, str]) -> list[Tuning]:
    """One for each case and algorithm that was measured with its ``own`` tunables
    (by name, JSON text) and with others.
    """
    found = []
    for (*case, name), group in ranked(frame, every=True).groupby([*PROBLEM, "algorithm"], sort=False):
        rows = list(tuples(group))  # the fastest first
        default = next((row for row in rows if row.tunables == own.get(name)), None)
        other = next((row for row in rows if row.tunables != own.get(name)), None)
        if default and other:
            where = dict(zip(PROBLEM, case, strict=True))
            lead = compare(frame, other, default)
            found.append(Tuning(where, name, default.median_s, other.tunables, other.median_s, lead))
    return found
