"""Wisdom: what this machine's measurements taught, kept in the user's data folder from one run to the next.

A small SQLite file, written by ``convbench run`` and read by the picker. Only what the same build measured counts. An entry
with other tunables than the algorithm's own is a decision of ``--tune``: on that spec it runs with these. A file that cannot be
read is set aside, one that cannot be written costs a warning: forgetting is never an error.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path

from algos.host import data_base, forgetful

FILE_NAME = "wisdom-1.sqlite"  # the number is the schema's: another schema is another file


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


_FIELDS = tuple(f.name for f in fields(Known))
_KEY = _FIELDS[:6]
_SCHEMA = (
    f"CREATE TABLE IF NOT EXISTS known ({', '.join(_FIELDS[:5])}, threads INTEGER, status, reason, prepare_s REAL, "
    f"run_s REAL, PRIMARY KEY ({', '.join(_KEY)}))"
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
            database.executemany(f"INSERT OR REPLACE INTO known VALUES ({', '.join('?' * len(_FIELDS))})", rows)
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
                "DELETE FROM known WHERE machine = ? AND spec = ? AND algorithm = ? AND threads = ? AND tunables != ?",
                (like.machine, like.spec, like.algorithm, like.threads, own),
            )
    except OSError:  # without a home nothing was remembered
        pass
    except sqlite3.Error as error:
        print(f"convbench: cannot forget measurements in {path()}: {error}", file=sys.stderr)
    recall_anew()


@cache
def recall(machine: str) -> tuple[Known, ...]:
    """Everything known of ``machine``; read once per process until ``remember`` is called."""
    return tuple(Known(*row) for row in _read("SELECT * FROM known WHERE machine = ?", machine))


@cache
def machines() -> frozenset[str]:
    """Those of which anything is known; read as ``recall`` does."""
    return frozenset(machine for (machine,) in _read("SELECT DISTINCT machine FROM known"))


def recall_anew() -> None:
    """Read again what is known when it is asked for next."""
    recall.cache_clear()
    machines.cache_clear()


def _read(query: str, *values: str) -> list[tuple]:
    """The rows of an answer; none where nothing is known or can be read for now. A damaged file is set aside."""
    with suppress(OSError):
        if not path().is_file():
            return []
        for how in ("mode=ro", "immutable=1"):  # a read-only folder has no room for the index that readers share
            if how == "immutable=1" and (log := path().with_name(f"{FILE_NAME}-wal")).exists() and log.stat().st_size:
                print(f"convbench: {log} holds measurements that cannot be read here: make room there", file=sys.stderr)
                return []
            try:
                with closing(sqlite3.connect(f"{path().resolve().as_uri()}?{how}", timeout=10.0, uri=True)) as database:
                    return database.execute(query, values).fetchall()
            except sqlite3.OperationalError as error:
                if "locked" in str(error) or "no such table" in str(error):
                    return []
            except sqlite3.DatabaseError:
                path().rename(path().with_suffix(".damaged"))
                return []
    return []


def _connect() -> sqlite3.Connection:
    database = sqlite3.connect(path(), timeout=10.0)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(_SCHEMA)
    return database
