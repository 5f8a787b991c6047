"""Which labels a classifier has: those of a file, of the model itself, or of the file beside it."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from retraining.errors import RetrainingError
from retraining.photos.class_folders import same_label
from retraining.system.lines import TextError, read_lines
from retraining.system.text import is_label, some

MOST_LABEL_BYTES = 1 << 24  # 16 MiB of a labels file: a hundred thousand classes and more
# Lengths of lists of ImageNet's classes, without and with a background class. In the usual ones,
# `crane` and `maillot` name two classes each.
IMAGENET_CLASSES = (1000, 1001)


class LabelsError(RetrainingError):
    """The labels file is missing or does not fit the graph."""


def find_labels(
    graph_path: str | Path,
    labels_path: str | Path | tuple[str, ...] | None,
    own: Sequence[str] | None,
    notes: list[str],
) -> tuple[str, ...]:
    """Returns the labels as given, the model's `own`, or those beside it; adds a note on the last.

    Raises:
        LabelsError: there are none, or the file is unreadable, or the model's own repeat one.
    """
    beside = Path(graph_path).with_name("retrained_labels.txt")  # the default name of retrain.py
    if isinstance(labels_path, tuple):
        return labels_path
    if labels_path:
        return read_labels(labels_path)
    if own is not None:
        if twice := [label for label, count in Counter(own).items() if count > 1]:
            raise LabelsError(
                f"the graph's own labels name several classes {some(list(map(repr, twice)))}; give "
                f"a labels file with a different name for each with `labels_path`"
            )
        if beside.is_file() and _differ(beside, tuple(own)):
            notes.append(f"using the labels in the graph; those in {beside} differ")
        return tuple(own)
    if beside.is_file():
        notes.append(
            f"using the labels in {beside}; to use others, give their file with `labels_path`"
        )
        return read_labels(beside)
    raise LabelsError("this graph holds no labels; give their file with `labels_path`")


def _differ(path: Path, labels: tuple[str, ...]) -> bool:
    try:
        return read_labels(path) != labels
    except LabelsError:
        return True


def check_order(labels: Sequence[str], own: Sequence[str]) -> None:
    """Refuses labels that give one class of the graph the name of another. New names are fine.

    Names that are spelled alike are compared first; then the rest by `same_label`.

    Raises:
        LabelsError: there is such a label.
    """
    if len(labels) != len(own):
        return  # which the graph's width shows
    _check_rows(labels, own, str)
    _check_rows(
        [label if label not in own else "" for label in labels],
        [label if label not in labels else "" for label in own],
        same_label,
    )


def _check_rows(labels: Sequence[str], own: Sequence[str], key_of: Callable[[str], str]) -> None:
    """Refuses labels whose key belongs to another row. Empty and ambiguous names are passed over.

    Raises:
        LabelsError: there is such a label.
    """
    rows = {key_of(label): row for row, label in enumerate(own) if label}
    given, known = (Counter(key_of(name) for name in names if name) for names in (labels, own))
    for row, label in enumerate(labels):
        key = key_of(label)
        if label and given[key] == known[key] == 1 and rows[key] != row:
            raise LabelsError(
                f"the labels are in another order than the graph's own: {label!r} is number "
                f"{row + 1}, and number {rows[key] + 1} in the graph; drop `labels_path`"
            )


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Reads the lines of a labels file, without line ends and without empty lines at the end.

    Raises:
        LabelsError: the file is unreadable, empty or no text, or a line is no label, or repeats
            one. A list of ImageNet's classes may repeat labels.
    """
    name = f"the labels file {path}"
    try:
        labels = read_lines(path, name, MOST_LABEL_BYTES)
    except TextError as error:
        raise LabelsError(str(error)) from error
    while labels and not labels[-1]:
        labels.pop()
    if not labels:
        raise LabelsError(f"{name} is empty")
    lines: dict[str, int] = {}
    for line, label in enumerate(labels, start=1):
        if not label:
            raise LabelsError(f"line {line} of {name} is empty; give that class a name")
        if not is_label(label):
            raise LabelsError(
                f"line {line} of {name} ({label!r}) has characters that cannot stand in a label"
            )
        if lines.setdefault(label, line) != line and len(labels) not in IMAGENET_CLASSES:
            raise LabelsError(
                f"line {line} of {name} repeats {label!r} of line {lines[label]}; give each class "
                f"a name of its own"
            )
    return tuple(labels)


def check_width(width: int | None, labels: int) -> None:
    """Raises LabelsError if there are more or fewer labels than probabilities, if that is known."""
    if width not in (None, labels):
        raise LabelsError(
            f"the graph gives {width} probabilities for {labels} labels; name the labels file "
            f"that belongs to it with `labels_path`"
        )
