"""Folds batch norms into convolutions: the same output, faster."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.messages import TYPE_NUMBERS, GraphDef, NodeDef
from retraining.graphs.nodes import (
    add_constant,
    constant,
    node_name,
    nodes_by_name,
    set_constant,
    set_inputs,
)
from retraining.graphs.surgery import drop_others

Values: TypeAlias = NDArray[np.float64] | np.float64  # float64 [c], or one number for all channels


@np.errstate(all="ignore")  # constants that give NaN here give NaN in TensorFlow, too
def fold(graph_def: GraphDef, output_name: str) -> None:
    """Speeds up a graph, in place, without changing its output: folds batch norms.

    - A batch norm is `(conv(x, w) + b) * scale + shift` with constants; b is often missing. It
      becomes `conv(x, w * scale) + (b * scale + shift)`. Three forms are known: the 2015 graph's op
      BatchNormWithGlobalNormalization, a FusedBatchNorm (V2, V3) that does not train, and
      MobileNet's Mul, Add, Sub and Rsqrt.
    - CheckNumerics nodes and the Identity nodes that only order them are removed.
    - Concat(axis, ...) becomes ConcatV2(..., axis).

    Nodes that match none of these forms exactly stay unchanged.
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
    """A GraphDef during folding: its nodes by name, and how many inputs read each node at first.

    `sides` are the nodes that have other outputs in use than the first.
    """

    graph_def: GraphDef
    nodes: dict[str, NodeDef]
    users: Counter[str]
    sides: frozenset[str]

    @classmethod
    def of(cls, graph_def: GraphDef) -> Self:
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

    def source(self, reference: str) -> NodeDef:
        """Returns the node behind a reference, looking through Identity and CheckNumerics."""
        return self.nodes[node_name(_source(self.nodes, reference))]

    def constant(self, reference: str) -> NDArray[Any] | None:
        """Returns the value of the constant behind a reference; None for other nodes."""
        return constant(self.nodes, self.source(reference).name)


def _modernize_concat(node: NodeDef) -> None:
    set_inputs(node, [*node.input[1:], node.input[0]])
    node.op = "ConcatV2"
    node.attr["Tidx"].type = TYPE_NUMBERS["int32"]


