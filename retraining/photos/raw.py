"""Reads raw files of cameras with LibRaw: the preview in the file, or else the developed picture.

Most raw files have the form of a TIFF, whose first picture is a thumbnail. Their own tags tell
them from TIFFs (Adobe's DNG 1.7, TIFF/EP).
"""

import io
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

from retraining.photos.bounds import MissingDecoderError
from retraining.photos.jpeg import read_jpeg
from retraining.photos.tags import MOST_FIELDS, STARTS, Tags

if TYPE_CHECKING:
    import numpy as np
    import rawpy
    from numpy.typing import NDArray

# Canon (CR2, CR3), Fujifilm, Olympus and Panasonic have marks of their own.
MARKS = (rb"II\*\0....CR", rb"....ftypcrx ", rb"FUJIFILMCCD-RAW", rb"IIR[OS]", rb"MMOR", rb"IIU\0")
NAMES = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2")
PHOTOMETRIC, SUB_DIRECTORIES, DNG_VERSION = 262, 330, 50706  # tags
SENSOR, LINEAR = 32803, 34892  # values of PHOTOMETRIC: one colour a pixel, or all of them
OFFSETS = (4, 13)  # types of SUB_DIRECTORIES, 32 bits each
MOST = 16  # directories that are looked at
LEAST_SIDE = 480  # pixels of a preview that is used
TURNS = {0: 1, 3: 3, 5: 8, 6: 6}  # LibRaw's `flip` as an EXIF orientation


def is_raw_tiff(content: bytes) -> bool:
    """Returns whether a file that begins like a TIFF is a raw file."""
    if not content.startswith(STARTS):
        return False
    tags = Tags(content)
    return any(
        field.tag == DNG_VERSION
        or (
            field.tag == PHOTOMETRIC
            and field.values == 1
            and tags.number(tags.value(field)) in (SENSOR, LINEAR)
        )
        for at in _directories(tags)
        for field in islice(tags.fields(at), MOST_FIELDS)
    )


def _directories(tags: Tags) -> list[int]:
    """Returns the offsets of the first directory, and of those that it names."""
    found = [tags.first]
    for field in islice(tags.fields(tags.first), MOST_FIELDS):
        if field.tag == SUB_DIRECTORIES and field.type in OFFSETS and field.values <= MOST:
            offsets = tags.value(field)
            found += [tags.number(offsets[at : at + 4]) for at in range(0, len(offsets), 4)]
    return found[:MOST]


def open_raw(content: bytes) -> "rawpy.RawPy":
    """Returns LibRaw's file, with only its header read.

    Raises:
        MissingDecoderError: rawpy is not installed.
        Exception: of many kinds, for a broken file.
    """
    try:
        import rawpy
    except ImportError as error:
        raise MissingDecoderError("a camera's raw file") from error
    return rawpy.imread(io.BytesIO(content))


def preview(file: "rawpy.RawPy") -> tuple[bytes | None, int]:
    """Returns (the preview in the file, a JPEG; the EXIF orientation that it still needs).

    The preview is None if there is none of LEAST_SIDE.
    """
    import rawpy

    try:
        found = file.extract_thumb()
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        return None, 1
    if found.format != rawpy.ThumbFormat.JPEG:
        return None, 1
    content = bytes(found.data)
    header = read_jpeg(content)
    if header is None or min(header.width, header.height) < LEAST_SIDE:
        return None, 1
    return content, TURNS.get(file.sizes.flip, 1) if header.orientation == 1 else 1


def developed(file: "rawpy.RawPy") -> "NDArray[np.uint8]":
    """Returns the picture by the camera's white balance, upright, uint8 [height, width, 3]."""
    import rawpy

    linear: Any = rawpy.DemosaicAlgorithm.LINEAR
    pixels: NDArray[np.uint8] = file.postprocess(
        use_camera_wb=True, output_bps=8, demosaic_algorithm=linear
    )
    return pixels


BEGINS = re.compile(b"|".join(MARKS), re.DOTALL)
