"""Reads a graph's description of itself, its metadata node; names parts of other formats' ones."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from retraining.graphs.front_end import MAX_SIDE
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import GraphError, constant, nodes_by_name
from retraining.graphs.preprocessing import can_scale, per_channel

METADATA = "retraining/metadata"  # constant node: JSON that describes a retrained graph
SECOND_PREFIX = "second/"  # of the nodes of the second of two networks in an exported graph
# What an input of an exported model takes: preprocessed pixels, or one image of any size as it was
# decoded. The user chooses one of TAKES. A format that computes with integers alone takes raw
# pixels, uint8 and not normalised.
PIXELS, IMAGE = TAKES = ("pixels", "image")
RAW_PIXELS = "uint8 pixels"
OUTPUT = "probabilities"  # the name of an exported model's output
DESCRIPTION_FILE = "retraining.json"  # the description, in formats that hold files
ONNX_PROPERTY = "retraining"  # the description, in ONNX files
MOST = 1e300  # numbers beyond are damage; larger integers are no floats

Check: TypeAlias = Callable[[Any], bool]


class DescriptionError(GraphError):
    """A graph's description of itself is damaged."""


def read_metadata(graph_def: GraphDef) -> dict[str, Any] | None:
    """Returns the description in a retrained graph; None for other graphs.

    All that it holds of the entries in NETWORK and GRAPH has the types and the ranges that these
    say; `mean` and `std` are numbers or tuples of three. Entries that they do not name, of other
    versions, stay as they are.

    Raises:
        DescriptionError: the description is damaged.
    """
    value = constant(nodes_by_name(graph_def), METADATA)
    if value is None:
        return None
    try:
        stored = json.loads(value.item())
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DescriptionError(f"the graph's own description ({METADATA}) is damaged") from error
    labels = stored.get("labels") if isinstance(stored, dict) else None
    if not isinstance(labels, list) or not all(map(_is_text, labels)):
        raise DescriptionError(f"the graph's own description ({METADATA}) has no sound labels")
    described = _checked(stored, {**NETWORK, **GRAPH}, REQUIRED)
    if "results" in stored:
        _check("results", _are_results(stored["results"], len(labels)))
    if "second" in stored:
        second = stored["second"]
        _check("second", isinstance(second, dict))
        described["second"] = _checked(second, NETWORK, (*FED, "bottleneck"))
        _checked(stored, {}, ("bottleneck", "bottleneck_input"))
    return described


def _checked(
    stored: Mapping[str, Any], checks: Mapping[str, Check], required: tuple[str, ...]
) -> dict[str, Any]:
    """Returns a description whose entries pass their checks, with `mean` and `std` converted."""
    for name in required:
        _check(name, name in stored)
    for name, check in checks.items():
        _check(name, name not in stored or check(stored[name]))
    scale = {name: per_channel(stored[name]) for name in ("mean", "std") if name in stored}
    _check("mean and std", not scale or can_scale(scale["mean"], scale["std"]))
    return {**stored, **scale}


def _check(name: str, is_sound: bool) -> None:
    if not is_sound:
        raise DescriptionError(f"the graph's own description ({METADATA}) has no sound {name}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -MOST < value < MOST


def _is_scale(value: Any) -> bool:
    return _is_number(value) or (
        isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))
    )


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(side) is int and 0 < side <= MAX_SIDE for side in value)
    )


def _are_results(value: Any, classes: int) -> bool:
    """Returns whether this is what verify.describe_result writes, for so many classes."""
    if not isinstance(value, dict):
        return False
    rows, targets = value.get("held_out", []), value.get("held_out_targets")
    numbers = set(range(classes))
    return (
        all(type(value.get(name, 0)) is int for name in ("test_photos", "test_correct"))
        and isinstance(rows, list)
        and all(_is_answer(row, numbers) for row in rows)
        and (targets is None or (isinstance(targets, list) and len(targets) == len(rows)))
        and all(type(target) is int and target in numbers for target in targets or ())
    )


def _is_answer(row: Any, numbers: set[int]) -> bool:
    """Returns whether a row is [key of a photo, number of its likeliest label, probability]."""
    if not isinstance(row, list) or len(row) != 3:
        return False
    key, label, probability = row
    return _is_text(key) and type(label) is int and label in numbers and _is_number(probability)


# What a description tells of each network.
NETWORK: dict[str, Check] = {
    "input": _is_text,
    "bottleneck": _is_text,
    "size": _is_size,
    "mean": _is_scale,
    "std": _is_scale,
    "kernel": _is_text,
    "orientation": _is_text,
    "raw": _is_text,
}
# What it tells of the whole graph; `trust` is read in evaluation/trust.py.
GRAPH: dict[str, Check] = {
    "output": _is_text,
    "bottleneck_input": _is_text,
    "features": lambda value: value is None or _is_text(value),
    "logits": _is_text,
    "network": _is_text,
    "trust": lambda value: isinstance(value, dict),
    "trained_photos": lambda value: value is None or _is_text(value),
    "options": lambda value: isinstance(value, dict),
    "caveats": lambda value: isinstance(value, list) and all(map(_is_text, value)),
}
FED = ("input", "size", "mean", "std")
REQUIRED = ("output", *FED)
