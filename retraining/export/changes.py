"""Tells how a retrained graph differs from the one it replaces: in its classes and answers."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retraining.export.verify import HeldOutResult
from retraining.graphs.description import DescriptionError, read_metadata
from retraining.graphs.nodes import GraphError
from retraining.graphs.read import read_graph
from retraining.system.text import some

log = logging.getLogger(__name__)

NAMED = 5  # photos that a line names


def read_description(path: str) -> dict[str, Any]:
    """Returns the description that the retrained graph at `path` carries; {} if there is none."""
    try:
        return read_metadata(read_graph(path)) or {}
    except DescriptionError as error:
        log.warning(f"{path} is replaced without comparing it with the new graph: {error}")
    except GraphError:
        pass  # retrain.py did not write this file
    return {}


@dataclass(frozen=True)
class Compared:
    """A photo that tested both graphs, with its labels and answers then and now.

    `label_then` is None if the description of the old graph does not tell it.
    """

    path: str
    label_then: str | None
    answer_then: str
    label: str
    answer: str


def describe_changes(
    before: Mapping[str, Any], result: HeldOutResult, labels: Sequence[str]
) -> Iterator[str]:
    """Yields lines on how a new graph differs from the one it replaces.

    `before` is the description of the old graph, `result` the HeldOutResult of the new one, and
    `labels` are the labels of the new one. The answers are compared on the photos that tested both
    graphs; each answer is judged by the label that the photo had at its time.
    """
    old_labels = before.get("labels", labels)
    for verb, these, others in (("added", labels, old_labels), ("removed", old_labels, labels)):
        if names := [label for label in these if label not in others]:
            yield f"classes {verb} since the previous graph: {', '.join(names)}"
    if both := _tested_by_both(before, result, labels):
        yield _compare_accuracies(both)
        yield from _compare_answers(both, labels)


def _tested_by_both(
    before: Mapping[str, Any], result: HeldOutResult, labels: Sequence[str]
) -> list[Compared]:
    """Returns the photos that tested both graphs."""
    results = before.get("results", {})
    earlier = results.get("held_out", [])
    targets = results.get("held_out_targets", [None] * len(earlier))
    then = {
        key: (None if target is None else before["labels"][target], before["labels"][answer])
        for (key, answer, _), target in zip(earlier, targets, strict=True)
    }
    rows = zip(result.paths, result.keys, result.targets, result.probabilities, strict=True)
    return [
        Compared(path, *then[key], labels[target], labels[int(scores.argmax())])
        for path, key, target, scores in rows
        if key in then
    ]


def _compare_accuracies(both: Sequence[Compared]) -> str:
    """Returns one line; it leaves out the accuracy then if the true labels then are unknown."""
    right_now = sum(photo.label == photo.answer for photo in both) / len(both)
    accuracies = f"{right_now:.1%} correct"
    if all(photo.label_then is not None for photo in both):
        right_then = sum(photo.label_then == photo.answer_then for photo in both) / len(both)
        accuracies = f"{right_then:.1%} correct then, {right_now:.1%} now"
    return f"{len(both)} of these photos also tested the previous graph: {accuracies}"


def _compare_answers(both: Sequence[Compared], labels: Sequence[str]) -> Iterator[str]:
    """Yields a line on the photos with another answer; a new name of a class is no other answer."""
    names = _new_names(both, labels)
    changed = [
        f"{photo.path} ({photo.answer_then} -> {photo.answer})"
        for photo in both
        if names.get(photo.answer_then, photo.answer_then) != photo.answer
    ]
    if changed:
        yield f"{len(changed)} of them got a different answer: {some(changed, NAMED)}"


def _new_names(both: Iterable[Compared], labels: Sequence[str]) -> dict[str, str]:
    """Returns {old label: label} of the labels that are gone, if all their photos share one now."""
    now: dict[str, set[str]] = defaultdict(set)
    for photo in both:
        if photo.label_then is not None and photo.label_then not in labels:
            now[photo.label_then].add(photo.label)
    return {old: names.pop() for old, names in now.items() if len(names) == 1}
