"""Shared by the tests: the command line as a user runs it, in folders of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Convbench = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user without memory of earlier runs; compiled code is shared, since it is keyed by the sources."""
    kept = {k: v for k, v in os.environ.items() if k != "CONVBENCH_PATH"}
    return {**kept, "CONVBENCH_DATA": str(tmp_path / "data"), "COLUMNS": "200"}


@pytest.fixture
def convbench(tmp_path: Path, environment: dict[str, str]) -> Convbench:
    """``convbench(*arguments)`` in an empty folder -> the finished process."""
    folder = tmp_path / "work"
    folder.mkdir()

    def run(*arguments: str, timeout: float = 120, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bench", *arguments], cwd=folder, env={**environment, **extra}, timeout=timeout,
            capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )

    return run


@pytest.fixture
def faulty_path(tmp_path: Path) -> str:
    """A folder for CONVBENCH_PATH with algorithms that fail in every way."""
    folder = tmp_path / "faulty"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("faulty.py"), folder)
    return str(folder)
