"""How far times of identical code differ, and what may be said in spite of it: the only place that decides.

Rivals alternate in short turns, so that what slows the machine for a while slows both; a launch's datum is
the logarithm of the ratio of their calmest turns. Between launches it differs by more than its turns explain,
by the layout of memory and the placement of threads: that is learnt from all comparisons of a table together,
since two or three launches know too little of their own spread (a moderated t-statistic).

A lead is claimed where no difference has a probability below ``FALSE_DISCOVERIES``, "same" where a wider
interval lies within 5% (equivalence, not a failure to find a difference), and else the comparison is
undecided. Verdicts of a table together keep the rate of false discoveries (Benjamini and Hochberg).

Sources: Kalibera and Jones, "Rigorous benchmarking in reasonable time", 2013; Smyth, "Linear models and
empirical Bayes methods for assessing differential expression", 2004; Benjamini and Hochberg, "Controlling the
false discovery rate", 1995; Schuirmann, "A comparison of the two one-sided tests procedure", 1987.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, repeat, starmap
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np

from bench.spread import APART, LEARNT, fit, spread_apart
from bench.turns import Differences, Taken, Turns, by_length, differences, middles

T = TypeVar("T")
Verdict = Literal["faster", "slower", "same", "undecided"]

FALSE_DISCOVERIES = 0.02
FALSELY_SAME = 0.004  # of those that differ by just 5%
SAME = math.log(1.05)
# Spread between launches, and how sure that is, where a table is too small to tell: their own spread must do,
# and one launch alone has none. With 4 degrees of freedom 11% of twins were called different where launches
# truly differ by 5%, so 2%. One launch alone must show 1.4 times: with 4 degrees 1.2 did, and of 21 pairs of
# twins, each one launch beside three other pairs, one was called different.
ASSUMED, ASSUMED_FREEDOM = 0.02, 0.5
ASSUMED_OF_ONE, FREEDOM_OF_ONE = 0.05, 2.0
APART_FREEDOM = 4.0  # of the spread between launches that did not take turns
TAUGHT = 200  # groups that are learnt from, evenly spread over those that there are
# What two algorithms' ratio shifts by for each other task a core, in all launches of a run: 1.20 and 1.00
# were seen under 1.9.
UNLIKE = 0.04
# What a call from Python differs by between processes, by where its objects lie: calls of 6 us differed by
# 2.0% from pair to pair, of which their turns and longer calls explained 0.9%.
CALL_S = 2e-7
CLEAR = math.log(1.5)  # beyond it, how much slower a turn was does not make it any surer that it was slower


class Ratio(NamedTuple):
    """Time of the other over time of the one, with a 98% interval.

    ``p`` is the probability of a difference that large where there is none; ``paired`` tells whether they
    took turns.
    """

    ratio: float
    low: float
    high: float
    p: float
    launches: int
    paired: bool
    verdict: Verdict  # of the other, taken alone


@dataclass(frozen=True)
class Model:
    """The noise of one table: everything measured on one machine with one number of threads.

    Attributes
    ----------
    process : float
        Relative spread of a ratio between launches, beyond what its turns explain.
    freedom : float
        Degrees of freedom that ``process`` is known with: many where all comparisons agree in their spread.
    turn : float
        Typical spread of the ratio of two neighbouring turns.
    apart : float
        Spread of a launch's time between launches of one case that did not take turns with their rivals.
    comparisons : int
        Those of two launches or more that it was learnt from; below ``LEARNT`` it is assumed.
    """

    process: float = ASSUMED
    freedom: float = ASSUMED_FREEDOM
    turn: float = ASSUMED
    apart: float = APART
    comparisons: int = 0

    @classmethod
    def of(cls, groups: Iterable[Sequence[Sequence[Taken]]]) -> Model:
        """Learn from groups of rivals, each the launches of all cases of one
        spec; of many groups from ``TAUGHT``.
        """
        groups = list(groups)
        taught = [[Turns.of(case) for case in group if case]
                  for group in groups[:: -(-len(groups) // TAUGHT) or 1]]  # fmt: skip
        cases = [case for group in taught for case in group]
        apart = spread_apart(part.tolist() for part in _parts(cases))
        times = iter(_times(cases).tolist())
        # Each with the next slower one: as many comparisons as are not copies of each other
        pairs = [
            (one, other)
            for group in taught
            for (_, one), (_, other) in pairwise(sorted(((next(times), case) for case in group), key=_first))
        ]
        found = differences(pairs)
        turn = float(np.median(known)) if len(known := found.spread[~np.isnan(found.spread)]) else ASSUMED
        counts = np.bincount(found.pair, minlength=len(pairs))
        vague = np.bincount(found.pair, np.isnan(found.variance), len(pairs)) > 0
        many = (counts > 1) & ~vague
        own = counts[many] - 1.0
        if len(own) < LEARNT:
            return cls(turn=turn, apart=apart, comparisons=len(own))
        sums = lambda values: np.bincount(found.pair, values, len(pairs))  # noqa: E731
        centre = sums(found.value) / np.maximum(counts, 1)
        seen = sums((found.value - centre[found.pair]) ** 2)[many] / own
        explained = sums(found.variance)[many] / counts[many]
        return cls(*fit(seen, own, explained), turn, apart, len(own))

    def compare(
        self, one: Sequence[Taken], other: Sequence[Taken], same: float = SAME, alike: bool = False
    ) -> Ratio:
        """``compare_all`` of one pair."""
        return self.compare_all([(one, other)], same, alike)[0]

    def compare_all(
        self,
        pairs: Sequence[tuple[Sequence[Taken], Sequence[Taken]]],
        same: float = SAME,
        alike: bool = False,
    ) -> list[Ratio]:
        """Of each pair the other against the one, by the launches in which they took turns, else by all under
        the noise between launches.

        ``same`` is the logarithm of the ratio within which both ends of the interval must lie for "same".
        Where the two are not ``alike``, versions of one algorithm, a busy machine slows one more than the
        other, in all launches alike.
        """
        packed = {id(case): Turns.of(case) for pair in pairs for case in pair}
        turns = [(packed[id(one)], packed[id(other)]) for one, other in pairs]
        found = differences(turns)
        met = np.bincount(found.pair, minlength=len(pairs)) > 0
        ratios = self._turned(turns, found, same, alike)
        far = [i for i in np.nonzero(met)[0].tolist()
               if ratios[i].verdict == "undecided" and abs(math.log(ratios[i].ratio)) >= CLEAR / 2]
        if far:
            some = [turns[i] for i in far]
            clear = self._turned(some, differences(some, CLEAR), same, alike)
            for i, bounded in zip(far, clear, strict=True):
                ratios[i] = _calmer(ratios[i], bounded, found.value[found.pair == i].tolist())
        if lone := np.nonzero(~met)[0].tolist():
            ones, others = (_parts([turns[i][side] for i in lone]) for side in (0, 1))
            for i, ratio in zip(lone, self.compare_apart(ones, others, same), strict=True):
                ratios[i] = ratio
        return ratios

    def _turned(
        self, pairs: Sequence[tuple[Turns, Turns]], found: Differences, same: float, alike: bool
    ) -> list[Ratio]:
        """By the launches in which they took turns alone; what has none is certain of nothing."""
        counts = np.bincount(found.pair, minlength=len(pairs))
        process, mood = self._floor([one for one, _ in pairs])
        freedom = np.full(len(pairs), self.freedom)
        alone = (counts == 1) & (freedom < FREEDOM_OF_ONE)
        process[alone], freedom[alone] = np.maximum(process[alone], ASSUMED_OF_ONE), FREEDOM_OF_ONE
        turned = np.where(np.isnan(found.variance), self.turn**2, found.variance)
        weights = 1 / (process[found.pair] ** 2 + turned)
        sums = lambda values: np.bincount(found.pair, values, len(pairs))  # noqa: E731
        whole = np.where(counts, sums(weights), 1.0)
        mean = sums(weights * found.value) / whole
        squares = sums(weights * (found.value - mean[found.pair]) ** 2)
        known = freedom + np.maximum(counts, 1) - 1
        error = np.sqrt(np.maximum((freedom + squares) / known, 0.5) / whole + (0 if alike else mood) ** 2)
        return _ratios(mean, error, known, counts, True, same)

    def _floor(self, cases: Sequence[Turns]) -> tuple[np.ndarray, np.ndarray]:
        """What the ratio to each case differs by between launches at least, and by a busy machine's mood."""
        distinct = {id(case): case for case in cases}
        places = {identity: at for at, identity in enumerate(distinct)}
        logs = np.array([part.mean() for part in _parts(list(distinct.values()))])
        loads = np.array([statistics.fmean(case.loads) for case in distinct.values()])
        at = [places[id(case)] for case in cases]
        return np.hypot(self.process, CALL_S / _exp(logs[at])), UNLIKE * loads[at]

    def compare_apart(
        self,
        ones: Sequence[Sequence[float] | np.ndarray],
        others: Sequence[Sequence[float] | np.ndarray],
        same: float = SAME,
        shift: float = 0.0,
        between: float = 0.0,
    ) -> list[Ratio]:
        """The same of launches that did not take turns, by the logarithms of their times and the noise
        between launches.

        ``shift`` is what all launches of the others are known to be slower by, as a logarithm, and
        ``between`` how far that differs from case to case.
        """
        counts, means, squares = zip(*map(_moments, (ones, others)), strict=True)
        freedom = APART_FREEDOM + counts[0] + counts[1] - 2
        variance = np.maximum((APART_FREEDOM * self.apart**2 + squares[0] + squares[1]) / freedom,
                              self.apart**2)  # fmt: skip
        error = np.sqrt(variance * (1 / counts[0] + 1 / counts[1]) + between**2)
        return _ratios(means[1] - means[0] - shift, error, freedom, np.minimum(*counts), False, same)

    def launches_for(self, ratio: Ratio, same: float = SAME) -> int:
        """How many launches about as noisy as these would decide what is undecided."""
        half = (math.log(ratio.high) - math.log(ratio.low)) / 2
        centre = abs(math.log(ratio.ratio))
        # For "same" the interval must fit, for a lead it must exclude 1
        goal = max(abs(centre - same), centre, same / 4)
        return max(ratio.launches + 1, math.ceil(ratio.launches * (half / goal) ** 2))

    def text(self) -> str:
        """One sentence for the reader."""
        if self.comparisons < LEARNT:
            return (f"Too few comparisons to measure how launches differ: {ASSUMED:.0%} is assumed; "
                    f"neighbouring turns differ by {self.turn:.1%}.")  # fmt: skip
        return (f"The ratio of two algorithms differs by {self.turn:.1%} from one turn to the next, and by "
                f"{self.process:.1%} from launch to launch ({self.comparisons} comparisons).")  # fmt: skip


