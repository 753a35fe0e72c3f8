"""A run on many machines, carried by ``dask.distributed``: which launches are missing is decided here, a node
runs each of them (``bench.node``), and what it gave is stored at once and whole.

The launches of a spec stay on one machine. When that is lost, the spec begins anew on another one, as its
records. Only a window of tasks is known to Dask at a time, so that a sweep of any length takes little memory.
"""

from __future__ import annotations

import math
import queue
import sys
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from bench import node, perf_counter
from bench.cases import MOST_LAUNCHES, Settings
from bench.launching import Launching
from bench.outcome import Outcome, Progress
from bench.record import Record
from bench.runner import undecided
from bench.store import Store
from bench.turns import Turns, taken

RESOURCE = "bench"  # each worker has one of it: a task is alone on its node
AHEAD = 2  # tasks a worker: one that runs and one that waits, so that it need not
RETRIES = 2
LOOK_S, GRACE_S, PATIENCE_S = 1.0, 10.0, 20.0  # at the workers; until one counts as lost; until none is told
INSTALL = "pip install 'convbench[dask]'"


class ClusterError(ValueError):
    """The cluster cannot be used, or is gone; the message says what to do."""


@contextmanager
def connected(scheduler: str | None, local: int = 0) -> Iterator[Any]:
    """A client of the scheduler at that address, or of ``local`` worker processes on this machine."""
    try:
        from distributed import Client, LocalCluster
    except ModuleNotFoundError:
        raise ClusterError(f"--scheduler and --dask need dask.distributed: {INSTALL}") from None
    import warnings

    if not scheduler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # another port than the usual one is told with the address
            cluster = LocalCluster(n_workers=local, threads_per_worker=1, resources={RESOURCE: 1},
                                   dashboard_address=":8787", silence_logs=50)  # fmt: skip
        with cluster, Client(cluster) as client:
            yield client
        return
    try:
        client = Client(scheduler, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        words = f"no scheduler of Dask answers at {scheduler}: {' '.join(str(error).split())}"
        raise ClusterError(words[:300]) from None
    try:
        yield client
    finally:
        client.close(timeout=5)


@dataclass
class _Group:
    """All rivals on a spec with a number of threads, and how far they are."""

    spec: str
    threads: int
    launches: int
    host: str = ""  # where its launches are run; empty until the first one is done
    done: int = 0
    only: frozenset[node.Variant] | None = None


class Sweep:
    """Measures specs on the machines of a cluster, and keeps their records in a store.

    Parameters
    ----------
    client : distributed.Client
    settings : Settings
    store : Store
    names : sequence of str
        Of algorithms.
    progress : Progress, optional
        Counts launches of specs.
    pooled : bool
        Whether machines of one kind count as one.
    launching : type
        What runs a launch on a node.
    """

    def __init__(
        self, client: Any, settings: Settings, store: Store, names: Sequence[str],
        progress: Progress | None = None, pooled: bool = False, launching: type[Launching] = Launching,
    ) -> None:  # fmt: skip
        self.client, self.settings, self.store = client, settings, store
        self.progress = progress or Progress()
        self.outcome = Outcome()
        self.machines: dict[str, dict[str, Any]] = {}  # those that took part, by host
        self.lost: dict[str, str] = {}  # spec -> why it was given up
        self.most_in_flight = 0
        self._run = node.Run(uuid.uuid4().hex, tuple(names), node.name(), pooled, launching)
        self._waiting: dict[str, deque[_Group]] = defaultdict(deque)  # by host
        self._flying: dict[Any, tuple[_Group | None, str]] = {}  # future -> what for, the host it is bound to
        self._finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._workers: dict[str, str] = {}  # address -> host
        self._seen: dict[str, float] = {}  # host -> when
        self._current: set[tuple[str, str, str, str]] = set()  # machine, algorithm, tunables, build
        self._looked_s = -math.inf
        self._gone = False
        self._patient_s = perf_counter() + PATIENCE_S

    def run(self, specs: Iterable[Any], threads: Sequence[int]) -> Outcome:
        """Measure what is missing; the outcome holds the records of all, in brief."""
        started, texts = perf_counter(), [str(spec) for spec in specs]
        groups = [_Group(s, t, self.settings.launches) for t in dict.fromkeys(threads) for s in texts]
        self.progress.total = self.progress.done + sum(group.launches for group in groups)
        try:
            self._look()
            while self._flying:  # who is there, before anything is sent
                self._take()
                self._look()
            for group in groups:
                self._waiting[self._begun_on(group)].append(group)
            while self._measured(started):
                for group in self._undecided(texts):
                    self.progress.total += 1
                    self._waiting[group.host].append(group)
                if not any(self._waiting.values()):
                    break
        finally:
            self._end()
            self.outcome.wall_s = perf_counter() - started
            self.outcome.records = [r for r in self.store.records(True, texts) if self._belongs(r)]
        return self.outcome

    def _measured(self, started: float) -> bool:
        """Measure all that waits; false when the budget ended that."""
        limit_s = self.settings.run_budget_s
        while any(self._waiting.values()) or self._flying:
            if limit_s is not None and perf_counter() - started > limit_s:
                self.outcome.complete = False
                self._waiting.clear()
            self._look()
            self._send()
            self._take()
        return self.outcome.complete

    # ---- what is sent --------------------------------------------------------------------------------------

    def _send(self) -> None:
        """As many tasks as keep every worker busy: first the specs that are nobody's yet."""
        room = AHEAD * len(self._workers) - len(self._flying)
        bound = Counter(host for _, host in self._flying.values())
        workers = Counter(self._workers.values())
        free = self._waiting[""]
        for host, groups in [("", free), *(() if len(free) > room else self._waiting.items())]:
            while groups and room > 0 and (not host or bound[host] < AHEAD * workers[host]):
                self._submit(groups.popleft())
                bound[host] += 1
                room -= 1

    def _submit(self, group: _Group) -> None:
        begun = group.done > 0
        standing = () if self.settings.fresh and not begun else self.store.records(True, [group.spec])
        settings = replace(self.settings, launches=group.launches, fresh=False, settled=begun)
        mine = tuple(r for r in standing if r.threads == group.threads and r.cold == settings.cold)
        task = node.Task(self._run, group.spec, group.threads, settings, mine, group.only)
        self._fly(group, group.host, node.launched, task, resources={RESOURCE: 1})

    def _fly(self, group: _Group | None, host: str, function: Any, *arguments: Any, **options: Any) -> None:
        future = self.client.submit(
            function, *arguments, key=f"{function.__name__}-{uuid.uuid4().hex}", pure=False, retries=RETRIES,
            workers=[host] if host else None, **options,
        )  # fmt: skip
        self._flying[future] = (group, host)
        self.most_in_flight = max(self.most_in_flight, len(self._flying))
        future.add_done_callback(self._finished.put)

    # ---- what comes back -----------------------------------------------------------------------------------

    def _take(self) -> None:
        """Wait for something that is done, for as long as until the next look."""
        try:
            future = self._finished.get(timeout=LOOK_S)
        except queue.Empty:
            return
        while future is not None:
            if future in self._flying:  # not one that was taken back
                self._took(future, *self._flying.pop(future))
            try:
                future = self._finished.get_nowait()
            except queue.Empty:
                future = None

    def _took(self, future: Any, group: _Group | None, host: str) -> None:
        if future.status == "cancelled":  # by nobody here
            raise self._lost_scheduler()
        try:
            found = future.result(timeout=GRACE_S)
        except TimeoutError:  # lost with its worker, and run once more
            self._flying[future] = (group, host)
            future.add_done_callback(self._finished.put)
        except CancelledError:
            raise self._lost_scheduler() from None
        except Exception as error:  # whatever the task raised, or Dask on its behalf
            if group is not None:
                self._give_up(group, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        else:
            if group is None:
                self._described(found)
            else:
                self._stored(found, group)

    def _lost_scheduler(self) -> ClusterError:
        self._gone = True
        return ClusterError(
            f"the scheduler is gone: {self.outcome.measured} launches of this run are stored; start it again "
            "and run the same command again, without --fresh, to go on"
        )

    def _stored(self, reply: node.Reply, group: _Group) -> None:
        """Keep what a launch gave, all of it or nothing."""
        with self.store.transaction():
            for record in reply.records:
                if self.settings.fresh and not group.done:
                    self.store.forget(record)
                self.store.put(record)
        self._current |= {(reply.machine, *variant) for variant in reply.current}
        self.outcome.measured += reply.measured
        self.outcome.spent.add(reply.spent)
        done = group.launches if reply.launch is None else reply.launch + 1
        self.progress.advance(done - group.done, f"{group.spec} on {reply.machine}")
        group.done, group.host = done, reply.host
        if done < group.launches:
            self._waiting[group.host].append(group)

    def _give_up(self, group: _Group, why: str) -> None:
        self.lost[group.spec] = why
        self.outcome.complete = False
        self.progress.advance(group.launches - group.done, f"{group.spec} given up")
        print(f"convbench: {group.spec} is given up: {why}", file=sys.stderr)

    def _described(self, about: dict[str, Any]) -> None:
        self.machines[about["host"]] = about
        self.store.put_machine(about)

    # ---- who is there --------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Ask who is there, describe who is new, and let others begin anew what the lost ones had."""
        now = perf_counter()
        if now - self._looked_s < LOOK_S:
            return
        try:
            found = self.client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, TimeoutError):  # CommClosedError is one
            raise self._lost_scheduler() from None
        workers = {a: about["host"] for a, about in found.items() if about["resources"].get(RESOURCE)}
        for address in workers.keys() - self._workers.keys():
            if workers[address] not in self._seen:
                self._fly(None, workers[address], node.described, self._run)
                self._seen[workers[address]] = now
        self._workers, self._looked_s = workers, now
        self._seen.update(dict.fromkeys(workers.values(), now))
        gone = {host for host, seen in self._seen.items() if now - seen > GRACE_S}
        if gone:
            self._begin_anew(gone)
        if not workers and now > self._patient_s:
            self._patient_s = math.inf
            print(f"convbench: no worker with the resource {RESOURCE} is there yet: start them with dask "
                  f"worker ADDRESS --nworkers 1 --nthreads 1 --resources {RESOURCE}=1", file=sys.stderr)

    def _begin_anew(self, gone: set[str]) -> None:
        """What is bound to hosts that are gone is nobody's again."""
        bound = [(f, group) for f, (group, host) in self._flying.items() if host in gone]
        groups = [group for _, group in bound if group is not None]
        for host in gone:
            del self._seen[host]
            groups += self._waiting.pop(host, ())
        for future, _ in bound:
            del self._flying[future]
            future.cancel()
        for group in groups:
            self.progress.advance(-group.done, f"{group.spec} begins anew")
            group.host, group.done = "", 0
            self._waiting[""].append(group)

    def _hosts(self) -> dict[str, str]:
        """For each machine whose records can go on a host that makes them: pooled nodes are one machine."""
        return {about["id"]: host for host, about in self.machines.items() if host in self._seen}

    def _begun_on(self, group: _Group) -> str:
        """The host, of those that are there, whose records the store holds of it; empty for none."""
        if self.settings.fresh:
            return ""
        found = {r.machine for r in self.store.records(True, [group.spec]) if r.threads == group.threads}
        hosts = self._hosts()
        return min((hosts[machine] for machine in found & hosts.keys()), default="")

    def _end(self) -> None:
        """Take back what is under way, and end the processes that nodes keep."""
        flying = list(self._flying)
        self._flying.clear()
        if not self._gone:
            with suppress(Exception):  # nothing is lost with them
                self.client.cancel(flying, force=True)
                self.client.run(node.rest, self._run.identity, on_error="ignore")

    # ---- what is decided -----------------------------------------------------------------------------------

    def _belongs(self, record: Record) -> bool:
        """Whether it is one of this run's cases, by the code that the nodes have today."""
        return (record.machine, record.algorithm, record.tunables, record.build) in self._current

    def _undecided(self, specs: Sequence[str]) -> list[_Group]:
        """What needs another launch to decide who is fastest, on each machine by itself."""
        share = self.settings.decide
        if share is None:
            return []
        tables: dict[str, dict[tuple[str, int], list[tuple[Record, Turns]]]] = {}
        hosts = self._hosts()
        for record in self.store.stream(True, specs):
            if self._belongs(record) and record.machine in hosts and record.cold == self.settings.cold:
                rivals = tables.setdefault(record.machine, {}).setdefault((record.spec, record.threads), [])
                rivals.append((record, taken(record)))
        found = []
        for machine, table in tables.items():
            open_: dict[tuple[str, int], list[Record]] = {}
            for record in undecided(table.values(), share):
                open_.setdefault((record.spec, record.threads), []).append(record)
            for (spec, threads), records in open_.items():
                done = 1 + max(launch.index for record in records for launch in record.launches)
                if done < MOST_LAUNCHES:
                    only = frozenset((record.algorithm, record.tunables) for record in records)
                    found.append(_Group(spec, threads, done + 1, hosts[machine], done, only))
        return found
