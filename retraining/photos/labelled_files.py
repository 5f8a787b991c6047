"""Layouts in which each file has its own label: in a `_classes.csv`, or in the file's name."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from retraining.photos.bounds import ImageFileError
from retraining.photos.formats import named_like_image, reason_of
from retraining.photos.passed_over import (
    EMPTY_LABEL,
    MISSING,
    NO_LABEL,
    SEVERAL,
    UNLISTED,
    PassedOver,
)
from retraining.photos.source import DatasetError
from retraining.photos.split import named_split
from retraining.photos.tree import LabelledFile, Tree

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
    names = tree.class_folders()
    split = bool(names) and all(map(named_split, names))
    files: list[LabelledFile] = []
    for name in ["", *names] if recursive or split else [""]:
        folder = tree.path_of(name) if name else tree.location
        for path, is_folder in passed.listed(folder, recursive and bool(name)):
            if is_folder:
                continue
            if label := label_in(path):
                files.append(LabelledFile(label, path, named_split(name) if split else None))
            elif named_like_image(path):
                passed.add(NO_LABEL, [path])
    return files


def files_in_lists(tree: Tree, passed: PassedOver) -> list[LabelledFile]:
    """Returns the files that the `_classes.csv` of each split folder lists; [] if there are none.

    Such a file lies in the location itself, or in each folder, all named like splits. Adds to
    `passed` the photos without one label, and labels without photos.

    Raises:
        DatasetError: such a list cannot be read, or most of its photos have several labels.
    """
    names = tree.class_folders()
    if not all(map(named_split, names)):
        return []
    folders = {tree.path_of(name): named_split(name) for name in names} or {tree.location: None}
    content = {folder: passed.listed(folder, recursive=False) for folder in folders}
    lists = {
        folder: [path for path, _ in listed if os.path.basename(path) == CLASSES_FILE]
        for folder, listed in content.items()
    }
    if not any(lists.values()) or any(is_folder for _, is_folder in chain(*content.values())):
        return []
    files: list[LabelledFile] = []
    labels: set[str] = set()
    for folder, split in folders.items():
        rows: dict[str, list[str]] = {}
        for name, of_row in _rows(tree, lists[folder][0], labels) if lists[folder] else ():
            rows[name] = list(dict.fromkeys([*rows.get(name, ()), *of_row]))
        names = [path for path, _ in content[folder]]
        files += _files_of(split, rows, names, passed)
        missing = rows.keys() - set(map(os.path.basename, names))
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
