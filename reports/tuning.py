"""The table of tunables that were tried."""

from __future__ import annotations

from bench.text import seconds
from reports.cells import Cell, Table
from reports.findings.tunings import Tuning
from reports.style import ratio_text


def tunings_table(found: list[Tuning]) -> Table:
    """For the terminal."""
    columns = ("spec", "threads", "algorithm", "its own tunables", "best others", "lead", "interval",
               "from now on", "tunables")  # fmt: skip
    rows = tuple(
        tuple(map(Cell.of, (
            t.case["spec"], t.case["threads"], t.algorithm, seconds(t.own_s), seconds(t.tuned_s),
            ratio_text(t.lead.ratio), f"{t.lead.low:.3f} to {t.lead.high:.3f}",
            "tuned" if t.won else "as before", t.tunables,
        )))
        for t in found
    )  # fmt: skip
    figures = frozenset(("threads", "its own tunables", "best others", "lead", "interval"))
    return Table(
        columns, rows, figures, "No algorithm that was measured offers other tunables on these specs."
    )
