"""One launch of the rivals on one spec: workers open them, the judge checks them, and they race in turns.

Verdicts come from the judge's process, and samples count only where they add up to what this process's clock
says.
"""

from __future__ import annotations

import contextlib
import math
import random
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from algos.registry import variant_name
from bench import mood, perf_counter, race
from bench.cases import Case, Settings, limit_text
from bench.outcome import Progress, Spent
from bench.pool import Judge, JudgeLostError, Pool, Worker, WorkerFailed, measuring
from bench.record import Launch, Record, turn_time
from bench.timing import believable, explained, looks

MOVED_EVERY = 8  # turns
DISAGREEMENTS = 20  # turns in a row whose samples do not add up; a busy machine delays one or two
HELD_UP = 100  # the same where the algorithm did no more than its samples say

Keep = Callable[[Case, Record], None]


class Launching:
    """Runs launches in the processes of a pool.

    Parameters
    ----------
    settings : Settings
    pool : Pool
        Ended by its owner between two launches.
    keep : callable
        Takes each case with what came of it, as soon as it is done: a record with its one launch, or with
        the reason why it failed.
    progress : Progress
    spent : Spent
        Is added to.
    timed : bool
        False: cases are checked and not measured.
    """

    def __init__(
        self, settings: Settings, pool: Pool, keep: Keep, progress: Progress, spent: Spent, timed: bool = True
    ) -> None:
        self.settings, self.pool, self.progress, self.spent = settings, pool, progress, spent
        self._keep, self._timed = keep, timed
        self._random = random.Random(settings.seed)

    def run(self, launch: int, cases: list[Case]) -> None:
        """Open, check and sample cases of one spec, whose records say what is known of them so far."""
        self._random.seed(f"{self.settings.seed}|{launch}|{cases[0].spec}")
        self._random.shuffle(cases)
        with measuring():
            self.pool.expect((case.algorithm, case.record.threads) for case in cases)
            opened: list[_Open] = []
            for case in cases:
                state = _Open(case, launch)
                if self._twice(state, self._ready):
                    opened.append(state)
                    self.progress.advance(0, f"{case.spec} {case.record.algorithm}, checked")
                else:
                    self._done(state)
            if self._timed:
                self._race(opened)
                return
            for state in opened:
                self._keep(state.case, state.record)
                self._done(state)

    def _fail(self, case: Case, status: str, reason: str) -> None:
        self._keep(case, replace(case.record, status=status, reason=reason, launches=()))

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
        elif same is not None:
            self._fail(
                state.case,
                "wrong",
                "a call among or after the last samples gave another result than the definition",
            )

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
        reply = self._ask(
            state, settings.answer_s + 3 * settings.slow_s,
            **opening(case, settings, state.launch, self._timed),
        )  # fmt: skip
        if reply is None:
            return False
        self.spent.compilation += reply["prepare_cold_s"]
        self.spent.prepared_runs += reply["spent_s"] - reply["prepare_cold_s"]
        if reply["call_s"] > settings.slow_s:
            self._fail(case, "too_slow", f"one call took {reply['call_s']:.2g} s, {limit_text(settings)}")
            return False
        # Those of a lost process are gone
        state.phases, state.turns, state.spent_s = reply, [[] for _ in state.turns], 0.0
        return True

    def _checked(self, state: _Open) -> bool:
        """The verdict, asked for once per record; nothing is timed before it is ok."""
        record = state.case.record
        if record.launches:
            state.record = record
            return True
        reply = self._verdict(state)
        if reply is None:
            return False
        self.spent.checks += reply["spent_s"]
        state.workspace_seen_bytes = reply["workspace_seen_bytes"]
        state.record = replace(record, max_error=reply["max_error"], error_ratio=reply["error_ratio"])
        if not reply["verdict"]:
            self._keep(
                state.case,
                replace(state.record, status="wrong", reason=reply["reason"] or "outside its bound"),
            )
            state.worker.end()  # what it may have changed there is not what the next spec starts from
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
        self.spent.prepared_runs += reply["spent_s"]
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
            reply = question(self.pool.judge())
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
                state.worker = self.pool.get(case.algorithm, case.record.threads)
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


def opening(case: Case, settings: Settings, launch: int, timed: bool) -> dict[str, Any]:
    """What a worker is told to open a case."""
    return {
        "do": "open", "spec": str(case.spec), "algorithm": variant_name(case.algorithm),
        "threads": case.record.threads, "budget": asdict(settings.budget), "cold": settings.cold,
        "seed": settings.seed, "slow_s": settings.slow_s, "launch": launch, "timed": timed,
    }  # fmt: skip


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
