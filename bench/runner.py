"""The controller: turns specs into cases, has workers measure them in interleaved rounds, and stores every result at once.

A case is (spec, algorithm, threads). Launch by launch, in fresh processes, the algorithms of one spec are opened, checked
in the first launch, and sampled in seeded random rounds until each one's noise, budget or cap says stop.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from algos import machine, wisdom
from algos.registry import get, registry, variant_name
from bench.cases import Case, Settings, limit_text
from bench.pool import Pool, Worker, WorkerFailed, measuring
from bench.record import Launch, Record
from bench.store import Store

LEAST_LIMIT_S = 1.0
REMEMBERED = ("ok", "wrong", "too_slow", "timeout", "crashed", "error")


@dataclass
class Spent:
    """Seconds of wall time by what they went to."""

    prepared_runs: float = 0.0
    checks: float = 0.0
    compilation: float = 0.0
    start_up: float = 0.0
    total: float = 0.0

    def shares(self) -> dict[str, float]:
        """Fractions of the total; waiting is what is left: answers, rounds of other processes, storing."""
        parts = {k: v / max(self.total, 1e-9) for k, v in asdict(self).items() if k != "total"}
        return {**parts, "waiting": max(0.0, 1.0 - sum(parts.values()))}


@dataclass
class Progress:
    """What a progress bar shows; called between samples only."""

    total: int = 0
    advance: Callable[[int, str], None] = lambda done, text: None


@dataclass
class Outcome:
    """What a run did. ``complete`` is false when the budget ended it."""

    records: list[Record] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    measured: int = 0
    complete: bool = True


class Runner:
    """Measures cases and keeps their records in a store, or only checks them when there is none.

    Parameters
    ----------
    settings : Settings
    store : Store or None
        None checks and measures nothing.
    progress : Progress
    """

    def __init__(self, settings: Settings, store: Store | None, progress: Progress | None = None) -> None:
        self.settings, self.store, self.progress = settings, store, progress or Progress()
        self.outcome = Outcome()
        self._records: dict[tuple, Record] = {}
        self._pool = Pool()
        self._lessons: list[wisdom.Known] = []
        self._replaced: set[tuple] = set()
        self._random = random.Random(settings.seed)

    def run(self, cases: Sequence[Case]) -> Outcome:
        """Measure what is missing; the outcome holds a record for every case."""
        started = perf_counter()
        spent = self.outcome.spent
        try:
            with self._pool:
                cases = self._load(cases)
                launches = self.settings.launches if self.store else 1
                missing = [(launch, case) for launch in range(launches) for case in cases if self._lacks(case, launch)]
                self.progress.total = len(missing)
                for launch in range(launches):
                    for group in _groups([case for index, case in missing if index == launch]):
                        limit = self.settings.run_budget_s
                        if limit is not None and perf_counter() - started > limit:
                            self.outcome.complete = False
                            return self.outcome
                        self._group(launch, [case for case in group if self._lacks(case, launch)])
                    self._pool.end()
        finally:
            spent.total = perf_counter() - started
            spent.start_up = self._pool.start_s
            self.outcome.records = [self._records[c.record.key] for c in cases if c.record.key in self._records]
        return self.outcome

    def _load(self, cases: Sequence[Case]) -> list[Case]:
        """What stands in the store is not measured again, unless asked; what cannot run is stored at once."""
        stored = {record.key: record for record in self.store.records()} if self.store else {}
        cases = [self._as_before(case, stored.values()) for case in cases]
        for case in cases:
            key, record = case.record.key, stored.get(case.record.key)
            self._records[key] = case.record
            if record is not None and self.settings.fresh:
                self._replaced.add(key)  # the old one goes when the first new result is stored
            elif record is not None and (record.launches or not (case.record.status != "ok" or self._outdated(record))):
                self._records[key] = record
            elif case.record.status != "ok":
                self._keep(case, case.record)
        return cases

    def _as_before(self, case: Case, stored: Iterable[Record]) -> Case:
        """``auto`` stands for what it chose when the run began, whatever has been learnt since."""
        mine = case.record
        for record in () if self.settings.fresh or not mine.chosen else stored:
            if record.chosen and (record.spec, record.threads, record.cold) == (mine.spec, mine.threads, mine.cold):
                chosen = get(record.chosen) if record.chosen.partition(":")[0] in registry() else None
                if chosen and record.machine == mine.machine and record.build == machine.build(chosen):
                    return Case(case.spec, chosen, replace(record, launches=()))
        return case

    def _outdated(self, record: Record) -> bool:
        """Whether what stopped it may no longer hold: it is looked at again at every run."""
        if record.status == "too_slow":
            return not record.reason.endswith(limit_text(self.settings))  # another limit than today's
        return record.status in ("unsupported", "unavailable", "too_large")

    def _lacks(self, case: Case, launch: int) -> bool:
        record = self._records[case.record.key]
        return record.status == "ok" and launch not in {done.index for done in record.launches}

    def _keep(self, case: Case, record: Record) -> None:
        """Acknowledge: in memory, in the store, in the machine's wisdom."""
        before = self._records.get(case.record.key)
        if self.store and record.key in self._replaced:
            self._replaced.remove(record.key)
            self.store.forget(record)
        if self.store:
            self.store.put(record)
        if record.status == "ok" and before is not None:
            merged = {launch.index: launch for launch in (*record.launches, *before.launches)}
            record = record.with_launches(tuple(merged[i] for i in sorted(merged)))
        self._records[case.record.key] = record
        hasty = record.status == "too_slow" and self.settings.slow_s < LEAST_LIMIT_S  # a short limit proves nothing
        tuned = variant_name(case.algorithm) != case.algorithm.name  # remembered once it is known to be faster
        if self.store and record.status in REMEMBERED and not (record.cold or record.chosen or hasty or tuned):
            self._lessons.append(known(record))

    def _fail(self, case: Case, status: str, reason: str) -> None:
        self._keep(case, replace(self._records[case.record.key], status=status, reason=reason, launches=()))

    # ---- one spec, one launch ----------------------------------------------------------------------------------

    def _group(self, launch: int, cases: list[Case]) -> None:
        """Open, check and sample the cases of one spec; store each as soon as it is done."""
        if not cases:
            return
        self._random.seed(f"{self.settings.seed}|{launch}|{cases[0].spec}")
        self._random.shuffle(cases)
        with measuring(), self._remembering():
            opened: list[_Open] = []
            for case in cases:
                state = _Open(case, launch)
                if self._open(state) and self._checked(state):
                    opened.append(state)
                else:
                    self._done(state)
            if self.store is None:
                for state in opened:
                    self._keep(state.case, state.record)
                    self._done(state)
                return
            active = list(opened)
            while active:
                self._random.shuffle(active)
                active = [state for state in active if self._sampled(state)]

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        """The machine learns from a group at once: its file is written once for all of its cases."""
        try:
            yield
        finally:
            wisdom.remember(self._lessons)
            self._lessons.clear()

    def _open(self, state: _Open) -> bool:
        """Prepare in a worker; false when the case failed. Also the way back after another case killed the worker."""
        case, settings = state.case, self.settings
        record = self._records[case.record.key]
        reply = self._ask(
            state, settings.answer_s + 3 * settings.slow_s, do="open", spec=str(case.spec),
            algorithm=variant_name(case.algorithm), threads=record.threads, budget=asdict(settings.budget),
            cold=settings.cold, seed=settings.seed, slow_s=settings.slow_s,
        )
        if reply is None:
            return False
        self.outcome.spent.compilation += reply["prepare_cold_s"]
        self.outcome.spent.prepared_runs += reply["spent_s"] - reply["prepare_cold_s"]
        if reply["call_s"] > settings.slow_s:
            self._fail(case, "too_slow", f"one call took {reply['call_s']:.2g} s, {limit_text(settings)}")
            return False
        state.phases, state.samples, state.spent_s = reply, [], 0.0
        return True

    def _checked(self, state: _Open) -> bool:
        """The verdict, asked for once per record; nothing is timed before it is ok."""
        record = self._records[state.case.record.key]
        if record.launches:
            state.record = record
            return True
        allowed_s = self.settings.answer_s + 20 * state.phases["first_run_s"]
        reply = self._ask(state, allowed_s, do="check")
        if reply is None:
            return False
        self.outcome.spent.checks += reply["spent_s"]
        state.workspace_seen_bytes = reply["workspace_seen_bytes"]
        state.record = replace(record, max_error=reply["max_error"], error_ratio=reply["error_ratio"])
        if not reply["verdict"]:
            self._keep(state.case, replace(state.record, status="wrong", reason=reply["reason"] or "outside its bound"))
            return False
        return True

    def _sampled(self, state: _Open) -> bool:
        """One turn; true while the case wants more."""
        if not state.worker.running and not self._open(state):
            self._done(state)
            return False
        settings = self.settings
        start = perf_counter()
        count = settings.budget.chunk(state.phases["call_s"], state.phases["loops"])
        turn_s = state.phases["call_s"] * state.phases["loops"] * (count + 1)
        reply = self._ask(state, settings.answer_s + 20 * turn_s, do="sample")
        if reply is None:
            self._done(state)
            return False
        state.samples += reply["samples_s"]
        state.spent_s += perf_counter() - start
        self.outcome.spent.prepared_runs += reply["spent_s"]
        if not settings.budget.enough(state.samples, state.spent_s):
            return True
        again = self._ask(state, settings.answer_s + 20 * state.phases["call_s"], do="again")
        if again is None or not again["same"]:
            if again is not None:
                self._fail(state.case, "wrong", "a call after the last sample gave another result than the first call")
            self._done(state)
            return False
        self._keep(state.case, replace(state.record, launches=(state.result(),)))
        self.outcome.measured += 1
        self._done(state)
        return False

    def _done(self, state: _Open) -> None:
        if state.worker is not None and state.worker.running:
            with contextlib.suppress(WorkerFailed):
                state.worker.ask(self.settings.answer_s, do="close", case=state.number)
        self.progress.advance(1, f"{state.case.spec} {state.case.record.algorithm}")

    def _ask(self, state: _Open, timeout_s: float, **request: Any) -> dict[str, Any] | None:
        """A worker's answer, or None when the case has failed and is recorded so."""
        case = state.case
        if request["do"] == "open":
            try:
                state.worker = self._pool.get(case.algorithm.runtime, case.algorithm.device, case.record.threads)
            except WorkerFailed as failure:
                self._fail(case, failure.status, f"the worker did not start: {failure}")
                return None
        try:
            reply = state.worker.ask(timeout_s, case=state.number, **request)
        except WorkerFailed as failure:
            self._fail(case, failure.status, f"{failure}, in {request['do']}")
            return None
        if "failure" in reply:
            self._fail(case, reply["failure"], reply["reason"])
            return None
        return reply


