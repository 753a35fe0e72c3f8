"""A frame as CSV that no spreadsheet takes for formulas, piece by piece."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from reports.cells import PART
from reports.style import clean

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def csv_cell(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets a leading apostrophe; numbers stay as they are."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if not isinstance(value, str):
        return value
    risky = value[:1] in ("\t", "\r", "\n") or value.lstrip()[:1] in ("=", "+", "-", "@")
    text = clean(value)
    return f"'{text}" if risky and not _NUMBER.fullmatch(text) else text


def to_csv(frame: pd.DataFrame) -> str:
    """The columns of the frame, times in seconds, every text cell harmless."""
    return "".join(csv_parts(frame))


def csv_parts(frame: pd.DataFrame) -> Iterator[str]:
    """``to_csv`` piece by piece."""
    # As the noise model has them; their medians are a column
    frame = frame.drop(columns="launches", errors="ignore")
    yield from _csv_lines([list(frame.columns)])
    for start in range(0, len(frame), PART):
        part = frame.iloc[start : start + PART]
        yield from _csv_lines(zip(*(_csv_column(part[name]) for name in part), strict=True))


def _csv_lines(rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    yield out.getvalue()


def _csv_column(column: pd.Series) -> Iterable[Any]:
    """Its values made harmless: whole numbers are, and of what occurs again and again each is looked at once.
    """
    if column.dtype.kind in "iub":
        return map(str, column.tolist())
    if column.dtype.kind == "O":
        return map(lru_cache(maxsize=1024)(csv_cell), column.tolist())
    values, which = np.unique(column.to_numpy(), return_inverse=True)
    if 2 * len(values) > len(column):
        return map(csv_cell, column.tolist())
    return np.array([str(csv_cell(value)) for value in values.tolist()], object)[which].tolist()
