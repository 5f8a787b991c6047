"""heif.py, and decode.py on HEIC: pixels, bounds, and files that are broken."""

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retraining.photos.bounds import ImageFileError
from retraining.photos.decode import check, decode, open_image, upright
from retraining.photos.formats import HEAD, sniff
from retraining.photos.heif import MARGIN, coded_pixels
from retraining.photos.thumbnails import make_thumbnail

FOLDER = Path(__file__).with_name("heic")  # written by make_heic.py


def heic(name):
    return (FOLDER / f"{name}.heic").read_bytes()


def picture(width=64, height=40):
    """What the files show."""
    down, across = np.mgrid[0:height, 0:width]
    channels = [down * 255 // height, across * 255 // width, 0 * down + 90]
    return np.stack(channels, axis=2).astype(np.uint8)


def difference(found, expected):
    assert found.shape == expected.shape
    return np.abs(found.astype(int) - expected).mean()


EXPECTED = {
    "plain": picture(),
    "ten_bits": picture(),
    "grid": picture(160, 100),
    "second_of_two": picture()[::-1, ::-1],
    "grey": np.asarray(Image.fromarray(picture()).convert("L").convert("RGB")),
    **{f"turned_{n}": upright(picture(), n) for n in (3, 6, 7)},
    "grid_turned_6": upright(picture(160, 100), 6),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_primary_picture_upright(name):
    found = decode(heic(name))
    assert found.dtype == np.uint8
    assert difference(found, EXPECTED[name]) < 3


def test_transparency_is_over_white():
    found = decode(heic("alpha"))
    assert difference(found[:, :28], picture()[:, :28]) < 4
    assert (found[:, 36:] == 255).all()


def test_of_an_exif_orientation_without_its_box_nothing_is_turned():
    """ISO/IEC 23008-12: the boxes alone say how a picture is shown; EXIF is a note."""
    content = heic("turned_6").replace(b"irot", b"free")
    assert difference(decode(content), picture()) < 3


def test_the_content_decides_and_not_the_name(tmp_path):
    for name in ("a.jpg", "a.heic"):
        (tmp_path / name).write_bytes(heic("grid"))
        thumbnail = make_thumbnail(str(tmp_path / name))
        assert Image.open(io.BytesIO(thumbnail)).size == (112, 70)
    Image.fromarray(picture()).save(tmp_path / "b.heic", "JPEG")
    assert sniff((tmp_path / "b.heic").read_bytes()).name == "JPEG"
    assert difference(decode((tmp_path / "b.heic").read_bytes()), picture()) < 3


def test_the_brands_tell_heic_from_avif():
    def brands(main, *others):
        return (
            struct.pack(">I", 16 + 4 * len(others)) + b"ftyp" + main + bytes(4) + b"".join(others)
        )

    for start in (
        brands(b"heic"),
        brands(b"heix", b"mif1"),
        brands(b"mif1", b"heic"),
        brands(b"mif1", b"miaf", b"MiHB", b"heix"),
        brands(b"msf1", b"hevc"),
    ):
        assert sniff(start.ljust(HEAD, b"\0")).name == "HEIF"
    for start in (brands(b"avif"), brands(b"mif1", b"avif", b"miaf"), brands(b"mif1")):
        assert sniff(start.ljust(HEAD, b"\0")).name == "AVIF"
    assert sniff(brands(b"isom", b"heic").ljust(HEAD, b"\0")) is None


# -- broken files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "grid", "alpha"])
def test_a_file_that_ends_too_early_is_broken(name):
    content = heic(name)
    for length in [*range(40, len(content) - 1, 37), len(content) - 1]:
        with pytest.raises(ImageFileError, match="is a broken image"):
            decode(content[:length])


def test_damaged_files_are_read_or_refused_in_words():
    rng = np.random.default_rng(0)
    refused = 0
    for name in ("plain", "grid_turned_6", "alpha", "ten_bits"):
        for _ in range(60):
            content = bytearray(heic(name))
            for at in rng.integers(len(content), size=rng.integers(1, 5)):
                content[at] ^= 1 << int(rng.integers(8))
            try:
                assert decode(bytes(content), most=1 << 20).shape[2] == 3
            except ImageFileError:
                refused += 1
    assert 60 < refused < 240


def test_a_file_without_a_picture_is_refused():
    for content in (heic("plain")[:28], heic("plain").replace(b"meta", b"free")):
        with pytest.raises(ImageFileError, match="it holds no picture"):
            decode(content)


@pytest.mark.parametrize("kind", [b"iovl", b"av01", b"unci"])
def test_pictures_of_other_kinds_are_refused(kind):
    with pytest.raises(ImageFileError, match="of a kind that is not read"):
        decode(heic("plain").replace(b"hvc1", kind))


def test_a_box_that_comes_twice_is_refused():
    content = heic("plain")
    start = content.index(b"meta") - 4
    again = content[start : start + int.from_bytes(content[start : start + 4], "big")]
    with pytest.raises(ImageFileError, match="its structure is damaged"):
        decode(content + again)


# -- what decoding takes -----------------------------------------------------------------------


def of_size(content, width, height, boxes=slice(None)):
    """The `ispe` boxes tell another size; the coded frames keep theirs."""
    content = bytearray(content)
    for found in list(re.finditer(b"ispe", bytes(content)))[boxes]:
        content[found.end() + 4 : found.end() + 12] = struct.pack(">2I", width, height)
    return bytes(content)


def tile(side):
    return (side + MARGIN) ** 2


def test_all_frames_that_a_picture_needs_are_counted():
    assert coded_pixels(heic("plain"), 1 << 30) == tile(64)  # coded as 64 x 64, then cropped
    assert coded_pixels(heic("second_of_two"), 1 << 30) == tile(64)
    assert coded_pixels(heic("alpha"), 1 << 30) == 2 * tile(64)
    assert coded_pixels(heic("grid"), 1 << 30) == 6 * tile(64)


def test_more_pixels_than_are_allowed_are_refused():
    content = heic("grid")
    assert decode(content, most=16_000).shape == (100, 160, 3)
    for look in (decode, check):
        with pytest.raises(ImageFileError, match="160 x 100 pixels, more than"):
            look(content, 15_999)


def test_large_tiles_of_a_small_picture_are_refused():
    content = of_size(heic("grid"), 8192, 8192, boxes=slice(1, None))
    for look in (decode, check):
        with pytest.raises(ImageFileError, match="takes more memory to decode"):
            look(content, 200_000_000)


@pytest.mark.parametrize("size", [(4, 4), (200, 90)])
def test_a_size_that_the_frame_does_not_have_is_refused(size):
    with pytest.raises(ImageFileError, match="is a broken image"):
        decode(of_size(heic("plain"), *size))


def test_the_decoder_refuses_a_frame_that_is_larger_than_its_boxes_say():
    """heif.py does not read the coded data; this is what bounds them."""
    assert decode(heic("large")).shape == (512, 1024, 3)
    with pytest.raises(ImageFileError, match="exceeds the maximum image size"):
        decode(of_size(heic("large"), 64, 64))


def with_items(content, entries):
    """A file whose `iloc` box has these entries, too."""
    meta, at = content.index(b"meta") - 4, content.index(b"iloc") - 4
    length, size = (int.from_bytes(content[place : place + 4], "big") for place in (meta, at))
    old = content[at : at + size]
    count = int.from_bytes(old[14:16], "big") + len(entries)
    new = struct.pack(">I", size + len(b"".join(entries))) + old[4:14] + struct.pack(">H", count)
    new += old[16:] + b"".join(entries)
    head = struct.pack(">I", length + len(new) - size)
    return content[:meta] + head + content[meta + 4 : at] + new + content[at + size :]


def test_items_that_share_their_data_are_refused():
    """A hundred pieces of metadata that each are half of the file."""
    content = heic("plain").ljust(1 << 16, b"\0")
    entries = [struct.pack(">2HIH2I", 100 + n, 0, 0, 1, 0, 1 << 15) for n in range(100)]
    for look in (decode, lambda given: open_image(io.BytesIO(given))):
        with pytest.raises(ImageFileError, match="too many parts"):
            look(with_items(content, entries))
