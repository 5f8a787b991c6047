"""Fetches remote files once each: one reading gives both key and pixels."""

import hashlib
import io
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.store import Changed
from retraining.photos.bounds import NO_IMAGE
from retraining.photos.formats import begins_like_image
from retraining.photos.reader import ImageError, ImageReader, read_file
from retraining.photos.registry import pixels_version

FETCHERS = 16  # files fetched at a time: object stores are slow to answer, but answer in parallel
FETCHED_AHEAD = 32  # files that wait to be decoded


def changed_pixels(names: Mapping[str, str]) -> Changed:
    """Returns what tells which vectors are of pixels that this version decodes differently.

    `names` are those of the photos by the keys of their vectors. Reads the first bytes of each
    photo that is asked about. A photo that cannot be read counts as changed.
    """

    def changed(versions: Mapping[str, int]) -> set[str]:
        asked = list(dict.fromkeys(names[key] for key in versions))
        with ThreadPoolExecutor(FETCHERS) as pool:
            now = dict(zip(asked, pool.map(pixels_version, asked), strict=True))
        return {key for key, old in versions.items() if (now[names[key]] or math.inf) > old}

    return changed


class NoImageError(ImageError):
    """The file's content is not an image, not even a broken one."""


class Fetched:
    """Fetches a file and holds its bytes, until they are decoded, or the ImageError instead."""

    def __init__(self, path: str) -> None:
        """Reads the file at `path`, whose size the caller has checked."""
        self.path = path
        self.key: str | None = None
        self._content: bytes | ImageError
        try:
            self._content = read_file(path, max_pixels=None)
            self.key = hashlib.sha1(self._content).hexdigest()
        except ImageError as error:
            self._content = error

    def decoded(self, reader: ImageReader) -> NDArray[np.float32]:
        """Returns the input image, float32 [1, height, width, 3].

        Raises:
            ImageError: the file has none; NoImageError if the content is something else.
        """
        content = self._content
        if isinstance(content, ImageError):
            raise content
        self._content = b""
        try:
            return reader.decode(content)
        except ImageError as error:
            if begins_like_image(io.BytesIO(content)):
                raise
            raise NoImageError(NO_IMAGE) from error
