"""Records in an SQLite file: durable, for the processes of one machine.

Each change is one transaction that is on the disk when it returns (WAL, `synchronous=FULL`). A
process that dies in the middle of one leaves the file as it was before.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from sockway.errors import (
    BusyError,
    ConfigError,
    IncompatibleError,
    NotFoundError,
    PermissionDenied,
    SockwayError,
    StateError,
)
from sockway.fleet.entries import Entry, Facts, Report, Revision, Rules
from sockway.fleet.store import Transaction, View

APPLICATION: Final = 0x53574944
"""Says in the file's header whose it is: SWID."""
SCHEMA: Final = 1
_PATIENCE: Final = 10.0
"""Seconds to wait for another process's change."""
_MODE: Final = 0o600

T = TypeVar("T")

_TABLES: Final = """
CREATE TABLE facts (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    registry TEXT NOT NULL, revision INTEGER NOT NULL, clock REAL NOT NULL,
    bits INTEGER NOT NULL, quarantine REAL NOT NULL, drain REAL NOT NULL);
CREATE TABLE ids (
    server_id INTEGER PRIMARY KEY CHECK (server_id BETWEEN 1 AND 16777215),
    name TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('assigned', 'retiring', 'quarantined')),
    revision INTEGER NOT NULL, assigned_at REAL NOT NULL, retired_at REAL,
    CHECK ((state = 'assigned') = (retired_at IS NULL)));
CREATE UNIQUE INDEX one_live_id ON ids (name) WHERE state <> 'quarantined';
CREATE INDEX retired_ids ON ids (server_id) WHERE state <> 'assigned';
CREATE TABLE tellers (
    server_id INTEGER NOT NULL REFERENCES ids ON DELETE CASCADE,
    teller TEXT NOT NULL, PRIMARY KEY (server_id, teller)) WITHOUT ROWID;
CREATE TABLE balancers (
    name TEXT PRIMARY KEY, revision INTEGER NOT NULL, reported_at REAL NOT NULL,
    carries TEXT, by_hand TEXT NOT NULL);
CREATE TABLE revisions (
    revision INTEGER NOT NULL, token TEXT NOT NULL, time REAL NOT NULL, change TEXT NOT NULL,
    PRIMARY KEY (revision, token)) WITHOUT ROWID;
"""
_ENTRY: Final = (
    "SELECT server_id, name, state, revision, assigned_at, retired_at, "
    "(SELECT json_group_array(teller) FROM tellers WHERE tellers.server_id = ids.server_id) "
    "FROM ids "
)


class SqliteStore:
    """A file of records. One thread at a time uses it."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Take over what is open; see `open`."""
        self.path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path | str, *, create: bool = False, whole: bool = False) -> Self:
        """The store in a file.

        Args:
            path: the file.
            create: make it if it is not there, readable by its owner alone.
            whole: read all of it to see whether it is damaged.

        Raises:
            NotFoundError: there is no such file, and none was to be made.
            StateError: the file is no registry, or damaged.
            IncompatibleError: a newer version made it.
            BusyError: another process keeps it locked.
            PermissionDenied: this process may not.

        """
        path = Path(path)
        with _clear(path):
            if create:
                _make_file(path)
            elif not path.exists():
                raise NotFoundError(
                    f"there is no registry of server IDs at {path}",
                    hint="`sockway ids assign NAME` makes it; --registry FILE names another",
                )
            if not path.is_file():
                raise ConfigError(f"{path} is no file", hint="name a file: --registry FILE")
            connection = sqlite3.connect(
                path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(connection, path, create=create)
                if whole:
                    _check_whole(connection)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection)

    def read(self, work: Callable[[View], T]) -> T:
        """Do something with the records of one moment; see `Store`."""
        return self._do(work, "BEGIN")

    def change(self, work: Callable[[Transaction], T]) -> T:
        """Change records: all that `work` does, or nothing; see `Store`."""
        return self._do(work, "BEGIN IMMEDIATE")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _do(self, work: Callable[[SqliteTransaction], T], begin: str) -> T:
        with _clear(self.path):
            self._connection.execute(begin)
            try:
                result = work(SqliteTransaction(self._connection))
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            return result


