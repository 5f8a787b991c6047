"""Reads and writes single nodes of a GraphDef."""

import json

import numpy as np

from retraining.errors import RetrainingError
from retraining.graphs.tensorflow import import_tensorflow

IMAGE_BYTES = "DecodeJpeg/contents"
ANY_BATCH = "ExpandDims/any_batch"  # the node that hides that a decoded image is a batch of one
NOTES = "retraining/notes"  # a constant: JSON list of what had to be assumed of a frozen model


class GraphError(RetrainingError):
    """The file is not a frozen graph, or not the one that is needed; says what is wrong."""


def nodes_by_name(graph_def):
    """{name: NodeDef}."""
    return {node.name: node for node in graph_def.node}


def node_name(reference):
    """The node's name in an input or tensor reference: `^a`, `a:0` and `a` all give `a`."""
    return reference.lstrip("^").split(":")[0]


def users_of(graph_def):
    """{name of a node that others read: those NodeDefs, once for each input that it is}."""
    users = {}
    for node in graph_def.node:
        for reference in node.input:
            users.setdefault(node_name(reference), []).append(node)
    return users


def constant(nodes, name):
    """The value of a Const node, seen through Identity nodes, as an array; None if it is none."""
    node = _constant_node(nodes, name)
    return None if node is None else import_tensorflow().make_ndarray(node.attr["value"].tensor)


def constant_shape(nodes, name):
    """The shape (tuple) of what `constant` gives, without copying it; None if it is none."""
    node = _constant_node(nodes, name)
    return None if node is None else shape_of(node)


def _constant_node(nodes, name):
    """The Const node behind a name, past Identity nodes; None if there is none."""
    node = nodes.get(node_name(name))
    while node is not None and node.op == "Identity":
        node = nodes.get(node_name(node.input[0]))
    return node if node is not None and node.op == "Const" else None


def shape_of(node):
    """The shape (tuple) of a Const node's value."""
    return tuple(dim.size for dim in node.attr["value"].tensor.tensor_shape.dim)


def dtype_of(node):
    """The tf.DType of a Const node's value."""
    return import_tensorflow().dtypes.as_dtype(node.attr["dtype"].type)


def set_constant(node, value):
    """Makes `node` (NodeDef) a Const of the array `value`."""
    tensor = import_tensorflow().make_tensor_proto(value)
    node.op = "Const"
    del node.input[:]
    node.attr.clear()
    node.attr["dtype"].type = tensor.dtype
    node.attr["value"].tensor.CopyFrom(tensor)


def set_inputs(node, inputs):
    """Replaces the inputs of `node`."""
    del node.input[:]
    node.input.extend(inputs)


def add_constant(graph_def, name, value):
    """Appends a Const of the array `value`; returns its name."""
    set_constant(graph_def.node.add(name=name), value)
    return name


def add_node(graph_def, name, op, inputs=(), **attributes):
    """Appends a node; returns its name.

    Attributes: a string names a dtype, bytes are a string, numbers are themselves, a tuple is a
    shape (-1 is unknown), a list holds ints. Only those given are set: which ones TensorFlow would
    add, with their defaults, differs from version to version, and old releases refuse those they
    don't know.
    """
    node = graph_def.node.add(name=name, op=op, input=inputs)
    for key, value in attributes.items():
        attribute = node.attr[key]
        if isinstance(value, str):
            attribute.type = import_tensorflow().dtypes.as_dtype(value).as_datatype_enum
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


def add_front_end(graph_def, size, mean, std):
    """Appends the 2015 graph's way from an image's bytes to the network; returns `Mul`.

    `DecodeJpeg/contents:0` takes the bytes of one image, `DecodeJpeg:0` its pixels, uint8
    [height, width, 3]; `Mul:0` is float32 [1, *size, 3], `(pixel - mean) / std`. The resize kernel
    is the legacy one, as its two options are not set. Both halves of the arithmetic are float32
    and the division is a product with the reciprocal, as in the 2015 graph, so that bits agree.
    """
    content = add_node(graph_def, IMAGE_BYTES, "Placeholder", dtype="string", shape=())
    add_node(graph_def, "DecodeJpeg", "DecodeJpeg", [content], channels=3)
    add_node(graph_def, "Cast", "Cast", ["DecodeJpeg"], SrcT="uint8", DstT="float32")
    axis = add_constant(graph_def, "ExpandDims/dim", np.int32(0))
    add_node(graph_def, "ExpandDims", "ExpandDims", ["Cast", axis], T="float32")
    add_any_batch(graph_def, "ExpandDims")
    pixels = add_constant(graph_def, "ResizeBilinear/size", np.array(size, np.int32))
    add_node(graph_def, "ResizeBilinear", "ResizeBilinear", [ANY_BATCH, pixels], T="float32")
    offset = add_constant(graph_def, "Sub/y", np.float32(mean))
    add_node(graph_def, "Sub", "Sub", ["ResizeBilinear", offset], T="float32")
    scale = add_constant(graph_def, "Mul/y", np.float32(1 / std))
    return add_node(graph_def, "Mul", "Mul", ["Sub", scale], T="float32")


def add_any_batch(graph_def, source):
    """Appends a node that passes `source` on as a batch of unknown size.

    `ExpandDims` makes the batch size of everything up to `Mul:0` a known 1, and TensorFlow's
    Python refuses to feed `Mul:0` with another.
    """
    shape = (-1, -1, -1, 3)
    op = "PlaceholderWithDefault"
    return add_node(graph_def, ANY_BATCH, op, [source], dtype="float32", shape=shape)


def add_notes(graph_def, notes):
    """Keeps lines of text in the graph, as a constant on which nothing depends."""
    if notes:
        set_constant(graph_def.node.add(name=NOTES), np.array(json.dumps(notes).encode(), object))


def read_notes(graph_def):
    """The lines that `add_notes` kept; none for any other graph."""
    value = constant(nodes_by_name(graph_def), NOTES)
    try:
        return [str(note) for note in json.loads(value.item())] if value is not None else []
    except (ValueError, TypeError, AttributeError):
        return []
