"""The bottleneck store: one SQLite file per network fingerprint, a row per image key.

A row is a float32 vector in little-endian byte order under the key of the image (and of its
distortion, for a distorted view), a mark if it was imported, not computed, and a check sum: SQLite
itself has none, and a flipped bit shall cost one vector, not a model. Beside them,
`file_keys.sqlite` remembers the keys of files, so that a file is hashed again only if its size or
modification time has changed. A file that is damaged, foreign or of another schema is moved aside,
never deleted, and begun anew. No TensorFlow.
"""

import contextlib
import re
import sqlite3
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from retraining.bottlenecks.database import (
    DATABASE_ERRORS,
    SCHEMA_VERSION,
    is_damage,
    move_aside,
    open_database,
)
from retraining.errors import RetrainingError
from retraining.system.text import counted

COMMIT_SECONDS = 2.0  # what a killed run loses at most
MEMORY_BYTES = 1 << 30  # of vectors; more of them are mapped from a temporary file
QUERY_KEYS = 500  # keys per SELECT; SQLite's own limit on parameters is 999 in old versions


class CacheError(RetrainingError):
    """The store cannot be opened, read or written; says why and what to do."""


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
