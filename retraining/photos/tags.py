"""Reads the directories of tags in TIFF files and in EXIF blocks, which have the same form."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from retraining.photos.bounds import TooManyPiecesError

# The starts that Pillow takes: classic TIFF and BigTIFF, also with their second half reversed.
STARTS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
BIG = (b"II+\0", b"MM\0+")
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}  # bytes of one value of a type (TIFF 6.0, section 2, and BigTIFF)
BYTES_OR_TEXT = (1, 2, 6, 7)  # types
INTEGERS = (1, 3, 4)
MOST_FIELDS = 4_096  # in a directory
MOST_VALUES = 1 << 20  # numbers in one field, such as the offsets of strips
SLACK = 1 << 20  # bytes by which fields may overlap
ORIENTATION = 0x0112
EXIF_DIRECTORY, GPS_DIRECTORY, INTEROPERABILITY = 0x8769, 0x8825, 0xA005
DIRECTORIES = (EXIF_DIRECTORY, GPS_DIRECTORY, INTEROPERABILITY)


class Field(NamedTuple):
    """One field of a directory: its tag, its type, the number of its values, and their bytes."""

    tag: int
    type: int
    values: int
    data: bytes  # or the offset of the values where they take more bytes


class Tags:
    """The directories in a block that begins with one of STARTS."""

    def __init__(self, block: bytes) -> None:
        self._block, self._big = block, block.startswith(BIG)
        self._order: Literal["little", "big"] = "little" if block[:1] == b"I" else "big"
        self.first = self.number(block[8:16] if self._big else block[4:8])

    def number(self, data: bytes) -> int:
        """Returns the unsigned number in these bytes."""
        return int.from_bytes(data, self._order)

    def fields(self, at: int) -> Iterator[Field]:
        """Yields the fields of the directory at an offset, as far as there are any."""
        head, size, wide = (8, 20, 8) if self._big else (2, 12, 4)
        for row in range(self.number(self._block[at : at + head])):
            start = at + head + size * row
            entry = self._block[start : start + size]
            if len(entry) < size:
                return
            kind, count = self.number(entry[2:4]), self.number(entry[4 : 4 + wide])
            yield Field(self.number(entry[:2]), kind, count, entry[4 + wide :])

    def value(self, field: Field) -> bytes:
        """Returns the bytes of a field's values."""
        size = SIZES.get(field.type, 0) * field.values
        if size <= len(field.data):
            return field.data[:size]
        at = self.number(field.data)
        return self._block[at : at + size]


def check_tags(block: bytes) -> None:
    """Checks that reading all tags takes no more memory than the block itself.

    A field of a few bytes may name all bytes of the file as its value, and there may be thousands.

    Raises:
        TooManyPiecesError: it takes more.
    """
    tags = Tags(block)
    waiting, total, seen = [tags.first], 0, 0
    while waiting and seen <= len(DIRECTORIES) + 1:
        seen += 1
        for count, field in enumerate(tags.fields(waiting.pop())):
            total += SIZES.get(field.type, 0) * field.values
            long = field.type not in BYTES_OR_TEXT and field.values > MOST_VALUES
            if count > MOST_FIELDS or long or total > len(block) + SLACK:
                raise TooManyPiecesError
            if field.tag in DIRECTORIES:
                waiting.append(tags.number(tags.value(field)))


def exif_orientation(block: bytes) -> int | None:
    """Returns the orientation in an EXIF block, None if it has none, 1 if that is not 1 to 8."""
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    if not block.startswith(STARTS) or block.startswith(BIG):
        return None
    tags, orientation = Tags(block), None
    for count, field in enumerate(tags.fields(tags.first)):
        if field.tag == ORIENTATION and field.type in INTEGERS:
            orientation = tags.number(tags.value(field)) if field.values == 1 else 1
        if count > MOST_FIELDS:
            return None
    return orientation if orientation in (None, *range(1, 9)) else 1
