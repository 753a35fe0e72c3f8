"""What launches say: the turns that rivals took in them, and what their common rounds tell of a ratio.

Everything is computed of many pairs at once, in arrays: a large store compares a hundred thousand.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from bench.record import CALM, Record

FEW_TURNS = 4  # fewer say nothing of their own spread
AT_ONCE = 1 << 13  # pairs whose turns lie in arrays together


class Taken(NamedTuple):
    """The turns of one launch: round -> logarithm of seconds, what names its
    rounds, and other tasks a core meanwhile.
    """

    together: str
    turns: Mapping[int, float]
    load: float = 0.0


class Turns(Sequence[Taken]):
    """Launches of one case, in a seventh of the memory of ``Taken``, which they give when they are looked at.

    Attributes
    ----------
    together : tuple of str
        What names the rounds of each launch.
    rounds : tuple of arrays
        The numbers of its rounds, in rising order.
    logs : array
        Logarithms of seconds of all of them, launch after launch.
    loads : array
        Other tasks a core.
    """

    __slots__ = ("loads", "logs", "rounds", "together")

    def __init__(self, launches: Iterable[Taken]) -> None:
        launches = [launch._replace(turns=dict(sorted(launch.turns.items()))) for launch in launches]
        self.together = tuple(launch.together for launch in launches)
        self.rounds = tuple(_shared(tuple(launch.turns)) for launch in launches)
        self.logs = array("d", [log for launch in launches for log in launch.turns.values()])
        self.loads = array("d", [launch.load for launch in launches])

    @classmethod
    def of(cls, launches: Sequence[Taken]) -> Turns:
        """Themselves where they are packed already."""
        return launches if isinstance(launches, Turns) else cls(launches)

    def __len__(self) -> int:
        return len(self.together)

    def __iter__(self) -> Iterator[Taken]:
        parts = zip(self.together, self.rounds, self.parts(), self.loads, strict=True)
        for together, rounds, logs, load in parts:
            yield Taken(together, dict(zip(rounds.tolist(), logs.tolist(), strict=True)), load)

    def __getitem__(self, at: Any) -> Any:
        return tuple(self)[at]

    def parts(self) -> list[np.ndarray]:
        """The logarithms of each launch."""
        logs, at, found = np.asarray(self.logs), 0, []
        for rounds in self.rounds:
            found.append(logs[at : at + len(rounds)])
            at += len(rounds)
        return found


@lru_cache(maxsize=1 << 12)
def _shared(rounds: tuple[int, ...]) -> np.ndarray:
    """One object for equal numbers of rounds."""
    return np.array(rounds, np.int64)


def taken(record: Record) -> Turns:
    """The launches of a record, as they are compared."""
    found = Turns.__new__(Turns)
    timed = [launch.timed() for launch in record.launches]
    found.together = tuple([launch.together for launch in record.launches])
    found.rounds = tuple([_shared(rounds) for rounds, _ in timed])
    found.logs = array("d", [math.log(s if s > 1e-12 else 1e-12) for _, times in timed for s in times])
    found.loads = array("d", [launch.load or 0.0 for launch in record.launches])
    return found


def _calm(count: int) -> int:
    """How many of so many turns are the calmest third."""
    return max(1, math.ceil(count / CALM))


def by_length(counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of pieces of an array, one after the other: which are of one length, and where their elements lie, a
    row each.
    """
    starts = np.cumsum(counts) - counts
    for count in np.unique(counts).tolist():
        (rows,) = np.nonzero(counts == count)
        yield rows, starts[rows, None] + np.arange(count)


def middles(cases: Sequence[Turns]) -> np.ndarray:
    """What each launch of each case says by itself, case after case: the mean of its calmest third."""
    counts = np.array([len(rounds) for case in cases for rounds in case.rounds], np.int64)
    logs, found = np.array([]), np.empty(len(counts))
    if len(counts):
        logs = np.frombuffer(b"".join(case.logs for case in cases))
    for rows, places in by_length(counts):
        calm = _calm(places.shape[1])
        found[rows] = np.sort(logs[places], axis=1)[:, :calm].sum(axis=1) / calm
    return found


