"""Gets keys and vectors from one reading of each photo, for remote photos.

A run reads a photo on the local disk for its key, which decides its split, and again for its
vector. Across a network that would double the traffic. So the machine that decodes a photo fetches
it once, and derives both from it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from retraining.bottlenecks.extract import Reading, ShowProgress
from retraining.bottlenecks.fetch import FETCHED_AHEAD, FETCHERS, NoImageError, changed_pixels
from retraining.bottlenecks.file_keys import FileKeys
from retraining.bottlenecks.store import BottleneckStore
from retraining.bottlenecks.stream import in_order, thread_pool
from retraining.photos.reader import ImageError
from retraining.photos.registry import hash_file
from retraining.photos.source import Photo


@dataclass(frozen=True)
class Filled:
    """What reading the files showed."""

    keys: dict[str, str] = field(default_factory=dict)  # {name: key}
    not_images: set[str] = field(default_factory=set)  # names of files
    broken: dict[str, str] = field(default_factory=dict)  # {key: reason} of broken images


def prefill(
    photos: Iterable[Photo],
    files: FileKeys,
    store: BottleneckStore,
    read: Callable[[list[str]], Iterable[Reading]],
    progress: ShowProgress,
) -> Filled:
    """Reads once each photo whose key `files` lacks or whose vector `store` lacks.

    Adds the keys to `files` and the vectors to `store`. `read(names)` yields a Reading of each, in
    any order.
    """
    wanted, filled = _lacking(photos, files, store), Filled()
    if not wanted:
        return filled
    for reading in progress(read(list(wanted)), total=len(wanted)):
        name, key, vector = reading.path, reading.key, reading.vector
        if key is None:  # asking for its key will raise the reason
            continue
        files.learn(wanted[name], key)
        filled.keys[name] = key
        if isinstance(vector, NoImageError):
            filled.not_images.add(name)
        elif isinstance(vector, ImageError):
            filled.broken[key] = str(vector)
        elif store.missing([key], set):  # a copy or a moved photo may be there
            store.put(key, vector)
    store.commit()
    return filled


def learn_keys(photos: Iterable[Photo], files: FileKeys, progress: ShowProgress) -> None:
    """Hashes the photos whose keys `files` does not know, and adds their keys.

    Skips unreadable files; asking for their keys will raise the reason.
    """
    unknown = [photo for photo in photos if files.known(photo) is None]
    with thread_pool(FETCHERS) as fetchers:
        names = [photo.name for photo in unknown]
        keys = in_order(fetchers, key_of, names, FETCHED_AHEAD)
        for photo, key in progress(zip(unknown, keys, strict=True), total=len(unknown)):
            if key:
                files.learn(photo, key)


def key_of(name: str) -> str | None:
    """Returns the SHA-1 of a file's bytes, hex, or None if it cannot be read."""
    try:
        return hash_file(name)
    except OSError:
        return None


def _lacking(photos: Iterable[Photo], files: FileKeys, store: BottleneckStore) -> dict[str, Photo]:
    """Returns {name: photo} of photos whose key is unknown or not in the store."""
    keys = {photo: files.known(photo) for photo in photos}
    names = {key: photo.name for photo, key in keys.items() if key}
    lacking = {None, *store.missing(names, changed_pixels(names))}
    return {photo.name: photo for photo, key in keys.items() if key in lacking}
