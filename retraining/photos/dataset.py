"""The photos of a folder with their labels and splits."""

import os
from collections import defaultdict
from dataclasses import dataclass, field

from retraining.photos import places
from retraining.photos.decode import reason_of
from retraining.photos.exclude import without
from retraining.photos.scan import (
    BadImage,
    DatasetError,
    ScanOptions,
    hash_file,
    list_photos,
    some_names,
)
from retraining.photos.split import TRAINING, SplitOptions, splits_by_content, splits_by_path
from retraining.system.text import counted

FEW_IMAGES = 20  # below this a class is warned of, as in the classic


@dataclass(frozen=True)
class Example:
    """One photo: its path, its class's label, its split and the SHA-1 of its bytes (hex)."""

    path: str
    label: str
    split: str
    key: str


@dataclass(frozen=True)
class Dataset:
    """The photos of a folder, what looks odd, a line each, the files that were left out, and how
    many photos were excluded on demand; {key: reason} of the photos that are known to be broken."""

    examples: list[Example]
    warnings: list[str]
    bad: list[BadImage]
    excluded: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self):
        """Each class's label once, sorted; the order of the network's outputs."""
        return sorted({example.label for example in self.examples})

    def split(self, name):
        """The examples of one split, in the order of the folder."""
        return [example for example in self.examples if example.split == name]


def load_dataset(image_dir, options=None, key_of=None, scan=None):
    """Reads the folder: a class per sub-folder, a split per photo (SplitOptions, ScanOptions).

    `key_of(path)` gives a file's key; by default its bytes are hashed. A file of which it raises
    OSError is left out.

    Raises:
        DatasetError: missing or empty folder, fewer than two classes, two folders that would be
            one label, a class without images or without training images.
    """
    options = options or SplitOptions()
    scan = scan or ScanOptions()
    photos, bad, warnings = list_photos(image_dir, scan)
    photos, excluded, unmatched = without(photos, scan.listed, image_dir)
    warnings += unmatched
    keys = _read_keys(photos, key_of or hash_file, bad)
    for label, paths in photos.items():
        _check_class(places.join(image_dir, label), paths, bad, warnings)
    if options.by == "path":
        splits = splits_by_path(image_dir, keys, options)
    else:
        splits = splits_by_content(photos, keys, options)
    examples = [
        Example(path, label, splits[path], keys[path])
        for label, paths in photos.items()
        for path in paths
    ]
    _check_training(photos, splits)
    warnings += _shared_between_classes(examples)
    return Dataset(examples, warnings, bad, excluded)


def _read_keys(photos, key_of, bad):
    """{path: key}; moves files that cannot be read from `photos` to `bad`."""
    keys = {}
    for label, paths in photos.items():
        for path in paths:
            try:
                keys[path] = key_of(path)
            except OSError as error:
                bad.append(BadImage(path, f"cannot be read: {reason_of(error)}"))
        photos[label] = [path for path in paths if path in keys]
    return keys


def _check_class(folder, paths, bad, warnings):
    if not paths:
        why = next((f" ({i.path} {i.reason})" for i in bad if i.path.startswith(folder)), "")
        raise DatasetError(
            f"the class folder {folder} holds no images{why}; add some or remove the folder"
        )
    if len(paths) < FEW_IMAGES:
        warnings.append(
            f"{os.path.basename(folder)} has only {counted(len(paths), 'image')}; {FEW_IMAGES} or "
            f"more give a better model"
        )


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
    return [f"{len(shared)} files have the same content in two classes: {some_names(shared)}"]
