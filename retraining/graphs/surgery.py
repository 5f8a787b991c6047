"""Cuts parts out of GraphDefs, and makes them accept any number of images."""

import itertools
from collections.abc import Mapping

import numpy as np

from retraining.graphs.messages import TYPE_NUMBERS, GraphDef, NodeDef
from retraining.graphs.nodes import (
    GraphError,
    constant,
    kind_of,
    node_name,
    nodes_by_name,
    set_constant,
    shape_of,
    type_of,
)


def outline(graph_def: GraphDef, output_name: str | None = None) -> GraphDef:
    """Copies the nodes that an output needs, or all nodes, with Placeholders for weights.

    Raises:
        GraphError: a node is missing.
    """
    nodes = nodes_by_name(graph_def)
    wanted = ancestors(nodes, output_name) if output_name else nodes.keys()
    copy = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
    for node in graph_def.node:
        if node.name in wanted and is_weights(node):
            placeholder = copy.node.add(name=node.name, op="Placeholder")
            placeholder.attr["dtype"].CopyFrom(node.attr["dtype"])
            placeholder.attr["shape"].shape.CopyFrom(node.attr["value"].tensor.tensor_shape)
        elif node.name in wanted:
            copy.node.append(node)
    return copy


def is_weights(node: NodeDef) -> bool:
    """Returns whether a node is a constant array of floats, whose values determine no shape."""
    is_floats = node.op == "Const" and type_of(node) in ("float32", "bfloat16")
    return is_floats and len(shape_of(node)) > 0


def ancestors(nodes: Mapping[str, NodeDef], output_name: str, stop: str | None = None) -> set[str]:
    """Returns the names of `output_name` and of all nodes it depends on, but none beyond `stop`.

    Raises:
        GraphError: one of them is not in the graph.
    """
    reached: set[str] = set()
    queue = [output_name]
    while queue:
        name = queue.pop()
        if name not in nodes:
            raise GraphError(f"the graph has no node {name!r}")
        if name not in reached:
            reached.add(name)
            queue.extend(map(node_name, nodes[name].input if name != stop else ()))
    return reached


def in_order(
    nodes: Mapping[str, NodeDef], output_name: str, stop: str | None = None
) -> list[NodeDef]:
    """Returns the nodes that an output needs, each after its inputs, but none beyond `stop`.

    The graph must have no loops, as one that `safety.check` has seen.

    Raises:
        GraphError: a node is missing.
    """
    order: dict[str, NodeDef] = {}
    stack = [output_name]
    while stack:
        if stack[-1] not in nodes:
            raise GraphError(f"the graph has no node {stack[-1]!r}")
        node = nodes[stack[-1]]
        inputs = () if node.name == stop else map(node_name, node.input)
        waiting = [name for name in inputs if name not in order]
        if waiting:
            stack += waiting
        else:
            order.setdefault(stack.pop(), node)
    return list(order.values())


def keep_ancestors(graph_def: GraphDef, output_name: str, stop: str | None = None) -> GraphDef:
    """Returns a copy with only the `ancestors` of `output_name`, in the same order.

    Raises:
        GraphError: one of them is not in the graph.
    """
    wanted = ancestors(nodes_by_name(graph_def), output_name, stop)
    kept = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
    kept.node.extend(node for node in graph_def.node if node.name in wanted)
    return kept


def drop_others(graph_def: GraphDef, output_name: str) -> None:
    """Removes, in place, all nodes that `output_name` does not depend on.

    Raises:
        GraphError: one of them is not in the graph.
    """
    wanted = ancestors(nodes_by_name(graph_def), output_name)
    for number in reversed(range(len(graph_def.node))):
        if graph_def.node[number].name not in wanted:
            del graph_def.node[number]


def cut(graph_def: GraphDef, input_name: str, output_name: str) -> GraphDef:
    """Copies the part between an input, which becomes a Placeholder, and an output.

    A node keeps its type where it tells it (see `kind_of`). Any other becomes one of float32.

    Raises:
        GraphError: one of the two is not in the graph, or they are not connected.
    """
    part = keep_ancestors(graph_def, output_name, stop=input_name)
    if input_name not in nodes_by_name(graph_def):
        raise GraphError(f"the graph has no node {input_name!r}")
    if input_name not in nodes_by_name(part):
        raise GraphError(f"{output_name!r} does not depend on {input_name!r}")
    node = nodes_by_name(part)[input_name]
    shape = node.attr["shape"].shape if "shape" in node.attr else None
    sizes = [d.size for d in shape.dim] if shape and not shape.unknown_rank else None
    kind = TYPE_NUMBERS[kind_of(node) or "float32"]
    del node.input[:]
    node.op = "Placeholder"
    node.attr.clear()
    node.attr["dtype"].type = kind
    for size in sizes or [-1, -1, -1, 3]:
        node.attr["shape"].shape.dim.add(size=size)
    return part


def widen_batch(graph_def: GraphDef) -> None:
    """Makes a graph for one image accept any number, in place.

    Placeholders of shape [1, ...] become [-1, ...]. Constants [1, n] that are the target shape of
    a Reshape become [-1, n].
    """
    nodes = nodes_by_name(graph_def)
    for node in graph_def.node:
        if node.op.startswith("Placeholder") and "shape" in node.attr:
            for first in node.attr["shape"].shape.dim[:1]:
                first.size = -1 if first.size == 1 else first.size
        elif node.op == "Reshape":
            shape = constant(nodes, node.input[1])
            if shape is None or shape.ndim != 1 or len(shape) < 2:
                continue
            if shape[0] == 1 and -1 not in shape:
                shape = np.concatenate([[-1], shape[1:]]).astype(shape.dtype)
                set_constant(nodes[node_name(node.input[1])], shape)


def batched_part(graph_def: GraphDef, input_name: str, output_name: str) -> GraphDef:
    """Copies the part between an input and an output, for any number of images.

    Raises:
        GraphError: see `cut`.
    """
    part = cut(graph_def, input_name, output_name)
    widen_batch(part)
    return part


def same_part(one: GraphDef, other: GraphDef, input_name: str, output_name: str) -> bool:
    """Returns whether two graphs have the same nodes and weights between an input and an output."""
    outlines = (outline(each, output_name) for each in (one, other))
    parts = [batched_part(each, input_name, output_name).node for each in outlines]
    if not all(a == b for a, b in itertools.zip_longest(*parts)):
        return False
    ones, others = nodes_by_name(one), nodes_by_name(other)
    pairs = [(ones[node.name], others[node.name]) for node in parts[0]]
    return all(a == b for a, b in pairs if is_weights(a) or is_weights(b))
