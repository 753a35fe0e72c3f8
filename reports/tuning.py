"""Which other tunables beat an algorithm's own on a spec, beyond the noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from bench.noise import Ratio
from bench.text import seconds
from reports.frame import CASE, tuples
from reports.ranking import compare, ranked
from reports.style import ratio_text
from reports.tables import Cell, Table


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
    """One for each case and algorithm that was measured with its ``own`` tunables (by name, JSON text) and with others."""
    found = []
    for (*case, name), group in ranked(frame, every=True).groupby([*CASE, "algorithm"], sort=False):
        rows = list(tuples(group))  # the fastest first
        default = next((row for row in rows if row.tunables == own.get(name)), None)
        other = next((row for row in rows if row.tunables != own.get(name)), None)
        if default and other:
            where = dict(zip(CASE, case, strict=True))
            lead = compare(frame, other, default)
            found.append(Tuning(where, name, default.median_s, other.tunables, other.median_s, lead))
    return found


def tunings_table(found: list[Tuning]) -> Table:
    """For the terminal."""
    columns = ("spec", "threads", "algorithm", "its own tunables", "best others", "lead", "interval", "from now on", "tunables")
    rows = tuple(
        tuple(map(Cell.of, (
            t.case["spec"], t.case["threads"], t.algorithm, seconds(t.own_s), seconds(t.tuned_s), ratio_text(t.lead.ratio),
            f"{t.lead.low:.3f} to {t.lead.high:.3f}", "tuned" if t.won else "as before", t.tunables,
        )))
        for t in found
    )  # fmt: skip
    figures = frozenset(("threads", "its own tunables", "best others", "lead", "interval"))
    return Table(columns, rows, figures, "No algorithm that was measured offers other tunables on these specs.")
