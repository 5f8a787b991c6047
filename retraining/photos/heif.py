"""Bounds what reading and decoding a HEIF file costs, by its boxes (ISO/IEC 23008-12).

A HEIC picture is often a grid of tiles. libheif decodes a tile as often as the grid names it, and
each coded frame in full before it is cropped. It refuses frames larger than the size in the boxes
by more than MARGIN (since 1.23), so that the coded data need not be read here.
"""

from retraining.photos.bounds import BoundsError, ImageFileError, TooManyPiecesError, check_pieces
from retraining.photos.boxes import (
    FULL_HEAD,
    Bits,
    Span,
    children,
    inside,
    item_places,
    item_types,
)

MARGIN = 64  # pixels by which each side of a frame may be larger: a coding unit of HEVC
SLACK = 1 << 20  # bytes by which items and properties may overlap
MOST_DEPTH = 4  # of pictures that are made from others
CODED, GRID, SAME = b"hvc1", b"grid", b"iden"
PARTS, AUXILIARY, DESCRIBES = b"dimg", b"auxl", b"cdsc"  # types of references

References = dict[tuple[bytes, int], list[int]]


class _Items:
    """The items of a file, their sizes, and how they refer to each other."""

    def __init__(self, content: bytes) -> None:
        """Reads the `meta` box.

        Raises:
            ImageFileError: a box is missing, or there are several, of which libheif may take
                another one.
        """
        whole = [(0, len(content))]
        if not inside(content, whole, b"meta"):
            raise ImageFileError("is a broken image (it holds no picture)")
        start, end = _only(content, whole, b"meta")
        meta = [(start + FULL_HEAD, end)]
        for name in (b"iinf", b"iloc"):
            _only(content, meta, name)
        if len(inside(content, meta, b"iref")) > 1 or len(inside(content, meta, b"idat")) > 1:
            raise BoundsError
        box = Bits(content, _only(content, meta, b"pitm"))
        version, _ = box.read(8), box.read(24)
        self.primary = box.read(32 if version else 16)
        self.types = item_types(content, meta)
        self.places = dict(item_places(content, meta))
        self.references = _references(content, meta)
        properties = [_only(content, meta, b"iprp")]
        self.properties = list(children(content, [_only(content, properties, b"ipco")]))
        self.of_item = _associations(content, properties)


def check(content: bytes, most: int) -> None:
    """Checks that all items and properties together are no larger than the file explains.

    They are read when the file is opened: those of each picture, even if pictures share them.

    Raises:
        ImageFileError: they are larger, or `coded_pixels` raises it.
    """
    items = _Items(content)
    total = 0
    for item, places in items.places.items():
        described = len(items.references.get((DESCRIBES, item), ()))
        total += max(1, described) * sum(end - start for start, end in places)
    for numbers in items.of_item.values():
        for number in numbers:
            start, end = _property(items, number)[1]
            total += end - start
    if total > 2 * len(content) + SLACK:
        raise TooManyPiecesError
    coded_pixels(content, most)


def coded_pixels(content: bytes, most: int) -> int:
    """Returns how many pixels the frames may have that are decoded for the primary picture.

    Raises:
        ImageFileError: the data of a frame ends too early or is used too often, or the picture is
            of a kind that is not read.
    """
    items = _Items(content)
    pixels, size = _cost(content, items, items.primary, {}, 0)
    if size > 2 * len(content):
        raise TooManyPiecesError
    return pixels


def _cost(
    content: bytes, items: _Items, item: int, known: dict[int, tuple[int, int]], depth: int
) -> tuple[int, int]:
    """Returns (pixels, bytes) of the frames that are decoded for an item."""
    if item in known:
        return known[item]
    kind = items.types.get(item, b"")
    if kind not in (CODED, GRID, SAME) or depth > MOST_DEPTH:
        raise ImageFileError("is a HEIF image of a kind that is not read")
    places = items.places.get(item, [])
    if any(end > len(content) for _, end in places):
        raise ImageFileError("is a broken image (it ends too early)")
    pixels = _pixels(content, items, item) if kind == CODED else 0
    size = sum(end - start for start, end in places)
    needed = [] if kind == CODED else items.references.get((PARTS, item), [])
    needed = needed + items.references.get((AUXILIARY, -item), [])
    for other in needed:
        more = _cost(content, items, other, known, depth + 1)
        pixels, size = pixels + more[0], size + more[1]
    known[item] = pixels, size
    return known[item]


def _pixels(content: bytes, items: _Items, item: int) -> int:
    """Returns the most pixels that the frame of an item may have, by its `ispe` properties."""
    largest = 0
    for number in items.of_item.get(item, ()):
        kind, (start, _) = _property(items, number)
        if kind == b"ispe":
            box = Bits(content, (start + FULL_HEAD, start + FULL_HEAD + 8))
            width, height = box.read(32), box.read(32)
            largest = max(largest, (width + MARGIN) * (height + MARGIN))
    if not largest:
        raise BoundsError
    return largest


def _property(items: _Items, number: int) -> tuple[bytes, Span]:
    """Returns (type, where its content lies) of a property; 0 is none."""
    if number > len(items.properties):
        raise BoundsError
    return items.properties[number - 1] if number else (b"", (0, 0))


# -- boxes -----------------------------------------------------------------------------------


def _only(content: bytes, spans: list[Span], name: bytes) -> Span:
    """Returns the one box of a type in the content of others."""
    found = inside(content, spans, name)
    if len(found) != 1:
        raise BoundsError
    return found[0]


def _references(content: bytes, meta: list[Span]) -> References:
    """Returns {(type, from): [to ...]} of all references.

    Those of auxiliary pictures, such as transparency, are turned: {(type, -to): [from ...]}.
    """
    found: References = {}
    for start, end in inside(content, meta, b"iref"):
        bits = 32 if content[start : start + 1] > b"\0" else 16
        for kind, span in children(content, [(start + FULL_HEAD, end)]):
            box = Bits(content, span)
            source, count = box.read(bits), box.read(16)
            check_pieces(count, 8 * len(content))
            targets = [box.read(bits) for _ in range(count)]
            if kind == AUXILIARY:
                for target in targets:
                    found.setdefault((kind, -target), []).append(source)
            else:
                found.setdefault((kind, source), []).extend(targets)
    return found


def _associations(content: bytes, properties: list[Span]) -> dict[int, list[int]]:
    """Returns {item: [number of a property, from 1 ...]}, by the `ipma` boxes."""
    found: dict[int, list[int]] = {}
    for span in inside(content, properties, b"ipma"):
        box = Bits(content, span)
        version, flags, count = box.read(8), box.read(24), box.read(32)
        for number in range(count):
            check_pieces(number, 8 * len(content))
            if box.ended():
                break
            item = box.read(32 if version else 16)
            numbers = found.setdefault(item, [])
            for _ in range(box.read(8)):
                box.read(1)
                numbers.append(box.read(15 if flags & 1 else 7))
    return found
