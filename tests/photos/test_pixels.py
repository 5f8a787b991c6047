"""decode.py: the pixels of each kind of file, against TensorFlow, OpenCV and the formats' rules."""

import contextlib
import io
import itertools
import os
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retraining.graphs.run import BytesRunner
from retraining.photos import decode as decode_module
from retraining.photos.bounds import ImageFileError
from retraining.photos.decode import decode
from retraining.photos.jpeg import read_jpeg
from retraining.photos.reader import ImageError, run_on_bytes
from tests import tiny
from tests.hostile import png_of_claimed_size
from tests.photos.test_bounds import jpeg_with_a_false_header, png_chunk

RNG = np.random.default_rng(0)


def noisy(width, height, mode="RGB"):
    """A smooth picture with some noise."""
    down, across = np.mgrid[0:height, 0:width]
    smooth = np.stack([down * 200 / height, across * 200 / width, 99 + 60 * np.sin(across)], 2)
    pixels = smooth + RNG.integers(0, 50, smooth.shape)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def jpeg(image, **settings):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def as_the_graph(content):
    return tf.io.decode_jpeg(content, channels=3).numpy()


# -- JPEG: the pixels of the 2015 graph, bit for bit -------------------------------------------

SIZES = [*zip(range(1, 18), range(17, 0, -1), strict=True), (33, 47), (161, 119)]
SAMPLINGS = ["4:4:4", "4:2:2", "4:2:0", "4:1:1", "4:4:0"]


def sampled(image, sampling, **settings):
    if sampling != "4:4:0":
        return jpeg(image, subsampling=sampling, **settings)
    # Pillow does not write it; OpenCV does.
    flags = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440]
    flags += [cv2.IMWRITE_JPEG_PROGRESSIVE, int(settings.get("progressive", False))]
    return cv2.imencode(".jpg", np.asarray(image), flags)[1].tobytes()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_jpeg_has_the_graphs_pixels(sampling, progressive, monkeypatch):
    """And it is simplejpeg that decodes it, not the graph's own op."""
    monkeypatch.setattr(decode_module, "decode_jpeg", None)
    for size in SIZES:
        content = sampled(noisy(*size), sampling, progressive=progressive)
        np.testing.assert_array_equal(decode(content), as_the_graph(content))


def kinds():
    """{kind: JPEGs of it}"""
    image, settings = noisy(61, 47), {"quality": 90}
    plain, cmyk = jpeg(image), jpeg(image.convert("CMYK"), subsampling=0)
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"
    at = cmyk.index(b"\xff\xee")
    progressive = jpeg(image, progressive=True)
    scans = [found.start() for found in re.finditer(b"\xff\xda", progressive)]
    return {
        "grey": [jpeg(image.convert("L"), progressive=p) for p in (False, True)],
        "rgb": [plain[:2] + adobe + plain[2:]],
        "no jfif": [plain[:2] + plain[20:]],
        "quality": [jpeg(image, quality=q) for q in (1, 5, 50, 100)],
        "restart": [jpeg(image, restart_marker_blocks=n, **settings) for n in (1, 2, 7)],
        "cmyk": [cmyk, jpeg(image.convert("CMYK"), progressive=True)],
        "cmyk without adobe": [cmyk[:at] + cmyk[at + 16 :]],
        "ycck": [cmyk[: at + 15] + b"\2" + cmyk[at + 16 :]],
        "behind": [plain + b"garbage" * 99, plain + b"\xff" * 99, plain + plain],
        "fill": [plain[:2] + b"\xff\xff\xff" + plain[2:], plain[:2] + b"\xff\xd0" + plain[2:]],
        "odd sampling": [plain.replace(b"\1\x22\0", b"\1\x42\0", 1)],
        "scans are missing": [progressive[: scans[n]] + b"\xff\xd9" for n in (1, 4, 7)],
        "false header": [jpeg_with_a_false_header()],
        "damaged": [plain[:-200] + b"\xff\xd9", plain[:700] + b"\x55" * 9 + plain[709:]],
    }


@pytest.mark.parametrize("kind", kinds())
def test_other_kinds_of_jpeg_have_the_graphs_pixels(kind):
    for content in kinds()[kind]:
        np.testing.assert_array_equal(decode(content), as_the_graph(content))


def test_missing_scans_are_noticed():
    """The versions of libjpeg-turbo guess differently what such scans would hold."""
    whole = jpeg(noisy(61, 47), progressive=True)
    assert read_jpeg(whole).complete
    assert not read_jpeg(whole[: whole.rindex(b"\xff\xda")] + b"\xff\xd9").complete


def test_a_jpeg_that_no_decoder_reads_is_refused():
    content = jpeg(noisy(40, 30))
    assert content.count(b"\xff\xc0\0\x11\x08") == 1
    for frame in (b"\xff\xc1\0\x11\x0c", b"\xff\xc5\0\x11\x08"):  # 12 bits; hierarchical
        with pytest.raises(ImageFileError, match="broken image"):
            decode(content.replace(b"\xff\xc0\0\x11\x08", frame))


