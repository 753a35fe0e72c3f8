"""Which shape of the microkernels is the fastest on this machine, of the candidates for its vectors.

Each has a process of its own, told by ``CONVBENCH_SIMD``; once their code is compiled, on all cores, they
take turns on a few layers. The first candidate, which ships, stays unless another is surely faster.
``convbench calibrate`` asks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from algos.engine.target import FILE_NAME, Shape, candidates, simd
from algos.host import machine_id, usable_cores
from algos.wisdom import keep_rows, rows_of
from bench import perf_counter
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


def measured(
    shapes: Sequence[Shape], compiling_s: float = math.inf, cases: Sequence[tuple[str, str]] = CASES
) -> dict[Shape, float]:
    """Time over that of the first shape: the median over rounds of each case, in the geometric mean.

    Shapes whose code is not compiled after so many seconds are left out; nothing where the first one is.
    """
    end = perf_counter() + compiling_s
    processes: dict[Shape, Process] = {}

    def is_ready(shape: Shape) -> bool:
        if (left_s := end - perf_counter()) <= 0:
            return False
        processes[shape] = Process(cases, 1, {"CONVBENCH_SIMD": f"{simd()}:{shape}"})
        return processes[shape].ready(None if math.isinf(left_s) else left_s)

    try:
        with ThreadPoolExecutor(usable_cores()) as pool:
            ready = [shape for shape, so in zip(shapes, pool.map(is_ready, shapes), strict=True) if so]
        if ready[:1] != [*shapes[:1]]:
            return {}
        turns = [[partial(processes[shape].turn, case) for shape in ready] for case in range(len(cases))]
        ratios = [compared(some) for some in turns]
    finally:
        for one in processes.values():
            one.end()
    means = [math.exp(statistics.fmean(map(math.log, column))) for column in zip(*ratios, strict=True)]
    return dict(zip(ready, means, strict=True))


def compared(turns: Sequence[Callable[[], float]], rounds: int = ROUNDS) -> list[float]:
    """Of each the median over rounds of its time over the first one's."""
    taken = [[turn() for turn in turns] for _ in range(rounds)]
    return [statistics.median(row[k] / row[0] for row in taken) for k in range(len(turns))]


def fastest(found: dict[Shape, float]) -> Shape:
    """The first, or the fastest where it is surely faster."""
    first, best = next(iter(found)), min(found, key=lambda shape: found[shape])
    return best if found[best] < FASTER else first


def learn(compiling_s: float = math.inf) -> dict[Shape, float]:
    """Measure the candidates whose code is compiled by then; the fastest, once all of them were measured, is
    remembered for processes that start from now on.
    """
    asked = [shape for shape in candidates() if shape.fits]
    if len(found := measured(asked, compiling_s)) == len(asked):
        known = rows_of(FILE_NAME).get(machine_id(), {})
        keep_rows(FILE_NAME, {machine_id(): {**known, simd(): str(fastest(found))}})
    return found
