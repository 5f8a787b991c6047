"""Leaves out the photos that the user lists."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from retraining.photos import places
from retraining.photos.scan import DatasetError, some_names
from retraining.system.text import unescaped

TABLE_START = "path\t"  # the headers of label_audit.tsv and bad_images.tsv begin so


def read_listed(path: str | os.PathLike[str]) -> list[str]:
    """Reads paths from a text file, one on each line, or from the first column of our tables.

    Skips blank lines and lines that begin with `#`.

    Raises:
        DatasetError: the file cannot be read or is not text.
    """
    try:
        text = os.fsdecode(Path(path).read_bytes())
    except OSError as error:
        raise DatasetError(f"cannot read the list {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        text = "\0"  # on Windows, where names are text, not bytes
    if "\0" in text:
        raise DatasetError(f"the list {path} is no text in UTF-8; save it as such")
    lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
    if lines[0].startswith(TABLE_START):
        lines = [line.split("\t")[0] for line in lines[1:]]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def without(
    photos: dict[str, list[str]], listed: Sequence[str], image_dir: str
) -> tuple[dict[str, list[str]], int, list[str]]:
    """Returns ({label: [path, ...]} without the listed photos, their number, warnings).

    A line may name a photo relative to the current folder or to `image_dir`, and may be `escaped`.
    The literal path is tried first.

    Raises:
        DatasetError: a class has no photos left.
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


def _place(path: str) -> str:
    """Returns one spelling for all paths to a file; a link to a file counts as its own file."""
    if places.is_url(path):
        return path
    folder, name = os.path.split(path)
    return os.path.join(os.path.normcase(os.path.realpath(folder)), os.path.normcase(name))


def _find(line: str, known: Mapping[str, str], image_dir: str) -> str | None:
    for name in (line, unescaped(line)):
        for path in (name, places.join(image_dir, name)):
            if found := known.get(_place(path)):
                return found
    return None
