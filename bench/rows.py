"""The tables of the store: their columns and the statements that write them; a launch as a row, whole or in
brief.
"""

from __future__ import annotations

import json
import marshal
import struct
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import lru_cache
from sys import intern
from typing import Any
from zlib import crc32

from bench.record import KEY_FIELDS, Brief, Launch, Record, calmest

RECORD_FIELDS = tuple(f.name for f in fields(Record) if f.name != "launches")
LAUNCH_FIELDS = tuple(f.name for f in fields(Launch))
_SAMPLES, _TURNS, _TOGETHER, _DISTURBED = map(LAUNCH_FIELDS.index,
                                              ("samples_s", "turns", "together", "disturbed"))
_NONE = "[]"  # as empty lists are stored
_TYPES = {"threads": "INTEGER", "cold": "INTEGER", "max_error": "REAL", "error_ratio": "REAL",
          "workspace_bytes": "INTEGER", "index": "INTEGER", "loops": "INTEGER", "prepare_cold_s": "REAL",
          "prepare_s": "REAL", "first_run_s": "REAL", "h2d_s": "REAL", "d2h_s": "REAL",
          "workspace_seen_bytes": "INTEGER", "steal": "REAL", "load": "REAL", "loop": "REAL",
          "times_s": "BLOB"}  # fmt: skip
_OPTIONAL = ("max_error", "error_ratio", "workspace_bytes", "h2d_s", "d2h_s", "workspace_seen_bytes", "steal",
             "load", "loop", "times_s")  # fmt: skip


def columns(names: Iterable[str]) -> str:
    return ", ".join(f'"{n}" {_TYPES.get(n, "TEXT")}{"" if n in _OPTIONAL else " NOT NULL"}' for n in names)


# Table -> what schema 2 added to launches, and schema 3 to records.
ADDED = {
    "record": {"via": "''"},
    "launch": {"turns": "'[]'", "together": "''", "disturbed": "'[]'", "steal": "NULL", "load": "NULL",
               "loop": "NULL", "times_s": "NULL"},
}  # fmt: skip
_RECORD_ROW, _LAUNCH_ROW = (", ".join(f'"{n}"' for n in names) for names in (RECORD_FIELDS, LAUNCH_FIELDS))
PUT_RECORD = (
    f"INSERT INTO record ({_RECORD_ROW}) VALUES ({', '.join('?' * len(RECORD_FIELDS))}) ON CONFLICT DO "
    "UPDATE SET "
    + ", ".join(f'"{n}" = excluded."{n}"' for n in RECORD_FIELDS if n not in KEY_FIELDS)
    + " RETURNING id"
)
PUT_LAUNCH = (
    f"INSERT OR IGNORE INTO launch (record_id, {_LAUNCH_ROW}, times_s) "
    f"VALUES ({', '.join('?' * (len(LAUNCH_FIELDS) + 2))})"
)

SCHEMA = (
    "CREATE TABLE machine (id TEXT PRIMARY KEY, description TEXT NOT NULL)",
    f"CREATE TABLE record (id INTEGER PRIMARY KEY, {columns(RECORD_FIELDS)}, UNIQUE "
    f"({', '.join(KEY_FIELDS)}))",
    "CREATE TABLE launch (record_id INTEGER NOT NULL REFERENCES record(id) ON DELETE CASCADE, "
    f"""{columns(LAUNCH_FIELDS)},
    {columns(["times_s"])}, UNIQUE (record_id, "index"))""",
)


ASKED = "CREATE TABLE IF NOT EXISTS asked (name TEXT UNIQUE NOT NULL)"  # made by the first run


class _Read(tuple):
    """Numbers with the text that they were read from: half of what a merge costs would be writing them anew.
    """

    text: str


def as_stored(name: str, value: Any) -> Any:
    """A field of a launch as its column gives it back: lists as JSON, whole numbers of seconds with a point.
    """
    if isinstance(value, tuple):
        return value.text if isinstance(value, _Read) else f"[{', '.join(map(repr, value))}]"
    return float(value) if value is not None and _TYPES.get(name) == "REAL" else value


def packed_times(launch: Launch, row: tuple[Any, ...]) -> bytes:
    """What a ``Brief`` needs of the samples: how many they are, and what stands for each turn; with a sum
    over the row.

    A row that the sum does not fit was changed by somebody else, and is read as a whole.
    """
    values = launch.every_turn().values()
    return struct.pack(f"<II{len(values)}d", _sum(row), launch.sample_count, *values)


def _sum(row: tuple[Any, ...]) -> int:
    return crc32(marshal.dumps(row, 2))


@lru_cache(maxsize=1 << 12)
def _numbers(text: str) -> tuple[int, ...]:
    return tuple(json.loads(text))


@lru_cache(maxsize=1 << 12)
def _ones(turns: str) -> tuple[int, ...]:
    return tuple(map(bool, _numbers(turns)))


@lru_cache
def _layout(size: int) -> struct.Struct:
    """Of as many bytes as ``packed_times`` gives."""
    return struct.Struct(f"<II{size // 8 - 1}d")


def launch_of(row: Sequence[Any]) -> Launch:
    """Of a row with samples."""
    values = list(row[2:])
    values[_TURNS], values[_DISTURBED] = _numbers(values[_TURNS]), _numbers(values[_DISTURBED])
    values[_TOGETHER] = intern(values[_TOGETHER])  # of a score of rivals
    samples = _Read(json.loads(values[_SAMPLES]))
    samples.text, values[_SAMPLES] = values[_SAMPLES], samples
    return Launch(*values)


def brief_of(row: tuple[Any, ...]) -> Brief:
    """Of a row; its samples are looked at only where its times are missing, or not of this row."""
    _, count, *times = _times_of(row)
    values = [*row[2:], count, calmest(times)]
    values[_SAMPLES], values[_TURNS] = tuple(times), _ones(values[_TURNS])
    values[_DISTURBED], values[_TOGETHER] = _numbers(values[_DISTURBED]), intern(values[_TOGETHER])
    brief = Brief._make(values)
    return brief._replace(median_s=calmest(brief.timed()[1])) if brief.disturbed else brief


def median_of(row: tuple[Any, ...]) -> float:
    """``median_s`` of the launch that a row holds, read as ``brief_of`` reads it."""
    if row[2 + _DISTURBED] != _NONE:
        return brief_of(row).median_s
    return calmest(_times_of(row)[2:])


def _times_of(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """What ``packed_times`` packed of a row."""
    stored = row[2:]
    times = _unpacked(row[1])
    return times if times and times[0] == _sum(stored) else _unpacked(packed_times(launch_of(row), stored))


def _unpacked(packed: Any) -> tuple[Any, ...]:
    """The sum, how many samples there are, and the times; nothing where it cannot be what ``packed_times``
    gives.
    """
    if not isinstance(packed, bytes) or len(packed) % 8 or len(packed) < 16:
        return ()
    return _layout(len(packed)).unpack(packed)
