"""Writes the HEIC files of the tests, from a drawing; needs pillow-heif, which can encode.

pip install pillow-heif
python tests/photos/make_heic.py
"""

from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

FOLDER = Path(__file__).with_name("heic")
ORIENTATION = 0x0112


def picture(width=64, height=40):
    """Red grows downwards, and green to the right."""
    down, across = np.mgrid[0:height, 0:width]
    channels = [down * 255 // height, across * 255 // width, 0 * down + 90]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def save(name, image, **settings):
    image.save(FOLDER / f"{name}.heic", "HEIF", **({"quality": 80} | settings))


def turned(orientation):
    """The EXIF block of an orientation; pillow-heif writes `irot` and `imir` boxes for it, too."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def main():
    pillow_heif.register_heif_opener()
    FOLDER.mkdir(exist_ok=True)
    plain = picture()
    save("plain", plain)
    for orientation in (3, 6, 7):
        save(f"turned_{orientation}", plain, exif=turned(orientation))
    save("grid", picture(160, 100), tile_size=64)
    save("grid_turned_6", picture(160, 100), tile_size=64, exif=turned(6))
    save("large", Image.new("RGB", (1024, 512), (90, 90, 90)))
    save("grey", plain.convert("L"))
    clear = plain.convert("RGBA")
    clear.paste((0, 0, 0, 0), (32, 0, 64, 40))
    save("alpha", clear)
    others = {"save_all": True, "append_images": [plain.transpose(Image.Transpose.ROTATE_180)]}
    save("second_of_two", plain, primary_index=1, **others)
    deep = np.asarray(plain).astype("<u2") * 257
    made = pillow_heif.from_bytes("RGB;16", plain.size, deep.tobytes())
    made.save(FOLDER / "ten_bits.heic", quality=80)


if __name__ == "__main__":
    main()
