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
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np

from bench.record import CALM, Record

T = TypeVar("T")
Verdict = Literal["faster", "slower", "same", "undecided"]

FALSE_DISCOVERIES = 0.02
FALSELY_SAME = 0.004  # of those that differ by just 5%
SAME = math.log(1.05)
# Relative spread between launches that is always assumed: the alignment of a loop alone moves it by that
LEAST = 0.005
# Spread between launches, and how sure that is, where a table is too small to tell: their own spread must do,
# and one launch alone has none. With 4 degrees of freedom 11% of twins were called different where launches
# truly differ by 5%, so 2%.
ASSUMED, ASSUMED_FREEDOM = 0.02, 0.5
ASSUMED_OF_ONE, FREEDOM_OF_ONE = 0.05, 4.0
LEAST_FREEDOM, MOST_FREEDOM = 2.0, 30.0
MOST = 3.0  # spread between launches
LEARNT = 8  # comparisons of two launches or more from which the spread is learnt
APART, APART_FREEDOM = 0.10, 4.0  # spread between launches that did not take turns, where nothing tells
TAUGHT = 200  # groups that are learnt from, evenly spread over those that there are
# What two algorithms' ratio shifts by for each other task a core, in all launches of a run: 1.20 and 1.00
# were seen under 1.9.
UNLIKE = 0.04
# What a call from Python differs by between processes, by where its objects lie: calls of 6 us differed by
# 2.0% from pair to pair, of which their turns and longer calls explained 0.9%.
CALL_S = 2e-7
FEW_TURNS = 4  # fewer say nothing of their own spread
CLEAR = math.log(1.5)  # beyond it, how much slower a turn was does not make it any surer that it was slower
BEHIND, RACED = 4.0, 0.02  # standard errors that make a rival surely behind, and what launches may differ by


class Taken(NamedTuple):
    """The turns of one launch: round -> logarithm of seconds, what names its
    rounds, and other tasks a core meanwhile.
    """

    together: str
    turns: Mapping[int, float]
    load: float = 0.0


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


class Difference(NamedTuple):
    """What one launch says: log(other / one), and the variance that its turns
    explain, None where they are too few.
    """

    value: float
    variance: float | None


class Packed(Sequence[Taken]):
    """``taken`` in a seventh of its memory, unpacked each time that they are looked at:
    a frame holds those of all records.
    """

    __slots__ = ("_loads", "_rounds", "_together", "_values")

    def __init__(self, record: Record) -> None:
        self._together = tuple(launch.together for launch in record.launches)
        self._loads = array("f", [launch.load or 0.0 for launch in record.launches])
        self._rounds = tuple(_shared(tuple(launch.turn_times)) for launch in record.launches)
        times = [s for launch in record.launches for s in launch.turn_times.values()]
        self._values = array("d", [math.log(s if s > 1e-12 else 1e-12) for s in times])

    def __len__(self) -> int:
        return len(self._together)

    def __iter__(self) -> Iterator[Taken]:
        values = iter(self._values)
        for together, rounds, load in zip(self._together, self._rounds, self._loads, strict=True):
            yield Taken(together, dict(zip(rounds, values, strict=False)), load)

    def __getitem__(self, at: Any) -> Any:
        return tuple(self)[at]


@lru_cache(maxsize=1 << 12)
def _shared(rounds: tuple[int, ...]) -> tuple[int, ...]:
    """One object for equal numbers of rounds."""
    return rounds


def taken(record: Record) -> tuple[Taken, ...]:
    """The launches of a record, as they are compared."""
    return tuple(
        Taken(
            launch.together,
            {number: math.log(max(s, 1e-12)) for number, s in launch.turn_times.items()},
            launch.load or 0.0,
        )
        for launch in record.launches
    )


