"""Runs on many machines: nothing is lost or measured twice, whatever is killed, and rivals stay together."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from bench import cluster, node
from bench.cases import Settings
from bench.cli import main
from bench.cluster import Sweep
from bench.machines import spread_lines
from bench.networks.spread import parts_of, run_part, split
from bench.outcome import Progress
from bench.store import Store
from tests.conftest import HUNG_S, Convbench
from tests.simulated import Loopback, acknowledged, check, spans_of, sweep

pytest.importorskip("distributed")

VICTIMS = ("client", "worker", "scheduler")
SPECS = 16
SECONDS = 0.05  # of a launch


@pytest.fixture(scope="module")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    made = Loopback(tmp_path_factory.mktemp("loopback"), SECONDS)
    yield made
    made.end()


def test_every_machine_measures_at_once_and_a_spec_stays_on_one(loopback: Loopback, tmp_path: Path) -> None:
    loopback.ensure(4)
    found = sweep(loopback.address, tmp_path, 24, 3)
    machines = check(tmp_path, 24, 3)
    assert len(set(machines.values())) == 4 == len(found.machines)
    assert found.outcome.measured == 24 * 3 * 2 and found.outcome.complete
    assert found.most_in_flight <= 4 * cluster.AHEAD
    assert found.progress.done == 0 and found.progress.total == 72  # nobody counted
    spans = spans_of(tmp_path)
    assert max(sum(a <= start < b for a, b in spans) for start, _ in spans) == 4
    again = sweep(loopback.address, tmp_path, 24, 3)
    assert again.outcome.measured == 0 and len(again.outcome.records) == 48


def kill(loopback: Loopback, folder: Path, victim: str, draw: random.Random) -> None:
    """Kill one of a sweep's processes at some moment, and go on as a user would."""
    loopback.ensure(3)
    client = loopback.client(folder, SPECS, 2)
    least, then_s = draw.randrange(SPECS * 3 // 2), draw.random() * SECONDS
    while len(before := acknowledged(folder)) < least and client.poll() is None:
        time.sleep(SECONDS / 10)
    time.sleep(then_s)
    assert client.poll() is None, "nothing was left to lose"
    process = {"client": client, "worker": loopback.workers[0], "scheduler": loopback.scheduler}[victim]
    assert process is not None
    process.kill()
    process.wait()
    ended = client.wait(HUNG_S)
    assert (ended == 0) == (victim == "worker")
    if ended:
        loopback.ensure(3)
        assert loopback.client(folder, SPECS, 2).wait(HUNG_S) == 0
    check(folder, SPECS, 2)
    assert before <= acknowledged(folder)


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill_loses_nothing(victim: str, loopback: Loopback, tmp_path: Path) -> None:
    kill(loopback, tmp_path, victim, random.Random(victim))


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("victim", VICTIMS)
def test_no_kill_loses_anything(victim: str, seed: int, loopback: Loopback, tmp_path: Path) -> None:
    kill(loopback, tmp_path, victim, random.Random(f"{victim} {seed}"))


@pytest.mark.exhaustive
def test_four_machines_are_nearly_four_times_as_fast(tmp_path: Path) -> None:
    """From the first launch to the last: what else a task costs is 15 ms, and more on a busy machine."""
    made = Loopback(tmp_path, 1.0)
    try:
        made.ensure(4)
        sweep(made.address, tmp_path / "warm", 8, 1)  # a worker's first task imports what the others use
        sweep(made.address, tmp_path / "out", 20, 2)
    finally:
        made.end()
    check(tmp_path / "out", 20, 2)
    spans = spans_of(tmp_path / "out")
    assert len(spans) / (max(end for _, end in spans) - min(start for start, _ in spans)) >= 3.6


@pytest.mark.exhaustive
def test_ten_thousand_specs_take_the_memory_of_a_window(tmp_path: Path) -> None:
    made, held, sizes = Loopback(tmp_path, 0.0), psutil.Process(), []
    progress = Progress(advance=lambda done, text: sizes.append(held.memory_info().rss))
    try:
        made.ensure(2)
        found = sweep(made.address, tmp_path / "out", 10_000, 1, progress)
    finally:
        made.end()
    check(tmp_path / "out", 10_000, 1)
    assert len(sizes) == 10_000 and found.most_in_flight <= 2 * cluster.AHEAD
    assert max(sizes) - sizes[1000] < 32 << 20


def test_a_batch_in_parts_gives_what_it_gives_in_one(loopback: Loopback) -> None:
    loopback.ensure(2)
    options = {"size": None, "batch": 5, "threads": 1, "weights": ""}
    with cluster.connected(loopback.address) as client:
        parts = split(client, "lenet5", **options, algorithms=["im2col_gemm"], budget_s=0.1)
    whole = run_part({"name": "lenet5", **options, "seed": 0, "first": 0}, ["im2col_gemm"], 0.1)
    assert len({part.node for part in parts.parts}) == len(parts.parts) > 1
    assert [part.images for part in parts.parts] == [n for _, n in parts_of(5, len(parts.parts))]
    assert parts.output.shape == whole.output.shape and len(set(whole.output[:, 0])) == 5
    assert np.allclose(parts.output, whole.output, rtol=1e-5, atol=1e-6)
    assert parts.seconds < parts.one_s


def test_what_stands_is_measured_again_when_asked_and_a_budget_ends_a_sweep(
    loopback: Loopback, tmp_path: Path
) -> None:
    loopback.ensure(2)
    first = sweep(loopback.address, tmp_path, 3, 1, run_budget_s=0.0)
    assert not first.outcome.complete and first.outcome.measured == 0
    assert sweep(loopback.address, tmp_path, 3, 2).outcome.measured == 12
    before = acknowledged(tmp_path)
    assert sweep(loopback.address, tmp_path, 3, 1, fresh=True).outcome.measured == 6
    after = acknowledged(tmp_path)
    assert len({found[:3] for found in after - before}) == len(after - before) == 3


def test_machines_of_one_kind_are_told_apart_unless_they_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    run = node.Run("run", (), home="here")
    monkeypatch.setenv("CONVBENCH_NODE", "rack 7/b")
    assert node.machine_of(run, "abc") == "abc-rack-7-b"
    assert node.machine_of(replace(run, pooled=True), "abc") == "abc"
    monkeypatch.setenv("CONVBENCH_NODE", "here")
    assert node.machine_of(run, "abc") == "abc"


def test_a_pool_is_its_nodes_and_outlives_one_of_them(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        pool = Sweep(None, Settings(), store, (), pooled=True)
        for host in ("10.0.0.1", "10.0.0.2"):
            pool._seen[host] = 0.0
            pool._described({"id": "abc", "kind": "abc", "host": host, "cpu": "CPU", "cores": 2})
        assert spread_lines(pool.machines.values()) == ["2 x CPU, 2 cores (abc)"]
        assert pool._hosts() == {"abc": "10.0.0.2"}
        pool._begin_anew({"10.0.0.2"})
        assert pool._hosts() == {"abc": "10.0.0.1"}


def test_how_far_machines_of_a_kind_are_apart() -> None:
    def machine(kind: str, flops: float, memory: float) -> dict[str, object]:
        peaks = {"flops_per_s": {"float32": {"1": flops, "2": 2e9}}, "bytes_per_s": {"memory": {"1": memory}}}
        return {"kind": kind, "cpu": "CPU", "cores": 2, "peaks": peaks}

    told = spread_lines([machine("a", 1e9, 4e9), machine("b", 1e9, 4e9), machine("a", 1.1e9, 5e9)])
    assert told == ["2 x CPU, 2 cores (a): they differ by 10.0% in arithmetic, 25.0% in copying",
                    "1 x CPU, 2 cores (b)"]  # fmt: skip


def test_without_dask_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    for asked in (["run", "64x64,3x3", "--out", str(tmp_path)], ["net", "xo"]):
        assert main([*asked, "--dask", "local:2"]) == 2
        told = capsys.readouterr().err
        assert told.endswith("need dask.distributed: pip install 'convbench[dask]'\n")
        assert told.count("\n") == 1


@pytest.mark.exhaustive
def test_local_workers_measure_what_one_machine_does(convbench: Convbench) -> None:
    arguments = ("32x32,3x3", "48x48,5x5,p2", "--algorithms", "im2col_gemm,auto", "--launches", "2", "--json")
    done = [json.loads(convbench("run", *arguments, "--out", out, *where).stdout)
            for out, where in (("many", ("--dask", "local:2")), ("one", ()))]  # fmt: skip
    cases = [{(row["spec"], row["threads"], row["machine"]) for row in found["winners"]} for found in done]
    assert cases[0] == cases[1] and len(cases[0]) == 2 and done[0]["measured"] == done[1]["measured"] == 8
