"""Makes small pictures of photos for the report and TensorBoard."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from retraining.photos.decode import opaque, silence_pillow
from retraining.photos.reader import read_file

SIDE = 112  # pixels of the longer side
QUALITY = 70  # of the JPEG; about 3 kB each


class Thumbnails:
    """Makes the thumbnail of each path once; None for photos that cannot be read."""

    def __init__(self) -> None:
        self._made: dict[str, bytes | None] = {}

    def of(self, paths: Sequence[str]) -> dict[str, bytes | None]:
        """Returns {path: JPEG bytes or None}, made on threads."""
        missing = list(dict.fromkeys(path for path in paths if path not in self._made))
        with ThreadPoolExecutor() as pool:
            made = pool.map(make_thumbnail, missing)
            self._made.update(zip(missing, made, strict=True))
        return {path: self._made[path] for path in paths}


def make_thumbnail(path: str) -> bytes | None:
    """Returns JPEG bytes of the photo, turned by its EXIF orientation, or None."""
    from PIL import Image, ImageOps

    silence_pillow()
    try:
        with Image.open(io.BytesIO(read_file(path, max_pixels=None))) as opened:
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # decodes a large JPEG at a fraction
            image = ImageOps.exif_transpose(opened)
            image.thumbnail((SIDE, SIDE))
            output = io.BytesIO()
            opaque(image).save(output, "JPEG", quality=QUALITY, optimize=True)
    except Exception:  # Pillow's decoders raise many kinds of error on broken files
        return None
    return output.getvalue()
