"""What label_image.py prints: a row per image and rank, as text, TSV, CSV or JSON lines."""

import csv
import json
import sys

from retraining.photos.reader import ImageError
from retraining.system.text import escaped

COLUMNS = ("path", "rank", "label", "score", "error")
# What a format gives unless columns are chosen; in JSON a column without a value has no key.
USUAL_COLUMNS = {"tsv": ("path", "label", "score"), "csv": COLUMNS[:-1], "jsonl": COLUMNS}


def rows_of(path, answer, ranking):
    """Yields a dict per rank of `ranking`, [(label, score), ...], or one with the ImageError."""
    if isinstance(answer, ImageError):
        yield {"path": path, "error": str(answer)}
    for rank, (label, score) in enumerate(ranking, start=1):
        yield {"path": path, "rank": rank, "label": label, "score": score}


def make_writer(kind, columns=None, header=None):
    """Returns `write(path, answer, ranking)`, which prints an image's rows to stdout.

    `kind` is `text`, `text with names`, `tsv`, `csv` or `jsonl`; `columns` chooses and orders
    those of the last three. An image that cannot be read has a row only where `error` is a column.
    A header is printed at once: if `header` is True, or None and the format is CSV.
    """
    if kind in TEXTS:
        return TEXTS[kind]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(newline="")  # the same bytes on every system
    columns = columns or USUAL_COLUMNS[kind]
    write_row = PRINTERS[kind]
    if header or (header is None and kind == "csv"):
        write_row({name: name for name in columns}, columns)

    def write(path, answer, ranking):
        for row in rows_of(path, answer, ranking):
            if "error" in columns or "error" not in row:
                write_row(row, columns)

    return write


def write_text(path, _, ranking):
    """The classic's lines."""
    for label, score in ranking:
        print(f"{label} (score={score:.5f})")


def write_named_text(path, _, ranking):
    """The classic's lines of one of several images, after a line with its path."""
    if ranking:
        print(escaped(path))
    write_text(path, _, ranking)


def print_tsv(row, columns):
    """Fields between tabs; tabs and line ends in one are written \\t, \\n, \\r."""
    print("\t".join(escaped(field) for field in _fields(row, columns)))


def print_csv(row, columns):
    """RFC 4180: CRLF after each row; fields with commas, quotes or line ends are quoted."""
    csv.writer(sys.stdout, lineterminator="\r\n").writerow(_fields(row, columns))


def print_jsonl(row, columns):
    """A JSON object with the columns that have a value."""
    values = {name: row[name] for name in columns if name in row}
    if "score" in values:
        values["score"] = round(values["score"], 5)
    print(to_json(values))


def _fields(row, columns):
    """The columns as text, a score with five digits, empty where there is no value."""
    values = (row.get(name, "") for name in columns)
    return [f"{value:.5f}" if isinstance(value, float) else str(value) for value in values]


def to_json(value):
    """JSON in UTF-8, or all ASCII where a name holds bytes that are no UTF-8."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


TEXTS = {"text": write_text, "text with names": write_named_text}
PRINTERS = {"tsv": print_tsv, "csv": print_csv, "jsonl": print_jsonl}
