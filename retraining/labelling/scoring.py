"""How well a classifier labels a folder of labelled photos: what retrain.py did not see.

A class per sub-folder, matched with the classifier's labels by name. The record it gives is printed
by `tsv_lines`, `text_lines` or `to_dict`.
"""

import math
import os
from dataclasses import dataclass

import numpy as np

from retraining.metrics import classification
from retraining.photos.reader import ImageError
from retraining.photos.scan import list_photos, same_label
from retraining.system.text import counted, escaped, some

NAMED = 5  # classes that a warning names
SHARES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos whose class the classifier knows."""

    paths: list[str]
    truth: list[str]  # each photo's label, spelled as the classifier does
    warnings: list[str]  # what was left out or looks odd, a line each


@dataclass(frozen=True)
class Score:
    """How photos were labelled. `classes` are those that occur in truth or answers, sorted."""

    classes: list[str]
    confusion: np.ndarray  # int [k, k], the truth in rows

    @property
    def photos(self):
        """Number of photos scored."""
        return int(self.confusion.sum())

    @property
    def correct(self):
        """Number of photos whose likeliest label is their class."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self):
        """Share of correct photos, NaN without photos."""
        return self.correct / self.photos if self.photos else math.nan

    @property
    def interval(self):
        """(low, high) of the accuracy, 95 %, by Wilson."""
        return classification.wilson_interval(self.correct, self.photos)


def find_labelled(folder, labels):
    """The LabelledPhotos of the classes in `folder` that are among the classifier's `labels`.

    Raises:
        DatasetError: missing folder, no class folder, two folders that are one label.
    """
    photos, bad, warnings = list_photos(folder, least_classes=1)
    for image in bad:
        if image.claimed:  # the classifier will say what is wrong with it
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
    found = [(path, label) for name, label in known.items() if label for path in photos[name]]
    return LabelledPhotos([path for path, _ in found], [label for _, label in found], warnings)


def match_classes(names, labels):
    """{name: label or None}: the label of that very name, or else the only one that is alike.

    Alike are names that differ in what a reader overlooks (`dataset.same_label`).
    """
    known, alike = set(labels), {}
    for label in known:
        alike.setdefault(same_label(label), []).append(label)
    found = {name: alike.get(same_label(name), []) for name in names}
    return {
        name: name if name in known else found[name][0] if len(found[name]) == 1 else None
        for name in names
    }


def score(photos, answers, labels, on_error):
    """The Score of LabelledPhotos, given `answers`, an iterable of (path, probabilities) in order.

    An ImageError among the answers is not scored; `on_error(path, error)` is called.
    """
    truth, predicted = [], []
    for label, (path, answer) in zip(photos.truth, answers, strict=True):
        if isinstance(answer, ImageError):
            on_error(path, answer)
            continue
        truth.append(label)
        predicted.append(labels[answer.argmax()])
    classes = sorted({*truth, *predicted})
    rows = {label: row for row, label in enumerate(classes)}
    confusion = classification.confusion_matrix(
        [rows[label] for label in truth], [rows[label] for label in predicted], len(classes)
    )
    return Score(classes, confusion)


def trained_on(described, folder):
    """One line of warning on photos of `folder` that the graph may have been trained on.

    `described` is what the graph says of itself; empty if it says nothing.
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


# -- printing --------------------------------------------------------------------------------


def tsv_lines(result):
    """Yields lines of fields between tabs; the first field says what the line holds.

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


def to_dict(result):
    """The same as one JSON object; shares that are undefined are None."""
    return {
        "accuracy": _rounded(result.accuracy),
        "interval": [round(limit, 4) for limit in result.interval],
        "photos": result.photos,
        "correct": result.correct,
        "classes": [{key: _rounded(value) for key, value in r.items()} for r in _classes(result)],
        "confusion": list(_pairs(result)),
    }


def text_lines(result):
    """Yields lines for a reader: a table of the classes, then what was taken for what."""
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


def _classes(result):
    columns = classification.per_class(result.confusion)
    for label, precision, recall, f1, support in zip(result.classes, *columns, strict=True):
        yield {
            "label": label,
            "photos": int(support),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
        }


def _pairs(result):
    for row, column in np.argwhere(result.confusion):
        yield {
            "class": result.classes[row],
            "answer": result.classes[column],
            "photos": int(result.confusion[row, column]),
        }


def _percent(share):
    return "-" if math.isnan(share) else f"{share:.1%}"


def _rounded(value):
    """A share with four digits, None for NaN; anything else as it is."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, 4)