class _Open:
    """A case that is open in a worker, in one launch."""

    _numbers = iter(range(1 << 62))

    def __init__(self, case: Case, launch: int) -> None:
        self.case, self.launch, self.number = case, launch, next(self._numbers)
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.record = case.record
        self.worker: Worker = None  # type: ignore[assignment]  # set when first asked
        self.phases: dict[str, Any] = {}
        self.samples: list[float] = []
        self.spent_s = 0.0
        self.workspace_seen_bytes: int | None = None

    def result(self) -> Launch:
        names = ("loops", "prepare_cold_s", "prepare_s", "first_run_s", "h2d_s", "d2h_s")
        return Launch(
            self.launch, self.started, tuple(self.samples), **{name: self.phases[name] for name in names},
            workspace_seen_bytes=self.workspace_seen_bytes,
        )


def _groups(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases of one spec and number of threads are measured against each other."""
    found: dict[tuple[int, str], list[Case]] = {}
    for case in cases:
        found.setdefault((case.record.threads, case.record.spec), []).append(case)
    return list(found.values())


def known(record: Record) -> wisdom.Known:
    """What the picker is to remember of a record."""
    return wisdom.Known(
        record.machine, record.build, record.spec, record.algorithm, record.tunables, record.threads, record.status,
        record.reason, record.prepare_s or 0.0, record.median_s or 0.0,
    )
