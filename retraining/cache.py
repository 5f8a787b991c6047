"""The bottleneck store: one SQLite file per network fingerprint, a row per image key.

Rows are only ever added; a row is a float32 vector in the machine's little-endian byte order under
the key of the image (and of its distortion, for a distorted view). Beside them, `file_keys.sqlite`
remembers the keys of files, so that a file is hashed again only if its size or modification time
has changed. The keys of vectors that were imported, not computed, are listed in a table of their
own. No TensorFlow.
"""

import contextlib
import os
import sqlite3
import tempfile
import time
from pathlib import Path

import numpy as np

from retraining import RetrainingError

SCHEMA_VERSION = 1
COMMIT_SECONDS = 2.0  # what a killed run loses at most
BUSY_SECONDS = 60.0  # how long to wait for another process that is writing
MEMORY_BYTES = 1 << 30  # of vectors; more of them are mapped from a temporary file
RACY_SECONDS = 2.0  # a file changed this recently may change again without its time showing it
QUERY_KEYS = 500  # keys per SELECT; SQLite's own limit on parameters is 999 in old versions


class CacheError(RetrainingError):
    """The store cannot be opened, read or written; says why and what to do."""


class BottleneckStore:
    """The vectors of one network, float32 of `width`. Use as a context manager.

    Several processes may have the same store open; each sees what the others have committed.
    """

    def __init__(self, folder, name, fingerprint, width):
        """Opens or creates `folder/name-fingerprint.sqlite`.

        Raises:
            CacheError: it cannot be opened, or holds vectors of something else.
        """
        self.path = Path(folder) / f"{name}-{fingerprint[:16]}.sqlite"
        self.width = width
        self._pending, self._imported = {}, []
        self._committed = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS)
            with self._connection:
                self._prepare(fingerprint)
        except (OSError, sqlite3.Error) as error:
            raise CacheError(self._explain(error)) from error

    def _prepare(self, fingerprint):
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")  # safe against a crash of the program in WAL mode
        execute("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL)")
        execute("CREATE TABLE IF NOT EXISTS imported (key TEXT PRIMARY KEY)")
        wanted = {
            "schema": str(SCHEMA_VERSION),
            "fingerprint": fingerprint,
            "width": str(self.width),
        }
        self._connection.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", wanted.items())
        found = dict(execute("SELECT name, value FROM facts"))
        if found != wanted:
            raise CacheError(f"{self.path} holds other vectors than these; move it away")

    def _explain(self, error):
        return (
            f"the bottleneck store {self.path} cannot be used ({error}); mend that, move the file "
            f"away, or choose another --bottleneck_dir"
        )

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
        """The keys (each once, in order) that have no vector yet."""
        keys = list(dict.fromkeys(keys))
        known = {key for chunk in self._select("key FROM vectors", keys) for (key,) in chunk}
        return [key for key in keys if key not in known and key not in self._pending]

    def read(self, keys):
        """float32 [len(keys), width], a row per key in the order of `keys`.

        Raises:
            CacheError: a key has no vector, or one of a wrong length.
        """
        self.commit()
        rows = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        vectors = self._array(len(keys))
        found = 0
        for chunk in self._select("key, vector FROM vectors", list(rows)):
            for key, blob in chunk:
                vectors[rows[key]] = self._vector(key, blob)
                found += 1
        if found != len(rows):
            raise CacheError(f"{self.path} lacks {len(rows) - found} vectors that were just there")
        return vectors

    def _array(self, count):
        """float32 [count, width]: in memory, or mapped from a file that goes with it if large."""
        shape = (count, self.width)
        if 4 * count * self.width <= MEMORY_BYTES:
            return np.empty(shape, np.float32)
        try:
            with tempfile.TemporaryFile(dir=self.path.parent) as file:
                return np.memmap(file, np.float32, "w+", shape=shape)
        except OSError as error:
            raise CacheError(self._explain(error)) from error

    def _vector(self, key, blob):
        if len(blob) != 4 * self.width:
            raise CacheError(f"{self.path}: the vector of {key} has a wrong length; move it away")
        return np.frombuffer(blob, "<f4")

    def _select(self, what, keys):
        for start in range(0, len(keys), QUERY_KEYS):
            chunk = keys[start : start + QUERY_KEYS]
            marks = ",".join("?" * len(chunk))
            query = f"SELECT {what} WHERE key IN ({marks})"
            try:
                yield self._connection.execute(query, chunk).fetchall()
            except sqlite3.Error as error:
                raise CacheError(self._explain(error)) from error

    def imported(self, keys):
        """The set of those keys whose vectors were not computed here."""
        self.commit()
        chunks = self._select("key FROM imported", list(keys))
        return {key for chunk in chunks for (key,) in chunk}

    def put(self, key, vector, imported=False):
        """Adds a vector, `imported` if it was not computed by this tool.

        It is on disk after `COMMIT_SECONDS` at the latest while vectors keep coming.

        Raises:
            CacheError: the vector has a wrong length or a value that is not finite.
        """
        if vector.shape != (self.width,) or not np.isfinite(vector).all():
            raise CacheError(f"the network gave no valid vector for {key}; not stored")
        self._pending[key] = vector.astype("<f4").tobytes()
        if imported:
            self._imported.append((key,))
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self.commit()

    def commit(self):
        """Writes what is pending to disk, in one transaction."""
        if self._pending:
            try:
                with self._connection:
                    self._connection.executemany(
                        "INSERT OR IGNORE INTO vectors VALUES (?, ?)", self._pending.items()
                    )
                    self._connection.executemany(
                        "INSERT OR IGNORE INTO imported VALUES (?)", self._imported
                    )
            except sqlite3.Error as error:
                raise CacheError(self._explain(error)) from error
            self._pending.clear()
            self._imported.clear()
        self._committed = time.monotonic()


class FileKeys:
    """Remembers the key (SHA-1) of each file with the size and time it had. A context manager.

    It only saves time: where its own file cannot be used, every file is hashed.
    """

    def __init__(self, folder, hash_file):
        """`hash_file(path)` gives the key of a file that is not known."""
        self._hash_file, self._new = hash_file, {}
        self._connection = None
        with contextlib.suppress(OSError, sqlite3.Error):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                Path(folder) / "file_keys.sqlite", timeout=BUSY_SECONDS
            )
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS files "
                "(path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, key TEXT)"
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._connection is None:
            return
        with contextlib.suppress(sqlite3.Error), self._connection:
            rows = [(path, *facts) for path, facts in self._new.items()]
            self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
        self._connection.close()

    def key_of(self, path):
        """The file's key, from memory if its size and modification time are as they were."""
        name = os.fsencode(os.path.abspath(path))
        try:
            facts = os.stat(path)
        except OSError:
            return self._hash_file(path)  # which says what is wrong
        seen = facts.st_size, facts.st_mtime_ns
        known = self._known(name)
        if known and known[:2] == seen:
            return known[2]
        key = self._hash_file(path)
        if time.time() - facts.st_mtime > RACY_SECONDS:
            self._new[name] = (*seen, key)
        return key

    def _known(self, name):
        query = "SELECT size, mtime_ns, key FROM files WHERE path = ?"
        with contextlib.suppress(sqlite3.Error, AttributeError):  # AttributeError: no connection
            return self._connection.execute(query, (name,)).fetchone()
        return None
