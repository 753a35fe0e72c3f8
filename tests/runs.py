"""What the tests of whole runs share: algorithms from a folder of their own,
measured into a store of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from algos.registry import registry
from algos.spec import ConvSpec
from bench.cases import Settings, cases_of
from bench.outcome import Outcome
from bench.runner import Runner
from bench.store import Store
from tests.conftest import HUNG_S


@contextmanager
def algorithms_from(folder: Path | str, data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The registry with the files of ``folder`` in it, and ``data`` for what the machine learns meanwhile."""
    monkeypatch.setenv("CONVBENCH_PATH", str(folder))
    monkeypatch.setenv("CONVBENCH_DATA", str(data))
    # As the fixture ``undisturbed`` has it
    monkeypatch.setattr("bench.timing.CLOCK_SLACK_S", HUNG_S)
    registry.cache_clear()
    yield
    registry.cache_clear()


def measured(folder: Path, specs: Sequence[ConvSpec], names: Sequence[str], settings: Settings) -> Outcome:
    """The named algorithms on every spec, with one thread, stored in ``folder``."""
    found = [registry()[name] for name in names]
    with Store(folder) as store:
        return Runner(settings, store).run(cases_of(specs, found, [1], settings))