def test_a_cut_jpeg_that_is_large_is_refused_after_one_attempt(monkeypatch):
    content = jpeg(noisy(40, 30))[:-9]
    assert decode(content).shape == (30, 40, 3)
    monkeypatch.setattr(decode_module, "ATTEMPTS", 1 << 30)
    with pytest.raises(ImageFileError, match="takes more work"):
        decode(content)


def test_libjpeg_writes_nothing_to_stderr(capfd, tmp_path):
    """Neither in our decoder, nor in a graph that is given the bytes of files."""
    plain = jpeg(noisy(61, 47), restart_marker_blocks=1)
    damaged = [
        plain[:2] + b"junk" + plain[2:],
        plain[:-200],
        plain[:-200] + b"\xff\xd9",
        plain.replace(b"\xff\xc4\0", b"\xff\xc4\1", 1),
        plain.replace(b"\1\x22\0", b"\1\x42\0", 1)[:-200],
    ]
    runner = BytesRunner(tiny.tiny_inception(), "softmax")
    for content in damaged:
        for reads in (decode, lambda each: run_on_bytes(runner, each)):
            with contextlib.suppress(ImageFileError, ImageError):
                reads(content)
    os.write(2, b"something else\n")
    lines = capfd.readouterr().err.splitlines()
    log = re.compile(r"[IWE]\d{4} |\t ")  # TensorFlow's own, which is on in this process
    assert [line for line in lines if not log.match(line)] == ["something else"]


def test_a_graph_is_given_no_bytes_of_a_larger_image():
    runner = BytesRunner(tiny.tiny_inception(), "softmax")
    assert run_on_bytes(runner, jpeg(noisy(40, 30)), 1200).shape == (1, 10)
    buffer = io.BytesIO()
    noisy(40, 30).save(buffer, "PNG")  # which the op reads, too
    for content in (jpeg(noisy(40, 30)), buffer.getvalue(), jpeg_with_a_false_header()):
        with pytest.raises(ImageError, match="pixels, more than `max_pixels`"):
            run_on_bytes(runner, content, 1199)


def test_a_graph_is_given_no_gif_whose_pictures_fill_the_memory():
    """TensorFlow decodes all pictures of a GIF before it refuses those with several."""
    buffer = io.BytesIO()
    Image.new("P", (500, 400)).save(buffer, "GIF")
    content = buffer.getvalue()
    at = content.index(b",\0\0\0\0")
    picture = content[at:-1]
    check_bytes = decode_module.check
    check_bytes(content[:at] + 700 * picture + b";", 10**6)
    larger = picture[:5] + b"\xff\xff\xff\xff" + picture[9:]
    for pictures in (900 * picture, picture + larger):
        with pytest.raises(ImageFileError, match="more memory to decode"):
            check_bytes(content[:at] + pictures + b";", 10**6)
    with pytest.raises(ImageFileError, match="too many parts"):
        check_bytes(content[:at] + picture[:11] + b"\1\0" * 10**6 + b"\0;", 10**6)


def test_a_graph_is_given_no_image_of_more_memory_than_our_own_decoder_takes():
    """A graph holds float32, too: 15 bytes a pixel, of which 8 and a gigabyte are granted."""
    content = png_of_claimed_size(15_000, 12_000)
    with pytest.raises(ImageFileError, match="more memory to decode"):
        decode_module.check(content, 200_000_000)


# -- PNG: every colour type and depth ----------------------------------------------------------

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
ALL_DEPTHS = {GREY: (1, 2, 4, 8, 16), PALETTE: (1, 2, 4, 8)}


def png(values, colour, depth, *chunks):
    """A PNG of samples, int [height, width, channels], by its specification."""
    height, width, channels = values.shape
    big = values.astype(">u2").view(np.uint8).reshape(height, width * channels, 2)
    bits = np.unpackbits(big, axis=2)[:, :, 16 - depth :].reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    header = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, png_chunk(b"IEND", b"")])


def over_white(colours, alpha):
    """Colours float [h, w, 1 or 3] and alpha float [h, w, 1], both 0..1, as 0..255 on white."""
    return np.broadcast_to(255 * (colours * alpha + 1 - alpha), (*alpha.shape[:2], 3))


PNG_KINDS = [
    (colour, depth, clear)
    for colour in CHANNELS
    for depth, clear in itertools.product(ALL_DEPTHS.get(colour, (8, 16)), (False, True))
    if not (clear and colour in (GREY_ALPHA, RGBA))
]


