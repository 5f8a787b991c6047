"""The bottleneck store: one SQLite file per network fingerprint, a row per image key.

A row is a float32 vector in little-endian byte order under the key of the image (and of its
distortion, for a distorted view), a mark if it was imported, not computed, and a check sum: SQLite
itself has none, and a flipped bit shall cost one vector, not a model. Beside them,
`file_keys.sqlite` remembers the keys of files, so that a file is hashed again only if its size or
modification time has changed. A file that is damaged, foreign or of another schema is moved aside,
never deleted, and begun anew. No TensorFlow.
"""

import contextlib
import itertools
import os
import re
import sqlite3
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from retraining.errors import RetrainingError
from retraining.photos import places
from retraining.system.lines import counted

SCHEMA_VERSION = 2
COMMIT_SECONDS = 2.0  # what a killed run loses at most
BUSY_SECONDS = 60.0  # how long to wait for another process that is writing
RETRY_SECONDS = 0.02
MEMORY_BYTES = 1 << 30  # of vectors; more of them are mapped from a temporary file
DATABASE_ERRORS = (sqlite3.Error, UnicodeError)
QUERY_KEYS = 500  # keys per SELECT; SQLite's own limit on parameters is 999 in old versions


class CacheError(RetrainingError):
    """The store cannot be opened, read or written; says why and what to do."""


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


def check_sum(key, blob, imported):
    """CRC-32 of a row."""
    return zlib.crc32(blob, zlib.crc32(f"{key} {imported}".encode()))


VECTORS = {
    "vectors": "CREATE TABLE vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL, "
    "imported INTEGER NOT NULL, check_sum INTEGER NOT NULL)"
}


class BottleneckStore:
    """The vectors of one network, float32 of `width`. Use as a context manager.

    Several processes may have the same store open; each sees what the others have committed.
    `notes` says, a line each, what had to be moved aside or will be computed again.
    """

    def __init__(self, folder, name, fingerprint, width):
        """Opens or creates `folder/name-fingerprint.sqlite`, `_` for what no file name may have.

        Raises:
            CacheError: it cannot be opened.
        """
        name = re.sub(r"[^\w.+-]", "_", name)
        self.path = Path(folder) / f"{name}-{fingerprint[:16]}.sqlite"
        self.width, self.notes = width, []
        self._pending = {}
        self._committed = time.monotonic()
        schema = str(SCHEMA_VERSION)
        self._facts = {"schema": schema, "fingerprint": fingerprint, "width": str(width)}
        self._open()

    def _open(self):
        with self._explained():
            self._connection, aside = open_database(self.path, VECTORS, self._facts)
        if aside:
            self.notes.append(f"{self.path} was damaged or something else; moved to {aside}")

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except (OSError, *DATABASE_ERRORS) as error:
            raise CacheError(
                f"the bottleneck store {self.path} cannot be used ({error}); mend that, move the "
                f"file away, or choose another --bottleneck_dir"
            ) from error

    def _mend(self, error):
        """Moves a damaged file aside and begins anew; what is pending is kept.

        Raises:
            CacheError: the error says something else.
        """
        if not is_damage(error):
            with self._explained():
                raise error
        self._connection.close()
        with self._explained():
            aside = move_aside(self.path)
        self.notes.append(f"{self.path} was damaged; moved to {aside}")
        self._open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Commits what is pending and closes the file."""
        try:
            self.commit()
        finally:
            self._connection.close()

    def missing(self, keys):
        """The keys (each once, in order) that have no sound vector yet.

        Rows that are not sound are removed. A file that turns out to be damaged is moved aside.
        """
        keys = list(dict.fromkeys(keys))
        try:
            return self._missing(keys)
        except DATABASE_ERRORS as error:
            self._mend(error)
            return self._missing(keys)

    def _missing(self, keys):
        known, unsound = set(self._pending), []
        for key, vector in self._rows(keys):
            (known.add if vector is not None else unsound.append)(key)
        if unsound:
            with self._connection:
                rows = [(key,) for key in unsound]
                self._connection.executemany("DELETE FROM vectors WHERE key = ?", rows)
            said = f"vector in {self.path} was", f"vectors in {self.path} were"
            self.notes.append(f"{counted(len(rows), *said)} damaged; computed again")
        return [key for key in keys if key not in known]

    def _rows(self, keys):
        """Yields (key, float32 [width], or None for an unsound row) of the keys that are there."""
        for start in range(0, len(keys), QUERY_KEYS):
            chunk = dict.fromkeys(keys[start : start + QUERY_KEYS])
            marks = ",".join("?" * len(chunk))
            query = f"SELECT * FROM vectors WHERE key IN ({marks})"
            rows = self._connection.execute(query, tuple(chunk)).fetchall()
            for key, blob, imported, found in rows:
                if key not in chunk:
                    raise sqlite3.DatabaseError("the index and the table differ")
                sound = isinstance(blob, bytes) and found == check_sum(key, blob, imported)
                vector = np.frombuffer(blob, "<f4") if sound and len(blob) % 4 == 0 else None
                if vector is not None and not self._valid(vector):
                    vector = None
                yield key, vector

    def _valid(self, vector):
        return vector.shape == (self.width,) and np.isfinite(vector).all()

    def read(self, keys, out=None):
        """float32 [len(keys), width], a row per key in the order of `keys`; into `out` if given.

        Raises:
            CacheError: a key has no sound vector.
        """
        self.commit()
        rows = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        vectors = self._array(len(keys), self.width) if out is None else out
        lacking = set(rows)
        try:
            for key, vector in self._rows(list(rows)):
                if vector is not None:
                    vectors[rows[key]] = vector
                    lacking.discard(key)
            if lacking:
                self._check_integrity()
        except DATABASE_ERRORS as error:
            self._mend(error)
        if lacking:
            raise CacheError(
                f"{self.path} lacks {counted(len(lacking), 'vector')} that it just had; run again"
            )
        return vectors

    def _check_integrity(self):
        """Raises sqlite3.DatabaseError if the file's tables and indexes contradict each other."""
        found = self._connection.execute("PRAGMA integrity_check(1)").fetchall()
        if found != [("ok",)]:
            raise sqlite3.DatabaseError(found[0][0])

    def read_beside(self, others, keys):
        """float32 [len(keys), sum of widths]: the vectors in this store and those in others'.

        Raises:
            CacheError: a key has no sound vector in one of them.
        """
        stores = (self, *others)
        vectors = self._array(len(keys), sum(store.width for store in stores))
        start = 0
        for store in stores:
            store.read(keys, vectors[:, start : start + store.width])
            start += store.width
        return vectors

    def _array(self, count, width):
        """float32 [count, width]: in memory, or mapped from a file that goes with it if large."""
        shape = (count, width)
        if 4 * count * width <= MEMORY_BYTES:
            return np.empty(shape, np.float32)
        with self._explained(), tempfile.TemporaryFile(dir=self.path.parent) as file:
            return np.memmap(file, np.float32, "w+", shape=shape)

    def imported(self, keys):
        """The set of those keys whose vectors were not computed here."""
        self.commit()
        with self._explained():
            marked = self._connection.execute("SELECT key FROM vectors WHERE imported = 1")
            return {key for (key,) in marked}.intersection(keys)

    def put(self, key, vector, imported=False):
        """Adds a vector, `imported` if it was not computed by this tool.

        It is on disk after `COMMIT_SECONDS` at the latest while vectors keep coming.

        Raises:
            CacheError: the vector has a wrong length or a value that is not finite.
        """
        if not self._valid(vector):
            raise CacheError(f"the network gave no valid vector for {key}; not stored")
        self._pending[key] = vector.astype("<f4").tobytes(), int(imported)
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self.commit()

    def commit(self):
        """Writes what is pending to disk, in one transaction.

        Raises:
            CacheError: it cannot be written; what was committed before is kept.
        """
        rows = [(key, *row, check_sum(key, *row)) for key, row in self._pending.items()]
        if rows:
            try:
                self._insert(rows)
            except DATABASE_ERRORS as error:
                self._mend(error)
                with self._explained():
                    self._insert(rows)
            self._pending.clear()
        self._committed = time.monotonic()

    def _insert(self, rows):
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)


