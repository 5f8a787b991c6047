"""exif_time.py: when a photo was taken."""

import io
import math

import pytest
from PIL import Image

from retraining.photos.exif_time import taken_at


def photo(kind="JPEG", time=None, fraction=None):
    """An image file whose EXIF block has the time and the fraction of the second."""
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    for tag, value in ((0x9003, time), (0x9291, fraction)):
        if value is not None:
            exif.get_ifd(0x8769)[tag] = value
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, kind, exif=exif.tobytes())
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_time_is_read_from_all_kinds_of_files(kind):
    assert taken_at(photo(kind, time="1970:01:02 00:00:03")) == 86_403


def test_the_fraction_of_the_second_counts():
    assert taken_at(photo(time="1970:01:01 00:00:03", fraction="25")) == 3.25
    assert taken_at(photo(time="1970:01:01 00:00:03", fraction="?")) == 3


@pytest.mark.parametrize("time", ["", "0000:00:00 00:00:00", "    :  :     :  :  ", "yesterday"])
def test_a_time_that_says_nothing_is_unknown(time):
    assert math.isnan(taken_at(photo(time=time)))


def test_files_without_exif_or_broken_are_unknown():
    assert math.isnan(taken_at(photo()))
    assert math.isnan(taken_at(io.BytesIO(b"no image")))
    content = bytearray(photo(time="1970:01:02 00:00:03").read())
    at = content.index(b"Exif\0\0") + 6
    content[at : at + 8] = b"\xff" * 8
    assert math.isnan(taken_at(io.BytesIO(content)))
