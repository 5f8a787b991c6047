"""Makes the record of a run: how it trained and how good the model is, as plain data for JSON.

docs/metrics.md describes its schema. The HTML page and the metrics file are made from it.
"""

import json
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.evaluation.cross_validation import CrossValidation, Predicted
from retraining.evaluation.label_audit import Finding
from retraining.evaluation.learning_curve import SizePoint
from retraining.export.verify import HeldOutResult
from retraining.metrics import classification
from retraining.photos.dataset import Example
from retraining.photos.source import BadImage
from retraining.training.loop import Step

FORMAT = 1  # of the record; increases when a field changes its meaning or is removed
PACKAGES = ("tensorflow", "numpy", "pillow")
LIKELIEST = 5  # most probable labels to keep of each prediction
MOST_STEPS = 1000  # evaluations during training to keep

Record: TypeAlias = dict[str, Any]  # docs/metrics.md describes it
Part: TypeAlias = dict[str, Any]  # a dict in a record


@dataclass(frozen=True)
class Setting:
    """The inputs of a run. `options` are its flags; `seconds` are the times of its steps."""

    network: Mapping[str, Any]  # name, sha1, precision, width, size
    options: Mapping[str, Any]
    seconds: Mapping[str, float]
    caveats: Sequence[str] = field(default_factory=list)
    warnings: Sequence[str] = field(default_factory=list)
    remarks: Sequence[str] = field(default_factory=list)  # caveats that are plain facts


@dataclass(frozen=True)
class Outcome:
    """The results of a run.

    `examples` are by split, `course` holds the Steps with evaluations. `audit` is None without a
    label audit. `comparison` is what `methods.describe` returns, or None without one. `exports`
    tell of the other formats.
    """

    labels: Sequence[str]
    examples: Mapping[str, Sequence[Example]]
    result: HeldOutResult
    course: Sequence[Step]
    sizes: Sequence[SizePoint]
    bad_images: Sequence[BadImage] = field(default_factory=list)
    audit: Sequence[Finding] | None = None
    comparison: Sequence[Mapping[str, Any]] | None = None
    validated: CrossValidation | None = None
    final_fit: str = "training"
    temperature: float = 1.0
    exports: Sequence[Mapping[str, Any]] = field(default_factory=list)


def make_record(setting: Setting, outcome: Outcome) -> Record:
    """Makes the record of a Setting and an Outcome; NaN and infinity become None."""
    labels, result = outcome.labels, outcome.result
    answers = result.probabilities.argmax(axis=1)
    confusion = classification.confusion_matrix(result.targets, answers, len(labels))
    record: Record = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **asdict(setting),
        "versions": versions(),
        "labels": list(labels),
        "photos": photo_counts(labels, outcome.examples),
        "test": {
            **describe_test(result, labels),
            "without_twins": describe_without_twins(result, outcome.validated),
        },
        "final_fit": outcome.final_fit,
        "cross_validation": describe_validated(outcome.validated, labels),
        "classes": describe_classes(confusion, labels),
        "confusion": describe_confusion(confusion),
        "calibration": describe_calibration(result),
        "predictions": describe_predictions(result, labels),
        "course": describe_course(outcome.course),
        "sizes": describe_sizes(outcome.sizes),
        "bad_images": [{"path": i.path, "reason": i.reason} for i in outcome.bad_images],
        "audit": None if outcome.audit is None else [asdict(f) for f in outcome.audit],
        "comparison": outcome.comparison,
        "temperature": outcome.temperature,
        "exports": list(outcome.exports),
    }
    return {key: _finite(value) for key, value in record.items()}


def metrics_bytes(record: Record) -> bytes:
    """Returns the content of the metrics file: the record as JSON in ASCII.

    A byte of a file's name that is not UTF-8 becomes a lone surrogate, as in Python.
    """
    return (json.dumps(record, indent=1, allow_nan=False) + "\n").encode("ascii")


