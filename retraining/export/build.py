"""Builds the retrained graph: the base network, the new head, and their description."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.graphs.description import METADATA
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import (
    ANY_BATCH,
    IMAGE_BYTES,
    add_constant,
    add_node,
    nodes_by_name,
    set_constant,
)
from retraining.graphs.preprocessing import add_any_batch, add_front_end
from retraining.graphs.surgery import keep_ancestors, widen_batch
from retraining.graphs.write import graph_bytes
from retraining.networks.network import BaseNetwork
from retraining.networks.pair import NetworkPair, add_second, prefixed_graph
from retraining.training.head import Head

FORMAT = 1  # of the metadata
LABELS_FILE = "labels.txt"  # in formats that hold files; see labels_bytes

Base: TypeAlias = BaseNetwork | NetworkPair


class ExportError(RetrainingError):
    """A graph cannot be written, or its answers differ from those of the trained head."""


def build_graph(base: Base, head: Head, tensor_name: str) -> GraphDef:
    """Returns the retrained GraphDef: the base network's own nodes and the head of the classic.

    In the graph of a NetworkPair, the nodes of the second network have a prefix and read the
    decoder of the first. The head reads both vectors side by side; a caller that feeds pixels
    feeds both inputs.

    `DecodeJpeg/contents:0` takes one image's bytes and `base.input:0` a float32 batch of any size;
    `tensor_name:0` gives float32 [n, classes]. Node names are those of the classic retrain.py.
    The nodes of the base network stay as they are, except those that limit the graph to one image:
    reshape constants [1, n] become [-1, n], and `ResizeBilinear` takes its input through a node of
    unknown batch size. A network without a decoder gets one before its input placeholder.

    Raises:
        ExportError: see `check_tensor_name`.
    """
    first, *others = base.networks
    graph_def = _from_bytes(first)
    for second in others:
        add_second(graph_def, prefixed_graph(_from_bytes(second)))
    check_tensor_name(base, tensor_name)
    _add_head(graph_def, base, head, tensor_name)
    return graph_def


def _from_bytes(base: BaseNetwork) -> GraphDef:
    """Returns the GraphDef of one base network: from image bytes or a float batch to its vector."""
    graph_def = keep_ancestors(base.graph_def, base.bottleneck)
    widen_batch(graph_def)
    if IMAGE_BYTES not in nodes_by_name(graph_def):
        _add_decoder(graph_def, base)
    elif ANY_BATCH not in nodes_by_name(graph_def):
        _loosen_batch(graph_def)
    return graph_def


def _loosen_batch(graph_def: GraphDef) -> None:
    resize = nodes_by_name(graph_def)["ResizeBilinear"]
    add_any_batch(graph_def, resize.input[0])
    resize.input[0] = ANY_BATCH


def _add_decoder(graph_def: GraphDef, base: BaseNetwork) -> None:
    """Puts the front end of the 2015 graph before a network whose input is a Placeholder.

    The placeholder becomes a PlaceholderWithDefault of the same name, type and shape.
    """
    pixels = add_front_end(graph_def, base.preprocessing)
    placeholder = nodes_by_name(graph_def)[base.input]
    placeholder.op = "PlaceholderWithDefault"
    placeholder.input.append(pixels)


HEAD = "final_training_ops"  # the scope of the layer in the classic
LOGITS = f"{HEAD}/Wx_plus_b/add"
OWN_NODES = "retraining/"  # the scope of nodes that the classic does not have
BOTH = f"{OWN_NODES}both_vectors"  # the vectors of two networks, side by side


def check_tensor_name(base: Base, tensor_name: str) -> None:
    """Refuses a name of the output that another node of the retrained graph has.

    Raises:
        ExportError: the name is taken.
    """
    taken = {node.name for network in base.exported for node in network.graph_def.node}
    taken |= {_bottleneck_input(base), HEAD}
    if tensor_name in taken or tensor_name.startswith((OWN_NODES, f"{HEAD}/")):
        raise ExportError(
            f"`OutputSettings.tensor_name` {tensor_name} is already the name of a node; choose "
            f"another"
        )


def _bottleneck_input(base: Base) -> str:
    """Returns the name of the node that takes vectors, made unique as TensorFlow did."""
    first = base.networks[0]
    taken = any(name.split("/")[0] == "input" for name in nodes_by_name(first.graph_def))
    return f"{'input_1' if taken else 'input'}/BottleneckInputPlaceholder"


def _add_head(graph_def: GraphDef, base: Base, head: Head, tensor_name: str) -> None:
    """Adds the nodes that `add_final_training_ops` of the classic left in its frozen graph.

    Hidden layers, which the classic lacked, come first: `final_training_ops/hidden_1` and so on.
    """
    bottleneck = add_node(
        graph_def,
        _bottleneck_input(base),
        "PlaceholderWithDefault",
        [_add_joint(graph_def, base)],
        dtype="float32",
        shape=(-1, base.width),
    )
    features = _add_hidden(graph_def, bottleneck, head.hidden)
    weights = _add_variable(graph_def, f"{HEAD}/weights/final_weights", head.weights)
    bias = _add_variable(graph_def, f"{HEAD}/biases/final_biases", head.bias)
    product, logits = f"{HEAD}/Wx_plus_b/MatMul", LOGITS
    add_node(graph_def, product, "MatMul", [features, weights], T="float32")
    add_node(graph_def, logits, "Add", [product, bias], T="float32")
    add_node(graph_def, tensor_name, "Softmax", [logits], T="float32")


def _add_joint(graph_def: GraphDef, base: Base) -> str:
    """Returns the name of the node that gives the vectors; adds it if it joins two bottlenecks."""
    vectors = [network.bottleneck for network in base.exported]
    if len(vectors) == 1:
        return vectors[0]
    axis = add_constant(graph_def, f"{BOTH}/axis", np.int32(1))
    count = len(vectors)
    return add_node(
        graph_def, BOTH, "ConcatV2", [*vectors, axis], T="float32", Tidx="int32", N=count
    )


def _add_hidden(
    graph_def: GraphDef,
    source: str,
    layers: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> str:
    """Appends the hidden layers after the node `source`; returns the name of the last output."""
    for number, (weights, bias) in enumerate(layers, 1):
        scope = _hidden(number)
        kernel = _add_variable(graph_def, f"{scope}/weights", weights)
        offset = _add_variable(graph_def, f"{scope}/biases", bias)
        product = add_node(graph_def, f"{scope}/MatMul", "MatMul", [source, kernel], T="float32")
        total = add_node(graph_def, f"{scope}/add", "Add", [product, offset], T="float32")
        source = add_node(graph_def, f"{scope}/Relu", "Relu", [total], T="float32")
    return source


def _hidden(number: int) -> str:
    return f"{HEAD}/hidden_{number}"


def features_node(base: Base, head: Head) -> str:
    """Returns the name of the node that feeds the softmax layer (Head.features)."""
    return f"{_hidden(len(head.hidden))}/Relu" if head.hidden else _bottleneck_input(base)


def _add_variable(graph_def: GraphDef, name: str, value: NDArray[np.float32]) -> str:
    """Adds a constant and an Identity, as a frozen variable has; returns the latter's name."""
    add_constant(graph_def, name, value)
    return add_node(graph_def, f"{name}/read", "Identity", [name], T="float32")


