"""Turns the bytes of an image file into pixels, in the same way for all purposes.

simplejpeg decodes JPEGs as the 2015 graph's DecodeJpeg op does, bit for bit: with libjpeg-turbo's
fast DCT and smooth upsampling. That op itself decodes the kinds that simplejpeg does not: CMYK,
unusual subsampling, damaged files, and progressive files that lack scans. libheif decodes HEIF, and
Pillow all other formats, and JPEGs that the op refuses. Colour profiles are ignored, as that graph
does.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.jpeg import decode_jpeg
from retraining.photos import raw
from retraining.photos.bounds import (
    MAX_PIXELS,
    BoundsError,
    ImageFileError,
    NotAnImageError,
    TooManyPiecesError,
    check_memory,
    check_pixels,
    check_work,
)
from retraining.photos.budget import decoding_budget
from retraining.photos.formats import (
    HEAD,
    HEIF,
    JPEG,
    JXL,
    PNG,
    RAW,
    Format,
    gif_pixels,
    kind_of,
    sniff,
)
from retraining.photos.jpeg import Jpeg, read_jpeg
from retraining.photos.tags import exif_orientation
from retraining.system.text import one_line

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

LEAST_ROWS = 0.5  # share of its rows that a truncated JPEG must have
END_OF_IMAGE = b"\xff\xd9"  # makes libjpeg fill in the missing rows without an error
MISSING_GREY = 128  # what it fills in: blocks whose coefficients are all zero
ATTEMPTS = 3  # decoders that try a damaged JPEG
STRIP = 1 << 20  # pixels that are converted at a time
DEPTHS = (255, 1023, 4095, 16383, 65535)  # the white of 8 to 16 bits
FLOAT_WHITE = (1, 255, 65535)
PNG_DEPTH = 24  # the place of the bits a sample in a PNG
GRAPHS_MEMORY = 15  # bytes a pixel in a graph: uint8, then float32
ALPHA_WORK = 1.5  # a pixel, to put transparency over white
FLOAT_WORK = 2  # times that of other images, for the conversion
PYTHON_CODECS = ("bmp_rle", "ppm")  # those of Pillow that take PYTHON_WORK for each byte or pixel
PYTHON_WORK = 100
PICTURES = 2  # in a file, as large as the one that is told: colours and transparency
UNSEEN_MEMORY = 12  # of a pixel that the decoder leaves out at the end
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a TIFF tag, and a value of it
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL, ROWS_PER_STRIP = 258, 277, 278
TILE_WIDTH, TILE_LENGTH = 322, 323
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


@contextlib.contextmanager
def decoded(
    content: bytes, most: int = MAX_PIXELS, least_side: int = 0, develop: bool = False
) -> Iterator[NDArray[np.uint8]]:
    """Decodes an image file's bytes to uint8 [height, width, 3] for the time of the context.

    Turns the image upright by its EXIF orientation, puts transparency over white, takes the first
    frame of several, and maps deep greyscale to 8 bits by its likely range. With `least_side`, a
    JPEG may come smaller, with sides of so many pixels or more. `develop` takes what the sensor saw
    from a raw file, not its preview. Waits while other threads decode
    as much as memory allows.

    Raises:
        ImageFileError: it is broken, has more than `most` pixels, or takes too much to decode.
        NotAnImageError: the format is unknown.
    """
    kind = kind_of(content)
    if kind is None:
        raise NotAnImageError
    kind.check(content, most)
    if kind is JPEG:
        opened = _jpeg(content, most, least_side)
    elif kind is RAW:
        opened = _raw(content, most, least_side, develop)
    else:
        opened = _other(kind, content, most)
    with opened as pixels:
        yield pixels


def decode(content: bytes, most: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decodes an image file's bytes to uint8 [height, width, 3]; see `decoded`."""
    with decoded(content, most) as pixels:
        return pixels


