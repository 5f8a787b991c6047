"""Bounds what decoding an image may cost, by counts that are the same on every machine.

A bound is never a time, so that the same folder gives the same photos everywhere. The bounds keep
one file below ten seconds of a processor's core, and below 1.5 GB and 8 bytes a pixel of memory.
"""

MAX_PIXELS = 200_000_000  # of one image, by default
BYTES_PER_PIXEL = 5  # of the largest files; uncompressed 16-bit RGB has 6, but fewer pixels
FILE_BASE = 64 << 20  # bytes of any file besides: more frames, or a video behind a JPEG
WORK_PER_PIXEL = 4  # units of work, of about ten nanoseconds, for each pixel that is allowed
MEMORY_BASE = 1_100_000_000  # bytes that file and decoding may take besides 8 bytes a pixel
PIECES = 10_000  # chunks, segments or blocks of any file, and one more for so many bytes:
BYTES_PER_PIECE = 1_000

INSTALL = "pip install -r requirements-formats.txt"
NO_IMAGE = "is not an image of a known format"
EMPTY = "is empty; if a cloud such as OneDrive keeps the photo, download it first"
TOO_MUCH_WORK = "takes more work to decode than `max_pixels` allows"
TOO_MUCH_MEMORY = "takes more memory to decode than an image of its size may"


class ImageFileError(Exception):
    """A file is not a readable image. The text is the reason and follows the file's name."""


class NotAnImageError(ImageFileError):
    """The content has no known image format."""

    def __init__(self) -> None:
        super().__init__(NO_IMAGE)


class EmptyFileError(NotAnImageError):
    """The file has no content."""

    def __init__(self) -> None:
        ImageFileError.__init__(self, EMPTY)


class InCloudError(ImageFileError):
    """The file stands for a photo that iCloud keeps."""

    def __init__(self) -> None:
        super().__init__("stands for a photo in iCloud; download the photo first")


class BoundsError(ImageFileError):
    """A file cannot be checked, since its structure is broken."""

    def __init__(self) -> None:
        super().__init__("is a broken image (its structure is damaged)")


class MissingDecoderError(ImageFileError):
    """The format is known, and its decoder is an extra that is not installed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"is {what}; to read it, run `{INSTALL}`")


class TooManyPiecesError(ImageFileError):
    """A file has more parts than its size explains."""

    def __init__(self) -> None:
        super().__init__("is a broken image (it has too many parts)")


def check_size(size: int, max_pixels: int | None = MAX_PIXELS) -> None:
    """Raises ImageFileError if `size` bytes are too many for so many pixels (None: no limit)."""
    if max_pixels is not None and size > max_pixels * BYTES_PER_PIXEL + FILE_BASE:
        raise ImageFileError(f"has {size} bytes, more than any image that `max_pixels` allows")


def check_pixels(width: int, height: int, most: int = MAX_PIXELS) -> None:
    """Raises ImageFileError if an image has more than `most` pixels."""
    if width * height > most:
        raise ImageFileError(f"has {width} x {height} pixels, more than `max_pixels` {most} allows")


def check_work(units: float, most: int = MAX_PIXELS) -> None:
    """Raises ImageFileError if decoding takes too many units of work (see WORK_PER_PIXEL)."""
    if units > WORK_PER_PIXEL * max(most, MAX_PIXELS):
        raise ImageFileError(TOO_MUCH_WORK)


def check_memory(pixels: int, bytes_per_pixel: float, size: int) -> None:
    """Checks what decoding so many pixels takes in memory, besides `size` bytes for the file.

    Raises:
        ImageFileError: it takes more than MEMORY_BASE and 8 bytes a pixel.
    """
    if pixels * (bytes_per_pixel - 8) + size > MEMORY_BASE:
        raise ImageFileError(TOO_MUCH_MEMORY)


def check_pieces(count: int, size: int) -> None:
    """Raises ImageFileError if a file of `size` bytes has too many parts."""
    if count > PIECES + size // BYTES_PER_PIECE:
        raise TooManyPiecesError
