"""How long an algorithm will take on a spec: as measured, from its nearest measured specs, or from the cost
model.

The model knows the method (operations, bytes, calls), not the machine. What was measured on other specs
corrects it: the ratio of measured to modelled time changes slowly from one shape to its neighbours, far more
slowly than the time itself.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from algos.build import lowering_code
from algos.contract import Algorithm, modelled_prepare_s
from algos.lower.chain import Chain, chain, plain, unsupported
from algos.neighbours import Places, kind
from algos.spec import ConvSpec
from algos.wisdom import Known, Memory

_Entries = dict[str, Known]  # by tunables
_NONE: _Entries = {}
Source = Literal["measured", "nearest", "model"]

# How much an estimate must beat a measurement by: the error that each source usually has.
DOUBT: dict[Source, float] = {"measured": 1.0, "nearest": 1.4, "model": 2.0}
NEIGHBOURS = 3
AT_FIRST = 8  # near specs whose entries are read first
SAMPLED = 64  # specs that tell the machine's speed against the model's


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run, of prepare and of compiling before the first, and where they come from."""

    run_s: float
    prepare_s: float
    source: Source
    detail: str = ""
    compile_s: float = 0.0
    known: Known | None = None  # of a measured one

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
    build : callable
        The present build of an algorithm: entries of another build are stale and left out.
    """

    def __init__(
        self,
        entries: Memory | Iterable[Known],
        found: dict[str, Algorithm],
        build: Callable[[Algorithm], str],
    ) -> None:
        self._memory = entries if isinstance(entries, Memory) else Memory(entries)
        self._found, self._build, self._without = found, build, ""
        self._specs = self._memory.specs()
        self._on: dict[str, dict[tuple[str, int], _Entries]] = {}
        self._places: dict[int, dict[str, Places]] = {}
        self._corrections: dict[int, float] = {}
        self._ratios: dict[tuple[str, str, int], float] = {}
        current = [entry for entry in self._memory.wrong() if self._is_current(entry)]
        own = [entry for entry in current if entry.tunables == tunables_text(found[entry.algorithm])]
        # What is wrong where nothing was lowered is wrong everywhere, else only with the same lowerings.
        self._wrong = {(entry.algorithm, entry.chain): entry for entry in own}

    def left_out(self, spec: str) -> Knowledge:
        """The same, but for what is known of ``spec``."""
        other = copy(self)
        other._without, other._corrections = spec, {}
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

    def _entries(self, algorithm: Algorithm, spec: ConvSpec, threads: int) -> list[_Entries]:
        """By tunables, what is known of this very spec, or of the same work: unranked, or without its border.
        """
        asked, same = self._same  # at once: another thread may ask for another spec meanwhile
        if asked != (spec, self._without):
            same = [text for text in _same_work(spec) if text in self._specs and text != self._without]
            self._load(same)
            self._same = (spec, self._without), same
        return [entries for text in same if (entries := self._on[text].get((algorithm.name, threads)))]

    def measured(self, algorithm: Algorithm, spec: ConvSpec, threads: int) -> Known | None:
        """What is known of ``algorithm`` on ``spec``, with the tunables that it has."""
        if found := self._entries(algorithm, spec, threads):
            text = tunables_text(algorithm)
            return next((entries[text] for entries in found if text in entries), None)
        return None

    def tuned(self, algorithm: Algorithm, spec: ConvSpec, threads: int) -> Algorithm:
        """``algorithm`` with the tunables that proved faster on ``spec``, or as it is."""
        for entries in self._entries(algorithm, spec, threads):
            own = tunables_text(algorithm)
            for text, entry in reversed(entries.items()):
                if text != own and entry.status == "ok" and (variant := _variant(algorithm, text)):
                    return variant
        return algorithm

    def estimate(self, way: Chain, threads: int) -> Estimate:
        """The best answer that there is for a spec as the caller states it."""
        entry = self.measured(way.algorithm, way.spec, threads)
        if entry is not None and entry.status == "ok":
            run_s = entry.run_s
            if way.spec.finished and not ConvSpec.of(entry.spec).finished:
                run_s += way.finishing_s(threads)
            return Estimate(run_s, entry.prepare_s, "measured", f"measured on {entry.spec}", known=entry)
        return self._guess(way, threads)

    def _guess(self, way: Chain, threads: int) -> Estimate:
        """For a spec that was not measured."""
        algorithm, modelled = way.algorithm, max(way.seconds(threads), 1e-9)
        near = self._near(algorithm, way.spec, threads)
        if not near:
            prepare_s = modelled_prepare_s(way.workspace_bytes(threads))
            return Estimate(
                modelled * self._correction(threads), prepare_s, "model", "operations, bytes and calls"
            )
        weights = [1.0 / (0.25 + distance) for distance, _ in near]
        shifts = [math.log(self._ratio(algorithm, other)) for _, other in near]
        ratio = math.exp(sum(w * s for w, s in zip(weights, shifts, strict=True)) / sum(weights))
        return Estimate(
            modelled * ratio, near[0][1].prepare_s, "nearest", f"nearest measured spec {near[0][1].spec}"
        )

    def _near(self, algorithm: Algorithm, spec: ConvSpec, threads: int) -> list[tuple[float, Known]]:
        """The nearest specs on which ``algorithm`` was measured, with their distances."""
        near, found = self._nearest(spec, threads), []
        for start, end in ((0, AT_FIRST), (AT_FIRST, len(near))):
            self._load(text for _, text in near[start:end])
            for distance, text in near[start:end]:
                if text != self._without and (entry := self._own(algorithm, text, threads)):
                    found.append((distance, entry))
                    if len(found) == NEIGHBOURS:
                        return found
        return found

    def _own(self, algorithm: Algorithm, text: str, threads: int) -> Known | None:
        """The entry of a loaded spec that tells the time of ``algorithm`` with its registered tunables."""
        name = algorithm.name
        entry = self._on[text].get((name, threads), _NONE).get(tunables_text(self._found[name]))
        return entry if entry is not None and entry.status == "ok" else None

    def _nearest(self, spec: ConvSpec, threads: int) -> list[tuple[float, str]]:
        """Measured specs near ``spec``; the answer for the last one is kept, which all algorithms ask for."""
        asked, near = self._last  # at once: another thread may ask for another spec meanwhile
        if asked != (spec, threads):
            places = self._by_kind(threads).get(kind(spec))
            near = places.near(spec) if places else []
            self._last = (spec, threads), near
        return near

    _last: tuple[Any, list[tuple[float, str]]] = (None, [])
    _same: tuple[Any, list[str]] = (None, [])

    def _by_kind(self, threads: int) -> dict[str, Places]:
        if threads not in self._places:
            rows: dict[str, list[tuple[str, bytes]]] = {}
            for text, (of_kind, packed) in self._memory.places(
                threads, {self._build(a) for a in self._found.values()}
            ):
                rows.setdefault(of_kind, []).append((text, packed))
            self._places[threads] = {name: Places(*zip(*pairs, strict=True)) for name, pairs in rows.items()}
        return self._places[threads]

    def _ratio(self, algorithm: Algorithm, entry: Known) -> float:
        key = algorithm.name, entry.spec, entry.threads
        if key not in self._ratios:
            way = chain(self._found[algorithm.name], ConvSpec.of(entry.spec), entry.threads)
            modelled = max(way.seconds(entry.threads), 1e-9)
            self._ratios[key] = max(entry.run_s, 1e-9) / modelled
        return self._ratios[key]

    def _correction(self, threads: int) -> float:
        """The machine's speed against the model's, over every algorithm: keeps
        guesses comparable with measurements.
        """
        if threads not in self._corrections:
            specs = sorted(
                text
                for places in self._by_kind(threads).values()
                for text in places.specs
                if text != self._without
            )
            some = specs[:: -(-len(specs) // SAMPLED) or 1]
            self._load(some)
            shifts = [
                math.log(self._ratio(algorithm, entry))
                for text in some
                for algorithm in self._found.values()
                if (entry := self._own(algorithm, text, threads))
                and unsupported(algorithm, ConvSpec.of(text)) is None
            ]
            trust = len(shifts) / (len(shifts) + 4)  # a record or two say little about the machine
            self._corrections[threads] = math.exp(statistics.median(shifts) * trust) if shifts else 1.0
        return self._corrections[threads]


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
