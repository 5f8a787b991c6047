"""Tells which files are images, and what decoding one of each format can cost.

Only the formats in FORMATS are read. A file's content decides, never its name. Pillow has decoders
for more formats; some of them start other programs, open further files inside a file, run for
minutes on a few bytes, or show their size only after decoding.
"""

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from retraining.photos import avif, heif, raw
from retraining.photos.bounds import (
    MAX_PIXELS,
    BoundsError,
    EmptyFileError,
    ImageFileError,
    NotAnImageError,
    TooManyPiecesError,
    check_pieces,
    check_pixels,
    check_size,
)
from retraining.photos.tags import STARTS, check_tags

HEAD = 64  # bytes of a file that tell its format
GIF_BLOCKS = 4_000  # before the picture; Pillow's time grows with the square of their number
BLOCKS_PER_PIECE = 10  # a full one in a GIF has 256 bytes
MOST_STARTS = 16  # of an EXIF block in an AVIF file; chance makes one in 700 MB
MOST_COMPONENTS = 4  # of JPEG 2000
MOST_BLOCKS = 200_000  # of JPEG 2000, each of which takes a kilobyte
TIFF_STARTS = re.compile(b"|".join(map(re.escape, STARTS)))
# JPEG 2000 (ITU T.800): a codestream, which begins with its size, and a file that holds one.
AVIF_START = b"....ftyp(?:avif|avis|mif1|msf1)"
# HEIF with HEVC, by the main brand, or by another one behind that of any codec.
HEIF_START = b"....ftyp(?:(?:mif1|msf1).{4}(?:.{4})*?)?(?:hei[cxms]|hev[cxms])"
OTHER_NAMES = (".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl", *raw.NAMES)
# Names that Pillow knows, of data, documents and videos.
OTHER_CONTENT = (".bufr", ".grib", ".h5", ".hdf", ".iim", ".mpeg", ".mpg", ".pdf")
JPEG_2000_STARTS = (rb"\xff\x4f\xff\x51", rb"\0\0\0\x0cjP  \r\n\x87\n")
# JPEG XL (ISO/IEC 18181-2): a codestream, and a file that holds one.
JPEG_XL_STARTS = (rb"\xff\x0a", rb"\0\0\0\x0cJXL \r\n\x87\n")
SIZES, CODING, CODING_OF_COMPONENT, TILE, DATA = 0x51, 0x52, 0x53, 0x90, 0x93  # markers
END_OF_CODESTREAM = b"\xd9"
CODESTREAM, BOX_OF_CODESTREAM = b"\xff\x4f\xff\x51", b"jp2c"


def _no_check(content: bytes, most: int) -> None:
    """Accepts any content: the decoder's own header tells all that counts."""


def _as_told(content: bytes, most: int) -> int:
    """Returns 0: the coded picture has the size that the decoder's header tells."""
    return 0


@dataclass(frozen=True)
class Format:
    """A format that is read, and the most that decoding one pixel takes, besides the file.

    `name` is that of the plugin, Pillow's or pi_heif's, and `begins` matches the first bytes of a
    file. `memory` is in bytes; `work` in units of about ten nanoseconds, and so is `work_per_byte`
    of the file; they were measured on noise and on plain colour. `version` is that of its pixels:
    vectors computed from older ones are not valid. `check(content, most)` raises ImageFileError if
    the file would cost more than its pixels, of which it may have `most`. `coded(content, most)`
    returns how many pixels are decoded, where these may be more than the image has.
    """

    name: str
    begins: re.Pattern[bytes]
    memory: float
    work: float
    work_per_byte: float = 0
    version: int = 2
    check: Callable[[bytes, int], None] = _no_check
    copies: int = 1  # of the file in memory
    coded: Callable[[bytes, int], int] = _as_told


def sniff(head: bytes) -> Format | None:
    """Returns the format of a file by its first HEAD bytes, or None."""
    return next((each for each in FORMATS if each.begins.match(head)), None)


def kind_of(content: bytes) -> Format | None:
    """Returns the format of a file by its content, or None."""
    kind = sniff(content[:HEAD])
    return RAW if kind is TIFF and raw.is_raw_tiff(content) else kind


def begins_like_image(file: IO[bytes]) -> bool:
    """Returns whether an open binary file begins like an image, even if the image is broken."""
    return sniff(file.read(HEAD)) is not None


