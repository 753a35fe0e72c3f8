"""Crashes, hangs, greed, kills: each costs its own case only, and nothing that was acknowledged is lost."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from algos.engine import quiet
from algos.registry import registry
from algos.spec import ConvSpec
from bench.cases import Settings, cases_of
from bench.outcome import Outcome
from bench.runner import Runner
from bench.store import Store
from bench.timing import Budget
from tests.conftest import HUNG_S, Convbench, cache_without_probes

SPEC = ConvSpec.parse("1x1x32x32,1x1x3x3")
SETTINGS = Settings(launches=2, answer_s=60, slow_s=0.5, budget=Budget(case_s=0.02, rounds=4))


@pytest.fixture
def with_faulty(
    faulty_path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, undisturbed: None
) -> Iterator[None]:
    monkeypatch.setenv("CONVBENCH_PATH", faulty_path)
    monkeypatch.setenv("CONVBENCH_DATA", str(tmp_path / "data"))
    registry.cache_clear()
    yield
    registry.cache_clear()


def measure(folder: Path, *names: str, settings: Settings = SETTINGS) -> Outcome:
    found = [registry()[name] for name in names]
    with Store(folder) as store:
        return Runner(settings, store).run(cases_of([SPEC], found, [1], settings))


def children_of(folder: Path) -> list[psutil.Process]:
    """What the faulty algorithms of the test with that folder have left behind."""
    mark = f"a child of {folder}{os.sep}"
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if mark in " ".join(process.info["cmdline"] or [])
    ]


def workers_of(controller: int) -> list[psutil.Process]:
    """Workers carry their controller's number as their last argument."""
    every = psutil.process_iter(["cmdline"])
    return [process for process in every if [str(controller)] == (process.info["cmdline"] or [])[-1:]]


EXPECTED = {
    "good": ("ok", ""),
    "off_by_a_little": ("wrong", "tolerance"),
    "segfault": ("crashed", "SIGSEGV"),
    "abort": ("crashed", "SIGABRT"),
    "hang": ("timeout", "no answer"),
    "greedy": ("too_large", "out of memory"),
    "daemon": ("crashed", "SIGABRT"),
    "exits": ("crashed", "ended with status 1: enough"),
    "raises": ("error", "RuntimeError: first line second"),
    "prints": ("ok", ""),
    "predicts_too_much": ("too_large", "bytes"),
    "slow": ("too_slow", "one call took"),
    "forgets": ("wrong", "called again"),
    "forks": ("crashed", "something else than an answer"),
    "breaks_the_contract": ("error", "breaks the contract"),
    "gives_no_reason": ("error", "breaks the contract: TypeError: unsupported returned False"),
    "leaves": ("error", "breaks the contract: SystemExit"),
}


@pytest.mark.usefixtures("with_faulty")
def test_every_failure_costs_its_own_case_only(tmp_path: Path) -> None:
    patient = measure(tmp_path / "out", *(name for name in EXPECTED if name != "hang"))
    impatient = measure(tmp_path / "out", "hang", settings=Settings(**{**SETTINGS.__dict__, "answer_s": 3}))
    records = [*patient.records, *impatient.records]
    assert {r.algorithm: r.status for r in records} == {name: status for name,
                                                        (status, _) in EXPECTED.items()}
    for record in records:
        assert EXPECTED[record.algorithm][1] in record.reason
        assert "\x1b" not in record.reason and "\n" not in record.reason
        assert len(record.launches) == (2 if record.status == "ok" else 0)
    assert not children_of(tmp_path)


@pytest.mark.parametrize("text", ["3000000x3000000,3x3,p1", "1x1x9000000000000,1x1x63,p0:62",
                                  "1x1x50000x50000x3000,1x1x3x3x3"])
def test_what_no_memory_holds_is_refused_before_anything_is_allocated(text: str) -> None:
    """Sizes beyond 2**31 and 2**32 elements, where indices of 32 bits would come out small."""
    spec = ConvSpec.parse(text)
    found = [a for a in registry().values() if a.device == "cpu"]
    for case in cases_of([spec], found, [1, 2], SETTINGS):
        record = case.record
        told = (record.algorithm, record.status, record.reason)
        assert record.status in ("too_large", "unsupported", "unavailable"), told
        if record.status == "too_large":
            assert record.workspace_bytes + spec.min_bytes > 1 << 43


@pytest.mark.usefixtures("with_faulty")
def test_what_is_stored_is_not_measured_again(tmp_path: Path) -> None:
    first = measure(tmp_path, "good", "off_by_a_little", "prints")
    again = measure(tmp_path, "good", "off_by_a_little", "prints")
    assert again.measured == 0
    assert again.records == first.records
    good, off, _ = first.records
    assert good.error_ratio is not None and good.max_error is not None and 0 <= good.error_ratio <= 1
    assert off.error_ratio is not None and off.error_ratio > 1 and "tolerance" in off.reason
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
        outcome = Runner(SETTINGS, store).run(cases_of([unjudged], [registry()["im2col_gemm"]], [1],
                                                       SETTINGS))
    assert outcome.records[0].status == "unsupported" and "cannot be judged" in outcome.records[0].reason
    assert "im2col_gemm" not in {c.algorithm for c in algos.pick("64x64,3x3",
                                                                 threads=1).candidates if c.excluded}


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
        [sys.executable, "-m", "bench", "run", "--sizes", "16,24,32", "--kernels", "3,5", "--launches", "3",
         "--out", str(folder), "--algorithms", "good,prints", "--spec", "32x32,3x3", *more],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


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