def difference(
    one: Mapping[int, float], other: Mapping[int, float], most: float = math.inf
) -> Difference | None:
    """What the rounds in common tell: the difference of the means of the calmest third of either's turns.

    Neighbours make turns of two kinds, and the median of a pair's differences jumps between them; the calmest
    third is the same kind while a third of the turns is left alone. Its variance is that of its influence
    function, which is each turn cut at that third: what the two have in common in a round is no noise. No
    round says more than ``most``, either way.
    """
    rounds = sorted(one.keys() & other.keys())
    if not rounds:
        return None
    count = len(rounds)
    first = [one[k] for k in rounds]
    second = [max(x - most, min(x + most, other[k])) for k, x in zip(rounds, first, strict=True)]
    taken = max(1, math.ceil(count / CALM))
    lows = [sorted(values)[:taken] for values in (first, second)]
    value = math.fsum(lows[1]) / taken - math.fsum(lows[0]) / taken
    if count < FEW_TURNS:
        return Difference(value, None)
    at, limit = lows[0][-1], lows[1][-1]
    influence = [min(y, limit) - min(x, at) for x, y in zip(first, second, strict=True)]
    centre = math.fsum(influence) / count
    spread = math.fsum((v - centre) ** 2 for v in influence) / (count - 1) * (count / taken) ** 2
    return Difference(value, spread / count * (1 + 2.0 / count))  # few turns often agree by luck


