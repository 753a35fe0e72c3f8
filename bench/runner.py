"""The controller: decides which launches are missing, has them run, and stores every result at once.

A case is (spec, algorithm, threads). Launch by launch, in fresh processes, the algorithms of one spec are
opened, checked in the first launch, and race: they take short turns in rounds, who is surely behind leaves,
and the rest go on until the turns tell their ratios well enough (``bench.launching``).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from algos import wisdom
from algos.build import build_of
from algos.registry import get, registry, variant_name
from bench import noise, perf_counter, seal
from bench.ahead import compile_ahead
from bench.cases import MOST_LAUNCHES, Case, Settings, limit_text
from bench.launching import Launching
from bench.lessons import REMEMBERED, disturbed, known, taught
from bench.outcome import Outcome, Progress
from bench.pool import Place, Pool
from bench.record import Record
from bench.turns import Turns, taken

LEAST_LIMIT_S = 1.0
# What may be over at the next run
LOOKED_AT_AGAIN = ("unsupported", "unavailable", "too_large", "timeout", "crashed")


class Keeping(Protocol):
    """What a runner needs of a store."""

    def stream(self, brief: bool = ..., specs: Iterable[str] | None = ...) -> Iterator[Record]: ...

    def put(self, record: Record) -> None: ...

    def forget(self, record: Record) -> None: ...


class Runner:
    """Measures cases and keeps their records in a store, or only checks them when there is none.

    Parameters
    ----------
    settings : Settings
    store : Store or None
        None checks and measures nothing.
    progress : Progress
    pool : Pool, optional
        Whose processes measure; ended with the run.
    launching : type
        What runs a launch.
    """

    def __init__(
        self, settings: Settings, store: Keeping | None, progress: Progress | None = None,
        pool: Pool | None = None, launching: type[Launching] = Launching,
    ) -> None:  # fmt: skip
        self.settings, self.store, self.progress = settings, store, progress or Progress()
        self.outcome = Outcome()
        self._records: dict[tuple, Record] = {}
        self._pool = Pool() if pool is None else pool
        self._launching = launching(
            settings, self._pool, self._keep, self.progress, self.outcome.spent, store is not None
        )
        self._lessons: list[wisdom.Known] = []
        self._taught: set[tuple] = set()  # keys of records of which the picker was told in this run
        self._replaced: set[tuple] = set()

    def run(self, cases: Sequence[Case]) -> Outcome:
        """Measure what is missing; the outcome holds a record for every case."""
        seal.mend()
        started = perf_counter()
        spent, keys = self.outcome.spent, [case.record.key for case in cases]
        try:
            with self._pool:
                cases = self._load(cases)
                keys = [case.record.key for case in cases]
                launch, launches = 0, self._launches
                missing = sum(self._lacks(case, index) for index in range(launches) for case in cases)
                self.progress.total = self.progress.done + missing + self.progress.later
                self._compile([case for case in cases if self._lacks(case, 0)])
                while launch < launches or (cases := self._undecided(cases, launch)):
                    self.progress.total += (
                        sum(self._lacks(case, launch) for case in cases) if launch >= launches else 0
                    )
                    for group in self._lacking(cases, launch):
                        limit = self.settings.run_budget_s
                        if limit is not None and perf_counter() - started > limit:
                            self.outcome.complete = False
                            return self.outcome
                        try:
                            self._group(launch, group)
                        finally:
                            self._teach()
                    self._pool.end()
                    launch += 1
        finally:
            self._teach_table()
            spent.total = self.outcome.wall_s = perf_counter() - started
            spent.start_up = self._pool.start_s
            self.outcome.records = [self._records[key] for key in keys if key in self._records]
        return self.outcome

    def _compile(self, cases: Sequence[Case]) -> None:
        """All cores compile what a first launch lacks of the code here."""
        started = perf_counter()
        here = [case for case in cases if self._pool.place(case.algorithm) == Place()]
        compile_ahead(here, self.settings, lambda text: self.progress.advance(0, text))
        self.outcome.spent.compilation += perf_counter() - started

    def first_lacking(self, cases: Sequence[Case]) -> tuple[list[Case], int | None]:
        """``cases`` as the store knows them, and the first launch that some of them lack; none when all are
        measured.
        """
        cases = self._load(cases)
        return cases, next((i for i in range(self._launches) if any(self._lacks(c, i) for c in cases)), None)

    def one(self, cases: Sequence[Case], launch: int) -> Outcome:
        """That launch alone, in the processes of the pool, which go on."""
        seal.mend()
        started, started_up = perf_counter(), self._pool.start_s
        try:
            for group in self._lacking(cases, launch):
                self._group(launch, group)
        finally:
            self._teach_table()
            self.outcome.spent.total = perf_counter() - started
            self.outcome.spent.start_up = self._pool.start_s - started_up
        return self.outcome

    @property
    def _launches(self) -> int:
        return self.settings.launches if self.store else 1

    def _lacking(self, cases: Sequence[Case], launch: int) -> Iterator[list[Case]]:
        """The groups of rivals that lack it, each looked at when its turn comes."""
        for group in _groups([case for case in cases if self._lacks(case, launch)]):
            if lacking := [case for case in group if self._lacks(case, launch)]:
                yield lacking

    def _undecided(self, cases: Sequence[Case], done: int) -> list[Case]:
        """After so many launches: those of ``cases`` that need another one to decide who is fastest."""
        if self.settings.decide is None or self.store is None or done >= MOST_LAUNCHES:
            return []
        groups = ([(case, taken(self._records[case.record.key])) for case in group]
                  for group in _groups(cases))  # fmt: skip
        return undecided(groups, self.settings.decide)

    def _load(self, cases: Sequence[Case]) -> list[Case]:
        """What stands in the store is not measured again, unless asked; what cannot run is stored at once."""
        specs = {case.record.spec for case in cases}
        stored = {record.key: record for record in self.store.stream(specs=specs)} if self.store else {}
        cases = [self._as_before(case, stored.values()) for case in cases]
        for case in cases:
            key, record = case.record.key, stored.get(case.record.key)
            self._records[key] = case.record
            if record is not None and self.settings.fresh:
                self._replaced.add(key)  # the old one goes when the first new result is stored
            elif record is not None and (
                record.launches
                or self.settings.settled
                or not (case.record.status != "ok" or self._outdated(record))
            ):
                self._records[key] = record
            elif case.record.status != "ok":
                self._keep(case, case.record)
        return cases

    def _as_before(self, case: Case, stored: Iterable[Record]) -> Case:
        """``auto`` stands for what it chose when the run began, whatever has been learnt since."""
        mine = case.record
        for record in () if self.settings.fresh or not mine.chosen else stored:
            if record.chosen and (record.spec, record.threads, record.cold) == (
                mine.spec,
                mine.threads,
                mine.cold,
            ):
                chosen = get(record.chosen) if record.chosen.partition(":")[0] in registry() else None
                if chosen and record.machine == mine.machine and record.build == build_of(chosen):
                    return Case(case.spec, chosen, replace(record, launches=()))
        return case

    def _outdated(self, record: Record) -> bool:
        """Whether what stopped it may no longer hold: it is looked at again at every run."""
        if record.status == "too_slow":
            return not record.reason.endswith(limit_text(self.settings))  # another limit than today's
        return record.status in LOOKED_AT_AGAIN

    def _lacks(self, case: Case, launch: int) -> bool:
        record = self._records[case.record.key]
        return record.status == "ok" and launch not in {done.index for done in record.launches}

    def _keep(self, case: Case, record: Record) -> None:
        """Acknowledge: in memory, in the store, in the machine's wisdom."""
        seal.insist()
        before = self._records.get(case.record.key)
        if before is not None and before.launches and record.status not in ("ok", "wrong"):
            # What was measured stays; the next run tries again
            print(f"convbench: {before.algorithm} on {before.spec}: {record.status}, {record.reason}; what "
                  f"is stored stays (launches: {len(before.launches)})", file=sys.stderr)  # fmt: skip
            return
        if self.store and record.key in self._replaced:
            self._replaced.remove(record.key)
            self.store.forget(record)
        if self.store:
            self.store.put(record)
        self.outcome.measured += len(record.launches)
        if record.status == "ok" and before is not None:
            merged = {launch.index: launch for launch in (*record.launches, *before.launches)}
            record = record.with_launches(tuple(merged[i] for i in sorted(merged)))
        self._records[case.record.key] = record
        # A short limit proves nothing
        hasty = record.status == "too_slow" and self.settings.slow_s < LEAST_LIMIT_S
        # Remembered once it is known to be faster
        tuned = variant_name(case.algorithm) != case.algorithm.name
        useless = record.cold or record.chosen or hasty or tuned or disturbed(record)
        if self.store and record.status in REMEMBERED and not useless:
            self._lessons.append(known(record))
            self._taught.add(record.key)

    def _group(self, launch: int, cases: list[Case]) -> None:
        """One launch of the cases of one spec; each is stored as soon as it is done."""
        self._launching.run(launch, [replace(c, record=self._records[c.record.key]) for c in cases])

    def _teach(self, more: Iterable[wisdom.Known] = ()) -> None:
        """The machine learns from a group at once: its file is written once for all of its cases."""
        wisdom.remember([*self._lessons, *more])
        self._lessons.clear()

    def _teach_table(self) -> None:
        """Once the table is whole: how sure it is who is faster than whom."""
        groups: dict[tuple[int, str], list[Record]] = {}
        for key in self._taught:
            groups.setdefault((self._records[key].threads, self._records[key].spec), []).append(
                self._records[key]
            )
        self._teach(taught(groups.values()))


def _groups(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases of one spec and number of threads are measured against each other, where their rivals do not
    differ.
    """
    found: dict[tuple[int, str, str], list[Case]] = {}
    for case in cases:
        found.setdefault((case.record.threads, case.record.spec, case.rivals), []).append(case)
    return list(found.values())


T = TypeVar("T")


def undecided(groups: Iterable[Sequence[tuple[T, Turns]]], share: float) -> list[T]:
    """Of rivals on one machine, those on each spec a group: who needs another launch, until every lead beyond
    this share of the time is known.
    """
    timed = [found for group in groups if (found := [(one, turns) for one, turns in group if turns])]
    table = noise.decisions(timed, lambda pair: pair[1], math.log1p(share))
    open_ = [decision for decision in table if decision.verdict == "undecided"]
    return [one for found in open_ for one, _ in (found.first, *(rival for rival, _ in found.left))]
