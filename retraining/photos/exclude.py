"""Leaves out the photos that a list names."""

import os
from pathlib import Path

from retraining.photos import places
from retraining.photos.scan import DatasetError, some_names
from retraining.system.text import unescaped

TABLE_START = "path\t"  # how the headers of label_audit.tsv and bad_images.tsv begin


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
    warnings = [f"{len(lost)} of the excluded are no photos in {image_dir}: {some_names(lost)}"]
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