def differences(one: Sequence[Taken], other: Sequence[Taken], most: float = math.inf) -> list[Difference]:
    """Launch by launch, where both took turns."""
    partners = {launch.together: launch for launch in other if launch.together}
    found = (
        difference(launch.turns, partners[launch.together].turns, most)
        for launch in one
        if launch.together in partners
    )
    return [d for d in found if d is not None]


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
        groups = groups[:: -(-len(groups) // TAUGHT) or 1]
        # Variance between launches, its freedom, variance that turns explain
        excess: list[tuple[float, int, float]] = []
        turns: list[float] = []
        alone: list[float] = []
        for group in groups:
            for case in group:
                alone += _deviations(_middles(case))
            for one, other in _neighbours(group):
                found = differences(one, other)
                known = [d.variance for d in found if d.variance is not None]
                for launch in one:
                    turns += _turn_spreads(launch, other)
                if len(found) > 1 and len(known) == len(found):
                    excess.append(
                        (statistics.variance(d.value for d in found), len(found) - 1, statistics.fmean(known))
                    )
        apart = _spread_apart(alone)
        turn = statistics.median(turns) if turns else ASSUMED
        if len(excess) < LEARNT:
            return cls(turn=turn, apart=apart, comparisons=len(excess))
        return cls(*_fit(excess), turn, apart, len(excess))

    def compare(
        self, one: Sequence[Taken], other: Sequence[Taken], same: float = SAME, alike: bool = False
    ) -> Ratio:
        """``other`` against ``one``, by the launches in which they took turns, else by all under the noise
        between launches.

        ``same`` is the logarithm of the ratio within which both ends of the interval must lie for "same".
        Where the two are not ``alike``, versions of one algorithm, a busy machine slows one more than the
        other, in all launches alike.
        """
        found = differences(one, other)
        if not found:
            return self.compare_apart(_middles(one), _middles(other), same)
        mood = 0.0 if alike else UNLIKE * statistics.fmean(launch.load for launch in one)
        short = CALL_S / _exp(statistics.fmean(_middles(one)))
        ratio = _ratio(*self._mean(found, mood, short), len(found), True, same)
        if ratio.verdict != "undecided" or abs(math.log(ratio.ratio)) < CLEAR / 2:
            return ratio
        # One that is now 2 and now 9 times as slow is surely slower: turns only say whether they are, up to
        # CLEAR. Its ratio is then that of the calmer launches.
        clear = _ratio(*self._mean(differences(one, other, CLEAR), mood, short), len(found), True, same)
        if clear.verdict not in ("slower", "faster"):
            return ratio
        values = sorted((d.value for d in found), key=abs)
        calmer, last = (
            _exp(statistics.median_low(values) if clear.ratio > 1 else statistics.median_high(values)),
            values[-1],
        )
        if clear.ratio > 1:
            return clear._replace(ratio=max(calmer, clear.low), high=max(_exp(last), calmer, clear.low))
        return clear._replace(ratio=min(calmer, clear.high), low=min(_exp(last), calmer, clear.high))

    def _mean(self, found: Sequence[Difference], mood: float, short: float) -> tuple[float, float, float]:
        """The mean of launches' differences, its standard error, and the degrees of freedom of that."""
        process, freedom = math.hypot(self.process, short), self.freedom
        if len(found) == 1 and freedom < FREEDOM_OF_ONE:
            process, freedom = max(process, ASSUMED_OF_ONE), FREEDOM_OF_ONE
        variances = [process**2 + (d.variance if d.variance is not None else self.turn**2) for d in found]
        weights = [1 / v for v in variances]
        whole = math.fsum(weights)
        mean = math.fsum(w * d.value for w, d in zip(weights, found, strict=True)) / whole
        squares = math.fsum(w * (d.value - mean) ** 2 for w, d in zip(weights, found, strict=True))
        whole_freedom = freedom + len(found) - 1
        return mean, math.sqrt(max((freedom + squares) / whole_freedom, 0.5) / whole + mood**2), whole_freedom

    def compare_apart(
        self,
        one: Sequence[float],
        other: Sequence[float],
        same: float = SAME,
        shift: float = 0.0,
        between: float = 0.0,
    ) -> Ratio:
        """The same of launches that did not take turns, by the logarithms of their times and the noise
        between launches.

        ``shift`` is what all launches of the other are known to be slower by, as a logarithm, and ``between``
        how far that differs from case to case.
        """
        means = statistics.fmean(one), statistics.fmean(other)
        squares = math.fsum(
            (t - mean) ** 2 for times, mean in zip((one, other), means, strict=True) for t in times
        )
        freedom = APART_FREEDOM + len(one) + len(other) - 2
        variance = max((APART_FREEDOM * self.apart**2 + squares) / freedom, self.apart**2)
        error = math.sqrt(variance * (1 / len(one) + 1 / len(other)) + between**2)
        return _ratio(means[1] - means[0] - shift, error, freedom, min(len(one), len(other)), False, same)

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


def _neighbours(group: Sequence[Sequence[Taken]]) -> Iterable[tuple[Sequence[Taken], Sequence[Taken]]]:
    """Each case with the next slower one: as many comparisons as are not copies of each other."""
    return pairwise(sorted(filter(None, group), key=lambda case: statistics.median(_middles(case))))


def spread_apart(cases: Iterable[Sequence[float]]) -> float:
    """``Model.apart`` from the logarithms of the launches' times of each case."""
    return _spread_apart([deviation for times in cases for deviation in _deviations(times)])


def _spread_apart(deviations: Sequence[float]) -> float:
    return max(_robust(deviations), LEAST) if len(deviations) >= 2 * LEARNT else APART


def _deviations(times: Sequence[float]) -> list[float]:
    """Of launches from their case; none of a single one."""
    if len(times) < 2:
        return []
    centre, scale = statistics.fmean(times), math.sqrt(len(times) / (len(times) - 1))
    return [(t - centre) * scale for t in times]


def _middles(launches: Iterable[Taken]) -> list[float]:
    """What each launch says by itself: the mean of its calmest third."""
    return [statistics.fmean(sorted(x.turns.values())[: math.ceil(len(x.turns) / CALM)]) for x in launches]


def _turn_spreads(launch: Taken, other: Sequence[Taken]) -> list[float]:
    """The spread of one launch's ratios from turn to turn, in a list; empty where that cannot be told."""
    for partner in other:
        if partner.together == launch.together != "":
            rounds = sorted(launch.turns.keys() & partner.turns.keys())
            if len(rounds) >= FEW_TURNS:
                values = [partner.turns[k] - launch.turns[k] for k in rounds]
                centre = statistics.median(values)
                return [1.4826 * statistics.median(abs(v - centre) for v in values)]
    return []


def _robust(values: Sequence[float]) -> float:
    """Standard deviation of a centred normal with heavy tails: the larger of what
    its middle and its outer tenth tell.
    """
    size = sorted(map(abs, values))
    return max(1.4826 * statistics.median(size), size[min(len(size) - 1, int(0.9 * len(size)))] / 1.6449)


def _fit(excess: Sequence[tuple[float, int, float]]) -> tuple[float, float]:
    """Spread between launches, and the degrees of freedom that it is known with (Smyth's estimators).

    From (variance seen between launches, its freedom, variance that turns explain) of each comparison. On the
    scale of logarithms: one disturbed comparison makes the freedom small, not everybody's spread large.
    """
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    seen, own, explained = (np.array(column, float) for column in zip(*excess, strict=True))
    luck = digamma(own / 2) - np.log(own / 2)

    def logs(process: float) -> np.ndarray:
        return np.log(np.maximum(seen, 1e-12) / (process**2 + explained)) - luck

    process, freedom = LEAST, MOST_FREEDOM
    for _ in range(8):
        left = float(np.var(logs(process), ddof=1) - polygamma(1, own / 2).mean())
        within = polygamma(1, MOST_FREEDOM / 2) < left < polygamma(1, LEAST_FREEDOM / 2)
        freedom = LEAST_FREEDOM if left > polygamma(1, MOST_FREEDOM / 2) else MOST_FREEDOM
        if within:
            freedom = brentq(
                lambda d, left=left: float(polygamma(1, d / 2)) - left, LEAST_FREEDOM, MOST_FREEDOM
            )
        goal = float(np.log(freedom / 2) - digamma(freedom / 2))
        spread = lambda p, goal=goal: float(logs(p).mean()) - goal  # noqa: E731
        process = LEAST if spread(LEAST) <= 0 else brentq(spread, LEAST, MOST) if spread(MOST) < 0 else MOST
    return process, freedom


@lru_cache(maxsize=1024)
def _quantiles(freedom: float) -> tuple[float, float]:
    """Of the interval, and of the wider one that must lie within 5% for "same"."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - FALSE_DISCOVERIES / 2)), float(stdtrit(freedom, 1 - FALSELY_SAME))


def _ratio(mean: float, error: float, freedom: float, launches: int, paired: bool, same: float) -> Ratio:
    from scipy.special import stdtr

    error = max(error, 1e-9)
    reach, wider = (quantile * error for quantile in _quantiles(round(freedom, 2)))
    p = 2 * float(stdtr(freedom, -abs(mean) / error))
    low, high = mean - reach, mean + reach
    verdict: Verdict = "undecided"
    if -same < mean - wider and mean + wider < same:
        verdict = "same"
    elif p <= FALSE_DISCOVERIES:
        verdict = "slower" if mean > 0 else "faster"
    return Ratio(_exp(mean), _exp(low), _exp(high), p, launches, paired, verdict)


def _exp(value: float) -> float:
    return math.exp(min(700.0, max(-700.0, value)))


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
    if model is None:
        learnt = Model.of([[launches(one) for one in contenders] for contenders in problems])
        model = lambda _: learnt  # noqa: E731
    table = [
        _against_the_fastest(model(contenders[0]), contenders, launches, same) for contenders in problems
    ]
    ps = [max((r.p if r.verdict == "slower" else 1.0 for _, r in rivals), default=1.0) for _, rivals in table]
    found = []
    for (first, rivals), sure in zip(table, discoveries(ps), strict=True):
        left = [pair for pair in rivals if pair[1].verdict != "slower"]
        if rivals and not left and not sure:
            left = [max(rivals, key=lambda pair: pair[1].p)]
        if left:
            verdict = "same" if all(ratio.verdict == "same" for _, ratio in left) else "undecided"
        else:
            verdict = "winner" if rivals else "alone"
        open_ = {id(pair) for pair in left if pair[1].verdict != "same"}
        said = [(*pair, "undecided" if id(pair) in open_ else pair[1].verdict) for pair in rivals]
        found.append(Decision(first, verdict, said, left))
    return found


def _against_the_fastest(
    model: Model, contenders: Sequence[T], launches: Callable[[T], Sequence[Taken]], same: float
) -> tuple[T, list[tuple[T, Ratio]]]:
    """The fastest of at least one contender, and its rivals with their ratios to it, the nearest first."""
    first = min(contenders, key=lambda one: statistics.median(_middles(launches(one))))
    rivals: list[tuple[T, Ratio]] = []
    for _ in range(2):
        own = tuple(launches(first))
        rivals = [
            (other, model.compare(own, launches(other), same)) for other in contenders if other is not first
        ]
        nearest = min(rivals, key=lambda pair: pair[1].ratio, default=None)
        if nearest is None or nearest[1].verdict != "faster":
            break
        first = nearest[0]
    return first, sorted(rivals, key=lambda pair: pair[1].ratio)


# ---- while it is measured ----------------------------------------------------------------------------------


class Standing(NamedTuple):
    """How a race stands: who is surely behind, and whether those left are known to within the error asked
    for.
    """

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
    running = [i for i, own in enumerate(turns) if own]
    if not running:
        return Standing(frozenset(), True)
    first = min(running, key=lambda i: statistics.median(turns[i].values()))
    behind, settled = set(), True
    for i in running:
        found = difference(turns[first], turns[i], CLEAR) if i != first else None
        if found is None:
            continue
        value, variance = found
        if variance is None:
            settled = False
        elif value > BEHIND * math.hypot(math.sqrt(variance), RACED):
            behind.add(i)
        else:
            settled &= math.sqrt(variance) <= error
    return Standing(frozenset(behind), settled)
