"""Scans a folder of class folders and assigns each photo to a split. No TensorFlow."""

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from retraining.errors import RetrainingError
from retraining.photos import places
from retraining.photos.image_files import (
    MAX_PIXELS,
    ImageFileError,
    looks_like_image,
    named_like_image,
    reason_of,
)
from retraining.photos.listing import Listing
from retraining.system.lines import counted, some, unescaped

TRAINING, VALIDATION, TESTING = SPLITS = ("training", "validation", "testing")
FEW_IMAGES = 20  # below this a class is warned of, as in the classic

# The classic's MAX_NUM_IMAGES_PER_CLASS: split hashes are taken modulo 2^27.
HASH_RANGE = 2**27

TABLE_START = "path\t"  # how the headers of label_audit.tsv and bad_images.tsv begin


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
class BadImage:
    """A file that was left out, and why. One that is not `claimed` is no image, nor named so."""

    path: str
    reason: str
    claimed: bool = True


@dataclass(frozen=True)
class SplitOptions:
    """Percentages of validation and testing, and what decides: `content` or `path`.

    `stratified` cuts each class by them exactly; then photos may move when others are added.
    """

    validation: int = 10
    testing: int = 10
    by: str = "content"
    stratified: bool = False


@dataclass(frozen=True)
class ScanOptions:
    """Which files are looked at: those below the class folders, too; how large they may be; the
    paths `listed` (see `read_listed`) are left out; the `listing` of what lies below a URL."""

    recursive: bool = False
    max_pixels: int = MAX_PIXELS
    listed: tuple[str, ...] = ()
    listing: Listing | None = None


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


def list_photos(image_dir, scan=None, least_classes=2):
    """Returns ({label: [path, ...]}, [BadImage, ...], warnings), sorted.

    A label is the folder's name as it is spelled. Hidden files are passed over; what is no image
    by its content is among the bad ones.

    Raises:
        DatasetError: as `load_dataset`.
    """
    scan = scan or ScanOptions()
    photos, bad, warnings = {}, [], []
    for name in _class_folders(image_dir, scan, least_classes):
        folder = places.join(image_dir, name)
        photos[name], bad_here, inner = _image_files(folder, scan)
        bad += bad_here
        if others := [image.path for image in bad_here if not image.claimed]:
            said = f"file in {folder} is no image", f"files in {folder} are no images"
            warnings.append(f"{counted(len(others), *said)}: {_some(others)}")
        if inner and not scan.recursive:
            said = f"folder in {folder} is", f"folders in {folder} are"
            warnings.append(
                f"{counted(len(inner), *said)} not looked into ({_some(inner)}); --recursive takes "
                f"photos there, too"
            )
    return photos, bad, warnings