class SqliteTransaction:
    """Records within one transaction; see `Transaction`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Use an open transaction."""
        self._connection = connection

    def facts(self) -> Facts:
        """What there is once."""
        row = self._one("SELECT registry, revision, clock, bits, quarantine, drain FROM facts")
        if row is None:
            raise sqlite3.DatabaseError("its table of facts is empty")
        return Facts(row[0], row[1], row[2], Rules(*row[3:]))

    def named(self, name: str) -> Entry | None:
        """The entry of a backend that is not quarantined."""
        row = self._one(_ENTRY + "WHERE name = ? AND state <> 'quarantined'", name)
        return None if row is None else _entry(row)

    def numbered(self, server_id: int) -> Entry | None:
        """The entry of an ID."""
        row = self._one(_ENTRY + "WHERE server_id = ?", server_id)
        return None if row is None else _entry(row)

    def entries(self) -> Sequence[Entry]:
        """All of them, by ID."""
        return [_entry(row) for row in self._all(_ENTRY + "ORDER BY server_id")]

    def retired(self) -> Sequence[Entry]:
        """Those that are retiring or quarantined, by ID."""
        where = "WHERE state <> 'assigned' ORDER BY server_id"
        return [_entry(row) for row in self._all(_ENTRY + where)]

    def reports(self) -> Sequence[Report]:
        """Of all balancers, by name."""
        rows = self._all(
            "SELECT name, revision, reported_at, carries, by_hand FROM balancers ORDER BY name"
        )
        return [
            Report(name, revision, at, _carried(carries), json.loads(by_hand))
            for name, revision, at, carries, by_hand in rows
        ]

    def revisions(self) -> Sequence[Revision]:
        """All changes there were, the oldest first."""
        rows = self._all(
            "SELECT revision, token, time, change FROM revisions ORDER BY time, revision"
        )
        return [Revision(*row) for row in rows]

    def token(self, revision: int) -> str | None:
        """What a revision is marked with; the latest, if copies gave several."""
        row = self._one(
            "SELECT token FROM revisions WHERE revision = ? ORDER BY time DESC LIMIT 1", revision
        )
        return None if row is None else str(row[0])

    def knows(self, revision: int, token: str) -> bool:
        """Whether it ever had, or took in, a revision with this mark."""
        query = "SELECT 1 FROM revisions WHERE revision = ? AND token = ?"
        return self._one(query, revision, token) is not None

    def set_facts(self, facts: Facts) -> None:
        """Replace what there is once."""
        rules = facts.rules
        self._write(
            "INSERT OR REPLACE INTO facts VALUES (1, ?, ?, ?, ?, ?, ?)",
            facts.registry, facts.revision, facts.clock, rules.bits, rules.quarantine, rules.drain,
        )  # fmt: skip

    def put(self, entry: Entry) -> None:
        """Write an entry, in place of the one with its ID."""
        self.drop(entry.server_id)
        self._write(
            "INSERT INTO ids VALUES (?, ?, ?, ?, ?, ?)",
            entry.server_id, entry.name, entry.state, entry.revision, entry.assigned_at,
            entry.retired_at,
        )  # fmt: skip
        for teller in entry.tellers:
            self._write("INSERT INTO tellers VALUES (?, ?)", entry.server_id, teller)

    def drop(self, server_id: int) -> None:
        """Remove an entry."""
        self._write("DELETE FROM ids WHERE server_id = ?", server_id)

    def put_report(self, report: Report) -> None:
        """Write what a balancer has."""
        carries = None if report.carries is None else json.dumps(dict(report.carries))
        self._write(
            "INSERT OR REPLACE INTO balancers VALUES (?, ?, ?, ?, ?)",
            report.balancer, report.revision, report.reported_at, carries,
            json.dumps(dict(report.by_hand)),
        )  # fmt: skip

    def drop_report(self, balancer: str) -> None:
        """Forget a balancer."""
        self._write("DELETE FROM balancers WHERE name = ?", balancer)

    def record(self, revision: Revision) -> None:
        """Keep a revision."""
        self._write(
            "INSERT OR IGNORE INTO revisions VALUES (?, ?, ?, ?)",
            revision.revision, revision.token, revision.time, revision.change,
        )  # fmt: skip

    def _one(self, query: str, *values: Any) -> Any:
        return self._connection.execute(query, values).fetchone()

    def _all(self, query: str) -> list[Any]:
        return self._connection.execute(query).fetchall()

    def _write(self, query: str, *values: Any) -> None:
        self._connection.execute(query, values)


