"""pytest for the whole repository: ``--benchmark`` times the benchmarks alone; a plain run passes each once untimed.

``--exhaustive`` adds the tests that a plain run leaves out. The options stand in the root because pytest forbids
abbreviations and reads a subfolder's options only from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
STORAGE = "file://./.benchmarks"  # the plugin's default, relative to wherever pytest was started
NAMED = ("benchmark_only", "benchmark_enable", "benchmark_save", "benchmark_autosave", "benchmark_json", "benchmark_compare")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("benchmark").addoption(
        "--benchmark", action="store_true", dest="benchmarks_alone",
        help="Run the benchmarks alone, timed, and save them under a UTC timestamp.",
    )
    parser.addoption(
        "--exhaustive", action="store_true",
        help="Run also what is marked exhaustive: whole grids where a plain run takes a covering, and slow tests.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set the plugin's options before it reads them."""
    option = config.option
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
        option.benchmark_storage = (ROOT / ".benchmarks").as_uri()
    if not (option.benchmark_save or option.benchmark_autosave or option.benchmark_json):
        option.benchmark_save = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def wanted(item: pytest.Item) -> bool:
        if config.option.benchmarks_alone:
            return "benchmark" in getattr(item, "fixturenames", ())
        return config.option.exhaustive or item.get_closest_marker("exhaustive") is None

    kept = [item for item in items if wanted(item)]
    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write what the machine has learnt for its user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVBENCH_DATA", str(tmp_path_factory.mktemp("data")))
        yield