def wait_for_none(found: Callable[[], list[psutil.Process]]) -> None:
    deadline = time.monotonic() + HUNG_S
    while found() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not found()


@pytest.mark.parametrize(("kills", "launches"), [(3, 5), pytest.param(20, 16, marks=pytest.mark.exhaustive)])
def test_kill_9_loses_nothing_and_leaves_no_process(
    kills: int, launches: int, environment: dict[str, str], faulty_path: str, tmp_path: Path
) -> None:
    """At random moments of its start, of measuring and of storing; each run goes
    on where the one before was killed.
    """
    environment = {**environment, "CONVBENCH_PATH": faulty_path}
    folder, moments = tmp_path / "killed", random.Random(20)
    more = ("--sizes", "16,24", "--kernels", "3", "--launches", str(launches),
            "--algorithms", "good")  # fmt: skip
    killed, progress, after = 0, set(), []
    for turn in range(kills):
        process = start(environment, folder, *more)
        deadline = time.monotonic() + HUNG_S
        while turn % 2 and len(acknowledged(folder)) <= len(after) and time.monotonic() < deadline:
            time.sleep(0.02)  # every other one after its first new row, however busy the machine is
        time.sleep(moments.uniform(0, 0.2 if turn % 2 else 0.9))
        before = acknowledged(folder)
        killed += process.poll() is None
        process.kill()
        process.communicate()
        wait_for_none(lambda: workers_of(process.pid))  # noqa: B023 - called before the next turn
        after = acknowledged(folder)
        assert set(before) <= set(after)
        progress.add(len(after))
        if after:
            with Store(folder, create=False) as store:
                assert sum(len(record.launches) for record in store.records()) == len(after)
    assert killed == kills and len(progress) >= kills // 2  # the moments were spread over the run
    process = start(environment, folder, *more)
    out, errors = process.communicate(timeout=HUNG_S)
    assert process.returncode == 0, errors
    final = acknowledged(folder)
    assert set(after) <= set(final)
    assert len(final) == 2 * launches
    assert "report:" in out


def test_children_in_sessions_of_their_own_die_with_the_controller(
    environment: dict[str, str], faulty_path: str, tmp_path: Path
) -> None:
    environment = {**environment, "CONVBENCH_PATH": faulty_path}
    process = start(environment, tmp_path / "out", "--algorithms", "hang")
    deadline = time.monotonic() + HUNG_S
    while len(children_of(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children_of(tmp_path)) == 2
    process.kill()
    process.communicate()
    wait_for_none(lambda: children_of(tmp_path))
    wait_for_none(lambda: workers_of(process.pid))


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    environment: dict[str, str], faulty_path: str, tmp_path: Path
) -> None:
    # A shell's background jobs ignore it, and so their own
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = start({**environment, "CONVBENCH_PATH": faulty_path}, tmp_path / "out", "--launches", "50")
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + HUNG_S
    while len(acknowledged(tmp_path / "out")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=HUNG_S)
    assert process.returncode == 130
    assert "run the same command again" in errors and "Traceback" not in errors
    wait_for_none(lambda: workers_of(process.pid))


def test_two_runs_on_one_store_keep_everything(
    environment: dict[str, str], faulty_path: str, tmp_path: Path
) -> None:
    environment = {**environment, "CONVBENCH_PATH": faulty_path}
    less = ("--sizes", "16,24", "--kernels", "3", "--launches", "1", "--algorithms", "good")
    both = [start(environment, tmp_path / "out", *less) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=HUNG_S)
        assert process.returncode == 0, errors
    assert len(acknowledged(tmp_path / "out")) == 2


BREAKING = {
    "torch": ("import ctypes; ctypes.string_at(0)", "torch_nchw", "ended with status -11"),
    "cv2": ("print('banner')\nraise RuntimeError('no <b>display</b>\x1b[31m')", "opencv_filter2d",
            "no <b>display</b>"),
    "cupy": ("import os; os.abort()", "cupy_direct", "ended with status -6"),
}  # fmt: skip


def test_libraries_that_break_on_import_cost_their_own_algorithms_only(
    convbench: Convbench, tmp_path: Path
) -> None:
    for library, (source, *_) in BREAKING.items():
        (tmp_path / f"{library}.py").write_text(source)
    says = {name: reason for _, name, reason in BREAKING.values()}
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    environment = {"PYTHONPATH": path, "CONVBENCH_CACHE": str(cache_without_probes(tmp_path / "cache"))}
    listed = convbench("list", **environment)
    assert (
        listed.returncode == 0
        and listed.stderr == ""
        and all(line.isprintable() for line in listed.stdout.splitlines())
    )
    rows = {row["name"]: row for row in json.loads(convbench("list", "--json", **environment).stdout)}
    for name, reason in says.items():
        assert reason in rows[name]["why"] and not rows[name]["available"]
    checked = convbench(
        "check", "9x9,3x3", "--algorithms", ",".join(("direct_shift", *says)), "--json", **environment
    )
    assert checked.returncode == 0, checked.stderr
    statuses = {row["algorithm"]: row["status"] for row in json.loads(checked.stdout)}
    assert statuses == {"direct_shift": "ok", **dict.fromkeys(says, "unavailable")}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not say which threads run")
def test_a_turn_ends_when_the_threads_of_its_process_are_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "LIMIT_S", 60.0)
    # Holds no lock of Python's
    thread = threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 1_000_000))
    thread.start()
    quiet.quieten()
    spent = time.process_time()
    thread.join()
    assert time.process_time() - spent < 0.05  # of some 0.4 s, whoever else runs on the machine
    start = time.monotonic()
    quiet.quieten()
    assert time.monotonic() - start < 30  # nobody to wait for
