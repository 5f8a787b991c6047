"""Remembers the keys of files, so that only changed files are hashed again."""

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from retraining.bottlenecks.database import SCHEMA_VERSION, is_damage, move_aside, open_database
from retraining.bottlenecks.store import COMMIT_SECONDS
from retraining.photos.registry import absolute, hash_file
from retraining.photos.source import Photo

FILES = {
    "files": "CREATE TABLE files "
    "(path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, key TEXT, check_sum INTEGER)"
}


class FileKeys:
    """Remembers each file's key (SHA-1) with its size and time. Use as a context manager.

    This only saves time: if the database cannot be used, every file is hashed.
    """

    def __init__(
        self, folder: str | os.PathLike[str], hash_file: Callable[[str], str] = hash_file
    ) -> None:
        """Takes a function that computes the key of a file by its name; it raises OSError."""
        self._hash_file = hash_file
        self._new: dict[bytes, tuple[int, int, str]] = {}
        self._written = time.monotonic()
        self._path, facts = Path(folder) / "file_keys.sqlite", {"schema": str(SCHEMA_VERSION)}
        self._connection: sqlite3.Connection | None = None
        with contextlib.suppress(OSError, sqlite3.Error):
            self._connection, _ = open_database(self._path, FILES, facts)

    def __enter__(self) -> "FileKeys":
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        if self._connection is not None:
            self._connection.close()

    def _write(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error), self._connection:
                rows = [(path, *facts, _row_sum(path, *facts)) for path, facts in self._new.items()]
                many = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)"
                self._connection.executemany(many, rows)
        self._new.clear()
        self._written = time.monotonic()

    def key_of(self, photo: Photo) -> str:
        """Returns the photo's key, from memory if its file's Facts have not changed.

        Raises:
            OSError: the file cannot be read.
        """
        key = self.known(photo)
        if key is None:
            key = self._hash_file(photo.name)
            self.learn(photo, key)
        return key

    def known(self, photo: Photo) -> str | None:
        """Returns the key that the photo's file had when it had the same Facts, or None."""
        name, facts = _row_name(photo), photo.facts
        if name in self._new:
            size, stamp, key = self._new[name]
            return key if (size, stamp) == (facts.size, facts.stamp) else None
        row = self._row(name)
        if row and row[:2] == (facts.size, facts.stamp) and row[3] == _row_sum(name, *row[:3]):
            return row[2]
        return None

    def learn(self, photo: Photo, key: str) -> None:
        """Remembers a key with the photo's Facts, which were taken before the file was read."""
        if photo.facts.settled:
            self._new[_row_name(photo)] = (photo.facts.size, photo.facts.stamp, key)
        if time.monotonic() - self._written >= COMMIT_SECONDS:
            self._write()

    def _row(self, name: bytes) -> tuple[int, int, str, int] | None:
        if self._connection is None:
            return None
        query = "SELECT size, mtime_ns, key, check_sum FROM files WHERE path = ?"
        try:
            row: tuple[int, int, str, int] | None
            row = self._connection.execute(query, (name,)).fetchone()
            return row
        except sqlite3.Error as error:
            self._connection.close()
            self._connection = None
            if is_damage(error):
                with contextlib.suppress(OSError):
                    move_aside(self._path)
            return None


def _row_name(photo: Photo) -> bytes:
    return os.fsencode(absolute(photo.name))


def _row_sum(path: bytes, size: int, mtime_ns: int, key: str) -> int:
    """Returns the CRC-32 of a row of FileKeys."""
    return zlib.crc32(repr((path, size, mtime_ns, key)).encode())
