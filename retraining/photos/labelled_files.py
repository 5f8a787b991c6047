"""Layouts in which each file has its own label: in a `_classes.csv`, or in the file's name."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from retraining.photos.bounds import ImageFileError
from retraining.photos.formats import named_like_image, reason_of
from retraining.photos.passed_over import (
    BESIDE,
    DEEPER,
    EMPTY,
    EMPTY_LABEL,
    MISSING,
    NO_LABEL,
    SEVERAL,
    UNLISTED,
    PassedOver,
)
from retraining.photos.source import DatasetError
from retraining.photos.split import named_split
from retraining.photos.tree import LabelledFile, Tree, holds

CLASSES_FILE = "_classes.csv"  # of Roboflow's downloads for classification
LIST_PIXELS = 1_000_000  # a list is no larger than a file with so many pixels: 69 MB
# A label, then separators, then a number that may be in brackets: `cat.12`, `cat (12)`.
NUMBERED = re.compile(r"(.*[^\s._-])[\s._-]+\(?\d+\)?")


def label_in(name: str) -> str | None:
    """Returns the label in a file's name: what stands before a separator and the number at its end.

    `golden_retriever_012.jpg` gives `golden_retriever`, and `cat.12.jpg` gives `cat`. Separators
    are `_`, `-`, `.` and spaces. A name without both gives None.
    """
    found = NUMBERED.fullmatch(os.path.splitext(os.path.basename(name))[0])
    return found[1] if found else None


def labels_in(names: Iterable[str]) -> list[str]:
    """Returns the labels in the names of photos, sorted; [] unless all names seem to hold one.

    There must be two labels at least, and two photos of each on average.
    """
    found = [label_in(name) for name in names]
    labels = sorted({label for label in found if label})
    return labels if None not in found and 2 <= len(labels) <= len(found) / 2 else []


def files_by_name(tree: Tree, recursive: bool, passed: PassedOver) -> list[LabelledFile]:
    """Returns the files below the location of the tree, each with the label in its name.

    They may lie in split folders, if all folders are named so. Adds to `passed` what is left out.
    """
    names = [name for name in tree.class_folders() if holds(tree, tree.path_of(name))]
    split = bool(names) and all(map(named_split, names))
    entered = {tree.path_of(name): name for name in names if recursive or split}
    files: list[LabelledFile] = []
    for folder, name in [(tree.location, ""), *entered.items()]:
        content = passed.listed(folder, recursive and bool(name))
        inner = [path for path, is_folder in content if is_folder]
        passed.add_folders(DEEPER, [path for path in inner if path not in entered])
        for path in (path for path, is_folder in content if not is_folder):
            if not passed.is_photo(path, add_others=True):
                continue
            if label := label_in(path):
                files.append(LabelledFile(label, path, named_split(name) if split else None))
            else:
                passed.add(NO_LABEL, [path])
    return files


def files_in_lists(tree: Tree, passed: PassedOver) -> list[LabelledFile]:
    """Returns the files that the `_classes.csv` of each split folder lists; [] if there are none.

    Such a file lies in the location itself, or in folders named like splits. No folder lies beside
    it, but for empty ones. Adds to `passed` the photos without one label, labels without photos,
    and what lies beside the split folders.

    Raises:
        DatasetError: such a list cannot be read, or most of its photos have several labels.
    """
    names = {tree.path_of(name): named_split(name) for name in tree.class_folders()}
    splits = {folder: split for folder, split in names.items() if split is not None}
    folders: Mapping[str, str | None] = splits or {tree.location: None}
    content = {folder: passed.listed(folder, recursive=False) for folder in folders}
    lists = {
        folder: [path for path, _ in listed if os.path.basename(path) == CLASSES_FILE]
        for folder, listed in content.items()
    }
    inner = [path for path, is_folder in chain(*content.values()) if is_folder]
    if not any(lists.values()) or any(holds(tree, folder) for folder in inner):
        return []
    passed.add(EMPTY, inner)
    if splits:
        passed.add_folders(BESIDE, [folder for folder in names if folder not in splits])
        passed.add_loose(tree.location)
    files: list[LabelledFile] = []
    labels: set[str] = set()
    for folder, split in folders.items():
        rows = _labels_of_files(tree, lists[folder], labels)
        paths = [path for path, is_folder in content[folder] if not is_folder]
        files += _files_of(split, rows, paths, passed)
        missing = rows.keys() - set(map(os.path.basename, paths))
        passed.add(MISSING, [f"{folder}/{name}" for name in sorted(missing)])
    _check_single(files, tree.location, passed)
    passed.add(EMPTY_LABEL, sorted(labels - {file.label for file in files}))
    return files


def _files_of(
    split: str | None, rows: Mapping[str, list[str]], paths: Iterable[str], passed: PassedOver
) -> Iterator[LabelledFile]:
    """Yields those of the paths that have one label in `rows` {file: its labels}."""
    for path in paths:
        labels = rows.get(os.path.basename(path))
        if labels is None:
            passed.add(UNLISTED, [path] if named_like_image(path) else [])
        elif len(labels) == 1:
            yield LabelledFile(labels[0], path, split)
        else:
            passed.add(SEVERAL if labels else NO_LABEL, [path])


def _check_single(files: list[LabelledFile], location: str, passed: PassedOver) -> None:
    several = len(passed.found.get(SEVERAL, ()))
    if several > len(files):
        raise DatasetError(
            f"the {CLASSES_FILE} files in {location} give {several} of "
            f"{several + len(files)} photos several labels; a photo can have only one, so "
            f"download the photos as a single-label data set"
        )


def _labels_of_files(tree: Tree, lists: list[str], labels: set[str]) -> dict[str, list[str]]:
    """Returns {name of a file: its labels} of a list; adds the labels of the header to `labels`.

    `lists` is the path of the list, or empty.
    """
    of_files: dict[str, list[str]] = {}
    for path in lists:
        for name, of_row in _rows(tree, path, labels):
            of_files[name] = list(dict.fromkeys([*of_files.get(name, ()), *of_row]))
    return of_files


def _rows(tree: Tree, path: str, labels: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields (name of a file, its labels) of a list; adds the labels of the header to `labels`."""
    header: list[str] = []
    reader = csv.reader(_lines(tree, path), skipinitialspace=True)
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not header:
                if not any(cells):
                    continue
                header = _checked(cells, path)
                labels.update(header[1:])
            elif any(cells):
                if len(cells) != len(header) or not {*cells[1:]} <= {"0", "1"}:
                    raise DatasetError(
                        f"line {reader.line_num} of {path} does not have a 0 or 1 for each label"
                    )
                yield cells[0], [n for n, c in zip(header[1:], cells[1:], strict=True) if c == "1"]
    except csv.Error as error:
        raise DatasetError(f"line {reader.line_num} of {path} cannot be read: {error}") from error


def _checked(header: list[str], path: str) -> list[str]:
    first, *labels = header
    if first.casefold() != "filename" or not all(labels) or len({*labels}) < len(labels):
        raise DatasetError(
            f"the first line of {path} is not `filename` and then labels, each of them once"
        )
    return header


def _lines(tree: Tree, path: str) -> list[str]:
    try:
        tree.check(path, LIST_PIXELS)
        return tree.read(path).decode("utf-8-sig").splitlines()
    except ImageFileError as error:
        raise DatasetError(f"{path} {error}") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8") from error