def named_like_image(path: str) -> bool:
    """Returns whether the file's name has the extension of an image, even of one never read."""
    from PIL import Image

    extension = os.path.splitext(path)[1].lower()
    known = extension in OTHER_NAMES or extension in Image.registered_extensions()
    return known and extension not in OTHER_CONTENT


def claims_to_be_image(path: str, error: ImageFileError) -> bool:
    """Returns whether the name or the content of a file that is no readable image is an image's."""
    return not isinstance(error, NotAnImageError) or named_like_image(path)


def check_regular(path: str, max_pixels: int | None = MAX_PIXELS) -> os.stat_result:
    """Returns the status of a regular file.

    Files of the system, as in /proc, have no size and may never end, so that files without a size
    count as empty and are not opened.

    Raises:
        ImageFileError: it is something else, cannot be read, or is too large for so many pixels.
        EmptyFileError: it is empty.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageFileError(f"cannot be read: {reason_of(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise ImageFileError(f"is {kind}, not an image file")
    if not status.st_size:
        raise EmptyFileError
    check_size(status.st_size, max_pixels)
    return status


def reason_of(error: Exception) -> str:
    """Returns the text of an OSError (or another error) without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def _check_png(content: bytes, most: int) -> None:
    """Counts the chunks, each of which takes Pillow some microseconds."""
    at, count = 8, 0
    while at + 8 <= len(content) and content[at + 4 : at + 8] != b"IEND":
        count += 1
        check_pieces(count, len(content))
        at += 12 + int.from_bytes(content[at : at + 4], "big")


def _check_gif(content: bytes, most: int) -> None:
    """Counts the blocks before the first picture; Pillow joins them one by one (GIF89a)."""
    flags = content[10] if len(content) > 10 else 0
    at, count = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), 0
    while at < len(content) and content[at : at + 1] not in (b",", b";"):
        if content[at : at + 1] == b"!":
            at += 2
            while at < len(content) and content[at] and count <= GIF_BLOCKS:
                at, count = at + 1 + content[at], count + 1
        at, count = at + 1, count + 1
        if count > GIF_BLOCKS:
            raise TooManyPiecesError


def gif_pixels(content: bytes) -> int:
    """Returns the pixels of all pictures in a GIF together (GIF89a).

    Raises:
        TooManyPiecesError: it has more blocks than its size explains.
    """
    flags = content[10] if len(content) > 10 else 0
    at, pixels, count = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), 0, 0
    while at + 10 <= len(content) and content[at : at + 1] in (b",", b"!"):
        if content[at : at + 1] == b",":
            width, height = (int.from_bytes(content[at + n : at + n + 2], "little") for n in (5, 7))
            pixels, flags = pixels + width * height, content[at + 9]
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        else:
            at += 2
        while at < len(content) and content[at]:
            at, count = at + 1 + content[at], count + 1
        at += 1
        check_pieces(count // BLOCKS_PER_PIECE, len(content))
    return pixels


def _check_tiff(content: bytes, most: int) -> None:
    check_tags(content)


def _check_webp(content: bytes, most: int) -> None:
    """Checks the size of the canvas, for which libwebp takes memory when it opens a file."""
    kind, data = content[12:16], content[20:30]
    if kind == b"VP8X":
        sides = [1 + int.from_bytes(data[at : at + 3], "little") for at in (4, 7)]
    elif kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        sides = [1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)]
    else:
        sides = [int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8)]
    check_pixels(sides[0], sides[1], most)


def _check_avif(content: bytes, most: int) -> None:
    """Checks the tags of an EXIF block, which Pillow reads when it opens a file."""
    for count, found in enumerate(TIFF_STARTS.finditer(content)):
        if count > MOST_STARTS:
            raise TooManyPiecesError
        check_tags(content[found.start() :])


def _refuse_jpeg_xl(content: bytes, most: int) -> None:
    """Names the format: there is no decoder with a free licence and bounds on what it takes."""
    raise ImageFileError("is a JPEG XL image, which is not read; convert it to JPEG")


def _check_jpeg_2000(content: bytes, most: int) -> None:
    """Checks the size in the codestream, which may differ from that in the file's header."""
    at, count = 0, 0
    while content[:4] != CODESTREAM[:4] and content[at + 4 : at + 8] != BOX_OF_CODESTREAM:
        length = int.from_bytes(content[at : at + 4], "big")
        if length == 1:  # the length follows
            length = int.from_bytes(content[at + 8 : at + 16], "big")
        at, count = at + length, count + 1
        check_pieces(count, len(content))
        if length < 8 or at >= len(content):
            raise BoundsError
    start = content.find(CODESTREAM, at, at + 32)
    if start < 0:
        raise BoundsError
    _check_codestream(content, start, most)


