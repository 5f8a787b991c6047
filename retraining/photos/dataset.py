"""Reads the photos of a source with their labels and splits."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from retraining.photos.class_folders import some_names
from retraining.photos.exclude import without
from retraining.photos.formats import reason_of
from retraining.photos.registry import hash_file, open_source
from retraining.photos.source import BadImage, DatasetError, Photo, PhotoSource, ScanOptions
from retraining.photos.split import (
    AUTO,
    CONTENT,
    FOLDERS,
    PATH,
    SPLITS,
    TESTING,
    TRAINING,
    VALIDATION,
    SplitOptions,
    splits_by_content,
    splits_by_path,
)
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
    number of photos that the user excluded, `broken` {key: reason} of photos known to be broken,
    `note` a line on the splits if the source gives them.
    """

    examples: list[Example]
    warnings: list[str]
    bad: list[BadImage]
    excluded: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    note: str = ""

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
    `key_of` raises OSError. Unless the options say otherwise, splits that the source gives are
    kept, and of copies in several splits only those in the last one, testing being the last.

    Raises:
        DatasetError: the source is missing or empty, has fewer than two classes, two classes
            would become one label, a class has no images or no training images, or the options
            want splits that the source does not give.
        SourceError: the source cannot be listed.
    """
    source = open_source(source) if isinstance(source, str) else source
    options = options or SplitOptions()
    scan = replace(scan or ScanOptions(), split_folders=options.by != PATH)
    content = source.scan(scan)
    photos, excluded, unmatched = without(content.photos, scan.excluded, source)
    bad, warnings = content.bad, content.warnings + unmatched
    keys = _read_keys(photos, key_of or _hash_photo, bad)
    for label, of_class in photos.items():
        _check_class(label, content.folders.get(label, ()), of_class, bad, warnings)
    shared, given = _shared_between_classes(photos, keys), _given_splits(photos, options)
    if options.by == FOLDERS and not given:
        raise DatasetError(
            f"{source.location} gives no splits: it has no split folders (train, val, test) with "
            f"the same class folders in each, nor a column `split`"
        )
    photos = _without_leaks(photos, keys, given, warnings)
    splits = _splits(photos, keys, given, options)
    examples = [
        Example(photo.name, label, splits[photo.name], keys[photo.name])
        for label, of_class in photos.items()
        for photo in of_class
    ]
    _check_training(examples, bool(given))
    if given:
        warnings += _classes_not_held_out(examples, set(given.values()))
    note = _describe_given(given, splits) if given else ""
    return Dataset(examples, warnings + shared, bad, excluded, note=note)


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
                reason = f"cannot be read: {reason_of(error)}"
                bad.append(BadImage(photo.name, reason, label=label))
        photos[label] = [photo for photo in of_class if photo.name in keys]
    return keys


def _given_splits(photos: Mapping[str, Sequence[Photo]], options: SplitOptions) -> dict[str, str]:
    """Returns {name: split} of all photos as the source gives them; {} if it gives none.

    A photo without a split counts for training if others have one.
    """
    every = [photo for of_class in photos.values() for photo in of_class]
    if options.by not in (AUTO, FOLDERS) or not any(photo.split for photo in every):
        return {}
    return {photo.name: photo.split or TRAINING for photo in every}


def _without_leaks(
    photos: Mapping[str, list[Photo]],
    keys: Mapping[str, str],
    given: Mapping[str, str],
    warnings: list[str],
) -> dict[str, list[Photo]]:
    """Returns the photos without those of which a later split of SPLITS holds a copy."""
    last: dict[str, int] = {}
    for name, split in given.items():
        last[keys[name]] = max(SPLITS.index(split), last.get(keys[name], 0))
    leaks = {name for name, split in given.items() if SPLITS.index(split) < last[keys[name]]}
    if leaks:
        parts = {part: sum(given[name] == part for name in leaks) for part in SPLITS}
        out_of = " and ".join(part for part, count in parts.items() if count)
        forms = "photo is also in another split", "photos are also in another split"
        warnings.append(
            f"{counted(len(leaks), *forms)} and left out of {out_of} "
            f"(testing comes first, then validation): {some_names(sorted(leaks))}"
        )
    return {
        label: [photo for photo in of_class if photo.name not in leaks]
        for label, of_class in photos.items()
    }


def _splits(
    photos: Mapping[str, Sequence[Photo]],
    keys: Mapping[str, str],
    given: Mapping[str, str],
    options: SplitOptions,
) -> dict[str, str]:
    """Returns {name: split}: as given, a missing split cut from training, or by a hash."""
    if options.by == PATH:
        return splits_by_path(keys, options)
    there = set(given.values())
    options = replace(
        options,
        by=CONTENT,
        validation=0 if VALIDATION in there else options.validation,
        testing=0 if TESTING in there else options.testing,
    )
    names = {
        label: [p.name for p in of_class if given.get(p.name, TRAINING) == TRAINING]
        for label, of_class in photos.items()
    }
    pool = {name: keys[name] for of_class in names.values() for name in of_class}
    return {**given, **splits_by_content(names, pool, options)}


def _describe_given(given: Mapping[str, str], splits: Mapping[str, str]) -> str:
    """Returns a line on the splits that a source gives, and on those cut from training."""
    counts = Counter(given.values())
    parts = ", ".join(f"{counts[part]} for {part}" for part in SPLITS if counts[part])
    line = f"splits as given: {parts}"
    cut = [part for part in SPLITS if not counts[part] and part in splits.values()]
    return f"{line}; {' and '.join(cut)} cut from training" if cut else line


def _classes_not_held_out(examples: Sequence[Example], given: Set[str]) -> list[str]:
    """Returns a warning for each given split that lacks classes."""
    labels = dict.fromkeys(example.label for example in examples)
    lines = []
    for part in (VALIDATION, TESTING):
        there = {example.label for example in examples if example.split == part}
        lacking = [label for label in labels if label not in there]
        if part in given and lacking:
            classes = counted(len(lacking), "class", "classes")
            lines.append(f"{classes} without a photo for {part}: {some(lacking)}")
    return lines


def _check_class(
    label: str,
    folders: Sequence[str],
    photos: Sequence[Photo],
    bad: Sequence[BadImage],
    warnings: list[str],
) -> None:
    if not photos:
        why = next((f" ({i.path} {i.reason})" for i in bad if i.label == label), "")
        where = f"folder {' or '.join(folders)}" if folders else label
        remedy = "add some or remove the folder" if folders else "add some or leave it out"
        raise DatasetError(f"the class {where} holds no images{why}; {remedy}")
    if len(photos) < FEW_IMAGES:
        warnings.append(
            f"{label} has only {counted(len(photos), 'image')}; {FEW_IMAGES} or "
            f"more give a better model"
        )


def _check_training(examples: Sequence[Example], given: bool) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        splits[example.label].add(example.split)
    for label, parts in splits.items():
        if TRAINING in parts:
            continue
        if given:
            raise DatasetError(
                f"no image of {label} is for training, only for {' and '.join(sorted(parts))}; "
                f"add some, or pool all photos with `SplitOptions.by` content"
            )
        raise DatasetError(
            f"no image of {label} is left for training; add images, lower "
            f"`SplitOptions.testing` and `SplitOptions.validation`, or use `SplitOptions.by` "
            f"content"
        )


def _shared_between_classes(
    photos: Mapping[str, Sequence[Photo]], keys: Mapping[str, str]
) -> list[str]:
    copies: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for label, of_class in photos.items():
        for photo in of_class:
            copies[keys[photo.name]].append((label, os.path.basename(photo.name)))
    shared = [
        f"{label}/{name}"
        for same in copies.values()
        if len({label for label, _ in same}) > 1
        for label, name in same
    ]
    if not shared:
        return []
    return [f"{len(shared)} files have the same content in two classes: {some(shared)}"]
