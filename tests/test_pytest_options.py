"""``pytest --benchmark``: where its results go, and what happens without the
plugin, in a small project of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HUNG_S

ROOT = Path(__file__).parents[1]
TESTS = """
import time

def test_plain():
    assert True

def test_timed(benchmark):
    benchmark(time.sleep, 1e-4)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a name that is no URL, this repository's pytest settings, a plain test and a benchmark.
    """
    folder = tmp_path / "100% mine? #1 %20 ünï"
    folder.mkdir()
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "tests").mkdir()
    (folder / "tests" / "test_it.py").write_text(TESTS)
    return folder


def run_pytest(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    quick = (
        ()
        if extra or "no:benchmark" in arguments
        else ("--benchmark-min-rounds=2", "--benchmark-max-time=0.01")
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *quick, *arguments]
    return subprocess.run(command, cwd=folder, env={**kept, **extra}, timeout=HUNG_S, capture_output=True,
                          text=True, check=False)  # fmt: skip


@pytest.mark.parametrize("start", [".", "tests"])
def test_benchmarks_are_saved_in_the_folder_whatever_its_name(project: Path, start: str) -> None:
    done = run_pytest(project / start, "--benchmark")
    assert done.returncode == 0 and "1 passed, 1 deselected" in done.stdout, done.stdout + done.stderr
    (saved,) = (project / ".benchmarks").rglob("*.json")
    assert len(json.loads(saved.read_text())["benchmarks"]) == 1
    assert [path.name for path in project.parent.iterdir()] == [project.name]


def test_benchmarks_are_refused_before_they_run_where_they_cannot_be_saved(project: Path) -> None:
    (project / ".benchmarks").write_text("")
    done = run_pytest(project, "--benchmark")
    assert done.returncode == 4 and "--benchmark-storage" in done.stderr and "passed" not in done.stdout
    assert run_pytest(project, "--benchmark", "--benchmark-storage", "file://elsewhere").returncode == 0


@pytest.mark.parametrize("without", ["no:benchmark", "every plugin"])
def test_without_the_plugin_the_tests_run_and_the_option_says_what_to_install(
    project: Path, without: str
) -> None:
    absent = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} if without == "every plugin" else {}
    arguments = () if absent else ("-p", without)
    done = run_pytest(project, *arguments, **absent)
    assert done.returncode == 0 and "1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "pytest-benchmark is not installed" in done.stdout
    done = run_pytest(project, *arguments, "--benchmark", **absent)
    assert done.returncode == 4 and done.stderr.strip().count("\n") == 0
    assert "pip install 'pytest-benchmark" in done.stderr


@pytest.mark.parametrize("plugin", ["xdist", "hypothesispytest"])
def test_optional_plugins_are_optional(project: Path, plugin: str) -> None:
    done = run_pytest(project, "-p", f"no:{plugin}")
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


def test_a_regression_is_an_answer_and_no_traceback(project: Path) -> None:
    compared = ("--benchmark", "--benchmark-compare", "--benchmark-compare-fail=min:300%")
    done = run_pytest(project, *compared)
    assert done.returncode == 4 and "measure one first" in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )
    assert run_pytest(project, "--benchmark").returncode == 0
    test = project / "tests" / "test_it.py"
    test.write_text(TESTS.replace("1e-4", "2e-2"))
    done = run_pytest(project, *compared)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "test_timed" in done.stderr and "slower than --benchmark-compare-fail allows" in done.stderr
    test.write_text(TESTS)
    assert run_pytest(project, *compared[:2], "--benchmark-compare-fail=min:900%").returncode == 0
    done = run_pytest(project, "--benchmark", compared[-1])
    assert done.returncode == 4 and "give --benchmark-compare too" in done.stderr
