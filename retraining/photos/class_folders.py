"""Finds the class folders of a tree of files, and the photos in them, for any photo source."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from retraining.photos.bounds import ImageFileError, NotAnImageError
from retraining.photos.formats import claims_to_be_image
from retraining.photos.source import BadImage, DatasetError, Facts, Photo, Scan, ScanOptions
from retraining.photos.split import named_split
from retraining.system.text import as_text, counted, is_label, some

# `-` between words, or between spaces; any other is a sign.
HYPHENS = re.compile(r"(?<=[^\s_-])-+(?=[^\s_-])|(?<=[\s_])-+(?=[\s_])")
# Spaces, plus, hyphens and dashes (U+2010 to U+2015), minus.
SIGNS = re.compile(r"[\s+\u2010-\u2015\u2212-]+")


class Tree(Protocol):
    """Folders and files, as a source of photos in class folders shows them."""

    @property
    def location(self) -> str:
        """The folder that holds the class folders."""

    def path_of(self, relative: str) -> str:
        """Returns the name of what lies at a path relative to the location."""

    def class_folders(self) -> list[str]:
        """Returns the names of the folders in the location that are not hidden, sorted.

        Raises:
            DatasetError: the location cannot be read.
        """

    def files_below(self, folder: str, recursive: bool) -> Iterator[tuple[str, bool]]:
        """Yields (name, whether it is a folder not entered) for the content of a folder, sorted.

        `folder` is the location or any folder in it. Hidden files and folders are skipped.
        """

    def look_at(self, name: str, max_pixels: int) -> Facts:
        """Returns the Facts of an image file.

        Raises:
            NotAnImageError: it is known not to be an image.
            ImageFileError: it cannot be read, is not a regular file, or is too large.
        """


def scan_class_folders(tree: Tree, options: ScanOptions, least_classes: int) -> Scan:
    """Finds the photos below class folders, or below those in split folders, sorted.

    A label is the folder's name as it is spelled. Hidden files are skipped. Files whose content is
    not an image are BadImages.

    Raises:
        DatasetError: as for PhotoSource.scan.
    """
    scan = Scan({})
    found = _split_class_folders(tree, scan.warnings) if options.split_folders else []
    if found:
        _check_split_classes(tree.location, found, least_classes)
    else:
        names = _class_names(tree, options, least_classes)
        found = [_ClassFolder(as_text(name), tree.path_of(name)) for name in names]
    labels = dict.fromkeys(folder.label for folder in found)
    scan.warnings.extend(check_labels(labels, "class folder", tree.location))
    for name, folder, split in found:
        files = _files_of(tree, folder, options, name)
        scan.folders.setdefault(name, []).append(folder)
        scan.photos.setdefault(name, []).extend(replace(p, split=split) for p in files.photos)
        scan.bad.extend(files.bad)
        if others := [image.path for image in files.bad if not image.claimed]:
            forms = f"file in {folder} is not an image", f"files in {folder} are not images"
            scan.warnings.append(f"{counted(len(others), *forms)}: {some_names(others)}")
        if files.folders and not options.recursive:
            scan.nested.add(name)
            forms = f"folder in {folder} is", f"folders in {folder} are"
            scan.warnings.append(
                f"{counted(len(files.folders), *forms)} skipped "
                f"({some_names(files.folders)}); `PhotoSettings.recursive` also reads the "
                f"photos in them"
            )
    return scan


class _ClassFolder(NamedTuple):
    """A folder with photos of one label, and of one split if it lies in a split folder."""

    label: str
    folder: str
    split: str | None = None


def _split_class_folders(tree: Tree, warnings: list[str]) -> list[_ClassFolder]:
    """Returns the class folders in split folders, by label; [] if the tree has another layout.

    All folders must be named like splits, and share class folders. Adds a warning of the files
    that lie in a split folder itself.
    """
    names = tree.class_folders()
    if not names or not all(map(named_split, names)):
        return []
    inner: dict[str, list[str]] = {}
    loose: list[str] = []
    for name in names:
        folder, inner[name] = tree.path_of(name), []
        files: list[str] = []
        for path, is_folder in tree.files_below(folder, recursive=False):
            (inner[name] if is_folder else files).append(path)
        if files:
            forms = f"file in {folder} lies", f"files in {folder} lie"
            why = f"outside a class folder and {'are' if len(files) > 1 else 'is'} left out"
            loose.append(f"{counted(len(files), *forms)} {why}: {some_names(files)}")
    classes = [{same_label(os.path.basename(p)) for p in paths} for paths in inner.values()]
    counts = Counter(label for of_split in classes for label in of_split)
    split_into = [of_split for of_split in classes if of_split]
    shared = (any(counts[label] > 1 for label in of_split) for of_split in split_into)
    if not split_into or not (len(split_into) == 1 or all(shared)):
        return []
    warnings += loose
    return sorted(
        _ClassFolder(as_text(os.path.basename(path)), path, named_split(name))
        for name, paths in inner.items()
        for path in paths
    )


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


def _class_names(tree: Tree, options: ScanOptions, least: int) -> list[str]:
    names = tree.class_folders()
    if len(names) < least:
        wanted = "at least two class folders" if least == 2 else "a class folder"
        has = f"only one ({names[0]})" if names else "none"
        inner = tree.files_below(tree.path_of(names[0]), recursive=False) if names else ()
        if sum(is_folder for _, is_folder in inner) >= least:
            has += f"; did you mean `PhotoSettings.image_dir` {tree.path_of(names[0])}?"
        elif _files_of(tree, tree.location, replace(options, recursive=False)).photos:
            has += "; it holds images itself: give the folder above it, or sort them into classes"
        raise DatasetError(f"{tree.location} must hold {wanted} with photos, but has {has}")
    return names


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
        f"the {kind}s {some(_quoted(group))} in {place} are easily mixed up; the run treats "
        f"each as a separate class"
        for group in alike.values()
        if len(group) > 1
    ]


def _quoted(names: Sequence[str]) -> list[str]:
    """Returns the names in quotes; those that may look the same with all their characters told."""
    composed = {unicodedata.normalize("NFC", name) for name in names}
    return [repr(name) if len(composed) == len(names) else ascii(name) for name in names]


@dataclass(frozen=True)
class _Files:
    """The content of a folder: photos, files left out, folders not entered."""

    photos: list[Photo] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def _files_of(tree: Tree, folder: str, options: ScanOptions, label: str | None = None) -> _Files:
    """Returns the content of the class folder of a label, or of another folder."""
    files = _Files()
    for name, is_folder in tree.files_below(folder, options.recursive):
        options.seen()
        if is_folder:
            files.folders.append(name)
            continue
        try:
            facts = tree.look_at(name, options.max_pixels)
            if name in options.not_images:
                raise NotAnImageError
        except ImageFileError as error:
            files.bad.append(BadImage(name, str(error), claims_to_be_image(name, error), label))
        else:
            files.photos.append(Photo(name, label, facts=facts))
    return files
