"""Reads frozen GraphDefs and imports them into TensorFlow."""

import math
from collections.abc import Container
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import GraphError, nodes_by_name
from retraining.graphs.safety import MAX_ELEMENTS, load_graph
from retraining.graphs.surgery import cut, outline
from retraining.graphs.tensorflow import Tensor, import_tensorflow
from retraining.system.text import one_line


def read_graph(path: str | Path, allow_unsafe_ops: bool = False) -> GraphDef:
    """Reads and checks a frozen GraphDef; see `safety.load_graph`.

    Raises:
        GraphError: the file is missing, damaged, no GraphDef, or not known to be harmless.
    """
    return load_graph(path, allow_unsafe_ops)[0]


def to_tensorflow(graph_def: GraphDef, wanted: Container[str] | None = None) -> Any:
    """Returns the nodes of a GraphDef, or those whose names are `wanted`, as TensorFlow's GraphDef.

    Converts them one by one, so that no third copy of the weights is needed.

    Raises:
        GraphError: a field that is not read here is damaged.
    """
    around = GraphDef(versions=graph_def.versions, library=graph_def.library)
    try:
        converted = import_tensorflow().GraphDef.FromString(around.SerializeToString())
        for node in graph_def.node:
            if wanted is None or node.name in wanted:
                converted.node.add().MergeFromString(node.SerializeToString())
    except DecodeError as error:
        raise GraphError(f"TensorFlow cannot load this graph: {one_line(error)}") from error
    return converted


def import_graph(graph_def: GraphDef, wanted: Container[str] | None = None) -> Any:
    """Imports a GraphDef, or the nodes whose names are `wanted`, into a new tf.Graph.

    TensorFlow adds attributes that newer ops have.

    Raises:
        GraphError: TensorFlow does not accept the graph.
    """
    tf = import_tensorflow()
    graph = tf.Graph()
    converted = to_tensorflow(graph_def, wanted)
    try:
        with graph.as_default():
            tf.import_graph_def(converted, name="")
    except (ValueError, tf.errors.OpError) as error:
        raise GraphError(f"TensorFlow cannot load this graph: {one_line(error)}") from error
    _check_shapes(graph)
    return graph


def import_shapes(graph_def: GraphDef, output_name: str | None = None) -> Any:
    """Imports what an output needs, or all, into a tf.Graph that has shapes but no weights.

    Raises:
        GraphError: TensorFlow does not accept the graph, or a node is missing.
    """
    return import_graph(outline(graph_def, output_name))


def accepts_images(
    graph_def: GraphDef, input_name: str, output_name: str, size: tuple[int, int]
) -> bool:
    """Returns whether an output has one row for an image of (height, width), by its shapes."""
    part = cut(outline(graph_def, output_name), input_name, output_name)
    shape = nodes_by_name(part)[input_name].attr["shape"].shape
    del shape.dim[:]
    for side in (1, *size, 3):
        shape.dim.add(size=side)
    for node in part.node:
        if node.op == "PlaceholderWithDefault":  # which would hide the shape of its default
            node.op = "EnsureShape"
            node.attr["T"].type = node.attr.pop("dtype").type
    try:
        sizes = output_tensor(import_graph(part), output_name).shape
    except GraphError:
        return False
    return sizes.rank is None or (sizes.rank > 0 and sizes[0] in (1, None))


def _check_shapes(graph: Any) -> None:
    """Raises GraphError if TensorFlow infers that a tensor would be huge for one image."""
    for operation in graph.get_operations():
        for tensor in operation.outputs:
            sizes = tensor.shape.as_list() if tensor.shape.rank is not None else ()
            if math.prod(size for size in sizes if size is not None) > MAX_ELEMENTS:
                raise GraphError(f"the graph would make a tensor {tensor.name!r} of shape {sizes}")


def output_tensor(graph: Any, name: str) -> Tensor:
    """Returns the first output of a node in a tf.Graph, which must be floating point.

    Raises:
        GraphError: the node has no such output.
    """
    outputs = graph.get_operation_by_name(name).outputs
    if not outputs or not outputs[0].dtype.is_floating:
        kind = outputs[0].dtype.name if outputs else "nothing"
        raise GraphError(f"the node {name!r} gives {kind}, not numbers; name another one")
    return outputs[0]


def ends(graph: Any, input_name: str, output_name: str) -> tuple[Tensor, Tensor]:
    """Returns the input and output tensors of a tf.Graph that holds only what its output needs.

    Raises:
        GraphError: the output is not floating point, or does not depend on the input.
    """
    output = output_tensor(graph, output_name)
    try:
        return graph.get_tensor_by_name(f"{input_name}:0"), output
    except KeyError as error:
        raise GraphError(f"{output_name!r} does not depend on {input_name!r}") from error


def width_of(tensor: Tensor) -> int | None:
    """Returns the number of values per image in a tensor [n, ...]; None if its shape is unknown."""
    sizes = tensor.shape.as_list()[1:] if tensor.shape.rank is not None else [None]
    return math.prod(sizes) if sizes and None not in sizes else None
