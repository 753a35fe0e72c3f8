"""How far processes differ that compute the same: twelve, whose environments are of different length, so that
their stacks lie elsewhere.

    python -m bench.placed [--processes 12] [--rounds 20] [--threads 1] [--moved] [ALGORITHM SPEC ...]

They take turns, one at a time, case by case. A process's figure is the median over rounds of its time over
the round's median; the spread is the largest over the smallest. ``--moved`` takes as many plans of one
process instead, each with memory of its own: what differs there as well follows where arrays lie, not the
stack.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

from bench import perf_counter

CASES = (
    ("direct_channels", "1x64x56x56,64x64x3x3,p1"),
    ("direct_channels", "1x64x56x56,64x64x3x3,p1,weight_gradient"),
    ("direct_channels", "1x3x112x112,64x3x7x7,s2,p3"),
    ("direct_pixels", "1x64x56x56,64x64x1x1"),
    ("direct_pixels", "1x3x112x112,64x3x7x7,s2,p3"),
    ("depthwise", "1x64x56x56,64x1x3x3,p1"),
    ("depthwise", "1x64x56x56,64x1x5x5,p2,s2"),
    ("numba_direct", "1x16x28x28,16x16x3x3,p1"),
    ("winograd_f2", "1x64x28x28,64x64x3x3,p1"),
    ("winograd_f4", "1x64x56x56,64x64x3x3,p1"),
    ("winograd_f6", "1x64x56x56,64x64x3x3,p1"),
    ("numba_picture", "1x1x256x256,1x1x7x7,p3"),
    ("separable", "1x1x256x256,1x1x15x15,p7,rank1"),
    ("separable", "1x1x256x256,1x1x31x31,p15,rank1"),
    ("fft_fused", "1x1x128x128,1x1x15x15,p7"),
    ("fft_fused", "1x1x256x256,1x1x31x31,p15"),
)
TURN_S = 0.012
STEP = 60  # bytes by which environments differ: stacks lie at multiples of 16


class Process:
    """One that prepares cases, which ``ready`` waits for, and then times a turn of whichever is asked for."""

    def __init__(
        self, cases: Sequence[tuple[str, str]], threads: int, variables: dict[str, str], plans: int = 1
    ) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.placed", "--child", json.dumps([cases, threads, plans])],
            env={**os.environ, **variables}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def ready(self, timeout_s: float | None = None) -> bool:
        """Whether all is prepared within that time, the first time it is asked; one that is not is ended."""
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                self._child.kill()
                return False
        return bool(self._line())

    def turn(self, number: int) -> float:
        """Seconds of a call of plan ``number``."""
        assert self._child.stdin is not None
        print(number, file=self._child.stdin, flush=True)
        return float(self._line())

    def end(self) -> None:
        self._child.communicate()

    def _line(self) -> str:
        assert self._child.stdout is not None
        if not (line := self._child.stdout.readline()):
            raise RuntimeError(f"a process ended with {self._child.wait()}")
        return line


def answer(cases: Sequence[tuple[str, str]], threads: int, plans: int) -> None:
    """What a ``Process`` runs: ``plans`` of each case, one case's after the other's."""
    import algos
    from algos.plans import prepared
    from bench.data import operands

    calls: list[Callable[[], object]] = []
    for name, text in cases:
        for _ in range(plans):
            spec = algos.ConvSpec.parse(text)
            data = operands(spec)
            plan = prepared(spec, data.w, algos.get(name), threads)
            out = plan(*data.call)
            calls.append(partial(plan, *data.call, out=out))
    print("ready", flush=True)
    for line in sys.stdin:
        times: list[float] = []
        call, end = calls[int(line)], perf_counter() + TURN_S
        while perf_counter() < end or len(times) < 3:
            start = perf_counter()
            call()
            times.append(perf_counter() - start)
        print(statistics.quantiles(times, n=4)[0], flush=True)


def spreads(turns: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """Of each of ``turns``, the median over rounds of its time over the round's median."""
    taken = [[turn() for turn in turns] for _ in range(rounds)]
    ratios = [[time / statistics.median(row) for time in row] for row in taken]
    return [statistics.median(column) for column in zip(*ratios, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.placed")
    parser.add_argument("words", nargs="*", metavar="ALGORITHM SPEC")
    parser.add_argument("--processes", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--moved", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        answer(*json.loads(options.child))
        return
    words, many = options.words, options.processes
    cases = [*zip(words[::2], words[1::2], strict=True)] or list(CASES)
    count, plans = (1, many) if options.moved else (many, 1)
    processes = []
    for k in range(count):
        processes.append(Process(cases, options.threads, {"LONGER": STEP * k * "x"}, plans))
        processes[-1].ready()  # the first one compiles for all
    for number, (name, text) in enumerate(cases):
        which = [(one, number * plans + k) for one in processes for k in range(plans)]
        turns = [partial(one.turn, at) for one, at in which]
        found = spreads(turns, options.rounds)
        each = " ".join(f"{value:.3f}" for value in found)
        print(f"{max(found) / min(found):.3f}  {name} {text}  {each}", flush=True)
    for one in processes:
        one.end()


if __name__ == "__main__":
    main()
