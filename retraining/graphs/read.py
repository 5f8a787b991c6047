"""Reads frozen GraphDefs and imports them into TensorFlow."""

import math

from retraining.graphs.nodes import GraphError
from retraining.graphs.safety import MAX_ELEMENTS, load_graph
from retraining.graphs.surgery import outline
from retraining.graphs.tensorflow import import_tensorflow
from retraining.system.text import one_line

# -- reading ---------------------------------------------------------------------------------


def read_graph(path, allow_unsafe_ops=False):
    """The frozen GraphDef in the file, checked; see `graph_check.load_graph`.

    Raises:
        GraphError: the file is missing, no GraphDef, damaged, or not known to be harmless.
    """
    return load_graph(path, allow_unsafe_ops)[0]


def import_graph(graph_def):
    """A tf.Graph of the GraphDef, which TensorFlow gives attributes of today's ops on the way.

    Raises:
        GraphError: TensorFlow does not accept it.
    """
    tf = import_tensorflow()
    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.import_graph_def(graph_def, name="")
    except (ValueError, tf.errors.OpError) as error:
        raise GraphError(f"TensorFlow cannot load this graph: {one_line(error)}") from error
    _check_shapes(graph)
    return graph


def import_shapes(graph_def, output_name=None):
    """A tf.Graph of what an output needs, or of all, that tells shapes but holds no weights.

    Raises:
        GraphError: TensorFlow does not accept it, or a node is missing.
    """
    return import_graph(outline(graph_def, output_name))


def _check_shapes(graph):
    """Refuses a tensor that would be huge by what TensorFlow infers, for one image."""
    for operation in graph.get_operations():
        for tensor in operation.outputs:
            sizes = tensor.shape.as_list() if tensor.shape.rank is not None else ()
            if math.prod(size for size in sizes if size is not None) > MAX_ELEMENTS:
                raise GraphError(f"the graph would make a tensor {tensor.name!r} of shape {sizes}")


def output_tensor(graph, name):
    """The first output, floating point, of a node of a tf.Graph.

    Raises:
        GraphError: it has none.
    """
    outputs = graph.get_operation_by_name(name).outputs
    if not outputs or not outputs[0].dtype.is_floating:
        kind = outputs[0].dtype.name if outputs else "nothing"
        raise GraphError(f"the node {name!r} gives {kind}, not numbers; name another one")
    return outputs[0]


def ends(graph, input_name, output_name):
    """The tensors of a graph that is cut down to what its output needs."""
    output = output_tensor(graph, output_name)
    try:
        return graph.get_tensor_by_name(f"{input_name}:0"), output
    except KeyError as error:
        raise GraphError(f"{output_name!r} does not depend on {input_name!r}") from error


def width_of(tensor):
    """Values per image that a tensor [n, ...] holds; None if its shape does not tell."""
    sizes = tensor.shape.as_list()[1:] if tensor.shape.rank is not None else [None]
    return math.prod(sizes) if sizes and None not in sizes else None
