"""Opens SQLite files that several processes share; moves damaged ones aside."""

import contextlib
import itertools
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA_VERSION = 2
BUSY_SECONDS = 60.0  # how long to wait while another process writes
QUIET_SECONDS = 2.0  # after which a line tells of the wait
RETRY_SECONDS = 0.02
SUFFIXES = ("", "-wal", "-shm", "-journal")  # of a database and the files SQLite keeps beside it
MOST_READ = 100  # tables, or facts: more than there are
LONGEST = 1 << 16  # bytes of a row, unless more are asked for; SQLite allows a gigabyte
DATABASE_ERRORS = (sqlite3.Error, UnicodeError)


def open_database(
    path: Path, tables: Mapping[str, str], facts: Mapping[str, str], longest: int = LONGEST
) -> tuple[sqlite3.Connection, Path | None]:
    """Opens or creates an SQLite file; returns (connection, path of the file moved aside, or None).

    `tables` are the CREATE statements by name, and `facts` the content of its table of facts. A
    file with other tables or facts is moved aside, as is a damaged one. A row of more than
    `longest` bytes is damage, too.

    Raises:
        OSError, sqlite3.OperationalError: the file cannot be opened or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(path, tables, facts, longest), None
    except _NotOursError:
        with contextlib.suppress(_NotOursError):  # another process may have just repaired it
            return _connect(path, tables, facts, longest), None
        aside = move_aside(path)
        return _connect(path, tables, facts, longest), aside


class _NotOursError(Exception):
    """The file is damaged, or is not our database."""


class _Connection(sqlite3.Connection):
    """A connection that waits up to BUSY_SECONDS while another process locks the file.

    SQLite itself can wait, but says nothing meanwhile, and does not wait before it switches a file
    to WAL: if two processes switch a new file at once, it refuses one immediately.
    """

    def __init__(self, database: str | Path) -> None:
        super().__init__(database, timeout=0)
        self._path = database

    def execute(self, *statement: Any) -> sqlite3.Cursor:
        """See sqlite3.Connection."""
        execute = super().execute
        return self._when_free(lambda: execute(*statement))

    def executemany(self, *statement: Any) -> sqlite3.Cursor:
        """See sqlite3.Connection; takes a list of rows, since it may go through them twice."""
        execute = super().executemany
        return self._when_free(lambda: execute(*statement))

    def _when_free(self, action: Callable[[], T]) -> T:
        begun, told = time.monotonic(), False
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                waited = time.monotonic() - begun
                if not _is_locked(error) or waited > BUSY_SECONDS:
                    raise
            if waited > QUIET_SECONDS and not told:
                log.warning("waiting for another process that has locked %s", self._path)
                told = True
            time.sleep(RETRY_SECONDS)


def _check_kinds(path: Path) -> None:
    """Raises _NotOursError if the file, or one that SQLite keeps beside it, is a pipe or a device.

    SQLite would wait for the other end of a pipe.
    """
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            mode = os.stat(f"{path}{suffix}").st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise _NotOursError


def _connect(
    path: Path, tables: Mapping[str, str], facts: Mapping[str, str], longest: int
) -> sqlite3.Connection:
    _check_kinds(path)
    connection = _Connection(path)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
    connection.text_factory = lambda text: text.decode(errors="replace")  # bits may be flipped
    try:
        _prepare(connection, tables, facts)
    except BaseException as error:
        connection.close()
        if is_damage(error):
            raise _NotOursError from error
        raise
    return connection


def _is_locked(error: sqlite3.OperationalError) -> bool:
    primary = error.sqlite_errorcode & 0xFF  # the higher bits hold details
    return primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def is_damage(error: BaseException) -> bool:
    """Returns whether an sqlite3 error means that the file is damaged, not inaccessible."""
    if isinstance(error, UnicodeError):  # in a message or a name
        return True
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.OperationalError | sqlite3.ProgrammingError
    )


def _prepare(
    connection: sqlite3.Connection, tables: Mapping[str, str], facts: Mapping[str, str]
) -> None:
    tables = {**tables, "facts": "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT)"}
    if _schema(connection):
        _check(connection, tables, facts)  # before any change
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # commits survive a crash
    connection.execute("BEGIN IMMEDIATE")  # atomic, and one process at a time
    with connection:
        if not _schema(connection):
            for statement in tables.values():
                connection.execute(statement)
            connection.executemany("INSERT INTO facts VALUES (?, ?)", list(facts.items()))
    _check(connection, tables, facts)


def _schema(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Returns {(kind, name, CREATE statement)} of all that statements have created.

    A view or a trigger, which strangers may have added, could run for ever.
    """
    query = f"SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL LIMIT {MOST_READ}"
    return set(connection.execute(query))


def _check(
    connection: sqlite3.Connection, tables: Mapping[str, str], facts: Mapping[str, str]
) -> None:
    if _schema(connection) != {("table", name, sql) for name, sql in tables.items()}:
        raise _NotOursError
    if dict(connection.execute(f"SELECT name, value FROM facts LIMIT {MOST_READ}")) != facts:
        raise _NotOursError


def move_aside(path: Path) -> Path:
    """Renames a database file and the files SQLite keeps beside it; returns the new path.

    Raises:
        OSError: it cannot be renamed.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (path.with_name(f"{path.name}.damaged-{stamp}{more}") for more in _counted())
    aside = next(name for name in names if not name.exists())
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


def _counted() -> Iterator[str]:
    yield ""
    yield from (f"-{number}" for number in itertools.count(2))
