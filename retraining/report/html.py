"""Renders the record of a run as one HTML file that needs no network."""

import base64
import hashlib
import os
import re
import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.evaluation.label_audit import DOUBT, DUPLICATE, ELSEWHERE, LABEL
from retraining.photos.thumbnails import Thumbnails
from retraining.report import advice, figures
from retraining.report.record import Part, Record, confusion_of, evaluations, leading
from retraining.system.text import counted

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
MOST_CLASSES = 20  # rows of the confusion matrix; of more, the classes with the most mistakes
MOST_ROWS = 60  # rows of the other tables
# Thumbnails, of the test photos and again of the cross-validated ones:
MOST_WRONG = 200  # of mistakes
MOST_RIGHT = 12  # of correct answers, per class
MOST_RIGHT_IN_ALL = 240
MOST_AUDITED = 24  # photos whose label looks wrong
MOST_DOUBLES = 12  # pairs of near-duplicates
MOST_CONFIDENT = 12  # of the mistakes with the highest probability
SHADES = 8  # of the matrix's cells

Prediction: TypeAlias = Part  # a photo in a record's `predictions`


def render(record: Record, thumbnails: Thumbnails) -> bytes:
    """Returns the page for a record of `make_record`, as bytes."""
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
        graph=advice.option(record, "output_graph", "OutputSettings.graph"),
    )
    # Undecodable bytes of a file's name appear as they do on stderr: \udcff.
    return page.encode("utf-8", "backslashreplace")


def content_policy(style: str, script: str) -> str:
    """Returns a Content-Security-Policy that allows this style, this script, inline pictures."""
    hashes = (base64.b64encode(hashlib.sha256(t.encode()).digest()) for t in (style, script))
    of_style, of_script = (f"'sha256-{digest.decode()}'" for digest in hashes)
    return (
        f"default-src 'none'; img-src data:; style-src {of_style}; script-src {of_script}; "
        f"base-uri 'none'; form-action 'none'"
    )


def make_view(record: Record, thumbnails: Thumbnails) -> dict[str, Any]:
    """Returns what the template shows in addition to the record."""
    lead = leading(record)
    shown = {key: view_of(part, title_of(record, key)) for key, part in evaluations(record).items()}
    findings = record["audit"] or []
    audited = [f for f in findings if f["reason"] in (LABEL, DOUBT)][:MOST_AUDITED]
    doubles = [f for f in findings if f["reason"] in (DUPLICATE, ELSEWHERE)][:MOST_DOUBLES]
    audit = audited + doubles + [{"path": found["other"]} for found in doubles]
    photos = [photo for one in shown.values() for photo in one["pictured"]]
    pictures = thumbnails.of([photo["path"] for photo in photos + audit])
    made = [(path, jpeg) for path, jpeg in pictures.items() if jpeg]
    return {
        "shown": shown,
        "lead": lead,
        "audited": audited,
        "doubles": doubles,
        "pictures": [data_uri(jpeg) for _, jpeg in made],
        "numbers": {path: number for number, (path, _) in enumerate(made)},
        "course": figures.course_figures(record["course"]),
        "sizes": figures.sizes_figure(record["sizes"]),
        "reliability": figures.reliability_figure(record["calibration"]["bins"]),
        "limits": Limits(),
    }


def title_of(record: Record, key: str) -> str:
    """Names the photos of one of the record's `evaluations`, as in '9 test photos'."""
    count = record[key]["photos"]
    if key == "test":
        return advice.photos(count, "test photo")
    every = "all " if count == advice.photo_count(record) else ""
    before = " before fine-tuning" if record[key]["untuned"] else ""
    return f"{every}{advice.photos(count)}, cross-validated{before}"


def view_of(evaluation: Part, title: str) -> dict[str, Any]:
    """Returns the matrix, the classes and the mistakes of one of the record's `evaluations`.

    `pictured` are the photos of which the page shows pictures.
    """
    shown = shown_classes(confusion_of(evaluation))
    wrong = sorted(filter(is_wrong, evaluation["predictions"]), key=confidence, reverse=True)
    cells = photos_by_cell(evaluation["predictions"], wrong, shown)
    return {
        "title": title,
        "matrix": matrix_rows(evaluation, shown),
        "labels": [evaluation["labels"][index] for index in shown],
        "cells": {cell: cells[cell] for cell in sorted(cells)},
        "counts": {(c["truth"], c["answer"]): c["photos"] for c in evaluation["confusion"]},
        "confident": wrong[:MOST_CONFIDENT],
        "wrong": len(wrong),
        "pictured": [p for chosen in cells.values() for p in chosen] + wrong[:MOST_CONFIDENT],
        "classes": hardest_first(evaluation["classes"]),
        "hardest": advice.hardest(evaluation),
    }


