"""Reads, checks, folds, batches and runs frozen GraphDefs. TensorFlow is imported when needed."""

import contextlib
import hashlib
import itertools
import json
import math
import os
import threading
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from retraining.graphs.graph_check import MAX_ELEMENTS, load_graph
from retraining.graphs.nodes import (
    IMAGE_BYTES,
    GraphError,
    add_constant,
    add_node,
    constant,
    dtype_of,
    node_name,
    nodes_by_name,
    set_constant,
    set_inputs,
    shape_of,
)
from retraining.graphs.quiet_tensorflow import import_tensorflow
from retraining.networks.networks import NETWORKS
from retraining.photos.images import POLICY, ImageError
from retraining.system.lines import one_line

METADATA = "retraining/metadata"  # constant node that describes a retrained graph, as JSON
FED = {"input": str, "size": list, "mean": float, "std": float}  # how a network takes images
DESCRIBED = {"labels": list, "output": str, **FED}
PRECISIONS = ("auto", "float32", "bfloat16")
MAX_SIDE = 4096  # pixels of a network's input; beyond, one image would take hundreds of megabytes


# -- reading ---------------------------------------------------------------------------------


def read_graph(path, allow_unsafe_ops=False):
    """The frozen GraphDef in the file, checked; see `graph_check.load_graph`.

    Raises:
        GraphError: the file is missing, no GraphDef, damaged, or not known to be harmless.
    """
    return load_graph(path, allow_unsafe_ops)[0]


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


@dataclass(frozen=True)
class BaseNetwork:
    """A base network as read from its file; `width` is that of its bottleneck vector."""

    name: str
    graph_def: object
    input: str
    bottleneck: str
    preprocessing: Preprocessing
    width: int
    file_sha1: str

    @property
    def networks(self):
        """The networks it is made of: itself; see pair.NetworkPair."""
        return (self,)

    @property
    def exported(self):
        """The networks as they are in an exported graph."""
        return (self,)

    def fingerprint(self, precision):
        """Hex SHA-1 of everything a vector depends on but the image: file, pixels, arithmetic."""
        about = self.preprocessing
        facts = (
            self.file_sha1,
            self.input,
            self.bottleneck,
            (about.size, about.mean, about.std),
            precision,
            POLICY,
        )
        return hashlib.sha1(repr(facts).encode()).hexdigest()


def load_network(path, network, allow_unsafe_ops=False):
    """Reads a base network's file and checks that it is `network` (networks.Network).

    Raises:
        GraphError: not a frozen graph, one not known to be harmless, or not that network.
    """
    graph_def, content = load_graph(path, allow_unsafe_ops)
    file_sha1 = hashlib.sha1(content).hexdigest()
    del content  # as large as the graph
    nodes = nodes_by_name(graph_def)
    missing = sorted(network.required_nodes - set(nodes))
    if missing:
        raise GraphError(
            f"{path} is not {network.name}: it has no node {', '.join(missing)}; check "
            f"--architecture and --model_file"
        )
    if METADATA in nodes:
        raise GraphError(f"{path} is a retrained graph, not a base network; see --model_file")
    found = read_preprocessing(graph_def, network.input)
    size = found.size or (network.size, network.size)
    weights = network.first_weights and constant(nodes, network.first_weights[0])
    wrong_weights = weights is not None and weights.shape != network.first_weights[1]
    if network.first_weights and (wrong_weights or size != (network.size, network.size)):
        raise GraphError(f"{path} is another network than {network.name}; check --architecture")
    return BaseNetwork(
        name=network.name,
        graph_def=graph_def,
        input=network.input,
        bottleneck=network.bottleneck,
        preprocessing=Preprocessing(
            size,
            network.mean if found.mean is None else found.mean,
            network.std if found.std is None else found.std,
        ),
        width=_width(path, graph_def, nodes, network.bottleneck),
        file_sha1=file_sha1,
    )


def _width(path, graph_def, nodes, name):
    """The length of the bottleneck vector: from its Reshape, or by TensorFlow's shape inference."""
    node = nodes[name]
    shape = constant(nodes, node.input[1]) if node.op == "Reshape" else None
    if shape is None:
        found = output_tensor(import_shapes(graph_def, name), name).shape
        shape = np.array(found.as_list() if found.rank is not None else ())
    if shape.shape != (2,) or not shape[1] or shape[1] < 1:
        raise GraphError(f"{path}: {name} has shape {shape}, not one vector per image")
    return int(shape[1])


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


