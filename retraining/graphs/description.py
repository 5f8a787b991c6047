"""Reads a graph's description of itself: its metadata node, and its preprocessing nodes."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeGuard

from numpy.typing import NDArray

from retraining.graphs.nodes import GraphError, constant, node_name, nodes_by_name
from retraining.graphs.preprocessing import PartialPreprocessing, can_scale, per_channel
from retraining.graphs.tensorflow import GraphDef, NodeDef

METADATA = "retraining/metadata"  # constant node: JSON that describes a retrained graph
Kinds: TypeAlias = dict[str, Callable[[Any], Any]]  # converts each entry to its type
# How to feed a network.
FED: Kinds = {"input": str, "size": list, "mean": per_channel, "std": per_channel}
DESCRIBED: Kinds = {"labels": list, "output": str, **FED}
MAX_SIDE = 4096  # pixels; a larger input would take hundreds of megabytes per image


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


def read_preprocessing(graph_def: GraphDef, input_name: str) -> PartialPreprocessing:
    """Infers the preprocessing from the graph's nodes.

    It knows two forms: the 2015 front end (`ResizeBilinear`, `Sub` and `Mul` by constants before
    the input) and a Placeholder with a shape.

    Raises:
        GraphError: the inferred size is not that of an image.
    """
    nodes = nodes_by_name(graph_def)
    node = nodes.get(input_name)
    size = _own_size(node)
    fixed_size = size is not None
    mean = std = None
    while node is not None and node.op in (
        "Mul",
        "Sub",
        "ResizeBilinear",
        "PlaceholderWithDefault",
    ):
        value = constant(nodes, node.input[1]) if len(node.input) > 1 else None
        if node.op == "Mul" and _is_number(value) and value:
            std = float(1 / value)
        elif node.op == "Sub" and _is_number(value):
            mean = float(value)
        elif node.op == "ResizeBilinear" and value is not None:
            size = tuple(int(v) for v in value.ravel() if value.dtype.kind == "i")
        node = nodes.get(node_name(node.input[0]))
    return PartialPreprocessing(_checked_size(size), mean, std, fixed_size)


def _own_size(node: NodeDef | None) -> tuple[int, ...] | None:
    """Returns (height, width) from the shape [n, height, width, c] of an input; None if unknown."""
    if node is None or "shape" not in node.attr:
        return None
    dims = [d.size for d in node.attr["shape"].shape.dim]
    return tuple(dims[1:3]) if len(dims) == 4 and min(dims[1:3]) > 0 else None


def _checked_size(size: tuple[int, ...] | None) -> tuple[int, int] | None:
    """Returns the size unchanged. Raises GraphError if it is not that of an image."""
    if not size:
        return None
    if len(size) != 2 or not all(0 < side <= MAX_SIDE for side in size):
        raise GraphError(f"the graph takes images of {size} pixels, not (height, width)")
    height, width = size
    return height, width


def _is_number(value: NDArray[Any] | None) -> TypeGuard[NDArray[Any]]:
    """Returns whether a value is an array of one finite float."""
    return (
        value is not None and value.shape == () and value.dtype.kind == "f" and math.isfinite(value)
    )