def _entry(row: Any) -> Entry:
    server_id, name, state, revision, assigned_at, retired_at, tellers = row
    told_by = tuple(sorted(json.loads(tellers)))
    return Entry(server_id, name, state, revision, assigned_at, retired_at, told_by)


def _carried(text: str | None) -> dict[str, tuple[str, ...]] | None:
    if text is None:
        return None
    return {vip: tuple(names) for vip, names in json.loads(text).items()}


def _make_file(path: Path) -> None:
    """An empty file that nobody else can read or write, from its first moment on."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _MODE))
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _prepare(connection: sqlite3.Connection, path: Path, *, create: bool) -> None:
    """Check whose file it is, make its tables if it is empty, and have changes be durable."""
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    if _is_empty(connection):
        if not create:
            raise NotFoundError(
                f"{path} is empty: no registry was made in it",
                hint="`sockway ids assign NAME` makes it",
            )
        _wal(connection)
        connection.execute("BEGIN IMMEDIATE")
        try:
            if _is_empty(connection):  # nobody was faster
                _make_tables(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    if _number(connection, "application_id") != APPLICATION:
        raise StateError(
            f"{path} is an SQLite file, but no registry of server IDs",
            hint="name another file: --registry FILE",
        )
    version = _number(connection, "user_version")
    if version != SCHEMA:
        raise IncompatibleError(
            f"{path} has schema {version}; this version of Sockway knows {SCHEMA}",
            hint="use the version that made it, or `sockway ids export` there and import here",
        )
    _wal(connection)


def _check_whole(connection: sqlite3.Connection) -> None:
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _make_tables(connection: sqlite3.Connection) -> None:
    for statement in _TABLES.split(";"):
        if statement.strip():
            connection.execute(statement)
    SqliteTransaction(connection).set_facts(Facts(secrets.token_hex(8)))
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")


def _is_empty(connection: sqlite3.Connection) -> bool:
    (count,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return bool(count == 0)


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _wal(connection: sqlite3.Connection) -> None:
    """Write changes beside the file first; SQLite itself does not wait for others here."""
    until = time.monotonic() + _PATIENCE
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


@contextlib.contextmanager
def _clear(path: Path) -> Iterator[None]:
    """Say in Sockway's words what SQLite, or the system, complains about."""
    try:
        yield
    except SockwayError:
        raise
    except sqlite3.Error as error:
        raise _explained(path, error) from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        # What is written is checked before, so it is what was read.
        raise _damaged(path, error) from error
    except PermissionError as error:
        raise _denied(path) from error
    except OSError as error:
        raise ConfigError(
            f"can't make {path}: {error.strerror}", hint="name another file: --registry FILE"
        ) from error


def _explained(path: Path, error: sqlite3.Error) -> SockwayError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return BusyError(
            f"{path} is locked by another process",
            hint=f"it was waited for, {_PATIENCE:.0f} seconds; see who has it: fuser {path}",
        )
    if code == sqlite3.SQLITE_NOTADB:
        return StateError(
            f"{path} is no registry of server IDs: it is no SQLite file",
            hint="name another file: --registry FILE",
        )
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
        return _denied(path)
    if code == sqlite3.SQLITE_FULL:
        return StateError(f"{path} can't grow: the disk is full", hint="make room and try again")
    return _damaged(path, error)


def _damaged(path: Path, error: Exception) -> StateError:
    return StateError(
        f"{path} is damaged: {error}",
        hint="keep a copy of it, import the last export into a new file (`sockway ids import`), "
        "and run `sockway ids adopt` on each balancer",
    )


def _denied(path: Path) -> PermissionDenied:
    return PermissionDenied(
        f"this process may not use {path}, or write beside it",
        hint="be root, or who owns it; or name another file: --registry FILE",
    )


__all__ = ["APPLICATION", "SCHEMA", "SqliteStore", "SqliteTransaction"]
