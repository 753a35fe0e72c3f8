"""Shared by the tests: the command line as a user runs it, in folders and on file systems of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from algos.host import cache_base
from tests.ready import LATE, Ready

# Before a test calls a process hung. Nothing is fast enough only because it takes less: the machine may be
# busy.
HUNG_S = 300.0
Convbench = Callable[..., subprocess.CompletedProcess[str]]
Mount = Callable[..., Path]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user without memory of earlier runs; compiled code is shared, since it is keyed by the sources."""
    kept = {k: v for k, v in os.environ.items() if k != "CONVBENCH_PATH"}
    return {**kept, "CONVBENCH_DATA": str(tmp_path / "data"), "COLUMNS": "200"}


@pytest.fixture(scope="session")
def ready() -> Iterator[Ready]:
    started = Ready()
    yield started
    started.end()


@pytest.fixture
def convbench(tmp_path: Path, environment: dict[str, str], ready: Ready) -> Convbench:
    """``convbench(*arguments)`` in an empty folder -> the finished process."""
    folder = tmp_path / "work"
    folder.mkdir()

    def run(
        *arguments: str, timeout: float = HUNG_S, painted: bool = False, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        if LATE.issuperset(extra):
            return ready.run(arguments, folder, environment | extra, timeout, painted)
        done = subprocess.run(
            [sys.executable, "-m", "bench", *arguments], cwd=folder, env=environment | extra, timeout=timeout,
            capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        done.stderr = whatever_the_load(done.stderr)
        return done

    return run


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command within the tests' process finds the machine busy: what it says is theirs to choose."""
    monkeypatch.setattr("bench.mood.load_now", lambda: 0.0)


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever measures within the tests' process believes every turn: those of
    microseconds wait far longer for a core of a busy machine than they take.
    """
    monkeypatch.setattr("bench.timing.CLOCK_SLACK_S", HUNG_S)


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are laid out and not painted, which is most of what a report costs:
    for tests of what stands beside them.
    """
    monkeypatch.setattr("reports.plots.render", lambda figure: (b"png", b"<svg/>"))


def whatever_the_load(stderr: str) -> str:
    """Without the warning that the machine is busy, which comes and goes with what else runs."""
    return "".join(
        line
        for line in stderr.splitlines(keepends=True)
        if not line.startswith("convbench: the machine is busy, ")
    )


def cache_without_probes(folder: Path) -> Path:
    """A cache folder that remembers no library; compiled code and peaks are everybody's."""
    folder.mkdir(parents=True)
    for name in ("numba", "peaks"):
        (cache_base() / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(cache_base() / name)
    return folder


@pytest.fixture
def faulty_path(tmp_path: Path) -> str:
    """A folder for CONVBENCH_PATH with algorithms that fail in every way."""
    folder = tmp_path / "faulty"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("faulty.py"), folder)
    return str(folder)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """``mount(name, bytes)``: a small file system of its own, and ``mount(folder)`` makes one read-only."""
    mounted: list[Path] = []

    def do(*arguments: str) -> None:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")

    def make(folder: Path, size: int | None = None) -> Path:
        if size is None:
            do("-o", "remount,ro", str(folder))
        else:
            folder.mkdir()
            do("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
            mounted.append(folder)
        return folder

    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("mounts need Linux")
    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
