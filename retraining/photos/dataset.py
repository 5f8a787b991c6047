"""Reads the photos of a folder with their labels and splits."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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

FEW_IMAGES = 20  # a class with fewer gets a warning, as in the classic


@dataclass(frozen=True)
class Example:
    """One photo: its path, its class's label, its split and the SHA-1 of its bytes (hex)."""

    path: str
    label: str
    split: str
    key: str


@dataclass(frozen=True)
class Dataset:
    """The photos of a folder.

    `warnings` has one line for each oddity, `bad` the files that were left out, `excluded` the
    number of photos that the user excluded, `broken` {key: reason} of photos known to be broken.
    """

    examples: list[Example]
    warnings: list[str]
    bad: list[BadImage]
    excluded: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Each class's label once, sorted: the order of the network's outputs."""
        return sorted({example.label for example in self.examples})

    def split(self, name: str) -> list[Example]:
        """Returns the examples of one split, in the order of the folder."""
        return [example for example in self.examples if example.split == name]


def load_dataset(
    image_dir: str,
    options: SplitOptions | None = None,
    key_of: Callable[[str], str] | None = None,
    scan: ScanOptions | None = None,
) -> Dataset:
    """Reads a folder that has a sub-folder for each class, and assigns each photo to a split.

    `key_of(path)` returns a file's key; the default hashes its bytes. A file is left out if
    `key_of` raises OSError.

    Raises:
        DatasetError: the folder is missing or empty, has fewer than two classes, two sub-folders
            would become one label, or a class has no images or no training images.
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
        splits = splits_by_path(keys, options)
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


def _read_keys(
    photos: dict[str, list[str]], key_of: Callable[[str], str], bad: list[BadImage]
) -> dict[str, str]:
    """Returns {path: key}; moves unreadable files from `photos` to `bad`."""
    keys: dict[str, str] = {}
    for label, paths in photos.items():
        for path in paths:
            try:
                keys[path] = key_of(path)
            except OSError as error:
                bad.append(BadImage(path, f"cannot be read: {reason_of(error)}"))
        photos[label] = [path for path in paths if path in keys]
    return keys


def _check_class(
    folder: str, paths: Sequence[str], bad: Sequence[BadImage], warnings: list[str]
) -> None:
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


def _check_training(photos: Mapping[str, Sequence[str]], splits: Mapping[str, str]) -> None:
    for label, paths in photos.items():
        if not any(splits[path] == TRAINING for path in paths):
            raise DatasetError(
                f"no image of {label} is left for training; add images, lower "
                f"`SplitOptions.testing` and `SplitOptions.validation`, or use `SplitOptions.by` "
                f"content"
            )


def _shared_between_classes(examples: Sequence[Example]) -> list[str]:
    labels: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        labels[example.key].add(example.label)
    shared = [example.path for example in examples if len(labels[example.key]) > 1]
    if not shared:
        return []
    return [f"{len(shared)} files have the same content in two classes: {some_names(shared)}"]
