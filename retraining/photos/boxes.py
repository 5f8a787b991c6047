"""Reads the boxes of AVIF and HEIF files: which items they hold, and where the data of each lies.

ISO/IEC 14496-12 and 23008-12 define them.
"""

from collections.abc import Iterable, Iterator

from retraining.photos.bounds import BoundsError, check_pieces

IN_FILE, IN_IDAT = 0, 1  # places of an item's data
FULL_HEAD = 4  # bytes of version and flags, with which some boxes begin

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


def children(content: bytes, spans: Iterable[Span]) -> Iterator[tuple[bytes, Span]]:
    """Yields (type, where its content lies) of the boxes in the content of others."""
    count = 0
    for at, end in spans:
        while at + 8 <= end:
            length, head = int.from_bytes(content[at : at + 4], "big"), 8
            if length == 1:  # the length follows
                length, head = int.from_bytes(content[at + 8 : at + 16], "big"), 16
            after = min(end, at + max(length, head)) if length else end
            yield content[at + 4 : at + 8], (at + head, after)
            at, count = after, count + 1
            check_pieces(count, len(content))


def inside(content: bytes, spans: Iterable[Span], wanted: bytes) -> list[Span]:
    """Returns the boxes of a type that lie in the content of others."""
    return [span for kind, span in children(content, spans) if kind == wanted]


def item_types(content: bytes, meta: list[Span]) -> dict[int, bytes]:
    """Returns {number: type} of the items in `meta` boxes, by their `infe` boxes."""
    lists = [
        (at + (8 if content[at : at + 1] > b"\0" else 6), end)
        for at, end in inside(content, meta, b"iinf")
    ]
    found = {}
    for span in inside(content, lists, b"infe"):
        box = Bits(content, span)
        version, _ = box.read(8), box.read(24)
        item, _ = box.read(32 if version > 2 else 16), box.read(16)
        found[item] = box.read(32).to_bytes(4, "big")
    return found


def item_places(content: bytes, meta: list[Span]) -> Iterator[tuple[int, list[Span]]]:
    """Yields (number, where its data lies) of each item, by the `iloc` box.

    Raises:
        BoundsError: an item's data lies in another item.
    """
    data_start = next((start for start, _ in inside(content, meta, b"idat")), 0)
    for span in inside(content, meta, b"iloc"):
        box = Bits(content, span)
        version, _ = box.read(8), box.read(24)
        offset_size, length_size, base_size, index_size = (8 * box.read(4) for _ in range(4))
        for _ in range(box.read(32 if version > 1 else 16)):
            if box.ended():
                return
            item = box.read(32 if version > 1 else 16)
            place = box.read(16) & 15 if version else IN_FILE
            if place not in (IN_FILE, IN_IDAT):
                raise BoundsError
            box.read(16)
            base, extents = box.read(base_size) + (data_start if place == IN_IDAT else 0), []
            for _ in range(box.read(16)):
                if version:
                    box.read(index_size)
                start = base + box.read(offset_size)
                extents.append((start, start + box.read(length_size)))
            yield item, extents
