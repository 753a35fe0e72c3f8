"""Twins: what is planted is what is wasted, and what was found is kept until the way of measuring changes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench import opened, twins
from bench.cases import Settings
from bench.cli import main
from bench.duel import Met, Pair, Result
from bench.noise import Ratio
from bench.twins import KINDS, SHARES, Rate, counted, pairs, rates, remember
from tests.conftest import HUNG_S


@pytest.mark.parametrize("call_s", [5e-6, 4e-5, 1e-3])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_the_share_that_is_burnt_is_the_one_that_is_asked_for(
    call_s: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 5e-8
        return now

    def plan(x: object) -> object:
        nonlocal now
        now += call_s
        return x

    monkeypatch.setattr(opened, "perf_counter", clock)
    run = opened.burning(plan, share)
    calls = int(min(20_000, 0.2 / call_s))
    assert all(run(k) == k for k in range(calls))
    plain = calls * (call_s + 1e-7)  # two looks at the clock
    assert now / plain - 1 == pytest.approx(share, abs=0.03 * share + 1e-9 + opened.LEAST_BURN_S / plain)


def test_pairs_are_spread_over_kinds_threads_and_shares() -> None:
    found = pairs(2 * len(KINDS), [1, 2], Settings())
    kinds = {(pair.spec, pair.old.algorithm.name, pair.threads) for pair in found}
    assert kinds == {(*kind, number) for kind in KINDS for number in (1, 2)}
    assert list(found.values()).count(0.0) == 2 * len(KINDS) and set(found.values()) == {0.0, *SHARES}
    for pair, share in found.items():
        burns = [getattr(case.algorithm, "burn") for case in (pair.old, pair.new)]  # noqa: B009
        assert burns == ([0.0, share] if share else [None, None])
    keys = [case.record.key for pair in found for case in (pair.old, pair.new)]
    assert len(set(keys)) == len(keys)


def test_what_was_found_is_kept_and_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVBENCH_DATA", str(tmp_path / "data"))
    assert rates("m") is None
    planted = Rate(0.05, 10, slower=9, launches=60)
    remember("m", [Rate(0.0, 50, slower=1, same=40, launches=200), planted], False)
    remember("m", [Rate(0.0, 50, same=50, launches=150)], False)
    remember("m", [Rate(0.05, 4, launches=32)], True)
    calm, disturbed = rates("m"), rates("m", neighbour=True)
    assert calm and disturbed and rates("other") is None
    assert calm.rates == (Rate(0.0, 100, slower=1, same=90, launches=350), planted)
    assert calm.text() == (
        "on this machine 100 twins of identical code: 1.0% called different, a planted 5% found in 90% of 10"
    )
    assert disturbed.rates[0].undecided == 4
    halved = json.dumps({"measuring": twins.measuring(), "places": [{}]})
    for damage in ("{", "[]", '{"measuring": 1}', halved):
        twins._path("m").write_text(damage)
        assert rates("m") is None
    remember("m", [Rate(0.0, 5)], False)
    monkeypatch.setattr(twins, "measuring", lambda: "another way")
    assert rates("m") is None


def test_the_command_counts_verdicts_by_what_was_planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVBENCH_DATA", str(tmp_path / "data"))

    def fight(found: list[Pair], *ignored: object) -> Result:
        """Says the truth, but of the first pair."""
        met = []
        for i, pair in enumerate(found):
            burn = getattr(pair.new.algorithm, "burn") or 0.0  # noqa: B009
            verdict = "faster" if i == 0 else "slower" if burn else "same"
            met.append(Met(pair, Ratio(1 + burn, 0.9, 1.2, 0.5, 4, True, verdict), verdict, 4, 1e-3, 1e-3))
        return Result(met, [], [])

    monkeypatch.setattr(twins, "fight", fight)
    assert main(("twins", "--pairs", "3")) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].split() == ["twins", "3", "0", "1", "2", "0", "4.0"]
    assert "false alarm" in shown and "3 twins of identical code: 33.3% called different" in shown
    assert main(("twins", "--pairs", "20", "--budget", "0", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["pairs"]) == twins.BATCH and told["unmeasured"] == 40 - twins.BATCH
    assert counted({}, []) == []


def test_the_neighbour_ends_with_whoever_started_it() -> None:
    code = "import os, subprocess, sys; from bench.twins import NEIGHBOUR; "
    code += "command = [sys.executable, '-c', NEIGHBOUR, str(os.getpid())]; "
    code += "print(subprocess.Popen(command, stdout=subprocess.DEVNULL).pid)"
    number = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    end = time.monotonic() + HUNG_S
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.02)
