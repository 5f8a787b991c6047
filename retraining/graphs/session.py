"""Opens TensorFlow sessions that hold a large network's weights only once."""

import contextlib
import ctypes
import math
from collections.abc import Collection, Mapping
from typing import Any

from numpy.typing import NDArray

from retraining.graphs.messages import GraphDef, NodeDef
from retraining.graphs.nodes import Attribute, add_node, nodes_by_name, shape_of, type_of
from retraining.graphs.read import import_graph
from retraining.graphs.surgery import ancestors, is_weights
from retraining.graphs.tensorflow import Session, import_tensorflow
from retraining.graphs.tensors import array_type, to_array

MOST_CONSTANT = 1 << 27  # bytes of weights up to which they stay constants
AT_ONCE = 1 << 26  # bytes of weights that are assigned in one call, unless one array is larger


def open_session(
    graph_def: GraphDef, output_name: str, config: Any = None, few: bool = False
) -> Session:
    """Returns a tf.Session for the part of a graph that an output needs.

    TensorFlow copies a constant about eight times while it prepares a graph, and keeps six copies.
    So a large network's weights become variables, which it holds once. Small networks keep
    constants, with which each convolution takes less time, unless they are to run on `few` images.

    Raises:
        GraphError: TensorFlow does not accept the graph, or a node is missing.
    """
    tf = import_tensorflow()
    wanted = ancestors(nodes_by_name(graph_def), output_name)
    kernels = [n for n in graph_def.node if n.name in wanted and is_kernel(n)]
    if not few and sum(map(_bytes_of, kernels)) <= MOST_CONSTANT:
        return tf.Session(graph=import_graph(graph_def, wanted), config=config)
    session = tf.Session(graph=import_graph(_with_variables(graph_def, wanted)), config=config)
    values: dict[str, NDArray[Any]] = {}
    size = 0
    for node in kernels:
        values[node.name] = to_array(node.attr["value"].tensor)
        size += values[node.name].nbytes
        if size >= AT_ONCE:
            _assign(session, values)
            values, size = {}, 0
    _assign(session, values)
    return session


def return_free_memory() -> None:
    """Returns freed memory to the system, where the C library keeps it for the thread."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def is_kernel(node: NodeDef) -> bool:
    return is_weights(node) and len(shape_of(node)) > 1


def _bytes_of(node: NodeDef) -> int:
    """Returns the size in memory of a Const of floats, in bytes."""
    return math.prod(shape_of(node)) * array_type(str(type_of(node))).itemsize


HANDLE, ASSIGN, VALUE = "variable", "assign", "value"  # suffixes to the name of a kernel


def _with_variables(graph_def: GraphDef, wanted: Collection[str]) -> GraphDef:
    """Copies the `wanted` nodes, with kernels as variables that `_assign` can set."""
    copy = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
    for node in graph_def.node:
        if node.name not in wanted:
            continue
        if not is_kernel(node):
            copy.node.append(node)
            continue
        name, dtype, shape = node.name, str(type_of(node)), shape_of(node)
        attributes: dict[str, Attribute] = {"dtype": dtype, "shape": shape}
        handle = add_node(
            copy, f"{name}/{HANDLE}", "VarHandleOp", (), shared_name=name.encode(), **attributes
        )
        add_node(copy, name, "ReadVariableOp", [handle], dtype=dtype)
        value = add_node(copy, f"{name}/{VALUE}", "Placeholder", (), **attributes)
        add_node(copy, f"{name}/{ASSIGN}", "AssignVariableOp", [handle, value], dtype=dtype)
    return copy


def _assign(session: Session, values: Mapping[str, NDArray[Any]]) -> None:
    """Assigns values to variables, {name: array}."""
    if values:
        feed = {f"{name}/{VALUE}:0": value for name, value in values.items()}
        session.run([f"{name}/{ASSIGN}" for name in values], feed)
