"""What a run tells: while it goes on, and when it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from bench.record import Record


@dataclass
class Spent:
    """Seconds by what they went to, of all machines together."""

    prepared_runs: float = 0.0
    checks: float = 0.0
    compilation: float = 0.0
    start_up: float = 0.0
    total: float = 0.0

    def add(self, other: Spent) -> None:
        """Another machine's."""
        for name, span_s in asdict(other).items():
            setattr(self, name, getattr(self, name) + span_s)

    def shares(self) -> dict[str, float]:
        """Fractions of the total; waiting is what is left: answers, rounds of other processes, storing."""
        parts = {k: v / max(self.total, 1e-9) for k, v in asdict(self).items() if k != "total"}
        return {**parts, "waiting": max(0.0, 1.0 - sum(parts.values()))}


@dataclass
class Progress:
    """What a progress bar shows; called between samples only.

    Attributes
    ----------
    total : int
        Launches of cases, those that are done among them.
    done : int
    later : int
        Of ``total``: those of runs that have not begun.
    """

    total: int = 0
    done: int = 0
    later: int = 0
    advance: Callable[[int, str], None] = lambda done, text: None


@dataclass
class Outcome:
    """What a run did. ``complete`` is false when the budget ended it."""

    records: list[Record] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    measured: int = 0
    complete: bool = True
    wall_s: float = 0.0
