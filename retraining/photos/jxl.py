"""Bounds what decoding a JPEG XL file costs, by the size in its header (ISO/IEC 18181-1 and -2).

The decoder reads all of a file when it is opened. Frames that are larger than the picture are not
seen here, so that a picture counts with more work than one pixel usually takes.
"""

from retraining.photos.bounds import BoundsError, check_memory, check_pixels, check_work
from retraining.photos.boxes import children

STARTS = (rb"\xff\x0a", rb"\0\0\0\x0cJXL \r\n\x87\n")  # a codestream, and a file that holds one
MEMORY, WORK, WORK_PER_BYTE = 16, 20, 6
SIDES = (9, 13, 18, 30)  # bits of a side
RATIOS = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of the width to the height


def size(content: bytes) -> tuple[int, int]:
    """Returns (width, height) by the first bits of the codestream.

    Raises:
        BoundsError: there is no codestream.
    """
    start = content[:16]
    if not content.startswith(b"\xff\x0a"):
        for kind, (at, _) in children(content, [(0, len(content))]):
            if kind in (b"jxlc", b"jxlp"):  # whole, or a part behind its number
                at += 4 if kind == b"jxlp" else 0
                start = content[at : at + 16]
                break
    if not start.startswith(b"\xff\x0a"):
        raise BoundsError
    return _sides(int.from_bytes(start[2:], "little"))


def _sides(bits: int) -> tuple[int, int]:
    """Reads the two sides from the lowest bits on."""

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & (1 << count) - 1, bits >> count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take(SIDES[take(2)])

    height, ratio = side(), take(3)
    if not ratio:
        return side(), height
    across, down = RATIOS[ratio - 1]
    return height * across // down, height


def check(content: bytes, most: int) -> None:
    """Checks the pixels of the picture, and what they take.

    Raises:
        ImageFileError: they take too much.
    """
    width, height = size(content)
    check_pixels(width, height, most)
    check_work(WORK * width * height + WORK_PER_BYTE * len(content), most)
    check_memory(width * height, MEMORY, 2 * len(content))
