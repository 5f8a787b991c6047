"""Stores bottleneck vectors: one SQLite file per network fingerprint, a row per image key.

A row holds a float32 vector in little-endian byte order under the key of the image (and of its
distortion, for a distorted view), a mark, and a check sum. The mark tells that the vector was
imported, or else the version of the pixels that it was computed from. SQLite has no check sums, and
a flipped bit should cost one vector, not a model. A file that is damaged, foreign or of another
schema is moved aside, never deleted, and replaced by a new one.
`file_keys.sqlite` in the same folder is that of FileKeys. This module does not need TensorFlow.
"""

import contextlib
import os
import re
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.database import (
    DATABASE_ERRORS,
    LONGEST,
    SCHEMA_VERSION,
    is_damage,
    move_aside,
    open_database,
)
from retraining.errors import RetrainingError
from retraining.photos.formats import PIXELS
from retraining.system.observer import ignore
from retraining.system.text import counted

COMMIT_SECONDS = 2.0  # of work that a killed run loses at most
MEMORY_BYTES = 1 << 30  # of vectors; larger arrays are mapped from a temporary file
COMPUTED, IMPORTED = 0, 1  # marks; the first stands for pixels of the first version
FIRST_PIXELS = 2  # a later version is its own mark
QUERY_KEYS = 500  # keys per SELECT; old versions of SQLite allow 999 parameters


class CacheError(RetrainingError):
    """The store cannot be opened, read or written. The text says why and what to do."""


# Returns those of {key: version of the pixels} whose photos have other pixels since.
Changed = Callable[[Mapping[str, int]], Set[str]]


def check_sum(key: str, blob: bytes, imported: int) -> int:
    """Returns the CRC-32 of a row."""
    return zlib.crc32(blob, zlib.crc32(f"{key} {imported}".encode()))


VECTORS = {
    "vectors": "CREATE TABLE vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL, "
    "imported INTEGER NOT NULL, check_sum INTEGER NOT NULL)"
}


