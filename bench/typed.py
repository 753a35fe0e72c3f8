"""How fast layers are in other types, beside the same layers in float32, in turns of one process:

    python -m bench.typed [--types float16,int8>int32] [--threads 2] [--turns 60] [SPEC ...]

Each side is what the picker chose, or ``--algorithms``. Times are lowest deciles of turns, which a machine
that others use as well disturbs least. ``CONVBENCH_SIMD=avx2`` narrows both.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import algos
from algos.spec import ConvSpec
from bench import perf_counter
from bench.data import operands

LAYERS = (  # of ResNet-50 and VGG-16
    "1x64x56x56,64x64x3x3,p1", "1x64x56x56,256x64x1x1", "1x256x56x56,64x256x1x1",
    "1x128x28x28,128x128x3x3,p1", "1x256x14x14,256x256x3x3,p1", "1x512x7x7,512x512x3x3,p1",
    "1x256x56x56,256x256x3x3,p1",
)  # fmt: skip
TYPES = ("float16", "bfloat16", "int8>int32")
TURN_S = 0.002


class Ratio(NamedTuple):
    """One layer in one type: its time in float32 over that in the type, and who computed both."""

    spec: ConvSpec
    ratio: float
    single_s: float
    typed_s: float
    algorithms: tuple[str, str]


def compared(spec: ConvSpec, dtype: str, threads: int, turns: int = 60, algorithm: str = "auto") -> Ratio:
    """Over ``turns`` pairs of turns, either side first in turn."""
    names, calls = [], []
    for one in (spec, spec.with_(dtype=dtype)):
        data = operands(one)
        plan = algos.plan(one, data.w, algorithm, threads)
        names.append(plan.algorithm)
        calls.append(partial(plan, *data.call))
    counts = [max(1, round(TURN_S / _turn(call, 3))) for call in calls]
    took: tuple[list[float], list[float]] = [], []
    for turn in range(turns):
        for side in (turn % 2, 1 - turn % 2):
            took[side].append(_turn(calls[side], counts[side]))
    single_s, typed_s = (statistics.quantiles(times, n=10)[0] for times in took)
    return Ratio(spec, single_s / typed_s, single_s, typed_s, (names[0], names[1]))


def _turn(call: Callable[[], object], count: int) -> float:
    """Seconds of one call."""
    start = perf_counter()
    for _ in range(count):
        call()
    return (perf_counter() - start) / count


def lines(found: Sequence[Ratio], dtype: str) -> list[str]:
    """A line for each layer and one for all."""
    each = [f"{dtype:12} {r.ratio:5.2f}  {r.single_s * 1e6:7.0f} us {r.typed_s * 1e6:7.0f} us  {r.spec}  "
            f"({', '.join(r.algorithms)})" for r in found]  # fmt: skip
    mean = math.exp(statistics.fmean(math.log(r.ratio) for r in found))
    return [*each, f"{dtype:12} {mean:5.2f}  geometric mean, worst {min(r.ratio for r in found):.2f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.typed")
    parser.add_argument("specs", nargs="*", default=LAYERS)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--algorithms", default="auto")
    options = parser.parse_args(arguments)
    for dtype in options.types.split(","):
        found = [compared(ConvSpec.parse(text), dtype, options.threads, options.turns, options.algorithms)
                 for text in options.specs]  # fmt: skip
        print(*lines(found, dtype), sep="\n", flush=True)


if __name__ == "__main__":
    main()
