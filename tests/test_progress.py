"""What a run says while it goes on: progress without a terminal, and that the machine is busy."""

from __future__ import annotations

from bench.cases import Settings
from bench.cli import measuring
from bench.cli.output import Bar
from bench.outcome import Progress
from bench.runner import Runner


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