@pytest.mark.parametrize(("colour", "depth", "clear"), PNG_KINDS)
def test_png(colour, depth, clear):
    """`clear`: with tRNS. OpenCV is asked where it does what the specification says."""
    top = (1 << depth) - 1
    values = RNG.integers(0, top + 1, (9, 13, CHANNELS[colour]))
    values[0, 0] = top  # so that white is not taken for the white of fewer bits
    chunks, alpha = [], np.ones((9, 13, 1))
    colours = values / top
    if colour == PALETTE:
        palette = RNG.integers(0, 256, (top + 1, 3))
        alphas = RNG.integers(0, 256, top + 1) if clear else np.full(top + 1, 255)
        chunks = [png_chunk(b"PLTE", palette.astype(np.uint8).tobytes())]
        chunks += [png_chunk(b"tRNS", alphas.astype(np.uint8).tobytes())] * clear
        colours, alpha = palette[values[:, :, 0]] / 255, alphas[values] / 255
    elif clear:
        one = values[2, 3]
        chunks = [png_chunk(b"tRNS", one.astype(">u2").tobytes())]
        alpha = (values != one).any(axis=2, keepdims=True).astype(float)
    elif colour in (GREY_ALPHA, RGBA):
        colours, alpha = colours[:, :, :-1], colours[:, :, -1:]
    content = png(values, colour, depth, *chunks)
    found = decode(content).astype(float)
    assert np.abs(found - over_white(colours, alpha)).max() <= 2
    if not (clear and colour == GREY):  # OpenCV ignores that
        assert np.abs(found - by_opencv(content)).max() <= 2


def by_opencv(content):
    """float [height, width, 3], 0..255, RGB over white, as OpenCV decodes it."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    pixels = pixels / (65535 if pixels.dtype == np.uint16 else 255)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    has_alpha = pixels.shape[2] in (2, 4)
    alpha = pixels[:, :, -1:] if has_alpha else np.ones_like(pixels[:, :, :1])
    return over_white((pixels[:, :, :-1] if has_alpha else pixels)[:, :, ::-1], alpha)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_grey_is_scaled_by_its_significant_bits(bits):
    values = np.arange(64).reshape(8, 8, 1) * ((1 << bits) - 1) // 63
    expected = np.repeat(np.round(values / ((1 << bits) - 1) * 255), 3, axis=2)
    assert np.abs(decode(png(values, GREY, 16)) - expected).max() <= 1
    buffer = io.BytesIO()
    Image.fromarray(values[:, :, 0].astype(np.uint16)).save(buffer, "TIFF")
    assert np.abs(decode(buffer.getvalue()) - expected).max() <= 1


def test_a_dark_picture_of_16_bits_is_not_white():
    assert decode(png(np.full((4, 4, 1), 0), GREY, 16)).max() == 0


# -- TIFF --------------------------------------------------------------------------------------


def tiff(pixels, **settings):
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(
        buffer, "TIFF", **settings
    )
    return buffer.getvalue()


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK"])
def test_tiff(mode, compression):
    image = noisy(37, 29).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(noisy(37, 29, "L"))
    content = tiff(image, compression=compression)
    expected = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    expected = np.asarray(Image.alpha_composite(white, expected).convert("RGB"))
    np.testing.assert_array_equal(decode(content), expected)
    if mode in ("L", "RGB"):  # OpenCV takes alpha for multiplied already
        assert np.abs(decode(content) - by_opencv(content)).max() <= 1


@pytest.mark.parametrize("top", [1, 255, 65535, 1e6])
def test_float_tiff(top):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    values = (grey / 255 * top).astype(np.float32)
    values[0, 0] = np.nan
    assert np.abs(decode(tiff(values)) - grey[:, :, None].astype(int)).max() <= 1


def test_tiff_in_which_zero_is_white():
    """TIFF 6.0, PhotometricInterpretation 0: of 8 and of 16 bits."""
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        grey = (np.linspace(0, 1, 64).reshape(8, 8) * top).astype(dtype)
        content, field = tiff(grey), struct.pack("<2HIHH", 262, 3, 1, 1, 0)
        assert field in content
        found = decode(content.replace(field, struct.pack("<2HIHH", 262, 3, 1, 0, 0)))
        assert found[0, 0, 0] == 255
        assert found[7, 7, 0] == 0


def test_a_picture_of_several_strips_is_converted_as_in_one(monkeypatch):
    deep, clear = noisy(40, 30, "I;16"), noisy(40, 30).convert("RGBA")
    clear.putalpha(noisy(40, 30, "L"))
    for image in (deep, clear, noisy(40, 30, "CMYK")):
        content = tiff(image)
        whole = decode(content)
        with monkeypatch.context() as patch:
            patch.setattr(decode_module, "STRIP", 97)
            np.testing.assert_array_equal(decode(content), whole)


def test_colour_profiles_are_ignored():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = noisy(40, 30)
    assert (decode(tiff(image, icc_profile=profile)) == np.asarray(image)).all()
    np.testing.assert_array_equal(decode(jpeg(image, icc_profile=profile)), decode(jpeg(image)))
