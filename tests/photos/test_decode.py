"""decode.py: which files are images, and what their pixels are."""

import io
import os
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from retraining.photos.bounds import ImageFileError, NotAnImageError
from retraining.photos.decode import decode, jpeg_header, upright
from retraining.photos.folder import look_at_image
from retraining.photos.formats import check_regular, named_like_image
from retraining.photos.tags import ORIENTATION


def encoded(image, **settings):
    buffer = io.BytesIO()
    image.save(buffer, **settings)
    return buffer.getvalue()


def picture(width=12, height=8):
    """Four quarters of different colours, so that turning it shows."""
    image = Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((30, 200, 30), (width // 2, 0, width, height // 2))
    image.paste((30, 30, 200), (0, height // 2, width // 2, height))
    image.paste((220, 220, 40), (width // 2, height // 2, width, height))
    return image


def test_transparency_is_over_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 2), (0, 0, 255, 255))
    pixels = decode(encoded(image, format="PNG"))
    assert pixels.shape == (4, 4, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[2, 1].tolist() == [0, 0, 255]


def test_grey_and_palette_become_rgb():
    grey = Image.new("L", (3, 2), 77)
    assert decode(encoded(grey, format="PNG")).tolist() == [[[77] * 3] * 3] * 2
    palette = Image.new("RGB", (3, 2), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode(encoded(palette, format="PNG"))[0, 0].tolist() == [10, 20, 30]


def test_grey_with_alpha_and_a_transparent_palette():
    grey = Image.new("LA", (2, 1), (77, 255))
    grey.putpixel((1, 0), (77, 0))
    assert decode(encoded(grey, format="PNG")).tolist() == [[[77] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    found = decode(encoded(palette, format="PNG", transparency=1))
    assert found.tolist() == [[[10, 20, 30], [255] * 3]]


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_greyscale_keeps_its_brightness(mode):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    deep = {"I;16": grey * np.uint16(257), "I": grey * np.int32(257), "F": grey / np.float32(255)}
    image = Image.fromarray(deep[mode])
    assert image.mode == mode
    found = decode(encoded(image, format="PNG" if mode == "I;16" else "TIFF"))
    np.testing.assert_array_equal(found, np.repeat(grey[:, :, None], 3, axis=2))


def sixteen_bit_png():
    """A PNG of 16 bits a channel, which Pillow reads but does not write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = b"\0" + struct.pack(">3H", 65535, 0, 32768)
    header = struct.pack(">2I5B", 1, 1, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_sixteen_bits_a_channel():
    assert decode(sixteen_bit_png()).tolist() == [[[255, 0, 128]]]


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "PPM"])
def test_exact_formats(format_):
    image = picture(16, 16)
    found = decode(encoded(image, format=format_))
    np.testing.assert_array_equal(found, np.asarray(image))


@pytest.mark.parametrize("format_", ["JPEG2000", "WEBP", "AVIF", "GIF", "MPO"])
def test_lossy_formats(format_):
    if format_ not in Image.SAVE and format_ != "JPEG2000":
        pytest.skip(f"this Pillow has no {format_}")
    found = decode(encoded(picture(64, 64), format=format_)).astype(int)
    assert np.abs(found - np.asarray(picture(64, 64))).mean() < 6


def test_of_several_frames_the_first_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for format_ in ("GIF", "TIFF", "PNG"):
        content = encoded(frames[0], format=format_, save_all=True, append_images=frames[1:])
        assert decode(content)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP"])
def test_pictures_are_turned_upright(format_, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    settings = {"lossless": True} if format_ == "WEBP" else {}
    content = encoded(picture(), format=format_, exif=exif, **settings)
    expected = upright(np.asarray(picture()), orientation)
    np.testing.assert_array_equal(decode(content), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_turns_as_pillow_does(orientation):
    image = picture()
    image.getexif()[ORIENTATION] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    found = upright(np.asarray(picture()), orientation)
    np.testing.assert_array_equal(found, expected)
    if orientation == 6:  # as a camera held upright stores it: the top right corner comes first
        assert found[0, -1].tolist() == [200, 30, 30]


def jpeg(orientation=None, **settings):
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    return encoded(picture(40, 24), format="JPEG", exif=exif, **settings)


def header_of(content):
    header = jpeg_header(content)
    return header and (header.width, header.height, header.orientation)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", [None, 1, 6, 8, 0, 9, 77])
def test_a_jpegs_header(progressive, orientation):
    expected = orientation if orientation in (6, 8) else 1
    content = jpeg(orientation, progressive=progressive)
    assert header_of(content) == (40, 24, expected)


def test_a_jpegs_header_behind_other_segments():
    content = jpeg(3)
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 300) + b"c" * 300
    assert header_of(content[:2] + comment * 3 + content[2:]) == (40, 24, 3)
    assert header_of(content[:2] + b"\xff\xff\xff" + content[2:]) == (40, 24, 3)


def test_a_broken_exif_block_tells_nothing():
    content = jpeg(6)
    at = content.index(b"Exif\0\0") + 6
    assert header_of(content[:at] + b"\xff" * 8 + content[at + 8 :]) == (40, 24, 1)


def test_a_jpegs_header_never_fails():
    content, rng = jpeg(6), random.Random(0)
    for cut in range(len(content)):
        jpeg_header(content[:cut])
    for _ in range(2000):
        broken = bytearray(content)
        for _ in range(3):
            broken[rng.randrange(200)] = rng.randrange(256)
        found = header_of(bytes(broken))
        assert found is None or len(found) == 3


@pytest.mark.parametrize("content", [b"", b"text", b"<html><body>no</body></html>", b"%!PS-Adobe"])
def test_what_is_no_image(content):
    with pytest.raises(NotAnImageError, match="known format"):
        decode(content)


def test_a_cut_png_is_broken():
    content = encoded(picture(200, 200), format="PNG")
    with pytest.raises(ImageFileError, match="broken image"):
        decode(content[:-100])


def test_too_many_pixels_are_refused_before_they_are_decoded():
    bomb = bytearray(encoded(picture(), format="PNG"))
    bomb[16:24] = struct.pack(">2I", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(ImageFileError, match="60000 x 60000 pixels, more than `max_pixels`"):
        decode(bytes(bomb))
    small = encoded(picture(), format="PNG")
    assert decode(small, most=96).shape == (8, 12, 3)
    with pytest.raises(ImageFileError, match="12 x 8 pixels"):
        decode(small, most=95)


def test_content_counts_not_the_name(tmp_path):
    (tmp_path / "picture.txt").write_bytes(encoded(picture(), format="PPM"))
    (tmp_path / "text.jpg").write_text("no image")
    size = (tmp_path / "picture.txt").stat().st_size
    assert look_at_image(str(tmp_path / "picture.txt")).size == size
    with pytest.raises(NotAnImageError):
        look_at_image(str(tmp_path / "text.jpg"))
    assert named_like_image("x/text.JPG")
    assert named_like_image("x/IMG_1.HEIC")
    for name in ("x/notes.txt", "model.h5", "paper.PDF", "film.mpg"):
        assert not named_like_image(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_folders_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageFileError, match="is a pipe"):
        look_at_image(str(tmp_path / "pipe.jpg"))
    with pytest.raises(ImageFileError, match="is a folder"):
        check_regular(str(tmp_path / "folder.jpg"))


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "huge.bmp", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageFileError, match="1099511627776 bytes, more than"):
        check_regular(str(tmp_path / "huge.bmp"), 1 << 30)
    check_regular(str(tmp_path / "huge.bmp"), 1 << 40)
