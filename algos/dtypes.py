"""The types of elements: their names, kinds and limits, bfloat16 of ml_dtypes among them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)  # NumPy calls its kind V, and finfo does not know it
FLOAT_TYPES = ("float16", "bfloat16", "float32", "float64")
COMPLEX_TYPES = ("complex64", "complex128")
INTEGER_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
# Two or four numbers side by side, of parts of problems only: see ``algos/lower/pairs.py``
PAIRS, QUADS = "int16x2", "int8x4>int32"
BRAINS = ("bfloat16x2>bfloat16", "bfloat16x2>float32")
HOLDING = {PAIRS: np.int32, "bfloat16x2": np.uint32, "int8x4": np.uint32}  # types of arrays of them
TYPES = FLOAT_TYPES + COMPLEX_TYPES + INTEGER_TYPES


def named(name: str) -> np.dtype:
    """The type of arrays of that name; of pairs, that which holds both."""
    return np.dtype(HOLDING.get(name, name))


def kind(dtype: np.dtype) -> str:
    """"f", "c", "i" or "u"; NumPy's letter for what is no type of ours."""
    return "f" if dtype == BFLOAT16 else dtype.kind


def whole(dtype: np.dtype) -> bool:
    """Whether it holds whole numbers."""
    return dtype.kind in "iu"


def limits(dtype: np.dtype) -> Any:
    """``finfo`` of a float type, or of the parts of a complex one."""
    return ml_dtypes.finfo(real(dtype))


def real(dtype: np.dtype) -> np.dtype:
    """Of the real part."""
    return np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype


def accumulator(dtype: np.dtype) -> np.dtype:
    """In which sums of floats are taken: float32 at least."""
    return np.dtype(np.float32) if kind(dtype) == "f" and dtype.itemsize < 4 else dtype


def promoted(*dtypes: np.dtype) -> np.dtype:
    """NumPy's common type; of float16 and bfloat16, which have none there, float32.

    Raises
    ------
    ValueError
        For whole numbers that no one integer type holds, which NumPy would make floats.
    """
    try:
        found = np.result_type(*dtypes)
        if all(map(whole, dtypes)) and not whole(found):
            raise ValueError(f"no integer type holds {' and '.join(map(str, dtypes))}: convert one of them")
        return found
    except np.exceptions.DTypePromotionError:
        return np.result_type(*(accumulator(dtype) for dtype in dtypes))
