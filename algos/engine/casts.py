"""From one type of elements to another, all at once."""

from __future__ import annotations

from typing import Any

import numpy as np


def convert(target: Any, a: Any) -> None:
    """target[...] = a, rounded to nearest where the type is narrower."""
    target[...] = a


def store_whole(y: Any, result: Any) -> None:
    """y[...] = whole numbers that floats hold.

    Raises
    ------
    OverflowError
        For one that does not fit the type of y.
    """
    info = np.iinfo(y.dtype)
    for value in (int(result.min()), int(result.max())) if result.size else ():
        if not info.min <= value <= info.max:
            raise OverflowError(beyond(value, y.dtype))
    y[...] = result


def beyond(value: int, dtype: np.dtype) -> str:
    """What to do about a result that does not fit."""
    wider = "int32" if dtype.itemsize < 4 else "int64"
    return f"a sum of {value} does not fit {dtype}: give the spec a wider result, such as {dtype}>{wider}"
