"""Finds the class folders of a tree of files, and the photos in them, for any photo source."""

import difflib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from retraining.photos.bounds import ImageFileError, NotAnImageError
from retraining.photos.formats import claims_to_be_image, named_like_image
from retraining.photos.labelled_files import CLASSES_FILE, files_by_name, files_in_lists, labels_in
from retraining.photos.passed_over import EMPTY, LOOSE, NESTED, OTHER, PassedOver
from retraining.photos.source import NAME, BadImage, DatasetError, Photo, Scan, ScanOptions
from retraining.photos.split import named_split
from retraining.photos.tree import Branch, LabelledFile, Tree, holds
from retraining.system.regular import ARCHIVE_NAME
from retraining.system.text import as_text, counted, is_label, some

MOST_DEEP = 3  # levels of folders above the class folders
# `-` between words, or between spaces; any other is a sign.
HYPHENS = re.compile(r"(?<=[^\s_-])-+(?=[^\s_-])|(?<=[\s_])-+(?=[\s_])")
# Spaces, plus, hyphens and dashes (U+2010 to U+2015), minus.
SIGNS = re.compile(r"[\s+\u2010-\u2015\u2212-]+")


def scan_class_folders(tree: Tree, options: ScanOptions, least_classes: int) -> Scan:
    """Finds the photos below class folders, or in another layout that tells their labels, sorted.

    A label is the folder's name as it is spelled. The class folders may lie in split folders, or in
    the only folder of the location. Without class folders, `_classes.csv` files may tell the
    labels, or names, see `labelled_files`. Hidden files are skipped. Files whose content is not an
    image are BadImages. The last warning is the line of PassedOver.

    Raises:
        DatasetError: as for PhotoSource.scan.
    """
    passed = PassedOver(tree)
    by_name = options.label_from == NAME
    top = _top_by_name(tree, options) if by_name else _top(tree, options, least_classes)
    _add_above(top, passed)
    if by_name:
        files = files_by_name(top, options.recursive, passed)
        if len({file.label for file in files}) < least_classes:
            raise _too_few_names(passed, files)
        scan = _scan_files(passed, files, options, least_classes)
    elif files := files_in_lists(top, passed):
        scan = _scan_files(passed, files, options, least_classes)
        scan.notes.append(f"taking the labels from the {CLASSES_FILE} files")
    else:
        found = _class_folders(top, passed, options, least_classes)
        scan = _scan_folders(passed, found, options, least_classes)
    if top is not tree:
        scan.notes.append(
            f"taking the photos in {top.location}, the only folder in {tree.location}"
        )
    return scan


def _class_folders(
    tree: Tree, passed: PassedOver, options: ScanOptions, least: int
) -> list["_ClassFolder"]:
    """Returns the class folders, in split folders or in the location of the tree.

    Raises:
        DatasetError: they are fewer than `least`.
    """
    if options.split_folders and (found := _split_class_folders(tree, passed)):
        _check_split_classes(tree.location, found, least)
        return found
    names = tree.class_folders()
    if len(names) < least:
        raise _too_few(passed, names, least)
    passed.add_loose(tree.location)
    return [_ClassFolder(as_text(name), tree.path_of(name)) for name in names]


def _scan_folders(
    passed: PassedOver, found: Sequence["_ClassFolder"], options: ScanOptions, least: int
) -> Scan:
    """Returns the Scan of class folders; passes over classes whose folders are empty."""
    location, folders = passed.tree.location, defaultdict[str, list[_ClassFolder]](list)
    for folder in found:
        folders[folder.label].append(folder)
    labels = picked(folders, options.classes, location)
    scan = Scan({}, warnings=check_labels(labels, "class folder", location))
    if options.split_folders and all(map(named_split, labels)):
        scan.warnings.append(
            f"the run takes the folders {some(labels)} in {location}, which are named like splits, "
            f"for classes; where the names of the photos hold the labels, give "
            f"`PhotoSettings.label_from` name"
        )
    for label in labels:
        paths = [folder.folder for folder in folders[label]]
        content = [_files_of(passed, folder, options) for folder in folders[label]]
        if not any(content):
            passed.add(EMPTY, paths)
            continue
        scan.folders[label] = paths
        scan.photos[label] = [photo for files in content for photo in files.photos]
        for files in content:
            _add_others(scan, label, files, passed)
    _check_picked(passed, scan, options)
    if len(scan.photos) < least:
        raise _too_few(passed, list(scan.photos), least)
    scan.warnings.extend(passed.lines())
    return scan


