"""Imports vectors from a cache of the classic retrain.py, which has a text file for each photo.

The classic wrote the vector of IMAGE_DIR/<class folder>/<photo> as comma-separated decimal numbers
to CACHE/<class folder>/<photo>.txt, later to ..._inception_v3.txt, ..._mobilenet_0.50_224.txt and
so on. Its last version took networks from TF Hub and wrote their addresses into the names. No
network here has their weights, so these files are ignored, as are `_quantized` ones.

Such a file identifies its photo only by name, and may be truncated. So this module checks:

- The count of numbers; that all are finite, and for Inception none is negative (its bottleneck is
  a mean of ReLUs).
- That the photo is not newer than the file. If most photos are newer, they were copied or unpacked
  after their vectors were computed. Then times mean nothing, and only the next check remains.
- That the network computes similar vectors for random photos of each class (`SAMPLE`, or all if
  there are fewer). If the cosine of one is below `LEAST_COSINE`, nothing of its class is imported.
  This detects vectors of another network, and classes whose photos were replaced, but not a single
  stale vector. The vectors of the sample are kept.

This module does not need TensorFlow.
"""

import contextlib
import os
import random
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.store import BottleneckStore
from retraining.errors import RetrainingError
from retraining.photos.dataset import Example

NUMBER_BYTES = 32  # the longest number: a float64 takes 24 characters and a comma
SAMPLE = 3  # photos of a class
# Measured on 1,500 photos of flowers: two builds of Inception-v3 give at least 0.89. 99 of 100
# pairs of different photos give 0.87 or less, and numbers in another order 0.66 at most.
LEAST_COSINE = 0.9

Files = Sequence[tuple[Example, str]]  # photos with the paths of their files in the cache
Compute = Callable[[list[Example]], object]
Cosine = tuple[float, str]  # of a photo's vector in the cache and as computed; the photo's path


class ClassicCacheError(RetrainingError):
    """The network computes other vectors than the cache holds for every class."""


class UnusableError(Exception):
    """One file of the cache cannot be imported. The text is the reason, without the file's name."""


@dataclass(frozen=True)
class Misfit:
    """A class whose vectors are not imported: its label, how many files, and the worst vector."""

    label: str
    files: int
    cosine: float
    path: str  # of its photo


@dataclass
class ImportCounts:
    """The result of an import: numbers of photos, copies counted once, and {reason: [file]}."""

    known: int = 0  # had a vector in the store
    checked: int = 0  # were recomputed, as a sample
    taken: int = 0
    absent: int = 0  # have no file in the cache
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    misfits: list[Misfit] = field(default_factory=list)
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
        UnusableError: there are too few or too many numbers, or one is invalid.
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
    return vector


def take_over(
    store: BottleneckStore,
    examples: Sequence[Example],
    cache: ClassicCache,
    compute: Compute,
) -> ImportCounts:
    """Adds the cache's vectors to a store that lacks them; returns the ImportCounts.

    Takes the classes whose vectors the network confirms, and lists the others in `misfits`.

    `compute(examples)` computes vectors with the network and puts them into the store, except those
    of unreadable photos. Vectors in the store are never replaced, the cache does not change, and an
    interruption keeps what was imported before.

    Raises:
        ClassicCacheError: the network confirms none of several classes.
    """
    keys = {example.key for example in examples}
    missing = set(store.missing(keys))
    counts = ImportCounts(known=len(keys) - len(missing))
    current = _current_files(examples, missing, cache, counts)
    files = _confirmed(current, _check_sample(store, current, cache, compute), cache, counts)
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


def _confirmed(
    files: Files, worst: Mapping[str, Cosine], cache: ClassicCache, counts: ImportCounts
) -> Files:
    """Returns the files of classes whose `worst` cosine is high enough; counts the others.

    Raises:
        ClassicCacheError: there are several classes, and none passes.
    """
    passed = {label for label, (value, _) in worst.items() if value >= LEAST_COSINE}
    sizes = Counter(example.label for example, _ in files)
    counts.misfits = [
        Misfit(label, sizes[label], *worst[label]) for label in sorted(worst.keys() - passed)
    ]
    if len(counts.misfits) > 1 and not passed:
        raise ClassicCacheError(_describe_misfits(cache, counts.misfits))
    return [(example, path) for example, path in files if example.label in passed]


def _describe_misfits(cache: ClassicCache, misfits: Sequence[Misfit]) -> str:
    """Returns what is wrong and what to do where no class passes."""
    worst = min(misfits, key=lambda misfit: misfit.cosine)
    return (
        f"the vectors in {cache.folder} are not those of this network and these photos: those of "
        f"all {len(misfits)} classes differ from what it computes (cosine {worst.cosine:.3f} for "
        f"{worst.path}); check `NetworkSettings.architecture` and `NetworkSettings.model_file`, or "
        f"leave `BottleneckSettings.classic_folder` out"
    )


def _check_sample(
    store: BottleneckStore, files: Files, cache: ClassicCache, compute: Compute
) -> dict[str, Cosine]:
    """Recomputes the vectors of a sample; returns the worst Cosine of each class.

    A class is missing if it has no good file, or if no photo of its sample can be read.
    """
    sample = list(_choose_sample(files, cache))
    compute([example for example, _ in sample])
    unread = set(store.missing(example.key for example, _ in sample))
    sample = [(example, vector) for example, vector in sample if example.key not in unread]
    fresh = store.read([example.key for example, _ in sample])
    worst: dict[str, Cosine] = {}
    for (example, vector), own in zip(sample, fresh, strict=True):
        found = cosine(vector, own), example.path
        worst[example.label] = min(worst.get(example.label, found), found)
    return worst


def _choose_sample(
    files: Files, cache: ClassicCache
) -> Iterator[tuple[Example, NDArray[np.float32]]]:
    """Yields (example, vector) of good files: up to `SAMPLE` of each class, drawn at random."""
    drawn: Counter[str] = Counter()
    for example, path in random.Random(0).sample(files, len(files)):
        if drawn[example.label] < SAMPLE:
            with contextlib.suppress(UnusableError):
                yield example, cache.read(path)
                drawn[example.label] += 1


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Returns the cosine of two vectors; 0 if one is all zeros."""
    a, b = one.astype(np.float64), other.astype(np.float64)  # whose squares do not overflow
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths else 0.0
