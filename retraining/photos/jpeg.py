"""Reads the segments of a JPEG as libjpeg does, without decoding it (ITU T.81, annex B)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from retraining.photos.bounds import check_pieces
from retraining.photos.tags import exif_orientation

# A marker that a length follows. FF00 is a data byte; RSTn and TEM have no length.
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
GARBAGE = 1 << 16  # bytes that may stand between the segments before the first scan
START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN, APP1 = 0xD8, 0xD9, 0xDA, 0xE1
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers of frame headers
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
ARITHMETIC = 0xC9  # the first marker of frames in arithmetic coding
COEFFICIENTS = 64  # of a block
EXIF = b"Exif\0\0"


@dataclass
class Jpeg:
    """What the segments of a JPEG tell.

    `scans` are those that a decoder reads: only one if it holds all components of a sequential
    frame. `missing` {component: for each coefficient, whether the scans leave out some of its bits}
    is empty for sequential frames.
    """

    width: int = 0
    height: int = 0
    orientation: int = 1  # as EXIF defines it, 1 to 8
    exif_blocks: int = 0
    marker: int = 0  # that of the frame header
    components: int = 0
    scans: int = 0
    missing: dict[int, list[bool]] = field(default_factory=dict)

    @property
    def progressive(self) -> bool:
        """Whether each scan holds a part of the coefficients."""
        return self.marker in PROGRESSIVE

    @property
    def complete(self) -> bool:
        """Whether the scans hold all coefficients in full; else decoders guess them."""
        return not any(map(any, self.missing.values()))

    def work(self, size: int) -> float:
        """Returns the units of work (see bounds) to decode a file of `size` bytes."""
        per_byte = 14.0 if self.marker >= ARITHMETIC else 2.0 if self.scans > 1 else 0.5
        return self.width * self.height * (1 + self.scans / 10) + per_byte * size

    def memory(self) -> int:
        """Returns the bytes a pixel that decoding takes: all coefficients if there are scans."""
        return 3 + (2 * self.components if self.scans > 1 else 0)


def read_jpeg(content: bytes) -> Jpeg | None:
    """Returns what the segments of a JPEG tell, or None if it has no frame header.

    Raises:
        ImageFileError: it has too many segments.
    """
    jpeg = Jpeg()
    for marker, body in _segments(content):
        if marker == APP1 and body.startswith(EXIF) and not jpeg.marker:
            jpeg.exif_blocks += 1
            jpeg.orientation = exif_orientation(body) or 1
        elif marker in FRAMES and not jpeg.marker:
            _read_frame(jpeg, marker, body)
        elif marker == START_OF_SCAN and jpeg.marker and body:
            _read_scan(jpeg, body)
            if jpeg.scans == 1 and not jpeg.progressive and body[0] >= jpeg.components:
                break
    return jpeg if jpeg.width and jpeg.height else None


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields (marker, content) of each segment up to the end of the image; skips scans' data."""
    at, scanning, count = 2, False, 0
    while found := MARKER.search(content, at, len(content) if scanning else at + GARBAGE):
        count += 1
        check_pieces(count, len(content))
        marker, start = content[found.end() - 1], found.end()
        if marker in (START_OF_IMAGE, END_OF_IMAGE):
            return
        length = int.from_bytes(content[start : start + 2], "big")
        yield marker, content[start + 2 : start + length]
        at, scanning = start + max(2, length), scanning or marker == START_OF_SCAN


def _read_frame(jpeg: Jpeg, marker: int, body: bytes) -> None:
    """Reads a frame header (B.2.2)."""
    jpeg.marker = marker
    jpeg.height, jpeg.width = (int.from_bytes(body[at : at + 2], "big") for at in (1, 3))
    ids = body[6::3]
    jpeg.components = len(ids)
    if jpeg.progressive:
        jpeg.missing = {component: [True] * COEFFICIENTS for component in ids}


def _read_scan(jpeg: Jpeg, body: bytes) -> None:
    """Reads a scan header (B.2.3): components, first and last coefficient, bits left out."""
    jpeg.scans += 1
    first, last, low = (*body[1 + 2 * body[0] :][:3], 0, 0, 0)[:3]
    for component in body[1 : 1 + 2 * body[0] : 2]:
        if component in jpeg.missing and first <= last < COEFFICIENTS:
            jpeg.missing[component][first : last + 1] = [low & 15 > 0] * (last - first + 1)
