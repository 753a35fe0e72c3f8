"""Measuring on doubt: those that estimates cannot tell apart take turns for some milliseconds; remembered.

``plan(..., tune="50ms")`` and ``convbench pick --budget 50ms``. Each candidate is prepared (and compiled,
which the budget does not count, as ``plan`` compiles anyway); then they alternate in short turns, who is
surely behind leaves, and what the turns showed becomes wisdom. A spec on which nobody is in doubt any more is
not measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from time import perf_counter
from typing import Any

import numpy as np

from algos import wisdom
from algos.build import build_of
from algos.choice import Choice
from algos.door import in_layout
from algos.engine.quiet import quieten
from algos.engine.threads import checked_threads
from algos.estimate import tunables_text
from algos.grammar import SpecError, shown
from algos.host import fingerprint
from algos.lower.search import chain
from algos.registry import get
from algos.spec import ConvSpec

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
MOST = 6  # candidates
TURN_S, FEW_TURNS, MOST_TURNS = 5e-4, 4, 64
SPUN_S = 0.05  # OpenBLAS's threads look for work for half of that
# As the noise model has it where little is known: what launches differ by, standard deviations of a 98%
# interval, what "same" means
PROCESS, SURE, SAME = 0.02, 2.33, math.log(1.05)
DRAWN = 4093  # numbers that operands repeat


def span_s(text: str | float) -> float:
    """Seconds of ``50ms``, ``2s``, ``200us``, or of a number of seconds.

    Raises
    ------
    SpecError
        For anything else.
    """
    value, unit = text, 1.0
    if isinstance(text, str):
        for name, factor in UNITS.items():
            if text.endswith(name):
                value, unit = text.removesuffix(name), factor
                break
    try:
        seconds = float(value) * unit
        if 0 < seconds < 3600 and not isinstance(text, bool):
            return seconds
    except (TypeError, ValueError):
        pass
    raise SpecError(f"{shown(text)} is no span of time: write it like '50ms'")


@dataclass
class _Rival:
    name: str
    call: Callable[[], Any]
    prepare_s: float
    count: int = 1
    turns: list[float] = field(default_factory=list)

    def turn(self) -> None:
        self.call()  # caches and helper threads come back
        start = perf_counter()
        for _ in range(self.count):
            self.call()
        self.turns.append((perf_counter() - start) / self.count)


def doubtful(choice: Choice) -> list[str]:
    """Who may be the fastest for all that is known: the first, and those whose interval reaches its."""
    first, *others = [c for c in choice.candidates if not c.excluded]
    limit = first.run_s if first.source == "measured" else first.high_s
    close = [c.algorithm for c in others
             if c.source != "measured" and limit and c.low_s and c.low_s < limit][: MOST - 1]  # fmt: skip
    return [first.algorithm, *close] if close else []


def tune(
    spec: ConvSpec | str, budget: str | float, prepared: Callable[..., Any], w: Any = None, bias: Any = None,
    **options: Any,
) -> Choice:  # fmt: skip
    """``pick``, after those that it could not tell apart have taken turns.

    Parameters
    ----------
    spec : ConvSpec or str
    budget : str or float
        Of the turns, like "50ms", or seconds.
    prepared : function
        What makes the plans: ``algos.plans.prepared``.
    w, bias : array, optional
        Those of the plan; random ones when left out.
    **options
        Those of ``pick``; only algorithms of the CPU are measured.
    """
    from algos.auto import pick

    spec, budget_s = ConvSpec.of(spec), span_s(budget)
    options = {"device": "cpu", **options}
    choice = pick(spec, **options)
    if found := lessons(spec, choice, checked_threads(options.get("threads")), budget_s, prepared, w, bias):
        wisdom.remember(found)
        choice = pick(spec, **options)
    return choice


def lessons(
    spec: ConvSpec, choice: Choice, threads: int, budget_s: float, prepared: Callable[..., Any],
    w: Any = None, bias: Any = None,
) -> list[wisdom.Known]:  # fmt: skip
    """What turns of those show that a choice could not tell apart; nothing where it is sure."""
    names = doubtful(choice)
    if not names or not spec.batch:
        return []
    rivals = [_rival(spec, name, threads, prepared, w, bias) for name in names]
    _race(rivals, budget_s)
    return _lessons(spec, rivals, threads)


def _rival(spec: ConvSpec, name: str, threads: int, prepared: Callable[..., Any], w: Any,
           bias: Any) -> _Rival:  # fmt: skip
    algorithm = get(name)
    x, grad = _drawn(spec.input_shape, spec.in_dtype), _drawn(spec.output_shape, spec.out_dtype)
    operands = {"forward": [x], "input_gradient": [grad], "weight_gradient": [x, grad]}[spec.direction]
    arrays = [in_layout(a, algorithm.layout) for a in operands]
    if spec.direction == "weight_gradient":
        w = None
    elif w is None:
        w = _drawn(spec.weight_shape, spec.w_dtype)
    if spec.bias and bias is None:
        bias = _drawn((spec.out_channels,), spec.out_dtype)
    plan = prepared(spec, w, algorithm, threads, bias=bias)
    start = perf_counter()
    plan = prepared(spec, w, algorithm, threads, bias=bias)  # with its code compiled
    prepare_s = perf_counter() - start
    out = plan(*arrays)
    rival = _Rival(name, lambda: plan(*arrays, out=out), prepare_s)
    rival.turn()
    rival.count, rival.turns = max(1, int(TURN_S / max(rival.turns[0], 1e-9))), []
    return rival


def _drawn(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Small numbers, whole ones for types that have no others."""
    draw = np.random.default_rng(0)
    some = draw.standard_normal(DRAWN) if dtype.kind in "fcV" else draw.integers(0, 3, DRAWN)
    return np.resize(some.astype(dtype), shape)


