"""What a machine of a cluster does with a task: the next launch of all rivals on one spec, as on one machine.

The processes that measure are kept between tasks of one run and one launch, as they are on one machine.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from algos.host import fingerprint
from algos.registry import get
from algos.spec import ConvSpec
from bench import seal
from bench.cases import Settings, cases_of
from bench.launching import Launching
from bench.outcome import Progress, Spent
from bench.pool import Pool
from bench.record import Record
from bench.runner import Runner

Variant = tuple[str, str]  # an algorithm's name and its tunables, as they stand in records


class NotWanted(Exception):
    """The task was taken back while it ran."""


@dataclass(frozen=True)
class Run:
    """What all tasks of a run have in common.

    Attributes
    ----------
    identity : str
        Names the run.
    names : tuple of str
        The algorithms, as ``get`` knows them.
    home : str
        The node of the client, whose records are those of a run without a cluster.
    pooled : bool
        Whether nodes of one kind count as one machine.
    launching : type
        What runs a launch.
    """

    identity: str
    names: tuple[str, ...]
    home: str
    pooled: bool = False
    launching: type[Launching] = Launching


@dataclass(frozen=True)
class Task:
    """The next launch of all rivals on a spec.

    Attributes
    ----------
    settings : Settings
        With as many launches as are to be reached.
    standing : tuple of Record
        What the store holds of the spec, of every machine, in brief.
    only : frozenset or None
        The variants that need the launch; all where None.
    """

    run: Run
    spec: str
    threads: int
    settings: Settings
    standing: tuple[Record, ...] = ()
    only: frozenset[Variant] | None = None


class Reply(NamedTuple):
    """What came of a task.

    Attributes
    ----------
    machine, host : str
        Whose records they are, and where Dask finds it.
    launch : int or None
        The one that was run; None where none is missing.
    records : tuple of Record
        Each with that launch alone, or with the reason why it failed.
    current : frozenset
        (algorithm, tunables, build) of every case.
    """

    machine: str
    host: str
    launch: int | None
    records: tuple[Record, ...]
    current: frozenset[tuple[str, str, str]]
    spent: Spent
    measured: int


class Standing:
    """A store in memory, of what stands and what is added."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._stood, self.added = tuple(records), dict[tuple, Record]()

    def stream(self, brief: bool = False, specs: Iterable[str] | None = None) -> Iterator[Record]:
        return iter(self._stood)

    def put(self, record: Record) -> None:
        self.added[record.key] = record

    def forget(self, record: Record) -> None:
        """Nothing: what is replaced is not sent here."""


def name() -> str:
    """This node's: CONVBENCH_NODE, or the host's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", os.environ.get("CONVBENCH_NODE") or platform.node() or "nameless")


def machine_of(run: Run, kind: str) -> str:
    """Whose records this node makes: its kind's alone where that is the client's node or nodes are pooled."""
    return kind if run.pooled or name() == run.home else f"{kind}-{name()}"


def described(run: Run) -> dict[str, Any]:
    """The machine as the store describes it, with ``kind``, ``node``, ``host`` and its peaks."""
    from bench.peaks import peaks
    from bench.pool import measuring

    seal.close()
    about = fingerprint()
    with measuring():
        found = peaks(machine_of(replace(run, pooled=False), about["id"]))  # nodes may share a home folder
    return {**about, "id": machine_of(run, about["id"]), "kind": about["id"], "node": name(), "host": _host(),
            "peaks": found}  # fmt: skip


def launched(task: Task) -> Reply:
    """Run the first launch that this machine lacks, unless another one of its kind lacks none."""
    seal.close()  # before anything from outside is imported
    run, kind = task.run, fingerprint()["id"]
    own, host = machine_of(run, kind), _host()
    algorithms = [get(one) for one in run.names]
    cases = cases_of([ConvSpec.parse(task.spec)], algorithms, [task.threads], task.settings)
    if task.only is not None:
        cases = [case for case in cases if (case.record.algorithm, case.record.tunables) in task.only]
    current = frozenset((c.record.algorithm, c.record.tunables, c.record.build) for c in cases)

    def runner_of(machine: str, pool: Pool) -> tuple[Runner, Standing]:
        standing = Standing(replace(r, machine=kind) for r in task.standing if r.machine == machine)
        return Runner(task.settings, standing, Progress(advance=_wanted()), pool, run.launching), standing

    for machine in () if task.settings.settled else _like(task, own, kind):
        if runner_of(machine, Pool())[0].first_lacking(cases)[1] is None:
            return Reply(machine, host, None, (), current, Spent(), 0)
    with _kept.of(run.identity) as pool:
        runner, standing = runner_of(own, pool)
        cases, launch = runner.first_lacking(cases)
        if launch is not None:
            _kept.freshly(launch)
            runner.one(cases, launch)
    records = tuple(replace(record, machine=own) for record in standing.added.values())
    return Reply(own, host, launch, records, current, runner.outcome.spent, runner.outcome.measured)


def rest(run: str) -> None:
    """End the processes that the run keeps here."""
    if _kept.run == run:
        _kept.end()


def _like(task: Task, own: str, kind: str) -> list[str]:
    """The other machines of this kind that have measured something of the spec."""
    found = {record.machine for record in task.standing}
    return sorted(m for m in found - {own} if m == kind or m.startswith(f"{kind}-"))


class _Kept:
    """The processes of the run and the launch that were asked for last."""

    def __init__(self) -> None:
        self.run, self._launch, self._pool = "", -1, Pool()

    @contextlib.contextmanager
    def of(self, run: str) -> Iterator[Pool]:
        """For one task; whatever stops it leaves none behind."""
        if run != self.run:
            self.end()
            self.run = run
        try:
            yield self._pool
        except BaseException:
            self.end()
            raise

    def freshly(self, launch: int) -> None:
        """Processes in which no other launch was run."""
        if launch != self._launch:
            self._pool.end()
            self._launch = launch

    def end(self) -> None:
        with self._pool:
            self.run, self._launch = "", -1


_kept = _Kept()


def _wanted() -> Callable[[int, str], None]:
    """Raises NotWanted once the client has taken the task back, or is gone."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def advance(done: int, text: str) -> None:
        known = worker.state.tasks.get(key)
        if known is None or known.state == "cancelled":
            raise NotWanted(key)

    return advance


def _host() -> str:
    from distributed import get_worker
    from distributed.comm import get_address_host

    return get_address_host(get_worker().address)
