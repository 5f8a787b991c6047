"""Keys and vectors from one reading of each photo, for photos whose bytes are far away.

On this machine's disk a photo is read for its key, which decides its split, and again for its
vector. Across a network that would be twice the traffic: here each photo is fetched once, where it
is decoded, and both come of it, whoever does the work.
"""

import contextlib
import hashlib
import io
from dataclasses import dataclass, field

import numpy as np

from retraining.bottlenecks.extract import in_order, stream, thread_pool
from retraining.photos import places
from retraining.photos.decode import begins_like_image
from retraining.photos.reader import ImageError, read_file
from retraining.photos.scan import NO_IMAGE, hash_file

FETCHERS = 16  # files fetched at a time: an object store answers late, but many at once
FETCHED_AHEAD = 32  # files whose bytes wait to be decoded


class NoImageError(ImageError):
    """The file's content is not that of an image, broken or not."""


@dataclass(frozen=True)
class Reading:
    """What one reading of a file gave: the SHA-1 of its bytes (hex; None if they could not be had)
    and its vector, float32 [width], or the ImageError that says why there is none."""

    path: str
    key: str | None
    vector: np.ndarray | ImageError


@dataclass(frozen=True)
class Filled:
    """What became of the files that were read: {path: key}, {path: reason} of those that are no
    images, {key: reason} of the images that are broken."""

    keys: dict[str, str] = field(default_factory=dict)
    no_images: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def prefill(paths, files, store, read, progress):
    """Reads once what `files` (cache.FileKeys) knows no key of, or `store` no vector, and tells
    them what comes of it; returns what else does, a Filled.

    `read(paths)` yields a Reading of each, in any order. `progress(iterable, total)` wraps what is
    iterated, as tqdm does.
    """
    wanted, filled = _unknown(paths, files, store), Filled()
    if not wanted:
        return filled
    for reading in progress(read(list(wanted)), total=len(wanted)):
        path, key, vector = reading.path, reading.key, reading.vector
        if key is None:  # whoever asks for its key is told why
            continue
        files.learn(path, wanted[path], key)
        filled.keys[path] = key
        if isinstance(vector, NoImageError):
            filled.no_images[path] = str(vector)
        elif isinstance(vector, ImageError):
            filled.broken[key] = str(vector)
        elif store.missing([key]):  # a copy, or a photo that was moved, may be there
            store.put(key, vector)
    store.commit()
    return filled


def learn_keys(paths, files, progress):
    """Reads the files whose keys `files` (cache.FileKeys) does not know, to tell it their keys.

    What cannot be read is passed over; whoever asks for its key is told why.
    """
    facts = {path: about for path, (about, key) in _known(paths, files).items() if key is None}
    with thread_pool(FETCHERS) as fetchers:
        keys = in_order(fetchers, key_of, facts, FETCHED_AHEAD)
        for path, key in progress(zip(facts, keys, strict=True), total=len(facts)):
            if key:
                files.learn(path, facts[path], key)


def key_of(path):
    """The SHA-1 of a file's bytes, hex, or None if they cannot be had."""
    try:
        return hash_file(path)
    except OSError:
        return None


def _unknown(paths, files, store):
    """{path: its Facts} of the files whose key is not known, or is not in the store."""
    found = _known(paths, files)
    lacking = {None, *store.missing(key for _, key in found.values() if key)}
    return {path: facts for path, (facts, key) in found.items() if key in lacking}


def _known(paths, files):
    """{path: (its Facts, its key if that is known, or None)} of the files that are there."""
    found = {}
    for path in paths:
        # What has vanished is found again, and told, when its key is wanted.
        with contextlib.suppress(OSError):
            facts = files.facts_of(path)
            found[path] = facts, files.known(path, facts)
    return found


def read_here(extractor, paths):
    """Yields a Reading for each path, in order, by this machine's network (extract.Extractor),
    which is only started by this."""
    yield from read_and_run(paths, *extractor.start().result())


def read_and_run(paths, reader, batches):
    """Yields a Reading for each path, in order: files are fetched, decoded (images.ImageReader)
    and run (extract.FixedBatches) side by side, each fetched once.

    Of URLs, those that are too large must have been left out.

    Raises:
        PlaceError: the place of a URL cannot be read from.
    """

    def fetch(path):
        return _Fetched(path, reader.max_pixels)

    def decode(fetched):
        return fetched.decoded(reader)

    with thread_pool(FETCHERS) as fetchers:
        files = in_order(fetchers, fetch, paths, FETCHED_AHEAD)
        for file, vectors in stream(files, decode, batches, batches.size):
            failed = isinstance(vectors, ImageError)
            yield Reading(file.path, file.key, vectors if failed else vectors[0])


class _Fetched:
    """A file's bytes, which are let go once they are decoded, or the ImageError instead."""

    def __init__(self, path, max_pixels):
        self.path, self.key, self._content = path, None, None
        try:
            self._content = read_file(path, None if places.is_url(path) else max_pixels)
            self.key = hashlib.sha1(self._content).hexdigest()
        except ImageError as error:
            self._error = error

    def decoded(self, reader):
        """The input image, float32 [1, height, width, 3].

        Raises:
            ImageError: there is none; NoImageError if the content is something else.
        """
        if self.key is None:
            raise self._error
        content, self._content = self._content, None
        try:
            return reader.decode(content)
        except ImageError as error:
            if begins_like_image(io.BytesIO(content)):
                raise
            raise NoImageError(NO_IMAGE) from error
