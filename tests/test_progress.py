"""What a run says while it goes on: progress without a terminal, and that the machine is busy."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import pytest

from bench import pool
from bench.cases import Settings
from bench.cli import measuring
from bench.cli.output import Bar
from bench.outcome import Progress
from bench.processes import code_environment
from bench.runner import Runner
from tests.conftest import HUNG_S


def test_without_a_terminal_a_line_every_half_minute_tells_what_is_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("bench.cli.output.perf_counter", lambda: now[0])
    with Bar() as progress:
        progress.total = 8
        for at, done in ((110.0, 1), (129.0, 0), (131.0, 1), (140.0, 1), (159.0, 1), (162.0, 0)):
            now[0] = at
            progress.advance(done, "a spec\x1b")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "2 of 8 cases in 31 s, about 93 s left; now a spec?",
        "4 of 8 cases in 62 s, about 62 s left; now a spec?",
    ]


def test_runs_one_after_the_other_count_together():
    """As the looks of a duel do, and the batches of twins."""
    progress = Progress(later=4)
    for _ in range(2):
        runner = Runner(Settings(), None, progress)
        runner.run([])
        assert progress.total == progress.done + 4
        progress.done += 3


def test_nothing_done_yet_says_so(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("bench.cli.output.perf_counter", lambda: now[0])
    with Bar() as progress:
        progress.total, now[0] = 3, 31.0
        progress.advance(0, "first")
    assert capsys.readouterr().err == "0 of 3 cases in 31 s, time left not known yet; now first\n"


def test_a_busy_machine_is_warned_of_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("bench.mood.load_now", lambda: 0.9)
    measuring.warn_if_busy()
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr("bench.mood.load_now", lambda: 0.1)
    measuring.warn_if_busy()
    assert capsys.readouterr().err == ""


def test_who_has_to_wait_for_another_measurement_is_told_and_waits(tmp_path, monkeypatch):
    """A suspended one would keep the next waiting for good, without a word."""
    pytest.importorskip("fcntl")
    monkeypatch.setattr(pool, "data_base", lambda: tmp_path)
    code = "import sys; from pathlib import Path; from bench import pool\n"
    code += "pool.data_base = lambda: Path(sys.argv[1])\nwith pool.measuring(): print('measured')"
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    environment = {**os.environ, **code_environment()}
    with pool.measuring():
        other = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE)  # fmt: skip
        assert other.stderr is not None
        told = other.stderr.readline()
        with suppress(subprocess.TimeoutExpired):
            other.wait(1.0)  # one that does not wait is done at once
        waits = other.poll() is None
    said, more = other.communicate(timeout=HUNG_S)
    assert told == f"convbench: waiting for another one that measures here (process {os.getpid()})\n"
    assert waits
    assert (said, more, other.returncode) == ("measured\n", "", 0)
