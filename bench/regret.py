"""How good the picker is: time(picked) / time(best) over what a store holds, each spec left out in turn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from algos.auto import choose
from algos.build import build_of
from algos.estimate import Knowledge, tunables_text
from algos.fitted import fit_of_machine
from algos.host import fingerprint
from algos.registry import registry
from algos.spec import ConvSpec
from algos.wisdom import Known
from bench.lessons import known
from bench.record import Record
from bench.regret_by import Timed

SOURCES = ("measured", "nearest", "model")
MOST = 200  # specs that are judged, evenly spread over those that could be; the others still teach


class _Counted(NamedTuple):
    """What counts of a record: all of it, the times of its first launch, and the median of the other
    launches, NaN without.
    """

    whole: Known
    run_s: float
    prepare_s: float
    rest_s: float

    @property
    def first(self) -> Known:
        return replace(self.whole, run_s=self.run_s, prepare_s=self.prepare_s)


class Regret:
    """The picker's regret over records that are handed over one by one.

    Only this machine's own algorithms of the present build count, on specs where two were measured.
    """

    def __init__(self) -> None:
        self._machine, self._found = fingerprint()["id"], registry()
        self._present: dict[tuple[str, str, str], bool] = {}
        self._groups: dict[tuple[str, int], list[_Counted]] = {}

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """Hand ``records`` on, and note of each what counts."""
        for record in records:
            if (
                record.launches and not record.cold
                and record.machine == self._machine and record.origin == "convbench"
                and self._is_present(record.algorithm, record.build, record.tunables)
            ):  # fmt: skip
                # What is right is remembered of the algorithm, however it was lowered
                whole, (one, *others) = known(record, chain=""), record.launches
                rest_s = statistics.median([launch.median_s for launch in others]) if others else math.nan
                self._groups.setdefault((record.spec, record.threads), []).append(
                    _Counted(whole, one.median_s, one.prepare_s, rest_s)
                )
            yield record

    def _is_present(self, name: str, build: str, tunables: str) -> bool:
        """Whether it is an algorithm of ours as it stands here; only what was
        measured is asked whether it is available.
        """
        key = name, build, tunables
        if key not in self._present:
            algorithm = self._found.get(name)
            self._present[key] = (
                algorithm is not None and algorithm.family not in ("peer", "auto")
                and build == build_of(algorithm) and tunables == tunables_text(algorithm)
                and algorithm.unavailable() is None
            )  # fmt: skip
        return self._present[key]

    def cases(self) -> Iterator[Timed]:
        """Problems on which two algorithms were measured in two launches or more, for ``regret_by``."""
        for (text, threads), group in self._groups.items():
            twice = [case for case in group if not math.isnan(case.rest_s)]
            if len(twice) > 1:
                halves = ({case.whole.algorithm: case.run_s for case in twice},
                          {case.whole.algorithm: case.rest_s for case in twice})  # fmt: skip
                yield Timed(ConvSpec.parse(text), threads, halves)

    def rows(self) -> list[dict[str, Any]]:
        """One row per source: specs, geometric mean and worst of time(picked) / time(best), and the spec of
        the worst.

        measured picks by the first launch and is judged by the others; nearest picks without the spec's own
        records; model picks without any record. Of many specs ``MOST`` are judged.
        """
        groups = {key: group for key, group in self._groups.items() if len(group) > 1}
        fit = fit_of_machine()
        every = Knowledge((case.whole for group in groups.values() for case in group), self._found, build_of,
                          fit)  # fmt: skip
        groups = dict(list(groups.items())[:: -(-len(groups) // MOST) or 1])
        rows = []
        for source in SOURCES:
            ratios: dict[tuple[str, int], float] = {}
            for (text, threads), group in groups.items():
                if source == "measured" and any(math.isnan(case.rest_s) for case in group):
                    continue
                times = {
                    case.whole.algorithm: case.rest_s if source == "measured" else case.whole.run_s
                    for case in group
                }
                knowledge = every.left_out(text)
                if source != "nearest":
                    entries = [case.first for case in group] if source == "measured" else []
                    knowledge = Knowledge(entries, self._found, build_of, fit)
                choice = choose(
                    ConvSpec.parse(text), [self._found[name] for name in times], knowledge, threads=threads
                )
                if source == "nearest" and choice.source != "nearest":
                    continue
                ratios[text, threads] = times[choice.algorithm] / min(times.values())
            worst = max(ratios, key=lambda key: ratios[key], default=("", 0))
            rows.append(
                {
                    "source": source,
                    "specs": len(ratios),
                    "geometric_mean": math.exp(sum(map(math.log, ratios.values())) / len(ratios))
                    if ratios
                    else None,
                    "worst": ratios.get(worst),
                    "worst_spec": worst[0],
                }
            )
        return rows


def regret(records: Iterable[Record]) -> list[dict[str, Any]]:
    """``Regret.rows`` of ``records``."""
    found = Regret()
    for _ in found.watch(records):
        pass
    return found.rows()
