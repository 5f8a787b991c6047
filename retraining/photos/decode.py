"""Image files as Pillow knows them: which files are images, their size, their pixels.

A file's content counts, never its name. Only what is a regular file is opened: a named pipe would
wait for a writer for ever. No TensorFlow.
"""

import io
import os
import stat
import warnings

import numpy as np

from retraining.system.text import one_line

SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"BM",
    b"II*\x00",  # TIFF
    b"MM\x00*",
)
MAX_PIXELS = 200_000_000  # of one image, unless told otherwise
BYTES_PER_PIXEL = 8  # of the largest files: 16 bits of four channels, not compressed
LEAST_ROWS = 0.5  # share of its rows that a JPEG with a missing end must have
END_OF_IMAGE = b"\xff\xd9"  # libjpeg then fills in, without an error, what has not come before
MISSING_GREY = 128  # with this: blocks whose coefficients are all zero
ORIENTATION = 0x0112  # the EXIF tag

# Formats that Pillow reads only with the help of another program, or not at all.
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class ImageFileError(Exception):
    """This file is no readable image; says why, after the file's name."""


class NotAnImageError(ImageFileError):
    """The content is of no known image format."""


def check_regular(path, max_pixels=MAX_PIXELS):
    """Raises ImageFileError if `path` is no regular file, or too large for so many pixels."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageFileError(f"cannot be read: {reason_of(error)}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise ImageFileError(f"is {kind}, not an image file")
    check_size(found.st_size, max_pixels)


def check_size(size, max_pixels=MAX_PIXELS):
    """Raises ImageFileError if a file of `size` bytes is too large for so many pixels, if any."""
    if max_pixels is not None and size > max_pixels * BYTES_PER_PIXEL + (1 << 20):
        raise ImageFileError(
            f"has {size} bytes, more than any image that --max_image_pixels allows"
        )


def reason_of(error):
    """What an OSError (or another error) says, without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def looks_like_image(path, max_pixels=MAX_PIXELS):
    """Whether the file's content begins like an image.

    Raises:
        ImageFileError: it cannot be read, is no regular file, or too large for so many pixels.
    """
    check_regular(path, max_pixels)
    try:
        with open(path, "rb") as file:
            return begins_like_image(file)
    except OSError as error:
        raise ImageFileError(f"cannot be read: {reason_of(error)}") from error


def begins_like_image(file):
    """Whether what an open binary file holds begins like an image, if a broken one."""
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


def named_like_image(path):
    """Whether the file's name claims that it is an image."""
    from PIL import Image

    return os.path.splitext(path)[1].lower() in Image.registered_extensions()


def silence_pillow():
    """Ignores Pillow's warnings about odd files: what they say, no user can mend.

    Photos are read on threads, for which `warnings.catch_warnings` is not made.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image(file):
    """Pillow's Image of an open binary file; nothing but its header has been read.

    Raises:
        NotAnImageError: it is of no known format.
        ImageFileError: its header is broken.
    """
    from PIL import Image

    silence_pillow()
    Image.init()
    Image.MAX_IMAGE_PIXELS = None  # we have a limit of our own, before anything is decoded
    try:
        return Image.open(file, formats=[name for name in Image.ID if name not in NOT_READ])
    except Image.UnidentifiedImageError as error:
        raise NotAnImageError("is not an image of a known format") from error
    except Exception as error:  # Pillow's parsers raise many kinds of error on broken files
        raise ImageFileError(f"is a broken image ({one_line(error, 200)})") from error


def check_pixels(width, height, most=MAX_PIXELS):
    """Raises ImageFileError if an image has more than `most` pixels."""
    if width * height > most:
        raise ImageFileError(
            f"has {width} x {height} pixels, more than --max_image_pixels {most} allows"
        )


def decode(content, most=MAX_PIXELS):
    """uint8 [height, width, 3] of an image file's bytes: upright by its EXIF orientation,
    transparency over white, the first frame of several, deep greyscale by its likely range.

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


def decode_jpeg(content):
    """uint8 [height, width, 3] of a JPEG's bytes, not turned; its end may be missing.

    Raises:
        ImageFileError: Pillow cannot read it, or less than half of its rows are there.
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


def opaque(image):
    """A Pillow image in RGB: transparency over white, deep greyscale made 8-bit."""
    from PIL import Image

    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _to_eight_bits(image).convert("RGB")


def _to_eight_bits(image):
    """16-bit, 32-bit and float greyscale made 8-bit by its likely range; others as they are."""
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.nan_to_num(np.asarray(image, np.float64))
    likely = {"F": (1, 255, 65535), "I": (255, 65535)}.get(image.mode, (65535,))
    white = next((top for top in likely if values.max() <= top), values.max())
    return Image.fromarray(np.clip(values * (255 / white) + 0.5, 0, 255).astype(np.uint8))


def jpeg_header(content):
    """(width, height, EXIF orientation) of a JPEG's bytes, or None if they are not easily found.

    Walks over the segments up to the frame header (ITU T.81, B.1.1): a few microseconds.
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


def _orientation(exif):
    """1 to 8 from an EXIF block; 1, upright, if it does not tell."""
    from PIL import Image

    silence_pillow()
    tags = Image.Exif()
    try:
        tags.load(exif)
        found = tags.get(ORIENTATION, 1)
    except Exception:  # a broken block tells nothing
        return 1
    return found if found in range(1, 9) else 1


def upright(pixels, orientation):
    """[height, width, 3] turned as the EXIF orientation (1 to 8) asks.

    The table is that of the TIFF 6.0 specification: which edge of the scene row 0 and column 0 are.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