def _check_picked(passed: PassedOver, scan: Scan, options: ScanOptions) -> None:
    """Raises DatasetError if one of the classes that the user picked has been passed over."""
    for name in options.classes:
        if name not in scan.photos:
            raise DatasetError(
                f"`PhotoSettings.classes` names {name}, which has no photos; "
                f"{'; '.join(passed.lines())}"
            )


def _add_others(scan: Scan, label: str, files: "_Files", passed: PassedOver) -> None:
    """Adds what is no photo in a folder of a class to the scan and to what it passes over."""
    scan.bad.extend(files.bad)
    passed.add(OTHER, [image.path for image in files.bad if not image.claimed])
    passed.add(NESTED, files.folders)
    if files.folders:
        scan.nested.setdefault(label, []).extend(files.folders)


def _scan_files(
    passed: PassedOver, files: Sequence[LabelledFile], options: ScanOptions, least: int
) -> Scan:
    """Returns the Scan of files with labels of their own."""
    location, there = passed.tree.location, sorted({file.label for file in files})
    if len(there) < least:
        raise DatasetError(
            f"the {CLASSES_FILE} files in {location} must give photos at least "
            f"{counted(least, 'label')}, but give only {there[0]}"
        )
    labels = picked(there, options.classes, location)
    scan = Scan({label: [] for label in labels})
    scan.warnings.extend(check_labels(labels, "label", location))
    for file in files:
        if file.label not in scan.photos:
            continue
        looked = _looked_at(passed.tree, file, options)
        if isinstance(looked, BadImage):
            scan.bad.append(looked)
        else:
            scan.photos[file.label].append(looked)
    passed.add(OTHER, [image.path for image in scan.bad if not image.claimed])
    scan.warnings.extend(passed.lines())
    return scan


class _ClassFolder(NamedTuple):
    """A folder with photos of one label, and of one split if it lies in a split folder."""

    label: str
    folder: str
    split: str | None = None


def _split_class_folders(tree: Tree, passed: PassedOver) -> list[_ClassFolder]:
    """Returns the class folders in split folders, by label; [] if the tree has another layout.

    All folders but empty ones must be named like splits, and share class folders.
    """
    names = tree.class_folders()
    others = [name for name in names if not named_split(name)]
    if any(holds(tree, tree.path_of(name)) for name in others):
        return []
    splits = {name: _split_folder(tree, name, passed) for name in names if name not in others}
    inner = {name: _folders_in(folder, passed) for name, folder in splits.items()}
    classes = [{same_label(os.path.basename(p)) for p in paths} for paths in inner.values()]
    counts = Counter(label for of_split in classes for label in of_split)
    split_into = [of_split for of_split in classes if of_split]
    shared = (any(counts[label] > 1 for label in of_split) for of_split in split_into)
    if not split_into or not (len(split_into) == 1 or all(shared)):
        return []
    passed.add(EMPTY, [tree.path_of(name) for name in others])
    for folder in dict.fromkeys((tree.location, *map(tree.path_of, splits), *splits.values())):
        passed.add_loose(folder)
    return sorted(
        _ClassFolder(as_text(os.path.basename(path)), path, named_split(name))
        for name, paths in inner.items()
        for path in paths
    )


def _top_by_name(tree: Tree, options: ScanOptions) -> Tree:
    """Returns the folder with the photos: the tree, or the only folder in it, or in that.

    A folder on the way must hold no photo.
    """
    top = tree
    for _ in range(0 if options.recursive else MOST_DEEP):
        names = [name for name in top.class_folders() if holds(top, top.path_of(name))]
        if len(names) != 1 or named_split(names[0]) or holds(top, top.location, photos=True):
            break
        top = Branch(top, names[0])
    return top


def _add_above(top: Tree, passed: PassedOver) -> None:
    """Adds what lies beside the folders that lead to `top`, which are the only ones there."""
    while isinstance(top, Branch):
        top = top.whole
        beside = map(top.path_of, top.class_folders())
        passed.add(EMPTY, [folder for folder in beside if not holds(top, folder)])
        passed.add_loose(top.location)