def check(content: bytes, most: int) -> None:
    """Checks an image file for another decoder, such as that in a graph.

    Raises:
        ImageFileError: it has more than `most` pixels, or takes too much to decode; of a GIF, all
            pictures count.
    """
    kind = kind_of(content)
    if kind in (None, RAW, JXL):  # no graph decodes these
        return
    if kind is JPEG:
        header = _checked_header(content, most)
        pixels = header.width * header.height
    else:
        kind.check(content, most)
        with open_image(io.BytesIO(content)) as image:
            _check_costs(kind, image, content, most)
            pixels = image.width * image.height
    if kind.name == "GIF":  # TensorFlow decodes all its pictures
        pixels = max(pixels, gif_pixels(content))
    check_memory(pixels, GRAPHS_MEMORY, len(content))


def has_transparency(content: bytes) -> bool:
    """Returns whether an image that Pillow opens has transparency, which decoders may ignore.

    Raises:
        ImageFileError, NotAnImageError: it does not open.
    """
    with open_image(io.BytesIO(content)) as image:
        return image.has_transparency_data


def silence_pillow() -> None:
    """Ignores Pillow's warnings about odd files, since users cannot act on them.

    Photos are read on threads, and `warnings.catch_warnings` is not thread-safe.
    """
    import warnings

    warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image(file: IO[bytes]) -> "Picture":
    """Returns Pillow's Image of an open binary file in one of FORMATS, with only the header read.

    Raises:
        NotAnImageError: the format is unknown.
        ImageFileError: the header is broken.
    """
    kind = sniff(file.read(HEAD))
    if kind is None:
        raise NotAnImageError
    file.seek(0)
    if kind in (HEIF, JXL):  # all that describes a HEIF's pictures is read at once
        kind.check(file.read(), MAX_PIXELS)
    return _open_as(kind, file)


def _open_as(kind: Format, file: IO[bytes]) -> "Picture":
    from PIL import Image

    silence_pillow()
    Image.MAX_IMAGE_PIXELS = None  # our own limit applies before anything is decoded
    with _explained():
        if kind is HEIF:
            from pi_heif.as_plugin import HeifImageFile

            image: Picture = HeifImageFile(file)
            return image
        return Image.open(file, formats=[kind.name])


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns the many kinds of errors that decoders raise on broken files into ImageFileError."""
    try:
        yield
    except ImageFileError:
        raise
    except Exception as error:
        raise ImageFileError(f"is a broken image ({_said_by(error)})") from error


def _said_by(error: Exception) -> str:
    """Returns a decoder's message: as text, and without the address of the file in memory."""
    first = next(iter(error.args), None)
    text = first.decode(errors="replace") if isinstance(first, bytes) else one_line(error, 200)
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-fA-F]+>", "", text)


# -- JPEG ------------------------------------------------------------------------------------


def jpeg_header(content: bytes) -> Jpeg | None:
    """Returns what the segments of a JPEG tell; None if the content is no JPEG, or a broken one."""
    return read_jpeg(content) if content.startswith(b"\xff\xd8\xff") else None


def _checked_header(content: bytes, most: int) -> Jpeg:
    header = read_jpeg(content)
    if header is None:
        raise ImageFileError("is a broken image (it has no frame header)")
    check_pixels(header.width, header.height, most)
    check_work(header.work(len(content)), most)
    check_memory(header.width * header.height, header.memory(), len(content))
    return header


@contextlib.contextmanager
def _jpeg(content: bytes, most: int, least_side: int) -> Iterator[NDArray[np.uint8]]:
    header = _checked_header(content, most)
    with decoding_budget().take(header.width * header.height * (3 + header.memory())):
        pixels = _as_the_graph_does(content, header, least_side)
        if pixels is None:
            check_work(ATTEMPTS * header.work(len(content)), most)
            pixels = decode_jpeg(content)
        if pixels is None:
            pixels = _rescued(content, header)
        yield upright(pixels, header.orientation)


