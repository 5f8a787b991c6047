"""Reads a graph's description of itself, its metadata node."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from retraining.graphs.front_end import MAX_SIDE
from retraining.graphs.nodes import GraphError, constant, nodes_by_name
from retraining.graphs.preprocessing import can_scale, per_channel
from retraining.graphs.tensorflow import GraphDef

METADATA = "retraining/metadata"  # constant node: JSON that describes a retrained graph
Kinds: TypeAlias = dict[str, Callable[[Any], Any]]  # converts each entry to its type
# How to feed a network.
FED: Kinds = {"input": str, "size": list, "mean": per_channel, "std": per_channel}
DESCRIBED: Kinds = {"labels": list, "output": str, **FED}


def read_metadata(graph_def: GraphDef) -> dict[str, Any] | None:
    """Returns the description in a retrained graph; None for other graphs.

    Raises:
        GraphError: the description is damaged.
    """
    value = constant(nodes_by_name(graph_def), METADATA)
    if value is None:
        return None
    try:
        stored: dict[str, Any] = json.loads(value.item())
        described = {name: kind(stored[name]) for name, kind in DESCRIBED.items()}
        if stored.get("second"):
            described["second"] = {**stored["second"], **_described_second(stored)}
            described |= {name: str(stored[name]) for name in ("bottleneck", "bottleneck_input")}
        sane = all(map(_is_sane, (described, described.get("second", described))))
        sane &= all(isinstance(label, str) for label in described["labels"])
    except DAMAGED as error:
        raise GraphError(f"the graph's own description ({METADATA}) is damaged") from error
    if not sane:
        raise GraphError(f"the graph's own description ({METADATA}) makes no sense")
    return {**stored, **described}


DAMAGED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def _described_second(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the description of the second network in a graph of two."""
    kinds: Kinds = {**FED, "bottleneck": str}
    return {name: kind(stored["second"][name]) for name, kind in kinds.items()}


def _is_sane(described: Mapping[str, Any]) -> bool:
    return (
        len(described["size"]) == 2
        and all(type(side) is int and 0 < side <= MAX_SIDE for side in described["size"])
        and can_scale(described["mean"], described["std"])
    )
