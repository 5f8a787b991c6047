"""Reads how large the coded frames in an AVIF file are; the size in its boxes may be another.

libavif scales frames to the size in the boxes, but only once they are decoded in full. The AV1
specification defines the units of the coded data.
"""

from collections.abc import Iterator

from retraining.photos.bounds import TooManyPiecesError, check_pieces, check_pixels
from retraining.photos.boxes import FULL_HEAD, Bits, Span, inside, item_places, item_types

TO_TABLES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
AV1 = b"av01"
SEQUENCE_HEADER = 1  # a type of unit
MOST_PROFILE = 2


def coded_pixels(content: bytes, most: int) -> int:
    """Returns how many pixels the frames that are decoded together may have.

    They are those of all pictures, or of the first sample of each track; the larger sum counts.

    Raises:
        ImageFileError: a frame has more than `most` pixels, or the file has too many parts.
    """
    totals, seen, count = {True: 0, False: 0}, 0, 0
    for in_track, data in _coded(content):
        seen += len(data)
        if seen > 2 * len(content):  # pictures share their data
            raise TooManyPiecesError
        largest = 0
        for kind, span in _units(data):
            count += 1
            check_pieces(count, len(content))
            if kind == SEQUENCE_HEADER:
                largest = max(largest, _frame_pixels(Bits(data, span), most))
        totals[in_track] += largest
    return max(totals.values())


def _coded(content: bytes) -> Iterator[tuple[bool, bytes]]:
    """Yields (whether it is in a track, the data) of each picture and each track's first sample."""
    whole = [(0, len(content))]
    meta = [(start + FULL_HEAD, end) for start, end in inside(content, whole, b"meta")]
    types = item_types(content, meta)
    for item, extents in item_places(content, meta):
        if types.get(item) == AV1:
            if sum(max(0, end - start) for start, end in extents) > 2 * len(content):
                raise TooManyPiecesError
            yield False, b"".join(content[start:end] for start, end in extents)
    tables = whole
    for name in TO_TABLES:
        tables = inside(content, tables, name)
    for table in tables:
        yield True, _first_sample(content, table)


def _first_sample(content: bytes, table: Span) -> bytes:
    """Returns the first sample of a track, by the tables in its `stbl` box."""
    starts, size = [], 0
    for name, wide in ((b"stco", 32), (b"co64", 64)):
        for span in inside(content, [table], name):
            box = Bits(content, span)
            _, count = box.read(32), box.read(32)
            starts.append(box.read(wide) if count else 0)
    for span in inside(content, [table], b"stsz"):
        box = Bits(content, span)
        _, size, _ = box.read(32), box.read(32), box.read(32)
        size = size or box.read(32)
    return content[starts[0] : starts[0] + size] if starts else b""


# -- AV1 -------------------------------------------------------------------------------------


def _units(data: bytes) -> Iterator[tuple[int, Span]]:
    """Yields (type, where its content lies) of each unit of coded data (AV1, section 5.3)."""
    at = 0
    while at < len(data):
        kind, extended, sized = data[at] >> 3 & 15, data[at] & 4, data[at] & 2
        at, size, shift = at + (2 if extended else 1), 0, 0
        while sized and at < len(data) and shift < 56:  # seven bits a byte, the lowest first
            size |= (data[at] & 127) << shift
            at, shift, sized = at + 1, shift + 7, data[at] & 128
        end = min(len(data), at + size) if shift else len(data)
        yield kind, (at, end)
        at = end


def _frame_pixels(header: Bits, most: int) -> int:
    """Returns the most pixels of a frame after this sequence header (AV1, section 5.5).

    A still picture with the reduced header has the header's size. Other frames may bring sizes of
    their own, as far as their bits go.
    """
    if header.read(3) > MOST_PROFILE:
        return 0  # the decoder refuses it
    _, reduced = header.read(1), header.read(1)
    if reduced:
        header.read(5)
    else:
        _skip_operating_points(header)
    bits = header.read(4) + 1, header.read(4) + 1
    width, height = (header.read(each) + 1 for each in bits)
    check_pixels(width, height, most)
    return width * height if reduced else 1 << sum(bits)


def _skip_operating_points(header: Bits) -> None:
    model = delay_bits = 0
    if header.read(1):  # timing
        header.read(64)
        if header.read(1):
            zeros = 0
            while not header.read(1) and zeros < 32:
                zeros += 1
            header.read(zeros)
        model = header.read(1)
        if model:
            delay_bits = header.read(5) + 1
            header.read(42)
    delays = header.read(1)
    for _ in range(header.read(5) + 1):
        header.read(12)
        if header.read(5) > 7:  # the level
            header.read(1)
        if model and header.read(1):
            header.read(2 * delay_bits + 1)
        if delays and header.read(1):
            header.read(4)
