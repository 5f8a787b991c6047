"""Scans a folder of class folders and assigns each photo to a split. No TensorFlow."""

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from retraining import RetrainingError

TRAINING, VALIDATION, TESTING = SPLITS = ("training", "validation", "testing")
FEW_IMAGES = 20  # below this a class is warned of, as in the classic

# The classic's MAX_NUM_IMAGES_PER_CLASS: split hashes are taken modulo 2^27.
HASH_RANGE = 2**27

IGNORED_FILES = {"thumbs.db", "desktop.ini"}

IMAGE_SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"BM",
    b"II*\x00",  # TIFF
    b"MM\x00*",
)


class DatasetError(RetrainingError):
    """The folder cannot be trained on; says why and what to do."""


@dataclass(frozen=True)
class Example:
    """One photo: its path, its class's label, its split and the SHA-1 of its bytes (hex)."""

    path: str
    label: str
    split: str
    key: str


@dataclass(frozen=True)
class SplitOptions:
    """Percentages of validation and testing, and what decides: `content` or `path`."""

    validation: float = 10
    testing: float = 10
    by: str = "content"


@dataclass(frozen=True)
class Dataset:
    """The photos of a folder, and what was left out or looks odd, a line each."""

    examples: list[Example]
    warnings: list[str]

    @property
    def labels(self):
        """Each class's label once, sorted; the order of the network's outputs."""
        return sorted({example.label for example in self.examples})

    def split(self, name):
        """The examples of one split, in the order of the folder."""
        return [example for example in self.examples if example.split == name]


def load_dataset(image_dir, options=None, key_of=None):
    """Reads the folder: a class per sub-folder, a split per photo.

    `key_of(path)` gives a file's key; by default its bytes are hashed.

    Raises:
        DatasetError: missing or empty folder, fewer than two classes, two folders that would be
            one label, a class without training images.
    """
    options = options or SplitOptions()
    photos, warnings = list_photos(image_dir)
    key_of = key_of or hash_file
    keys = {path: key_of(path) for paths in photos.values() for path in paths}
    if options.by == "path":
        splits = _splits_by_path(image_dir, keys, options)
    else:
        splits = _splits_by_content(photos, keys, options)
    examples = [
        Example(path, label, splits[path], keys[path])
        for label, paths in photos.items()
        for path in paths
    ]
    _check_training(photos, splits)
    warnings += _shared_between_classes(examples)
    return Dataset(examples, warnings)


def list_photos(image_dir, to_train=True):
    """Returns ({label: [path, ...]}, warnings), both sorted.

    A label is the folder's name as it is spelled. Hidden files and files that are no image by
    their first bytes are left out; the latter with a warning. If the photos are not `to_train` on,
    one class is enough, and a class may have few photos or none.

    Raises:
        DatasetError: as `load_dataset`.
    """
    warnings, photos = [], {}
    for name in _class_folders(image_dir, 2 if to_train else 1):
        folder = os.path.join(image_dir, name)
        paths, others = _image_files(folder)
        if not paths and to_train:
            raise DatasetError(
                f"the class folder {folder} holds no images; add some or remove the folder"
            )
        if others:
            warnings.append(f"{len(others)} files in {folder} are no images: {_some(others)}")
        if len(paths) < FEW_IMAGES and to_train:
            warnings.append(
                f"{name} has only {len(paths)} images; {FEW_IMAGES} or more give a better model"
            )
        photos[name] = paths
    return photos, warnings


def _some(paths, most=3):
    names = ", ".join(os.path.basename(path) for path in paths[:most])
    return names + (", ..." if len(paths) > most else "")


def _class_folders(image_dir, least):
    try:
        entries = sorted(os.listdir(image_dir))
    except OSError as error:
        raise DatasetError(
            f"cannot read the image folder {image_dir} ({error.strerror}); it must be a folder "
            f"with one sub-folder of photos per class"
        ) from error
    names = [
        n for n in entries if not n.startswith(".") and os.path.isdir(os.path.join(image_dir, n))
    ]
    if len(names) < least:
        wanted = "at least two class folders" if least == 2 else "a class folder"
        found = f"only one ({names[0]})" if names else "none"
        raise DatasetError(f"{image_dir} must hold {wanted} with photos and has {found}")
    _check_labels(image_dir, names)
    return names


def same_label(name):
    """The name without what a reader overlooks: case, spaces, `_`, `-`, the form of accents."""
    text = unicodedata.normalize("NFC", name).casefold()
    return re.sub(r"[\s_-]+", " ", text).strip()


def _check_labels(image_dir, names):
    first = {}
    for name in names:
        if not name.isprintable():
            raise DatasetError(
                f"the class folder {name!r} in {image_dir} has characters that cannot stand in a "
                f"labels file; rename it"
            )
        other = first.setdefault(same_label(name), name)
        if other != name:
            raise DatasetError(
                f"the class folders {other!r} and {name!r} in {image_dir} would become one label; "
                f"rename or merge them"
            )


