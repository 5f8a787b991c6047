"""Makes small pictures of photos for the report and TensorBoard."""

import io
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from retraining.errors import RetrainingError
from retraining.photos.bounds import MAX_PIXELS, ImageFileError
from retraining.photos.decode import decoded
from retraining.photos.reader import read_file

SIDE = 112  # pixels of the longer side
QUALITY = 70  # of the JPEG; about 3 kB each


class Thumbnails:
    """Makes the thumbnail of each path once; None for photos that cannot be read."""

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        """Reads no photo of more than `max_pixels`."""
        self._max_pixels = max_pixels
        self._made: dict[str, bytes | None] = {}

    def of(self, paths: Sequence[str]) -> dict[str, bytes | None]:
        """Returns {path: JPEG bytes or None}, made on threads."""
        missing = list(dict.fromkeys(path for path in paths if path not in self._made))
        with ThreadPoolExecutor() as pool:
            made = pool.map(make_thumbnail, missing, itertools.repeat(self._max_pixels))
            self._made.update(zip(missing, made, strict=True))
        return {path: self._made[path] for path in paths}


def make_thumbnail(path: str, max_pixels: int = MAX_PIXELS) -> bytes | None:
    """Returns JPEG bytes of the photo, turned by its EXIF orientation, or None."""
    from PIL import Image

    try:
        with decoded(read_file(path, max_pixels), max_pixels, least_side=2 * SIDE) as pixels:
            image = Image.fromarray(pixels)
            image.thumbnail((SIDE, SIDE))
    except (RetrainingError, ImageFileError):
        return None
    output = io.BytesIO()
    image.save(output, "JPEG", quality=QUALITY, optimize=True)
    return output.getvalue()
