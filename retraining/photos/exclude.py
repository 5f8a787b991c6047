"""Leaves out the photos that the user lists."""

import os
from collections.abc import Mapping, Sequence

from retraining.photos.registry import canonical
from retraining.photos.source import DatasetError, Photo, PhotoSource
from retraining.system.lines import TextError, read_lines
from retraining.system.text import as_path, counted, some, unescaped

MOST_BYTES = 1 << 28  # 256 MiB: some millions of paths
TABLE_START = "path\t"  # the headers of label_audit.tsv and bad_images.tsv begin so


def read_listed(path: str | os.PathLike[str]) -> list[str]:
    """Reads paths from a text file, one on each line, or from the first column of our tables.

    Skips blank lines.

    Raises:
        DatasetError: the file cannot be read or is not text.
    """
    try:
        lines = read_lines(path, f"the list {path}", MOST_BYTES, "surrogateescape")
    except TextError as error:
        raise DatasetError(str(error)) from error
    if lines and lines[0].startswith(TABLE_START):
        lines = [unescaped(line.split("\t")[0]) for line in lines[1:]]
    return [as_path(line) for line in lines if line.strip()]


def without(
    photos: Mapping[str, list[Photo]], excluded: Sequence[str], source: PhotoSource
) -> tuple[dict[str, list[Photo]], int, list[str]]:
    """Returns ({label: photos} without the excluded ones, their number, warnings).

    A line may name a photo as the source does or relative to its location, and may be `escaped`.
    The literal name is tried first. A line that begins with `#` and names no photo is a comment.

    Raises:
        DatasetError: a class has no photos left.
    """
    if not excluded:
        return dict(photos), 0, []
    known = {canonical(p.name): p.name for of_class in photos.values() for p in of_class}
    matches = {line: _match(line, known, source) for line in excluded}
    gone = {name for name in matches.values() if name}
    left = {
        label: [p for p in of_class if p.name not in gone] for label, of_class in photos.items()
    }
    for label, of_class in left.items():
        if not of_class:
            raise DatasetError(f"all photos of {label} are excluded; keep some, or move the folder")
    lost = [line for line, name in matches.items() if not name and not line.startswith("#")]
    warnings = [
        f"{counted(len(lost), 'excluded path matches', 'excluded paths match')} no photo in "
        f"{source.location}: {some(lost)}"
    ]
    return left, len(gone), warnings if lost else []


def _match(line: str, known: Mapping[str, str], source: PhotoSource) -> str | None:
    for text in (line, unescaped(line)):
        for name in (text, source.path_of(text)):
            if match := known.get(canonical(name)):
                return match
    return None
