"""raw.py, and decode.py on raw files and JPEG XL: what is read, and what is said of the rest."""

import contextlib
import io
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from retraining.graphs.preprocessing import DEVELOP, PREVIEW, Preprocessing, PreprocessingError
from retraining.photos.bounds import ImageFileError, MissingDecoderError
from retraining.photos.decode import decode, open_image, upright
from retraining.photos.formats import kind_of
from retraining.photos.raw import is_raw_tiff
from retraining.photos.reader import ImageReader
from tests.photos.dng import dng


def drawing(width, height):
    """Red grows downwards, and green to the right."""
    down, across = np.mgrid[0:height, 0:width]
    channels = [down * 255 // height, across * 255 // width, 0 * down + 90]
    return np.stack(channels, axis=2).astype(np.uint8)


def encoded(pixels, format_, **settings):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, **settings)
    return buffer.getvalue()


def preview(width, height, **settings):
    return encoded(drawing(width, height), "JPEG", quality=90, **settings), width, height


RAW = {"sensor": dng(), "small preview": dng(preview=preview(160, 120))}
RAW["preview"] = dng(preview=preview(720, 480))


@pytest.mark.parametrize("name", RAW)
def test_a_raw_file_is_told_from_a_tiff(name):
    assert kind_of(RAW[name]).name == "RAW"
    assert not is_raw_tiff(encoded(drawing(8, 8), "TIFF"))
    assert kind_of(encoded(drawing(8, 8), "TIFF")).name == "TIFF"


@pytest.mark.parametrize(
    "start",
    [
        b"II*\0\x10\0\0\0CR\x02\0",
        b"\0\0\0\x18ftypcrx ",
        b"FUJIFILMCCD-RAW 0201",
        b"IIRO",
        b"IIU\0",
    ],
)
def test_marks_of_cameras(start):
    assert kind_of(start.ljust(64, b"\0")).name == "RAW"


@pytest.mark.parametrize("name", RAW)
def test_without_the_extra_the_file_is_named_with_the_line_that_installs_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    said = "is a camera's raw file; to read it, run `pip install -r requirements-formats.txt`"
    with pytest.raises(MissingDecoderError, match=said):
        decode(RAW[name])


def test_a_large_preview_is_the_photo():
    pytest.importorskip("rawpy")
    found = decode(RAW["preview"])
    assert np.abs(found.astype(int) - drawing(720, 480)).mean() < 3


def test_the_preview_is_turned_once():
    pytest.importorskip("rawpy")
    exif = Image.Exif()
    exif[0x0112] = 6
    expected = upright(drawing(720, 480), 6)
    for settings in ({}, {"exif": exif}):
        content = dng(preview=preview(720, 480, **settings), orientation=6)
        assert np.abs(decode(content).astype(int) - expected).mean() < 3


@pytest.mark.parametrize("name", ["sensor", "small preview"])
def test_without_a_large_preview_the_file_is_developed(name):
    pytest.importorskip("rawpy")
    found = decode(RAW[name])
    assert found.shape == (48, 64, 3)
    assert found[40, 4, 0] > found[4, 4, 0] + 100
    assert found[4, 60, 1] > found[4, 4, 1] + 100


def test_a_raw_file_that_is_developed_is_bounded_by_the_sensors_pixels():
    pytest.importorskip("rawpy")
    with pytest.raises(ImageFileError, match="64 x 48 pixels, more than"):
        decode(RAW["sensor"], most=64 * 48 - 1)
    with pytest.raises(ImageFileError, match="720 x 480 pixels, more than"):
        decode(RAW["preview"], most=720 * 480 - 1)


def test_broken_raw_files_are_refused_in_words():
    pytest.importorskip("rawpy")
    for content in (RAW["sensor"], RAW["preview"]):
        rng = np.random.default_rng(0)
        for _ in range(40):
            damaged = bytearray(content)
            for at in rng.integers(len(content), size=3):
                damaged[at] ^= 1 << int(rng.integers(8))
            with contextlib.suppress(ImageFileError):
                assert decode(bytes(damaged), most=1 << 20).shape[2] == 3
    with pytest.raises(ImageFileError, match="is a broken image"):
        decode(b"FUJIFILMCCD-RAW 0201".ljust(200, b"\0"))


def test_a_reader_takes_the_preview_or_develops():
    pytest.importorskip("rawpy")
    grey = encoded(np.full((480, 720, 3), 128, np.uint8), "JPEG"), 720, 480
    content = dng(preview=grey)
    usual = Preprocessing((48, 64), 0.0, 1.0)
    shown, seen = (
        ImageReader(replace(usual, raw=raw)).decode(content)[0] for raw in (PREVIEW, DEVELOP)
    )
    assert np.abs(shown - 128).max() < 2
    assert seen.std() > 20  # the drawing that the sensor saw
    np.testing.assert_array_equal(seen, ImageReader(usual).decode(dng())[0])


def test_how_raw_files_are_read_is_part_of_what_vectors_depend_on():
    usual = Preprocessing((48, 64), 0.0, 1.0)
    develop = replace(usual, raw=DEVELOP)
    assert develop.facts() == (*usual.facts(), ("raw", "develop"))
    assert Preprocessing.of(develop.describe()) == develop
    with pytest.raises(PreprocessingError, match="takes of raw files preview or develop, not look"):
        ImageReader(replace(usual, raw="look"))


def test_what_a_decoder_says_is_plain_text():
    pytest.importorskip("rawpy")
    for content in (b"FUJIFILMCCD-RAW 0201".ljust(200, b"\0"), b"BM".ljust(40, b"\0")):
        with pytest.raises(ImageFileError) as raised:
            decode(content)
        assert "b'" not in str(raised.value)
        assert "0x" not in str(raised.value)


# -- JPEG XL -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"])
def test_jpeg_xl_is_named(start):
    with pytest.raises(ImageFileError, match="is a JPEG XL image, which is not read; convert it"):
        decode(start + bytes(100))
    with pytest.raises(ImageFileError, match="JPEG XL"):
        open_image(io.BytesIO(start + bytes(100)))