def _check_codestream(content: bytes, start: int, most: int) -> None:
    """Checks the headers of the image and of its tiles (ITU T.800, annex A)."""
    at, count, pixels, next_tile = start + 2, 0, 0, 0
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] not in (
        b"",
        END_OF_CODESTREAM,
    ):
        count += 1
        check_pieces(count, len(content))
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        body = content[at + 4 : at + 2 + length]
        if marker == SIZES:
            pixels = _check_sizes(body, len(content), most)
        elif marker in (CODING, CODING_OF_COMPONENT):
            _check_blocks(body[5:] if marker == CODING else body[2:], pixels)
        elif marker == TILE:
            next_tile = at + int.from_bytes(body[2:6], "big")
        at = next_tile if marker == DATA else at + 2 + max(2, length)
        if marker == DATA and next_tile < start + count:  # the last tile may leave out its length
            return


def _check_sizes(body: bytes, size: int, most: int) -> int:
    """Returns the pixels of an image, after a check of its sizes and components (A.5.1)."""
    right, bottom, left, top, across, down = (
        int.from_bytes(body[at : at + 4], "big") for at in range(2, 26, 4)
    )
    width, height = max(0, right - left), max(0, bottom - top)
    check_pixels(width, height, most)
    check_pieces(-(-right // max(1, across)) * -(-bottom // max(1, down)), size)
    if int.from_bytes(body[34:36], "big") > MOST_COMPONENTS:
        raise TooManyPiecesError
    return width * height


def _check_blocks(style: bytes, pixels: int) -> None:
    """Checks how many code blocks and precincts there are, each of which takes memory (A.6.1)."""
    levels, *sides = (*style[:3], 0, 0, 0)[:3]
    areas = [(4 + sum(sides), 0)]  # (of a block, halvings of the image), as powers of two
    for level, precinct in enumerate(style[5 : 6 + levels]):
        areas.append(((precinct & 15) + (precinct >> 4), 2 * (levels - level)))
    if any(pixels >> min(64, area + halvings) > MOST_BLOCKS for area, halvings in areas):
        raise TooManyPiecesError


def _begins(*starts: bytes) -> re.Pattern[bytes]:
    return re.compile(b"|".join(starts), re.DOTALL)


JPEG = Format("JPEG", _begins(rb"\xff\xd8\xff"), memory=9, work=1)  # see jpeg.Jpeg
PNG = Format("PNG", _begins(rb"\x89PNG\r\n\x1a\n"), 8, 2, 0.9, 3, _check_png)
HEIF = Format("HEIF", _begins(HEIF_START), 12, 6, 16, 2, heif.check, 2, heif.coded_pixels)
JXL = Format("JXL", _begins(*JPEG_XL_STARTS), 0, 0, check=_refuse_jpeg_xl)
# Most raw files begin like TIFFs; see `kind_of`. Older versions read the thumbnails in both.
RAW = Format("RAW", raw.BEGINS, 14, 16, version=4)
TIFF = Format("TIFF", TIFF_STARTS, 10, 2.4, 0.35, version=4, check=_check_tiff)
FORMATS = (
    JPEG,
    PNG,
    HEIF,  # before AVIF, whose files may have the same main brand
    Format("GIF", _begins(b"GIF8[79]a"), 8, 2, check=_check_gif),
    Format("WEBP", _begins(b"RIFF....WEBP"), 17, 2.5, 2, check=_check_webp, copies=2),
    RAW,  # before TIFF
    TIFF,
    Format("BMP", _begins(b"BM"), 8, 2),
    Format("AVIF", _begins(AVIF_START), 13, 2.8, 9, 2, _check_avif, 2, avif.coded_pixels),
    Format("JPEG2000", _begins(*JPEG_2000_STARTS), 26, 13, 30, 3, _check_jpeg_2000),
    JXL,
    Format("PPM", _begins(rb"P[456]\s+[\d#]"), 8, 2, version=3),
)
PIXELS = max(each.version for each in FORMATS)  # the newest version of any format's pixels
