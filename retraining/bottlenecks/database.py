"""Opens SQLite files that several processes share; moves damaged ones aside."""

import contextlib
import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

SCHEMA_VERSION = 2
BUSY_SECONDS = 60.0  # how long to wait while another process writes
RETRY_SECONDS = 0.02
DATABASE_ERRORS = (sqlite3.Error, UnicodeError)


def open_database(
    path: Path, tables: Mapping[str, str], facts: Mapping[str, str]
) -> tuple[sqlite3.Connection, Path | None]:
    """Opens or creates an SQLite file; returns (connection, path of the file moved aside, or None).

    `tables` are the CREATE statements by name, and `facts` the content of its table of facts. A
    file with other tables or facts is moved aside, as is a damaged one.

    Raises:
        OSError, sqlite3.OperationalError: the file cannot be opened or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(path, tables, facts), None
    except _NotOursError:
        with contextlib.suppress(_NotOursError):  # another process may have just repaired it
            return _connect(path, tables, facts), None
        aside = move_aside(path)
        return _connect(path, tables, facts), aside


class _NotOursError(Exception):
    """The file is damaged, or is not our database."""


def _connect(path: Path, tables: Mapping[str, str], facts: Mapping[str, str]) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
    connection.text_factory = lambda text: text.decode(errors="replace")  # bits may be flipped
    try:
        _wait_for_others(lambda: _prepare(connection, tables, facts))
    except BaseException as error:
        connection.close()
        if is_damage(error):
            raise _NotOursError from error
        raise
    return connection


def _wait_for_others(prepare: Callable[[], None]) -> None:
    """Calls `prepare` repeatedly, for up to BUSY_SECONDS, while another process locks the file.

    SQLite itself waits before it reads or writes, but not before it switches a file to WAL: if two
    processes switch a new file at once, it refuses one immediately.
    """
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return prepare()
        except sqlite3.OperationalError as error:
            if not _is_locked(error) or time.monotonic() > end:
                raise
        time.sleep(RETRY_SECONDS)


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
    if _tables(connection):
        _check(connection, tables, facts)  # before any change
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # commits survive a crash
    with connection:
        connection.execute("BEGIN IMMEDIATE")  # atomic, and one process at a time
        if not _tables(connection):
            for statement in tables.values():
                connection.execute(statement)
            connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
    _check(connection, tables, facts)


def _tables(connection: sqlite3.Connection) -> dict[str, str]:
    """Returns {name: its CREATE statement}."""
    return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))


def _check(
    connection: sqlite3.Connection, tables: Mapping[str, str], facts: Mapping[str, str]
) -> None:
    if _tables(connection) != tables:
        raise _NotOursError
    if dict(connection.execute("SELECT name, value FROM facts")) != facts:
        raise _NotOursError


def move_aside(path: Path) -> Path:
    """Renames a database file and the files SQLite keeps beside it; returns the new path.

    Raises:
        OSError: it cannot be renamed.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (path.with_name(f"{path.name}.damaged-{stamp}{more}") for more in _counted())
    aside = next(name for name in names if not name.exists())
    os.replace(path, aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


def _counted() -> Iterator[str]:
    yield ""
    yield from (f"-{number}" for number in itertools.count(2))
