"""Opens SQLite files that several processes share; moves damaged ones aside."""

import contextlib
import itertools
import os
import sqlite3
import time

SCHEMA_VERSION = 2
BUSY_SECONDS = 60.0  # how long to wait for another process that is writing
RETRY_SECONDS = 0.02
DATABASE_ERRORS = (sqlite3.Error, UnicodeError)


def open_database(path, tables, facts):
    """Opens or creates an SQLite file; returns (connection, name it was moved aside to, or None).

    `tables` are its CREATE statements, by name; `facts` (dict of str) is what it must say of
    itself. A file that is no such database, damaged or not, is moved aside.

    Raises:
        OSError, sqlite3.OperationalError: it cannot be opened or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(path, tables, facts), None
    except _NotOursError:
        with contextlib.suppress(_NotOursError):  # another process may just have mended it
            return _connect(path, tables, facts), None
        aside = move_aside(path)
        return _connect(path, tables, facts), aside


class _NotOursError(Exception):
    """The file is damaged, or something else."""


def _connect(path, tables, facts):
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
    connection.text_factory = lambda text: text.decode(errors="replace")  # flipped bits
    try:
        _wait_for_others(lambda: _prepare(connection, tables, facts))
    except BaseException as error:
        connection.close()
        if is_damage(error):
            raise _NotOursError from error
        raise
    return connection


def _wait_for_others(prepare):
    """Calls `prepare`, again and again for BUSY_SECONDS while another process locks the file.

    SQLite waits by itself before it reads or writes, but not before it switches a file to WAL: of
    two processes that switch a new file at once, it refuses one immediately.
    """
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return prepare()
        except sqlite3.OperationalError as error:
            if not _is_locked(error) or time.monotonic() > end:
                raise
        time.sleep(RETRY_SECONDS)


def _is_locked(error):
    primary = error.sqlite_errorcode & 0xFF  # the higher bits tell details
    return primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def is_damage(error):
    """Whether an sqlite3 error says that the content is wrong, not that it is out of reach."""
    if isinstance(error, UnicodeError):  # in the text of a message, or of a name
        return True
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.OperationalError | sqlite3.ProgrammingError
    )


def _prepare(connection, tables, facts):
    tables = {**tables, "facts": "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT)"}
    if _tables(connection):
        _check(connection, tables, facts)  # before anything is changed
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a commit, every few seconds, outlives a crash
    with connection:
        connection.execute("BEGIN IMMEDIATE")  # all of this or nothing, and one process at a time
        if not _tables(connection):
            for statement in tables.values():
                connection.execute(statement)
            connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
    _check(connection, tables, facts)


def _tables(connection):
    """{name: its CREATE statement}"""
    return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))


def _check(connection, tables, facts):
    if _tables(connection) != tables:
        raise _NotOursError
    if dict(connection.execute("SELECT name, value FROM facts")) != facts:
        raise _NotOursError


def move_aside(path):
    """Renames a database file, with what SQLite keeps beside it; returns its new name.

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


def _counted():
    yield ""
    yield from (f"-{number}" for number in itertools.count(2))
