"""Keys and vectors from one reading of each photo, for photos whose bytes are far away.

On this machine's disk a photo is read for its key, which decides its split, and again for its
vector. Across a network that would be twice the traffic: here each photo is fetched once, where it
is decoded, and both come of it, whoever does the work (any iterator of `Reading`s will do).
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from retraining.extract import BATCH_SIZE, in_order, stream, thread_pool
from retraining.images import ImageError, read_file

FETCHERS = 16  # files fetched at a time: an object store answers late, but many at once
FETCHED_AHEAD = 32  # files whose bytes wait to be decoded


@dataclass(frozen=True)
class Reading:
    """What one reading of a file gave: the SHA-1 of its bytes (hex; None if they could not be had)
    and its vector, float32 [width], or the ImageError that says why there is none."""

    path: str
    key: str | None
    vector: np.ndarray | ImageError


class _Fetched:
    """A file's bytes, which are let go once they are decoded, or the ImageError instead."""

    def __init__(self, path, max_pixels):
        self.path, self.key, self._content = path, None, None
        try:
            self._content = read_file(path, max_pixels)
            self.key = hashlib.sha1(self._content).hexdigest()
        except ImageError as error:
            self._error = error

    def decoded(self, reader):
        """The input image, float32 [1, height, width, 3]."""
        if self.key is None:
            raise self._error
        content, self._content = self._content, None
        return reader.decode(content)


def read_and_run(paths, reader, runner, batch_size=BATCH_SIZE):
    """Yields a Reading for each path, in order: files are fetched, decoded (images.ImageReader)
    and run (graph.Runner) side by side, each fetched once."""

    def fetch(path):
        return _Fetched(path, reader.max_pixels)

    def decode(fetched):
        return fetched.decoded(reader)

    with thread_pool(FETCHERS) as fetchers:
        files = in_order(fetchers, fetch, paths, FETCHED_AHEAD)
        for file, vectors in stream(files, decode, runner, batch_size):
            failed = isinstance(vectors, ImageError)
            yield Reading(file.path, file.key, vectors if failed else vectors[0])