def _split_folder(tree: Tree, name: str, passed: PassedOver) -> str:
    """Returns the folder of a split: `train`, or `train/train` as in some downloads from Kaggle."""
    folder = tree.path_of(name)
    inner = _folders_in(folder, passed)
    return inner[0] if [os.path.basename(path) for path in inner] == [name] else folder


def _folders_in(folder: str, passed: PassedOver) -> list[str]:
    return [path for path, is_folder in passed.listed(folder, recursive=False) if is_folder]


def _top(tree: Tree, options: ScanOptions, least: int) -> Tree:
    """Returns the folder with the class folders: the tree, or the only folder in it, or in that.

    A folder on the way must hold nothing but the next one, and the last one two class folders. For
    a single class with photos in folders, which `recursive` may ask for, it is the tree.
    """
    top = tree
    for _ in range(0 if options.recursive and least < 2 else MOST_DEEP + 1):
        scratch = PassedOver(top)
        if options.split_folders and _split_class_folders(top, scratch):
            return top
        below = map(top.path_of, top.class_folders())
        with_files = islice((folder for folder in below if holds(top, folder, files=True)), 2)
        if files_in_lists(top, scratch) or len(list(with_files)) == 2:
            return top
        name = _only_folder(top)
        if name is None:
            return tree
        top = Branch(top, name)
    return tree


def _only_folder(tree: Tree) -> str | None:
    """Returns the only folder that is not empty, if it holds folders and no photo lies near."""
    names = (name for name in tree.class_folders() if holds(tree, tree.path_of(name)))
    first = list(islice(names, 2))
    if len(first) != 1:
        return None
    places = (tree.location, tree.path_of(first[0]))
    if any(holds(tree, place, photos=True) for place in places):
        return None
    return first[0]


def _check_split_classes(location: str, found: Sequence[_ClassFolder], least: int) -> None:
    labels = list(dict.fromkeys(folder.label for folder in found))
    if len(labels) < least:
        raise DatasetError(
            f"the split folders of {location} must hold at least {counted(least, 'class folder')} "
            f"with photos, but have only one ({labels[0]})"
        )


def some_names(paths: Sequence[str]) -> str:
    """Returns the first of the paths' last parts, as text."""
    return some([os.path.basename(path) for path in paths])


def _too_few(passed: PassedOver, labels: Sequence[str], least: int) -> DatasetError:
    """Returns the error on a location with fewer classes than `least`."""
    tree = passed.tree
    wanted = "at least two class folders" if least == 2 else "a class folder"
    has = f"only one ({labels[0]})" if labels else "none"
    passed.add_loose(tree.location)
    loose = list(passed.found.pop(LOOSE, ()))
    inner = _inmost(tree.path_of(labels[0]), passed) if labels else ""
    if inner and len(_folders_in(inner, passed)) >= least:
        has += f"; did you mean `PhotoSettings.image_dir` {inner}?"
    elif named := labels_in(loose or _photos_in(inner, passed)):
        has += f"; it holds photos whose names may be labels ({some(named)}): give "
        has += "`PhotoSettings.label_from` name, or sort them into a folder for each class"
    elif loose:
        has += "; it holds images itself: give the folder above it, or sort them into classes"
    elif packed := _archives_in(passed):
        has += f"; it holds archives ({some_names(packed)}): give one of them as "
        has += "`PhotoSettings.image_dir`, or unpack them all into one folder"
    others = "".join(f"; {line}" for line in passed.lines())
    return DatasetError(f"{tree.location} must hold {wanted} with photos, but has {has}{others}")


def _archives_in(passed: PassedOver) -> list[str]:
    """Returns the files in the location that are named like archives."""
    content = passed.listed(passed.tree.location, recursive=False)
    return [path for path, is_folder in content if not is_folder and ARCHIVE_NAME.search(path)]


def _inmost(folder: str, passed: PassedOver) -> str:
    """Returns the folder, or the only folder in it, or in that."""
    for _ in range(MOST_DEEP):
        inner = _folders_in(folder, passed)
        if len(inner) != 1:
            break
        folder = inner[0]
    return folder


def _photos_in(folder: str, passed: PassedOver) -> list[str]:
    """Returns the files named like photos in a folder; none if there is no folder."""
    content = passed.listed(folder, recursive=False) if folder else []
    return [path for path, is_folder in content if not is_folder and named_like_image(path)]