def _as_the_graph_does(content: bytes, header: Jpeg, least_side: int) -> NDArray[np.uint8] | None:
    """Decodes with simplejpeg; returns None for the kinds that it does not decode alike."""
    import simplejpeg

    if not header.complete:
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(content)
        if space in ("CMYK", "YCCK"):
            return None
        if (width, height) != (header.width, header.height):
            raise ImageFileError("is a broken image (it has two sizes)")
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            content, "RGB", fastdct=True, min_height=least_side, min_width=least_side
        )
    except (ValueError, KeyError):  # it does not know the name of each subsampling
        return None
    return pixels


def _rescued(content: bytes, header: Jpeg) -> NDArray[np.uint8]:
    """Decodes a JPEG that may be truncated, not turned.

    Raises:
        ImageFileError: Pillow cannot read it, or more than half of its rows are missing.
    """
    if header.exif_blocks > 1:  # Pillow joins them, and reads all tags in them
        raise TooManyPiecesError
    with _open_as(JPEG, io.BytesIO(content + END_OF_IMAGE)) as image, _explained():
        if image.size != (header.width, header.height):
            raise ImageFileError("is a broken image (it has two sizes)")
        image.load()
        pixels = _in_strips(image, lambda strip: np.asarray(strip.convert("RGB")))
    rows = np.flatnonzero((pixels != MISSING_GREY).any(axis=(1, 2)))
    if not len(rows) or rows[-1] + 1 < LEAST_ROWS * len(pixels):
        raise ImageFileError("is a broken image (more than half of it is missing)")
    return pixels


# -- other formats ---------------------------------------------------------------------------


@contextlib.contextmanager
def _other(kind: Format, content: bytes, most: int) -> Iterator[NDArray[np.uint8]]:
    with _open_as(kind, io.BytesIO(content)) as image:
        _check_costs(kind, image, content, most)
        size = image.size
        with decoding_budget().take(int(image.width * image.height * (3 + kind.memory))):
            with _explained():
                image.load()
                if image.size != size:
                    check_pixels(*image.size, most)
                if kind is PNG:
                    _mend_transparency(image, content[PNG_DEPTH])
                pixels, orientation = _rgb(image), _orientation(image)
                image.close()
            yield upright(pixels, orientation)


@contextlib.contextmanager
def _raw(content: bytes, most: int, least_side: int, develop: bool) -> Iterator[NDArray[np.uint8]]:
    """Decodes the preview in a raw file if it is large enough, or else develops the file."""
    preview, turn = None, 1
    if not develop:
        with _explained(), raw.open_raw(content) as file:
            preview, turn = raw.preview(file)
    if preview is not None:
        with _jpeg(preview, most, least_side) as pixels:
            yield upright(pixels, turn)
        return
    with _explained(), raw.open_raw(content) as file:
        count = file.sizes.raw_width * file.sizes.raw_height
        check_pixels(file.sizes.raw_width, file.sizes.raw_height, most)
        check_work(RAW.work * count, most)
        check_memory(count, RAW.memory, 2 * len(content))
        with decoding_budget().take(int(count * (3 + RAW.memory))):
            developed = raw.developed(file)
    yield developed


def _check_costs(kind: Format, image: "Picture", content: bytes, most: int) -> None:
    """Checks the pixels of an image, and what they take."""
    check_pixels(*image.size, most)
    pixels, size = image.width * image.height, len(content)
    unseen = max(0, kind.coded(content, most) - PICTURES * pixels)
    codecs = {tile[0] for tile in getattr(image, "tile", ())}
    memory = kind.memory + (_strip_of_tiff(image) if "libtiff" in codecs else 0)
    check_memory(pixels, memory, kind.copies * size + UNSEEN_MEMORY * unseen)
    in_python = PYTHON_WORK * min(size, pixels) if codecs.intersection(PYTHON_CODECS) else 0
    per_pixel = kind.work * (FLOAT_WORK if image.mode in ("F", "I") else 1)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        per_pixel += ALPHA_WORK
    per_file = kind.work_per_byte * size + kind.work * unseen + in_python
    check_work(per_pixel * pixels + per_file, most)