OLD_BATCH_NORM = "BatchNormWithGlobalNormalization"
BATCH_NORMS = (OLD_BATCH_NORM, "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


def _fold_batch_norm(node: NodeDef, folding: _Folding) -> None:
    """Turns a batch norm with constant statistics into a BiasAdd, in place."""
    factors = batch_norm_factors(node, folding.constant)
    if factors and node.name not in folding.sides:
        _fold_into_weights(node, node.input[0], factors, folding)


def batch_norm_factors(
    node: NodeDef, constant_of: Callable[[str], NDArray[Any] | None]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Returns (scale, shift), float64 [c], of a batch norm with constant statistics, else None.

    By TensorFlow's definition, scale = gamma / sqrt(variance + epsilon) and shift = beta - mean *
    scale. The old op ignores gamma unless scale_after_normalization is set.
    """
    constants = (constant_of(name) for name in node.input[1:5])
    values = [value for value in constants if value is not None and value.dtype == np.float32]
    if len(values) < 4 or len({value.shape for value in values}) > 1 or values[0].ndim != 1:
        return None
    if node.op == OLD_BATCH_NORM:
        mean, variance, beta, gamma = values
        epsilon = node.attr["variance_epsilon"].f
        if not node.attr["scale_after_normalization"].b:
            gamma = np.ones_like(gamma)
    else:
        gamma, beta, mean, variance = values
        if not _is_inference(node):
            return None
        epsilon = node.attr["epsilon"].f if "epsilon" in node.attr else 1e-4  # the op's default
    scale = gamma / np.sqrt(variance.astype(np.float64) + epsilon)
    return scale, beta - mean * scale


def _is_inference(node: NodeDef) -> bool:
    """Returns whether a FusedBatchNorm uses given statistics, of channels in the last axis."""
    trains = node.attr["is_training"].b if "is_training" in node.attr else True
    return not trains and _channels_last(node)


def _fold_scale(node: NodeDef, folding: _Folding) -> None:
    """Turns (conv + b) * constant into a convolution with scaled weights, plus b * constant."""
    for source, factor in (node.input[:2], node.input[1::-1]):
        if folding.source(source).op in (*CONVOLUTIONS, "BiasAdd"):
            scale = _evaluate(folding.nodes, factor)
            if scale is not None and _fold_into_weights(
                node, source, (scale, np.float64(0)), folding
            ):
                return


def _fold_shift(node: NodeDef, folding: _Folding) -> None:
    """Turns (conv + b) + constant into BiasAdd(conv, b + constant)."""
    for source, term in (node.input[:2], node.input[1::-1]):
        if (biased := _biased_convolution(source, folding)) is None:
            continue
        conv, bias = biased
        shift = _evaluate(folding.nodes, term)
        if shift is not None and shift.shape == (_output_channels(conv, folding),):
            _make_bias_add(node, conv, bias + shift, folding)
            return


CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")


def _channels_last(node: NodeDef) -> bool:
    return "data_format" not in node.attr or bool(node.attr["data_format"].s == b"NHWC")


def _biased_convolution(reference: str, folding: _Folding) -> tuple[NodeDef, Values] | None:
    """Returns (convolution, bias) of a reference to a convolution or to its BiasAdd.

    The bias is float64 [c], or 0 without a BiasAdd. None for other nodes, if the bias is not
    constant, and if other nodes read the convolution or the BiasAdd.
    """
    node = folding.source(reference)
    bias: Values = np.float64(0)
    if node.op == "BiasAdd" and _channels_last(node) and folding.users[node.name] < 2:
        added = folding.constant(node.input[1])
        if added is None or added.dtype != np.float32:
            return None
        node, bias = folding.source(node.input[0]), added.astype(np.float64)
    known = node.op in CONVOLUTIONS and _channels_last(node) and folding.users[node.name] < 2
    fits = known and bias.shape in ((), (_output_channels(node, folding),))
    return (node, bias) if fits else None


def _output_channels(conv: NodeDef, folding: _Folding) -> int | None:
    """Returns a convolution's output channels; None if its weights are no float32 constant."""
    values = folding.constant(conv.input[1])
    if values is None or values.ndim != 4 or values.dtype != np.float32:
        return None
    # Conv2D: [height, width, in, out]; depthwise: [height, width, in, multiplier], out = in * m.
    return math.prod(values.shape[2:] if conv.op == "DepthwiseConv2dNative" else values.shape[3:])


def _fold_into_weights(
    node: NodeDef, source: str, scale_and_shift: tuple[Values, Values], folding: _Folding
) -> bool:
    """Turns `node`, which computes `source * scale + shift`, into a convolution's BiasAdd.

    `source` refers to a convolution or its BiasAdd. Returns False and changes nothing if other
    nodes read them or the weights, or if a size does not fit.
    """
    scale, shift = scale_and_shift
    if (biased := _biased_convolution(source, folding)) is None:
        return False
    conv, bias = biased
    if scale.shape != (_output_channels(conv, folding),):
        return False
    weights = folding.source(conv.input[1])
    if folding.users[weights.name] > 1:
        return False
    values = constant(folding.nodes, weights.name)
    if values is None:
        return False
    per_channel = scale.reshape(values.shape[2:]) if conv.op != "Conv2D" else scale
    set_constant(weights, (values * per_channel).astype(values.dtype))
    bias = bias * scale if bias.ndim else bias
    _make_bias_add(node, conv, bias + shift, folding)
    return True


def _make_bias_add(node: NodeDef, conv: NodeDef, bias: Values, folding: _Folding) -> None:
    """Turns `node` into BiasAdd(conv, bias), or into an Identity of `conv` if the bias is 0."""
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


ARITHMETIC: dict[str, Callable[..., Values]] = {
    "Add": np.add,
    "AddV2": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
}


BATCH_NORM_DEPTH = 6  # operations, one more than a batch norm has; each could double the time


def _evaluate(
    nodes: Mapping[str, NodeDef], reference: str, depth: int = BATCH_NORM_DEPTH
) -> Values | None:
    """Returns the value of a node that depends only on constants; None for other nodes."""
    node = nodes[node_name(_source(nodes, reference))]
    if node.op == "Const":
        value = constant(nodes, node.name)
        if value is None or value.dtype != np.float32 or value.ndim > 1:
            return None
        return value.astype(np.float64)
    if node.op not in ARITHMETIC or depth == 0:
        return None
    inputs = [name for name in node.input if name[0] != "^"]
    constants = [_evaluate(nodes, name, depth - 1) for name in inputs]
    values = [value for value in constants if value is not None]
    if len(values) < len(inputs) or len({v.size for v in values} - {1}) > 1:
        return None
    return ARITHMETIC[node.op](*values)


PASSED_THROUGH = ("CheckNumerics", "Identity")


def _source(nodes: Mapping[str, NodeDef], reference: str) -> str:
    """Follows a reference through Identity and CheckNumerics nodes; returns the last reference."""
    while nodes[node_name(reference)].op in PASSED_THROUGH:
        reference = nodes[node_name(reference)].input[0]
    return reference


def _drop_identities(graph_def: GraphDef, output_name: str) -> None:
    """Removes Identity and CheckNumerics nodes, and all that `output_name` does not need."""
    nodes = nodes_by_name(graph_def)
    for node in graph_def.node:
        set_inputs(node, [_source(nodes, name) for name in node.input if name[0] != "^"])
    drop_others(graph_def, output_name)