@dataclass(frozen=True)
class Limits:
    """The limits that bound the size of the page, which states them."""

    rows: int = MOST_ROWS
    wrong: int = MOST_WRONG
    right: int = MOST_RIGHT
    audited: int = MOST_AUDITED


def is_wrong(photo: Prediction) -> bool:
    """Tells whether a prediction of the record is a mistake."""
    wrong: bool = photo["truth"] != photo["answer"]
    return wrong


def confidence(photo: Prediction) -> float:
    """Returns the probability of the answer."""
    probability: float = photo["likeliest"][0]["probability"]
    return probability


def shown_classes(confusion: NDArray[np.integer]) -> list[int]:
    """Returns the indexes of the classes in the matrix: all, or those with the most mistakes."""
    if len(confusion) <= MOST_CLASSES:
        return list(range(len(confusion)))
    wrong = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * confusion.diagonal()
    worst = sorted(range(len(wrong)), key=lambda index: -wrong[index])[:MOST_CLASSES]
    return sorted(index for index in worst if wrong[index])


def photos_by_cell(
    predictions: Iterable[Prediction], wrong: Iterable[Prediction], shown: Iterable[int]
) -> dict[tuple[int, int], list[Prediction]]:
    """Returns the photos of each cell of the matrix, {(truth, answer): photos}.

    The most confident mistakes and the least confident correct answers come first.
    """
    classes = set(shown)
    right = [p for p in predictions if not is_wrong(p) and p["truth"] in classes]
    right.sort(key=confidence)
    cells: dict[tuple[int, int], list[Prediction]] = {}
    hits = 0
    for photo in [p for p in wrong if {p["truth"], p["answer"]} <= classes][:MOST_WRONG]:
        cells.setdefault((photo["truth"], photo["answer"]), []).append(photo)
    for photo in right:
        chosen = cells.setdefault((photo["truth"], photo["answer"]), [])
        if len(chosen) < MOST_RIGHT and hits < MOST_RIGHT_IN_ALL:
            chosen.append(photo)
            hits += 1
    return {cell: photos for cell, photos in cells.items() if photos}


def matrix_rows(evaluation: Part, shown: Collection[int]) -> list[dict[str, Any]]:
    """Returns the label and the cells of each shown class of one of the record's `evaluations`.

    A cell has `truth`, `answer`, `photos`, its `share` of the row, and its `shade` (0..SHADES).
    """
    confusion = confusion_of(evaluation)
    rows = []
    for target in shown:
        total = max(1, confusion[target].sum())
        cells = []
        for answer in shown:
            photos = int(confusion[target, answer])
            shade = -int(-photos * SHADES // total)  # rounded up: one photo is never shade 0
            cell = {"truth": target, "answer": answer, "photos": photos, "share": photos / total}
            cells.append({**cell, "shade": shade})
        rows.append({"label": evaluation["labels"][target], "cells": cells})
    return rows


def hardest_first(classes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorts classes by F1, lowest first; classes without F1 come last."""
    return sorted(classes, key=lambda row: (row["f1"] is None, row["f1"]))


def data_uri(jpeg: bytes) -> str:
    """Returns the picture as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def short_name(path: str) -> str:
    """Returns the last two parts of a path: class and file."""
    return "/".join(Path(path).parts[-2:])


def breakable(name: str) -> "Markup":
    """Returns a name that may break after dots, dashes, underscores and slashes, as HTML."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(
        escape(part) for part in re.findall(r"[^-._/]*[-._/]|[^-._/]+", name)
    )


def _static(name: str) -> "Markup":
    from markupsafe import Markup

    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _environment() -> "Environment":
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
        "breakable": breakable,
        "quoted": shlex.quote,
    }
    return environment
