"""The largest and dearest image files that are accepted: seconds and peak memory of decoding each.

    python benchmarks/worst_images.py                 all, some 20 minutes and 6 GB of memory
    python benchmarks/worst_images.py --only PNG GIF

Prints a table, and exits with 1 if a file takes more than the bounds promise: ten seconds of one
core, and 1.5 GB and 8 bytes a pixel of memory (retraining/photos/bounds.py). Each file is about as
large as it may be, which is found by halving; stderr says why larger ones were not accepted. One
process makes a file, and another one decodes it. HEIF files need pillow-heif, which encodes them.
"""

import argparse
import importlib.util
import io
import os
import resource
import struct
import sys
import tempfile
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from retraining.photos import decode
from retraining.photos.bounds import WORK_PER_PIXEL, ImageFileError
from retraining.photos.decode import ATTEMPTS

# isort: split
import numpy as np  # after retraining, which sets its threads
from PIL import Image

SECONDS = 10
BASE, PER_PIXEL = 1_500_000_000, 8  # bytes
MOST = 200_000_000  # pixels
STEPS = 4  # of halving


def noise(width, height, bands=3):
    """uint8 [height, width, bands] of noise, a band of rows again and again."""
    rows = np.random.default_rng(0).integers(0, 256, (min(height, 64), width, bands), np.uint8)
    return np.tile(rows, (-(-height // len(rows)), 1, 1))[:height]


def plain(width, height, bands=3):
    return np.full((height, width, bands), 90, np.uint8)


def saved(pixels, format_, mode=None, **settings):
    height, width, bands = pixels.shape
    mode = mode or {1: "L", 3: "RGB", 4: "RGBA"}[bands]
    image = Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)
    file = io.BytesIO()
    image.save(file, format_, **settings)
    return file.getvalue()


def by_pillow(format_, fill=noise, bands=3, **settings):
    """What makes a file of a width and a height."""
    return lambda width, height: saved(fill(width, height, bands), format_, **settings)


def jpeg_of_scans(width, height):
    """A progressive JPEG of a quarter of the pixels, with the last scan as often as is accepted.

    The bound is a third of that of others, since three decoders try a file of so many scans.
    """
    width, height = width // 2, height // 2
    content = saved(plain(width, height), "JPEG", progressive=True, quality=20)
    last = content[content.rindex(b"\xff\xda") : -2]
    spare = WORK_PER_PIXEL * MOST / ATTEMPTS - 2 * width * height - 2 * len(content)
    count = int(spare / (width * height / 10 + 2 * len(last)))
    return content[:-2] + last * count + b"\xff\xd9"


def png(depth, colour, interlaced):
    """What makes a PNG of noise."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]

    def made(width, height):
        size = -(-width * samples * depth // 8)
        rng = np.random.default_rng(1)
        lines = [b"\4" + rng.bytes(size) for _ in range(8)]  # 4: Paeth, the dearest filter
        packer = zlib.compressobj(1)
        parts = [packer.compress(lines[row % 8]) for row in range(0 if interlaced else height)]
        for left, top, across, down in ADAM7 if interlaced else ():
            columns, rows = -(-(width - left) // across), -(-(height - top) // down)
            end = 1 + -(-columns * samples * depth // 8)
            parts += [packer.compress(lines[row % 8][:end]) for row in range(rows)]
        head = struct.pack(">2I5B", width, height, depth, colour, 0, 0, interlaced)
        palette = [(b"PLTE", bytes(range(256)) * 3), (b"tRNS", bytes(256))] if colour == 3 else []
        data = b"".join([*parts, packer.flush()])
        chunks = [(b"IHDR", head), *palette, (b"IDAT", data), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)

    return made


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
ADAM7 += ((0, 1, 1, 2),)


def chunk(kind, data):
    crc = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def raw_tiff(bits, sample_format, samples=1):
    """An uncompressed TIFF in one strip, as float and deep greyscale may come."""

    def made(width, height):
        size = width * height * samples * bits // 8
        tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 277: samples, 278: height}
        tags |= {273: 8, 279: size, 339: sample_format}
        fields = [struct.pack("<2H2I", tag, 4, 1, value) for tag, value in sorted(tags.items())]
        values = np.arange(1, 1 + size * 8 // bits, dtype=f"<{'uif'[sample_format - 1]}{bits // 8}")
        directory = struct.pack("<H", len(fields)) + b"".join(fields) + bytes(4)
        return b"II*\0" + struct.pack("<I", 8 + size) + values.tobytes() + directory

    return made


def tiff(compression, fill=noise, bands=3, **settings):
    return by_pillow("TIFF", fill, bands, compression=compression, **settings)


def animated(format_, **settings):
    """Two frames, of which only the first one is decoded."""

    def made(width, height):
        first = Image.fromarray(noise(width, height))
        file, settings_ = io.BytesIO(), {**settings, "save_all": True}
        first.save(file, format_, append_images=[first.rotate(180)], **settings_)
        return file.getvalue()

    return made


def run_length_bmp(width, height):
    """A BMP whose runs are one pixel each: Pillow unpacks these in Python."""
    palette = bytes(range(256)) * 4
    data = (b"\1\5" * width + b"\0\0") * height + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    start = 14 + len(head) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + head + palette + data


def ppm(bands, white=255):
    def made(width, height):
        head = f"P{6 if bands == 3 else 5} {width} {height} {white}\n".encode()
        return head + noise(width, height, bands * (2 if white > 255 else 1)).tobytes()

    return made


def heif(fill=noise, bands=3, **settings):
    def made(width, height):
        import pillow_heif

        pillow_heif.register_heif_opener()
        fast = {"enc_params": {"preset": "ultrafast"}, "quality": 50}
        return saved(fill(width, height, bands), "HEIF", **fast, **settings)

    return made


PNGS = {
    f"PNG {name}, {depth} bits{', interlaced' * interlaced}": png(depth, colour, interlaced)
    for name, colour, depths in (
        ("grey", 0, (1, 8, 16)),
        ("RGB", 2, (8, 16)),
        ("palette", 3, (1, 8)),
        ("grey + alpha", 4, (8, 16)),
        ("RGBA", 6, (8, 16)),
    )
    for depth in depths
    for interlaced in ((False, True) if depth == 16 else (False,))
}
TIFFS = {
    f"TIFF {name}": tiff(name, bands=1 if name.startswith("group") else 3)
    for name in (
        "raw",
        "packbits",
        "tiff_lzw",
        "tiff_adobe_deflate",
        "jpeg",
        "zstd",
        "lzma",
    )
}
HEIFS = {
    "HEIF noise": heif(),
    "HEIF plain": heif(plain),
    "HEIF plain 4:4:4": heif(plain, chroma=444),
    "HEIF RGBA": heif(bands=4),
    "HEIF of tiles": heif(tile_size=512),
}
FILES = {
    "JPEG noise": by_pillow("JPEG", quality=95, subsampling=0),
    "JPEG plain": by_pillow("JPEG", plain, quality=50),
    "JPEG progressive": by_pillow("JPEG", progressive=True, quality=90),
    "JPEG, most scans": jpeg_of_scans,
    "JPEG CMYK": by_pillow("JPEG", bands=4, mode="CMYK", quality=90),
    **PNGS,
    "GIF noise": by_pillow("GIF", bands=1),
    "GIF animated": animated("GIF"),
    "WebP lossy": by_pillow("WEBP", quality=90, method=0),
    "WebP lossless": by_pillow("WEBP", lossless=True, method=0),
    "WebP RGBA": by_pillow("WEBP", bands=4, quality=90, method=0),
    "WebP animated": animated("WEBP", method=0),
    **TIFFS,
    "TIFF LZW in one strip": tiff("tiff_lzw", strip_size=1 << 31),
    "TIFF RGBA": tiff("tiff_adobe_deflate", bands=4),
    "TIFF float": raw_tiff(32, 3),
    "TIFF 16 bits": raw_tiff(16, 1),
    "TIFF 32 bits": raw_tiff(32, 2),
    "BMP": by_pillow("BMP"),
    "BMP run-length": run_length_bmp,
    "AVIF noise": by_pillow("AVIF", quality=80, speed=10),
    "AVIF plain 4:4:4": by_pillow("AVIF", plain, speed=10, subsampling="4:4:4"),
    "AVIF RGBA": by_pillow("AVIF", bands=4, quality=50, speed=10),
    "JPEG 2000 lossless": by_pillow("JPEG2000"),
    "JPEG 2000 lossy": by_pillow("JPEG2000", irreversible=True, quality_layers=[20]),
    "JPEG 2000 plain": by_pillow("JPEG2000", plain),
    **(HEIFS if importlib.util.find_spec("pillow_heif") else {}),
    "PPM": ppm(3),
    "PGM 16 bits": ppm(1, 65535),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], help="how names of files begin")
    parser.add_argument("--most", type=int, default=MOST, help="pixels of the largest file")
    options = parser.parse_args()
    print("| file | bytes | pixels | seconds | MB | MB allowed |\n|---|--:|--:|--:|--:|--:|")
    over = []
    with tempfile.TemporaryDirectory(prefix="worst-") as folder:
        path = os.path.join(folder, "image")
        for name in FILES:
            if name.startswith(tuple(options.only)):
                over += [name] * (not measure(name, path, options.most))
    sys.exit(f"over the bounds: {', '.join(over)}" if over else 0)


def measure(name, path, most):
    """Prints the row of the largest accepted file; returns whether it keeps the bounds."""
    row, low, high, share = None, 0.0, 1.0, 1.0
    for _ in range(STEPS):
        side = int((most * share) ** 0.5)
        try:
            size = in_a_process(make, name, path, side)
            row, low = (size, *in_a_process(cost, path)), share
        except (ImageFileError, OSError, ValueError) as error:
            print(f"{name}: {side} x {side} {error}", file=sys.stderr)
            high = share
        if low == 1:
            break
        share = (low + high) / 2
    if row is None:
        print(f"| {name} | none is accepted | | | | |", flush=True)
        return True
    size, pixels, seconds, memory = row
    allowed = BASE + PER_PIXEL * pixels
    figures = f"{seconds:.1f} | {memory / 1e6:,.0f} | {allowed / 1e6:,.0f}"
    print(f"| {name} | {size:,} | {pixels:,} | {figures} |", flush=True)
    return seconds <= SECONDS and memory <= allowed


def in_a_process(function, *arguments):
    """What a function returns that runs in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def make(name, path, side):
    """Writes a file of a kind; returns its bytes. Raises ImageFileError if it is not accepted."""
    content = FILES[name](side, side)
    decode.check(content, MOST)
    return Path(path).write_bytes(content)


def cost(path):
    """(pixels, seconds of CPU, peak bytes of this process) of decoding a file."""
    content = Path(path).read_bytes()
    started = time.process_time()
    height, width, _ = decode.decode(content).shape
    seconds = time.process_time() - started
    unit = 1 if sys.platform == "darwin" else 1024
    return height * width, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
