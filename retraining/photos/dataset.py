"""Reads the photos of a source with their labels and splits."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from retraining.photos.decode import reason_of
from retraining.photos.exclude import without
from retraining.photos.registry import hash_file, open_source
from retraining.photos.source import BadImage, DatasetError, Photo, PhotoSource, ScanOptions
from retraining.photos.split import TRAINING, SplitOptions, splits_by_content, splits_by_path
from retraining.system.text import counted, some

FEW_IMAGES = 20  # a class with fewer gets a warning, as in the classic


@dataclass(frozen=True)
class Example:
    """One photo: its name in the source, its label, its split, the SHA-1 of its bytes (hex)."""

    path: str
    label: str
    split: str
    key: str


@dataclass(frozen=True)
class Dataset:
    """The photos of a source.

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
        """The labels of the classes, sorted: the order of the network's outputs."""
        return sorted({example.label for example in self.examples})

    def split(self, name: str) -> list[Example]:
        """Returns the examples of one split, in the order of the source."""
        return [example for example in self.examples if example.split == name]


def load_dataset(
    source: PhotoSource | str,
    options: SplitOptions | None = None,
    key_of: Callable[[Photo], str] | None = None,
    scan: ScanOptions | None = None,
) -> Dataset:
    """Reads the photos of a source, or at a location, and assigns each to a split.

    `key_of(photo)` returns a photo's key; the default hashes its bytes. A photo is left out if
    `key_of` raises OSError. A split that the source assigns wins.

    Raises:
        DatasetError: the source is missing or empty, has fewer than two classes, two classes
            would become one label, or a class has no images or no training images.
        SourceError: the source cannot be listed.
    """
    source = open_source(source) if isinstance(source, str) else source
    options, scan = options or SplitOptions(), scan or ScanOptions()
    content = source.scan(scan)
    photos, excluded, unmatched = without(content.photos, scan.excluded, source)
    bad, warnings = content.bad, content.warnings + unmatched
    keys = _read_keys(photos, key_of or _hash_photo, bad)
    for label, of_class in photos.items():
        _check_class(source.path_of(label), of_class, bad, warnings)
    splits = _splits(photos, keys, options)
    examples = [
        Example(photo.name, label, splits[photo.name], keys[photo.name])
        for label, of_class in photos.items()
        for photo in of_class
    ]
    _check_training(examples)
    warnings += _shared_between_classes(examples)
    return Dataset(examples, warnings, bad, excluded)


def _hash_photo(photo: Photo) -> str:
    return hash_file(photo.name)


def _read_keys(
    photos: dict[str, list[Photo]], key_of: Callable[[Photo], str], bad: list[BadImage]
) -> dict[str, str]:
    """Returns {name: key}; moves unreadable files from `photos` to `bad`."""
    keys: dict[str, str] = {}
    for label, of_class in photos.items():
        for photo in of_class:
            try:
                keys[photo.name] = key_of(photo)
            except OSError as error:
                bad.append(BadImage(photo.name, f"cannot be read: {reason_of(error)}"))
        photos[label] = [photo for photo in of_class if photo.name in keys]
    return keys


def _splits(
    photos: Mapping[str, Sequence[Photo]], keys: Mapping[str, str], options: SplitOptions
) -> dict[str, str]:
    """Returns {name: split}: the source's own, or else by the hash that the options name."""
    if options.by == "path":
        splits = splits_by_path(keys, options)
    else:
        names = {label: [photo.name for photo in of_class] for label, of_class in photos.items()}
        splits = splits_by_content(names, keys, options)
    every = (photo for of_class in photos.values() for photo in of_class)
    return splits | {photo.name: photo.split for photo in every if photo.split}


def _check_class(
    folder: str, photos: Sequence[Photo], bad: Sequence[BadImage], warnings: list[str]
) -> None:
    if not photos:
        why = next((f" ({i.path} {i.reason})" for i in bad if i.path.startswith(folder)), "")
        raise DatasetError(
            f"the class folder {folder} holds no images{why}; add some or remove the folder"
        )
    if len(photos) < FEW_IMAGES:
        warnings.append(
            f"{os.path.basename(folder)} has only {counted(len(photos), 'image')}; {FEW_IMAGES} or "
            f"more give a better model"
        )


def _check_training(examples: Sequence[Example]) -> None:
    trained = {example.label for example in examples if example.split == TRAINING}
    for label in dict.fromkeys(example.label for example in examples):
        if label not in trained:
            raise DatasetError(
                f"no image of {label} is left for training; add images, lower "
                f"`SplitOptions.testing` and `SplitOptions.validation`, or use `SplitOptions.by` "
                f"content"
            )


def _shared_between_classes(examples: Sequence[Example]) -> list[str]:
    copies: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        copies[example.key].append(example)
    shared = [
        f"{example.label}/{os.path.basename(example.path)}"
        for same in copies.values()
        if len({example.label for example in same}) > 1
        for example in same
    ]
    if not shared:
        return []
    return [f"{len(shared)} files have the same content in two classes: {some(shared)}"]
