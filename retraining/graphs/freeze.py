"""Freezes a TensorFlow function of images into a GraphDef that `network.load_network` can read.

Freezing needs all of TensorFlow, not only its graph mode, so it takes seconds to import. The
resulting graph has a node `input` (float32 [n, height, width, 3], by default pixels 0..255) and an
output of a given name. It has no functions and no variables, and its constants have the plain form
that `fold` knows.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.graphs.messages import GraphDef, NodeDef
from retraining.graphs.nodes import (
    add_constant,
    add_node,
    constant,
    constant_shape,
    node_name,
    nodes_by_name,
    set_constant,
    set_inputs,
    users_of,
)
from retraining.graphs.read import import_shapes
from retraining.graphs.scaling import INPUT, sort_nodes
from retraining.graphs.surgery import drop_others
from retraining.graphs.tensorflow import Tensor, import_whole_tensorflow, muted_stderr
from retraining.system.text import one_line


class FreezeError(RetrainingError):
    """A model cannot be read or frozen. The text says why in one line."""


def freeze(
    function: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    output: str,
    batch: int | None = None,
    dtype: str = "float32",
) -> GraphDef:
    """Freezes `function`, which maps images [batch, *size, 3] of `dtype` to [batch, width].

    Args:
        size: (height, width) in pixels.
        output: the name for the node with the vectors.
        dtype: the type of the function's images; the graph's own input is always float32.

    Raises:
        FreezeError: TensorFlow cannot trace it.
    """
    tf = import_whole_tensorflow()
    spec = tf.TensorSpec([batch, *size, 3], tf.float32, name=INPUT)
    try:
        with muted_stderr():
            traced = tf.function(
                lambda images: function(tf.cast(images, dtype)), input_signature=[spec]
            ).get_concrete_function()
            frozen, variables = _outlined(traced)
    except Exception as error:  # a model's own code can raise anything
        raise FreezeError(f"TensorFlow cannot freeze it: {one_line(error)}") from error
    result = node_name(frozen.outputs[0].name)
    shape = traced.outputs[0].shape
    if shape.rank not in (2, None):  # loading the graph checks ranks that are unknown here
        raise FreezeError(f"it gives {shape}, not one vector per image")
    content = _inlined(frozen.graph.as_graph_def(), result).SerializeToString()
    graph_def = GraphDef.FromString(content)
    del content  # as large as the model, if its weights are constants
    for node in graph_def.node:
        if node.name in variables:
            set_constant(node, variables[node.name].numpy())
    return _simplified(graph_def, result, output)


def _outlined(traced: Any) -> tuple[Any, dict[str, Any]]:
    """Returns a function with constants for variables, and {name of such a constant: its variable}.

    Each constant has its variable's type and shape but holds a single number, which stands for all
    by the definition of TensorProto. `freeze` fills in the weights at the end, because TensorFlow
    copies a graph several times on the way.
    """
    from tensorflow.python.framework import convert_to_constants

    variables: dict[str, Any] = {}

    # TensorFlow has no types, so mypy knows nothing of the base class.
    class Outline(convert_to_constants._FunctionConverterDataInEager):  # type: ignore[misc]
        def _eval(self, tensor: Tensor) -> NDArray[Any]:
            value = super()._eval(tensor)
            return np.zeros((), value.dtype) if hasattr(tensor, "handle") else value

    outline = Outline(traced, lower_control_flow=True, aggressive_inlining=True)
    graph_def, indices = convert_to_constants._replace_variables_by_constants(outline)
    handles = {variable.handle.ref(): variable for variable in traced.graph.variables}
    for handle, placeholder in traced.graph.captures:
        if handle.ref() in handles:
            variables[placeholder.op.name] = handles[handle.ref()]
    for node in graph_def.node:
        if node.name in variables:
            shape = variables[node.name].shape.as_proto()
            node.attr["value"].tensor.tensor_shape.CopyFrom(shape)
    return convert_to_constants._construct_concrete_function(traced, graph_def, indices), variables


def _inlined(graph_def: Any, output: str) -> Any:
    """Inlines functions that TensorFlow compiles separately, such as grouped convolutions.

    Takes and returns a GraphDef of TensorFlow's own class.
    """
    if not graph_def.library.function:
        return graph_def
    tf = import_whole_tensorflow()
    from tensorflow.python.grappler import tf_optimizer

    for holder in (*graph_def.library.function, *graph_def.node):
        for mark in ("_XlaMustCompile", "_noinline"):
            if mark in holder.attr:
                del holder.attr[mark]
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        meta = tf.compat.v1.train.export_meta_graph(graph_def=graph_def, graph=graph)
    meta.collection_def["train_op"].node_list.value.extend([f"{INPUT}:0", f"{output}:0"])
    config = tf.compat.v1.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    rewrites.min_graph_nodes = -1  # also for small graphs
    rewrites.optimizers.append("function")
    rewrites.function_optimization = rewrites.AGGRESSIVE
    with muted_stderr():
        return tf_optimizer.OptimizeGraph(config, meta)


def _simplified(graph_def: GraphDef, result: str, output: str) -> GraphDef:
    """Reduces a graph to plain forms of what `result` needs; adds an Identity called `output`.

    Works in place: protobuf frees the memory of deleted nodes only together with the whole graph,
    so a copy would hold the weights twice.
    """
    drop_others(graph_def, result)
    if INPUT not in nodes_by_name(graph_def):
        raise FreezeError("its output does not depend on the image")
    for node in graph_def.node:
        set_inputs(node, [name for name in node.input if name[0] != "^"])
        node.device = ""
        for mark in [key for key in node.attr if key.startswith("_")]:
            del node.attr[mark]
    _bypass(graph_def)
    nodes = nodes_by_name(graph_def)
    for node in graph_def.node:
        if node.op in ("Reshape", "Squeeze"):
            _compute_shape_change(node, nodes)
    _make_depthwise(graph_def)
    _flatten_vectors(graph_def)
    add_node(graph_def, output, "Identity", [_own_end(graph_def, result)], T="float32")
    drop_others(graph_def, output)
    del graph_def.library.function[:]
    sort_nodes(graph_def)
    return graph_def


def _own_end(graph_def: GraphDef, result: str) -> str:
    """Returns the input of the traced function's last Identity, or `result` if it is none."""
    node = nodes_by_name(graph_def)[result]
    return str(node.input[0]) if node.op == "Identity" else result


