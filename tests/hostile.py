"""Files that nobody should have to find in a folder of photos, made from a good JPEG."""

import io
import os
import struct
import zlib

from PIL import Image


def png_bytes():
    buffer = io.BytesIO()
    Image.new("RGB", (50, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def png_of_claimed_size(width, height):
    content = bytearray(png_bytes())
    content[16:24] = struct.pack(">2I", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def jpeg_of_claimed_size(jpeg, width, height):
    at = 2
    while jpeg[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[: at + 5] + struct.pack(">2H", height, width) + jpeg[at + 9 :]


def contents(jpeg, rng):
    """{kind: bytes} of files that are no readable image; `rng` is a random.Random."""
    return {
        "empty": b"",
        "text": b"hello world",
        "page": b"<!DOCTYPE html><html><body>404</body></html>",
        "cut jpeg": jpeg[: jpeg.index(b"\xff\xda") + 20],
        "jpeg header": b"\xff\xd8\xff\xe0 nothing",
        "cut png": png_bytes()[:40],
        "png bomb": png_of_claimed_size(60_000, 60_000),
        "jpeg bomb": jpeg_of_claimed_size(jpeg, 65_500, 65_500),
        "zeros": bytes(5000),
        "noise": b"\x07" + rng.randbytes(4000),
        "png of noise": b"\x89PNG\r\n\x1a\n" + rng.randbytes(300),
        "gif of noise": b"GIF89a" + rng.randbytes(3),
        "tiff of noise": b"II*\x00" + rng.randbytes(200),
        "webp of noise": b"RIFF\x10\0\0\0WEBP" + rng.randbytes(50),
        "bmp of noise": b"BM" + rng.randbytes(60),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "pdf": b"%PDF-1.4 xx",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "video": b"\0\0\0 ftypisom" + rng.randbytes(100),
        "archive": b"PK\3\4" + rng.randbytes(100),
    }


NAMES = (
    "plain {}.jpg",
    "quo'te\" {}.png",
    "new\nline {}.jpg",
    "tab\t{}.jpg",
    "-dash {}.jpg",
    "ünï {}.gif",
    "\udcff\udcfe {}.jpg",
    "UPPER {}.JPEG",
    "back\\slash {}.jpg",
    "$(touch x) {}.jpg",
)


def put_special(path, number):
    """Puts what is no regular file, or too large, at `path`; its kind."""
    kind = ("pipe", "link to itself", "link to nowhere", "huge")[number % 4]
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to itself":
        os.symlink(os.path.basename(path), path)
    elif kind == "link to nowhere":
        os.symlink("nowhere", path)
    else:
        with open(path, "wb") as file:  # a sparse file
            file.write(b"BM")
            file.truncate(20 << 30)
    return kind


def mix_in(folder, count, rng):
    """Puts `count` hostile files into the class folders of `folder`; returns {path: kind}."""
    classes = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())
    good = [
        os.path.join(place, name)
        for place in classes
        for name in sorted(os.listdir(place))
        if name.endswith(".jpg")
    ]
    put = {}
    for number in range(count):
        path = os.path.join(rng.choice(classes), NAMES[number % len(NAMES)].format(number))
        if number % 6 == 5:
            put[path] = put_special(path, number // 6)
            continue
        with open(rng.choice(good), "rb") as file:
            kinds = contents(file.read(), rng)
        put[path] = list(kinds)[number % len(kinds)]
        with open(path, "wb") as file:
            file.write(kinds[put[path]])
    return put
