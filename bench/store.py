"""The store: one SQLite file in WAL mode, appended to as results are produced. ``docs/store.md`` describes
the schema.

Every write is one transaction, so a killed run loses at most the case in flight, and two processes may write
at once.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from bench import rows
from bench.record import KEY_FIELDS, Brief, Record

T = TypeVar("T")
Whole = TypeVar("Whole")
SCHEMA_VERSION = 3
APPLICATION_ID = 0x636F6E76  # "conv": tells a convbench store from any other SQLite file
FILE_NAME = "convbench.sqlite"
BUSY_S = 30.0
_NO_LAUNCHES = (1 << 63, iter(()))  # beyond every record

_COLD = rows.RECORD_FIELDS.index("cold")
# What reading a damaged file may raise
BROKEN = (sqlite3.DatabaseError, ValueError, TypeError, AttributeError, OverflowError, RecursionError)

GONE = ("was deleted, moved or replaced while it was written: run the same command again to measure into a "
        "new one")  # fmt: skip


class StoreError(Exception):
    """The store cannot be used; the message says what to do."""


_RECORD_VALUES, _LAUNCH_VALUES = attrgetter(*rows.RECORD_FIELDS), attrgetter(*rows.LAUNCH_FIELDS)


class Store:
    """The records of one folder.

    Parameters
    ----------
    folder : Path
        Holds ``convbench.sqlite``; made when missing, unless ``create`` is false. Then it may also be
        read-only.

    Raises
    ------
    StoreError
        For a missing, damaged, foreign or newer file, a read-only folder or a full disk.
    """

    def __init__(self, folder: Path, create: bool = True) -> None:
        self.path = Path(folder) / FILE_NAME
        self._names = tuple(os.path.abspath(self.path) + suffix for suffix in ("", "-wal"))
        self._files: tuple[tuple[int, int] | None, ...] = (None, None)
        if not create and not self.path.is_file():
            words = f"{folder} holds no {FILE_NAME}: give the --out folder of an earlier convbench run"
            raise StoreError(words)
        with self._explained():
            if create:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            uri = self.path.resolve().as_uri()
            try:
                self._connect(uri, create)
            except sqlite3.OperationalError as error:
                log = self.path.with_name(f"{FILE_NAME}-wal")
                if create or "locked" in str(error):
                    raise
                if log.exists() and log.stat().st_size:
                    raise StoreError(f"{log} holds records that cannot be read here ({error}): make room, or "
                                     "copy the folder to where there is some") from error  # fmt: skip
                # A read-only folder or a full disk has no room for the index that readers share; without a
                # log none is needed.
                self._connect(f"{uri}?immutable=1", create)

    def _connect(self, uri: str, create: bool) -> None:
        self._db = sqlite3.connect(uri, timeout=BUSY_S, isolation_level=None, uri=True)
        try:
            self._open(create)
        except BaseException:
            self._db.close()
            raise

    def _open(self, create: bool) -> None:
        if create:
            # Not on every file system; what else is wrong shows below
            with suppress(sqlite3.OperationalError):
                self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        if self._pragma("user_version") == 0 and create:
            with self.transaction():
                if self._pragma("user_version") == 0:  # nobody else made it in the meantime
                    if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                        raise StoreError(f"{self.path} is not a convbench store: choose another --out folder")
                    self._define(rows.SCHEMA)
                    self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        if self._pragma("application_id") != APPLICATION_ID:
            raise StoreError(f"{self.path} is not a convbench store: choose another --out folder")
        if not 1 <= (version := self._pragma("user_version")) <= SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} has schema {version}, this convbench knows {SCHEMA_VERSION}: update convbench"
            )
        if create and self._missing():
            with self.transaction():
                self._define(f"ALTER TABLE {table} ADD COLUMN {rows.columns([name])} DEFAULT {value}"
                             for table, name, value in self._missing())  # fmt: skip
        if self.path.stat().st_size % self._pragma("page_size"):  # SQLite reads zeros for what is cut off
            raise self._damaged("its end is missing")
        (found,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()  # 30 ms for 12 MB
        if found != "ok":
            raise self._damaged(" ".join(found.split()))

    def _held(self, table: str) -> set[str]:
        """The columns of a table, some of which an older schema lacks."""
        return {name for _, name, *_ in self._db.execute(f"PRAGMA table_info({table})")}

    def _missing(self) -> list[tuple[str, str, str]]:
        """Table, column and default of what an older schema lacks."""
        return [(table, name, value) for table, added in rows.ADDED.items()
                for name, value in added.items() if name not in self._held(table)]  # fmt: skip

    def _define(self, statements: Iterable[str]) -> None:
        for statement in statements:
            self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, acknowledged when the block ends.

        SQLite goes on writing to a file that has lost its name: what it wrote would be gone with the last
        process that has it open. So the name is looked at before and after. A transaction within another is a
        part of it.
        """
        if self._db.in_transaction:
            yield
            return
        with self._explained():
            self._in_place()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            self._in_place()

    def _in_place(self) -> None:
        """Raise StoreError unless the names of the store and its log still lead to the files that are
        written.
        """
        found = tuple(_identity(name) for name in self._names)
        if any(was not in (None, now) for was, now in zip(self._files, found, strict=True)):
            raise StoreError(f"{self.path} {GONE}")
        self._files = found

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors in the user's words."""
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "full" in text or "disk I/O" in text:
                words = f"no space left for {self.path}: free some and run the same command again"
                raise StoreError(words) from error
            if "readonly" in text or "unable to open" in text:
                raise StoreError(f"cannot write {self.path}: choose another folder with --out") from error
            if "locked" in text:
                words = f"{self.path} is locked by another process: let it end, then run again"
                raise StoreError(words) from error
            words = f"{self.path}: {text}: move the file away, or choose another --out folder"
            raise StoreError(words) from error
        except BROKEN as error:
            raise self._damaged(error) from error
        except OSError as error:
            words = f"cannot use {self.path}: {error.strerror}: choose another folder with --out"
            raise StoreError(words) from error

    def _damaged(self, why: object) -> StoreError:
        words = f"{self.path} is damaged ({why}): move the file away, or choose another --out folder"
        return StoreError(words)

    # ---- writing -------------------------------------------------------------------------------------------

    def put_machine(self, description: dict[str, Any]) -> None:
        """Store ``description`` under its ``id``; peaks that stand there stay, unless it brings later ones.
        """
        with self.transaction():
            self._put_machine(description)

    def _put_machine(self, description: dict[str, Any]) -> None:
        mine = self.machines().get(description["id"], {})
        if _peaks_measured(mine) > _peaks_measured(description):
            description = {**description, "peaks": mine["peaks"]}
        self._db.execute(
            "REPLACE INTO machine VALUES (?, ?)", (description["id"], json.dumps(description, sort_keys=True))
        )

    def put(self, record: Record) -> None:
        """Store ``record``: what it says of itself replaces what stood there, its launches are added.

        A launch of an index that stands there already is left as it is: the first writer wins. A record that
        is not ok any more loses its launches.
        """
        with self.transaction():
            self._put(record)

    def _put(self, record: Record) -> None:
        (identity,) = self._db.execute(rows.PUT_RECORD, _RECORD_VALUES(record)).fetchone()
        if record.status != "ok":
            self._db.execute("DELETE FROM launch WHERE record_id = ?", (identity,))
        for launch in record.launches:
            if isinstance(launch, Brief):
                raise TypeError("a brief launch lacks its samples: nothing is stored without them")
            row = tuple(map(rows.as_stored, rows.LAUNCH_FIELDS, _LAUNCH_VALUES(launch)))
            self._db.execute(rows.PUT_LAUNCH, (identity, *row, rows.packed_times(launch, row)))

    def forget(self, record: Record) -> None:
        """Remove the case that ``record`` names, with its launches."""
        condition = " AND ".join(f'"{n}" = ?' for n in KEY_FIELDS)
        with self.transaction():
            self._db.execute(f"DELETE FROM record WHERE {condition}", record.key)

    def merge(self, machines: Iterable[dict[str, Any]], records: Iterable[Record]) -> int:
        """Add what another store holds; how many records that is. Machines stay
        apart, since they are in a record's key.
        """
        count = 0
        with self.transaction():
            for description in machines:
                self._put_machine(description)
            keys = ", ".join(KEY_FIELDS)
            timed = "EXISTS (SELECT 1 FROM launch WHERE record_id = record.id)"
            stored = self._db.execute(f"SELECT {keys}, status, {timed} FROM record")
            held = {tuple(key): (status, has) for *key, status, has in stored}
            for record in records:
                count += 1
                status, has = held.get(record.key, ("", False))
                # What was once found wrong stays wrong, and no failure elsewhere takes samples away.
                if not (status == "wrong" or (has and record.status not in ("ok", "wrong"))):
                    self._put(record)
        return count

    def ask(self, names: Iterable[str]) -> None:
        """Add suites to those that ``asked`` names; not where earlier runs did not say what they were asked
        for.
        """
        with self.transaction():
            if self.asked() is None and self._db.execute("SELECT 1 FROM record LIMIT 1").fetchone():
                return
            self._db.execute(rows.ASKED)
            self._db.executemany("INSERT OR IGNORE INTO asked VALUES (?)", [(name,) for name in names])

    # ---- reading -------------------------------------------------------------------------------------------

    def machines(self) -> dict[str, dict[str, Any]]:
        """Descriptions by id."""
        with self._explained():
            stored = self._db.execute("SELECT id, description FROM machine ORDER BY id")
            found = {identity: json.loads(description) for identity, description in stored}
            for identity, description in found.items():
                if description.get("id") != identity:
                    raise ValueError(f"the description of machine {identity} is another one's")
            return found

    def asked(self) -> list[str] | None:
        """The suites that runs were asked for, in the order of their first
        being so; None where that is not known.
        """
        with self._explained():
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'asked'").fetchone():
                return None
            return [str(name) for (name,) in self._db.execute("SELECT name FROM asked ORDER BY rowid")]

    def count(self) -> int:
        """How many records there are."""
        with self._explained():
            return int(self._db.execute("SELECT count(*) FROM record").fetchone()[0])

    def records(self, brief: bool = False, specs: Iterable[str] | None = None) -> list[Record]:
        """All records in the order of their first writing; see ``stream``."""
        return list(self.stream(brief, specs))

    def stream(self, brief: bool = False, specs: Iterable[str] | None = None) -> Iterator[Record]:
        """The records one by one, in the order of their first writing, launches in the order of their index.

        Parameters
        ----------
        brief : bool
            With ``Brief`` launches: a tenth of the time and memory.
        specs : iterable of str, optional
            Only records of these.
        """
        make = rows.brief_of if brief else rows.launch_of
        return self._read(make, lambda row, launches: Record.of((*row, launches)), brief, specs)

    def medians(self) -> Iterator[tuple[Record, tuple[float, ...]]]:
        """``stream`` in half of the time: the records without their launches, with what stands for each."""

        def timed(row: list[Any], medians: tuple[float, ...]) -> tuple[Record, tuple[float, ...]]:
            record = Record.of((*row, ()))
            if medians and record.status != "ok":
                raise ValueError(f"a record that is {record.status} holds samples")
            return record, medians

        return self._read(rows.median_of, timed, True, None)

    def _read(
        self, make: Callable[[Any], T], whole: Callable[[list[Any], tuple[T, ...]], Whole], brief: bool,
        specs: Iterable[str] | None,
    ) -> Iterator[Whole]:
        """What ``whole`` makes of the fields of each record and of what ``make`` makes of the row of each of
        its launches.
        """
        chosen: str = ""
        values: tuple[str, ...] = ()
        if specs is not None:
            chosen, values = " WHERE spec IN (SELECT value FROM json_each(?))", (json.dumps(list(specs)),)
        of_chosen = f" WHERE record_id IN (SELECT id FROM record{chosen})" if chosen else ""
        same: dict[str, str] = {}  # one object for equal texts
        with self._explained(), self._moment():
            lacked = {(table, name): value for table, name, value in self._missing()}
            of_record, of_launch = (
                ", ".join(lacked.get((table, name), f'"{name}"') for name in names)
                for table, names in (("record", rows.RECORD_FIELDS), ("launch", rows.LAUNCH_FIELDS))
            )
            times = "times_s" if brief and ("launch", "times_s") not in lacked else "NULL"
            query = f"SELECT record_id, {times}, {of_launch} FROM launch{of_chosen}"
            found = self._db.execute(f'{query} ORDER BY record_id, "index"', values)
            launches = groupby(found, key=itemgetter(0))
            owner, own = next(launches, _NO_LAUNCHES)
            for identity, *row in self._db.execute(
                f"SELECT id, {of_record} FROM record{chosen} ORDER BY id", values
            ):
                while owner < identity:
                    owner, own = next(launches, _NO_LAUNCHES)
                row = [same.setdefault(v, v) if type(v) is str else v for v in row]
                row[_COLD] = bool(row[_COLD])
                yield whole(row, tuple(map(make, own)) if owner == identity else ())

    @contextmanager
    def _moment(self) -> Iterator[None]:
        """All tables as they stand when the first is read."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._db.close()

    def remove(self) -> None:
        """Close it and delete its files, and its folder where that holds nothing else."""
        self.close()
        with suppress(OSError):
            for name in self._names:
                Path(name).unlink(missing_ok=True)
            self.path.parent.rmdir()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _identity(name: str) -> tuple[int, int] | None:
    """Device and number of the file of that name, if there is one."""
    try:
        found = os.stat(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _peaks_measured(description: dict[str, Any]) -> str:
    """When a machine's peaks were measured, in UTC; empty without any."""
    peaks = description.get("peaks")
    return str(peaks.get("measured", "")) if isinstance(peaks, dict) else ""
