"""Photos that a table lists: CSV, TSV or JSON lines with the columns path, label and split."""

import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase
from itertools import chain
from typing import Any, NamedTuple

from retraining.photos.archive import ArchiveSource, split_name
from retraining.photos.bounds import ImageFileError, NotAnImageError
from retraining.photos.class_folders import check_labels, picked
from retraining.photos.folder import TABLES, FolderSource
from retraining.photos.formats import reason_of
from retraining.photos.source import (
    ARCHIVE,
    NAME,
    BadImage,
    DatasetError,
    Facts,
    Photo,
    Scan,
    ScanOptions,
)
from retraining.photos.split import SPLIT_NAMES, named_split
from retraining.system.addresses import is_url, without_password
from retraining.system.lines import MOST_BYTES, LineError, line_batches, opened
from retraining.system.members import MOST_OPEN
from retraining.system.regular import is_archive, is_compressed_tar
from retraining.system.text import as_path, counted

STDIN = "-"
BLANKS = " \t"  # that do not count around the label of a CSV or TSV
COLUMNS = PATH, LABEL, SPLIT = "path", "label", "split"
MOST_ROWS = 5_000_000  # some 2 GB of memory
MOST_LINES = 1000  # of one row, whose quoted fields may hold line ends; csv keeps all its fields
CSV, TSV, JSONL = ",", "\t", "{"  # the first is the delimiter
FORMATS = dict(zip(TABLES, (CSV, TSV, JSONL, JSONL), strict=True))


class Row(NamedTuple):
    """One photo of a table, and the line on which the table names it."""

    line: int
    path: str
    label: str
    split: str | None


@dataclass(frozen=True)
class TableSource(FolderSource):
    """A PhotoSource: a table of photos of this machine; `-` is one on standard input.

    Paths in it are relative to `folder`, or else to the table's own folder.
    """

    folder: str = ""

    def scan(self, options: ScanOptions | None = None, least_classes: int = 2) -> Scan:
        """Finds the photos; see PhotoSource.scan.

        Raises:
            DatasetError: also if the table cannot be read or contradicts itself.
        """
        options = options or ScanOptions()
        if options.recursive:
            raise DatasetError("`PhotoSettings.recursive` is for folders; a table names its photos")
        if options.label_from == NAME:
            raise DatasetError("`PhotoSettings.label_from` is for folders; a table has labels")
        labels = sorted({row.label for row in self.rows})
        if len(labels) < least_classes:
            has = f"only one ({labels[0]})" if labels else "none"
            wanted = "at least two labels" if least_classes == 2 else "a label"
            raise DatasetError(f"{self._name} must have {wanted}, but has {has}")
        labels = picked(labels, options.classes, self._name)
        warnings = check_labels(labels, "label", self._name)
        scan = Scan({label: [] for label in labels}, warnings=warnings)
        for row in self.rows:
            if row.label not in scan.photos:
                continue
            try:
                facts = self.look_at(row.path, options.max_pixels)
                if row.path in options.not_images:
                    raise NotAnImageError
            except ImageFileError as error:
                scan.bad.append(BadImage(row.path, str(error), label=row.label))
            else:
                scan.photos[row.label].append(Photo(row.path, row.label, row.split, facts))
        scan.warnings.extend(self._many_archives(scan))
        return scan

    def _many_archives(self, scan: Scan) -> list[str]:
        """Returns a warning if the photos lie in more compressed tars than are kept open."""
        inside = (split_name(p.name) for photos in scan.photos.values() for p in photos)
        tars = {path for path, _ in filter(None, inside) if is_compressed_tar(path)}
        if len(tars) <= MOST_OPEN:
            return []
        return [
            f"{self._name} names photos in {len(tars)} compressed tars; the run keeps {MOST_OPEN} "
            f"decompressed at a time, and so decompresses each many times: make them zips"
        ]

    def look_at(self, name: str, max_pixels: int) -> Facts:
        """Returns the Facts of an image file, which may lie in an archive."""
        if ArchiveSource.claims(name):
            return ArchiveSource(name).look_at(name, max_pixels)
        return super().look_at(name, max_pixels)

    def path_of(self, relative: str) -> str:
        """Returns the path of what the table names so."""
        table = "" if self.location == STDIN else self.location
        return os.path.join(self.folder or os.path.dirname(table), relative)

    @staticmethod
    def claims(text: str) -> bool:
        """Returns False: any table has a name that a folder can have."""
        return False

    @cached_property
    def rows(self) -> list[Row]:
        """The rows without repetitions, sorted by path; standard input is read only once.

        Raises:
            DatasetError: the table cannot be read or contradicts itself.
        """
        first: dict[str, Row] = {}
        for row in self._read():
            other = first.setdefault(os.path.normpath(row.path), row)
            for what in (LABEL, SPLIT):
                one, two = getattr(other, what), getattr(row, what)
                if one != two:
                    raise DatasetError(
                        f"lines {other.line} and {row.line} of {self._name} give {row.path} "
                        f"different {what}s: {one or 'none'} and {two or 'none'}"
                    )
            if len(first) > MOST_ROWS:
                raise DatasetError(f"{self._name} has more than {MOST_ROWS:,} photos")
        return sorted(first.values(), key=lambda row: row.path)

    @property
    def _name(self) -> str:
        return "the table on standard input" if self.location == STDIN else self.location

    def _read(self) -> Iterator[Row]:
        try:
            with _opened(self.location) as file:
                yield from self._rows_of(file)
        except OSError as error:
            raise DatasetError(f"cannot read {self._name}: {reason_of(error)}") from error
        except LineError as error:
            if is_archive(self.location):
                raise DatasetError(f"{self.location} {ARCHIVE}") from error
            raise DatasetError(f"line {error.line} of {self._name} {error}") from error

    def _rows_of(self, file: BufferedIOBase) -> Iterator[Row]:
        lines = _Lines(file)
        start = next((line for line in lines if line.strip()), "")
        form = FORMATS.get(os.path.splitext(self.location)[1].lower()) or _sniffed(start)
        records = _objects(start, lines) if form == JSONL else _cells(start, lines, form)
        splits: dict[str, str | None] = {}
        for line, record in records:
            path, label, word = (record.get(column, "") for column in COLUMNS)
            label, word = label if form == JSONL else label.strip(BLANKS), word.strip()
            path = _checked_path(line, path, label)
            if word not in splits:
                splits[word] = named_split(word)
            if word and not splits[word]:
                known = ", ".join(SPLIT_NAMES)
                raise LineError(line, f"has the split {word[:40]!r}; there are {known}")
            yield Row(line, self.path_of(path), sys.intern(label), splits[word])


