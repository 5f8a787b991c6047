"""Takes over vectors from a cache of the classic retrain.py, a text file per photo. No TensorFlow.

The classic wrote the vector of IMAGE_DIR/<class folder>/<photo> as decimal numbers with commas to
CACHE/<class folder>/<photo>.txt, later to ..._inception_v3.txt, ..._mobilenet_0.50_224.txt and so
on. Its last version took networks from TF Hub and wrote their addresses into the names; those are
other weights than any network here has, so they are not looked for, nor are `_quantized` ones.

Such a file knows its photo by name only, and could be broken off. So it is checked:

- Count, finite numbers, none below 0 for Inception (its bottleneck is a mean of ReLUs).
- The last number is written whole: text that breaks off within it has the right count. It must
  be 0.0 or have `LEAST_DIGITS` digits, as all but one in 3,000 float32 numbers have, so hardly a
  good file is refused. What passes in spite of a break is wrong by 1e-4 of one number; but 0.0 may
  have been 0.0<more> (wrong by less than 0.1), and an exponent may be lost with all its characters.
- The photo must not be newer than the file. Where most photos are, they were copied or unpacked
  after their vectors had been computed, and times say nothing; then only the next check is left.
- Some photos (`SAMPLE`, or a third of the few), chosen at random, are computed anew with the
  network, and their new vectors kept. One in ten at most may have a cosine below `LEAST_COSINE`,
  else nothing is taken over. This finds another network's vectors and folders in which names were
  given anew; a single stale vector it cannot find.
"""

import contextlib
import os
import random
import re
import stat
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from retraining.errors import RetrainingError

NUMBER_BYTES = 32  # no number is written longer; a float64 takes 24 characters and a comma
LEAST_DIGITS = 5
SAMPLE = 10
# Over 1,500 photos of flowers: 0.89 at worst between two builds of Inception-v3, but 0.87 or less
# for 99 of 100 pairs of different photos, and 0.66 at most where the numbers are in another order.
LEAST_COSINE = 0.9


class ClassicCacheError(RetrainingError):
    """The cache holds other vectors than the network gives; nothing was taken over."""


class UnusableError(Exception):
    """One file of the cache cannot be taken over; the text is the reason, without its name."""


@dataclass
class Outcome:
    """What became of the photos: their numbers, copies counted once, and {reason: [file]}."""

    known: int = 0  # had a vector before
    checked: int = 0  # were computed anew, as a sample
    taken: int = 0
    absent: int = 0  # have no file
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    times_are_of_a_copy: bool = False