def _strip_of_tiff(image: "Picture") -> float:
    """Returns the bytes that libtiff unpacks at once, for each pixel of the image.

    They are a strip, or a tile, which may be larger than the image.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    rows, bits = tags.get(ROWS_PER_STRIP, image.height), tags.get(BITS_PER_SAMPLE, (1,))
    try:
        if TILE_WIDTH in tags:
            unpacked = tags[TILE_WIDTH] * tags.get(TILE_LENGTH, image.height)
        else:
            unpacked = min(rows, image.height) * image.width
        depth = max(sum(bits), bits[0] * tags.get(SAMPLES_PER_PIXEL, 1))
        return float(unpacked * depth / 8 / (image.width * image.height))
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:  # tags of other types
        raise BoundsError from error


def _in_strips(
    image: "Picture", convert: Callable[["Picture"], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Converts an image to uint8 [height, width, 3] by some rows at a time, which saves memory."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for strip, top in _strips(image):
        pixels[top : top + strip.height] = convert(strip)
    return pixels


def _strips(image: "Picture") -> Iterator[tuple["Picture", int]]:
    """Yields (some rows of an image, the first row's number)."""
    width, height = image.size
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(height, top + rows))), top


def _rgb(image: "Picture") -> NDArray[np.uint8]:
    """Converts a loaded image to uint8 [height, width, 3]: transparency becomes white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _in_strips(image, _deep_converter(image))
    return _in_strips(image, _opaque)


def _opaque(image: "Picture") -> NDArray[np.uint8]:
    from PIL import Image

    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _mend_transparency(image: "Picture", depth: int) -> None:
    """Gives the transparent colour of a PNG 8 bits, as the pixels have (PNG, section 11.3.2)."""
    colour = image.info.get("transparency")
    if image.mode == "RGB" and depth == 16 and colour is not None:
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    if image.mode == "L" and depth < 8 and colour is not None:
        image.info["transparency"] = colour * 255 // ((1 << depth) - 1)


def _deep_converter(image: "Picture") -> Callable[["Picture"], NDArray[np.uint8]]:
    """Returns what converts strips of 16-bit, 32-bit and float greyscale by their likely range.

    White is that of the fewest usual bits that hold the largest value.
    """
    largest = max(float(_finite(strip).max()) for strip, _ in _strips(image))
    likely = FLOAT_WHITE if image.mode == "F" else DEPTHS
    white = next((top for top in likely if largest <= top), largest)
    clear = image.info.get("transparency")
    inverted = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO

    def grey_of(values: NDArray[Any]) -> NDArray[np.uint8]:
        grey = np.clip(values * (255 / white) + 0.5, 0, 255).astype(np.uint8)
        if inverted:
            grey = 255 - grey
        if isinstance(clear, int):
            grey[values == clear] = 255
        return grey

    table = grey_of(np.arange(1 << 16)) if image.mode.startswith("I;16") else None

    def convert(strip: "Picture") -> NDArray[np.uint8]:
        values = _finite(strip)
        grey = grey_of(values) if table is None else table[values]
        return np.broadcast_to(grey[:, :, None], (*grey.shape, 3))

    return convert


def _finite(strip: "Picture") -> NDArray[Any]:
    """Returns the numbers of greyscale; NaN becomes 0."""
    values = np.asarray(strip)
    if strip.mode != "F":
        return values
    with np.errstate(invalid="ignore"):  # the cast of a signalling NaN is no error here
        return np.nan_to_num(values.astype(np.float64))


def _orientation(image: "Picture") -> int:
    """Returns the orientation of a loaded image, 1 to 8: that of EXIF, or else of XMP."""
    if image.format in ("TIFF", "HEIF"):  # Pillow or libheif has turned it
        return 1
    block = image.info.get("exif")
    if block is None and "Raw profile type exif" in image.info:  # as ImageMagick writes PNGs
        lines = image.info["Raw profile type exif"].split("\n")
        block = bytes.fromhex("".join(lines[3:]))
    orientation = exif_orientation(block) if block else None
    if orientation is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
        found = XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
        orientation = int(found[1]) if found else 1
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
