"""formats.py, jpeg.py, tags.py, bounds.py: files that cost more than their pixels are refused."""

import contextlib
import io
import os
import re
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, features

from retraining.photos.avif import coded_pixels
from retraining.photos.bounds import ImageFileError, NotAnImageError, check_memory
from retraining.photos.decode import check, decode
from retraining.photos.exif_time import taken_at
from retraining.photos.folder import FolderSource, look_at_image
from retraining.photos.formats import FORMATS, sniff
from retraining.photos.jpeg import read_jpeg
from retraining.photos.tags import exif_orientation
from retraining.photos.thumbnails import make_thumbnail


def encoded(image, format_, **settings):
    buffer = io.BytesIO()
    image.save(buffer, format_, **settings)
    return buffer.getvalue()


def picture(width=40, height=24):
    down, across = np.mgrid[0:height, 0:width]
    channels = [down * 255 // height, across * 255 // width, 0 * down + 90]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def jpeg(**settings):
    return encoded(picture(), "JPEG", **settings)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def box(kind, content):
    return struct.pack(">I", 8 + len(content)) + kind + content


# -- only these formats, and no program beside us ----------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def iptc(content):
    """A file that Pillow's IPTC plugin takes, with another image inside."""

    def field(record, number, data):
        return bytes((0x1C, record, number)) + struct.pack(">H", len(data)) + data

    head = field(3, 60, b"\x01\x00") + field(3, 20, b"\0\x0a") + field(3, 30, b"\0\x0a")
    return head + field(3, 120, b"\x01") + field(8, 10, content)


HOSTILE = {
    "eps": EPS,
    "eps in iptc": iptc(EPS),
    "png in iptc": iptc(encoded(picture(), "PNG")),
    "wmf": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(40),
    "pdf": b"%PDF-1.4 xx",
    "plain ppm": b"P3 2 2 255\n" + b"1 " * 12,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_other_formats_are_no_images(tmp_path, kind):
    (tmp_path / "a.jpg").write_bytes(HOSTILE[kind])
    with pytest.raises(NotAnImageError):
        decode(HOSTILE[kind])
    with pytest.raises(NotAnImageError):
        look_at_image(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize("format_", ["TGA", "ICO", "ICNS", "PCX", "SGI", "DDS", "IM", "MSP"])
def test_formats_with_costs_that_their_headers_hide_are_not_read(format_):
    content = encoded(picture(64, 64).convert("1" if format_ == "MSP" else "RGB"), format_)
    with pytest.raises(NotAnImageError):
        decode(content)


def test_each_format_that_is_read_is_found_by_its_own_bytes():
    Image.init()
    for format_ in (each.name for each in FORMATS):
        if format_ in Image.SAVE:
            kind = sniff(encoded(picture(64, 64), format_)[:32])
            assert kind is not None
            assert kind.name == format_


started = []
sys.addaudithook(
    lambda event, _: (
        started.append(event)
        if re.match(r"subprocess\.|os\.(system|exec|posix_spawn|spawn|fork|startfile)|pty\.", event)
        else None
    )
)


def test_decoding_starts_no_program(tmp_path):
    """Each way to the pixels, on files that make some decoder of Pillow start one."""
    contents = [*HOSTILE.values(), *(encoded(picture(), name) for name in ("PNG", "TIFF", "GIF"))]
    started.clear()
    for number, content in enumerate([*contents, jpeg(), jpeg()[:-200]]):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(content)
        for reads in (
            lambda: decode(content),  # noqa: B023
            lambda: check(content, 1 << 20),  # noqa: B023
            lambda: look_at_image(str(path)),  # noqa: B023
        ):
            with contextlib.suppress(ImageFileError):
                reads()
        make_thumbnail(str(path))
        with open(path, "rb") as file:
            taken_at(file)
    assert started == []


# -- the decoder's own idea of the size --------------------------------------------------------


def jpeg_with_a_false_header():
    """300 x 200 pixels for libjpeg, 40 x 24 for a reader that gives RST0 a length."""
    small, large = jpeg(), encoded(picture(300, 200), "JPEG")
    frame = re.compile(rb"\xff\xc0.{17}", re.DOTALL)
    end = frame.search(large).end()
    false = frame.search(small)[0]
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(false)) + false
    to_false = 2 + end - 2 + 4
    restart = b"\xff\xd0" + struct.pack(">H", to_false)
    return large[:2] + restart + large[2:end] + comment + large[end:]


def test_the_header_of_a_jpeg_is_the_one_that_the_decoder_reads():
    content = jpeg_with_a_false_header()
    assert decode(content).shape == (200, 300, 3)
    header = read_jpeg(content)
    assert (header.width, header.height) == (300, 200)
    for look in (decode, check):
        with pytest.raises(ImageFileError, match="300 x 200 pixels, more than"):
            look(content, 40 * 24)


def webp_of_canvas(width, height):
    content = bytearray(encoded(picture().convert("RGBA"), "WEBP", xmp=b"x"))
    assert content[12:16] == b"VP8X"
    content[24:27], content[27:30] = (n.to_bytes(3, "little") for n in (width - 1, height - 1))
    return bytes(content)


def jpeg_2000_of_size(width, height):
    """The header of the file keeps its size; that of the codestream changes."""
    content = bytearray(encoded(picture(), "JPEG2000"))
    at = content.index(b"\xff\x4f\xff\x51") + 8
    content[at : at + 8] = struct.pack(">2I", width, height)
    return bytes(content)


@pytest.mark.parametrize("made", [webp_of_canvas, jpeg_2000_of_size])
def test_a_size_is_checked_before_the_decoder_takes_memory_for_it(made, monkeypatch):
    from retraining.photos import decode as module

    monkeypatch.setattr(module, "_open_as", None)
    with pytest.raises(ImageFileError, match="16000 x 15000 pixels, more than"):
        decode(made(16000, 15000))


def avif_of_claimed_size(content, width, height):
    """The boxes tell another size; the coded frames keep theirs."""
    content = bytearray(content)
    for found in re.finditer(b"ispe|tkhd", bytes(content)):
        at = found.end() + (4 if found[0] == b"ispe" else 88)
        shift = 0 if found[0] == b"ispe" else 16
        content[at : at + 8] = struct.pack(">2I", width << shift, height << shift)
    return bytes(content)


def avif_of_frames(images, **settings):
    return encoded(images[0], "AVIF", save_all=True, append_images=images[1:], **settings)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_the_frames_of_avif_files_are_measured():
    assert coded_pixels(encoded(picture(), "AVIF"), 1 << 30) == 40 * 24
    clear = picture().convert("RGBA")
    clear.putalpha(100)
    assert coded_pixels(encoded(clear, "AVIF"), 1 << 30) == 2 * 40 * 24
    moving = avif_of_frames([picture(), picture().transpose(Image.Transpose.ROTATE_180)])
    assert coded_pixels(moving, 1 << 30) == 64 * 32  # what the bits of its sizes allow
    for content in (encoded(picture(), "AVIF"), moving):
        false = avif_of_claimed_size(content, 4, 2)
        with pytest.raises(ImageFileError, match="40 x 24 pixels, more than"):
            decode(false, most=40 * 24 - 1)
        assert decode(false, most=40 * 24).shape == (2, 4, 3)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_data_in_another_place_is_measured():
    """In the file in two parts, each 64-bit; and in the `idat` box, by a list of version 2."""
    content = encoded(picture(), "AVIF")
    at = content.index(b"iloc")
    old = content[at - 4 : at - 4 + int.from_bytes(content[at - 4 : at], "big")]
    start, size = struct.unpack(">2I", old[-8:])
    for place, extents in ((0, [(start, 9), (start + 9, size - 9)]), (1, [(0, size)])):
        pairs = b"".join(struct.pack(">2Q", *pair) for pair in extents)
        item = struct.pack(">IHHH", 1, place, 0, len(extents)) + pairs
        new = box(b"iloc", b"\2\0\0\0\x88\0" + struct.pack(">I", 1) + item)
        meta = content[content.index(b"meta") + 4 : content.index(b"mdat") - 4].replace(old, new)
        data = content[start : start + size]
        if place:
            made = content[:32] + box(b"meta", meta + box(b"idat", data)) + box(b"mdat", b"")
        else:
            moved = 32 + 8 + len(meta) + 8 - start
            pairs_moved = b"".join(struct.pack(">2Q", a + moved, n) for a, n in extents)
            made = (
                content[:32] + box(b"meta", meta.replace(pairs, pairs_moved)) + box(b"mdat", data)
            )
        assert decode(made).shape == (24, 40, 3)
        assert coded_pixels(made, 1 << 30) == 40 * 24


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_of_large_frames_that_claims_to_be_small_is_refused():
    small = encoded(picture(), "AVIF")
    at = small.index(b"mdat") + 4
    assert small[at : at + 3] == b"\x12\0\x0a"  # a delimiter, then the sequence header
    reduced = f"{small[at + 4]:08b}{small[at + 5]:08b}"[:10]
    bits = reduced + f"{15:04b}{15:04b}{12_000 - 1:016b}{12_000 - 1:016b}"
    header = int(bits.ljust(56, "0"), 2).to_bytes(7, "big")
    false = small[: at + 2] + b"\x0a" + bytes([len(header)]) + header
    false = false.ljust(len(small), b"\0")
    with pytest.raises(ImageFileError, match="takes more memory to decode"):
        decode(false)
    with pytest.raises(ImageFileError, match="takes more memory to decode"):
        check(false, 200_000_000)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_pictures_that_share_their_data_are_refused():
    content = encoded(picture(), "AVIF")
    at = content.index(b"iloc")
    iloc = content[at + 4 : at + 26]
    many = box(b"iloc", iloc[:12] + b"\1\0" + iloc[14:] * 256)
    meta = content[content.index(b"meta") + 4 : content.index(b"mdat") - 4]
    meta = meta.replace(box(b"iloc", iloc), many)
    false = content[:32] + box(b"meta", meta) + content[content.index(b"mdat") - 4 :]
    with pytest.raises(ImageFileError, match="too many parts"):
        coded_pixels(false, 1 << 30)


def test_the_sizes_of_webp_files_are_read():
    for settings in ({}, {"lossless": True}, {"xmp": b"x"}):
        content = encoded(picture(33, 21), "WEBP", **settings)
        assert decode(content, most=33 * 21).shape == (21, 33, 3)
        with pytest.raises(ImageFileError, match="33 x 21 pixels"):
            decode(content, most=33 * 21 - 1)


# -- time and memory ---------------------------------------------------------------------------


def scan_bomb(scans):
    content = jpeg(progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + b"\xff\xd9"


def test_the_scans_of_a_jpeg_are_counted():
    assert read_jpeg(jpeg()).scans == 1
    assert read_jpeg(jpeg(progressive=True)).scans == 10
    assert read_jpeg(scan_bomb(300)).scans == 310
    assert read_jpeg(jpeg() + scan_bomb(9)).scans == 1  # a decoder reads no further


def test_a_jpeg_of_many_scans_is_refused():
    """As many as a file of 60 million pixels could have for 16.8 kB."""
    content = bytearray(scan_bomb(1500))
    at = re.search(rb"\xff\xc2", content).end() + 3
    content[at : at + 4] = struct.pack(">2H", 7500, 8000)
    with pytest.raises(ImageFileError, match="takes more work to decode"):
        decode(bytes(content))
    with pytest.raises(ImageFileError, match="takes more work to decode"):
        check(bytes(content), 200_000_000)


def test_memory_is_bounded_by_the_pixels_and_the_file():
    check_memory(100_000_000, 17, 200_000_000)
    check_memory(200_000_000, 8, 1_064_000_000)
    for pixels, each, size in ((130_000_000, 17, 0), (100_000_000, 17, 300_000_000)):
        with pytest.raises(ImageFileError, match="takes more memory to decode"):
            check_memory(pixels, each, size)


def pieces(count):
    """{kind: a file with so many parts that each take Pillow or libjpeg some time}"""
    png, gif = encoded(picture(), "PNG"), encoded(picture(), "GIF")
    blocks = b"!\xfe" + b"\x01x" * count + b"\0"
    at = 13 + 3 * (2 << (gif[10] & 7))
    return {
        "png": png[:33] + png_chunk(b"teSt", b"") * count + png[33:],
        "gif": gif[:at] + blocks + gif[at:],
        "jpeg": jpeg()[:2] + b"\xff\xfe\0\2" * count + jpeg()[2:],
    }


@pytest.mark.parametrize("kind", ["png", "gif", "jpeg"])
def test_a_file_of_many_small_parts_is_refused(kind):
    assert decode(pieces(1000)[kind]).shape == (24, 40, 3)
    with pytest.raises(ImageFileError, match="too many parts"):
        decode(pieces(20_000)[kind])


def test_tags_of_a_tiff_that_share_their_bytes_are_refused():
    """Each of 200 fields names the same megabyte as its value."""
    fields = [struct.pack("<2H2I", 50_000 + n, 7, 1 << 20, 0) for n in range(200)]
    content = encoded(picture(), "TIFF")
    at = struct.unpack("<I", content[4:8])[0]
    count = struct.unpack("<H", content[at : at + 2])[0]
    old = [content[at + 2 + 12 * n : at + 14 + 12 * n] for n in range(count)]
    moved = struct.pack("<H", count + 200) + b"".join([*old, *fields]) + bytes(4)
    content = content[:4] + struct.pack("<I", len(content)) + content[8:] + moved
    with pytest.raises(ImageFileError, match="too many parts"):
        decode(content + bytes(1 << 20))


TINY_BLOCKS = {"codeblock_size": (4, 4)}
TINY_PRECINCTS = {"precinct_size": (32, 32), "codeblock_size": (16, 16)}


@pytest.mark.parametrize("settings", [TINY_BLOCKS, TINY_PRECINCTS])
def test_jpeg_2000_of_tiny_blocks_is_refused_if_it_is_large(settings):
    """OpenJPEG takes a kilobyte for each."""
    assert decode(encoded(picture(64, 64), "JPEG2000", **settings)).shape == (64, 64, 3)
    large = bytearray(encoded(picture(64, 64), "JPEG2000", **settings))
    at = large.index(b"\xff\x4f\xff\x51") + 8
    for place in (at, at + 16):  # the image's size, and the tile's
        large[place : place + 8] = struct.pack(">2I", 14_500, 14_000)
    with pytest.raises(ImageFileError, match="too many parts"):
        decode(bytes(large), most=1 << 31)


def test_a_tiff_of_a_tile_far_larger_than_the_image_is_refused():
    def tiled(side, samples=1):
        data = zlib.compress(bytes(4096))
        tags = {256: 40, 257: 24, 258: 8, 259: 8, 262: 1, 277: samples, 322: side, 323: side}
        tags |= {324: 8, 325: len(data)}
        fields = b"".join(struct.pack("<2H2I", tag, 4, 1, tags[tag]) for tag in tags)
        return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + b"\x0a\0" + fields + bytes(4)

    assert decode(tiled(64)).shape == (24, 40, 3)
    with pytest.raises(ImageFileError, match="takes more memory to decode"):
        decode(tiled(40_000))


def test_jpeg_2000_of_several_tiles():
    for settings in ({"tile_size": (32, 32)}, {"quality_layers": [20, 5]}, {"irreversible": True}):
        assert decode(encoded(picture(100, 90), "JPEG2000", **settings)).shape == (90, 100, 3)


def test_a_run_length_bmp_is_bounded_since_python_decodes_it():
    small = encoded(picture().convert("P"), "BMP")
    head = bytearray(small[:-1])
    head[18:26] = struct.pack("<2i", 12_000, 12_000)
    head[30:34] = struct.pack("<I", 1)
    with pytest.raises(ImageFileError, match="takes more work to decode"):
        decode(bytes(head) + b"\1\0" * 5_000_000)


def test_a_file_without_a_size_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "empty.jpg").touch()
    os.symlink("/proc/kmsg", tmp_path / "kernel.jpg")
    monkeypatch.setattr("builtins.open", None)
    for name in ("empty.jpg", *(["kernel.jpg"] if os.path.exists("/proc/kmsg") else [])):
        with pytest.raises(NotAnImageError):
            look_at_image(str(tmp_path / name))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="this system has no /proc")
def test_no_more_is_read_than_a_files_size():
    assert FolderSource.read("/proc/self/status") == b""


def test_a_sparse_file_is_refused_by_its_size(tmp_path):
    with open(tmp_path / "a.bmp", "wb") as file:
        file.write(b"BM")
        file.truncate(1_500_000_000)
    with pytest.raises(ImageFileError, match="has 1500000000 bytes, more than any image"):
        look_at_image(str(tmp_path / "a.bmp"))


# -- tags --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", [1, 6, 8, 0, 9])
def test_the_orientation_in_an_exif_block(order, value):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    field = struct.pack(order + "2HI2H", 0x0112, 3, 1, value, 0)
    block = mark + struct.pack(order + "IH", 8, 1) + field + bytes(4)
    assert exif_orientation(block) == (value if value in range(1, 9) else 1)
    assert exif_orientation(b"Exif\0\0" + block) == exif_orientation(block)
    assert exif_orientation(block[:12]) is None
    assert exif_orientation(b"nothing") is None


def test_the_orientation_agrees_with_pillows():
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    block = bytearray(exif.tobytes()[6:])
    for _ in range(300):
        broken = bytearray(block)
        broken[rng.integers(8, len(broken))] = rng.integers(256)
        found, expected = exif_orientation(bytes(broken)), Image.Exif()
        try:
            expected.load(b"Exif\0\0" + bytes(broken))
            expected = expected.get(0x0112, 1)
        except Exception:
            continue
        assert (found or 1) == (expected if expected in range(1, 9) else 1)
