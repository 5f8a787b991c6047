"""What a SavedModel sees of an image file, against what this project decodes."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retraining.export.to_saved_model import decode as decode_in_graph
from retraining.photos.decode import decode, has_transparency

RNG = np.random.default_rng(0)
RGBA = np.kron(RNG.integers(0, 256, (8, 9, 4), np.uint8), np.ones((4, 4, 1), np.uint8))
CLEAR = Image.fromarray(RGBA)
PHOTO = CLEAR.convert("RGB")
OTHER = Image.fromarray(RGBA[::-1].copy())
PALETTE, GREY = PHOTO.quantize(16), PHOTO.convert("L")


def saved(image, kind, **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey_png(bits, *more):
    """The bytes of a PNG of grey noise with so many bits a pixel."""

    def chunk(kind, content):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", 16, 8, bits, 0, 0, 0, 0)
    rows = b"".join(b"\0" + RNG.bytes(2 * bits) for _ in range(8))
    parts = ((b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, part) for kind, part in parts)


ANIMATED = {"save_all": True, "lossless": True}
OPAQUE = {
    "jpeg": saved(PHOTO, "JPEG"),
    "jpeg of greys": saved(GREY, "JPEG"),
    "jpeg of four inks": saved(PHOTO.convert("CMYK"), "JPEG"),
    "png": saved(PHOTO, "PNG"),
    "png with a palette": saved(PALETTE, "PNG"),
    "png of greys": saved(GREY, "PNG"),
    "png of two bits": grey_png(2),
    "png of black and white": saved(GREY.convert("1"), "PNG"),
    "webp": saved(PHOTO, "WEBP"),
    "lossless webp": saved(PHOTO, "WEBP", lossless=True),
    "webp with metadata": saved(PHOTO, "WEBP", exif=b"Exif\0\0"),
    "bmp": saved(PHOTO, "BMP"),
    "bmp of greys": saved(GREY, "BMP"),
    "bmp of four channels": saved(CLEAR, "BMP"),
    "gif": saved(PHOTO, "GIF"),
    "animated gif": saved(PHOTO, "GIF", save_all=True, append_images=[OTHER.convert("RGB")]),
}
TRANSPARENT = {
    "png": saved(CLEAR, "PNG"),
    "png of greys": saved(CLEAR.convert("LA"), "PNG"),
    "png with a clear colour": saved(PHOTO, "PNG", transparency=tuple(RGBA[0, 0, :3].tolist())),
    "png with a clear grey": saved(GREY, "PNG", transparency=GREY.getpixel((0, 0))),
    "png of two bits": grey_png(2, (b"tRNS", b"\0\x01")),
    "png with a palette and a clear colour": saved(PALETTE, "PNG", transparency=3),
    "png with a palette": saved(PALETTE, "PNG", transparency=bytes([0, 128, 255, 3] * 4)),
    "webp": saved(CLEAR, "WEBP"),
    "lossless webp": saved(CLEAR, "WEBP", lossless=True),
    "animated webp": saved(CLEAR, "WEBP", append_images=[OTHER], **ANIMATED),
}


@pytest.mark.parametrize("content", OPAQUE.values(), ids=OPAQUE)
def test_a_file_has_the_pixels_of_training(content):
    assert not has_transparency(content)
    np.testing.assert_array_equal(decode_in_graph(tf, tf.constant(content)), decode(content))


@pytest.mark.parametrize("content", TRANSPARENT.values(), ids=TRANSPARENT)
def test_white_is_behind_what_is_transparent(content):
    assert has_transparency(content)
    np.testing.assert_array_equal(decode_in_graph(tf, tf.constant(content)), decode(content))


def test_what_tensorflow_does_not_decode_is_refused():
    """TensorFlow would write beyond its memory if it could choose the channels of the first."""
    animated = saved(PHOTO, "WEBP", append_images=[OTHER.convert("RGB")], **ANIMATED)
    for content in (animated, saved(PHOTO, "TIFF"), b"no image", b""):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode_in_graph(tf, tf.constant(content))