class Differences(NamedTuple):
    """What the launches say in which two cases took turns, of many pairs of cases; a launch each.

    Attributes
    ----------
    pair : array
        Which pair, in rising order.
    value : array
        log(other / one).
    variance : array
        Of ``value``, as its turns explain it; NaN where they are too few.
    spread : array
        Typical difference of the ratio from turn to turn; NaN where they are too few.
    """

    pair: np.ndarray
    value: np.ndarray
    variance: np.ndarray
    spread: np.ndarray


def differences(pairs: Sequence[tuple[Turns, Turns]], most: float = math.inf) -> Differences:
    """Launch by launch, where both took turns: the difference of the means of the calmest third of either's
    turns, in the rounds that they have in common.

    Neighbours make turns of two kinds, and the median of a pair's differences jumps between them; the calmest
    third is the same kind while a third of the turns is left alone. Its variance is that of its influence
    function, which is each turn cut at that third: what the two have in common in a round is no noise. No
    round says more than ``most``, either way.
    """
    found = [
        _differences(pairs[start : start + AT_ONCE], start, most) for start in range(0, len(pairs), AT_ONCE)
    ]
    columns = zip(*found, strict=True) if found else ([np.empty(0)] for _ in Differences._fields)
    pair, *figures = map(np.concatenate, columns)
    return Differences(pair.astype(np.int64), *figures)


def _differences(pairs: Sequence[tuple[Turns, Turns]], start: int, most: float) -> Differences:
    owner, counts, one, other = _common(pairs)
    value, variance, spread = np.full((3, len(owner)), np.nan)
    for rows, places in by_length(counts):
        count = places.shape[1]
        calm, first = _calm(count), one[places]
        second = np.clip(other[places], first - most, first + most)
        lows = [np.sort(logs, axis=1)[:, :calm] for logs in (first, second)]
        value[rows] = lows[1].sum(axis=1) / calm - lows[0].sum(axis=1) / calm
        if count < FEW_TURNS:
            continue
        influence = np.minimum(second, lows[1][:, -1:]) - np.minimum(first, lows[0][:, -1:])
        squares = ((influence - influence.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        # Few turns often agree by luck
        variance[rows] = squares / (count - 1) * (count / calm) ** 2 / count * (1 + 2.0 / count)
        apart = second - first
        centre = np.median(apart, axis=1, keepdims=True)
        spread[rows] = 1.4826 * np.median(np.abs(apart - centre), axis=1)
    return Differences(owner + start, value, variance, spread)


def _common(pairs: Sequence[tuple[Turns, Turns]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of launches with rounds in common: the pair, how many rounds those are, and both sides' turns in
    them, launch after launch.
    """
    owner: list[int] = []
    rounds: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    logs: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    parts: dict[int, list[np.ndarray]] = {}  # of those that meet many others
    for pair, (one, other) in enumerate(pairs):
        if id(one) not in parts:
            parts[id(one)] = one.parts()
        parts_of_other = other.parts()
        if one.together == other.together and _distinct(one.together):  # nearly always
            owner += [pair] * len(one.together)
            for side, case in zip(rounds, (one, other), strict=True):
                side += case.rounds
            for of_side, own in zip(logs, (parts[id(one)], parts_of_other), strict=True):
                of_side += own
            continue
        partners = {name: at for at, name in enumerate(other.together) if name}
        for at, name in enumerate(one.together):
            if (place := partners.get(name)) is not None:
                owner.append(pair)
                rounds[0].append(one.rounds[at])
                rounds[1].append(other.rounds[place])
                logs[0].append(parts[id(one)][at])
                logs[1].append(parts_of_other[place])
    if not owner:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0)
    keys, theirs = (_keys(side) for side in rounds)
    first, second = (np.concatenate(side) for side in logs)
    if not np.array_equal(keys, theirs):
        keys, mine, others = np.intersect1d(keys, theirs, assume_unique=True, return_indices=True)
        first, second = first[mine], second[others]
    counts = np.bincount(keys >> 40, minlength=len(owner))
    return np.array(owner)[counts > 0], counts[counts > 0], first, second


@lru_cache(maxsize=1 << 12)
def _distinct(names: tuple[str, ...]) -> bool:
    return all(names) and len({*names}) == len(names)


def _keys(rounds: Sequence[np.ndarray]) -> np.ndarray:
    """One rising number for each (launch, round)."""
    launches = np.repeat(np.arange(len(rounds)), [len(own) for own in rounds])
    return (launches << 40) + np.concatenate(rounds)
