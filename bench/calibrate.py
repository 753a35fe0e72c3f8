"""Times of small problems on this machine, and the fit of the cost model to them.

The problems fill the space: every kind of layer, picture and signal, all directions, one thread and all. Of
each all algorithms that could matter take turns in this process, and the lower quartile of an algorithm's
turns is its time. The fit is kernel ridge regression over the closed form, towards the fit that ships with
the package: what little was measured moves it, and far from what was measured it stays.

Tried on 204 problems of this suite, eight-fold, regret as geometric mean and 95th percentile: the closed form
1.17 and 2.2; ridge with 31 linear features of the way and the leaf for each algorithm 1.10 and 1.65;
quadratic features 1.09 and 1.5; gradient-boosted trees 1.08 and 1.56; a random forest 1.10 and 1.77; this
1.08 and 1.41. With costs nearer to what kernels do the closed form alone comes to 1.09 and 1.64 on 176 shapes
of the suites, and this to 1.04 and 1.30; ``NOISE`` from 0.05 to 1 made 1.06 of it to 1.04, a narrower kernel
nothing.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from algos import wisdom
from algos.auto import choose
from algos.build import build_of
from algos.contract import Algorithm
from algos.door import in_layout
from algos.engine.kept import LOAD_S
from algos.engine.quiet import quieten
from algos.engine.threads import limit_environment
from algos.estimate import Knowledge, tunables_text
from algos.fitted import (
    OTHERS,
    PRIORS,
    WIDTH,
    Fit,
    features,
    fit_of_machine,
    is_calibrated,
    keep,
    prior,
    priors,
)
from algos.host import fingerprint, recent_memory, usable_cores
from algos.lower.chain import Chain
from algos.lower.search import chain
from algos.plans import prepared
from algos.registry import is_external, refusal, registry
from algos.spec import ConvSpec
from algos.tune import lessons
from bench import perf_counter
from bench.ahead import compile_ahead, lacking
from bench.cases import Settings, cases_of
from bench.data import operands
from bench.files import write
from bench.lessons import disturbed
from bench.processes import code_environment
from bench.record import Record

BUDGET_S = 55.0  # and what comes after: a call in progress, the fit
MOST_LEARNT = 200  # problems of a run
TURNS, TURN_S, WARM_UP_S = 5, 5e-4, 3e-4
FEW_TURNS, WORTH = 3, 4.0  # after so many turns those that never took less than so many times the best leave
HOPELESS, LONGEST_S = 20.0, 0.05  # by the model: times the best, seconds of a call
LIKELY = 2.5  # times the best by the fit: within it lies whoever is picked
MOST_BYTES = 1 << 29
# Of the ridge: what a point may be off by, squared; of the common and the own part of constants
NOISE, COMMON, CONSTANT = 0.35, 0.3, 0.5
TOLD = 8.0  # times as long as the best: beyond, nobody picks it, and it only bends the fit


class Times(NamedTuple):
    """Seconds of a call of each algorithm on one problem, by all turns, and by every other one of them; which
    one is picked after turns on doubt, where that was asked.
    """

    spec: ConvSpec
    threads: int
    seconds: dict[str, float]
    halves: tuple[dict[str, float], dict[str, float]] = ({}, {})
    tuned: str = ""


# ---- their times -------------------------------------------------------------------------------------------


def contenders(spec: ConvSpec, threads: int, every: bool = True) -> dict[str, Chain]:
    """The algorithms of ours that could be worth a measurement, as far as memory holds their plans together.

    Not ``every`` one leaves out those that would have to be compiled and are surely not picked.
    """
    found = {}
    for algorithm in registry().values():
        if algorithm.family in ("peer", "auto") or algorithm.device != "cpu" or is_external(algorithm):
            continue  # what comes from elsewhere is picked where it was measured, and nowhere else
        if refusal(algorithm) is None and refusal(algorithm, spec) is None:
            way = chain(algorithm, spec, threads)
            if not way.unwise:
                found[algorithm.name] = way
    seconds = {name: way.seconds(threads) for name, way in found.items()}
    least = min(seconds.values(), default=0.0)
    limit, room = max(least, min(LONGEST_S, HOPELESS * least)), min(MOST_BYTES, recent_memory() // 2)
    if not every:
        fit = fit_of_machine()
        told = {name: fit.seconds(way, threads) for name, way in found.items()}
        far = LIKELY * min(told.values(), default=0.0)
        found = {name: way for name, way in found.items() if told[name] <= far or way.compiling_s() <= LOAD_S}
    kept = {}
    for name in sorted(found, key=lambda name: seconds[name]):
        needed = found[name].workspace_bytes(threads)
        if seconds[name] <= limit and needed <= room:
            kept[name], room = found[name], room - needed
    return kept


@dataclass
class _Rival:
    call: Callable[[], Any]
    count: int
    times: list[float]

    def turn(self) -> None:
        quieten()  # BLAS would spin on, on a core of this one
        start = perf_counter()
        while perf_counter() - start < WARM_UP_S:
            self.call()
        start = perf_counter()
        for _ in range(self.count):
            self.call()
        self.times.append((perf_counter() - start) / self.count)

    def seconds(self, first: int = 0, step: int = 1) -> float:
        times = sorted(self.times[first::step] or self.times)
        return times[len(times) // 4]


def tuned(spec: ConvSpec, threads: int, budget_s: float) -> str:
    """Who is picked after the contenders in doubt took turns, with nothing known but the model."""
    found = [way.algorithm for way in contenders(spec, threads).values()]
    every, fit = registry(), fit_of_machine()
    before = choose(spec, found, Knowledge((), every, build_of, fit), threads=threads)
    taught = lessons(spec, before, threads, budget_s, prepared)
    after = choose(spec, found, Knowledge(taught, every, build_of, fit), threads=threads)
    return after.algorithm


def measured(spec: ConvSpec, threads: int, turns: int = TURNS, every: bool = True) -> Times:
    """Of all contenders, in turns."""
    made = operands(spec)
    rivals = {name: _rival(spec, way.algorithm, threads, made)
              for name, way in contenders(spec, threads, every).items()}  # fmt: skip
    alive = rivals
    for turn in range(turns):
        for rival in list(alive.values())[:: 1 if turn % 2 else -1]:
            rival.turn()
        if turn + 1 == FEW_TURNS:
            limit = WORTH * min(min(rival.times) for rival in alive.values())
            alive = {name: rival for name, rival in alive.items() if min(rival.times) <= limit}
    by = lambda *some: {name: rival.seconds(*some) for name, rival in rivals.items()}  # noqa: E731
    return Times(spec, threads, by(), (by(0, 2), by(1, 2)))


def _rival(spec: ConvSpec, algorithm: Algorithm, threads: int, made: Any) -> _Rival:
    arrays = [in_layout(a, algorithm.layout) for a in made.call]
    plan = prepared(spec, None if spec.direction == "weight_gradient" else made.w, algorithm, threads,
                    bias=made.bias)  # fmt: skip
    out = plan(*arrays)
    start = perf_counter()
    plan(*arrays, out=out)
    count = max(1, int(TURN_S / max(perf_counter() - start, 1e-9)))
    return _Rival(lambda: plan(*arrays, out=out), count, [])


def compiled(
    asked: Sequence[tuple[ConvSpec, int]], budget_s: float, every: bool, tell: Callable[[str], None]
) -> list[tuple[ConvSpec, int]]:
    """What is asked, first that of which all cores have compiled the code, for half of the budget."""
    settings = Settings(run_budget_s=max(budget_s, 0.0))
    cases = [cases_of([spec], [way.algorithm for way in contenders(spec, threads, every).values()], [threads],
                      settings) for spec, threads in asked]  # fmt: skip
    compile_ahead([case for some in cases for case in some], settings, tell)
    waits = [bool(lacking(some)) for some in cases]
    return [asked[index] for index in sorted(range(len(asked)), key=lambda index: waits[index])]


def measure(
    asked: Iterable[tuple[ConvSpec, int]], budget_s: float, turns: int = TURNS, tune_s: float = 0.0,
    every: bool = False,
) -> Iterator[Times]:  # fmt: skip
    """What is asked with so many threads, or as much as the budget allows, in a process with the environment
    in which ``run`` measures; who is picked after turns on doubt for ``tune_s``, unless that is 0.
    """
    end, left = perf_counter() + budget_s, [*asked]
    environment = {**os.environ, **limit_environment(usable_cores()), **code_environment()}
    while left and (budget_s := end - perf_counter()) > 0:
        numbers = map(str, (budget_s, turns, tune_s, int(every)))
        command = [sys.executable, "-P", "-m", "bench.calibrate", *numbers]
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True, start_new_session=True) as process:  # fmt: skip
            assert process.stdin is not None and process.stdout is not None
            try:
                json.dump([[str(spec), threads] for spec, threads in left], process.stdin)
                process.stdin.close()
                for times in map(told, process.stdout):
                    left = left[1:]
                    if times.seconds:
                        yield times
                if process.wait() == 0:
                    return
            finally:
                process.kill()
        left = left[1:]  # killed for its memory, say: that costs one problem


def told(line: str) -> Times:
    """What ``line_of`` wrote."""
    text, threads, *seconds, tuned = json.loads(line)
    whole, *halves = ({name: float(s) for name, s in of.items()} for of in seconds)
    return Times(ConvSpec.parse(text), int(threads), whole, (halves[0], halves[1]), str(tuned))


def line_of(times: Times) -> str:
    """One line of JSON."""
    seconds = ({name: float(f"{s:.5g}") for name, s in of.items()} for of in (times.seconds, *times.halves))
    return json.dumps([str(times.spec), times.threads, *seconds, times.tuned])


def main(budget_s: float, turns: int, tune_s: float, every: bool) -> None:
    """In the process that measures."""
    end = perf_counter() + budget_s
    for text, threads in json.load(sys.stdin):
        if perf_counter() >= end:
            return
        times = Times(spec := ConvSpec.parse(text), threads, {})
        try:
            times = measured(spec, threads, turns, every)
            if tune_s:
                times = times._replace(tuned=tuned(spec, threads, tune_s))
        except Exception as error:
            print(f"convbench: {spec} is left out: {type(error).__name__}: {error}", file=sys.stderr)
        print(line_of(times), flush=True)


# ---- the fit -----------------------------------------------------------------------------------------------


def fitted(found: Sequence[Times], about: dict[str, Any], start: Fit) -> Fit:
    """The fit of ``found`` that departs least from ``start``.

    Parameters
    ----------
    found : sequence of Times
    about : dict
        ``fingerprint()`` of their machine.
    start : Fit
        What is believed where nothing was measured.
    """
    centres = np.array([features(times.spec, times.threads) for times in found])
    away = ((centres[:, None] - centres[None]) ** 2).sum(-1)
    kernel = np.exp(-WIDTH * away) + CONSTANT
    at, names, left, noise = [], [], [], []
    for index, (spec, threads, seconds, *_) in enumerate(found):
        best = min(seconds.values())
        for name, took in seconds.items():
            if took <= TOLD * best and name in registry():
                at.append(index)
                names.append(name)
                left.append(math.log(took / start.seconds(chain(registry()[name], spec, threads), threads)))
                noise.append(NOISE * math.sqrt(took / best))
    rows, every = np.array(at), np.array(names)
    same = every[:, None] == every[None]
    gram = kernel[np.ix_(rows, rows)] * (COMMON + same)
    solved = np.linalg.solve(gram + np.diag(noise), np.array(left))

    def parts(which: np.ndarray, share: float) -> np.ndarray:
        """A constant and a number for each centre."""
        own = np.bincount(rows[which], share * solved[which], len(found))
        return np.concatenate([[CONSTANT * own.sum()], own])

    everybody = parts(np.full(len(rows), True), COMMON)
    own = {name: everybody + parts(every == name, 1.0) for name in dict.fromkeys(names)}
    own[OTHERS] = everybody
    weights = {}
    for name in dict.fromkeys((*start.weights, *own)):
        before = start.weights.get(name, start.weights.get(OTHERS, np.zeros(1)))
        after = own.get(name, everybody)
        weights[name] = np.concatenate([[before[0] + after[0]], before[1:], after[1:]])
    known = {name: about[name] for name in ("id", "cpu", "simd", "cores", "caches_bytes")}
    return Fit(known, np.concatenate([start.centres.reshape(-1, centres.shape[1]), centres]), weights,
               left_over(gram, np.array(noise), np.array(left), rows))  # fmt: skip


def left_over(gram: np.ndarray, noise: np.ndarray, left: np.ndarray, rows: np.ndarray) -> float:
    """What the fit is off by on problems that it did not see, eight-fold: standard deviation of logarithms.
    """
    errors: list[float] = []
    for fold in range(8):
        out = rows % 8 == fold
        if out.any() and not out.all():
            inner = gram[np.ix_(~out, ~out)] + np.diag(noise[~out])
            errors += (left[out] - gram[np.ix_(out, ~out)] @ np.linalg.solve(inner, left[~out])).tolist()
    return statistics.pstdev(errors) if errors else 0.0


def off(found: Sequence[Times], fit: Fit) -> float:
    """What a fit is off by on ``found``: standard deviation of logarithms, of what could be picked."""
    left = [
        math.log(took / fit.seconds(chain(registry()[name], spec, threads), threads))
        for spec, threads, seconds, *_ in found
        for name, took in seconds.items()
        if took <= TOLD * min(seconds.values()) and name in registry()
    ]
    return statistics.pstdev(left) if left else 0.0


def read(file: Path) -> list[Times]:
    """What ``line_of`` wrote, line by line, whole ones only; nothing where there is no file."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else ():
        with suppress(ValueError, TypeError, IndexError, AttributeError):  # a process was killed at it
            found.append(told(line))
    return found


