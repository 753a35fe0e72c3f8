"""A worker that dies need not be its case's fault: it is tried once more, and what was measured before stays.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from algos.spec import ConvSpec
from bench.cases import Settings
from bench.pool import Worker, WorkerFailed
from bench.timing import Budget
from tests.conftest import HUNG_S
from tests.runs import algorithms_from, measured

SPEC = ConvSpec.parse("1x1x32x32,1x1x3x3")
SETTINGS = Settings(launches=1, answer_s=20, budget=Budget(case_s=0.02, rounds=4))

MORTAL = '''
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from algos.contract import Algorithm

DEATHS = Path({deaths!r})


@dataclass(frozen=True)
class Mortal(Algorithm):
    """Is killed as often as a file has letters."""

    name: str = "mortal"
    family: str = "direct"

    def unsupported(self, spec):
        return None

    def workspace_bytes(self, spec, threads=1):
        return 4 * spec.min_bytes

    def prepare(self, spec, weights, threads=1):
        left = DEATHS.read_text() if DEATHS.exists() else ""
        if left:
            DEATHS.write_text(left[1:])
            os.kill(os.getpid(), 9)

        def run(x, out=None):
            windows = np.lib.stride_tricks.sliding_window_view(x[:, 0], spec.kernel, axis=(1, 2))
            y = np.einsum("nhwij,ij->nhw", windows, weights[0, 0])[:, None]
            if out is None:
                return y
            out[...] = y
            return out
        return run


ALGORITHMS = [Mortal()]
'''


@pytest.fixture
def deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """How often it is still to be killed: a file's letters."""
    path, folder = tmp_path / "deaths", tmp_path / "mortal"
    folder.mkdir()
    (folder / "mortal.py").write_text(MORTAL.replace("{deaths!r}", repr(str(path))))
    with algorithms_from(folder, tmp_path / "data", monkeypatch):
        yield path


def test_a_case_whose_worker_was_killed_is_tried_once_more(deaths: Path, tmp_path: Path) -> None:
    deaths.write_text("x")
    (record,) = measured(tmp_path, [SPEC], ["mortal"], SETTINGS).records
    assert record.status == "ok" and len(record.launches) == 1


def test_what_crashed_twice_is_tried_again_at_the_next_run(deaths: Path, tmp_path: Path) -> None:
    deaths.write_text("xx")
    (record,) = measured(tmp_path, [SPEC], ["mortal"], SETTINGS).records
    assert record.status == "crashed" and "SIGKILL" in record.reason
    (record,) = measured(tmp_path, [SPEC], ["mortal"], SETTINGS).records
    assert record.status == "ok" and len(record.launches) == 1


def test_launches_that_are_stored_survive_a_crash(
    deaths: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = replace(SETTINGS, launches=2)
    (first,) = measured(tmp_path, [SPEC], ["mortal"], SETTINGS).records
    deaths.write_text("xx")
    (record,) = measured(tmp_path, [SPEC], ["mortal"], two).records
    assert record.status == "ok" and record.launches == first.launches
    assert "what is stored stays (launches: 1)" in capsys.readouterr().err
    (record,) = measured(tmp_path, [SPEC], ["mortal"], two).records
    assert [launch.index for launch in record.launches] == [0, 1] and record.launches[0] == first.launches[0]


def test_a_process_with_many_open_files_measures(deaths: Path, tmp_path: Path) -> None:
    """Descriptors from 1024 on, which ``select`` refuses."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip(f"at most {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        (record,) = measured(tmp_path, [SPEC], ["mortal"], SETTINGS).records
        assert record.status == "ok", record.reason
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_answer_that_comes_too_late_is_none() -> None:
    """A worker that stands still beyond its limit is ended, although it would have answered a moment later.
    """
    worker = Worker(1)
    assert worker.ask(HUNG_S, do="close", case=0)["number"] == 1
    os.killpg(worker.process.pid, signal.SIGSTOP)
    goes_on = threading.Timer(3, os.killpg, (worker.process.pid, signal.SIGCONT))
    goes_on.start()
    try:
        with pytest.raises(WorkerFailed, match="no answer") as failure:
            worker.ask(0.1, do="close", case=0)
    finally:
        goes_on.cancel()
        worker.end()
    assert failure.value.status == "timeout" and not worker.running