class _Lines:
    """Yields the lines of a text with their ends; `number` is that of the last one.

    `begun` is that of the line on which the row begins. A row has at most MOST_LINES.
    """

    def __init__(self, stream: BufferedIOBase) -> None:
        self.number, self.begun = 0, 1
        self._lines = chain.from_iterable(line_batches(stream, MOST_BYTES, keep_ends=True))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        if self.number >= self.begun + MOST_LINES:
            reason = f"begins a row of more than {MOST_LINES} lines; does a quote lack its end?"
            raise LineError(self.begun, reason)
        return line


def _opened(location: str) -> Any:
    """Returns the file as a context, which leaves standard input open."""
    return nullcontext(sys.stdin.buffer) if location == STDIN else opened(location)


def _sniffed(start: str) -> str:
    """Returns the format of a table by its first line."""
    return JSONL if start.lstrip().startswith(JSONL) else TSV if TSV in start else CSV


def _objects(start: str, lines: _Lines) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yields (line, its JSON object with lower-case names and only text)."""
    line: str | None = start
    while line is not None:
        if line.strip():
            try:
                pairs = json.loads(line, object_pairs_hook=tuple)
            except (ValueError, RecursionError) as error:
                raise LineError(lines.number, "is not a JSON object") from error
            if not isinstance(pairs, tuple):
                raise LineError(lines.number, "is not a JSON object")
            names = [name.strip().casefold() for name, _ in pairs]
            if twice := [column for column in COLUMNS if names.count(column) > 1]:
                raise LineError(lines.number, f"gives {twice[0]!r} twice")
            named = {name: value for name, (_, value) in zip(names, pairs, strict=True)}
            yield lines.number, {c: _text(lines.number, c, named.get(c)) for c in COLUMNS}
        lines.begun = lines.number + 1
        line = next(lines, None)


def _text(line: int, column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str) or (type(value) is int and column == LABEL):
        return str(value)
    raise LineError(line, f"has a {column} that is not text")


def _cells(start: str, lines: _Lines, delimiter: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yields (line on which it begins, its fields by column) for each row below the header."""
    header: Sequence[str] = ()
    lines.begun = max(lines.number, 1)
    reader = csv.reader(_after(start, lines), delimiter=delimiter)
    try:
        for cells in reader:
            line, lines.begun = lines.begun, lines.number + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _checked_header(line, cells)
            elif len(cells) != len(header):
                raise LineError(
                    line, f"has {counted(len(cells), 'field')}, the header has {len(header)}"
                )
            else:
                yield line, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise LineError(lines.begun, f"cannot be read: {error}") from error


def _after(start: str, lines: _Lines) -> Iterator[str]:
    yield start
    yield from lines


def _checked_header(line: int, cells: Sequence[str]) -> list[str]:
    header = [cell.strip().casefold() for cell in cells]
    for column in (PATH, LABEL):
        if column not in header:
            named = ", ".join(cell[:20] for cell in cells[:5])
            advice = "; is it separated by semicolons? Save it with commas or tabs"
            raise LineError(
                line, f"names no column {column!r}, but {named}{advice if ';' in named else ''}"
            )
    if len({*header} & {*COLUMNS}) < sum(name in COLUMNS for name in header):
        raise LineError(line, "names a column twice")
    return header


def _checked_path(line: int, path: str, label: str) -> str:
    """Returns the path as files have it, after checks of the row."""
    for column, value in ((PATH, path), (LABEL, label)):
        if not value.strip(BLANKS):
            raise LineError(line, f"has no {column}")
    if is_url(path):
        raise LineError(
            line, f"has the URL {without_password(path)[:80]}; a table lists files of this machine"
        )
    try:
        name = as_path(path)
        readable = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        readable = False
    if not readable:
        raise LineError(line, "has a path that is not valid")
    return name
