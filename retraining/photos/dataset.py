"""Reads the photos of a source with their labels and splits."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from retraining.photos.class_folders import quoted, same_label, some_names
from retraining.photos.exclude import without
from retraining.photos.formats import reason_of
from retraining.photos.registry import hash_file, open_source
from retraining.photos.source import BadImage, DatasetError, Photo, PhotoSource, Scan, ScanOptions
from retraining.photos.split import (
    CONTENT,
    FOLDERS,
    PATH,
    SPLITS,
    TESTING,
    TRAINING,
    VALIDATION,
    SplitOptions,
    named_split,
    splits_by_content,
    splits_by_path,
)
from retraining.system.text import counted, some

MOST_LINES = 5  # on classes of few images
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
    `given` the splits that the source gives, `note` a line on these and on the layout,
    `classes` the labels in the
    order that the user gave, if any.
    """

    examples: list[Example]
    warnings: list[str]
    bad: list[BadImage]
    excluded: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    note: str = ""
    classes: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """The labels in the order of the network's outputs: as the user gave them, or sorted."""
        return list(self.classes) or sorted({example.label for example in self.examples})

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
        DatasetError: the source is missing or empty, has fewer than two classes, a name of a
            class cannot be a label, a class has no images or no training images, or the options
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
        _check_class(label, of_class, content, options.by)
    warnings += _describe_few({label: len(of_class) for label, of_class in photos.items()})
    assigned = _assign_splits(photos, keys, options, source.location)
    examples = [
        Example(photo.name, label, assigned.splits[photo.name], keys[photo.name])
        for label, of_class in photos.items()
        for photo in of_class
        if photo.name in assigned.splits
    ]
    warnings += assigned.warnings + _shared_between_classes(photos, keys)
    return Dataset(
        examples,
        warnings,
        bad,
        excluded,
        given=assigned.given,
        note="; ".join(filter(None, [*content.notes, assigned.note])),
        classes=scan.classes,
    )


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


@dataclass(frozen=True)
class _Assignment:
    """Splits {name: split}; those that the source gives; warnings of them, and a line on them."""

    splits: dict[str, str]
    given: frozenset[str]
    warnings: list[str]
    note: str


def _assign_splits(
    photos: Mapping[str, Sequence[Photo]],
    keys: Mapping[str, str],
    options: SplitOptions,
    location: str,
) -> _Assignment:
    """Assigns each photo to a split, as the options say; see load_dataset.

    Raises:
        DatasetError: a class has no photos for training, or `location` gives no splits but should.
    """
    given = _given_splits(photos, options)
    if options.by == FOLDERS and not given:
        raise DatasetError(
            f"{location} gives no splits: it has no split folders (train, val, test) with "
            f"the same class folders in each, nor a column `split`"
        )
    leaks, there = _leaks(keys, given), frozenset(given.values())
    left = {
        label: [photo.name for photo in of_class if photo.name not in leaks]
        for label, of_class in photos.items()
    }
    splits = _splits(left, keys, given, options)
    parts = {label: {splits[name] for name in names} for label, names in left.items()}
    _check_training(parts, bool(given))
    warnings = _describe_leaks(leaks) + _classes_not_held_out(parts, there)
    return _Assignment(splits, there, warnings, _describe_given(given, splits) if given else "")


def _given_splits(photos: Mapping[str, Sequence[Photo]], options: SplitOptions) -> dict[str, str]:
    """Returns {name: split} of all photos as the source gives them; {} if it gives none.

    A photo without a split counts for training if others have one.
    """
    every = [photo for of_class in photos.values() for photo in of_class]
    if not options.keeps_given or not any(photo.split for photo in every):
        return {}
    return {photo.name: photo.split or TRAINING for photo in every}


