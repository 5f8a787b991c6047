"""The record of a run: what was trained on what and how well it does, as plain data for JSON.

Its schema is described in docs/metrics.md. The HTML page and the metrics file are made from it.
"""

import json
import math
import platform
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata

import numpy as np

from retraining.metrics import classification

FORMAT = 1  # of the record; raised when a field changes its meaning or goes
PACKAGES = ("tensorflow", "numpy", "pillow")
LIKELIEST = 5  # labels kept of each answer
MOST_STEPS = 1000  # evaluations kept of the course of training


@dataclass(frozen=True)
class Setting:
    """What a run was made with; `options` are the flags, `seconds` a Stopwatch's."""

    network: dict  # name, sha1, precision, width, size
    options: dict
    seconds: dict
    caveats: list = field(default_factory=list)
    warnings: list = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    `examples` are dataset.Examples by split, `result` an export.HeldOutResult, `course` the
    train.Steps with evaluations, `sizes` train.SizePoints, `bad_images` dataset.BadImages, `audit`
    audit.Findings or None if none was made, `comparison` what methods.describe gives or None.
    """

    labels: list
    examples: dict
    result: object
    course: list
    sizes: list
    bad_images: list = field(default_factory=list)
    audit: list | None = None
    comparison: list[dict] | None = None


def outcome_of(bottlenecks, result, course, sizes, findings):
    """The Outcome of a run on the photos of compute.Bottlenecks."""
    known = bottlenecks
    return Outcome(known.labels, known.examples, result, course, sizes, known.bad, findings)


def make_record(setting, outcome):
    """The record (a dict) of a Setting and an Outcome; NaN and infinity in it are None."""
    labels, result = outcome.labels, outcome.result
    answers = result.probabilities.argmax(axis=1)
    confusion = classification.confusion_matrix(result.truth, answers, len(labels))
    record = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **asdict(setting),
        "versions": versions(),
        "labels": list(labels),
        "photos": photo_counts(labels, outcome.examples),
        "test": describe_test(result, labels),
        "classes": describe_classes(confusion, labels),
        "confusion": describe_confusion(confusion),
        "calibration": describe_calibration(result),
        "predictions": describe_predictions(result, labels),
        "course": describe_course(outcome.course),
        "sizes": describe_sizes(outcome.sizes),
        "bad_images": [{"path": i.path, "reason": i.reason} for i in outcome.bad_images],
        "audit": None if outcome.audit is None else [asdict(found) for found in outcome.audit],
        "comparison": outcome.comparison,
    }
    return _finite(record)


def metrics_bytes(record):
    """The metrics file: the record as JSON in ASCII.

    A byte of a file's name that is no UTF-8 is written as a lone surrogate, as in Python.
    """
    return (json.dumps(record, indent=1, allow_nan=False) + "\n").encode("ascii")


def versions():
    """{package: version}, Python's first; None for what is not installed as a package."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def photo_counts(labels, examples):
    """Per class its label and the number of photos in each split, as a list of dicts."""
    counts = {part: Counter(e.label for e in found) for part, found in examples.items()}
    return [{"label": name, **{part: counts[part][name] for part in counts}} for name in labels]


def describe_test(result, labels):
    """Accuracy on the held-out photos beside that of always giving their most frequent class."""
    low, high = classification.wilson_interval(result.correct, result.total)
    counts = np.bincount(result.truth, minlength=len(labels))
    largest = int(counts.argmax())
    share = counts[largest] / result.total if result.total else math.nan
    return {
        "photos": result.total,
        "correct": result.correct,
        "accuracy": result.accuracy,
        "interval": [low, high] if result.total else None,
        "cross_entropy": classification.cross_entropy(result.probabilities, result.truth),
        "guessing": {"label": labels[largest], "accuracy": float(share)} if result.total else None,
    }


def describe_classes(confusion, labels):
    """Per class: photos tested, times answered, hits, precision, recall, F1."""
    columns = {
        "label": labels,
        "photos": confusion.sum(axis=1).tolist(),
        "answered": confusion.sum(axis=0).tolist(),
        "correct": confusion.diagonal().tolist(),
    }
    scores = (score.tolist() for score in classification.per_class(confusion)[:3])
    columns |= dict(zip(("precision", "recall", "f1"), scores, strict=True))
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def describe_confusion(confusion):
    """The cells of the matrix that are not 0; `truth` and `answer` are indices of labels."""
    cells = zip(*np.nonzero(confusion), strict=True)
    return [{"truth": int(i), "answer": int(j), "photos": int(confusion[i, j])} for i, j in cells]


def confusion_of(record):
    """The confusion matrix int [k, k] of a record."""
    matrix = np.zeros((len(record["labels"]),) * 2, int)
    for cell in record["confusion"]:
        matrix[cell["truth"], cell["answer"]] = cell["photos"]
    return matrix


def describe_calibration(result):
    """Whether answers of 80 % are right in 80 % of the cases: the error, and the bins behind it."""
    columns = classification.reliability(result.probabilities, result.truth)
    sums = float(result.probabilities.max(axis=1).sum())
    return {
        "expected_calibration_error": classification.expected_calibration_error(*columns),
        "mean_confidence": sums / result.total if result.total else math.nan,
        "bins": [_bin(number, *row) for number, row in enumerate(zip(*columns, strict=True))],
    }


def _bin(number, count, confidence, accuracy):
    count, bins = int(count), classification.BINS
    interval = classification.wilson_interval(round(count * accuracy), count) if count else None
    return {
        "low": number / bins,
        "high": (number + 1) / bins,
        "photos": count,
        "confidence": float(confidence),
        "accuracy": float(accuracy),
        "interval": interval and list(interval),
    }


def describe_predictions(result, labels):
    """Per tested photo: path, truth, answer, and the likeliest labels with their probabilities."""
    rows = zip(result.paths, result.truth, result.probabilities, strict=True)
    return [_prediction(path, int(truth), answer, labels) for path, truth, answer in rows]


def _prediction(path, truth, probabilities, labels):
    order = np.argsort(-probabilities, kind="stable")[:LIKELIEST]
    return {
        "path": path,
        "truth": truth,
        "answer": int(order[0]),
        "truth_probability": float(probabilities[truth]),
        "likeliest": [
            {"label": labels[index], "probability": float(probabilities[index])} for index in order
        ],
    }


def describe_course(steps):
    """The evaluations while training; of very many, some evenly spread ones and the last."""
    rows = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_STEPS)).astype(int))
    return [
        {
            "step": steps[row].number,
            "training": asdict(steps[row].training),
            "validation": asdict(steps[row].validation),
        }
        for row in rows
    ]


def describe_sizes(points):
    """Accuracy by number of training photos, and what the last doubling gained (with interval)."""
    if len(points) < 2 or not len(points[-1].right):
        return {"held_out": 0, "points": [], "gain": None}
    before, after = points[-2:]
    difference, low, high = classification.paired_difference(before.right, after.right)
    return {
        "held_out": len(after.right),
        "points": [_size_point(point) for point in points],
        "gain": {
            "from": before.photos,
            "to": after.photos,
            "accuracy": difference,
            "interval": [low, high],
        },
    }


def _size_point(point):
    interval = classification.wilson_interval(int(point.right.sum()), len(point.right))
    return {
        "photos": point.photos,
        "accuracy": float(point.right.mean()),
        "interval": list(interval),
    }


def _finite(value):
    """The value with None for each float in it that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
