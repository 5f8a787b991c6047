"""Gets keys and vectors from one reading of each photo, for remote photos.

A run reads a photo on the local disk for its key, which decides its split, and again for its
vector. Across a network that would double the traffic. So the machine that decodes a photo fetches
it once, and derives both from it.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from retraining.bottlenecks.extract import Reading, ShowProgress, in_order, thread_pool
from retraining.bottlenecks.fetch import FETCHED_AHEAD, FETCHERS, NoImageError
from retraining.bottlenecks.file_keys import FileKeys
from retraining.bottlenecks.store import BottleneckStore
from retraining.photos import places
from retraining.photos.reader import ImageError
from retraining.photos.scan import hash_file


@dataclass(frozen=True)
class Filled:
    """What reading the files showed."""

    keys: dict[str, str] = field(default_factory=dict)  # {path: key}
    no_images: dict[str, str] = field(default_factory=dict)  # {path: reason}
    broken: dict[str, str] = field(default_factory=dict)  # {key: reason} of broken images


def prefill(
    paths: Iterable[str],
    files: FileKeys,
    store: BottleneckStore,
    read: Callable[[list[str]], Iterable[Reading]],
    progress: ShowProgress,
) -> Filled:
    """Reads once each file whose key `files` lacks or whose vector `store` lacks.

    Adds the keys to `files` and the vectors to `store`. `read(paths)` yields a Reading of each, in
    any order.
    """
    wanted, filled = _unknown(paths, files, store), Filled()
    if not wanted:
        return filled
    for reading in progress(read(list(wanted)), total=len(wanted)):
        path, key, vector = reading.path, reading.key, reading.vector
        if key is None:  # asking for its key will raise the reason
            continue
        files.learn(path, wanted[path], key)
        filled.keys[path] = key
        if isinstance(vector, NoImageError):
            filled.no_images[path] = str(vector)
        elif isinstance(vector, ImageError):
            filled.broken[key] = str(vector)
        elif store.missing([key]):  # a copy or a moved photo may be there
            store.put(key, vector)
    store.commit()
    return filled


def learn_keys(paths: Iterable[str], files: FileKeys, progress: ShowProgress) -> None:
    """Hashes the files whose keys `files` does not know, and adds their keys.

    Skips unreadable files; asking for their keys will raise the reason.
    """
    facts = {path: fact for path, (fact, key) in _known(paths, files).items() if key is None}
    with thread_pool(FETCHERS) as fetchers:
        keys = in_order(fetchers, key_of, facts, FETCHED_AHEAD)
        for path, key in progress(zip(facts, keys, strict=True), total=len(facts)):
            if key:
                files.learn(path, facts[path], key)


def key_of(path: str) -> str | None:
    """Returns the SHA-1 of a file's bytes, hex, or None if it cannot be read."""
    try:
        return hash_file(path)
    except OSError:
        return None


def _unknown(
    paths: Iterable[str], files: FileKeys, store: BottleneckStore
) -> dict[str, places.Facts]:
    """Returns {path: its Facts} of files whose key is unknown or not in the store."""
    known_files = _known(paths, files)
    lacking = {None, *store.missing(key for _, key in known_files.values() if key)}
    return {path: facts for path, (facts, key) in known_files.items() if key in lacking}


def _known(paths: Iterable[str], files: FileKeys) -> dict[str, tuple[places.Facts, str | None]]:
    """Returns {path: (its Facts, its key or None if unknown)} of existing files."""
    known_files = {}
    for path in paths:
        # Asking for the key of a file that has vanished will raise the reason.
        with contextlib.suppress(OSError):
            facts = files.facts_of(path)
            known_files[path] = facts, files.known(path, facts)
    return known_files
