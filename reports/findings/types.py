"""The same problem in several types of elements: what each costs, and how far off it is."""

from __future__ import annotations

import pandas as pd

from algos.dtypes import TYPES


def in_types(rows: pd.DataFrame) -> list[str]:
    """Problems, as their text is without type and zero points, that were measured in several types."""
    kinds = _known(rows)[["problem", "dtype"]].drop_duplicates()
    many = set(kinds.loc[kinds.duplicated("problem"), "problem"])
    return [str(problem) for problem in kinds["problem"].drop_duplicates() if problem in many]


def typed(rows: pd.DataFrame, problem: str) -> pd.DataFrame:
    """What is known of one problem in each type.

    Columns ``dtype``, ``algorithm``, ``median_s``, ``error``: the largest, over a typical result, which is
    the root of the products that it sums, as operands are standard normals; 0 where all is exact.
    ``fastest`` is true for the fastest algorithm of each type.
    """
    known = _known(rows)
    part = known[known["problem"] == problem]
    table = part[["dtype", "algorithm", "median_s"]].assign(error=part["max_error"] / part["typical"])
    table["fastest"] = ~table.sort_values("median_s").duplicated("dtype")
    return table


def _known(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a time and an error, and what of them tells types apart."""
    narrow = rows[["problem", "dtype", "algorithm", "median_s", "max_error", "typical"]]
    return narrow[narrow["max_error"].notna() & (narrow["median_s"] > 0)]


def in_order(dtypes: pd.Series) -> list[str]:
    """Each type once: those of one name as they are listed, then mixed ones."""
    return sorted(set(dtypes), key=lambda name: (TYPES.index(name) if name in TYPES else len(TYPES), name))
