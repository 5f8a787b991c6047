"""Reads the tables of FlatBuffers, such as LiteRT's models, with bounds.

See "FlatBuffers internals" (flatbuffers.dev). The fields of a table have numbers, in the order in
which its schema lists them.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class FlatTableError(ValueError):
    """A table leads out of its bytes."""


@dataclass(frozen=True)
class FlatTable:
    """A table in `content`, which begins at `at`. Its methods raise FlatTableError for damage."""

    content: bytes
    at: int

    @classmethod
    def root(cls, content: bytes) -> "FlatTable":
        """Returns the outermost table."""
        return cls(content, _read(content, "<I", 0))

    def byte(self, field: int) -> int:
        """Returns the value of a field of 8 bits; 0 without the field."""
        at = self._find(field)
        return 0 if at is None else _read(self.content, "<B", at)

    def number(self, field: int) -> int:
        """Returns the value of a field of 32 bits; 0 without the field."""
        at = self._find(field)
        return 0 if at is None else _read(self.content, "<I", at)

    def table(self, field: int) -> "FlatTable | None":
        """Returns the table in a field; None without the field."""
        at = self._find(field)
        return None if at is None else self._behind(at)

    def tables(self, field: int) -> list["FlatTable"]:
        """Returns the tables in a field; empty without the field."""
        items = self.array(field, np.dtype("<u4"))
        start = self._vector(field)[0]
        return [self._behind(start + 4 * number) for number in range(len(items))]

    def array(self, field: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """Returns the numbers in a field; empty without the field."""
        start, count = self._vector(field)
        if start + count * dtype.itemsize > len(self.content):
            raise FlatTableError
        return np.frombuffer(self.content, dtype, count, start)

    def text(self, field: int) -> bytes:
        """Returns the bytes, or the characters, in a field; empty without the field."""
        return self.array(field, np.dtype("u1")).tobytes()

    def _vector(self, field: int) -> tuple[int, int]:
        """Returns (where the items of a vector begin, their number)."""
        at = self._find(field)
        if at is None:
            return 0, 0
        start = at + _read(self.content, "<I", at)
        return start + 4, _read(self.content, "<I", start)

    def _behind(self, at: int) -> "FlatTable":
        return FlatTable(self.content, at + _read(self.content, "<I", at))

    def _find(self, field: int) -> int | None:
        """Returns the position of a field; None if the table is without it."""
        index = self.at - _read(self.content, "<i", self.at)
        slot = 4 + 2 * field
        if slot + 2 > _read(self.content, "<H", index):
            return None
        offset = _read(self.content, "<H", index + slot)
        return self.at + offset if offset else None


def _read(content: bytes, form: str, at: int) -> int:
    """Returns the number of the struct format `form` at a position."""
    if not 0 <= at <= len(content) - struct.calcsize(form):
        raise FlatTableError
    value: int = struct.unpack_from(form, content, at)[0]
    return value
