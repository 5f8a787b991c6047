"""Makes small raw files (DNG) of a drawing; `tests/photos/test_raw.py` reads them."""

import struct

import numpy as np

TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 10: "ii"}
CFA, LOSSY, YCBCR = 32803, 7, 6
IDENTITY = [(int(row == column), 1) for row in range(3) for column in range(3)]
CAMERA = {
    271: (2, b"Test\0"),
    272: (2, b"Drawing\0"),
    50706: (1, [1, 4, 0, 0]),
    50707: (1, [1, 1, 0, 0]),
    50708: (2, b"Test Drawing\0"),
    50721: (10, IDENTITY),
    50728: (5, [(1, 1)] * 3),
    50778: (3, [21]),
}


def dng(width=64, height=48, preview=None, orientation=1):
    """A DNG whose red grows downwards; `preview` is (JPEG bytes, width, height)."""
    down, across = np.mgrid[0:height, 0:width]
    colours = down * 65535 // height, across * 65535 // width, 0 * down + 23000
    sensor = colours[1].astype("<u2")
    sensor[0::2, 0::2], sensor[1::2, 1::2] = colours[0][0::2, 0::2], colours[2][1::2, 1::2]
    out = bytearray(b"II*\0\0\0\0\0")
    data = sensor.tobytes()
    raw = picture(width, height, [16], 1, CFA, put(out, data), len(data))
    raw |= {33421: (3, [2, 2]), 33422: (1, [0, 1, 1, 2]), 50717: (4, [65535])}
    first = raw
    if preview:
        sub = directory(out, raw)
        content, *sides = preview
        first = picture(*sides, [8] * 3, LOSSY, YCBCR, put(out, content), len(content))
        first |= {254: (4, [1]), 330: (4, [sub])}
    out[4:8] = struct.pack("<I", directory(out, first | CAMERA | {274: (3, [orientation])}))
    return bytes(out)


def picture(width, height, bits, compression, meaning, at, size):
    sides = {254: (4, [0]), 256: (4, [width]), 257: (4, [height]), 278: (4, [height])}
    kind = {258: (3, bits), 259: (3, [compression]), 262: (3, [meaning]), 277: (3, [len(bits)])}
    return sides | kind | {273: (4, [at]), 279: (4, [size])}


def put(out, data):
    """Appends data at an even offset, which it returns."""
    out += bytes(len(out) % 2)
    out += data
    return len(out) - len(data)


def directory(out, tags):
    rows = []
    for tag, (type_, values) in sorted(tags.items()):
        if type_ == 2:
            data = values
        else:
            rationals = type_ in (5, 10)
            flat = [each for pair in values for each in pair] if rationals else values
            data = struct.pack(f"<{len(flat)}{TYPES[type_][0]}", *flat)
        inline = data if len(data) <= 4 else struct.pack("<I", put(out, data))
        rows.append(struct.pack("<HHI", tag, type_, len(values)) + inline.ljust(4, b"\0"))
    return put(out, struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4))
