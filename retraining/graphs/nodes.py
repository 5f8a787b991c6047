"""Reads and writes single nodes of a GraphDef."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.graphs.messages import TYPE_NAMES, TYPE_NUMBERS, GraphDef, NodeDef
from retraining.graphs.tensors import fill, to_array

IMAGE_BYTES = "DecodeJpeg/contents"
ANY_BATCH = "ExpandDims/any_batch"  # the node that hides that the batch size is 1
NOTES = "retraining/notes"  # constant node: JSON list of assumptions about a model


class GraphError(RetrainingError):
    """A file is not a frozen graph, or not the expected one. The text says what is wrong."""


def nodes_by_name(graph_def: GraphDef) -> dict[str, NodeDef]:
    """Returns {name: NodeDef}."""
    return {node.name: node for node in graph_def.node}


def node_name(reference: str) -> str:
    """Returns the node name in an input or tensor reference: `a` for `^a`, `a:0` and `a`."""
    return reference.lstrip("^").split(":")[0]


def users_of(graph_def: GraphDef) -> dict[str, list[NodeDef]]:
    """Returns {name of a node: the NodeDefs that read it, once for each of their inputs}."""
    users: dict[str, list[NodeDef]] = {}
    for node in graph_def.node:
        for reference in node.input:
            users.setdefault(node_name(reference), []).append(node)
    return users


def constant(nodes: Mapping[str, NodeDef], name: str) -> NDArray[Any] | None:
    """Returns the value of a Const node, looking through Identity nodes; None for other nodes.

    Raises:
        GraphError: the value is of a type that no classifier has.
    """
    node = _constant_node(nodes, name)
    if node is None:
        return None
    try:
        return to_array(node.attr["value"].tensor)
    except TypeError as error:
        raise GraphError(f"the node {node.name!r} has {error}") from error


def constant_shape(nodes: Mapping[str, NodeDef], name: str) -> tuple[int, ...] | None:
    """Returns the shape of `constant`'s result without copying the value; None for other nodes."""
    node = _constant_node(nodes, name)
    return None if node is None else shape_of(node)


def _constant_node(nodes: Mapping[str, NodeDef], name: str) -> NodeDef | None:
    """Returns the Const node of that name or behind its Identity nodes; None for other nodes."""
    node = nodes.get(node_name(name))
    while node is not None and node.op == "Identity":
        node = nodes.get(node_name(node.input[0]))
    return node if node is not None and node.op == "Const" else None


def shape_of(node: NodeDef) -> tuple[int, ...]:
    """Returns the shape of a Const node's value."""
    return tuple(dim.size for dim in node.attr["value"].tensor.tensor_shape.dim)


def attribute(node: NodeDef, key: str) -> Any:
    """Returns an attribute, an empty one if the node has none; reading it plainly would add it."""
    return (node if key in node.attr else type(node)()).attr[key]


def type_of(node: NodeDef, key: str = "dtype") -> str | None:
    """Returns the name of the type in an attribute, such as `uint8`; None if there is none.

    Raises:
        GraphError: TensorFlow knows no such type.
    """
    number = attribute(node, key).type
    if number and number not in TYPE_NAMES:
        raise GraphError(f"the node {node.name!r} has an unknown type {number}")
    return TYPE_NAMES.get(number)


KIND = {  # the attribute with the type of the first output
    **dict.fromkeys(("Placeholder", "PlaceholderV2", "PlaceholderWithDefault", "Const"), "dtype"),
    **dict.fromkeys(("Add", "AddV2", "Sub", "Mul", "Div", "RealDiv", "Neg", "Identity"), "T"),
    **dict.fromkeys(("Reshape", "ExpandDims", "StridedSlice", "Pack", "Squeeze", "ReverseV2"), "T"),
    "Cast": "DstT",
}


def kind_of(node: NodeDef) -> str | None:
    """Returns the name of the type of a node's first output; None for ops it does not know."""
    if node.op == "DecodeJpeg":
        return "uint8"
    return type_of(node, KIND[node.op]) if node.op in KIND else None


def sizes_of(node: NodeDef) -> list[int] | None:
    """Returns the shape that a Placeholder declares, -1 for unknown sizes; None if it has none.

    Old graphs write an unknown shape as an empty one.
    """
    return [dimension.size for dimension in attribute(node, "shape").shape.dim] or None


def set_constant(node: NodeDef, value: NDArray[Any] | np.generic) -> None:
    """Turns `node` into a Const with the value `value`.

    Raises:
        GraphError: `value` is of a type that no classifier has.
    """
    node.op = "Const"
    del node.input[:]
    node.attr.clear()
    tensor = node.attr["value"].tensor
    try:
        fill(tensor, value)
    except TypeError as error:
        raise GraphError(f"the node {node.name!r} would have {error}") from error
    node.attr["dtype"].type = tensor.dtype


def set_inputs(node: NodeDef, inputs: Iterable[str]) -> None:
    """Replaces the inputs of `node`."""
    del node.input[:]
    node.input.extend(inputs)


def add_constant(graph_def: GraphDef, name: str, value: NDArray[Any] | np.generic) -> str:
    """Appends a Const with the value `value`; returns its name."""
    set_constant(graph_def.node.add(name=name), value)
    return name


Attribute: TypeAlias = str | bytes | bool | float | list[int] | tuple[int, ...]  # see add_node


def add_node(
    graph_def: GraphDef, name: str, op: str, inputs: Sequence[str] = (), **attributes: Attribute
) -> str:
    """Appends a node; returns its name.

    In `attributes`, a str names a dtype, bytes are a string, a tuple is a shape (-1 for unknown
    sizes), a list holds ints; bools and numbers stand for themselves. Sets no other attributes:
    which ones TensorFlow would add by default differs between versions, and old releases refuse
    unknown attributes.
    """
    node = graph_def.node.add(name=name, op=op, input=inputs)
    for key, value in attributes.items():
        attribute = node.attr[key]
        if isinstance(value, str):
            attribute.type = TYPE_NUMBERS[value]
        elif isinstance(value, bytes):
            attribute.s = value
        elif isinstance(value, bool):
            attribute.b = value
        elif isinstance(value, float):
            attribute.f = value
        elif isinstance(value, int):
            attribute.i = value
        elif isinstance(value, list):
            attribute.list.i.extend(value)
        else:
            attribute.shape.SetInParent()
            for size in value:
                attribute.shape.dim.add(size=size)
    return name


def add_notes(graph_def: GraphDef, notes: Sequence[str]) -> None:
    """Stores lines of text in the graph, as a constant that no node reads."""
    if notes:
        set_constant(graph_def.node.add(name=NOTES), np.array(json.dumps(notes).encode(), object))


def read_notes(graph_def: GraphDef) -> list[str]:
    """Returns the lines that `add_notes` stored; an empty list for other graphs."""
    value = constant(nodes_by_name(graph_def), NOTES)
    try:
        return [str(note) for note in json.loads(value.item())] if value is not None else []
    except (ValueError, TypeError, AttributeError):
        return []