def outline(graph_def, output_name=None):
    """A copy of what an output needs, or of all, with Placeholders for weights.

    Raises:
        GraphError: a node is missing.
    """
    nodes = nodes_by_name(graph_def)
    wanted = ancestors(nodes, output_name) if output_name else nodes
    copy = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
    for node in graph_def.node:
        if node.name in wanted and is_weights(node):
            placeholder = copy.node.add(name=node.name, op="Placeholder")
            placeholder.attr["dtype"].CopyFrom(node.attr["dtype"])
            placeholder.attr["shape"].shape.CopyFrom(node.attr["value"].tensor.tensor_shape)
        elif node.name in wanted:
            copy.node.append(node)
    return copy


def is_weights(node):
    """Whether a node is a constant array of floats, on whose values no tensor's shape depends."""
    tf = import_tensorflow()
    floats = (tf.dtypes.float32.as_datatype_enum, tf.dtypes.bfloat16.as_datatype_enum)
    return node.op == "Const" and node.attr["dtype"].type in floats and len(shape_of(node)) > 0


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


def _ends(graph, input_name, output_name):
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


# -- surgery ---------------------------------------------------------------------------------


def ancestors(nodes, output_name, stop=None):
    """The names of all nodes that `output_name` depends on, itself included; not beyond `stop`.

    Raises:
        GraphError: one of them is not in the graph.
    """
    found, queue = set(), [output_name]
    while queue:
        name = queue.pop()
        if name not in nodes:
            raise GraphError(f"the graph has no node {name!r}")
        if name not in found:
            found.add(name)
            queue.extend(map(node_name, nodes[name].input if name != stop else ()))
    return found


def keep_ancestors(graph_def, output_name, stop=None):
    """A copy with these nodes only, in their order.

    Raises:
        GraphError: one of them is not in the graph.
    """
    wanted = ancestors(nodes_by_name(graph_def), output_name, stop)
    kept = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
    kept.node.extend(node for node in graph_def.node if node.name in wanted)
    return kept


def drop_others(graph_def, output_name):
    """Keeps the nodes that `output_name` depends on and no others, in place.

    Raises:
        GraphError: one of them is not in the graph.
    """
    wanted = ancestors(nodes_by_name(graph_def), output_name)
    for number in reversed(range(len(graph_def.node))):
        if graph_def.node[number].name not in wanted:
            del graph_def.node[number]