def read_listed(path):
    """The paths in a text file, a line each, or in the first column of one of our tables.

    Blank lines and lines that begin with `#` say nothing.

    Raises:
        DatasetError: the file cannot be read or is no text.
    """
    try:
        text = os.fsdecode(Path(path).read_bytes())
    except OSError as error:
        raise DatasetError(f"cannot read the list {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        text = "\0"  # where names are text and no bytes, as on Windows
    if "\0" in text:
        raise DatasetError(f"the list {path} is no text in UTF-8; save it as such")
    lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
    if lines[0].startswith(TABLE_START):
        lines = [line.split("\t")[0] for line in lines[1:]]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def without(photos, listed, image_dir):
    """Returns ({label: [path, ...]} less the photos listed, how many those were, warnings).

    A line may name a photo from the current folder or from `image_dir`, and as `escaped` on one
    line; what it says literally goes first.

    Raises:
        DatasetError: a class is left without photos.
    """
    if not listed:
        return photos, 0, []
    known = {_place(path): path for paths in photos.values() for path in paths}
    found = {line: _find(line, known, image_dir) for line in listed}
    gone = {path for path in found.values() if path}
    left = {label: [p for p in paths if p not in gone] for label, paths in photos.items()}
    for label, paths in left.items():
        if not paths:
            raise DatasetError(f"all photos of {label} are excluded; keep some, or move the folder")
    lost = [line for line, path in found.items() if not path]
    warnings = [f"{len(lost)} of the excluded are no photos in {image_dir}: {_some(lost)}"]
    return left, len(gone), warnings if lost else []


def _place(path):
    """One spelling for all ways to a file; a link to a file is a file of its own."""
    if places.is_url(path):
        return path
    folder, name = os.path.split(path)
    return os.path.join(os.path.normcase(os.path.realpath(folder)), os.path.normcase(name))


def _find(line, known, image_dir):
    for name in (line, unescaped(line)):
        for path in (name, places.join(image_dir, name)):
            if found := known.get(_place(path)):
                return found
    return None


def _some(paths):
    return some([os.path.basename(path) for path in paths])


def _folders(image_dir):
    try:
        entries = sorted(os.listdir(image_dir))
    except OSError as error:
        raise DatasetError(
            f"cannot read the image folder {image_dir} ({error.strerror}); it must be a folder "
            f"with one sub-folder of photos per class"
        ) from error
    return [
        n for n in entries if not n.startswith(".") and os.path.isdir(os.path.join(image_dir, n))
    ]


def _class_folders(image_dir, scan, least):
    names = scan.listing.folders() if scan.listing else _folders(image_dir)
    if len(names) < least:
        wanted = "at least two class folders" if least == 2 else "a class folder"
        found = f"only one ({names[0]})" if names else "none"
        if _image_files(image_dir, replace(scan, recursive=False))[0]:
            found += "; it holds images itself: name the folder above it, or sort them into classes"
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
        return any(_image_files(folder, ScanOptions())[0] for folder in folders)
    except OSError:
        return False


def files_below(folder, recursive=True, left_out=None):
    """Yields (path, whether it is a folder not entered) of what is in a folder, sorted.

    Hidden files and folders are passed over, as is the folder of real path `left_out`. A folder
    is entered once, however links lead to it.
    """
    entered, waiting = {left_out}, [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in entered:
            continue
        entered.add(real)
        inner = []
        try:
            names = sorted(os.listdir(here))
        except OSError:
            if here == folder:
                raise
            yield here, False  # which is no image that can be read
            continue
        for name in names:
            path = os.path.join(here, name)
            if places.passed_over(name):
                continue
            if not os.path.isdir(path):
                yield path, False
            elif recursive:
                inner.append(path)
            else:
                yield path, True
        waiting += reversed(inner)


def _image_files(folder, scan):
    """(images, BadImages, folders not entered) of a class folder."""
    images, bad, folders = [], [], []
    below, why_not = files_below, why_no_image
    if scan.listing:
        below, why_not = scan.listing.files_below, scan.listing.why_no_image
    for path, is_folder in below(folder, scan.recursive):
        if is_folder:
            folders.append(path)
        elif reason := why_not(path, scan.max_pixels):
            claimed = named_like_image(path) or reason != NO_IMAGE
            bad.append(BadImage(path, reason, claimed))
        else:
            images.append(path)
    return images, bad, folders


NO_IMAGE = "is not an image of a known format"


def why_no_image(path, max_pixels=MAX_PIXELS):
    """Why a file is no image as far as its size and beginning tell, or None."""
    try:
        return None if looks_like_image(path, max_pixels) else NO_IMAGE
    except ImageFileError as error:
        return str(error)


def hash_file(path):
    """SHA-1 of the file's bytes, hex.

    Raises:
        OSError: the file cannot be read.
    """
    if places.is_url(path):
        return hashlib.sha1(places.read(path)).hexdigest()
    digest = hashlib.sha1()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
    if options.stratified:
        chosen = _stratified(photos, groups, place, options)
    else:
        chosen = {group: split_of(percent, options) for group, percent in place.items()}
    classes = [{groups[path] for path in paths} for paths in photos.values()]
    shared = {group for group, count in Counter(g for c in classes for g in c).items() if count > 1}
    for in_class in classes:
        _fill_empty_splits(sorted(in_class, key=place.get), shared, chosen, options)
    return {path: chosen[groups[path]] for path in keys}


def _stratified(photos, groups, place, options):
    """{subject: split}: each class sorted by its subjects' hashes `place` and cut by its quotas.

    A subject of several photos goes where it still fits; one of an earlier class, too, stays there.
    """
    chosen = {}
    for paths in photos.values():
        sizes = Counter(groups[path] for path in paths)
        left = _quotas(len(paths), options)
        for group in sizes:
            if group in chosen:
                left[chosen[group]] -= sizes[group]
        for group in sorted(sizes.keys() - chosen.keys(), key=place.get):
            fitting = (part for part in (VALIDATION, TESTING) if 0 < sizes[group] <= left[part])
            chosen[group] = next(fitting, TRAINING)
            left[chosen[group]] -= sizes[group]
    return chosen


def _quotas(count, options):
    """{split: number of `count` photos}, by the largest remainder of the exact shares."""
    parts = {TESTING: options.testing, VALIDATION: options.validation}
    parts = {TRAINING: 100 - sum(parts.values()), **parts}
    shares = {part: divmod(count * percent, 100) for part, percent in parts.items()}
    quotas = {part: int(whole) for part, (whole, _) in shares.items()}
    order = sorted(shares, key=lambda part: -shares[part][1])  # stable: training, then testing
    for part in order[: count - sum(quotas.values())]:
        quotas[part] += 1
    return quotas


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
