"""How long an algorithm will take on a spec: as measured, from its nearest measured specs, or from the cost
model.

The model knows the method (operations, bytes, calls), not the machine. What was measured on other specs
corrects it: the ratio of measured to modelled time changes slowly from one shape to its neighbours, far more
slowly than the time itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from copy import copy
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, NamedTuple

from algos.build import lowering_code
from algos.contract import Algorithm
from algos.fitted import NONE, Fit
from algos.lower.chain import Chain
from algos.lower.search import chain
from algos.lower.tree import plain
from algos.neighbours import Places, kind
from algos.spec import ConvSpec
from algos.wisdom import Known, Memory

_Entries = dict[str, Known]  # by tunables
Source = Literal["measured", "nearest", "model"]

# How much an estimate must beat a measurement by: the error that each source usually has.
DOUBT: dict[Source, float] = {"measured": 1.0, "nearest": 1.4, "model": 2.0}
NEIGHBOURS = 3
SURE = 1.64  # standard deviations: nine in ten lie within
MOST = 16  # near specs that were measured, whose entries are looked at
AT_FIRST = 8  # near specs whose entries are read first
AHEAD = 256  # specs of which is asked at once whether they were measured


class Estimate(NamedTuple):
    """How long a way takes, and where that comes from; what few ask for is found out when it is asked for."""

    way: Chain
    threads: int
    run_s: float  # seconds of one run
    source: Source
    entry: Known | None = None  # the measured one, or the nearest
    whose: str = ""  # of an entry of another machine, whose that is
    error: float = 0.0  # standard deviation of the logarithm of what estimates of its kind are off by

    @property
    def prepare_s(self) -> float:
        if self.entry is not None:
            return self.entry.prepare_s
        return self.way.prepare_s(self.threads)

    @property
    def compile_s(self) -> float:
        """Seconds of compiling before the first run."""
        return self.way.compiling_s()

    @property
    def known(self) -> Known | None:
        """Of a measured one."""
        return self.entry if self.source == "measured" else None

    @property
    def detail(self) -> str:
        if self.entry is None:
            return "operations, bytes and calls"
        text = f"{'measured on' if self.source == 'measured' else 'nearest measured spec'} {self.entry.spec}"
        return f"{text} {self.whose}" if self.whose else text

    def interval(self, best_s: float) -> tuple[float | None, float | None]:
        """Between which seconds of a run the truth most likely lies; ``best_s`` are those of the fastest."""
        if self.known is None:
            factor = math.exp(SURE * self.error) if self.error else DOUBT[self.source]
            return self.run_s / factor, self.run_s * factor
        judged = self.known.verdict in ("slower", "same", "undecided") and best_s and self.known.low
        return (best_s * self.known.low, best_s * self.known.high) if judged else (None, None)

    def expected_s(self, calls: int | None) -> float:
        """Seconds per call when ``calls`` share prepare and compiling; None means so many that both vanish.
        """
        return self.run_s + ((self.prepare_s + self.compile_s) / calls if calls else 0.0)


@lru_cache(maxsize=4096)
def tunables_text(algorithm: Algorithm) -> str:
    """Tunables as they stand in records: JSON with sorted keys."""
    return json.dumps(algorithm.tunables(), sort_keys=True, default=str)


class Knowledge:
    """What is known about the algorithms of this build; entries are read when a spec near them is asked for.

    Parameters
    ----------
    entries : Memory or iterable of Known
        Of one machine.
    fit : Fit
        What corrects the cost model.
    elsewhere, whose : Knowledge or None, str
        What another machine knows, asked where this one knows nothing near, and which that is, in words.
    build : callable
        The present build of an algorithm: entries of another build are stale and left out.
    """

    def __init__(
        self,
        entries: Memory | Iterable[Known],
        found: dict[str, Algorithm],
        build: Callable[[Algorithm], str],
        fit: Fit = NONE,
        elsewhere: Knowledge | None = None,
        whose: str = "",
    ) -> None:
        self._memory = entries if isinstance(entries, Memory) else Memory(entries)
        self._found, self._build, self._without, self.fit = found, build, "", fit
        self.elsewhere, self.whose = elsewhere, whose
        places = self._memory.places()
        self._specs = {text for text, _ in places}
        # Of the present ones those that anything is known of
        self._builds = self._memory.builds({build(a) for a in found.values()}) if self._specs else set()
        self._on: dict[str, dict[tuple[str, int], _Entries]] = {}
        rows: dict[str, list[tuple[str, bytes]]] = {}
        for text, (of_kind, packed) in places:
            rows.setdefault(of_kind, []).append((text, packed))
        self._places = {name: Places(*zip(*pairs, strict=True)) for name, pairs in rows.items()}
        self.hopeless: dict[Hashable, frozenset[str]] = {}  # the picker's
        self._is_timed: dict[int, dict[str, bool]] = {}  # by threads
        self._timed: dict[tuple[str, int], dict[str, _Timed]] = {}
        current = [entry for entry in self._memory.wrong() if self._is_current(entry)]
        own = [entry for entry in current if entry.tunables == tunables_text(found[entry.algorithm])]
        # What is wrong where nothing was lowered is wrong everywhere, else only with the same lowerings.
        self._wrong = {(entry.algorithm, entry.chain): entry for entry in own}

    def left_out(self, spec: str) -> Knowledge:
        """The same, but for what is known of ``spec``."""
        other = copy(self)
        other._without, other.hopeless = spec, {}
        return other

    def _is_current(self, entry: Known) -> bool:
        algorithm = self._found.get(entry.algorithm)
        present = algorithm is not None and entry.build == self._build(algorithm)
        return present and (not entry.chain or entry.chain.endswith(lowering_code()))

    def wrong(self, way: Chain) -> Known | None:
        """What was wrong of the algorithm itself, or of it behind these lowerings."""
        name = way.algorithm.name
        return self._wrong.get((name, "")) or self._wrong.get((name, way.identity))

    def _load(self, specs: Iterable[str]) -> None:
        """Have what is known of ``specs`` at hand."""
        if new := [spec for spec in specs if spec not in self._on]:
            self._on.update((spec, {}) for spec in new)
            for entry in filter(self._is_current, self._memory.on(new)):
                self._on[entry.spec].setdefault((entry.algorithm, entry.threads), {})[entry.tunables] = entry

    def _entries(self, name: str, spec: ConvSpec, threads: int) -> list[_Entries]:
        """By tunables, what is known of this very spec, or of the same work: unranked, or without its border.
        """
        asked, same = self._same  # at once: another thread may ask for another spec meanwhile
        if asked != (spec, self._without):
            same = [text for text in _same_work(spec) if text in self._specs and text != self._without]
            self._load(same)
            self._same = (spec, self._without), same
        return [entries for text in same if (entries := self._on[text].get((name, threads)))]

    def measured(self, algorithm: Algorithm, spec: ConvSpec, threads: int) -> Known | None:
        """What is known of ``algorithm`` on ``spec``, with the tunables that it has."""
        if found := self._entries(algorithm.name, spec, threads):
            text = tunables_text(algorithm)
            return next((entries[text] for entries in found if text in entries), None)
        return None

    def tuned(self, algorithm: Algorithm, spec: ConvSpec, threads: int) -> Algorithm:
        """``algorithm`` with the tunables that proved faster on ``spec``, or as it is."""
        for entries in self._entries(algorithm.name, spec, threads):
            own = tunables_text(algorithm)
            for text, entry in reversed(entries.items()):
                if text != own and entry.status == "ok" and (variant := _variant(algorithm, text)):
                    return variant
        return algorithm

    def knows(self, spec: ConvSpec) -> bool:
        """Whether anything may be known of this very spec, or of the same work."""
        return any(text in self._specs for text in _same_work(spec))

    def estimate(self, way: Chain, threads: int, here: bool = True) -> Estimate:
        """The best answer that there is for a spec as the caller states it; ``here`` is what ``knows`` says.
        """
        entry = self.measured(way.algorithm, way.spec, threads) if here else None
        if entry is not None and entry.status == "ok":
            run_s = entry.run_s
            if way.spec.finished and not ConvSpec.of(entry.spec).finished:
                run_s += way.finishing_s(threads)
            return Estimate(way, threads, run_s, "measured", entry)
        modelled = self.fit.seconds(way, threads)
        if (near := self._near(way.algorithm.name, way.spec, threads)) is None:
            if self.elsewhere is not None:
                there = self.elsewhere.estimate(way, threads)
                if there.source != "model":
                    return there._replace(source="nearest", whose=self.whose)
            return Estimate(way, threads, modelled, "model", error=self.fit.error)
        return Estimate(way, threads, modelled * near[0], "nearest", near[1])

    def _near(self, name: str, spec: ConvSpec, threads: int) -> tuple[float, Known] | None:
        """Measured over modelled time on the nearest specs on which it was measured, and the nearest entry.
        """
        if self._build(self._found[name]) not in self._builds:
            return None  # nothing would be found, however far one looks
        total, weights, found = 0.0, 0.0, 0
        first: Known | None = None
        for weight, own in self._nearest(spec, threads):
            if (timed := own.get(name)) is not None:
                if timed.log is None:
                    timed.log = self._log_ratio(name, timed.entry)
                total += weight * timed.log
                weights += weight
                first, found = first or timed.entry, found + 1
                if found == NEIGHBOURS:
                    break
        return (math.exp(total / weights), first) if first else None

    def _own(self, text: str, threads: int) -> dict[str, _Timed]:
        """What tells times on a spec with the algorithms' registered tunables, by algorithm."""
        if (own := self._timed.get((text, threads))) is None:
            self._load([text])
            own = self._timed[text, threads] = {
                name: _Timed(entry)
                for (name, count), entries in self._on[text].items()
                if count == threads and (entry := entries.get(tunables_text(self._found[name])))
                and entry.status == "ok"
            }  # fmt: skip
        return own

    def _nearest(self, spec: ConvSpec, threads: int) -> Iterator[tuple[float, dict[str, _Timed]]]:
        """How much measured specs near ``spec`` weigh, and what tells times on them; the answer for the last
        spec is kept, which all algorithms ask for.
        """
        asked, near, at_first = self._last  # at once: another thread may ask for another spec meanwhile
        if asked != (spec, threads, self._without):
            near = self._measured_near(spec, threads)
            at_first = [self._weighed(pair, threads) for pair in near[:AT_FIRST]]
            self._last = (spec, threads, self._without), near, at_first
        yield from at_first
        if len(near) > AT_FIRST:
            self._load(text for _, text in near[AT_FIRST:])
            for pair in near[AT_FIRST:]:
                yield self._weighed(pair, threads)

    def _weighed(self, pair: tuple[float, str], threads: int) -> tuple[float, dict[str, _Timed]]:
        distance, text = pair
        return 1.0 / (0.25 + distance), self._own(text, threads)

    def _measured_near(self, spec: ConvSpec, threads: int) -> list[tuple[float, str]]:
        """The nearest ``MOST`` measured specs, and how far they are."""
        places = self._places.get(kind(spec))
        close = places.near(spec) if places else []
        is_timed = self._is_timed.setdefault(threads, {})
        if places and not is_timed.keys() >= {text for _, text in close}:
            new = [text for _, text in places.near(spec, AHEAD)]  # the next shape's are among them
            found = self._memory.timed(new, threads, self._builds)
            is_timed.update((text, text in found) for text in new)
        timed = (pair for pair in close if is_timed[pair[1]] and pair[1] != self._without)
        near = [*islice(timed, MOST)]
        if not self._on.keys() >= {text for _, text in near[:AT_FIRST]}:
            self._load(text for _, text in near)
        return near

    _last: tuple[Any, list[tuple[float, str]], list[tuple[float, dict[str, _Timed]]]] = (None, [], [])
    _same: tuple[Any, list[str]] = (None, [])

    def _log_ratio(self, name: str, entry: Known) -> float:
        """The logarithm of its measured over its modelled time."""
        way = chain(self._found[name], ConvSpec.of(entry.spec), entry.threads)
        return math.log(max(entry.run_s, 1e-9) / self.fit.seconds(way, entry.threads))


class _Timed:
    """A measured time, and the logarithm of how it compares to the model's, once somebody asked."""

    __slots__ = ("entry", "log")

    def __init__(self, entry: Known) -> None:
        self.entry = entry
        self.log: float | None = None


def _variant(algorithm: Algorithm, text: str) -> Algorithm | None:
    """``algorithm`` with the tunables of a record, or None where it has no such tunables."""
    try:
        values = json.loads(text)
        return replace(algorithm, **values) if values.keys() == algorithm.tunables().keys() else None
    except (ValueError, TypeError, AttributeError):
        return None


@lru_cache(maxsize=4096)
def _same_work(spec: ConvSpec) -> tuple[str, ...]:
    unranked = spec.with_(rank=None) if spec.rank is not None else spec
    return tuple(dict.fromkeys(map(str, (spec, unranked, plain(unranked)))))
