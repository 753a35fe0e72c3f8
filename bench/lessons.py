"""What the picker is to remember of a record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress

from algos import wisdom
from algos.lower import search
from algos.registry import registry
from algos.spec import ConvSpec
from bench.noise import decisions
from bench.record import CALM, Record
from bench.turns import FEW_TURNS, taken

REMEMBERED = ("ok", "wrong", "too_slow", "timeout", "crashed", "error")


DISTURBED = 1.5  # the slowest of a launch's calmest turns over the fastest


def known(
    record: Record, verdict: str = "", low: float = 0.0, high: float = 0.0, chain: str | None = None
) -> wisdom.Known:
    """The record as the machine's wisdom keeps it, with what its turns showed against the fastest.

    ``chain`` is how the algorithm came to solve the spec, found out unless given.
    """
    return wisdom.Known(
        record.machine, record.build, record.spec, record.algorithm, record.tunables, record.threads,
        record.status, record.reason, record.prepare_s or 0.0, record.median_s or 0.0, verdict, low, high,
        _chain(record) if chain is None else chain,
    )  # fmt: skip


def _chain(record: Record) -> str:
    """How the algorithm came to solve the spec; empty for one that is gone, or breaks its contract."""
    with suppress(Exception, SystemExit):
        return search.chain(registry()[record.algorithm], ConvSpec.of(record.spec), record.threads).identity
    return ""


def disturbed(record: Record) -> bool:
    """Whether even the calmest turns of each launch disagree: such a time teaches nothing."""
    return bool(record.launches) and all(
        len(launch.turn_times) >= FEW_TURNS and times[-1] > DISTURBED * times[0]
        for launch in record.launches
        for times in [sorted(launch.turn_times.values())[: math.ceil(len(launch.turn_times) / CALM)]]
    )


def taught(groups: Iterable[Sequence[Record]]) -> list[wisdom.Known]:
    """What a table of records that took turns, those of each spec a group,
    teaches of each: by the one noise model.
    """
    timed = [
        group for found in groups if len(group := [r for r in found if r.launches and not disturbed(r)]) > 1
    ]
    lessons = []
    for decision in decisions(timed, taken):
        lessons.append(known(decision.first, "fastest", 1.0, 1.0))
        lessons += (
            known(record, verdict, ratio.low, ratio.high) for record, ratio, verdict in decision.rivals
        )
    return lessons
