"""The table of ``versus``: our algorithms against somebody else's, a row for each kind of work."""

from __future__ import annotations

import math

import pandas as pd

from bench.text import seconds
from reports.cells import Cell, Table
from reports.findings.frame import GROUP, tuples
from reports.style import ratio_text

EMPTY = ("Nothing of the suite versus was measured with auto and a peer: "
         "`convbench run versus --algorithms auto,peers`.")  # fmt: skip


def versus_table(rows: pd.DataFrame) -> Table:
    """``versus`` for the reader; networks with their two sums."""
    varying = [name for name in GROUP if rows[name].nunique() > 1]
    cells = []
    for row in tuples(rows):
        network = math.isfinite(row.ours_s)
        shape = f"sum {seconds(row.ours_s)}, theirs {seconds(row.baseline_s)}" if network else row.worst_shape
        if row.worst_target == 1 > row.worst and row.worst * row.worst_noise >= 1:
            shape += ", within noise"
        verdict = (row.met or "-") + (", so far" if row.met and row.specs < row.of else "")
        cells.append(
            {
                "work": row.work,
                **{name: getattr(row, name) for name in varying},
                "against": row.baseline,
                "specs": row.specs if row.specs == row.of else f"{row.specs} of {row.of}",
                "ratio": _ratio(row.mean),
                "target": _ratio(row.target),
                "worst": _ratio(math.nan if network else row.worst),
                "at least": _ratio(row.worst_target),
                "worst shape": shape or "-",
                "met": f"{verdict}; {row.note}" if row.note else verdict,
            }
        )
    columns = tuple(cells[0]) if cells else ()
    figures = frozenset((*GROUP, "specs", "ratio", "target", "worst", "at least"))
    return Table(columns, tuple(tuple(Cell.of(v) for v in cell.values()) for cell in cells), figures, EMPTY)


def _ratio(value: float) -> Cell:
    return Cell(ratio_text(value), value) if math.isfinite(value) else Cell("-", math.inf)


def versus_text(rows: pd.DataFrame) -> str:
    """The table with its heading, for a terminal."""
    if rows.empty:
        return f"versus: {EMPTY}"
    counts = sorted(set(rows["threads"]))
    threads = f"{', '.join(map(str, counts))} thread{'s' if counts != [1] else ''}"
    heading = f"versus, {threads}: the others' time over that of auto, above 1x is faster"
    return f"{heading}\n\n{versus_table(rows).text()}"
