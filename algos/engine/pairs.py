"""Two whole numbers of 16 bits in one element of 32: what one instruction multiplies and adds."""

from __future__ import annotations

from typing import Any

import numpy as np


def paired(first: Any, second: Any) -> np.ndarray:
    """Whole numbers that 16 bits hold, side by side."""
    made = np.empty((*first.shape, 2), np.int16)
    made[..., 0], made[..., 1] = first, second
    return made.view(np.int32)[..., 0]


def unpaired(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the second numbers."""
    numbers = np.ascontiguousarray(pairs)[..., None].view(np.int16)
    return numbers[..., 0], numbers[..., 1]
