"""The output of label_image.py: a row for each image and rank, as text, TSV, CSV or JSON lines."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from retraining.bottlenecks.stream import Answer
from retraining.cli.console import print_for_programs
from retraining.cli.label_flags import COLUMNS, SAFE_CSV
from retraining.cli.wording import in_flags
from retraining.photos.reader import ImageError
from retraining.system.text import UNFIT, as_text, escaped, is_label

# The default columns of each format; in JSON, a column without a value has no key.
USUAL_COLUMNS = {
    "tsv": ("path", "label", "score"),
    **dict.fromkeys(("csv", SAFE_CSV), COLUMNS[:-1]),
    "jsonl": COLUMNS,
}

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # begin them (OWASP, CSV Injection)

Row: TypeAlias = Mapping[str, str | float]  # by the names of COLUMNS
Ranking: TypeAlias = Sequence[tuple[str, float]]  # labels and their scores, the likeliest first
Write: TypeAlias = Callable[[str, Answer, Ranking], None]


def rows_of(path: str, answer: Answer, ranking: Ranking) -> Iterator[Row]:
    """Yields a Row for each rank of `ranking`, or one Row with the ImageError."""
    if isinstance(answer, ImageError):
        yield {"path": path, "error": in_flags(str(answer))}
    for rank, (label, score) in enumerate(ranking, start=1):
        yield {"path": path, "rank": rank, "label": label, "score": score}


def make_writer(
    kind: str, columns: Sequence[str] | None = None, header: bool | None = None
) -> Write:
    """Returns `write(path, answer, ranking)`, which prints the rows of an image to stdout.

    `kind` is `text`, `text with names`, `tsv`, `csv`, SAFE_CSV or `jsonl`; `columns` chooses and
    orders the columns of all but the first two. An image that cannot be read has a row only if
    `error` is a column. If `header` is True, or None and the format is CSV, this function prints a
    header at once.
    """
    if kind in TEXTS:
        return TEXTS[kind]
    print_for_programs()
    names = columns or USUAL_COLUMNS[kind]
    write_row = PRINTERS[kind]
    if header or (header is None and kind in ("csv", SAFE_CSV)):
        write_row({name: name for name in names}, names)

    def write(path: str, answer: Answer, ranking: Ranking) -> None:
        for row in rows_of(path, answer, ranking):
            if "error" in names or "error" not in row:
                write_row(row, names)

    return write


def write_text(path: str, _: Answer, ranking: Ranking) -> None:
    """Prints the lines of the classic."""
    for label, score in ranking:
        print(f"{escaped(label)} (score={score:.5f})")


def write_named_text(path: str, _: Answer, ranking: Ranking) -> None:
    """Prints the lines of the classic for one of several images, after a line with its path."""
    if ranking:
        print(escaped(path))
    write_text(path, _, ranking)


def print_tsv(row: Row, columns: Iterable[str]) -> None:
    """Prints fields between tabs, each `escaped`."""
    print("\t".join(escaped(field) for field in _fields(row, columns)))


def print_csv(row: Row, columns: Iterable[str]) -> None:
    """Prints RFC 4180: CRLF after each row; quotes fields with commas, quotes or line ends.

    Names are exact, but `escaped` on a terminal.
    """
    fields = _fields(row, columns)
    if sys.stdout.isatty():
        fields = list(map(escaped, fields))
    csv.writer(sys.stdout, lineterminator="\r\n").writerow(fields)


def print_safe_csv(row: Row, columns: Iterable[str]) -> None:
    """Prints as `print_csv`, with an apostrophe before what a spreadsheet takes for a formula."""
    guarded = {
        name: f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value
        for name, value in row.items()
    }
    print_csv(guarded, columns)


def print_jsonl(row: Row, columns: Iterable[str]) -> None:
    """Prints a JSON object with the columns that have a value."""
    values = {name: row[name] for name in columns if name in row}
    score = values.get("score")
    if isinstance(score, float):
        values["score"] = round(score, 5)
    print(to_json(values))


def _fields(row: Row, columns: Iterable[str]) -> list[str]:
    """Returns the columns as text: scores with five digits, missing values empty."""
    values = (row.get(name, "") for name in columns)
    return [f"{value:.5f}" if isinstance(value, float) else str(value) for value in values]


def to_json(value: Any) -> str:
    """Returns JSON on one line that can be written in UTF-8.

    It is all ASCII if a name holds bytes that are not UTF-8, or characters that can rewrite a
    terminal; see `text.UNFIT`.
    """
    text = as_text(json.dumps(value, ensure_ascii=False))
    return text if is_label(text) and not UNFIT.search(text) else json.dumps(json.loads(text))


TEXTS: dict[str, Write] = {"text": write_text, "text with names": write_named_text}
PRINTERS: dict[str, Callable[[Row, Iterable[str]], None]] = {
    "tsv": print_tsv,
    "csv": print_csv,
    SAFE_CSV: print_safe_csv,
    "jsonl": print_jsonl,
}