def _too_few_names(passed: PassedOver, files: Sequence[LabelledFile]) -> DatasetError:
    """Returns the error on names that give one label, or none."""
    give = f"only one label ({files[0].label})" if files else "no label"
    others = "".join(f"; {line}" for line in passed.lines())
    return DatasetError(
        f"the names of the photos in {passed.tree.location} give {give}; sort them into a folder "
        f"for each class{others}"
    )


def picked(labels: Iterable[str], classes: Sequence[str], place: str) -> list[str]:
    """Returns the `classes` if there are any, else all labels; `place` is what has the labels.

    Raises:
        DatasetError: one of the classes is not among the labels.
    """
    there = list(labels)
    known = set(there)
    for name in classes:
        if name not in known:
            like = [label for label in there if same_label(label) == same_label(name)]
            like = like or difflib.get_close_matches(name, there, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(like)}?" if like else f"it has {some(there, 5)}"
            raise DatasetError(
                f"`PhotoSettings.classes` names {name}, which {place} does not have; {hint}"
            )
    return list(classes) or there


def same_label(name: str) -> str:
    """Returns the name without what readers overlook.

    That is case, spaces, `_`, a `-` between words, the form of accents, and characters without ink:
    joiners, other format characters (Unicode's category Cf), variation selectors. A sign, such as
    the `-` of `-1` or `A-`, stays.
    """
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    inked = (c for c in text if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    return re.sub(r"[\s_]+", " ", HYPHENS.sub(" ", "".join(inked))).strip()


def mixed_up(name: str) -> str:
    """Returns what `same_label` leaves of a name, also without signs and forms of characters.

    So `+1`, a `-1` with any dash and a full-width `1` give `1`. The forms are those of Unicode's
    compatibility (NFKC).
    """
    return SIGNS.sub(" ", unicodedata.normalize("NFKC", same_label(name))).strip()


def check_labels(names: Iterable[str], kind: str, place: str) -> list[str]:
    """Checks that labels are lines of text; returns a warning for each group that readers mix up.

    `kind` is what bears them, such as `class folder`, and `place` where it is. Labels are easily
    mixed up if they differ only in what `mixed_up` overlooks.

    Raises:
        DatasetError: a label has control characters, line separators or lone surrogates.
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        if not is_label(name):
            raise DatasetError(
                f"the {kind} {name!r} in {place} has characters that a labels file "
                f"cannot hold; rename it"
            )
        alike.setdefault(mixed_up(name), []).append(name)
    return [
        f"the {kind}s {some(quoted(group))} in {place} are easily mixed up; the run treats "
        f"each as a separate class"
        for group in alike.values()
        if len(group) > 1
    ]


def quoted(names: Sequence[str]) -> list[str]:
    """Returns the names in quotes; those that may look the same with all their characters told."""
    composed = {unicodedata.normalize("NFC", name) for name in names}
    return [repr(name) if len(composed) == len(names) else ascii(name) for name in names]


@dataclass(frozen=True)
class _Files:
    """The content of a folder: photos, files left out, folders not entered."""

    photos: list[Photo] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Returns whether there is anything in it."""
        return bool(self.photos or self.bad or self.folders)


def _files_of(passed: PassedOver, folder: _ClassFolder, options: ScanOptions) -> _Files:
    """Returns the content of a class folder."""
    files, (label, path, split) = _Files(), folder
    for name, is_folder in passed.listed(path, options.recursive):
        options.seen()
        if is_folder:
            files.folders.append(name)
            continue
        looked = _looked_at(passed.tree, LabelledFile(label, name, split), options)
        if isinstance(looked, BadImage):
            files.bad.append(looked)
        else:
            files.photos.append(looked)
    return files


def _looked_at(tree: Tree, file: LabelledFile, options: ScanOptions) -> Photo | BadImage:
    """Returns a file as a photo, or as a bad image."""
    try:
        facts = tree.look_at(file.name, options.max_pixels)
        if file.name in options.not_images:
            raise NotAnImageError
    except ImageFileError as error:
        claimed = claims_to_be_image(file.name, error)
        return BadImage(file.name, str(error), claimed, file.label)
    return Photo(file.name, file.label, file.split, facts)