def _race(rivals: Sequence[_Rival], budget_s: float) -> None:
    """Turns, one way round and back, until the budget ends or one is left."""
    end, alive, quiet = perf_counter() + budget_s, list(rivals), True
    for forth in cycle((True, False)):
        for rival in alive if forth else alive[::-1]:
            # Whoever came before may spin on, on a core of this one; not for the caller's own threads
            quiet = quiet and quieten(SPUN_S)
            rival.turn()
        turns = len(alive[0].turns)
        if turns >= FEW_TURNS:
            best = min(alive, key=lambda rival: statistics.median(rival.turns))
            alive = [rival for rival in alive if rival is best or compared(best.turns, rival.turns)[0] <= 1]
        if len(alive) == 1 or turns >= MOST_TURNS or (turns >= FEW_TURNS and perf_counter() >= end):
            return


def compared(best: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The 98% interval of the other's time over that of the best, by the turns that they took together."""
    logs = [math.log(b / a) for a, b in zip(best, other, strict=False)]
    middle = statistics.median(logs)
    off = 1.48 * statistics.median([abs(value - middle) for value in logs])
    error = math.hypot(PROCESS, 1.25 * off / math.sqrt(len(logs)))
    return math.exp(middle - SURE * error), math.exp(middle + SURE * error)


def _lessons(spec: ConvSpec, rivals: Sequence[_Rival], threads: int) -> list[wisdom.Known]:
    best = min(rivals, key=lambda rival: (-len(rival.turns), statistics.median(rival.turns)))
    found, machine = [], fingerprint()["id"]
    for rival in rivals:
        low, high, verdict = 1.0, 1.0, "fastest"
        if rival is not best:
            low, high = compared(best.turns, rival.turns)
            same = math.log(low) > -SAME and math.log(high) < SAME
            verdict = "slower" if low > 1 else "same" if same else "undecided"
        algorithm = get(rival.name)
        found.append(wisdom.Known(
            machine, build_of(algorithm), str(spec), algorithm.name, tunables_text(algorithm), threads, "ok",
            "", rival.prepare_s, statistics.median(rival.turns), verdict, low, high,
            chain(algorithm, spec, threads).identity,
        ))  # fmt: skip
    return found
