"""Compares the decoder with others: with TensorFlow's for JPEGs, with OpenCV's for other formats.

    pip install opencv-python-headless
    python benchmarks/decode_matrix.py

Generates some thousands of small files, and prints how many have the same pixels, bit for bit. The
JPEGs differ in subsampling, quality, progression, restart intervals, size, orientation and content.
Then prints the processor time of decoding a large JPEG, in turn with TensorFlow's op and Pillow.
"""

import io
import itertools
import struct
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from retraining.photos.decode import decode, upright

# isort: split
import cv2
import numpy as np  # after retraining, which sets its threads
import tensorflow as tf
from PIL import Image, ImageFile

SAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
    "grey": None,
}
SIZES = ((1, 1), (8, 8), (9, 17), (33, 16), (63, 65), (200, 133))  # width, height
QUALITIES, RESTARTS = (1, 30, 75, 95, 100), (0, 1, 7)
ROUNDS = 21
ImageFile.MAXBLOCK = 1 << 20  # Pillow's buffer is too small for noise otherwise


def main():
    counts = Counter()
    for kind, content, orientation in jpegs():
        expected = upright(by_tensorflow(content), orientation)
        counts[kind, np.array_equal(decode(content), expected)] += 1
    print("| JPEG, beside TensorFlow | equal | different |\n|---|--:|--:|")
    for kind in dict.fromkeys(kind for kind, _ in counts):
        print(f"| {kind} | {counts[kind, True]} | {counts[kind, False]} |")
    print("\n| format, beside OpenCV | equal | different | largest difference |\n|---|--:|--:|--:|")
    for kind, contents in other_files():
        found = [int(np.abs(decode(c).astype(int) - by_opencv(c)).max()) for c in contents]
        print(f"| {kind} | {found.count(0)} | {len(found) - found.count(0)} | {max(found)} |")
    speed()


def pictures(width, height, bands=3):
    """Yields uint8 [height, width, bands]: noise, a gradient, edges."""
    rng = np.random.default_rng(0)
    yield rng.integers(0, 256, (height, width, bands), np.uint8)
    down, across = np.mgrid[0:height, 0:width]
    slopes = (down * 255 // height, across * 255 // width, (down + across) % 256, 0 * down + 40)
    yield np.stack(slopes[:bands], axis=2).astype(np.uint8)
    yield np.stack([(down // 5 + across // 3 + n) % 2 * 255 for n in range(bands)], 2).astype("u1")


def jpegs():
    """Yields (kind, content, EXIF orientation) of each JPEG."""
    number = itertools.count()
    for size, quality, progressive in itertools.product(SIZES, QUALITIES, (0, 1)):
        for pixels, (kind, factor), restart in itertools.product(
            pictures(*size), SAMPLINGS.items(), RESTARTS
        ):
            flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
            flags += [cv2.IMWRITE_JPEG_RST_INTERVAL, restart]
            flags += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor] if factor else []
            content = cv2.imencode(".jpg", pixels if factor else pixels[:, :, 0], flags)[1]
            yield kind, *turned(content.tobytes(), next(number) % 9)
        for pixels in pictures(*size, 4):
            content = saved("JPEG", pixels, "CMYK", quality=quality, progressive=progressive)
            yield "CMYK", *turned(content, next(number) % 9)
            ycck = content.replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2")
            yield "YCCK", *turned(ycck, next(number) % 9)


def turned(content, orientation):
    """A JPEG with that EXIF orientation, 0 for none, and the orientation that holds."""
    field = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(field)) + b"Exif\0\0" + field
    return content[:2] + (segment if orientation else b"") + content[2:], orientation or 1


def saved(format_, pixels, mode=None, **settings):
    file = io.BytesIO()
    height, width, bands = pixels.shape
    mode = mode or {1: "L", 3: "RGB"}[bands]
    image = Image.frombytes(mode, (width, height), pixels.tobytes())
    image.save(file, format_, **settings)
    return file.getvalue()


def other_files():
    """Yields (kind, contents) of other formats."""
    for format_, settings in (
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 80}),
        ("AVIF", {"quality": 80}),
        ("AVIF", {"quality": 80, "subsampling": "4:4:4"}),
        ("JPEG2000", {}),
        ("GIF", {}),
    ):
        bands = (1,) if format_ == "GIF" else (1, 3)
        sizes = [size for size in SIZES if format_ != "JPEG2000" or min(size) > 32]
        yield (
            " ".join([format_, *map(str, settings.values())]),
            [saved(format_, p, **settings) for s in sizes for n in bands for p in pictures(*s, n)],
        )


def by_tensorflow(content):
    return tf.io.decode_jpeg(content, channels=3).numpy()


def by_opencv(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def by_pillow(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def speed():
    """Prints medians of the processor's seconds, and the ratios to ours."""
    pixels = cv2.GaussianBlur(next(pictures(2000, 1500)), (0, 0), 2)
    content, times = saved("JPEG", pixels, quality=90), {}
    for _, read in itertools.product(range(ROUNDS), (decode, by_tensorflow, by_pillow)):
        started = time.process_time()
        read(content)
        times.setdefault(read.__name__, []).append(time.process_time() - started)
    ours = np.median(times["decode"])
    print(f"\nspeed, a JPEG of 2000 x 1500 pixels: {ours * 1000:.1f} ms of a processor", end="")
    for name, each in list(times.items())[1:]:
        print(f"; {name} {np.median(each) / ours:.2f} times as long", end="")
    print()


if __name__ == "__main__":
    main()