class BottleneckStore:
    """The vectors of one network, float32 [width]. Use as a context manager.

    Several processes may open the same store; each sees what the others have committed. `notes` has
    a line for each file that was moved aside and for vectors that will be computed again.
    """

    def __init__(
        self, folder: str | os.PathLike[str], name: str, fingerprint: str, width: int
    ) -> None:
        """Opens or creates `folder/name-fingerprint.sqlite`, with `_` for special characters.

        Raises:
            CacheError: the store cannot be opened.
        """
        name = re.sub(r"[^\w.+-]", "_", name)
        self.path = Path(folder) / f"{name}-{fingerprint[:16]}.sqlite"
        self.width = width
        self.notes: list[str] = []
        self.seen: Callable[[int], object] = ignore  # called with the keys looked up, for progress
        self._pending: dict[str, tuple[bytes, int]] = {}
        self._committed = time.monotonic()
        schema = str(SCHEMA_VERSION)
        self._facts = {"schema": schema, "fingerprint": fingerprint, "width": str(width)}
        self._open()

    def _open(self) -> None:
        with self._explained():
            longest = LONGEST + 4 * self.width
            self._connection, aside = open_database(self.path, VECTORS, self._facts, longest)
        if aside:
            self.notes.append(
                f"{self.path} was damaged or not a bottleneck store; moved it to {aside}"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, *DATABASE_ERRORS) as error:
            raise CacheError(
                f"the bottleneck store {self.path} cannot be used ({error}); fix that, move the "
                f"file away, or choose another `BottleneckSettings.folder`"
            ) from error

    def _mend(self, error: Exception) -> None:
        """Moves a damaged file aside and starts a new one; keeps pending vectors.

        Raises:
            CacheError: the error does not mean damage.
        """
        if not is_damage(error):
            with self._explained():
                raise error
        self._connection.close()
        with self._explained():
            aside = move_aside(self.path)
        self.notes.append(f"{self.path} was damaged; moved it to {aside}")
        self._open()

    def __enter__(self) -> "BottleneckStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commits pending vectors and closes the file."""
        try:
            self.commit()
        finally:
            self._connection.close()

    def missing(self, keys: Iterable[str], changed: Changed | None = None) -> list[str]:
        """Returns the keys (each once, in order) that have no valid vector yet.

        Removes invalid rows, and those that `changed` returns of the rows that were computed from
        pixels of an older version. Moves a damaged file aside.
        """
        keys = list(dict.fromkeys(keys))
        try:
            return self._missing(keys, changed)
        except DATABASE_ERRORS as error:
            self._mend(error)
            return self._missing(keys, changed)

    def _missing(self, keys: Sequence[str], changed: Changed | None) -> list[str]:
        known: set[str] = set(self._pending)
        unsound: list[str] = []
        older: dict[str, int] = {}
        for key, vector, version in self._rows(keys):
            (known.add if vector is not None else unsound.append)(key)
            if vector is not None and version < PIXELS and key not in self._pending:
                older[key] = version
        self._drop(unsound, "damaged")
        if changed and older:
            stale = changed(older)
            self._drop(stale, "of pixels that this version decodes differently")
            known -= stale
            for key, vector, _ in self._rows([key for key in older if key not in stale]):
                if vector is not None:
                    self.put(key, vector)
            self.commit()
        return [key for key in keys if key not in known]

    def _drop(self, keys: Iterable[str], reason: str) -> None:
        """Deletes rows, and notes why."""
        if rows := [(key,) for key in keys]:
            with self._connection:
                self._connection.executemany("DELETE FROM vectors WHERE key = ?", rows)
            forms = f"vector in {self.path} was", f"vectors in {self.path} were"
            self.notes.append(f"{counted(len(rows), *forms)} {reason}; computed again")

    def _rows(self, keys: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32] | None, int]]:
        """Yields (key, float32 [width], version of the pixels) for those of the keys in the file.

        An invalid row has None for the vector; an imported vector counts as of the newest version.
        """
        for start in range(0, len(keys), QUERY_KEYS):
            chunk = dict.fromkeys(keys[start : start + QUERY_KEYS])
            marks = ",".join("?" * len(chunk))
            query = f"SELECT * FROM vectors WHERE key IN ({marks})"
            rows = self._connection.execute(query, tuple(chunk)).fetchall()
            self.seen(len(chunk))
            for key, blob, mark, stored in rows:
                if key not in chunk:
                    raise sqlite3.DatabaseError("the index and the table differ")
                sound = isinstance(blob, bytes) and stored == check_sum(key, blob, mark)
                vector = np.frombuffer(blob, "<f4") if sound and len(blob) % 4 == 0 else None
                if vector is not None and not self._valid(vector):
                    vector = None
                yield key, vector, {COMPUTED: FIRST_PIXELS, IMPORTED: PIXELS}.get(mark, mark)

    def _valid(self, vector: NDArray[np.float32]) -> bool:
        return vector.shape == (self.width,) and bool(np.isfinite(vector).all())

    def read(
        self, keys: Sequence[str], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Reads float32 [len(keys), width], a row per key in their order; into `out` if given.

        Raises:
            CacheError: a key has no valid vector.
        """
        self.commit()
        rows: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        vectors = self._array(len(keys), self.width) if out is None else out
        lacking = set(rows)
        try:
            for key, vector, _ in self._rows(list(rows)):
                if vector is not None:
                    vectors[rows[key]] = vector
                    lacking.discard(key)
            if lacking:
                self._check_integrity()
        except DATABASE_ERRORS as error:
            self._mend(error)
        if lacking:
            raise CacheError(
                f"{self.path} lacks {counted(len(lacking), 'vector')} that it had a moment "
                f"ago; run again"
            )
        return vectors

    def _check_integrity(self) -> None:
        """Raises sqlite3.DatabaseError if the file's tables and indexes contradict each other."""
        problems = self._connection.execute("PRAGMA integrity_check(1)").fetchall()
        if problems != [("ok",)]:
            raise sqlite3.DatabaseError(problems[0][0])

    def read_beside(
        self, others: Iterable["BottleneckStore"], keys: Sequence[str]
    ) -> NDArray[np.float32]:
        """Reads the vectors of this and other stores side by side: float32 [keys, sum of widths].

        Raises:
            CacheError: a key has no valid vector in one of them.
        """
        stores = (self, *others)
        vectors = self._array(len(keys), sum(store.width for store in stores))
        start = 0
        for store in stores:
            store.read(keys, vectors[:, start : start + store.width])
            start += store.width
        return vectors

    def _array(self, count: int, width: int) -> NDArray[np.float32]:
        """Makes float32 [count, width] in memory, or mapped from a temporary file if large."""
        shape = (count, width)
        if 4 * count * width <= MEMORY_BYTES:
            return np.empty(shape, np.float32)
        with self._explained(), tempfile.TemporaryFile(dir=self.path.parent) as file:
            if hasattr(os, "posix_fallocate"):  # else a full disk ends the process by a signal
                os.posix_fallocate(file.fileno(), 0, 4 * count * width)
            return np.memmap(file, np.float32, "w+", shape=shape)

    def imported(self, keys: Iterable[str]) -> set[str]:
        """Returns the set of those keys whose vectors were imported."""
        self.commit()
        with self._explained():
            marked = self._connection.execute("SELECT key FROM vectors WHERE imported = 1")
            return {key for (key,) in marked}.intersection(keys)

    def put(
        self,
        key: str,
        vector: NDArray[np.float32],
        imported: bool = False,
        version: int = PIXELS,
    ) -> None:
        """Adds a vector, computed from pixels of a `version`.

        `imported` marks one that this tool did not compute.

        While vectors keep coming, each is on disk within `COMMIT_SECONDS`.

        Raises:
            CacheError: the vector has a wrong length or a value that is not finite.
        """
        if not self._valid(vector):
            raise CacheError(f"the network gave no valid vector for {key}; not stored")
        mark = IMPORTED if imported else COMPUTED if version == FIRST_PIXELS else version
        self._pending[key] = vector.astype("<f4").tobytes(), mark
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Writes pending vectors to disk in one transaction.

        Raises:
            CacheError: they cannot be written; earlier commits are kept.
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

    def _insert(self, rows: Sequence[tuple[str, bytes, int, int]]) -> None:
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)
