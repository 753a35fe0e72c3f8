"""Crashes, hangs, greed, kills: each costs its own case only, and nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from algos.registry import registry
from algos.spec import ConvSpec
from bench.cases import Settings, cases_of
from bench.runner import Outcome, Runner
from bench.store import Store
from bench.timing import Budget

SPEC = ConvSpec.parse("1x1x32x32,1x1x3x3")
SETTINGS = Settings(launches=2, answer_s=8, slow_s=0.5, budget=Budget(case_s=0.02))


@pytest.fixture
def with_faulty(faulty_path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("CONVBENCH_PATH", faulty_path)
    monkeypatch.setenv("CONVBENCH_DATA", str(tmp_path / "data"))
    registry.cache_clear()
    yield
    registry.cache_clear()


def measure(folder: Path, *names: str, settings: Settings = SETTINGS) -> Outcome:
    found = [registry()[name] for name in names]
    with Store(folder) as store:
        return Runner(settings, store).run(cases_of([SPEC], found, [1], settings))


def children_named(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if mark in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


EXPECTED = {
    "good": ("ok", ""),
    "off_by_a_little": ("wrong", "tolerance"),
    "segfault": ("crashed", "SIGSEGV"),
    "abort": ("crashed", "SIGABRT"),
    "hang": ("timeout", "no answer"),
    "greedy": ("too_large", "out of memory"),
    "raises": ("error", "RuntimeError: first line second"),
    "prints": ("ok", ""),
    "predicts_too_much": ("too_large", "bytes"),
    "slow": ("too_slow", "one call took"),
    "forgets": ("wrong", "after the last sample"),
    "forks": ("crashed", "something else than an answer"),
    "breaks_the_contract": ("error", "breaks the contract"),
}


@pytest.mark.usefixtures("with_faulty")
def test_every_failure_costs_its_own_case_only(tmp_path: Path) -> None:
    outcome = measure(tmp_path / "out", *EXPECTED)
    assert {r.algorithm: r.status for r in outcome.records} == {name: status for name, (status, _) in EXPECTED.items()}
    for record in outcome.records:
        assert EXPECTED[record.algorithm][1] in record.reason
        assert "\x1b" not in record.reason and "\n" not in record.reason
        assert len(record.launches) == (2 if record.status == "ok" else 0)
    assert not children_named("child_of_hang")


@pytest.mark.usefixtures("with_faulty")
def test_what_is_stored_is_not_measured_again(tmp_path: Path) -> None:
    first = measure(tmp_path, "good", "off_by_a_little", "prints")
    again = measure(tmp_path, "good", "off_by_a_little", "prints")
    assert again.measured == 0
    assert again.records == first.records
    fresh = measure(tmp_path, "good", settings=Settings(**{**SETTINGS.__dict__, "fresh": True}))
    assert fresh.measured == 2
    assert fresh.records[0].launches != first.records[0].launches


@pytest.mark.usefixtures("with_faulty")
def test_more_launches_are_added_to_those_that_stand(tmp_path: Path) -> None:
    first = measure(tmp_path, "good")
    more = measure(tmp_path, "good", settings=Settings(**{**SETTINGS.__dict__, "launches": 3}))
    assert more.measured == 1
    assert more.records[0].launches[:2] == first.records[0].launches


@pytest.mark.usefixtures("with_faulty")
def test_what_cannot_run_now_costs_no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a busy moment, nor asking for fresh ones without measuring any, nor what cannot be judged."""
    import algos
    from bench import cases

    first = measure(tmp_path, "good")
    with monkeypatch.context() as busy:
        busy.setattr(cases, "_too_large", lambda *ignored: "needs 5 bytes; 4 are free")
        assert measure(tmp_path, "good").records == first.records
    fresh = Settings(**{**SETTINGS.__dict__, "fresh": True, "run_budget_s": 0.0})
    measure(tmp_path, "good", settings=fresh)
    with Store(tmp_path) as store:
        assert store.records() == first.records
        unjudged = ConvSpec.parse("1x1x3000x3000,1x1x3000x3000")
        outcome = Runner(SETTINGS, store).run(cases_of([unjudged], [registry()["im2col_gemm"]], [1], SETTINGS))
    assert outcome.records[0].status == "unsupported" and "cannot be judged" in outcome.records[0].reason
    assert "im2col_gemm" not in {c.algorithm for c in algos.pick("64x64,3x3", threads=1).candidates if c.excluded}


@pytest.mark.usefixtures("with_faulty")
def test_a_wrong_algorithm_is_never_timed_and_never_picked(tmp_path: Path) -> None:
    import algos

    record = measure(tmp_path, "good", "off_by_a_little").records[1]
    assert record.status == "wrong" and not record.launches
    for text in (str(SPEC), "1x1x40x40,1x1x5x5"):
        choice = algos.pick(text, threads=1)
        assert choice.algorithm != "off_by_a_little"
        (reason,) = [c.excluded for c in choice.candidates if c.algorithm == "off_by_a_little"]
        assert reason.startswith(f"wrong on {SPEC}")


def start(environment: dict[str, str], folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench", "run", "--sizes", "16,24,32", "--kernels", "3,5", "--launches", "3", "--out",
         str(folder), "--algorithms", "good,prints", "--spec", "32x32,3x3", *more],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )


def acknowledged(folder: Path) -> list[tuple]:
    """Launch rows as any other process sees them now."""
    path = folder / "convbench.sqlite"
    if not path.exists():
        return []
    database = sqlite3.connect(path, timeout=10)
    try:
        return database.execute('SELECT record_id, "index", samples_s FROM launch ORDER BY 1, 2').fetchall()
    except sqlite3.OperationalError:  # killed before the schema stood
        return []
    finally:
        database.close()


def wait_for_no(mark: str) -> None:
    deadline = time.monotonic() + 10
    while children_named(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children_named(mark)


def test_kill_9_loses_nothing_and_leaves_no_process(environment: dict[str, str], faulty_path: str, tmp_path: Path) -> None:
    environment = {**environment, "CONVBENCH_PATH": faulty_path}
    folder = tmp_path / "killed"
    stored: list[tuple] = []
    for delay in (0.3, 1.2, 1.9, 2.4):
        process = start(environment, folder)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        wait_for_no(f" {process.pid}")  # workers carry their controller's number as their last argument
        now = acknowledged(folder)
        assert set(stored) <= set(now)
        stored = now
    process = start(environment, folder)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    final = acknowledged(folder)
    assert set(stored) <= set(final)
    assert len(final) == 3 * 2 * 2 * 3
    assert "report:" in out


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(environment: dict[str, str], faulty_path: str, tmp_path: Path) -> None:
    process = start({**environment, "CONVBENCH_PATH": faulty_path}, tmp_path / "out", "--launches", "50")
    deadline = time.monotonic() + 60
    while len(acknowledged(tmp_path / "out")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in errors and "Traceback" not in errors
    wait_for_no(f" {process.pid}")


def test_two_runs_on_one_store_keep_everything(environment: dict[str, str], faulty_path: str, tmp_path: Path) -> None:
    environment = {**environment, "CONVBENCH_PATH": faulty_path}
    both = [start(environment, tmp_path / "out"), start(environment, tmp_path / "out")]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(acknowledged(tmp_path / "out")) == 3 * 2 * 2 * 3
