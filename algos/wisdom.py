"""Wisdom: what this machine's measurements taught, kept in the user's data folder from one run to the next.

A small SQLite file, written by ``convbench run`` and asked by the picker for the specs that it is about,
never read as a whole. Only what the same build measured counts. An entry with other tunables than the
algorithm's own is a decision of ``--tune``: on that spec it runs with these. A file that cannot be read is
set aside, one that cannot be written costs a warning: forgetting is never an error.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Collection, Iterable
from contextlib import closing, suppress
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from algos.host import data_base, forgetful
from algos.neighbours import Place, place

FILE_NAME = "wisdom-3.sqlite"  # the number is the schema's: another schema is another file
MACHINES = "machines.json"
OLDER = "wisdom-2.sqlite"  # knew of no chains; read until there is a new one, which begins with what it holds


@dataclass(frozen=True)
class Known:
    """What is known of one algorithm on one spec.

    Attributes
    ----------
    machine, build, spec, algorithm, tunables : str
    threads : int
    status, reason : str
        As in the record; times are 0 unless the status is ok.
    prepare_s, run_s : float
        Medians over launches, seconds.
    verdict : str
        Against the fastest that it took turns with: "fastest", "slower", "same", "undecided", or empty where
        nobody judged.
    low, high : float
        The 98% interval of its time over that of the fastest; 0 where nobody judged.
    chain : str
        ``Chain.identity`` of the way to what the algorithm solves: empty where it solved the spec itself.
    """

    machine: str
    build: str
    spec: str
    algorithm: str
    tunables: str
    threads: int
    status: str
    reason: str = ""
    prepare_s: float = 0.0
    run_s: float = 0.0
    verdict: str = ""
    low: float = 0.0
    high: float = 0.0
    chain: str = ""


_FIELDS = tuple(f.name for f in fields(Known))
_KEY = _FIELDS[:6]
_INSERT = f"INSERT OR REPLACE INTO known VALUES ({', '.join('?' * len(_FIELDS))})"
_SCHEMA = (
    f"CREATE TABLE IF NOT EXISTS known ({', '.join(_FIELDS[:5])}, threads INTEGER, status, reason, prepare_s "
    f"REAL, run_s REAL, verdict, low REAL, high REAL, chain, PRIMARY KEY ({', '.join(_KEY)}))",
    "CREATE INDEX IF NOT EXISTS by_spec ON known (spec, machine, threads, status, build)",
    "CREATE INDEX IF NOT EXISTS wrongs ON known (machine) WHERE status = 'wrong'",
    "CREATE TABLE place (spec PRIMARY KEY, kind, features)",
    "CREATE INDEX by_kind ON place (kind)",
)


def path() -> Path:
    return data_base() / FILE_NAME


def remember(entries: Iterable[Known]) -> None:
    """Add or replace entries; what cannot be written is said on stderr and forgotten."""
    rows = [astuple(entry) for entry in entries]
    if not rows:
        return
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with closing(_connect()) as database, database:
            database.executemany(_INSERT, rows)
            _place(database, dict.fromkeys(row[2] for row in rows))
    except sqlite3.Error as error:
        print(f"convbench: cannot remember measurements in {path()}: {error}", file=sys.stderr)
    except OSError as error:  # no home, or no right to write there
        forgetful(error)
    recall_anew()


def forget_tuned(like: Known, own: str) -> None:
    """Forget what other tunables than its ``own`` did for the algorithm of ``like``, on its spec."""
    try:
        if not path().is_file():
            return
        with closing(_connect()) as database, database:
            database.execute(
                "DELETE FROM known WHERE machine = ? AND spec = ? AND algorithm = ? AND threads = ? AND "
                "tunables != ?",
                (like.machine, like.spec, like.algorithm, like.threads, own),
            )
    except OSError:  # without a home nothing was remembered
        pass
    except sqlite3.Error as error:
        print(f"convbench: cannot forget measurements in {path()}: {error}", file=sys.stderr)
    recall_anew()


def forget(machine: str = "", spec: str = "") -> int:
    """Forget what is known of a machine, of a spec, of both together, or everything; how many entries.

    Raises
    ------
    OSError, sqlite3.Error
        Where it cannot be forgotten.
    """
    if not path().is_file():
        return 0
    wanted = {name: value for name, value in (("machine", machine), ("spec", spec)) if value}
    where = " AND ".join(["1", *(f"{name} = ?" for name in wanted)])
    with closing(_connect()) as database, database:
        count = database.execute(f"DELETE FROM known WHERE {where}", [*wanted.values()]).rowcount
        database.execute("DELETE FROM place WHERE spec NOT IN (SELECT spec FROM known)")
    recall_anew()
    return count


def rows_of(name: str) -> dict[str, dict[str, Any]]:
    """The rows by machine of a JSON file beside the wisdom: none without a home, none of what is no row."""
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads((data_base() / name).read_text())
        return {machine: row for machine, row in found.items() if isinstance(row, dict)}
    return {}


def keep_rows(name: str, rows: dict[str, dict[str, Any]]) -> None:
    """Put rows into such a file, which is there whole at every moment.

    Raises
    ------
    OSError
        Where nothing can be written.
    """
    file = data_base() / name
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}")
    try:
        scratch.write_text(json.dumps({**rows_of(name), **rows}, separators=(",", ":")))
        os.replace(scratch, file)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def facts() -> dict[str, dict[str, Any]]:
    """What is known of other machines whose measurements are: their processor, cores and caches."""
    return rows_of(MACHINES)


def describe(machines: dict[str, dict[str, Any]]) -> None:
    """Keep the facts of other machines; errors as ``keep_rows``."""
    if machines:
        keep_rows(MACHINES, machines)


def recall(machine: str) -> tuple[Known, ...]:
    """Everything known of ``machine``."""
    return tuple(Known(*row) for row in _read("SELECT * FROM known WHERE machine = ?", machine))


class Memory:
    """What is known of one machine, asked piece by piece; here of entries that are held already."""

    def __init__(self, entries: Iterable[Known]) -> None:
        self._by_spec: dict[str, list[Known]] = {}
        for entry in entries:
            self._by_spec.setdefault(entry.spec, []).append(entry)

    def on(self, specs: Iterable[str]) -> list[Known]:
        """All that is known of these specs."""
        return [entry for spec in specs for entry in self._by_spec.get(spec, ())]

    def builds(self, asked: Collection[str]) -> set[str]:
        """Those of which anything is known."""
        return {entry.build for entries in self._by_spec.values() for entry in entries}.intersection(asked)

    def wrong(self) -> list[Known]:
        """What gave a wrong result, on any spec."""
        return [entry for entries in self._by_spec.values() for entry in entries if entry.status == "wrong"]

    def places(self) -> list[tuple[str, Place]]:
        """Every spec of which anything may be known, and where it lies."""
        return [(spec, where) for spec in self._by_spec if (where := place(spec))]

    def timed(self, specs: Collection[str], threads: int, builds: Collection[str]) -> set[str]:
        """Those on which one of ``builds`` was measured with ``threads``."""
        return {
            e.spec for e in self.on(specs) if e.status == "ok" and e.threads == threads and e.build in builds
        }


class _Kept(Memory):
    """What the file knows."""

    def __init__(self, machine: str) -> None:
        self._machine = machine

    def on(self, specs: Iterable[str]) -> list[Known]:
        query = "SELECT * FROM known WHERE machine = ? AND spec IN (SELECT value FROM json_each(?))"
        return [Known(*row) for row in _read(query, self._machine, json.dumps(list(specs)))]

    def builds(self, asked: Collection[str]) -> set[str]:
        query = (
            "SELECT value FROM json_each(?) WHERE EXISTS "
            "(SELECT 1 FROM known WHERE machine = ? AND build = value)"
        )
        return {build for (build,) in _read(query, json.dumps(sorted(asked)), self._machine)}

    def wrong(self) -> list[Known]:
        return [
            Known(*row)
            for row in _read("SELECT * FROM known WHERE status = 'wrong' AND machine = ?", self._machine)
        ]

    def places(self) -> list[tuple[str, Place]]:
        if _read("SELECT 1 FROM sqlite_master WHERE name = 'place'"):
            rows = _read("SELECT spec, kind, features FROM place")
            return [(spec, (kind, packed)) for spec, kind, packed in rows]
        specs = _read("SELECT DISTINCT spec FROM known WHERE machine = ?", self._machine)
        return [(spec, where) for (spec,) in specs if (where := place(spec))]

    def timed(self, specs: Collection[str], threads: int, builds: Collection[str]) -> set[str]:
        query = (
            "SELECT DISTINCT spec FROM known WHERE spec IN (SELECT value FROM json_each(?)) AND machine = ? "
            "AND threads = ? AND status = 'ok' AND build IN (SELECT value FROM json_each(?))"
        )
        asked = json.dumps(list(specs)), self._machine, threads, json.dumps(sorted(builds))
        return {spec for (spec,) in _read(query, *asked)}


@cache
def memory(machine: str) -> Memory:
    """What is known of ``machine``; the same object until ``remember`` is called."""
    return _Kept(machine)


@cache
def machines() -> frozenset[str]:
    """Those of which anything is known; read as ``memory`` is."""
    return frozenset(machine for (machine,) in _read("SELECT DISTINCT machine FROM known"))


def recall_anew() -> None:
    """Read again what is known when it is asked for next."""
    memory.cache_clear()
    machines.cache_clear()


def _read(query: str, *values: str | int) -> list[tuple]:
    """The rows of an answer; none where nothing is known or can be read for now. A damaged file is set aside.
    """
    with suppress(OSError):
        for file in (path(), path().with_name(OLDER)):
            if file.is_file():
                return _rows(file, query, *values)
    return []


def _rows(file: Path, query: str, *values: str | int) -> list[tuple]:
    with suppress(OSError):
        # A read-only folder has no room for the index that readers share
        for how in ("mode=ro", "immutable=1"):
            if (
                how == "immutable=1"
                and (log := file.with_name(f"{file.name}-wal")).exists()
                and log.stat().st_size
            ):
                print(
                    f"convbench: {log} holds measurements that cannot be read here: make room there",
                    file=sys.stderr,
                )
                return []
            try:
                with closing(
                    sqlite3.connect(f"{file.resolve().as_uri()}?{how}", timeout=10.0, uri=True)
                ) as database:
                    return database.execute(query, values).fetchall()
            except sqlite3.OperationalError as error:
                if "locked" in str(error) or "no such table" in str(error):
                    return []
            except sqlite3.DatabaseError:
                file.rename(file.with_suffix(".damaged"))
                return []
    return []


def _connect() -> sqlite3.Connection:
    database = sqlite3.connect(path(), timeout=10.0)
    database.execute("PRAGMA journal_mode = WAL")
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'by_kind'").fetchone():
        with database:
            database.execute("BEGIN IMMEDIATE")
            is_new = not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'known'").fetchone()
            for statement in _SCHEMA:
                database.execute(statement)
            if is_new and (older := path().with_name(OLDER)).is_file():
                database.executemany(_INSERT, [(*row, "") for row in _rows(older, "SELECT * FROM known")])
            _place(database, [spec for (spec,) in database.execute("SELECT DISTINCT spec FROM known")])
    return database


def _place(database: sqlite3.Connection, specs: Iterable[str]) -> None:
    """Note where the specs lie that are not noted yet."""
    new = "SELECT value FROM json_each(?) WHERE value NOT IN (SELECT spec FROM place)"
    rows = [
        (spec, *where)
        for (spec,) in database.execute(new, (json.dumps(list(specs)),))
        if (where := place(spec))
    ]
    database.executemany("INSERT OR REPLACE INTO place VALUES (?, ?, ?)", rows)