def _leaks(keys: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Returns {name: given split} of the photos of which a later split of SPLITS holds a copy."""
    last: dict[str, int] = {}
    for name, split in given.items():
        last[keys[name]] = max(SPLITS.index(split), last.get(keys[name], 0))
    return {name: split for name, split in given.items() if SPLITS.index(split) < last[keys[name]]}


def _describe_leaks(leaks: Mapping[str, str]) -> list[str]:
    """Returns a warning of leaks {name: split}, if there are any."""
    if not leaks:
        return []
    out_of = " and ".join(part for part in SPLITS if part in leaks.values())
    forms = "photo is also in another split", "photos are also in another split"
    return [
        f"{counted(len(leaks), *forms)} and left out of {out_of} "
        f"(testing comes first, then validation): {some_names(sorted(leaks))}"
    ]


def _splits(
    names: Mapping[str, Sequence[str]],
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
    pool = {
        label: [name for name in of_class if given.get(name, TRAINING) == TRAINING]
        for label, of_class in names.items()
    }
    pool_keys = {name: keys[name] for of_class in pool.values() for name in of_class}
    kept = {name: given[name] for of_class in names.values() for name in of_class if given}
    return {**kept, **splits_by_content(pool, pool_keys, options)}


def _describe_given(given: Mapping[str, str], splits: Mapping[str, str]) -> str:
    """Returns a line on the splits that a source gives, and on those cut from training."""
    counts = Counter(given.values())
    parts = ", ".join(f"{counts[part]} for {part}" for part in SPLITS if counts[part])
    line = f"using the given splits: {parts}"
    cut = [part for part in SPLITS if not counts[part] and part in splits.values()]
    return f"{line}; {' and '.join(cut)} taken from the training photos" if cut else line


def _classes_not_held_out(parts: Mapping[str, Set[str]], given: Set[str]) -> list[str]:
    """Returns a warning for each given split that lacks classes; `parts` is {label: its splits}."""
    lines = []
    for part in (VALIDATION, TESTING):
        lacking = [label for label, of_class in parts.items() if part not in of_class]
        if part in given and lacking:
            classes = counted(len(lacking), "class", "classes")
            lines.append(f"{classes} without photos for {part}: {some(lacking)}")
    return lines


def _check_class(label: str, photos: Sequence[Photo], content: Scan, by: str) -> None:
    if not photos:
        why = next((f" ({i.path} {i.reason})" for i in content.bad if i.label == label), "")
        folders = content.folders.get(label, ())
        where = f"folder {' or '.join(folders)}" if folders else label
        remedy = _remedy(label, content, by)
        raise DatasetError(f"the class {where} holds no images{why}; {remedy}")


def _describe_few(counts: Mapping[str, int]) -> list[str]:
    """Returns a line for each class of few images, or one on all of them if they are many."""
    few = {label: count for label, count in counts.items() if count < FEW_IMAGES}
    if len(few) > MOST_LINES:
        named = some([f"{label} ({count})" for label, count in few.items()])
        return [
            f"{len(few)} classes have fewer than {FEW_IMAGES} images: {named}; add photos of "
            f"each to get a better model"
        ]
    return [
        f"{label} has only {counted(count, 'image')}; {FEW_IMAGES} or more give a better model"
        for label, count in few.items()
    ]


def _remedy(label: str, content: Scan, by: str) -> str:
    """Returns what to do about a class without photos."""
    others = [name for name in content.folders if not named_split(name)]
    if label in content.nested and named_split(label) and others and by != PATH:
        return (
            f"{label} looks like a split folder, but {others[0]} does not; put all class folders "
            f"into split folders, or none"
        )
    if label in content.nested:
        remedy = "`PhotoSettings.recursive` also reads the folders within it"
        for folder in content.nested[label]:
            if os.path.basename(folder) == label:
                remedy += f"; if {folder} holds class folders, give it as `PhotoSettings.image_dir`"
        return remedy
    return (
        "add some, or remove the folder" if content.folders else "add some, or leave the class out"
    )


def _check_training(parts: Mapping[str, Set[str]], given: bool) -> None:
    """Raises DatasetError if a class has no training photos; `parts` is {label: its splits}."""
    for label, of_class in parts.items():
        if TRAINING in of_class:
            continue
        if given:
            others = f", only for {' and '.join(sorted(of_class))}" if of_class else ""
            alike = [o for o in parts if o != label and same_label(o) == same_label(label)]
            name = quoted([label, alike[0]])[1] if alike else ""
            rename = f"give it the name of {name} if it is the same class, " if alike else ""
            raise DatasetError(
                f"no image of {label} is for training{others}; {rename}add some, or pool all "
                f"photos with `SplitOptions.by` content"
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
