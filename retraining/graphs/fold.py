"""Folds batch norms into convolutions: the same output, faster."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from retraining.graphs.nodes import (
    add_constant,
    constant,
    node_name,
    nodes_by_name,
    set_constant,
    set_inputs,
)
from retraining.graphs.surgery import drop_others
from retraining.graphs.tensorflow import import_tensorflow


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