def holds_images(image_dir):
    """Whether some sub-folder of `image_dir` holds an image."""
    try:
        folders = [entry.path for entry in os.scandir(image_dir) if entry.is_dir()]
        return any(_image_files(folder)[0] for folder in folders)
    except OSError:
        return False


def _image_files(folder):
    images, others = [], []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.startswith(".") or name.lower() in IGNORED_FILES or not os.path.isfile(path):
            continue
        (images if looks_like_image(path) else others).append(path)
    return images, others


def looks_like_image(path):
    """Whether the file begins like an image, whatever its name. False for an unreadable file."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError:
        return False
    return head.startswith(IMAGE_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def hash_file(path):
    """SHA-1 of the file's bytes, hex.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        return hashlib.sha1(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error


def percentage(text):
    """A stable number in 0..100 for bytes `text`: SHA-1 modulo 2^27, as the classic retrain.py."""
    return (int(hashlib.sha1(text).hexdigest(), 16) % HASH_RANGE) * (100.0 / (HASH_RANGE - 1))


def split_of(percent, options):
    """Validation first, then testing, the rest training: the classic's order."""
    if percent < options.validation:
        return VALIDATION
    if percent < options.validation + options.testing:
        return TESTING
    return TRAINING


def _splits_by_path(image_dir, paths, options):
    """The classic's own assignment, from `image_dir/label/file` as the user typed it."""
    splits = {}
    for path in paths:
        without_variant = re.sub(r"_nohash_.*$", "", path)
        splits[path] = split_of(percentage(os.fsencode(without_variant)), options)
    return splits


def _splits_by_content(photos, keys, options):
    groups = _subjects(keys)
    place = {group: percentage(group.encode()) for group in set(groups.values())}
    chosen = {group: split_of(percent, options) for group, percent in place.items()}
    classes = [{groups[path] for path in paths} for paths in photos.values()]
    shared = {group for group, count in Counter(g for c in classes for g in c).items() if count > 1}
    for in_class in classes:
        _fill_empty_splits(sorted(in_class, key=place.get), shared, chosen, options)
    return {path: chosen[groups[path]] for path in keys}


def _subjects(keys):
    """{path: name of its subject}. Photos of one subject must share a split.

    A subject is one content (key), or all variants `NAME_nohash_*` of one NAME; a copy of a
    variant belongs to the variant's subject, so chains are followed to their end.
    """
    parent = {}

    def find(name):
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for path, key in keys.items():
        stem, mark, _ = os.path.basename(path).partition("_nohash_")
        subject = os.fsencode(stem).hex() + "_nohash_" if mark else key
        # The smallest name stands for all, so the order of the files does not matter.
        low, high = sorted((find(subject), find(key)), key=lambda n: ("_nohash_" not in n, n))
        parent[high] = low
    return {path: find(key) for path, key in keys.items()}


def _fill_empty_splits(in_class, shared, chosen, options):
    """Gives a class at least one subject in each wanted split, if it has enough of them.

    `in_class` is sorted by hash, and the ones nearest the end a split takes from are moved, so
    that the choice depends on nothing but the photos. Training comes first for tiny classes. A
    subject that is `shared` with another class is moved into training only.
    """
    shares = {TRAINING: 100, TESTING: options.testing, VALIDATION: options.validation}
    wanted = [split for split, share in shares.items() if share > 0][: len(in_class)]
    for split in wanted:
        counts = Counter(chosen[group] for group in in_class)
        movable = [group for group in in_class if group not in shared or split == TRAINING]
        if counts[split] or not movable:
            continue
        # From the largest split, or else from one that this class need not have.
        worth = {group: (counts[chosen[group]], chosen[group] not in wanted) for group in movable}
        donors = [group for group in movable if worth[group] == max(worth.values())]
        if counts[chosen[donors[0]]] > 1 or chosen[donors[0]] not in wanted or split == TRAINING:
            chosen[donors[-1 if split == TRAINING else 0]] = split


def _check_training(photos, splits):
    for label, paths in photos.items():
        if not any(splits[path] == TRAINING for path in paths):
            raise DatasetError(
                f"no image of {label} is left for training; add images, lower "
                f"--testing_percentage and --validation_percentage, or use --split_by content"
            )


def _shared_between_classes(examples):
    labels = defaultdict(set)
    for example in examples:
        labels[example.key].add(example.label)
    shared = [example.path for example in examples if len(labels[example.key]) > 1]
    if not shared:
        return []
    return [f"{len(shared)} files have the same content in two classes: {_some(shared)}"]
