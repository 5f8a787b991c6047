"""Opens TensorFlow sessions that hold a large network's weights once."""

import contextlib
import ctypes
import math

from retraining.graphs.nodes import add_node, dtype_of, nodes_by_name, shape_of
from retraining.graphs.read import import_graph
from retraining.graphs.surgery import ancestors, is_weights, keep_ancestors
from retraining.graphs.tensorflow import import_tensorflow

# -- running ---------------------------------------------------------------------------------

MOST_CONSTANT = 1 << 27  # bytes of weights that a session is given as constants
AT_ONCE = 1 << 26  # bytes of weights, or one array, that are assigned together


def open_session(graph_def, output_name, config=None):
    """A tf.Session that runs what an output of a graph needs; its `graph` is a tf.Graph.

    TensorFlow copies a constant some eight times while it prepares a graph, and holds six in the
    end. A large network's weights are therefore variables, which it holds once. Small networks keep
    constants, whose convolutions start sooner.

    Raises:
        GraphError: TensorFlow does not accept it, or a node is missing.
    """
    tf = import_tensorflow()
    wanted = ancestors(nodes_by_name(graph_def), output_name)
    kernels = [n for n in graph_def.node if n.name in wanted and _is_kernel(n)]
    if sum(map(_bytes_of, kernels)) <= MOST_CONSTANT:
        return tf.Session(graph=import_graph(keep_ancestors(graph_def, output_name)), config=config)
    session = tf.Session(graph=import_graph(_with_variables(graph_def, wanted)), config=config)
    values, size = {}, 0
    for node in kernels:
        values[node.name] = tf.make_ndarray(node.attr["value"].tensor)
        size += values[node.name].nbytes
        if size >= AT_ONCE:
            _assign(session, values)
            values, size = {}, 0
    _assign(session, values)
    return session


def return_free_memory():
    """Gives the system what is free, where the C library keeps it for the thread that freed it."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _is_kernel(node):
    return is_weights(node) and len(shape_of(node)) > 1


def _bytes_of(node):
    """The size of a Const of floats in memory."""
    return math.prod(shape_of(node)) * dtype_of(node).size


HANDLE, ASSIGN, VALUE = "variable", "assign", "value"  # behind the name of a kernel


def _with_variables(graph_def, wanted):
    """A copy of the `wanted` nodes in which kernels are variables, each to be assigned."""
    copy = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
    for node in graph_def.node:
        if node.name not in wanted:
            continue
        if not _is_kernel(node):
            copy.node.append(node)
            continue
        name, dtype, shape = node.name, dtype_of(node).name, shape_of(node)
        about = {"dtype": dtype, "shape": shape}
        handle = add_node(
            copy, f"{name}/{HANDLE}", "VarHandleOp", shared_name=name.encode(), **about
        )
        add_node(copy, name, "ReadVariableOp", [handle], dtype=dtype)
        value = add_node(copy, f"{name}/{VALUE}", "Placeholder", **about)
        add_node(copy, f"{name}/{ASSIGN}", "AssignVariableOp", [handle, value], dtype=dtype)
    return copy


def _assign(session, values):
    """Gives variables their values, {name: array}."""
    if values:
        feed = {f"{name}/{VALUE}:0": value for name, value in values.items()}
        session.run([f"{name}/{ASSIGN}" for name in values], feed)
