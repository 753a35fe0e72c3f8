"""Activations in the words that NumPy and its like share: what ``epilogue.py`` compiles, for any array."""

from __future__ import annotations

from typing import Any

import numpy as np

from algos.arrays import module_of


def activated(y: Any, activation: str) -> Any:
    """In place."""
    xp = module_of(y)
    if activation in ("relu", "relu6"):
        xp.maximum(y, 0, out=y)
    if activation == "relu6":
        xp.minimum(y, 6, out=y)
    if activation in ("sigmoid", "silu"):
        gate = xp.negative(y)
        with np.errstate(over="ignore", invalid="ignore"):  # 1 / (1 + inf) is right; silu(-inf) is NaN
            xp.exp(gate, out=gate)
            gate += 1
            if activation == "sigmoid":
                xp.divide(1, gate, out=y)
            else:
                y /= gate
    return y