def describe(
    base: Base, labels: Iterable[str], tensor_name: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the description that the graph carries: how to use it, and `facts`."""
    first, *others = map(describe_network, base.exported)
    return {
        "format": FORMAT,
        "labels": list(labels),
        "image_bytes": IMAGE_BYTES,
        **first,
        **({"second": others[0]} if others else {}),
        "bottleneck_input": _bottleneck_input(base),
        "logits": LOGITS,
        "output": tensor_name,
        **facts,
    }


def describe_network(network: BaseNetwork) -> dict[str, Any]:
    """Returns the description of one network in a graph; node names are those in that graph."""
    return {
        "network": network.name,
        "network_sha1": network.file_sha1,
        "input": network.input,
        "bottleneck": network.bottleneck,
        **network.preprocessing.describe(),
    }


def metadata_bytes(
    description: Mapping[str, Any], constants: Mapping[str, NDArray[Any]] | None = None
) -> bytes:
    """Returns the node that holds the description, as bytes to append to those of a graph.

    `constants` {name: array} become further nodes; no other node reads them.

    Serialized messages may be concatenated: repeated fields, such as the nodes, add up
    (protobuf.dev, Encoding, "Last One Wins").
    """
    graph_def = GraphDef()
    text = json.dumps(description, sort_keys=True)  # ASCII: names may hold undecodable bytes
    set_constant(graph_def.node.add(name=METADATA), np.array(text.encode(), object))
    for name, value in (constants or {}).items():
        add_constant(graph_def, name, value)
    return graph_bytes(graph_def)


def labels_bytes(labels: Iterable[str]) -> bytes:
    """Returns the labels, one a line in UTF-8, in the order of the graph's output."""
    return "".join(f"{label}\n" for label in labels).encode("utf-8", "surrogateescape")
