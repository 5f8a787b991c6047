"""Reads what a graph says of itself: its metadata node, and the preprocessing in its nodes."""

import json
import math
from dataclasses import dataclass, field

from retraining.graphs.nodes import GraphError, constant, node_name, nodes_by_name

METADATA = "retraining/metadata"  # constant node that describes a retrained graph, as JSON
FED = {"input": str, "size": list, "mean": float, "std": float}  # how a network takes images
DESCRIBED = {"labels": list, "output": str, **FED}
MAX_SIDE = 4096  # pixels of a network's input; beyond, one image would take hundreds of megabytes


def read_metadata(graph_def):
    """What a retrained graph says of itself (dict), or None.

    Raises:
        GraphError: it has such a node, but it cannot be read.
    """
    value = constant(nodes_by_name(graph_def), METADATA)
    if value is None:
        return None
    try:
        found = json.loads(value.item())
        about = {name: kind(found[name]) for name, kind in DESCRIBED.items()}
        if found.get("second"):
            about["second"] = {**found["second"], **_described_second(found)}
            about |= {name: str(found[name]) for name in ("bottleneck", "bottleneck_input")}
        sane = all(map(_is_sane, (about, about.get("second", about))))
        sane &= all(isinstance(label, str) for label in about["labels"])
    except DAMAGED as error:
        raise GraphError(f"the graph's own description ({METADATA}) is damaged") from error
    if not sane:
        raise GraphError(f"the graph's own description ({METADATA}) makes no sense")
    return {**found, **about}


DAMAGED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def _described_second(found):
    """What a graph of two networks says of the second one."""
    kinds = {**FED, "bottleneck": str}
    return {name: kind(found["second"][name]) for name, kind in kinds.items()}


def _is_sane(about):
    return (
        len(about["size"]) == 2
        and all(type(side) is int and 0 < side <= MAX_SIDE for side in about["size"])
        and math.isfinite(about["mean"])
        and math.isfinite(about["std"])
        and about["std"] != 0
    )


@dataclass(frozen=True)
class Preprocessing:
    """What is fed: float32 [n, *size, 3] of `(pixel - mean) / std`; `size` = (height, width)."""

    size: tuple[int, int]
    mean: float
    std: float
    fixed_size: bool = field(default=False, compare=False)  # the input's own shape says so


def read_preprocessing(graph_def, input_name):
    """The preprocessing that the graph's own nodes tell, with None where they are silent.

    Two forms are known: the 2015 front end (`ResizeBilinear`, `Sub` and `Mul` by constants before
    the input) and a Placeholder with a shape.

    Raises:
        GraphError: the size they tell is not that of an image.
    """
    nodes = nodes_by_name(graph_def)
    node, mean, std, size = nodes.get(input_name), None, None, None
    fixed_size = False
    if node is not None and "shape" in node.attr:
        dims = [d.size for d in node.attr["shape"].shape.dim]
        if len(dims) == 4 and min(dims[1:3]) > 0:
            size, fixed_size = tuple(dims[1:3]), True
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
    if size and not (len(size) == 2 and all(0 < side <= MAX_SIDE for side in size)):
        raise GraphError(f"the graph takes images of {size} pixels, not (height, width)")
    return Preprocessing(size, mean, std, fixed_size)


def _is_number(value):
    """Whether an array, or None, is one finite float."""
    return (
        value is not None and value.shape == () and value.dtype.kind == "f" and math.isfinite(value)
    )
