"""The record of a run -> one HTML file that opens from disk and asks nothing of any network."""

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from retraining.evaluation.label_audit import DOUBT, DUPLICATE, ELSEWHERE, LABEL
from retraining.report import advice, figures
from retraining.report.record import confusion_of
from retraining.system.text import counted

TEMPLATES = Path(__file__).parent / "templates"
MOST_CLASSES = 20  # rows of the matrix; of more classes, those in most mistakes
MOST_ROWS = 60  # rows of the other tables
MOST_WRONG = 200  # thumbnails of mistakes
MOST_RIGHT = 12  # thumbnails of right answers, per class
MOST_RIGHT_IN_ALL = 240
MOST_AUDITED = 24  # photos whose label looks wrong
MOST_DOUBLES = 12  # pairs of near-duplicates
MOST_CONFIDENT = 12  # of the most confident mistakes
SHADES = 8  # of the matrix's cells


def render(record, thumbnails):
    """The page of a record.make_record, as bytes; `thumbnails` is a Thumbnails."""
    environment = _environment()
    style, script = (_static(name) for name in ("report.css", "report.js"))
    page = environment.get_template("report.html").render(
        record=record,
        view=make_view(record, thumbnails),
        style=style,
        script=script,
        policy=content_policy(style, script),
        advice=advice,
        figures=figures,
        counted=counted,
    )
    # Bytes of a file's name that are no text are shown as they are on stderr: \udcff.
    return page.encode("utf-8", "backslashreplace")


def content_policy(style, script):
    """The Content-Security-Policy: this very style and script, pictures in the page, no more."""
    hashes = (base64.b64encode(hashlib.sha256(t.encode()).digest()) for t in (style, script))
    of_style, of_script = (f"'sha256-{digest.decode()}'" for digest in hashes)
    return (
        f"default-src 'none'; img-src data:; style-src {of_style}; script-src {of_script}; "
        f"base-uri 'none'; form-action 'none'"
    )


def make_view(record, thumbnails):
    """What the template shows beside the record itself."""
    shown = shown_classes(confusion_of(record))
    wrong = sorted(filter(is_wrong, record["predictions"]), key=confidence, reverse=True)
    cells = photos_by_cell(record["predictions"], wrong, shown)
    findings = record["audit"] or []
    audited = [f for f in findings if f["reason"] in (LABEL, DOUBT)][:MOST_AUDITED]
    doubles = [f for f in findings if f["reason"] in (DUPLICATE, ELSEWHERE)][:MOST_DOUBLES]
    audit = audited + doubles + [{"path": found["other"]} for found in doubles]
    photos = [photo for chosen in cells.values() for photo in chosen] + wrong[:MOST_CONFIDENT]
    pictures = thumbnails.of([photo["path"] for photo in photos + audit])
    return {
        "matrix": matrix_rows(record, shown),
        "shown": [record["labels"][index] for index in shown],
        "cells": {cell: cells[cell] for cell in sorted(cells)},
        "confident": wrong[:MOST_CONFIDENT],
        "wrong": len(wrong),
        "audited": audited,
        "doubles": doubles,
        "pictures": {path: data_uri(jpeg) for path, jpeg in pictures.items()},
        "classes": hardest_first(record["classes"]),
        "course": figures.course_figures(record["course"]),
        "sizes": figures.sizes_figure(record["sizes"]),
        "reliability": figures.reliability_figure(record["calibration"]["bins"]),
        "limits": Limits(),
    }


@dataclass(frozen=True)
class Limits:
    """What is left out of the page so that its size is bounded; the page says so."""

    rows: int = MOST_ROWS
    wrong: int = MOST_WRONG
    right: int = MOST_RIGHT
    audited: int = MOST_AUDITED


def is_wrong(photo):
    """Whether a prediction of the record is a mistake."""
    return photo["truth"] != photo["answer"]


def confidence(photo):
    """The probability of the answer."""
    return photo["likeliest"][0]["probability"]


def shown_classes(confusion):
    """Indices of the classes in the matrix: all, or those in most mistakes."""
    if len(confusion) <= MOST_CLASSES:
        return list(range(len(confusion)))
    wrong = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * confusion.diagonal()
    worst = sorted(range(len(wrong)), key=lambda index: -wrong[index])[:MOST_CLASSES]
    return sorted(index for index in worst if wrong[index])


def photos_by_cell(predictions, wrong, shown):
    """{(truth, answer): photos} of the matrix: the surest mistakes first, the least sure hits."""
    shown = set(shown)
    right = [p for p in predictions if not is_wrong(p) and p["truth"] in shown]
    right.sort(key=confidence)
    cells, hits = {}, 0
    for photo in [p for p in wrong if {p["truth"], p["answer"]} <= shown][:MOST_WRONG]:
        cells.setdefault((photo["truth"], photo["answer"]), []).append(photo)
    for photo in right:
        chosen = cells.setdefault((photo["truth"], photo["answer"]), [])
        if len(chosen) < MOST_RIGHT and hits < MOST_RIGHT_IN_ALL:
            chosen.append(photo)
            hits += 1
    return {cell: photos for cell, photos in cells.items() if photos}


def matrix_rows(record, shown):
    """Per shown class its label and cells: truth, answer, photos, shade 0..SHADES of the row."""
    confusion = confusion_of(record)
    rows = []
    for truth in shown:
        total = max(1, confusion[truth].sum())
        cells = []
        for answer in shown:
            photos = int(confusion[truth, answer])
            shade = -int(-photos * SHADES // total)  # rounded up: one photo is never shade 0
            cells.append({"truth": truth, "answer": answer, "photos": photos, "shade": shade})
        rows.append({"label": record["labels"][truth], "cells": cells})
    return rows


def hardest_first(classes):
    """The classes, those of the lowest F1 first; those never tested nor answered last."""
    return sorted(classes, key=lambda row: (row["f1"] is None, row["f1"]))


def data_uri(jpeg):
    """The picture as a URI, or None."""
    return jpeg and "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def short_name(path):
    """The last two parts of a path: class and file."""
    return "/".join(Path(path).parts[-2:])


def _static(name):
    from markupsafe import Markup

    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _environment():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share: "-" if share is None else f"{share:.1%}",
        "whole_percent": lambda share: "-" if share is None else f"{share:.0%}",
        "short_name": short_name,
        "file_name": os.path.basename,
    }
    return environment
