"""How long an algorithm will take on a spec: as measured, from its nearest measured specs, or from the cost model.

The model knows the method (operations, bytes, calls), not the machine. What was measured on other specs corrects it: the
ratio of measured to modelled time changes slowly from one shape to its neighbours, far more slowly than the time itself.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from algos.contract import Algorithm
from algos.spec import ConvSpec
from algos.wisdom import Known

Source = Literal["measured", "nearest", "model"]

# How much an estimate must beat a measurement by: the error that each source usually has.
DOUBT: dict[Source, float] = {"measured": 1.0, "nearest": 1.4, "model": 2.0}
NEIGHBOURS = 3
FARTHEST = 5.0  # in doublings, over all features together
PREPARE_S, PREPARE_BYTES_PER_S = 30e-6, 2e9


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run, of prepare and of compiling before the first, and where they come from."""

    run_s: float
    prepare_s: float
    source: Source
    detail: str = ""
    compile_s: float = 0.0

    def expected_s(self, calls: int | None) -> float:
        """Seconds per call when ``calls`` share prepare and compiling; None means so many that both vanish."""
        return self.run_s + ((self.prepare_s + self.compile_s) / calls if calls else 0.0)


@lru_cache(maxsize=4096)
def tunables_text(algorithm: Algorithm) -> str:
    """Tunables as they stand in records: JSON with sorted keys."""
    return json.dumps(algorithm.tunables(), sort_keys=True, default=str)


class Knowledge:
    """What is known about the algorithms of this build, ready to be asked.

    Parameters
    ----------
    entries : iterable of Known
        Of one machine.
    build : callable
        The present build of an algorithm: entries of another build are stale and left out.
    """

    def __init__(self, entries: Iterable[Known], found: dict[str, Algorithm], build: Callable[[Algorithm], str]) -> None:
        self._at: dict[tuple[str, str, str, int], Known] = {}
        self._tuned: dict[tuple[str, str, int], Algorithm] = {}
        self._ok: dict[str, list[Known]] = {}
        self.wrong: dict[str, Known] = {}
        for entry in entries:
            algorithm = found.get(entry.algorithm)
            if algorithm is None or entry.build != build(algorithm):
                continue
            self._at[entry.algorithm, entry.tunables, entry.spec, entry.threads] = entry
            if entry.tunables != tunables_text(algorithm):
                if entry.status == "ok" and (variant := _variant(algorithm, entry.tunables)):
                    self._tuned[entry.algorithm, entry.spec, entry.threads] = variant
            elif entry.status == "ok":
                self._ok.setdefault(entry.algorithm, []).append(entry)
            elif entry.status == "wrong":
                self.wrong[entry.algorithm] = entry
        self._found = found
        self._corrections: dict[int, float] = {}

    def measured(self, algorithm: Algorithm, spec: ConvSpec, threads: int) -> Known | None:
        """What is known of this very spec, or of the same work under another name: unranked, or as the door hands it on."""
        for same in _same_work(spec):
            if entry := self._at.get((algorithm.name, tunables_text(algorithm), same, threads)):
                return entry
        return None

    def tuned(self, algorithm: Algorithm, spec: ConvSpec, threads: int) -> Algorithm:
        """``algorithm`` with the tunables that proved faster on ``spec``, or as it is."""
        for same in _same_work(spec) if self._tuned else ():
            if variant := self._tuned.get((algorithm.name, same, threads)):
                return variant
        return algorithm

    def estimate(self, algorithm: Algorithm, spec: ConvSpec, threads: int) -> Estimate:
        """The best answer that there is for a spec as the caller states it."""
        entry = self.measured(algorithm, spec, threads)
        if entry is not None and entry.status == "ok":
            return Estimate(entry.run_s, entry.prepare_s, "measured", f"measured on {entry.spec}")
        return self.guess(algorithm, spec, threads)

    def guess(self, algorithm: Algorithm, spec: ConvSpec, threads: int) -> Estimate:
        """As ``estimate``, for a spec that was not measured."""
        received = spec.received()
        modelled = max(algorithm.cost(received, threads).seconds(threads), 1e-9)
        prepare_s = PREPARE_S + algorithm.workspace_bytes(received, threads) / PREPARE_BYTES_PER_S
        distances = (
            (_distance(spec, _parsed(other.spec)), other)
            for other in self._ok.get(algorithm.name, ())
            if other.threads == threads
        )
        near = sorted((pair for pair in distances if pair[0] <= FARTHEST), key=lambda pair: pair[0])[:NEIGHBOURS]
        if not near:
            return Estimate(modelled * self._correction(threads), prepare_s, "model", "operations, bytes and calls")
        weights = [1.0 / (0.25 + distance) for distance, _ in near]
        shifts = [math.log(self._ratio(algorithm, other)) for _, other in near]
        ratio = math.exp(sum(w * s for w, s in zip(weights, shifts, strict=True)) / sum(weights))
        return Estimate(modelled * ratio, near[0][1].prepare_s, "nearest", f"nearest measured spec {near[0][1].spec}")

    def _ratio(self, algorithm: Algorithm, entry: Known) -> float:
        received = _parsed(entry.spec).received()
        return max(entry.run_s, 1e-9) / max(algorithm.cost(received, entry.threads).seconds(entry.threads), 1e-9)

    def _correction(self, threads: int) -> float:
        """The machine's speed against the model's, over every algorithm: keeps guesses comparable with measurements."""
        if threads not in self._corrections:
            shifts = [
                math.log(self._ratio(self._found[name], entry))
                for name, entries in self._ok.items()
                for entry in entries
                if entry.threads == threads and self._found[name].unsupported(_parsed(entry.spec).received()) is None
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
    return tuple(dict.fromkeys(map(str, (spec, unranked, unranked.received()))))


@lru_cache(maxsize=65536)
def _parsed(text: str) -> ConvSpec:
    return ConvSpec.parse(text)


@lru_cache(maxsize=65536)
def _features(spec: ConvSpec) -> tuple[float, ...]:
    """Doublings of the quantities that decide which method wins."""
    log = lambda n: math.log2(max(1, n))  # noqa: E731
    return (
        log(spec.batch * math.prod(spec.output_size)),
        log(math.prod(spec.kernel)),
        log(spec.in_channels // spec.groups),
        log(spec.out_channels // spec.groups),
        log(spec.groups),
        log(math.prod(spec.stride)),
        log(math.prod(spec.dilation)),
    )


def _distance(a: ConvSpec, b: ConvSpec) -> float:
    if (a.ndim, a.direction, a.dtype) != (b.ndim, b.direction, b.dtype):
        return math.inf
    return math.dist(_features(a), _features(b))
