"""What the picker is to remember of a record."""

from __future__ import annotations

from algos import wisdom
from bench.record import Record

REMEMBERED = ("ok", "wrong", "too_slow", "timeout", "crashed", "error")


def known(record: Record) -> wisdom.Known:
    """The record as the machine's wisdom keeps it."""
    return wisdom.Known(
        record.machine, record.build, record.spec, record.algorithm, record.tunables, record.threads, record.status,
        record.reason, record.prepare_s or 0.0, record.median_s or 0.0,
    )