FILES = {
    "files": "CREATE TABLE files "
    "(path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, key TEXT, check_sum INTEGER)"
}


class FileKeys:
    """Remembers the key (SHA-1) of each file with the size and time it had. A context manager.

    It only saves time: where its own file cannot be used, every file is hashed.
    """

    def __init__(self, folder, hash_file, facts_of=places.facts_of):
        """`hash_file(path)` gives the key of a file that is not known, `facts_of(path)` its
        places.Facts; both raise OSError."""
        self._hash_file, self.facts_of, self._new = hash_file, facts_of, {}
        self._written = time.monotonic()
        self._connection = None
        with contextlib.suppress(OSError, sqlite3.Error):
            self._path, facts = Path(folder) / "file_keys.sqlite", {"schema": str(SCHEMA_VERSION)}
            self._connection, _ = open_database(self._path, FILES, facts)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._write()
        if self._connection is not None:
            self._connection.close()

    def _write(self):
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error), self._connection:
                rows = [(path, *facts, _row_sum(path, *facts)) for path, facts in self._new.items()]
                many = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)"
                self._connection.executemany(many, rows)
        self._new.clear()
        self._written = time.monotonic()

    def key_of(self, path):
        """The file's key, from memory if its size and modification time are as they were.

        Raises:
            OSError: the file cannot be read.
        """
        facts = self.facts_of(path)
        key = self.known(path, facts)
        if key is None:
            key = self._hash_file(path)
            self.learn(path, facts, key)
        return key

    def known(self, path, facts):
        """The key that a file had when these were its Facts, or None."""
        name = _name(path)
        if name in self._new:
            *found, key = self._new[name]
            return key if found == [facts.size, facts.stamp] else None
        row = self._row(name)
        if row and row[:2] == (facts.size, facts.stamp) and row[3] == _row_sum(name, *row[:3]):
            return row[2]
        return None

    def learn(self, path, facts, key):
        """Remembers a key with the Facts that the file had before it was read."""
        if facts.settled:
            self._new[_name(path)] = (facts.size, facts.stamp, key)
        if time.monotonic() - self._written >= COMMIT_SECONDS:
            self._write()

    def _row(self, name):
        if self._connection is None:
            return None
        query = "SELECT size, mtime_ns, key, check_sum FROM files WHERE path = ?"
        try:
            return self._connection.execute(query, (name,)).fetchone()
        except sqlite3.Error as error:
            self._connection.close()
            self._connection = None
            if is_damage(error):
                with contextlib.suppress(OSError):
                    move_aside(self._path)
            return None


def _name(path):
    return os.fsencode(path if places.is_url(path) else os.path.abspath(path))


def _row_sum(path, size, mtime_ns, key):
    """CRC-32 of a row of FileKeys."""
    return zlib.crc32(repr((path, size, mtime_ns, key)).encode())
