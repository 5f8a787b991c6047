"""Reads how large the coded frames in an AVIF file are; the size in its boxes may be another.

libavif scales frames to the size in the boxes, but only once they are decoded in full. ISO/IEC
14496-12 and 23008-12 define the boxes; the AV1 specification, the units of the coded data.
"""

from collections.abc import Iterable, Iterator

from retraining.photos.bounds import TooManyPiecesError, check_pieces, check_pixels

TO_TABLES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
AV1 = b"av01"
IN_FILE, IN_IDAT = 0, 1  # places of a picture's data
SEQUENCE_HEADER = 1  # a type of unit
MOST_PROFILE = 2

Span = tuple[int, int]  # where the content of a box, or some data, begins and ends


class Bits:
    """Reads unsigned numbers of some bits each, the highest bit first, from an offset on."""

    def __init__(self, content: bytes, span: Span) -> None:
        self._content, self._at, self._end = content, 8 * span[0], 8 * span[1]

    def read(self, bits: int) -> int:
        """Returns the number in the next bits; behind the end it has no meaning."""
        start, self._at = self._at, self._at + bits
        data = self._content[start // 8 : -(-self._at // 8)]
        return int.from_bytes(data, "big") >> -self._at % 8 & (1 << bits) - 1

    def ended(self) -> bool:
        """Returns whether nothing is left."""
        return self._at >= self._end


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


# -- boxes -----------------------------------------------------------------------------------


def _inside(content: bytes, spans: Iterable[Span], wanted: bytes) -> list[Span]:
    """Returns the boxes of a type that lie in the content of others."""
    found, count = [], 0
    for at, end in spans:
        while at + 8 <= end:
            length, head = int.from_bytes(content[at : at + 4], "big"), 8
            if length == 1:  # the length follows
                length, head = int.from_bytes(content[at + 8 : at + 16], "big"), 16
            after = min(end, at + max(length, head)) if length else end
            if content[at + 4 : at + 8] == wanted:
                found.append((at + head, after))
            at, count = after, count + 1
            check_pieces(count, len(content))
    return found


def _coded(content: bytes) -> Iterator[tuple[bool, bytes]]:
    """Yields (whether it is in a track, the data) of each picture and each track's first sample."""
    whole = [(0, len(content))]
    meta = [(start + 4, end) for start, end in _inside(content, whole, b"meta")]
    pictures = _pictures(content, meta)
    data_start = next((start for start, _ in _inside(content, meta, b"idat")), 0)
    for span in _inside(content, meta, b"iloc"):
        for item, extents in _items(Bits(content, span), data_start):
            if item in pictures:
                if sum(max(0, end - start) for start, end in extents) > 2 * len(content):
                    raise TooManyPiecesError
                yield False, b"".join(content[start:end] for start, end in extents)
    tables = whole
    for name in TO_TABLES:
        tables = _inside(content, tables, name)
    for table in tables:
        yield True, _first_sample(content, table)


def _pictures(content: bytes, meta: list[Span]) -> set[int]:
    """Returns the numbers of the items that are pictures in AV1, by their `infe` boxes."""
    lists = [(at + (8 if content[at] else 6), end) for at, end in _inside(content, meta, b"iinf")]
    found = set()
    for start, end in _inside(content, lists, b"infe"):
        box = Bits(content, (start, end))
        version, _ = box.read(8), box.read(24)
        item, _ = box.read(32 if version > 2 else 16), box.read(16)
        if box.read(32) == int.from_bytes(AV1, "big"):
            found.add(item)
    return found


def _items(box: Bits, data_start: int) -> Iterator[tuple[int, list[Span]]]:
    """Yields (number, where its data lies) of each item in an `iloc` box."""
    version, _ = box.read(8), box.read(24)
    offset_size, length_size, base_size, index_size = (8 * box.read(4) for _ in range(4))
    for _ in range(box.read(32 if version > 1 else 16)):
        if box.ended():
            return
        item = box.read(32 if version > 1 else 16)
        place = box.read(16) & 15 if version else IN_FILE
        box.read(16)
        base, extents = box.read(base_size) + (data_start if place == IN_IDAT else 0), []
        for _ in range(box.read(16)):
            if version:
                box.read(index_size)
            start = base + box.read(offset_size)
            extents.append((start, start + box.read(length_size)))
        yield item, extents


def _first_sample(content: bytes, table: Span) -> bytes:
    """Returns the first sample of a track, by the tables in its `stbl` box."""
    starts, size = [], 0
    for name, wide in ((b"stco", 32), (b"co64", 64)):
        for span in _inside(content, [table], name):
            box = Bits(content, span)
            _, count = box.read(32), box.read(32)
            starts.append(box.read(wide) if count else 0)
    for span in _inside(content, [table], b"stsz"):
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
