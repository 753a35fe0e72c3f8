"""pytest for the whole repository: ``--benchmark`` times the benchmarks alone; a plain run passes each once
untimed.

``--exhaustive`` adds the tests that a plain run leaves out. The options stand in the root because pytest
forbids abbreviations and reads a subfolder's options only from there.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from algos.engine.threads import usable_cores

ROOT = Path(__file__).parent
STORAGE = "file://./.benchmarks"  # the plugin's default, relative to wherever pytest was started
NAMED = ("benchmark_only", "benchmark_enable", "benchmark_save", "benchmark_autosave", "benchmark_json",
         "benchmark_compare")  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("benchmark").addoption(
        "--benchmark", action="store_true", dest="benchmarks_alone",
        help="Run the benchmarks alone, timed, and save them under a UTC timestamp.",
    )
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="Run also what is marked exhaustive: whole grids where a plain run takes a covering, and slow "
             "tests.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set the plugin's options before it reads them; where it is absent, the benchmarks alone are."""
    option = config.option
    if not _has_plugin(config):
        if option.benchmarks_alone:
            raise pytest.UsageError("--benchmark needs pytest-benchmark: install it (pip install "
                                    "'pytest-benchmark>=5'), and leave out -p no:benchmark")  # fmt: skip
        return
    if option.benchmark_compare_fail and not option.benchmark_compare:
        raise pytest.UsageError(
            "--benchmark-compare-fail compares with an earlier run: give --benchmark-compare too"
        )
    if not option.benchmarks_alone:
        if not any(getattr(option, name) for name in NAMED):
            option.benchmark_disable = True
        return
    if option.benchmark_skip or option.benchmark_disable:
        other = "--benchmark-skip" if option.benchmark_skip else "--benchmark-disable"
        raise pytest.UsageError(f"--benchmark times the benchmarks and {other} does not: give one of them")
    if getattr(option, "numprocesses", None) or getattr(option, "dist", "no") != "no":
        raise pytest.UsageError("--benchmark needs the machine to itself: leave out -n and --dist")
    option.benchmark_only = option.benchmark_enable = True
    if option.benchmark_storage == STORAGE:
        # A path: the plugin unquotes nothing
        option.benchmark_storage = f"file://{_writable(ROOT / '.benchmarks')}"
    if not (option.benchmark_save or option.benchmark_autosave or option.benchmark_json):
        option.benchmark_save = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def _has_plugin(config: pytest.Config) -> bool:
    return hasattr(config.option, "benchmark_only")


def _writable(folder: Path) -> Path:
    """``folder``, or the reason why results could not be kept there: before they are measured, not after."""
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise pytest.UsageError(
            f"cannot write {folder} ({error.strerror}): choose another with --benchmark-storage"
        ) from None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    timed = [item for item in items if "benchmark" in getattr(item, "fixturenames", ())]
    if not _has_plugin(config):
        for item in timed:
            item.add_marker(pytest.mark.skip(reason="pytest-benchmark is not installed, or was left out"))
    elif (
        config.option.benchmark_compare_fail
        and not config._benchmarksession.compared_mapping  # type: ignore[attr-defined]
    ):
        raise pytest.UsageError(
            "--benchmark-compare finds no earlier run: measure one first, with pytest --benchmark"
        )
    kept = timed
    if not config.option.benchmarks_alone:
        kept = [
            item
            for item in items
            if config.option.exhaustive or item.get_closest_marker("exhaustive") is None
        ]
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


def pytest_collection_finish() -> None:
    """Every look for cyclic garbage passes over what is there now, modules and
    tests, which takes a tenth of a second.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means: the cores that may be used here, at most eight, since
    each worker may hold half a gigabyte.
    """
    return min(usable_cores(), 8)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary() -> Iterator[None]:
    """A regression is an answer: the plugin names the cases, and then raises an
    exception that pytest shows as a crash.
    """
    try:
        return (yield)
    except Exception as error:
        if type(error).__name__ != "PerformanceRegression":
            raise
        pytest.exit("slower than --benchmark-compare-fail allows, see above", returncode=1)


@pytest.fixture(scope="session", autouse=True)
def own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write what the machine has learnt for its user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVBENCH_DATA", str(tmp_path_factory.mktemp("data")))
        yield
