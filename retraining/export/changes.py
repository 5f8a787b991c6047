"""Tells how a retrained graph differs from the one it replaces: in its classes and answers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retraining.export.verify import HeldOutResult
from retraining.graphs.description import read_metadata
from retraining.graphs.nodes import GraphError
from retraining.graphs.read import read_graph
from retraining.system.text import some

NAMED = 5  # photos that a line names


def read_description(path: str) -> dict[str, Any]:
    """Returns the description that the retrained graph at `path` carries; {} if there is none."""
    try:
        return read_metadata(read_graph(path)) or {}
    except GraphError:
        return {}  # retrain.py did not write this file


def describe_changes(
    before: Mapping[str, Any], result: HeldOutResult, labels: Sequence[str]
) -> Iterator[str]:
    """Yields lines on how a new graph differs from the one it replaces.

    `before` is the description of the old graph, `result` the HeldOutResult of the new one, and
    `labels` are the labels of the new one. The answers are compared on the photos that tested both
    graphs; the true class of a photo is its class today.
    """
    old_labels = before.get("labels", labels)
    for verb, these, others in (("added", labels, old_labels), ("removed", old_labels, labels)):
        if names := [label for label in these if label not in others]:
            yield f"classes {verb} since the graph that is replaced: {', '.join(names)}"
    earlier = before.get("results", {}).get("held_out", [])
    then = {key: old_labels[number] for key, number, _ in earlier}
    both = [
        (path, labels[target], then[key], labels[int(answer.argmax())])
        for path, key, target, answer in zip(
            result.paths, result.keys, result.targets, result.probabilities, strict=True
        )
        if key in then
    ]
    if both:
        yield from _compare_answers(both)


def _compare_answers(both: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
    """Yields lines on photos that tested both graphs: (path, true label, label then, label now)."""
    right_then = sum(label == then for _, label, then, _ in both) / len(both)
    right_now = sum(label == now for _, label, _, now in both) / len(both)
    yield (
        f"{len(both)} of these photos tested the graph that is replaced, too: {right_then:.1%} "
        f"right then, {right_now:.1%} now"
    )
    changed = [f"{path} ({then} -> {now})" for path, _, then, now in both if then != now]
    if changed:
        yield f"{len(changed)} of them got another answer: {some(changed, NAMED)}"
