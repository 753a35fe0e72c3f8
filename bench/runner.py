"""The controller: turns specs into cases, has workers measure them in interleaved rounds, and stores every
result at once.

A case is (spec, algorithm, threads). Launch by launch, in fresh processes, the algorithms of one spec are
opened, checked in the first launch, and race: they take short turns in rounds, who is surely behind leaves,
and the rest go on until the turns tell their ratios well enough. Verdicts come from the judge's process, and
samples count only where they add up to what this process's clock says.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from algos import wisdom
from algos.build import build_of
from algos.registry import get, registry, variant_name
from bench import mood, noise, perf_counter, race, seal
from bench.cases import MOST_LAUNCHES, Case, Settings, limit_text
from bench.lessons import REMEMBERED, disturbed, known, taught
from bench.pool import Judge, JudgeLostError, Pool, Worker, WorkerFailed, measuring
from bench.record import Launch, Record, turn_time
from bench.store import Store
from bench.timing import believable, explained, looks
from bench.turns import taken

LEAST_LIMIT_S = 1.0
# What may be over at the next run
LOOKED_AT_AGAIN = ("unsupported", "unavailable", "too_large", "timeout", "crashed")
MOVED_EVERY = 8  # turns
DISAGREEMENTS = 20  # turns in a row whose samples do not add up; a busy machine delays one or two
HELD_UP = 100  # the same where the algorithm did no more than its samples say


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
    """What a progress bar shows; called between samples only.

    Attributes
    ----------
    total : int
        Launches of cases, those that are done among them.
    done : int
    later : int
        Of ``total``: those of runs that have not begun.
    """

    total: int = 0
    done: int = 0
    later: int = 0
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
        self._taught: set[tuple] = set()  # keys of records of which the picker was told in this run
        self._replaced: set[tuple] = set()
        self._random = random.Random(settings.seed)

    def run(self, cases: Sequence[Case]) -> Outcome:
        """Measure what is missing; the outcome holds a record for every case."""
        seal.mend()
        started = perf_counter()
        spent, keys = self.outcome.spent, [case.record.key for case in cases]
        try:
            with self._pool:
                cases = self._load(cases)
                keys = [case.record.key for case in cases]
                launch, launches = 0, self.settings.launches if self.store else 1
                missing = sum(self._lacks(case, index) for index in range(launches) for case in cases)
                self.progress.total = self.progress.done + missing + self.progress.later
                while launch < launches or (cases := self._undecided(cases, launch)):
                    self.progress.total += (
                        sum(self._lacks(case, launch) for case in cases) if launch >= launches else 0
                    )
                    for group in _groups([case for case in cases if self._lacks(case, launch)]):
                        limit = self.settings.run_budget_s
                        if limit is not None and perf_counter() - started > limit:
                            self.outcome.complete = False
                            return self.outcome
                        self._group(launch, [case for case in group if self._lacks(case, launch)])
                    self._pool.end()
                    launch += 1
        finally:
            self._teach_table()
            spent.total = perf_counter() - started
            spent.start_up = self._pool.start_s
            self.outcome.records = [self._records[key] for key in keys if key in self._records]
        return self.outcome

    def _undecided(self, cases: Sequence[Case], done: int) -> list[Case]:
        """After so many launches: those of ``cases`` that need another one to decide who is fastest."""
        if self.settings.decide is None or self.store is None or done >= MOST_LAUNCHES:
            return []
        groups = [
            [(case, taken(self._records[case.record.key])) for case in group]
            for group in _groups(cases)
        ]
        groups = [
            timed for group in groups if (timed := [(case, launches) for case, launches in group if launches])
        ]
        table = noise.decisions(groups, lambda pair: pair[1], math.log1p(self.settings.decide))
        open_ = [decision for decision in table if decision.verdict == "undecided"]
        return [case for one in open_ for case, _ in (one.first, *(rival for rival, _ in one.left))]

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
                record.launches or not (case.record.status != "ok" or self._outdated(record))
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
        if self.store and record.key in self._replaced:
            self._replaced.remove(record.key)
            self.store.forget(record)
        if self.store:
            self.store.put(record)
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

    def _fail(self, case: Case, status: str, reason: str) -> None:
        before = self._records[case.record.key]
        if before.launches and status != "wrong":  # what was measured stays; the next run tries again
            print(f"convbench: {before.algorithm} on {before.spec}: {status}, {reason}; what is stored stays "
                  f"(launches: {len(before.launches)})", file=sys.stderr)  # fmt: skip
            return
        self._keep(case, replace(before, status=status, reason=reason, launches=()))

    # ---- one spec, one launch ------------------------------------------------------------------------------

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
                if self._twice(state, self._ready):
                    opened.append(state)
                    self.progress.advance(0, f"{case.spec} {case.record.algorithm}, checked")
                else:
                    self._done(state)
            if self.store is None:
                for state in opened:
                    self._keep(state.case, state.record)
                    self._done(state)
                return
            self._race(opened)

    def _race(self, opened: list[_Open]) -> None:
        """Rounds of turns, there and back, until everybody has left; each is stored when it leaves."""
        together, weather, number, order = uuid.uuid4().hex[:12], mood.Mood(), 0, list(opened)
        while order:
            if number % 2:
                order.reverse()
            else:
                self._random.shuffle(order)
            left = []
            for state in order:
                before = mood.look()
                if self._twice(state, self._sampled):
                    weather.turn(state.number, len(state.turns) - 1, before, mood.look())
                    left.append(state)
                else:
                    self._done(state)
            number += 1
            if left:
                self.progress.advance(0, f"{left[0].case.spec}, round {number}, {len(left)} left")
            leaving = self._leaving(left, number)
            for state in leaving:
                self._leave(state, together, weather)
                self._done(state)
            order = [state for state in left if state not in leaving]

    def _leaving(self, running: list[_Open], number: int) -> list[_Open]:
        """Those that need no turn more after ``number`` rounds."""
        budget = self.settings.budget
        timed = [state for state in running if any(state.turns)]
        if self.settings.race and looks(number):
            now = race.standing([state.logs() for state in timed], budget.error)
            if now.settled:
                return timed
            behind = [timed[i] for i in now.behind]
        else:
            behind = []
        return [s for s in timed if s in behind or number >= budget.rounds or s.spent_s >= budget.case_s]

    def _leave(self, state: _Open, together: str, weather: mood.Mood) -> None:
        """Store the launch of a case, once its last call proves right."""
        same = self._late(state)
        if same:
            steal, load, loop = weather.figures()
            launch = replace(state.result(), together=together, disturbed=weather.disturbed(state.number),
                             steal=steal, load=load, loop=loop)  # fmt: skip
            self._keep(state.case, replace(state.record, launches=(launch,)))
            self.outcome.measured += 1
        elif same is not None:
            self._fail(
                state.case,
                "wrong",
                "a call among or after the last samples gave another result than the definition",
            )

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        """The machine learns from a group at once: its file is written once for all of its cases."""
        try:
            yield
        finally:
            wisdom.remember(self._lessons)
            self._lessons.clear()

    def _teach_table(self) -> None:
        """Once the table is whole: how sure it is who is faster than whom."""
        groups: dict[tuple[int, str], list[Record]] = {}
        for key in self._taught:
            groups.setdefault((self._records[key].threads, self._records[key].spec), []).append(
                self._records[key]
            )
        wisdom.remember(taught(groups.values()))

    def _twice(self, state: _Open, step: Callable[[_Open], bool]) -> bool:
        """``step``; when its process is lost, once more in a fresh one: not every death is the case's fault.
        """
        try:
            return step(state)
        except WorkerFailed as failure:
            lost = failure
        if not state.retried:
            state.retried = True
            with contextlib.suppress(WorkerFailed):
                if not self._ready(state):
                    return False  # for another reason, which is recorded
                return step is self._ready or self._twice(state, step)
        self._fail(state.case, lost.status, str(lost))
        return False

    def _ready(self, state: _Open) -> bool:
        """Opened, and right."""
        return self._open(state) and self._checked(state)

    def _open(self, state: _Open) -> bool:
        """Prepare in a worker; false when the case failed. Also the way back
        after another case killed the worker.
        """
        case, settings = state.case, self.settings
        record = self._records[case.record.key]
        reply = self._ask(
            state, settings.answer_s + 3 * settings.slow_s, do="open", spec=str(case.spec),
            algorithm=variant_name(case.algorithm), threads=record.threads, budget=asdict(settings.budget),
            cold=settings.cold, seed=settings.seed, slow_s=settings.slow_s, launch=state.launch,
        )
        if reply is None:
            return False
        self.outcome.spent.compilation += reply["prepare_cold_s"]
        self.outcome.spent.prepared_runs += reply["spent_s"] - reply["prepare_cold_s"]
        if reply["call_s"] > settings.slow_s:
            self._fail(case, "too_slow", f"one call took {reply['call_s']:.2g} s, {limit_text(settings)}")
            return False
        # Those of a lost process are gone
        state.phases, state.turns, state.spent_s = reply, [[] for _ in state.turns], 0.0
        return True

    def _checked(self, state: _Open) -> bool:
        """The verdict, asked for once per record; nothing is timed before it is ok."""
        record = self._records[state.case.record.key]
        if record.launches:
            state.record = record
            return True
        reply = self._verdict(state)
        if reply is None:
            return False
        self.outcome.spent.checks += reply["spent_s"]
        state.workspace_seen_bytes = reply["workspace_seen_bytes"]
        state.record = replace(record, max_error=reply["max_error"], error_ratio=reply["error_ratio"])
        if not reply["verdict"]:
            self._keep(
                state.case,
                replace(state.record, status="wrong", reason=reply["reason"] or "outside its bound"),
            )
            return False
        return True

    def _sampled(self, state: _Open) -> bool:
        """One turn; true unless the case has failed."""
        if not state.worker.running and not self._open(state):  # another case took it along
            return False
        settings = self.settings
        loops = state.phases["loops"]
        count = settings.budget.chunk(state.phases["call_s"], loops)
        allowed_s = settings.answer_s + 20 * state.phases["call_s"] * loops * (count + 1)
        moving = not settings.cold and len(state.turns) % MOVED_EVERY == MOVED_EVERY - 1
        warm = self._ask(state, allowed_s, do="warm", move=moving)
        if warm is None:
            return False
        doubted = state.disagreements > 0
        asked, busy = perf_counter(), state.worker.busy_s() if doubted else 0.0
        reply = self._ask(state, allowed_s, do="sample")
        turn_s = perf_counter() - asked
        if doubted:
            state.busy_s += state.worker.busy_s() - busy
        if reply is None or self._ask(state, settings.answer_s, do="rest") is None:
            return False
        self.outcome.spent.prepared_runs += reply["spent_s"]
        state.spent_s += warm["spent_s"] + turn_s  # waiting for quiet is not the case's time
        if believable(reply["samples_s"], loops, turn_s, settings.cold):
            state.disagreements, state.busy_s, state.claimed_s = 0, 0.0, 0.0
            state.turns.append([float(f"{s:.6g}") for s in reply["samples_s"]])
            return True
        state.turns.append([])
        total = sum(reply["samples_s"]) * loops
        state.disagreements += 1
        state.claimed_s += total if doubted else 0.0
        if state.disagreements % DISAGREEMENTS:
            return True
        told = f"samples of {total:.3g} s in a turn of {turn_s:.3g} s"
        if not explained(state.claimed_s, state.busy_s, state.record.threads, state.disagreements - 1):
            self._fail(state.case, "wrong", f"its clock is wrong: {told}")
        elif state.disagreements < HELD_UP:
            return True
        else:
            self._fail(
                state.case, "timeout", f"other work held up every turn, {told}: measure when it is calmer"
            )
        return False

    # ---- the judge -----------------------------------------------------------------------------------------

    def _verdict(self, state: _Open) -> dict[str, Any] | None:
        """What the judge says of the case, whose worker does as it orders; None when the case has failed."""
        case, limit_s = state.case, self.settings.answer_s + 20 * state.phases["first_run_s"]
        algorithm = case.algorithm

        def carried(order: dict[str, Any]) -> dict[str, Any] | None:
            answer = self._ask(state, limit_s, do="obey", order=order)
            return answer and answer["answer"]

        return self._judged(state, lambda judge: judge.check(
            carried, spec=str(case.spec), threads=case.record.threads, seed=self.settings.seed,
            name=algorithm.name, family=algorithm.family, accuracy=algorithm.accuracy,
        ))  # fmt: skip

    def _late(self, state: _Open) -> bool | None:
        """Whether timed calls, and some after them, gave what is right; None when the case has failed."""
        case, limit_s = state.case, self.settings.answer_s + 20 * state.phases["call_s"]
        about: dict[str, Any] = {"spec": str(case.spec), "seed": self.settings.seed, "launch": state.launch}
        asked = self._judged(state, lambda judge: judge.ask(do="points", **about))
        answer = asked and self._ask(state, limit_s, do="late", points=asked["points"])
        verdict = answer and self._judged(
            state, lambda judge: judge.ask(do="late", calls=answer["calls"], **about)
        )
        return None if verdict is None else bool(verdict["same"])

    def _judged(
        self, state: _Open, question: Callable[[Judge], dict[str, Any] | None]
    ) -> dict[str, Any] | None:
        """The judge's answer; None when the case has failed, or when the judge can
        give none, which is no fault of it.
        """
        try:
            reply = question(self._pool.judge())
        except JudgeLostError as failure:
            reply = {"failure": "unsupported", "reason": f"cannot be judged: {failure}"}
        if reply is not None and "failure" in reply:
            self._fail(state.case, reply["failure"], reply["reason"])
            return None
        return reply

    def _done(self, state: _Open) -> None:
        if state.worker is not None and state.worker.running:
            with contextlib.suppress(WorkerFailed):
                state.worker.ask(self.settings.answer_s, do="close", case=state.number)
        self.progress.advance(1, f"{state.case.spec} {state.case.record.algorithm}")

    def _ask(self, state: _Open, timeout_s: float, **request: Any) -> dict[str, Any] | None:
        """A worker's answer, or None when the case has failed and is recorded so.

        Raises
        ------
        WorkerFailed
            The process is lost.
        """
        case = state.case
        if request["do"] == "open":
            try:
                state.worker = self._pool.get(case.algorithm, case.record.threads)
            except WorkerFailed as failure:
                raise WorkerFailed(failure.status, f"the worker did not start: {failure}") from None
        try:
            reply = state.worker.ask(timeout_s, case=state.number, **request)
        except WorkerFailed as failure:
            raise WorkerFailed(failure.status, f"{failure}, in {request['do']}") from None
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
        self.turns: list[list[float]] = []  # samples of each round, empty where it gave none
        self.spent_s = 0.0
        self.disagreements = 0
        self.busy_s = self.claimed_s = 0.0  # of the processor, and by its own clock, since turns disagree
        self.retried = False
        self.workspace_seen_bytes: int | None = None

    def result(self) -> Launch:
        names = ("loops", "prepare_cold_s", "prepare_s", "first_run_s", "h2d_s", "d2h_s")
        return Launch(
            self.launch, self.started, tuple(s for turn in self.turns for s in turn),
            **{name: self.phases[name] for name in names}, workspace_seen_bytes=self.workspace_seen_bytes,
            turns=tuple(map(len, self.turns)),
        )

    def logs(self) -> dict[int, float]:
        """Round -> logarithm of seconds."""
        return {n: math.log(max(turn_time(turn), 1e-12)) for n, turn in enumerate(self.turns) if turn}


def _groups(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases of one spec and number of threads are measured against each other, where their rivals do not
    differ.
    """
    found: dict[tuple[int, str, str], list[Case]] = {}
    for case in cases:
        found.setdefault((case.record.threads, case.record.spec, case.rivals), []).append(case)
    return list(found.values())
