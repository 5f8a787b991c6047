"""Imports vectors from a cache of the classic retrain.py, which has a text file for each photo.

The classic wrote the vector of IMAGE_DIR/<class folder>/<photo> as comma-separated decimal numbers
to CACHE/<class folder>/<photo>.txt, later to ..._inception_v3.txt, ..._mobilenet_0.50_224.txt and
so on. Its last version took networks from TF Hub and wrote their addresses into the names. No
network here has their weights, so these files are ignored, as are `_quantized` ones.

Such a file identifies its photo only by name, and may be truncated. So this module checks:

- The count of numbers; that all are finite, and for Inception none is negative (its bottleneck is
  a mean of ReLUs).
- That the last number is complete, since a file truncated within it has the right count. The number
  must be 0.0 or have `LEAST_DIGITS` digits, as all but one in 3,000 float32 numbers have, so that
  hardly any good file is refused. An undetected truncation changes one number by 1e-4 of its value;
  but 0.0 may have been 0.0<more> (an error below 0.1), and a whole exponent may be lost.
- That the photo is not newer than the file. If most photos are newer, they were copied or unpacked
  after their vectors were computed. Then times mean nothing, and only the next check remains.
- That the network computes similar vectors for a random sample of photos (`SAMPLE`, or a third if
  there are few). If more than one in ten has a cosine below `LEAST_COSINE`, nothing is imported.
  This detects vectors of another network and folders with reassigned names, but not a single stale
  vector. The vectors of the sample are kept.

This module does not need TensorFlow.
"""

import contextlib
import os
import random
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.store import BottleneckStore
from retraining.errors import RetrainingError
from retraining.photos.dataset import Example

NUMBER_BYTES = 32  # the longest number: a float64 takes 24 characters and a comma
LEAST_DIGITS = 5
SAMPLE = 10
# Measured on 1,500 photos of flowers: two builds of Inception-v3 give at least 0.89. 99 of 100
# pairs of different photos give 0.87 or less, and numbers in another order 0.66 at most.
LEAST_COSINE = 0.9

Files = Sequence[tuple[Example, str]]  # photos with the paths of their files in the cache


class ClassicCacheError(RetrainingError):
    """The network computes other vectors than the cache holds; nothing was imported."""


class UnusableError(Exception):
    """One file of the cache cannot be imported. The text is the reason, without the file's name."""


@dataclass
class ImportCounts:
    """The result of an import: numbers of photos, copies counted once, and {reason: [file]}."""

    known: int = 0  # had a vector in the store
    checked: int = 0  # were recomputed, as a sample
    taken: int = 0
    absent: int = 0  # have no file in the cache
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    times_are_of_a_copy: bool = False


