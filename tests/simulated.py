"""A cluster on the loopback whose nodes sleep instead of measuring, and what holds of a store that it filled.

Workers load this file first. ``python -m tests.simulated ADDRESS FOLDER SPECS LAUNCHES`` is a client.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import cluster, node, peaks
from bench.cases import Case, Settings
from bench.launching import Launching
from bench.outcome import Progress
from bench.record import Launch, Record
from bench.store import Store, StoreError

ALGORITHMS = ("im2col_gemm", "direct_shift")
ROOT = Path(__file__).parents[1]
SECONDS = "CONVBENCH_SIMULATED_S"


class Simulated(Launching):
    """Takes a fixed time, whatever is measured."""

    def run(self, launch: int, cases: list[Case]) -> None:
        started = time.monotonic()
        together = f"{node.name()}|{uuid.uuid4().hex}"
        while (left_s := started + float(os.environ[SECONDS]) - time.monotonic()) > 0:
            self.progress.advance(0, "simulated")
            time.sleep(min(left_s, 0.01))
        done = Launch(launch, str(started), (1e-3,) * 4, 1, started, time.monotonic(), 1e-3, turns=(1,) * 4,
                      together=together)  # fmt: skip
        for case in cases:
            self._keep(case, replace(case.record, launches=(done,)))


def dask_setup(worker: object) -> None:
    """Peaks take seconds, and those of a simulated node are this machine's."""
    peaks.peaks = lambda identity: {}


def specs(count: int) -> list[str]:
    """So many problems, all of which the algorithms solve."""
    return [f"1x1x{8 + k % 100}x{8 + k // 100},1x1x3x3" for k in range(count)]


def sweep(
    address: str, folder: Path, count: int, launches: int, progress: Progress | None = None, **options: Any
) -> cluster.Sweep:
    settings = Settings(launches=launches, **options)
    with cluster.connected(address) as client, Store(folder) as store:
        found = cluster.Sweep(client, settings, store, ALGORITHMS, progress, launching=Simulated)
        found.run(specs(count), [1])
    return found


class Loopback:
    """A scheduler and workers, each of which is a node of its own."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds, self.address = folder, seconds, ""
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self._names = iter(range(1, 250))

    def ensure(self, count: int) -> None:
        """The scheduler and so many workers live; those that do not are replaced by others."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            for worker in self.workers:
                worker.kill()
                worker.wait()
            file = self.folder / f"scheduler-{uuid.uuid4().hex}.json"
            self.scheduler = self._python(
                "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
                "--scheduler-file", str(file), "--dashboard-address", "127.0.0.1:0",
            )  # fmt: skip
            self.address = _address(file)
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < count:
            number = next(self._names)
            self.workers.append(self._python(
                "distributed.cli.dask_worker", self.address, "--nworkers", "1", "--nthreads", "1",
                "--no-nanny", "--resources", "bench=1", "--host", f"127.0.0.{number}", "--no-dashboard",
                "--preload", "tests.simulated", "--local-directory", str(self.folder),
                CONVBENCH_NODE=f"node{number}",
            ))  # fmt: skip
        with cluster.connected(self.address) as client:
            client.wait_for_workers(count)

    def client(self, folder: Path, count: int, launches: int) -> subprocess.Popen[bytes]:
        """A process that sweeps."""
        return self._python("tests.simulated", self.address, str(folder), str(count), str(launches))

    def _python(self, module: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CONVBENCH_DATA": str(self.folder / "data"),
                       SECONDS: str(self.seconds), **variables}  # fmt: skip
        with open(self.folder / f"{module}.log", "ab") as log:
            return subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=log, stderr=log,
                                    env=environment, cwd=self.folder)  # fmt: skip

    def end(self) -> None:
        for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
            process.kill()
            process.wait()


def _address(file: Path) -> str:
    import json

    while True:
        try:
            return str(json.loads(file.read_text())["address"])
        except (OSError, ValueError):
            time.sleep(0.05)


def check(folder: Path, count: int, launches: int) -> dict[str, str]:
    """Nothing is missing, nothing is there twice, no launch is of another node than its record, and rivals
    took their turns together; spec -> the machine that measured all of it.
    """
    with Store(folder, create=False) as store:
        records = store.records()
        known = store.machines()
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        assert record.machine in known
        groups[record.spec, record.machine].append(record)
    whole: dict[str, str] = {}
    for (spec, machine), rivals in groups.items():
        assert {rival.algorithm for rival in rivals} == set(ALGORITHMS)
        assert len({tuple(launch.together for launch in rival.launches) for rival in rivals}) == 1
        launched = rivals[0].launches
        assert [launch.index for launch in launched] == list(range(len(launched)))
        assert {launch.together.split("|")[0] for launch in launched} == {known[machine]["node"]}
        if len(launched) == launches:
            assert spec not in whole, "measured twice"
            whole[spec] = machine
    assert set(whole) == set(specs(count))
    return whole


def spans_of(folder: Path) -> set[tuple[float, float]]:
    """When each simulated launch began and ended."""
    with Store(folder, create=False) as store:
        return {(one.prepare_cold_s, one.prepare_s) for record in store.records() for one in record.launches}


def acknowledged(folder: Path) -> set[tuple[str, str, int, str]]:
    """What the store holds already."""
    try:
        with Store(folder, create=False) as store:
            return set(_launches(store.records()))
    except StoreError:  # not there yet, or not yet one
        return set()


def _launches(records: Sequence[Record]) -> Iterator[tuple[str, str, int, str]]:
    for record in records:
        yield from ((record.spec, record.machine, one.index, one.together) for one in record.launches)


if __name__ == "__main__":
    cluster.GRACE_S, cluster.LOOK_S = 1.5, 0.2
    sweep(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
