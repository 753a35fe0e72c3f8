"""The picker's regret, split honestly: by what it went by, and by kind, direction and family of the problem.

Of each problem all of our algorithms that could matter were timed twice, in two halves of the turns or in
launches of their own. Who is the best is told by one half and how much slower the pick is by the other, both
ways round: so luck makes no best, and what the noise alone would give is 1. What a source goes by never holds
the problem itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from algos.auto import choose
from algos.build import build_of
from algos.estimate import Knowledge, tunables_text
from algos.fitted import fit_of_machine, is_calibrated, prior
from algos.host import fingerprint
from algos.lower.tree import plain
from algos.registry import registry
from algos.spec import ConvSpec
from algos.wisdom import Known, Memory

TIE = 1.05  # times the best: nearer are the same, as everywhere
Halves = tuple[dict[str, float], dict[str, float]]


class Timed(NamedTuple):
    """A problem, and the seconds of a call of each algorithm, twice; who was picked after turns on doubt."""

    spec: ConvSpec
    threads: int
    halves: Halves
    tuned: str = ""


class Regret(NamedTuple):
    """Of picks: the geometric mean, 95th percentile and worst of time(picked) / time(best)."""

    specs: int
    mean: float
    p95: float
    worst: float
    worst_spec: str


Source = Callable[[ConvSpec], Knowledge]


def sources(cases: Sequence[Timed], entries: Iterable[Known]) -> dict[str, Source]:
    """What a pick may go by, without the problem itself.

    Parameters
    ----------
    cases : sequence of Timed
        Those that are judged: "leave-one-out" goes by the others.
    entries : iterable of Known
        What this machine has measured in earlier runs: "nearest" goes by those of other problems.
    """
    found, about = registry(), fingerprint()
    shipped, own = prior(about), fit_of_machine()
    known = {**{"prior": Knowledge((), found, build_of, shipped)},
             **({"calibrated": Knowledge((), found, build_of, own)} if is_calibrated() else {})}  # fmt: skip
    made: dict[str, Source] = {name: partial(_always, one) for name, one in known.items()}
    judged = {text for case in cases for text in (str(case.spec), str(plain(case.spec)))}
    if others := [entry for entry in entries if entry.spec not in judged]:
        made["nearest"] = partial(_always, Knowledge(others, found, build_of, own))
    rest = Knowledge(Memory(_entry(case, *one) for case in cases for one in _means(case).items()), found,
                     build_of, own)  # fmt: skip
    made["leave-one-out"] = lambda spec: rest.left_out(str(spec))
    return made


def _always(knowledge: Knowledge, spec: ConvSpec) -> Knowledge:
    return knowledge


def _means(case: Timed) -> dict[str, float]:
    one, other = case.halves
    return {name: math.sqrt(s * other[name]) for name, s in one.items()}


def _entry(case: Timed, name: str, run_s: float) -> Known:
    algorithm = registry()[name]
    return Known(fingerprint()["id"], build_of(algorithm), str(case.spec), name, tunables_text(algorithm),
                 case.threads, "ok", run_s=run_s)  # fmt: skip


def ratio(case: Timed, knowledge: Knowledge) -> float:
    """time(picked) / time(best), the noise's share taken out."""
    found = [registry()[name] for name in case.halves[0]]
    return _over_best(case, choose(case.spec, found, knowledge, threads=case.threads).algorithm)


def tuned_ratio(case: Timed) -> float:
    """The same of who was picked after turns on doubt; a tie with the best is 1."""
    over = _over_best(case, case.tuned)
    return 1.0 if over < TIE else over


def _over_best(case: Timed, algorithm: str) -> float:
    one, other = case.halves
    picked = algorithm.partition(":")[0]
    both = [told[picked] / told[min(named, key=lambda name: named[name])]
            for named, told in ((one, other), (other, one))]  # fmt: skip
    return max(1.0, math.sqrt(both[0] * both[1]))


def regret(ratios: dict[str, float]) -> Regret:
    """Of problems by their text."""
    values = sorted(ratios.values())
    worst = max(ratios, key=lambda text: ratios[text])
    p95 = values[min(len(values) - 1, math.ceil(0.95 * len(values)) - 1)]
    return Regret(len(values), statistics.geometric_mean(values), p95, values[-1], worst)


def kind(spec: ConvSpec) -> str:
    """What a reader would call it."""
    if spec.ndim != 2:
        return f"{spec.ndim}-D"
    if spec.groups > 1:
        return "depthwise" if spec.groups == spec.in_channels else "grouped"
    if math.prod(spec.kernel) == 1:
        return "1x1"
    if spec.in_channels == 1:
        return "picture"
    if spec.in_channels <= 4:
        return "first layer"
    return "3x3" if spec.kernel == (3, 3) else "other kernels"


SPLITS: dict[str, Callable[[Timed], str]] = {
    "all": lambda case: "",
    "kind": lambda case: kind(case.spec),
    "direction": lambda case: case.spec.direction,
    "family of the best": lambda case: registry()[min(case.halves[0], key=case.halves[0].__getitem__)].family,
}


def rows(cases: Sequence[Timed], entries: Iterable[Known] = ()) -> Iterator[dict[str, Any]]:
    """One row a source and group of problems; JSON-ready."""
    by_source = {name: [ratio(case, of(case.spec)) for case in cases]
                 for name, of in sources(cases, entries).items()}  # fmt: skip
    if all(case.tuned for case in cases):
        by_source["tuned"] = [tuned_ratio(case) for case in cases]
    for split, group_of in SPLITS.items():
        groups: dict[str, list[int]] = {}
        for index, case in enumerate(cases):
            groups.setdefault(group_of(case), []).append(index)
        for group, members in sorted(groups.items()):
            for source, ratios in by_source.items():
                named = {f"{cases[i].spec} threads={cases[i].threads}": ratios[i] for i in members}
                yield {"split": split, "group": group, "source": source, **regret(named)._asdict()}