def _first(pair: tuple[float, T]) -> float:
    return pair[0]


def _parts(cases: Sequence[Turns]) -> list[np.ndarray]:
    """What each launch of each case says by itself."""
    ends = np.cumsum([len(case) for case in cases])
    return np.split(middles(cases), ends[:-1]) if cases else []


def _times(cases: Sequence[Turns]) -> np.ndarray:
    """The logarithm of the time of each case: the median of its launches."""
    logs, found = middles(cases), np.empty(len(cases))
    for rows, places in by_length(np.array([len(case) for case in cases], np.int64)):
        found[rows] = np.median(logs[places], axis=1)
    return found


def _moments(cases: Sequence[Sequence[float] | np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each case how many launches it has, their mean, and the sum of their squared distances from it."""
    counts = np.array([len(case) for case in cases], np.int64)
    logs, owner = np.concatenate([[], *cases]), np.repeat(np.arange(len(cases)), counts)
    means = np.bincount(owner, logs, len(cases)) / counts
    return counts, means, np.bincount(owner, (logs - means[owner]) ** 2, len(cases))


def _calmer(ratio: Ratio, clear: Ratio, values: Sequence[float]) -> Ratio:
    """One that is now 2 and now 9 times as slow is surely slower: turns only say whether they are, up to
    ``CLEAR``. Its ratio is then that of the calmer launches.
    """
    if clear.verdict not in ("slower", "faster"):
        return ratio
    values = sorted(values, key=abs)
    median = statistics.median_low if clear.ratio > 1 else statistics.median_high
    calmer, last = float(_exp(median(values))), float(_exp(values[-1]))
    if clear.ratio > 1:
        return clear._replace(ratio=max(calmer, clear.low), high=max(last, calmer, clear.low))
    return clear._replace(ratio=min(calmer, clear.high), low=min(last, calmer, clear.high))


@lru_cache(maxsize=1024)
def _quantiles(freedom: float) -> tuple[float, float]:
    """Of the interval, and of the wider one that must lie within 5% for "same"."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - FALSE_DISCOVERIES / 2)), float(stdtrit(freedom, 1 - FALSELY_SAME))


def _ratios(
    mean: np.ndarray, error: np.ndarray, freedom: np.ndarray, launches: np.ndarray, paired: bool, same: float
) -> list[Ratio]:
    from scipy.special import stdtr

    error = np.maximum(error, 1e-9)
    distinct, which = np.unique(freedom, return_inverse=True)
    quantiles = np.array([_quantiles(round(value, 2)) for value in distinct.tolist()]).reshape(-1, 2)
    reach, wider = quantiles[which].T * error
    p = 2 * stdtr(freedom, -np.abs(mean) / error)
    differs = np.where(mean > 0, "slower", "faster")
    verdict = np.where(p <= FALSE_DISCOVERIES, differs, "undecided")
    verdict = np.where((-same < mean - wider) & (mean + wider < same), "same", verdict)
    columns = [_exp(mean), _exp(mean - reach), _exp(mean + reach), p, launches]
    rows = zip(*(column.tolist() for column in columns), repeat(paired), verdict.tolist())
    return list(starmap(Ratio, rows))


def _exp(value: np.ndarray | float) -> np.ndarray:
    return np.exp(np.clip(value, -700.0, 700.0))


def discoveries(ps: Sequence[float], rate: float = FALSE_DISCOVERIES) -> list[bool]:
    """Which differences of a table are claimed, so that at most that share of the
    claims is false (Benjamini and Hochberg).
    """
    order = sorted(range(len(ps)), key=ps.__getitem__)
    last = max(
        (place + 1 for place, i in enumerate(order) if ps[i] <= rate * (place + 1) / len(ps)), default=0
    )
    found = [False] * len(ps)
    for i in order[:last]:
        found[i] = True
    return found


def judged(ratios: Sequence[Ratio], rate: float = FALSE_DISCOVERIES) -> list[Verdict]:
    """The verdicts of a table together."""
    found = discoveries([ratio.p for ratio in ratios], rate)
    return [
        "undecided" if ratio.verdict in ("faster", "slower") and not claimed else ratio.verdict
        for ratio, claimed in zip(ratios, found, strict=True)
    ]


@dataclass(frozen=True)
class Decision(Generic[T]):
    """What a table of comparisons decides of one problem.

    Attributes
    ----------
    first : T
        The fastest: by the times alone, unless turns show that another is faster.
    verdict : str
        "winner", where each rival is slower and the table as a whole allows to claim it; "same", where those
        that are not are shown to be; "undecided"; "alone" without rivals.
    rivals : list of (T, Ratio, verdict)
        The others by their ratios to the fastest, the nearest first, and what the table claims of each.
    left : list of (T, Ratio)
        The rivals that stand against its winning.
    """

    first: T
    verdict: str
    rivals: list[tuple[T, Ratio, Verdict]]
    left: list[tuple[T, Ratio]]


def decisions(
    problems: Iterable[Sequence[T]],
    launches: Callable[[T], Sequence[Taken]],
    same: float = SAME,
    model: Callable[[T], Model] | None = None,
) -> list[Decision[T]]:
    """Decide a table: of each problem, at least one contender, who is the fastest and whether the noise could
    explain it.

    Parameters
    ----------
    launches : callable
        Those of a contender.
    same : float
        Logarithm of the ratio up to which two are the same.
    model : callable, optional
        The noise of the table that a contender belongs to; learnt from all of these unless given.
    """
    problems = list(problems)
    packed = [[Turns.of(launches(one)) for one in contenders] for contenders in problems]
    learnt = Model.of(packed) if model is None else None
    noises = [learnt or model(contenders[0]) for contenders in problems]  # type: ignore[misc]
    table = _against_the_fastest(packed, noises, same)
    ps = [max((r.p if r.verdict == "slower" else 1.0 for _, r in rivals), default=1.0) for _, rivals in table]
    found = []
    for contenders, (first, rivals), sure in zip(problems, table, discoveries(ps), strict=True):
        left = [pair for pair in rivals if pair[1].verdict != "slower"]
        if rivals and not left and not sure:
            left = [max(rivals, key=lambda pair: pair[1].p)]
        if left:
            verdict = "same" if all(ratio.verdict == "same" for _, ratio in left) else "undecided"
        else:
            verdict = "winner" if rivals else "alone"
        open_ = {at for at, ratio in left if ratio.verdict != "same"}
        said: list[tuple[T, Ratio, Verdict]] = [
            (contenders[at], ratio, "undecided" if at in open_ else ratio.verdict) for at, ratio in rivals
        ]
        found.append(
            Decision(contenders[first], verdict, said, [(contenders[at], ratio) for at, ratio in left])
        )
    return found


Standings = tuple[int, list[tuple[int, Ratio]]]


def _against_the_fastest(
    problems: Sequence[Sequence[Turns]], models: Sequence[Model], same: float
) -> list[Standings]:
    """Of each problem the place of the fastest of at least one contender, and those of its rivals with their
    ratios to it, the nearest first.
    """
    times = iter(_times([case for cases in problems for case in cases]).tolist())
    firsts = [min((next(times), at) for at in range(len(cases)))[1] for cases in problems]
    found = dict(enumerate(_ranked(problems, models, firsts, same)))
    # Turns may show that another is faster; once, since they need not agree on an order
    faster = {
        i: rivals[0][0] for i, (_, rivals) in found.items() if rivals and rivals[0][1].verdict == "faster"
    }
    again = _ranked([problems[i] for i in faster], [models[i] for i in faster], list(faster.values()), same)
    found.update(zip(faster, again, strict=True))
    return list(found.values())


def _ranked(
    problems: Sequence[Sequence[Turns]], models: Sequence[Model], firsts: Sequence[int], same: float
) -> list[Standings]:
    """The rivals of the first of each problem, the nearest first."""
    places: dict[Model, list[tuple[int, int]]] = {}
    for i, (cases, model, first) in enumerate(zip(problems, models, firsts, strict=True)):
        places.setdefault(model, []).extend((i, at) for at in range(len(cases)) if at != first)
    rivals: list[list[tuple[int, Ratio]]] = [[] for _ in problems]
    for model, of_model in places.items():
        pairs = [(problems[i][firsts[i]], problems[i][at]) for i, at in of_model]
        for (i, at), ratio in zip(of_model, model.compare_all(pairs, same), strict=True):
            rivals[i].append((at, ratio))
    return [(first, sorted(own, key=lambda pair: pair[1].ratio))
            for first, own in zip(firsts, rivals, strict=True)]  # fmt: skip
