"""Code that is not compiled yet is compiled by several processes, once each, before anything is measured."""

from __future__ import annotations

import threading
from typing import ClassVar

import pytest

from algos import get
from algos.lower.chain import Chain
from algos.spec import ConvSpec
from bench import ahead
from bench.cases import Settings, cases_of
from bench.pool import WorkerFailed

SPECS = [
    "1x1x64x64,1x1x3x3,p1", "1x1x32x32,1x1x3x3,p1", "1x1x64x64,1x1x7x7,p3", "1x1x64x64,1x1x3x3,p1,float64",
]  # fmt: skip


class FakeWorker:
    made: ClassVar[list[FakeWorker]] = []
    meet: ClassVar[threading.Barrier | None] = None

    def __init__(self, threads: int) -> None:
        self.asked: list[tuple[str, str]] = []
        self.running, self.ended = True, False
        FakeWorker.made.append(self)

    def ask(self, timeout_s: float, **request):
        if request["do"] == "open":
            assert not request["timed"]
            self.asked.append((request["algorithm"], request["spec"]))
            if FakeWorker.meet is not None and len(self.asked) == 1 and self in FakeWorker.made[:2]:
                FakeWorker.meet.wait(20)  # two at once, or this fails
            if "float64" in request["spec"]:
                self.running = False
                raise WorkerFailed("crashed", "it was killed")
        return {}

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def lacking(monkeypatch):
    """Two algorithms of which nothing is compiled, and two cores."""
    FakeWorker.made, FakeWorker.meet = [], threading.Barrier(2)
    monkeypatch.setattr(ahead, "Worker", FakeWorker)
    monkeypatch.setattr(ahead, "usable_cores", lambda: 2)
    monkeypatch.setattr(Chain, "compiling_s", lambda way: 3.0 if way.spec.kernel[0] == 7 else 1.5)
    algorithms = [get("numba_picture"), get("direct_pixels")]
    return cases_of([ConvSpec.parse(text) for text in SPECS], algorithms, [1], Settings())


def test_each_code_is_compiled_once_by_two_processes_what_takes_long_first(lacking):
    told: list[str] = []
    ahead.compile_ahead(lacking, Settings(), told.append)
    asked = [one for worker in FakeWorker.made for one in worker.asked]
    assert len(set(asked)) == len(asked) == len(told)
    codes = [(name, str(get(name).specialised(ConvSpec.parse(text)))) for name, text in asked]
    wanted = {(c.algorithm.name, str(c.algorithm.specialised(c.spec))) for c in lacking}
    assert len(set(codes)) == len(codes) and set(codes) == wanted
    assert any("7x7" in worker.asked[0][1] for worker in FakeWorker.made[:2])
    # One that died is replaced, and all have ended
    assert len(FakeWorker.made) > 2 and all(worker.ended or not worker.running for worker in FakeWorker.made)


def test_where_time_is_short_what_comes_first_is_compiled_first(lacking, monkeypatch):
    FakeWorker.meet = None
    told: list[str] = []
    ahead.compile_ahead(lacking, Settings(run_budget_s=2.0), told.append)
    assert told[0].startswith(SPECS[1])  # the smaller one of those that share their code


def test_nothing_is_started_for_little_on_one_core_or_where_nothing_is_kept(lacking, monkeypatch):
    ahead.compile_ahead(lacking[:1], Settings(), lambda text: None)
    monkeypatch.setattr(Chain, "compiling_s", lambda way: 0.01)
    ahead.compile_ahead(lacking, Settings(), lambda text: None)
    monkeypatch.setattr(Chain, "compiling_s", lambda way: 9.0)
    monkeypatch.setattr(ahead, "_kept", lambda: False)
    ahead.compile_ahead(lacking, Settings(), lambda text: None)
    monkeypatch.setattr(ahead, "usable_cores", lambda: 1)
    ahead.compile_ahead(lacking, Settings(), lambda text: None)
    assert not FakeWorker.made


def test_who_interrupts_waits_for_no_compiler(lacking):
    FakeWorker.meet = None

    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ahead.compile_ahead(lacking, Settings(), interrupted)
    assert all(worker.ended and not worker.asked for worker in FakeWorker.made)