def ship(fit: Fit) -> None:
    """Make it the row of its machine that ships with the package."""
    kept = [one for one in priors() if one.machine["id"] != fit.machine["id"]]
    rows = ",\n".join(json.dumps(one.row(), separators=(",", ":")) for one in (*kept, fit))
    write(PRIORS, f"[{rows}]\n".encode())


def learn(records: Iterable[Record]) -> None:
    """What a run has measured corrects the model as well, as long as this machine was not calibrated and no
    larger run has done so.
    """
    found: dict[tuple[str, int], dict[str, float]] = {}
    for record in records:
        own = registry().get(record.algorithm)
        if own is None or own.family in ("peer", "auto") or own.device != "cpu" or record.cold:
            continue
        if record.median_s and not disturbed(record) and record.tunables == tunables_text(own):
            found.setdefault((record.spec, record.threads), {})[record.algorithm] = record.median_s
    times = [Times(ConvSpec.parse(text), threads, seconds)
             for (text, threads), seconds in found.items() if len(seconds) > 1]  # fmt: skip
    about = fingerprint()
    if not is_calibrated():
        remember_more(times[:: -(-len(times) // MOST_LEARNT) or 1], about, prior(about))


def remember_more(found: Sequence[Times], about: dict[str, Any], start: Fit) -> bool:
    """Fit and keep what was found where no more problems taught what is kept; whether that was so."""
    if more := bool(found) and len(fit_of_machine().centres) < len(start.centres) + len(found):
        remember(fitted(found, about, start))
    return more


def remember(fit: Fit) -> None:
    """Keep what this machine taught beside its wisdom."""
    keep({fit.machine["id"]: fit.row()})
    wisdom.recall_anew()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "1")
