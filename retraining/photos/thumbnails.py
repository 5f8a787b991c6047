"""Small pictures of photos, for the report and TensorBoard."""

import io
from concurrent.futures import ThreadPoolExecutor

from retraining.photos.decode import opaque, silence_pillow
from retraining.photos.reader import read_file

SIDE = 112  # pixels of the longer side
QUALITY = 70  # of the JPEG; about 3 kB each


class Thumbnails:
    """JPEG bytes by path, each made once; None for what cannot be read."""

    def __init__(self, side=SIDE):
        self._side, self._made = side, {}

    def of(self, paths):
        """{path: JPEG bytes or None}, made on threads."""
        missing = list(dict.fromkeys(path for path in paths if path not in self._made))
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda path: make_thumbnail(path, self._side), missing)
            self._made.update(zip(missing, made, strict=True))
        return {path: self._made[path] for path in paths}


def make_thumbnail(path, side=SIDE):
    """JPEG bytes of the photo as a person sees it (EXIF orientation honoured), or None."""
    from PIL import Image, ImageOps

    silence_pillow()
    try:
        with Image.open(io.BytesIO(read_file(path, max_pixels=None))) as image:
            image.draft("RGB", (2 * side, 2 * side))  # decodes a large JPEG at a fraction
            image = ImageOps.exif_transpose(image)
            image.thumbnail((side, side))
            output = io.BytesIO()
            opaque(image).save(output, "JPEG", quality=QUALITY, optimize=True)
    except Exception:  # Pillow's decoders raise many kinds of error on broken files
        return None
    return output.getvalue()
