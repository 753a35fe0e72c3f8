"""The same problem in several types of elements: what each costs, and how far off it is."""

from __future__ import annotations

import pandas as pd

from algos.dtypes import TYPES


def typed(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By problem, as its text is without type and zero points: rows of those that were measured in several
    types.

    Columns ``dtype``, ``algorithm``, ``median_s``, ``error``: the largest, over a typical result, which is
    the root of the products that it sums, as operands are standard normals; 0 where all is exact.
    ``fastest`` is true for the fastest algorithm of each type.
    """
    known = rows[rows["max_error"].notna() & (rows["median_s"] > 0)]
    found: dict[str, pd.DataFrame] = {}
    for problem, part in known.groupby("problem", sort=False):
        if part["dtype"].nunique() > 1:
            table = part[["dtype", "algorithm", "median_s"]].assign(error=part["max_error"] / part["typical"])
            table["fastest"] = ~table.sort_values("median_s").duplicated("dtype")
            found[str(problem)] = table
    return found


def in_order(dtypes: pd.Series) -> list[str]:
    """Each type once: those of one name as they are listed, then mixed ones."""
    return sorted(set(dtypes), key=lambda name: (TYPES.index(name) if name in TYPES else len(TYPES), name))
