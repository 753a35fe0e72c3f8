"""How a race stands while it is measured: who is surely behind, and whether those left are known well enough.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.noise import CLEAR
from bench.turns import Taken, Turns, differences

BEHIND, RACED = 4.0, 0.02  # standard errors that make a rival surely behind, and what launches may differ by


class Standing(NamedTuple):
    """Who is surely behind, and whether those left are known to within the error asked for."""

    behind: frozenset[int]
    settled: bool


def standing(turns: Sequence[Mapping[int, float]], error: float) -> Standing:
    """Judge rivals by the turns that they took so far in one launch: round -> logarithm of seconds.

    Parameters
    ----------
    turns
        Of each rival; one without a turn is left out of the race.
    error : float
        Standard error of the ratio to the fastest at which a rival needs no more turns.
    """
    packed = {i: Turns([Taken("race", own)]) for i, own in enumerate(turns) if own}
    if not packed:
        return Standing(frozenset(), True)
    first = min(packed, key=lambda i: statistics.median(packed[i].logs))
    rivals = [i for i in packed if i != first]
    found = differences([(packed[first], packed[i]) for i in rivals], CLEAR)
    behind, settled = set(), True
    for pair, value, variance, _ in zip(*(column.tolist() for column in found), strict=True):
        if math.isnan(variance):
            settled = False
        elif value > BEHIND * math.hypot(math.sqrt(variance), RACED):
            behind.add(rivals[pair])
        else:
            settled &= math.sqrt(variance) <= error
    return Standing(frozenset(behind), settled)
