"""Scores how well a classifier labels a folder of labelled photos that retrain.py has not seen.

The folder has one sub-folder for each class, whose name is matched with the labels of the
classifier. `tsv_lines`, `text_lines` and `to_dict` present the Score.
"""

import difflib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.stream import Answer
from retraining.metrics import classification
from retraining.photos.class_folders import same_label
from retraining.photos.key_set import KeySet
from retraining.photos.reader import ImageError
from retraining.photos.registry import hash_file, is_table, kind_of
from retraining.photos.source import Scan, ScanOptions
from retraining.photos.split import SPLITS
from retraining.photos.table import TableSource
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
class ScoredPhoto:
    """A photo's class, the likeliest label, and the score of that label.

    `seen` tells whether the graph was trained on the photo; None if that is not known. `unknown`
    tells whether the photo counts as of no known class.
    """

    path: str
    target: str
    predicted: str
    probability: float
    seen: bool | None = None
    unknown: bool = False


@dataclass(frozen=True)
class Score:
    """How photos were labelled."""

    scored: Sequence[ScoredPhoto]
    rejects: bool = False  # whether photos were tested for being of no known class

    @functools.cached_property
    def classes(self) -> list[str]:
        """The classes among the true or predicted labels, sorted."""
        return sorted({label for photo in self.scored for label in (photo.target, photo.predicted)})

    @functools.cached_property
    def confusion(self) -> NDArray[np.int_]:
        """The counts int [k, k] of `classes`, with the true classes in rows."""
        rows = {label: row for row, label in enumerate(self.classes)}
        return classification.confusion_matrix(
            [rows[photo.target] for photo in self.scored],
            [rows[photo.predicted] for photo in self.scored],
            len(rows),
        )

    @property
    def photos(self) -> int:
        """The number of photos scored."""
        return len(self.scored)

    @property
    def mistakes(self) -> list[ScoredPhoto]:
        """The photos whose likeliest label is not their class."""
        return [photo for photo in self.scored if photo.predicted != photo.target]

    @property
    def correct(self) -> int:
        """The number of photos whose likeliest label is their class."""
        return self.photos - len(self.mistakes)

    @property
    def accuracy(self) -> float:
        """The share of correct photos; NaN without photos."""
        return self.correct / self.photos if self.photos else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high): the 95 % confidence interval of the accuracy, by Wilson."""
        return classification.wilson_interval(self.correct, self.photos)

    @property
    def unseen(self) -> "Score | None":
        """The Score of the photos that the graph was not trained on; None if they are not known."""
        if any(photo.seen is None for photo in self.scored):
            return None
        return Score([photo for photo in self.scored if not photo.seen])

    @property
    def answered(self) -> "Score":
        """The Score of the photos that do not count as unknown."""
        return Score([photo for photo in self.scored if not photo.unknown])


def find_labelled(
    folder: str, labels: Sequence[str], options: ScanOptions | None = None
) -> LabelledPhotos:
    """Finds the photos in `folder` of the classes that are among the classifier's `labels`.

    The classes may lie in split folders, all of which count. Or `folder` is a table of photos.
    The `options` say which photos count, and what tells their labels.

    Raises:
        DatasetError: the folder is missing or has no class folder, or one that cannot be a label.
    """
    source = TableSource(folder) if is_table(folder) else kind_of(folder)(folder)
    scan = source.scan(options, least_classes=1)
    photos = scan.names
    warnings = scan.notes + scan.warnings + _splits_read(scan, folder)
    for image in scan.bad:
        if image.claimed:  # the classifier reports what is wrong with it
            photos[image.label or ""].append(image.path)
    known = match_classes(photos, labels)
    if loose := [f"{n!r} as {label!r}" for n, label in known.items() if label not in (n, None)]:
        warnings.append(f"matched classes that the graph spells differently: {some(loose)}")
    free = sorted(set(labels) - set(known.values()))
    unknown = {name: len(photos[name]) for name, label in known.items() if label is None}
    warnings += _unknown_classes(unknown, free)
    if free:
        named, classes = some(free, NAMED), counted(len(free), "class", "classes")
        warnings.append(f"no folder for {classes} of the graph: {named}")
    matches = [(path, label) for name, label in known.items() if label for path in photos[name]]
    return LabelledPhotos([path for path, _ in matches], [label for _, label in matches], warnings)


def _unknown_classes(counts: Mapping[str, int], free: Sequence[str]) -> list[str]:
    """Returns lines on classes {name: photos} that the graph does not have; one if they are many.

    `free` are labels of the graph without photos.
    """
    if len(counts) > NAMED:
        return [
            f"the graph has no class for {len(counts)} folders ({some(list(counts))}); their "
            f"photos ({sum(counts.values())}) are not scored"
        ]
    likes = {name: difflib.get_close_matches(name, free, n=1, cutoff=0.75) for name in counts}
    return [
        f"the graph has no class {name}; its photos ({count}) are not scored"
        + (f"; did you mean {likes[name][0]}?" if likes[name] else "")
        for name, count in counts.items()
    ]


def _splits_read(scan: Scan, folder: str) -> list[str]:
    """Returns a line on the splits that a source gives, if it gives any."""
    parts = Counter(photo.split for of_class in scan.photos.values() for photo in of_class)
    given = ", ".join(f"{parts[part]} for {part}" for part in SPLITS if parts[part])
    if not given:
        return []
    return [f"{folder} holds photos in splits ({given}); the score counts all of them"]


def match_classes(names: Iterable[str], labels: Iterable[str]) -> dict[str, str | None]:
    """Returns {name: label or None}: the label of exactly that name, or else the only similar one.

    Similar names differ only in details that a reader overlooks (`class_folders.same_label`). A
    name has no label if several labels are similar, or if several names are similar to its label.
    """
    names, known = list(names), set(labels)
    similar = {same_label(label): label for label in known}
    count = Counter(map(same_label, known))
    rivals = Counter(map(same_label, set(names)))
    matches: dict[str, str | None] = {}
    for name in names:
        key = same_label(name)
        unambiguous = count[key] == rivals[key] == 1
        matches[name] = name if name in known else similar[key] if unambiguous else None
    return matches


def score(
    targets: Sequence[str],
    answers: Iterable[tuple[str, Answer, float | None]],
    labels: Sequence[str],
    trained: KeySet | None,
    on_error: Callable[[str, ImageError], None],
) -> list[ScoredPhoto]:
    """Compares `answers`, as Classifier.predict yields them, with the classes of the photos.

    Leaves out an ImageError among the answers, but calls `on_error(path, error)`. `trained` are
    the photos that the graph was trained on; None if they are not known.
    """
    scored: list[ScoredPhoto] = []
    for target, (path, answer, novelty) in zip(targets, answers, strict=True):
        if isinstance(answer, ImageError):
            on_error(path, answer)
            continue
        best = int(answer.argmax())
        seen = None if trained is None else hash_file(path) in trained
        figures = labels[best], float(answer[best]), seen, novelty is not None
        scored.append(ScoredPhoto(path, target, *figures))
    return scored


def trained_photos(description: Mapping[str, Any]) -> KeySet | None:
    """Returns the photos on which a graph was trained, or None if it does not tell them.

    `description` is the graph's description of itself; empty if it has none.
    """
    packed = description.get("trained_photos")
    try:
        return KeySet(packed) if isinstance(packed, str) else None
    except ValueError:
        return None


def describe_seen(result: Score) -> str:
    """Returns one line on the photos that the graph was trained on."""
    unseen = result.unseen
    if unseen is None:
        return (
            "the graph does not list its training photos; if some of them are among these photos, "
            "this accuracy is too high"
        )
    if not unseen.photos:
        return "the graph was trained on all of these photos, so this accuracy is too high"
    low, high = unseen.interval
    line = (
        f"accuracy on photos that the graph has not seen = {unseen.accuracy:.1%} "
        f"(N={unseen.photos}, 95 % interval {low:.1%} to {high:.1%})"
    )
    seen = result.photos - unseen.photos
    return f"{line}; it has seen the other {seen} in training or validation" if seen else line


def tsv_lines(result: Score) -> Iterator[str]:
    """Yields lines of fields between tabs; the first field names the content of the line.

    `accuracy`, `interval` (low, high), `photos`, `correct`; `unseen_photos` and `unseen_accuracy`
    if the graph tells its training photos; `answered`, `coverage` and `answered_accuracy` if photos
    may be unknown; `class` (label, photos, precision, recall, F1) for each class; `confusion`
    (class, answer, photos) for each pair that occurs.
    """
    low, high = result.interval
    yield f"accuracy\t{result.accuracy:.4f}"
    yield f"interval\t{low:.4f}\t{high:.4f}"
    yield f"photos\t{result.photos}"
    yield f"correct\t{result.correct}"
    for name, value in [*_unseen(result).items(), *_answered(result).items()]:
        yield f"{name}\t{value}" if isinstance(value, int) else f"{name}\t{value:.4f}"
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
        **{name: _rounded(value) for name, value in _unseen(result).items()},
        **{name: _rounded(value) for name, value in _answered(result).items()},
        "classes": [{key: _rounded(value) for key, value in r.items()} for r in _classes(result)],
        "confusion": list(_pairs(result)),
    }


def text_lines(result: Score) -> Iterator[str]:
    """Yields lines for a person: a table of the classes, then the confusions."""
    low, high = result.interval
    yield (
        f"accuracy {result.accuracy:.1%} (N={result.photos}, 95 % interval {low:.1%} to {high:.1%})"
    )
    if unseen := _unseen(result):
        share = _percent(unseen["unseen_accuracy"])
        photos = unseen["unseen_photos"]
        yield f"accuracy on photos that the graph has not seen {share} (N={photos})"
    if answered := _answered(result):
        share = _percent(answered["answered_accuracy"])
        yield f"accuracy on the {answered['answered']} photos that do not count as unknown {share}"
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


def _unseen(result: Score) -> dict[str, Any]:
    if (unseen := result.unseen) is None:
        return {}
    return {"unseen_photos": unseen.photos, "unseen_accuracy": unseen.accuracy}


def _answered(result: Score) -> dict[str, Any]:
    if not result.rejects:
        return {}
    answered = result.answered
    coverage = answered.photos / result.photos if result.photos else math.nan
    return {
        "answered": answered.photos,
        "coverage": coverage,
        "answered_accuracy": answered.accuracy,
    }


def misclassified_dicts(result: Score) -> Iterator[dict[str, Any]]:
    """Yields a dict for each mistake: path, class, answer, score."""
    for photo in result.mistakes:
        yield {
            "path": photo.path,
            "class": photo.target,
            "answer": photo.predicted,
            "score": photo.probability,
        }


def misclassified_lines(result: Score) -> Iterator[str]:
    """Yields a line for each mistake: `misclassified`, path, class, answer, score."""
    for photo in result.mistakes:
        fields = map(escaped, (photo.path, photo.target, photo.predicted))
        yield "\t".join(("misclassified", *fields, f"{photo.probability:.5f}"))


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _rounded(value: Any) -> Any:
    """Returns a share with four digits, None for NaN, and anything else as it is."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, 4)
