"""Reads image files with Pillow: tells which files are images, their size and their pixels.

A file's content decides, never its name. Only regular files are opened: opening a named pipe
would block until somebody writes to it. This module does not need TensorFlow.
"""

import io
import os
import stat
import warnings
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retraining.system.text import one_line

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"BM",
    b"II*\x00",  # TIFF
    b"MM\x00*",
)
MAX_PIXELS = 200_000_000  # of one image, by default
BYTES_PER_PIXEL = 8  # in the largest files: four channels of 16 bits, uncompressed
LEAST_ROWS = 0.5  # share of its rows that a truncated JPEG must have
END_OF_IMAGE = b"\xff\xd9"  # makes libjpeg fill in the missing rows without an error
MISSING_GREY = 128  # what it fills in: blocks whose coefficients are all zero
ORIENTATION = 0x0112  # the EXIF tag
NO_IMAGE = "is not an image of a known format"

# Formats that Pillow reads only with the help of another program, or not at all.
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class ImageFileError(Exception):
    """A file is not a readable image. The text is the reason and follows the file's name."""


class NotAnImageError(ImageFileError):
    """The content has no known image format."""

    def __init__(self) -> None:
        super().__init__(NO_IMAGE)


def check_regular(path: str, max_pixels: int | None = MAX_PIXELS) -> os.stat_result:
    """Returns the status of a regular file.

    Raises:
        ImageFileError: it is something else, cannot be read, or is too large for so many pixels.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageFileError(f"cannot be read: {reason_of(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise ImageFileError(f"is {kind}, not an image file")
    check_size(status.st_size, max_pixels)
    return status


def check_size(size: int, max_pixels: int | None = MAX_PIXELS) -> None:
    """Raises ImageFileError if `size` bytes are too many for so many pixels (None: no limit)."""
    if max_pixels is not None and size > max_pixels * BYTES_PER_PIXEL + (1 << 20):
        raise ImageFileError(f"has {size} bytes, more than any image that `max_pixels` allows")


def reason_of(error: Exception) -> str:
    """Returns the text of an OSError (or another error) without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def begins_like_image(file: IO[bytes]) -> bool:
    """Returns whether an open binary file begins like an image, even if the image is broken."""
    head = file.read(16)
    if head.startswith(SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return True
    file.seek(0)
    try:
        with open_image(file):
            return True
    except NotAnImageError:
        return False
    except ImageFileError:
        return True


def named_like_image(path: str) -> bool:
    """Returns whether the file's name has the extension of an image."""
    from PIL import Image

    return os.path.splitext(path)[1].lower() in Image.registered_extensions()


def claims_to_be_image(path: str, error: ImageFileError) -> bool:
    """Returns whether the name or the content of a file that is no readable image is an image's."""
    return not isinstance(error, NotAnImageError) or named_like_image(path)


def silence_pillow() -> None:
    """Ignores Pillow's warnings about odd files, since users cannot act on them.

    Photos are read on threads, and `warnings.catch_warnings` is not thread-safe.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image(file: IO[bytes]) -> "Picture":
    """Returns Pillow's Image of an open binary file, with only the header read.

    Raises:
        NotAnImageError: the format is unknown.
        ImageFileError: the header is broken.
    """
    from PIL import Image, UnidentifiedImageError

    silence_pillow()
    Image.init()
    Image.MAX_IMAGE_PIXELS = None  # our own limit applies before anything is decoded
    try:
        return Image.open(file, formats=[name for name in Image.ID if name not in NOT_READ])
    except UnidentifiedImageError as error:
        raise NotAnImageError from error
    except Exception as error:  # Pillow's parsers raise many kinds of error on broken files
        raise ImageFileError(f"is a broken image ({one_line(error, 200)})") from error


def check_pixels(width: int, height: int, most: int = MAX_PIXELS) -> None:
    """Raises ImageFileError if an image has more than `most` pixels."""
    if width * height > most:
        raise ImageFileError(f"has {width} x {height} pixels, more than `max_pixels` {most} allows")


def decode(content: bytes, most: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decodes an image file's bytes to uint8 [height, width, 3].

    Turns the image upright by its EXIF orientation, puts transparency over white, takes the first
    frame of several, and maps deep greyscale to 8 bits by its likely range.

    Raises:
        ImageFileError: Pillow cannot read it, or it has more than `most` pixels.
    """
    from PIL import ImageOps

    with open_image(io.BytesIO(content)) as image:
        check_pixels(*image.size, most)
        try:
            image.load()
            return np.asarray(opaque(ImageOps.exif_transpose(image)))
        except Exception as error:  # Pillow's decoders raise many kinds of error on broken files
            raise ImageFileError(f"is a broken image ({one_line(error, 200)})") from error


def decode_jpeg(content: bytes) -> NDArray[np.uint8]:
    """Decodes a JPEG's bytes, which may be truncated, to uint8 [height, width, 3], not turned.

    Raises:
        ImageFileError: Pillow cannot read it, or more than half of its rows are missing.
    """
    with open_image(io.BytesIO(content + END_OF_IMAGE)) as image:
        try:
            pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # as in `decode`
            raise ImageFileError(f"is a broken image ({one_line(error, 200)})") from error
    rows = np.flatnonzero((pixels != MISSING_GREY).any(axis=(1, 2)))
    if not len(rows) or rows[-1] + 1 < LEAST_ROWS * len(pixels):
        raise ImageFileError("is a broken image (more than half of it is missing)")
    return pixels


def opaque(image: "Picture") -> "Picture":
    """Converts a Pillow image to RGB: puts transparency over white, makes deep greyscale 8-bit."""
    from PIL import Image

    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _to_eight_bits(image).convert("RGB")


def _to_eight_bits(image: "Picture") -> "Picture":
    """Converts 16-bit, 32-bit and float greyscale to 8 bits by its likely range."""
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.nan_to_num(np.asarray(image, np.float64))
    likely = {"F": (1, 255, 65535), "I": (255, 65535)}.get(image.mode, (65535,))
    white = next((top for top in likely if values.max() <= top), values.max())
    return Image.fromarray(np.clip(values * (255 / white) + 0.5, 0, 255).astype(np.uint8))


def jpeg_header(content: bytes) -> tuple[int, int, int] | None:
    """Returns (width, height, EXIF orientation) of a JPEG's bytes, or None if hard to find.

    Walks over the segments up to the frame header (ITU T.81, B.1.1), which takes microseconds.
    """
    at, orientation = 2, 1
    while content[at : at + 1] == b"\xff" and at + 9 <= len(content):
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xFF:  # fill
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(content[at + 5 : at + 7], "big")
            width = int.from_bytes(content[at + 7 : at + 9], "big")
            return (width, height, orientation) if width and height else None
        if marker == 0xE1 and content[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _orientation(content[at + 4 : at + 2 + length])
        if length < 2 or marker in (0xD8, 0xD9, 0xDA):
            return None
        at += 2 + length
    return None


def _orientation(exif: bytes) -> int:
    """Returns the orientation, 1 to 8, in an EXIF block; 1 (upright) if the block has none."""
    from PIL import Image

    silence_pillow()
    tags = Image.Exif()
    try:
        tags.load(exif)
        orientation = tags.get(ORIENTATION, 1)
    except Exception:  # a broken block has no orientation
        return 1
    return orientation if orientation in range(1, 9) else 1


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turns [height, width, 3] as the EXIF orientation (1 to 8) asks.

    The TIFF 6.0 specification defines the values: which edges of the scene are row 0 and column 0.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
