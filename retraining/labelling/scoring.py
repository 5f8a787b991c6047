"""Scores how well a classifier labels a folder of labelled photos that retrain.py has not seen.

The folder has one sub-folder for each class, whose name is matched with the labels of the
classifier. `tsv_lines`, `text_lines` and `to_dict` present the Score.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.extract import Answer
from retraining.metrics import classification
from retraining.photos.class_folders import same_label
from retraining.photos.folder import FolderSource
from retraining.photos.reader import ImageError
from retraining.system.text import counted, escaped, some

NAMED = 5  # classes that a warning names
SHARES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos of classes that the classifier knows."""

    paths: list[str]
    targets: list[str]  # the label of each photo, as the classifier spells it
    warnings: list[str]  # photos left out, and oddities, a line each


@dataclass(frozen=True)
class Score:
    """How photos were labelled; `classes`, sorted, are those among the true or predicted labels."""

    classes: list[str]
    confusion: NDArray[np.int_]  # int [k, k], the true classes in rows

    @property
    def photos(self) -> int:
        """The number of photos scored."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """The number of photos whose likeliest label is their class."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        """The share of correct photos; NaN without photos."""
        return self.correct / self.photos if self.photos else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high): the 95 % confidence interval of the accuracy, by Wilson."""
        return classification.wilson_interval(self.correct, self.photos)


def find_labelled(folder: str, labels: Sequence[str]) -> LabelledPhotos:
    """Finds the photos in `folder` of the classes that are among the classifier's `labels`.

    Raises:
        DatasetError: the folder is missing or has no class folder, or two folders are one label.
    """
    scan = FolderSource(folder).scan(least_classes=1)
    photos, warnings = scan.names, scan.warnings
    for image in scan.bad:
        if image.claimed:  # the classifier reports what is wrong with it
            photos[os.path.basename(os.path.dirname(image.path))].append(image.path)
    known = match_classes(photos, labels)
    for name, label in known.items():
        if label is None:
            warnings.append(
                f"the graph does not know the class {name}; its photos ({len(photos[name])}) are "
                f"not scored"
            )
    missing = sorted(set(labels) - set(known.values()))
    if missing:
        named, classes = some(missing, NAMED), counted(len(missing), "class", "classes")
        warnings.append(f"no folder here for {classes} of the graph: {named}")
    matches = [(path, label) for name, label in known.items() if label for path in photos[name]]
    return LabelledPhotos([path for path, _ in matches], [label for _, label in matches], warnings)


def match_classes(names: Iterable[str], labels: Iterable[str]) -> dict[str, str | None]:
    """Returns {name: label or None}: the label of exactly that name, or else the only similar one.

    Similar names differ only in details that a reader overlooks (`class_folders.same_label`).
    """
    known = set(labels)
    alike: dict[str, list[str]] = {}
    for label in known:
        alike.setdefault(same_label(label), []).append(label)
    matches = {name: alike.get(same_label(name), []) for name in names}
    return {
        name: name if name in known else matches[name][0] if len(matches[name]) == 1 else None
        for name in names
    }


def score(
    photos: LabelledPhotos,
    answers: Iterable[tuple[str, Answer]],
    labels: Sequence[str],
    on_error: Callable[[str, ImageError], None],
) -> Score:
    """Scores `answers`, (path, probabilities) in the order of the photos.

    Does not score an ImageError among the answers, but calls `on_error(path, error)`.
    """
    targets: list[str] = []
    predicted: list[str] = []
    for label, (path, answer) in zip(photos.targets, answers, strict=True):
        if isinstance(answer, ImageError):
            on_error(path, answer)
            continue
        targets.append(label)
        predicted.append(labels[int(answer.argmax())])
    classes = sorted({*targets, *predicted})
    rows = {label: row for row, label in enumerate(classes)}
    confusion = classification.confusion_matrix(
        [rows[label] for label in targets], [rows[label] for label in predicted], len(classes)
    )
    return Score(classes, confusion)


def trained_on(described: Mapping[str, Any], folder: str) -> str:
    """Returns one line that warns of photos in `folder` on which the graph may have been trained.

    `described` is the graph's description of itself; empty if it has none.
    """
    if_among = "if some of them are among these, this accuracy is too good"
    source = described.get("options", {}).get("image_dir")
    if not source:
        return f"the graph does not tell its training photos; {if_among}"
    if os.path.realpath(source) != os.path.realpath(folder):
        return f"the graph was trained on photos of {source}; {if_among}"
    results = described.get("results", {})
    line = "the graph was trained on photos of this very folder, so this accuracy is too good"
    if results.get("test_photos"):
        share = results["test_correct"] / results["test_photos"]
        line += f"; on its held-out photos it was {share:.4f} (N={results['test_photos']})"
    return line


def tsv_lines(result: Score) -> Iterator[str]:
    """Yields lines of fields between tabs; the first field names the content of the line.

    `accuracy`, `interval` (low, high), `photos`, `correct`; `class` (label, photos, precision,
    recall, F1) for each class; `confusion` (class, answer, photos) for each pair that occurs.
    """
    low, high = result.interval
    yield f"accuracy\t{result.accuracy:.4f}"
    yield f"interval\t{low:.4f}\t{high:.4f}"
    yield f"photos\t{result.photos}"
    yield f"correct\t{result.correct}"
    for row in _classes(result):
        shares = "\t".join(f"{row[name]:.4f}" for name in SHARES)
        yield f"class\t{escaped(row['label'])}\t{row['photos']}\t{shares}"
    for row in _pairs(result):
        yield f"confusion\t{escaped(row['class'])}\t{escaped(row['answer'])}\t{row['photos']}"


def to_dict(result: Score) -> dict[str, Any]:
    """Returns the same as one JSON object; undefined shares are None."""
    return {
        "accuracy": _rounded(result.accuracy),
        "interval": [round(limit, 4) for limit in result.interval],
        "photos": result.photos,
        "correct": result.correct,
        "classes": [{key: _rounded(value) for key, value in r.items()} for r in _classes(result)],
        "confusion": list(_pairs(result)),
    }


def text_lines(result: Score) -> Iterator[str]:
    """Yields lines for a person: a table of the classes, then the confusions."""
    low, high = result.interval
    yield (
        f"accuracy {result.accuracy:.1%} (N={result.photos}, 95 % interval {low:.1%} to {high:.1%})"
    )
    width = max(5, *(len(escaped(label)) for label in result.classes))
    yield f"{'class':{width}}  photos  precision  recall      F1"
    for row in _classes(result):
        precision, recall, f1 = (_percent(row[name]) for name in SHARES)
        yield (
            f"{escaped(row['label']):{width}}  {row['photos']:6}  {precision:>9}  {recall:>6}  "
            f"{f1:>6}"
        )
    wrong = [row for row in _pairs(result) if row["class"] != row["answer"]]
    for row in sorted(wrong, key=lambda row: -row["photos"]):
        yield f"{row['photos']} of {escaped(row['class'])} taken for {escaped(row['answer'])}"


def _classes(result: Score) -> Iterator[dict[str, Any]]:
    columns = classification.per_class(result.confusion)
    for label, precision, recall, f1, support in zip(result.classes, *columns, strict=True):
        yield {
            "label": label,
            "photos": int(support),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
        }


def _pairs(result: Score) -> Iterator[dict[str, Any]]:
    for row, column in np.argwhere(result.confusion):
        yield {
            "class": result.classes[row],
            "answer": result.classes[column],
            "photos": int(result.confusion[row, column]),
        }


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _rounded(value: Any) -> Any:
    """Returns a share with four digits, None for NaN, and anything else as it is."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, 4)
