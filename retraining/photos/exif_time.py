"""Reads when a photo was taken, from its EXIF data."""

import math
from datetime import UTC, datetime
from typing import IO

from retraining.photos.decode import jpeg_header, open_image

HEAD_BYTES = 1 << 20  # of a JPEG, where its EXIF data lie
EXIF_IFD = 0x8769  # the tag that points to the block of the tags below (EXIF 2.32, section 4.6.3)
DATE_TIME_ORIGINAL = 0x9003
SUB_SEC_TIME_ORIGINAL = 0x9291


def taken_at(file: IO[bytes]) -> float:
    """Returns when the photo in an open binary file was taken, in seconds; NaN if it does not say.

    Only the head of the file is read. A JPEG with several EXIF blocks does not say. EXIF times have
    no time zone: they are counted from 1970 by the camera's clock, so only differences between
    photos mean something.
    """
    try:
        header = jpeg_header(file.read(HEAD_BYTES))
        if header and header.exif_blocks > 1:  # Pillow would join them
            return math.nan
        file.seek(0)
        with open_image(file) as image:
            tags = image.getexif().get_ifd(EXIF_IFD)
    except Exception:  # Pillow's parsers raise many kinds of error on broken files
        return math.nan
    return _seconds(str(tags.get(DATE_TIME_ORIGINAL, "")), str(tags.get(SUB_SEC_TIME_ORIGINAL, "")))


def _seconds(time: str, fraction: str) -> float:
    """Converts "YYYY:MM:DD HH:MM:SS" and the digits after its decimal point to seconds."""
    try:
        whole = datetime.strptime(time.strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return math.nan
    digits = fraction.strip("\0 ")
    part = float(f"0.{digits}") if digits.isascii() and digits.isdecimal() else 0.0
    return whole.replace(tzinfo=UTC).timestamp() + part
