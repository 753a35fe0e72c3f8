"""Which shape of the microkernels is the fastest on this machine, of the candidates for its vectors.

Each has a process of its own, told by ``CONVBENCH_SIMD``; with all code compiled they take turns on a few
layers. The first candidate, which ships, stays unless another is surely faster. ``convbench calibrate`` asks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial

from algos.engine.target import FILE_NAME, Shape, candidates, simd
from algos.host import machine_id
from algos.wisdom import keep_rows, rows_of
from bench.placed import Process

# Both microkernels, where they are most of the time
CASES = (
    ("direct_channels", "1x64x28x28,64x64x3x3,p1"),
    ("direct_channels", "1x512x7x7,256x512x1x1"),
    ("direct_pixels", "1x256x28x28,128x256x1x1"),
    ("winograd_f4", "1x128x28x28,128x128x3x3,p1"),
)
ROUNDS = 15
FASTER = 0.97  # of the time of the one that ships: what less is, other days may turn


def measured(shapes: Sequence[Shape], cases: Sequence[tuple[str, str]] = CASES) -> dict[Shape, float]:
    """Time over that of the first shape: the median over rounds of each case, in the geometric mean."""
    processes = [Process(cases, 1, {"CONVBENCH_SIMD": f"{simd()}:{shape}"}) for shape in shapes]
    try:
        ratios = [compared([partial(one.turn, case) for one in processes]) for case in range(len(cases))]
    finally:
        for one in processes:
            one.end()
    means = [math.exp(statistics.fmean(map(math.log, column))) for column in zip(*ratios, strict=True)]
    return dict(zip(shapes, means, strict=True))


def compared(turns: Sequence[Callable[[], float]], rounds: int = ROUNDS) -> list[float]:
    """Of each the median over rounds of its time over the first one's."""
    taken = [[turn() for turn in turns] for _ in range(rounds)]
    return [statistics.median(row[k] / row[0] for row in taken) for k in range(len(turns))]


def fastest(found: dict[Shape, float]) -> Shape:
    """The first, or the fastest where it is surely faster."""
    first, best = next(iter(found)), min(found, key=lambda shape: found[shape])
    return best if found[best] < FASTER else first


def learn() -> dict[Shape, float]:
    """Measure the candidates and remember the fastest for processes that start from now on."""
    found = measured([shape for shape in candidates() if shape.fits])
    known = rows_of(FILE_NAME).get(machine_id(), {})
    keep_rows(FILE_NAME, {machine_id(): {**known, simd(): str(fastest(found))}})
    return found
