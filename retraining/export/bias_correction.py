"""Corrects biases for the rounding of weights to int8.

Rounded weights shift the mean of each channel of a layer's output; over many layers such shifts
change answers more than the noise of rounding does. What a layer loses is the error of its weights
times the mean of its input, measured on photos: Nagel et al. (2019), arXiv:1906.04721, section 4.2.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.export.pixels_graph import Pixels, Source
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import node_name, nodes_by_name, set_constant, users_of
from retraining.graphs.session import open_session
from retraining.graphs.tensors import to_array

STEPS = 127  # of int8 on each side of 0
DEPTHWISE = "DepthwiseConv2dNative"
LAYERS = ("Conv2D", DEPTHWISE, "MatMul")
ADDITIONS = ("BiasAdd", "Add", "AddV2")


@dataclass(frozen=True)
class Layer:
    """A layer with constant weights: names of its op, the tensor it takes, weights and bias."""

    op: str
    input: str
    weights: str
    bias: str


def correct_biases(source: Source, photos: Iterable[Pixels]) -> Source:
    """Returns a Source whose int8 weights give its layers the mean output of those of `source`.

    `photos` yields some photos, as the graph takes them.
    """
    graph_def = GraphDef()
    graph_def.MergeFrom(source.graph_def)
    layers = find_layers(graph_def)
    means = mean_inputs(source, sorted({layer.input for layer in layers}), photos)
    nodes = nodes_by_name(graph_def)
    for layer in layers:
        weights, bias = (
            to_array(nodes[name].attr["value"].tensor) for name in (layer.weights, layer.bias)
        )
        lost = lost_output(weights, means[layer.input], layer.op == DEPTHWISE)
        set_constant(nodes[layer.bias], (bias + lost).astype(np.float32))
    return replace(source, graph_def=graph_def)


def find_layers(graph_def: GraphDef) -> list[Layer]:
    """Returns the layers whose bias is a constant of their own."""
    nodes, users = nodes_by_name(graph_def), users_of(graph_def)
    layers = []
    for node in graph_def.node:
        after = users.get(node.name, [])
        if node.op in LAYERS and len(after) == 1 and after[0].op in ADDITIONS:
            weights, bias = (node_name(n.input[1]) for n in (node, after[0]))
            own = all(nodes[name].op == "Const" for name in (weights, bias))
            if own and len(users[bias]) == 1:
                layers.append(Layer(node.op, node_name(node.input[0]), weights, bias))
    return layers


def mean_inputs(
    source: Source, names: Sequence[str], photos: Iterable[Pixels]
) -> Mapping[str, NDArray[np.float64]]:
    """Returns {tensor: the mean of each of its channels over photos, float64 [c]}.

    Raises:
        RetrainingError: there are no photos.
    """
    nodes = {image.feed: f"{image.node}:0" for image in source.inputs}
    sums = {name: np.zeros(()) for name in names}
    count = 0
    with open_session(source.graph_def, source.output) as session:
        for feeds in photos:
            values = session.run(
                [f"{name}:0" for name in names],
                {nodes[feed]: pixels for feed, pixels in feeds.items()},
            )
            count += 1
            for name, value in zip(names, values, strict=True):
                sums[name] = sums[name] + value.reshape(-1, value.shape[-1]).mean(axis=0)
    if not count:
        raise RetrainingError("none of the training photos can be read any more")
    return {name: total / count for name, total in sums.items()}


def lost_output(
    weights: NDArray[np.float32], mean: NDArray[np.float64], depthwise: bool
) -> NDArray[np.float64]:
    """Returns what int8 weights take from the mean of each output, float64 [outputs].

    Weights are [height, width, inputs, outputs], [inputs, outputs], or, depthwise, [height, width,
    channels, multiplier] with `channels * multiplier` outputs. `mean` is [inputs] or [channels].
    """
    error = weights - rounded(weights, depthwise)
    by_input = error.reshape(-1, *error.shape[-2:]).sum(axis=0)  # over the places of the kernel
    lost: NDArray[np.float64] = (by_input * mean[:, None]).ravel() if depthwise else mean @ by_input
    return lost


def rounded(weights: NDArray[np.float32], depthwise: bool) -> NDArray[np.float32]:
    """Returns weights rounded as TensorFlow Lite does: one scale for each output, no zero point."""
    axes = tuple(range(weights.ndim - 2)) if depthwise else tuple(range(weights.ndim - 1))
    scale = np.abs(weights).max(axis=axes, keepdims=True) / STEPS
    scale = np.where(scale > 0, scale, 1)
    return (np.round(weights / scale) * scale).astype(np.float32)