class ClassicCache:
    """A folder of the classic's vectors of one network, float32 of `width`."""

    def __init__(self, folder, network, width, labels):
        """`network` is a name of networks.NETWORKS, `labels` are the class folders' names."""
        self.folder, self.width = folder, width
        self._not_negative = network == "inception_v3"
        self._suffixes = suffixes(network)
        self._folders = class_folders(folder, labels)

    def paths_for(self, example):
        """What its file may be called, the likeliest first; empty for a network it never had."""
        name = os.path.basename(example.path)
        folder = self._folders[example.label]
        return [os.path.join(folder, name + suffix) for suffix in self._suffixes]

    def why_nothing(self, example):
        """Where the file of a photo would have been."""
        paths = self.paths_for(example)
        if not paths:
            return "the classic never had this network"
        return f"{example.path} would have its vector in {paths[0]}"

    def find(self, example):
        """The photo's file, or None."""
        return next((path for path in self.paths_for(example) if os.path.lexists(path)), None)

    def read(self, path):
        """The vector in a file, float32 [width].

        Raises:
            UnusableError: it is not a whole vector of this network, or cannot be read.
        """
        limit = NUMBER_BYTES * self.width
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
                raise UnusableError("not a file")
            with open(path, "rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise UnusableError(f"cannot be read ({error.strerror})") from error
        if len(content) > limit:
            raise UnusableError(f"longer than {self.width} numbers can be")
        vector = parse(content, self.width)
        if self._not_negative and vector.min() < 0:
            raise UnusableError("a number below 0, which this network does not give")
        return vector


def suffixes(network):
    """What the classic appended to a photo's name for this network, the likeliest first.

    The first versions knew Inception-v3 only and appended nothing but `.txt`.
    """
    if network == "inception_v3":
        return ["_inception_v3.txt", ".txt"]
    return [f"_{network}.txt"] if network.startswith("mobilenet_") else []


def class_folders(folder, labels):
    """{label: its folder in the cache}: named as the class folder, or as the classic's label.

    The latter (small letters and digits, spaces for all else) only where it is no other's name.
    """
    rewritten = {label: re.sub(r"[^a-z0-9]+", " ", label.lower()) for label in labels}
    uses = Counter([*rewritten.values(), *labels])
    found = {}
    for label, other in rewritten.items():
        own = os.path.join(folder, label)
        alike = uses[other] == 1 and other.strip() and not os.path.isdir(own)
        found[label] = os.path.join(folder, other) if alike else own
    return found


def parse(content, width):
    """float32 [width] of comma-separated decimal numbers (bytes).

    Raises:
        UnusableError: too few or too many of them, one that is none, or a broken-off end.
    """
    try:
        words = content.decode("ascii").strip().split(",")
        if len(words) != width:
            raise UnusableError(f"not {width} numbers")
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            vector = np.array([float(word) for word in words], np.float32)
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise UnusableError("something else than numbers in it") from error
    if not np.isfinite(vector).all():
        raise UnusableError("a number that is not finite")
    if not is_whole(words[-1]):
        raise UnusableError("broken off within the last number")
    return vector


def is_whole(word):
    """Whether a number's text can be all that Python wrote of a float32 (see above)."""
    digits, _, exponent = word.partition("e")
    significant = len(digits.lstrip("-0.").replace(".", ""))
    return word == "0.0" or (significant >= LEAST_DIGITS and len(exponent) in (0, 3))


def take_over(store, examples, cache, compute):
    """Adds the cache's vectors to a store (cache.BottleneckStore) that lacks them: an Outcome.

    `compute(examples)` computes vectors with the network and puts them into the store, but for
    those of unreadable photos. A vector in the store is never replaced, nothing in the cache is
    changed, and what was taken over before an interruption stays.

    Raises:
        ClassicCacheError: the sample shows that the vectors are of something else.
    """
    keys = {example.key for example in examples}
    missing = set(store.missing(keys))
    outcome = Outcome(known=len(keys) - len(missing))
    files = _current_files(examples, missing, cache, outcome)
    if not _passes_sample(store, files, cache, compute):
        return outcome
    lacking = set(store.missing(missing))
    outcome.checked = len(missing) - len(lacking)
    _put_all(store, [pair for pair in files if pair[0].key in lacking], cache, outcome)
    store.commit()
    return outcome


def _put_all(store, files, cache, outcome):
    """Reads the files and stores their vectors; of copies of a photo, the first good one's."""
    done = set()
    for example, path in files:
        if example.key not in done:
            try:
                store.put(example.key, cache.read(path), imported=True)
            except UnusableError as reason:
                outcome.skipped[str(reason)].append(path)
            else:
                done.add(example.key)
    outcome.taken = len(done)


def _current_files(examples, missing, cache, outcome):
    """[(example, path)] of those in `missing` that have a file, but for changed photos."""
    found = [(example, cache.find(example)) for example in examples]
    found = [(example, path) for example, path in found if path]
    newer = {path for example, path in found if _time(example.path) > _time(path)}
    wanted = [(example, path) for example, path in found if example.key in missing]
    outcome.absent = len(missing - {example.key for example, _ in wanted})
    # All files count here, so that one photo changed after a first import is not "most".
    outcome.times_are_of_a_copy = bool(wanted) and 2 * len(newer) > len(found)
    if outcome.times_are_of_a_copy:
        return wanted
    if stale := [path for _, path in wanted if path in newer]:
        outcome.skipped["older than the photo"] = stale
    return [(example, path) for example, path in wanted if path not in newer]


def _time(path):
    """When the file was last changed, in seconds; 0 where that cannot be told."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _passes_sample(store, files, cache, compute):
    """Computes the vectors of some photos anew, if any of their files is good; compares them.

    Returns False if none could be computed, so that nothing is known of the others.

    Raises:
        ClassicCacheError: too many of them differ.
    """
    sample = _choose_sample(files, cache)
    if not sample:
        return True  # no vector will be taken over
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
            f"--architecture and --model_file, or leave --import_classic_bottlenecks out"
        )
    return bool(sample)


def _choose_sample(files, cache):
    """[(example, vector)]: `SAMPLE` of those whose files are good, or a third of the few."""
    most = min(SAMPLE, -(-len(files) // 3))
    sample = []
    for example, path in random.Random(0).sample(files, len(files)):
        if len(sample) == most:
            break
        with contextlib.suppress(UnusableError):
            sample.append((example, cache.read(path)))
    return sample


def cosine(one, other):
    """Of two vectors; NaN if one is all zeros."""
    with np.errstate(invalid="ignore"):
        return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