def _bypass(graph_def: GraphDef) -> None:
    """Connects nodes past Identity, IdentityN (which custom gradients leave) and StopGradient."""
    nodes = nodes_by_name(graph_def)

    def source(reference: str) -> str:
        node = nodes[node_name(reference)]
        while node.op in ("Identity", "IdentityN", "StopGradient"):
            _, _, number = reference.partition(":")
            reference = node.input[int(number or 0)]
            node = nodes[node_name(reference)]
        return reference

    for node in graph_def.node:
        set_inputs(node, [source(name) for name in node.input])


def _compute_shape_change(node: NodeDef, nodes: Mapping[str, NodeDef]) -> None:
    """Turns a Reshape or Squeeze of a constant, as in Keras's batch norms, into a constant."""
    value = constant(nodes, node.input[0])
    if value is None or value.dtype != np.float32:
        return
    if node.op == "Squeeze":
        axes = tuple(node.attr["squeeze_dims"].list.i) or None
        set_constant(node, np.squeeze(value, axes))
    elif (shape := constant(nodes, node.input[1])) is not None:
        set_constant(node, value.reshape(shape))


BROADCASTING = ("Add", "AddV2", "Sub", "Mul", "Rsqrt", "RealDiv")


def _flatten_vectors(graph_def: GraphDef) -> None:
    """Reshapes constants [1, 1, 1, c] that only arithmetic reads to [c], which broadcasts the same.

    That holds as long as they are finally combined with a tensor [n, height, width, c].
    """
    users = users_of(graph_def)
    for node in graph_def.node:
        value = constant({node.name: node}, node.name) if node.op == "Const" else None
        if value is None or value.dtype != np.float32 or value.ndim != 4:
            continue
        if value.shape[:3] != (1, 1, 1) or node.name not in users:
            continue
        if all(user.op in BROADCASTING for user in users[node.name]):
            set_constant(node, value.reshape(-1))


def _make_depthwise(graph_def: GraphDef) -> None:
    """Turns convolutions with one group per channel into DepthwiseConv2dNative.

    TensorFlow cannot run the grouped form on all processors. The weights [k, k, 1, channels * m]
    become [k, k, channels, m].
    """
    nodes = nodes_by_name(graph_def)
    shapes = {n.name: constant_shape(nodes, n.input[1]) for n in graph_def.node if n.op == "Conv2D"}
    grouped = {k: v for k, v in shapes.items() if v is not None and v[2] == 1}
    if not grouped:
        return
    graph = import_shapes(graph_def)
    for name, shape in grouped.items():
        channels = graph.get_operation_by_name(name).inputs[0].shape[-1]
        kernel = constant(nodes, nodes[name].input[1])
        if channels == 1 or kernel is None:
            continue
        kernel = kernel.reshape(*shape[:2], channels, -1)
        held = add_constant(graph_def, f"{name}/depthwise_weights", kernel)
        set_inputs(nodes[name], [nodes[name].input[0], held])
        nodes[name].op = "DepthwiseConv2dNative"
        for key in ("use_cudnn_on_gpu", "explicit_paddings"):
            if key in nodes[name].attr:
                del nodes[name].attr[key]