def versions() -> dict[str, str | None]:
    """Returns {package: version}, Python's first; None if it is not installed as a package."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def photo_counts(labels: Iterable[str], examples: Mapping[str, Iterable[Example]]) -> list[Part]:
    """Returns the label of each class and its number of photos in each split."""
    counts = {part: Counter(e.label for e in photos) for part, photos in examples.items()}
    return [{"label": name, **{part: counts[part][name] for part in counts}} for name in labels]


def describe_validated(validated: CrossValidation | None, labels: Sequence[str]) -> Part | None:
    """Describes a cross-validation as the test is described; None without one."""
    if validated is None:
        return None
    result, predicted = validated.result, validated.predicted
    answers, targets = predicted.probabilities.argmax(axis=1), predicted.targets
    confusion = classification.confusion_matrix(targets, answers, len(labels))
    return {
        "accuracy": result.accuracy,
        "interval": [result.low, result.high] if result.total else None,
        "deviation": result.deviation,
        "folds": validated.folds,
        "photos": result.total,
        "correct": result.correct,
        "groups": validated.groups,
        "leads": validated.leads,
        "untuned": validated.untuned,
        "guessing": describe_guessing(targets, labels),
        "classes": describe_classes(confusion, labels),
        "confusion": describe_confusion(confusion),
        "predictions": describe_predictions(predicted, labels),
    }


def describe_without_twins(result: HeldOutResult, validated: CrossValidation | None) -> Part | None:
    """Describes the test on the photos that show nothing that the head has seen.

    None if that is not known, or if all test photos are such photos.
    """
    if validated is None or not validated.twins:
        return None
    alone = np.array([key not in validated.twins for key in result.keys], bool)
    right = result.probabilities[alone].argmax(axis=1) == result.targets[alone]
    return {
        "photos": int(alone.sum()),
        "correct": int(right.sum()),
        "accuracy": float(right.mean()) if len(right) else math.nan,
    }


def describe_test(result: HeldOutResult, labels: Sequence[str]) -> Part:
    """Describes the accuracy on the test photos, and that of guessing their most frequent class."""
    low, high = classification.wilson_interval(result.correct, result.total)
    return {
        "photos": result.total,
        "correct": result.correct,
        "accuracy": result.accuracy,
        "interval": [low, high] if result.total else None,
        "cross_entropy": classification.cross_entropy_of_logits(result.logits, result.targets),
        "guessing": describe_guessing(result.targets, labels),
    }


def describe_guessing(targets: NDArray[np.integer], labels: Sequence[str]) -> Part | None:
    """Describes always guessing the most frequent of `targets`, int [n]; None without any."""
    if not len(targets):
        return None
    counts = np.bincount(targets)
    largest = int(counts.argmax())
    return {"label": labels[largest], "accuracy": float(counts[largest] / len(targets))}


def describe_classes(confusion: NDArray[np.int_], labels: Sequence[str]) -> list[Part]:
    """Describes each class: photos tested, answers, correct answers, precision, recall, F1."""
    columns: dict[str, Sequence[Any]] = {
        "label": labels,
        "photos": confusion.sum(axis=1).tolist(),
        "answered": confusion.sum(axis=0).tolist(),
        "correct": confusion.diagonal().tolist(),
    }
    scores = (score.tolist() for score in classification.per_class(confusion)[:3])
    columns |= dict(zip(("precision", "recall", "f1"), scores, strict=True))
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def describe_confusion(confusion: NDArray[np.int_]) -> list[Part]:
    """Returns the nonzero cells of the matrix; `truth` and `answer` are indexes of labels."""
    cells = zip(*np.nonzero(confusion), strict=True)
    return [{"truth": int(i), "answer": int(j), "photos": int(confusion[i, j])} for i, j in cells]


def evaluations(record: Record) -> dict[str, Part]:
    """Returns what a record says of the test photos and of those cross-validated, where it has any.

    The keys are `test` and `cross_validation`. Both values have `labels`, `photos`, `correct`,
    `accuracy`, `interval`, `guessing`, `classes`, `confusion` and `predictions`.
    """
    of_test = {name: record[name] for name in ("classes", "confusion", "predictions")}
    found = {
        "test": record["test"] | of_test,
        "cross_validation": record["cross_validation"] or {"photos": 0},
    }
    return {
        name: {"labels": record["labels"]} | part for name, part in found.items() if part["photos"]
    }


def leading(record: Record) -> str:
    """Returns the key of `evaluations` that says how good the model is."""
    validated = record["cross_validation"]
    return "cross_validation" if validated and validated["leads"] else "test"


def confusion_of(record: Record) -> NDArray[np.int_]:
    """Returns the confusion matrix of a record, or of one of its `evaluations`, int [k, k]."""
    matrix = np.zeros((len(record["labels"]),) * 2, int)
    for cell in record["confusion"]:
        matrix[cell["truth"], cell["answer"]] = cell["photos"]
    return matrix


def describe_calibration(result: HeldOutResult) -> Part:
    """Describes calibration: whether answers given with 80 % are correct in 80 % of the cases."""
    columns = classification.reliability(result.probabilities, result.targets)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    sums = float(result.probabilities.max(axis=1).sum())
    return {
        "expected_calibration_error": classification.expected_calibration_error(*columns),
        "mean_confidence": sums / result.total if result.total else math.nan,
        "bins": [_bin(number, *row) for number, row in enumerate(rows)],
    }


def _bin(number: int, count: int, confidence: float, accuracy: float) -> Part:
    bins = classification.BINS
    interval = classification.wilson_interval(round(count * accuracy), count) if count else None
    return {
        "low": number / bins,
        "high": (number + 1) / bins,
        "photos": count,
        "confidence": confidence,
        "accuracy": accuracy,
        "interval": interval and list(interval),
    }


def describe_predictions(result: HeldOutResult | Predicted, labels: Sequence[str]) -> list[Part]:
    """Describes each photo: path, truth, answer, and the most probable labels."""
    rows = zip(result.paths, result.targets, result.probabilities, strict=True)
    return [_prediction(path, int(target), answer, labels) for path, target, answer in rows]


def _prediction(
    path: str, target: int, probabilities: NDArray[np.floating], labels: Sequence[str]
) -> Part:
    order = np.argsort(-probabilities, kind="stable")[:LIKELIEST]
    return {
        "path": path,
        "truth": target,
        "answer": int(order[0]),
        "truth_probability": float(probabilities[target]),
        "likeliest": [
            {"label": labels[index], "probability": float(probabilities[index])} for index in order
        ],
    }


def describe_course(steps: Sequence[Step]) -> list[Part]:
    """Describes the evaluations during training: at most MOST_STEPS, evenly spread."""
    rows = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_STEPS)).astype(int))
    return [_evaluated_step(steps[row]) for row in rows]


def _evaluated_step(step: Step) -> Part:
    training, validation = step.evaluations
    return {
        "step": step.number,
        "training": asdict(training),
        "validation": asdict(validation),
    }


def describe_sizes(points: Sequence[SizePoint]) -> Part:
    """Describes accuracy by number of training photos, and the gain of the last doubling."""
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


def _size_point(point: SizePoint) -> Part:
    interval = classification.wilson_interval(int(point.right.sum()), len(point.right))
    return {
        "photos": point.photos,
        "accuracy": float(point.right.mean()),
        "interval": list(interval),
    }


def _finite(value: Any) -> Any:
    """Replaces each float in the value that is not finite by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