def cut(graph_def, input_name, output_name):
    """A copy of the part between a float input, which becomes a Placeholder, and an output.

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
    del node.input[:]
    node.op = "Placeholder"
    node.attr.clear()
    node.attr["dtype"].type = import_tensorflow().dtypes.float32.as_datatype_enum
    for size in sizes or [-1, -1, -1, 3]:
        node.attr["shape"].shape.dim.add(size=size)
    return part


def widen_batch(graph_def):
    """Lets a graph made for one image take any number, in place.

    Placeholders of shape [1, ...] become [-1, ...]; constants [1, n] that only give a Reshape its
    shape become [-1, n].
    """
    nodes = nodes_by_name(graph_def)
    for node in graph_def.node:
        if node.op.startswith("Placeholder") and "shape" in node.attr:
            for first in node.attr["shape"].shape.dim[:1]:
                first.size = -1 if first.size == 1 else first.size
        elif node.op == "Reshape":
            shape = constant(nodes, node.input[1])
            is_list = shape is not None and shape.ndim == 1 and len(shape) > 1
            if is_list and shape[0] == 1 and -1 not in shape:
                shape = np.concatenate([[-1], shape[1:]]).astype(shape.dtype)
                set_constant(nodes[node_name(node.input[1])], shape)


def batched_part(graph_def, input_name, output_name):
    """A copy of the part between an input and an output, for any number of images.

    Raises:
        GraphError: as `cut`.
    """
    part = cut(graph_def, input_name, output_name)
    widen_batch(part)
    return part


def same_part(one, other, input_name, output_name):
    """Whether two graphs have the same nodes and weights between an input and an output."""
    outlines = (outline(each, output_name) for each in (one, other))
    parts = [batched_part(each, input_name, output_name).node for each in outlines]
    if not all(a == b for a, b in itertools.zip_longest(*parts)):
        return False
    ones, others = nodes_by_name(one), nodes_by_name(other)
    pairs = [(ones[node.name], others[node.name]) for node in parts[0]]
    return all(a == b for a, b in pairs if is_weights(a) or is_weights(b))


@np.errstate(all="ignore")  # what makes NaN of its constants does so in TensorFlow, too
def fold(graph_def, output_name):
    """Makes a graph faster, in place, with the same output: batch norms go into convolutions.

    - A batch norm is `(conv(x, w) + b) * scale + shift` with constants, b often missing. It is the
      2015 graph's op BatchNormWithGlobalNormalization, a FusedBatchNorm (V2, V3) that does not
      train, or spelled out in Mul, Add, Sub and Rsqrt as in MobileNet; it becomes
      `conv(x, w * scale) + (b * scale + shift)`.
    - CheckNumerics and the Identity nodes that only order it are dropped.
    - Concat(axis, ...) becomes ConcatV2(..., axis).

    What does not have these forms exactly is left as it is.
    """
    folding = _Folding.of(graph_def)
    for node in list(graph_def.node):
        if node.op == "Concat":
            _modernize_concat(node)
        elif node.op in BATCH_NORMS:
            _fold_batch_norm(node, folding)
        elif node.op == "Mul":
            _fold_scale(node, folding)
        elif node.op in ("Add", "AddV2"):
            _fold_shift(node, folding)
    _drop_identities(graph_def, output_name)


@dataclass(frozen=True)
class _Folding:
    """A GraphDef that is being folded: its nodes by name, and how many inputs each is, unfolded.

    `sides` are the nodes of which not only the first output is used.
    """

    graph_def: object
    nodes: dict
    users: Counter
    sides: frozenset

    @classmethod
    def of(cls, graph_def):
        nodes = nodes_by_name(graph_def)
        users = Counter(
            node_name(_source(nodes, name))
            for node in graph_def.node
            if node.op not in PASSED_THROUGH
            for name in node.input
            if name[0] != "^"
        )
        inputs = (name for node in graph_def.node for name in node.input)
        sides = frozenset(
            node_name(name) for name in inputs if not name.endswith(":0") and ":" in name
        )
        return cls(graph_def, nodes, users, sides)

    def source(self, reference):
        """The node behind a reference, past Identity and CheckNumerics."""
        return self.nodes[node_name(_source(self.nodes, reference))]

    def constant(self, reference):
        """The value of the constant behind a reference; None if it is none."""
        return constant(self.nodes, self.source(reference).name)


def _modernize_concat(node):
    set_inputs(node, [*node.input[1:], node.input[0]])
    node.op = "ConcatV2"
    node.attr["Tidx"].type = import_tensorflow().dtypes.int32.as_datatype_enum


OLD_BATCH_NORM = "BatchNormWithGlobalNormalization"
BATCH_NORMS = (OLD_BATCH_NORM, "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


def _fold_batch_norm(node, folding):
    """A batch norm with constant statistics -> BiasAdd, in place.

    By TensorFlow's definition of the ops, scale = gamma / sqrt(variance + epsilon), for the old one
    without gamma if not scale_after_normalization, and shift = beta - mean * scale.
    """
    values = [folding.constant(name) for name in node.input[1:5]]
    if any(each is None or each.dtype != np.float32 for each in values):
        return
    if len({each.shape for each in values}) > 1 or values[0].ndim != 1:
        return
    if node.op == OLD_BATCH_NORM:
        mean, variance, beta, gamma = values
        epsilon = node.attr["variance_epsilon"].f
        gamma = gamma if node.attr["scale_after_normalization"].b else 1
    else:
        gamma, beta, mean, variance = values
        if not _is_inference(node) or node.name in folding.sides:
            return
        epsilon = node.attr["epsilon"].f if "epsilon" in node.attr else 1e-4  # the op's default
    scale = gamma / np.sqrt(variance.astype(np.float64) + epsilon)
    _fold_into_weights(node, node.input[0], (scale, beta - mean * scale), folding)


def _is_inference(node):
    """Whether a FusedBatchNorm uses the statistics it is given, of channels that come last."""
    trains = node.attr["is_training"].b if "is_training" in node.attr else True
    return not trains and _channels_last(node)


def _fold_scale(node, folding):
    """(conv + b) * constant -> a convolution of scaled weights, with b * constant added."""
    for source, factor in (node.input[:2], node.input[1::-1]):
        if folding.source(source).op in (*CONVOLUTIONS, "BiasAdd"):
            scale = _evaluate(folding.nodes, factor)
            if scale is not None and _fold_into_weights(node, source, (scale, 0), folding):
                return


def _fold_shift(node, folding):
    """(conv + b) + constant -> BiasAdd(conv, b + constant)."""
    for source, term in (node.input[:2], node.input[1::-1]):
        conv, bias = _biased_convolution(source, folding)
        shift = None if conv is None else _evaluate(folding.nodes, term)
        if shift is not None and shift.shape == (_output_channels(conv, folding),):
            _make_bias_add(node, conv, bias + shift, folding)
            return


CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")


def _channels_last(node):
    return "data_format" not in node.attr or node.attr["data_format"].s == b"NHWC"


def _biased_convolution(reference, folding):
    """(convolution, float64 bias [c] or 0) of a reference to one, or to a BiasAdd behind it.

    (None, None) where it is neither, where the bias is not constant, and where something else uses
    one of the two.
    """
    node, bias = folding.source(reference), np.float64(0)
    if node.op == "BiasAdd" and _channels_last(node) and folding.users[node.name] < 2:
        bias = folding.constant(node.input[1])
        if bias is None or bias.dtype != np.float32:
            return None, None
        node, bias = folding.source(node.input[0]), bias.astype(np.float64)
    known = node.op in CONVOLUTIONS and _channels_last(node) and folding.users[node.name] < 2
    fits = known and bias.shape in ((), (_output_channels(node, folding),))
    return (node, bias) if fits else (None, None)


def _output_channels(conv, folding):
    """How many channels a convolution gives; None where its weights are no float32 constant."""
    values = folding.constant(conv.input[1])
    if values is None or values.ndim != 4 or values.dtype != np.float32:
        return None
    # Conv2D: [height, width, in, out]; depthwise: [height, width, in, multiplier], out = in * m.
    return math.prod(values.shape[2:] if conv.op == "DepthwiseConv2dNative" else values.shape[3:])


def _fold_into_weights(node, source, scale_and_shift, folding):
    """Makes `node`, which gives `source * scale + shift`, a convolution's BiasAdd, if it can be.

    `source` refers to a convolution or its BiasAdd. False, and nothing is done, where something
    else uses one of them or the weights, or a size does not fit.
    """
    scale, shift = scale_and_shift
    conv, bias = _biased_convolution(source, folding)
    if conv is None or scale.shape != (_output_channels(conv, folding),):
        return False
    weights = folding.source(conv.input[1])
    if folding.users[weights.name] > 1:
        return False
    values = constant(folding.nodes, weights.name)
    per_channel = scale.reshape(values.shape[2:]) if conv.op != "Conv2D" else scale
    set_constant(weights, (values * per_channel).astype(values.dtype))
    bias = bias * scale if bias.ndim else bias
    _make_bias_add(node, conv, bias + shift, folding)
    return True


def _make_bias_add(node, conv, bias, folding):
    """Makes `node`, in place, BiasAdd(conv, bias), or `conv` itself where `bias` is a plain 0."""
    dtype = node.attr["T"].type
    node.attr.clear()
    node.attr["T"].type = dtype
    if np.ndim(bias) == 0:
        node.op = "Identity"
        set_inputs(node, [conv.name])
        folding.users[conv.name] = folding.users[node.name]
        return
    name = f"{node.name}/bias"
    while name in folding.nodes:
        name += "_"
    add_constant(folding.graph_def, name, np.asarray(bias, np.float32))
    folding.nodes[name] = folding.graph_def.node[-1]
    set_inputs(node, [conv.name, name])
    node.op = "BiasAdd"


ARITHMETIC = {
    "Add": np.add,
    "AddV2": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
}


BATCH_NORM_DEPTH = (
    6  # operations, one more than it has: without a limit, each could double the time
)


def _evaluate(nodes, reference, depth=BATCH_NORM_DEPTH):
    """The float64 vector or number of a node that depends on constants only; None for others."""
    node = nodes[node_name(_source(nodes, reference))]
    if node.op == "Const":
        value = constant(nodes, node.name)
        usable = value.dtype == np.float32 and value.ndim < 2
        return value.astype(np.float64) if usable else None
    if node.op not in ARITHMETIC or depth == 0:
        return None
    inputs = [name for name in node.input if name[0] != "^"]
    values = [_evaluate(nodes, name, depth - 1) for name in inputs]
    if any(value is None for value in values) or len({v.size for v in values} - {1}) > 1:
        return None
    return ARITHMETIC[node.op](*values)


PASSED_THROUGH = ("CheckNumerics", "Identity")


def _source(nodes, reference):
    """The reference without the Identity and CheckNumerics nodes on its way."""
    while nodes[node_name(reference)].op in PASSED_THROUGH:
        reference = nodes[node_name(reference)].input[0]
    return reference


def _drop_identities(graph_def, output_name):
    """Removes what `output_name` does not need, and all Identity and CheckNumerics but itself."""
    nodes = nodes_by_name(graph_def)
    for node in graph_def.node:
        set_inputs(node, [_source(nodes, name) for name in node.input if name[0] != "^"])
    drop_others(graph_def, output_name)


LOWERED_BEHIND_THEM = ("BiasAdd", "Relu", "Relu6", "Add", "AddV2")
LOWERED_BEFORE_THEM = ("ConcatV2", "MaxPool", "AvgPool")  # these only where a lowered one follows


def lower(graph_def):
    """Makes the convolutional part of a folded graph compute in bfloat16, in place.

    Weights become bfloat16 constants; values are cast where they enter and leave. What follows the
    last convolution (the average over the image, the classifier) stays float32. TensorFlow's own
    optimizer pass for this takes three times as long to start.
    """
    nodes = nodes_by_name(graph_def)
    low = set()
    for node in graph_def.node:  # frozen graphs list a node after its inputs
        behind = any(node_name(name) in low for name in node.input)
        if node.op in CONVOLUTIONS or (node.op in LOWERED_BEHIND_THEM and behind):
            low.add(node.name)
    for node in reversed(graph_def.node):
        if node.name in low:
            sources = (nodes[node_name(name)] for name in node.input)
            low.update(source.name for source in sources if source.op in LOWERED_BEFORE_THEM)
    for node in list(graph_def.node):
        if node.name in low:
            node.attr["T"].type = import_tensorflow().dtypes.bfloat16.as_datatype_enum
        for number, name in enumerate(node.input):
            source = nodes[node_name(name)]
            if source.op == "Const" and node.name in low:
                _lower_constant(source)
            elif source.op != "Const" and (source.name in low) != (node.name in low):
                to = "bfloat16" if node.name in low else "float32"
                node.input[number] = _cast(graph_def, nodes, name, to)


def _lower_constant(node):
    """Makes a float32 Const a bfloat16 one; others (the axis of a concatenation) stay."""
    tf = import_tensorflow()
    if node.attr["dtype"].type == tf.dtypes.float32.as_datatype_enum:
        value = tf.make_ndarray(node.attr["value"].tensor)
        set_constant(node, value.astype(tf.dtypes.bfloat16.as_numpy_dtype))


def _cast(graph_def, nodes, name, dtype):
    """The name of a node that casts `name` to `dtype`, one for all that ask."""
    cast = f"{node_name(name)}/{dtype}"
    if cast not in nodes:
        other = "float32" if dtype == "bfloat16" else "bfloat16"
        add_node(graph_def, cast, "Cast", [name], SrcT=other, DstT=dtype)
        nodes[cast] = graph_def.node[-1]
    return cast


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


def native_precision():
    """`bfloat16` where the processor multiplies it natively, else `float32`.

    The flags are those Linux reports for Intel's AMX and AVX-512 and AMD's Zen 4; elsewhere
    float32 is the safe answer.
    """
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        flags = []
    return "bfloat16" if {"amx_bf16", "avx512_bf16"} & set(flags) else "float32"


def resolve_precision(precision, graph_def, prefix=""):
    """`auto` made `float32` or `bfloat16`; the others as they are.

    `auto` is bfloat16 where the processor has it and the graph is made of a network that bears it.
    `prefix` is before the names of that network's nodes, if it is the second of a graph.
    """
    if precision != "auto":
        return precision
    nodes = nodes_by_name(graph_def)
    bears_it = any(
        known.bfloat16 and prefix + known.bottleneck in nodes for known in NETWORKS.values()
    )
    return native_precision() if bears_it else "float32"


@dataclass(frozen=True)
class Running:
    """How a graph is run: in `float32` or `bfloat16`; with `optimize=False` a second sooner and
    slower, for a handful of images; on so many cores of a processor (None: all). `also` names
    nodes on the way to the output: what they give is appended to it, column by column."""

    precision: str = "float32"
    optimize: bool = True
    also: tuple[str, ...] = ()
    cores: int | None = None


class Runner:
    """Runs a frozen graph from one float32 image batch input to one output.

    `run` may be called from `parallel` threads at once: on a processor each call computes on one
    thread, which is faster than all threads on one batch, since nothing waits for the slowest.
    """

    def __init__(self, graph_def, input_name, output_name, how=None):
        """`how` is a Running."""
        tf, how = import_tensorflow(), how or Running()
        part = batched_part(graph_def, input_name, output_name)
        fold(part, output_name)
        if how.precision == "bfloat16":
            lower(part)
        self.parallel = 1 if tf.gpus() else how.cores or os.cpu_count() or 1
        config = tf.ConfigProto()
        if (self.parallel > 1 or how.cores) and how.optimize:
            config.intra_op_parallelism_threads = 1
            config.inter_op_parallelism_threads = self.parallel
            config.use_per_session_threads = True
        _choose_rewrites(config.graph_options.rewrite_options, how.optimize)
        session = open_session(part, output_name, config)
        self._input, self._output = _ends(session.graph, input_name, output_name)
        self.width = width_of(self._output)
        self.one_at_a_time = self._output.shape.rank == 0 or self._output.shape[0] == 1
        also = [session.graph.get_tensor_by_name(name + ":0") for name in how.also]
        self._fetch = _fetcher(session, self._output, also)
        self._started, self._first_call = False, threading.Lock()

    def run(self, batch):
        """float32 [n, width] for float32 [n, height, width, 3].

        Raises:
            GraphError: TensorFlow cannot run it, or it does not give a row per image.
        """
        if self.one_at_a_time and len(batch) > 1:
            return np.concatenate([self.run(image[None]) for image in batch])
        if self._started:
            return self._run(batch)
        # The first call optimizes the graph; calls beside it would each do so again.
        with self._first_call:
            output = self._run(batch)
            self._started = True
        return output

    def _run(self, batch):
        with _errors_of_running():
            output = self._fetch({self._input: batch})
        if output.shape[:1] != (len(batch),):
            raise GraphError(
                f"the graph gives an answer of shape {output.shape} for {len(batch)} images, not a "
                f"row per image; name another output"
            )
        return output


@contextlib.contextmanager
def _errors_of_running():
    """Makes what TensorFlow raises when it runs a graph, or is fed a wrong shape, a GraphError."""
    try:
        yield
    except (import_tensorflow().errors.OpError, ValueError, TypeError) as error:
        raise GraphError(f"TensorFlow cannot run this graph: {one_line(error)}") from error


def _fetcher(session, output, also):
    """A function of what is fed that gives one output, or it and the columns of others."""
    if not also:
        return lambda feed: session.run(output, feed)
    return lambda feed: np.concatenate(session.run([output, *also], feed), axis=1)


def _choose_rewrites(rewrites, optimize):
    """Leaves the one optimizer pass that pays, `remapping`, which fuses convolution, bias and ReLU.

    `fold` has done the others' work, and they take time.
    """
    if not optimize:
        rewrites.disable_meta_optimizer = True
        return
    rewrites.meta_optimizer_iterations = rewrites.ONE
    rewrites.memory_optimization = rewrites.NO_MEM_OPT
    for name in (
        "arithmetic_optimization",
        "common_subgraph_elimination",
        "constant_folding",
        "dependency_optimization",
        "function_optimization",
        "layout_optimizer",
        "loop_optimization",
        "shape_optimization",
    ):
        setattr(rewrites, name, rewrites.OFF)


class BytesRunner:
    """Runs a graph as it is, from one encoded image's bytes: the classic way, one at a time."""

    def __init__(self, graph_def, output_name, input_name=IMAGE_BYTES, also=()):
        """`also` as for Runner."""
        tf = import_tensorflow()
        self._refused = tf.errors.InvalidArgumentError
        config = tf.ConfigProto()
        _choose_rewrites(config.graph_options.rewrite_options, optimize=False)
        session = open_session(graph_def, output_name, config)
        self._bytes, output = _ends(session.graph, input_name, output_name)
        self.width = width_of(output)
        also = [session.graph.get_tensor_by_name(name + ":0") for name in also]
        self._fetch = _fetcher(session, output, also)

    def run(self, content):
        """float32 [1, width] for the bytes of one image file.

        Raises:
            ImageError: the graph's own decoder does not read this file.
            GraphError: TensorFlow cannot run it.
        """
        with _errors_of_running():
            try:
                return self._fetch({self._bytes: content})
            except self._refused as error:
                raise ImageError("is not an image that the graph's own decoder reads") from error
