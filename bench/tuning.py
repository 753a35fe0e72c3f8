"""What ``convbench run --tune`` leaves behind: the machine remembers tunables that won, on their spec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from algos import wisdom
from algos.estimate import tunables_text
from algos.registry import registry
from bench.lessons import known
from bench.record import Record


def own_tunables() -> dict[str, str]:
    """The tunables with which each algorithm is registered, as they stand in records."""
    return {name: tunables_text(algorithm) for name, algorithm in registry().items()}


def remember(tunings: Iterable[Any], records: Sequence[Record]) -> None:
    """Remember the winners among ``tunings`` (of ``reports.findings``), in place of what won there before.

    What is not beyond the noise is forgotten: the algorithm's own tunables stand for it again.
    """
    own = own_tunables()
    for tuning in tunings:
        case = tuning.case["spec"], tuning.case["threads"], tuning.algorithm, tuning.tunables
        for record in records:
            if (record.spec, record.threads, record.algorithm, record.tunables) == case:
                wisdom.forget_tuned(known(record), own[tuning.algorithm])
                if tuning.won:
                    wisdom.remember([known(record)])
