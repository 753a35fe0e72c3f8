"""A frame as CSV that no spreadsheet takes for formulas, piece by piece."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import repeat
from typing import Any

import pandas as pd

from reports.cells import PART
from reports.style import clean

_HARMLESS = re.compile(r"[0-9A-Za-z][\w.:/+-]*(?: [\w.:/+-]+)*", re.ASCII)  # as it stands, as most text is
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
    yield f"{','.join(map(_quoted, frame.columns))}\n"
    for start in range(0, len(frame), PART):
        part = frame.iloc[start : start + PART]
        rows = zip(*(_texts(part[name]) for name in part), strict=True)
        yield "".join([f"{','.join(row)}\n" for row in rows])


def _texts(column: pd.Series) -> Iterable[str]:
    """Its cells as they stand in the file, text that occurs again and again made so once."""
    if column.dtype.kind in "iub":
        return map(str, column.tolist())
    if column.dtype.kind == "f":  # more digits than a clock gives, bytes to a terabyte
        if column.isna().all():
            return repeat("", len(column))
        return ["" if not math.isfinite(value) else f"{value:.12g}" for value in column.tolist()]
    return map(lru_cache(maxsize=1024)(_quoted), column.tolist())


def _quoted(value: Any) -> str:
    """Harmless, and as the CSV dialect has it within a row."""
    if isinstance(value, str) and _HARMLESS.fullmatch(value):
        return value
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([csv_cell(value), ""])
    return out.getvalue()[:-1]