class ClassicCache:
    """The classic's folder of one network's vectors, float32 [width]."""

    def __init__(self, folder: str, network: str, width: int, labels: Sequence[str]) -> None:
        """Takes the name of a network and the labels, which are the class folders' names."""
        self.folder, self.width = folder, width
        self._not_negative = network == "inception_v3"
        self._suffixes = suffixes(network)
        self._folders = class_folders(folder, labels)

    def paths_for(self, example: Example) -> list[str]:
        """Returns the possible paths of its file, the likeliest first; [] for other networks."""
        name = os.path.basename(example.path)
        folder = self._folders[example.label]
        return [os.path.join(folder, name + suffix) for suffix in self._suffixes]

    def why_nothing(self, example: Example) -> str:
        """Returns where the file of a photo was expected, as text."""
        paths = self.paths_for(example)
        if not paths:
            return "the classic retrain.py never had this network"
        return f"{example.path} would have its vector in {paths[0]}"

    def find(self, example: Example) -> str | None:
        """Returns the path of the photo's file, or None."""
        return next((path for path in self.paths_for(example) if os.path.lexists(path)), None)

    def read(self, path: str) -> NDArray[np.float32]:
        """Reads the vector in a file, float32 [width].

        Raises:
            UnusableError: it is not a complete vector of this network, or cannot be read.
        """
        limit = NUMBER_BYTES * self.width
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block
                raise UnusableError("not a file")
            with open(path, "rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise UnusableError(f"cannot be read ({error.strerror})") from error
        if len(content) > limit:
            raise UnusableError(f"longer than {self.width} numbers can be")
        vector = parse(content, self.width)
        if self._not_negative and vector.min() < 0:
            raise UnusableError("a negative number, which this network never gives")
        return vector


def suffixes(network: str) -> list[str]:
    """Returns what the classic appended to a photo's name for a network, the likeliest first.

    The first versions knew only Inception-v3 and appended only `.txt`.
    """
    if network == "inception_v3":
        return ["_inception_v3.txt", ".txt"]
    return [f"_{network}.txt"] if network.startswith("mobilenet_") else []


def class_folders(folder: str, labels: Sequence[str]) -> dict[str, str]:
    """Returns {label: its folder in the cache}, named as the class folder or the classic's label.

    The classic's label has lower-case letters and digits, and spaces for all else. It counts only
    if no other class has the same.
    """
    rewritten = {label: re.sub(r"[^a-z0-9]+", " ", label.lower()) for label in labels}
    uses = Counter([*rewritten.values(), *labels])
    folders = {}
    for label, other in rewritten.items():
        own = os.path.join(folder, label)
        alike = uses[other] == 1 and other.strip() and not os.path.isdir(own)
        folders[label] = os.path.join(folder, other) if alike else own
    return folders


def parse(content: bytes, width: int) -> NDArray[np.float32]:
    """Parses comma-separated decimal numbers to float32 [width].

    Raises:
        UnusableError: there are too few or too many numbers, one is invalid, or the end is missing.
    """
    try:
        words = content.decode("ascii").strip().split(",")
        if len(words) != width:
            raise UnusableError(f"not {width} numbers")
        with np.errstate(over="ignore"):  # gives infinity, which is refused
            vector = np.array([float(word) for word in words], np.float32)
    except ValueError as error:  # also UnicodeDecodeError
        raise UnusableError("something other than numbers in it") from error
    if not np.isfinite(vector).all():
        raise UnusableError("a number that is not finite")
    if not is_whole(words[-1]):
        raise UnusableError("broken off within the last number")
    return vector


def is_whole(word: str) -> bool:
    """Returns whether a number's text can be the complete text of a float32 (see above)."""
    digits, _, exponent = word.partition("e")
    significant = len(digits.lstrip("-0.").replace(".", ""))
    return word == "0.0" or (significant >= LEAST_DIGITS and len(exponent) in (0, 3))


def take_over(
    store: BottleneckStore,
    examples: Sequence[Example],
    cache: ClassicCache,
    compute: Callable[[list[Example]], object],
) -> ImportCounts:
    """Adds the cache's vectors to a store that lacks them; returns the ImportCounts.

    `compute(examples)` computes vectors with the network and puts them into the store, except those
    of unreadable photos. Vectors in the store are never replaced, the cache does not change, and an
    interruption keeps what was imported before.

    Raises:
        ClassicCacheError: the vectors of the sample differ too much.
    """
    keys = {example.key for example in examples}
    missing = set(store.missing(keys))
    counts = ImportCounts(known=len(keys) - len(missing))
    files = _current_files(examples, missing, cache, counts)
    if not _passes_sample(store, files, cache, compute):
        return counts
    lacking = set(store.missing(missing))
    counts.checked = len(missing) - len(lacking)
    _put_all(store, [pair for pair in files if pair[0].key in lacking], cache, counts)
    store.commit()
    return counts


def _put_all(
    store: BottleneckStore, files: Files, cache: ClassicCache, counts: ImportCounts
) -> None:
    """Reads the files and stores their vectors; for copies of a photo, the first good file's."""
    done: set[str] = set()
    for example, path in files:
        if example.key not in done:
            try:
                store.put(example.key, cache.read(path), imported=True)
            except UnusableError as reason:
                counts.skipped[str(reason)].append(path)
            else:
                done.add(example.key)
    counts.taken = len(done)


def _current_files(
    examples: Sequence[Example], missing: Set[str], cache: ClassicCache, counts: ImportCounts
) -> list[tuple[Example, str]]:
    """Returns [(example, path)] of `missing` photos that have a file and have not changed."""
    matches = [(example, path) for example in examples if (path := cache.find(example))]
    newer = {path for example, path in matches if _time(example.path) > _time(path)}
    current = [(example, path) for example, path in matches if example.key in missing]
    counts.absent = len(missing - {example.key for example, _ in current})
    # Count all files, so that one photo that changed after a first import is not "most".
    counts.times_are_of_a_copy = bool(current) and 2 * len(newer) > len(matches)
    if counts.times_are_of_a_copy:
        return current
    if stale := [path for _, path in current if path in newer]:
        counts.skipped["older than the photo"] = stale
    return [(example, path) for example, path in current if path not in newer]


def _time(path: str) -> float:
    """Returns the file's modification time in seconds, or 0 if unknown."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _passes_sample(
    store: BottleneckStore,
    files: Files,
    cache: ClassicCache,
    compute: Callable[[list[Example]], object],
) -> bool:
    """Recomputes the vectors of some photos with good files, and compares them.

    Returns False if none could be computed, so that the other files remain unchecked.

    Raises:
        ClassicCacheError: too many of them differ.
    """
    sample = _choose_sample(files, cache)
    if not sample:
        return True  # no vector will be imported
    compute([example for example, _ in sample])
    failed = set(store.missing(example.key for example, _ in sample))
    sample = [(example, vector) for example, vector in sample if example.key not in failed]
    fresh = store.read([example.key for example, _ in sample])
    cosines = [cosine(*pair) for pair in zip((v for _, v in sample), fresh, strict=True)]
    wrong = sum(not value >= LEAST_COSINE for value in cosines)
    if wrong > len(sample) // 10:
        value, path = min((c, e.path) for c, (e, _) in zip(cosines, sample, strict=True))
        raise ClassicCacheError(
            f"the vectors in {cache.folder} are not those of this network and these photos: "
            f"{wrong} of {len(sample)} computed anew differ (cosine {value:.3f} for {path}); check "
            f"`NetworkSettings.architecture` and `NetworkSettings.model_file`, or leave "
            f"`BottleneckSettings.classic_folder` out"
        )
    return bool(sample)


def _choose_sample(files: Files, cache: ClassicCache) -> list[tuple[Example, NDArray[np.float32]]]:
    """Returns [(example, vector)] of good files: `SAMPLE` of them, or a third if there are few."""
    most = min(SAMPLE, -(-len(files) // 3))
    sample: list[tuple[Example, NDArray[np.float32]]] = []
    for example, path in random.Random(0).sample(files, len(files)):
        if len(sample) == most:
            break
        with contextlib.suppress(UnusableError):
            sample.append((example, cache.read(path)))
    return sample


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Returns the cosine of two vectors; NaN if one is all zeros."""
    with np.errstate(invalid="ignore"):
        return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
