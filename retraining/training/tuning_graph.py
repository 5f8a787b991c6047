"""Makes a frozen network and a head trainable: takes weights, gives gradients.

The network is folded first (`graphs.fold`): the statistics of its batch norms become part of its
convolutions and stay as they are. TensorFlow is then fed the weights along with the photos, so that
NumPy arrays hold the whole state of training.
"""

import difflib
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.fold import fold
from retraining.graphs.lowering import lower
from retraining.graphs.messages import TYPE_NUMBERS, GraphDef, NodeDef
from retraining.graphs.nodes import (
    GraphError,
    add_constant,
    add_node,
    constant,
    node_name,
    nodes_by_name,
    set_constant,
    shape_of,
)
from retraining.graphs.read import import_graph
from retraining.graphs.surgery import ancestors, batched_part, keep_ancestors
from retraining.graphs.tensorflow import Session, Tensor, import_tensorflow
from retraining.graphs.write import graph_bytes
from retraining.networks.network import BaseNetwork
from retraining.training.head import Head
from retraining.training.loop import TrainingError

WEIGHTS, SCALE, SHIFT = "weights", "scale", "shift"
MULTIPLYING = ("Conv2D", "DepthwiseConv2dNative", "MatMul")
BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
# {op: {number of an input that is trained where it is a constant: its kind}}
TRAINED = {
    **{op: {1: WEIGHTS} for op in MULTIPLYING},
    **{op: {1: SCALE, 2: SHIFT} for op in BATCH_NORMS},
    "BiasAdd": {1: SHIFT},
    "Mul": {0: SCALE, 1: SCALE},
    **{op: {0: SHIFT, 1: SHIFT} for op in ("Add", "AddV2", "Sub")},
}
SHARD = 8  # photos for which one thread computes gradients at once
OWN = "retraining/tuning"  # the scope of the nodes that this module adds

Weights: TypeAlias = dict[str, NDArray[np.float32]]  # {name of a constant: its value}
Size: TypeAlias = NDArray[np.float32] | np.float32  # a factor of steps, which broadcasts
Nodes: TypeAlias = Mapping[str, NodeDef]  # {name: node}


def fold_network(network: BaseNetwork) -> BaseNetwork:
    """Returns the BaseNetwork with a folded graph of all that its bottleneck depends on."""
    graph_def = keep_ancestors(network.graph_def, network.bottleneck)
    fold(graph_def, network.bottleneck)
    return _with_graph(network, graph_def)


def _with_graph(network: BaseNetwork, graph_def: GraphDef) -> BaseNetwork:
    digest = hashlib.sha1(graph_bytes(graph_def)).hexdigest()
    return replace(network, graph_def=graph_def, file_sha1=digest)


def with_weights(network: BaseNetwork, weights: Mapping[str, NDArray[np.float32]]) -> BaseNetwork:
    """Returns a folded BaseNetwork in which some constants have other values, {name: array}."""
    graph_def = type(network.graph_def)()
    graph_def.CopyFrom(network.graph_def)
    nodes = nodes_by_name(graph_def)
    for name, value in weights.items():
        set_constant(nodes[name], value)
    return _with_graph(network, graph_def)


def find_weights(network: BaseNetwork, freeze_until: str | None = None) -> dict[str, str]:
    """Finds the constants of a folded BaseNetwork to train: {name: kind}, kinds as in TRAINED.

    These are the weights, biases, scales and shifts from the first convolution on. If
    `freeze_until` names a layer, the constants on which that layer depends are left out.

    Raises:
        GraphError: there is no such layer.
        TrainingError: no constant is left to train.
    """
    part = batched_part(network.graph_def, network.input, network.bottleneck)
    nodes = nodes_by_name(part)
    kinds: dict[str, str] = {}
    others: set[str] = set()
    behind = _behind_weights(part)
    for node in part.node:
        for place, reference in enumerate(node.input):
            name = node_name(reference)
            kind = TRAINED.get(node.op, {}).get(place)
            data = [node_name(other) for other in node.input if node_name(other) != name]
            moves = node.op in MULTIPLYING or any(source in behind for source in data)
            if kind and moves and _is_trainable(nodes, name, node.op):
                kinds[name] = kind
            else:
                others.add(name)
    frozen = others | (_needed_by(part, nodes, freeze_until) if freeze_until else set())
    trainable = {name: kind for name, kind in kinds.items() if name not in frozen}
    if not trainable:
        after = f" after {freeze_until}; choose an earlier layer for `TuningOptions.freeze_until`"
        what = after if freeze_until else "; it cannot be fine-tuned"
        raise TrainingError(f"{network.name} has no weights{what}")
    return trainable


def _behind_weights(part: GraphDef) -> set[str]:
    """Returns the names of the nodes that depend on a convolution or a matrix product."""
    behind: set[str] = set()
    for node in part.node:  # frozen graphs list a node after its inputs
        if node.op in MULTIPLYING or any(node_name(name) in behind for name in node.input):
            behind.add(node.name)
    return behind


def _is_trainable(nodes: Nodes, name: str, op: str) -> bool:
    """Tells whether an input of an op is a float32 constant that can be trained.

    For arithmetic ops, it must hold one value per channel.
    """
    value = constant(nodes, name) if nodes[name].op == "Const" else None
    if value is None:
        return False
    per_channel = value.size > 1 and value.size == value.shape[-1] if value.ndim else False
    return value.dtype == np.float32 and (op in MULTIPLYING or per_channel)


def _needed_by(part: GraphDef, nodes: Nodes, layer: str) -> set[str]:
    """Returns the names of all nodes that a layer depends on, including its own."""
    own = _nodes_of(layer, nodes)
    used = [node.name for node in part.node if any(node_name(i) in own for i in node.input)]
    constants = {name for name in own if nodes[name].op == "Const"}
    users = [name for name in used if constants.intersection(map(node_name, nodes[name].input))]
    needed: set[str] = set()
    for name in {*own, *users}:
        needed |= ancestors(nodes, name)
    return needed


def _nodes_of(layer: str, nodes: Nodes) -> set[str]:
    """Returns the names of a layer's nodes: `layer` or `layer/...`, or else those like `layer_...`.

    Raises:
        GraphError: there are none; the message names similar layers, or some that exist.
    """
    layer = layer.rstrip("/")
    own = {name for name in nodes if name == layer or name.startswith(layer + "/")}
    # Conv2d_1 stands for Conv2d_1_depthwise and Conv2d_1_pointwise, but not for Conv2d_10.
    own = own or {n for n in nodes if n.startswith(layer) and not n[len(layer)].isalnum()}
    if not own:
        parts = (name.split("/") for name in nodes)
        known = {"/".join(words[:end]) for words in parts for end in range(1, len(words) + 1)}
        like = difflib.get_close_matches(layer, sorted(known), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(like)}?" if like else f"it has {_some_layers(nodes)} ..."
        raise GraphError(f"`TuningOptions.freeze_until`: the network has no layer {layer}; {hint}")
    return own


def _some_layers(nodes: Nodes) -> str:
    """Lists up to four layers with weights, evenly spread, separated by commas."""
    names = [node.name for node in nodes.values() if node.op in MULTIPLYING]
    layers = list(dict.fromkeys(name.rpartition("/")[0] or name for name in names))
    return ", ".join(layers[:: len(layers) // 4 + 1])


def stored_weights(network: BaseNetwork, names: Iterable[str]) -> Weights:
    """Returns copies of the values of some constants of a network, {name: array}."""
    nodes = nodes_by_name(network.graph_def)
    values = {name: constant(nodes, name) for name in names}
    return {name: value.copy() for name, value in values.items() if value is not None}


def random_weights(network: BaseNetwork, kinds: Mapping[str, str], seed: int) -> Weights:
    """Returns initial values, {name: array}, for the constants that `find_weights` found.

    Weights are drawn from N(0, 2 / fan-in) (He et al. 2015, arXiv:1502.01852); scales are 1 and
    shifts 0.
    """
    rng, nodes = np.random.default_rng(seed), nodes_by_name(network.graph_def)
    users = _users(network.graph_def)
    made: Weights = {}
    for name, kind in kinds.items():
        shape = shape_of(nodes[name])
        if kind == WEIGHTS:
            made[name] = _he(rng, shape, fan_in(users[name], shape))
        else:
            made[name] = np.full(shape, kind == SCALE, np.float32)
    return made


def weight_sizes(
    network: BaseNetwork, weights: Mapping[str, NDArray[np.float32]]
) -> dict[str, Size]:
    """Returns the factors of the steps of weights: {name: float32 that broadcasts to the weights}.

    Where batch norms are folded, the weights of one channel can be a thousand times those of
    another, so steps are relative to the size of the weights. For a convolution or a matrix
    product, that is the root mean square of the weights of each output; for a bias or a scale, the
    root mean square of all its values, or 1 if all are 0.
    """
    users = _users(network.graph_def)
    return {name: _size(value, users.get(name)) for name, value in weights.items()}


def _size(value: NDArray[np.float32], user: NodeDef | None) -> Size:
    """Returns the size of weights `value` that the node `user` reads; None stands for the head."""
    squares = np.square(value)
    size: Size
    if user is not None and user.op in MULTIPLYING:
        size = np.sqrt(squares.mean(summed_axes(user), keepdims=True))
    elif user is None and value.ndim == 2:
        size = np.sqrt(squares.mean(axis=0, keepdims=True))
    else:
        size = np.sqrt(squares.mean()) or np.float32(1)
    return size


def _users(graph_def: GraphDef) -> dict[str, NodeDef]:
    """Returns {name: the node that reads it as its second input}."""
    return {node_name(node.input[1]): node for node in graph_def.node if len(node.input) > 1}


def summed_axes(node: NodeDef) -> tuple[int, ...]:
    """Returns the axes of its weights over which a convolution or matrix product sums."""
    if node.op == "MatMul":
        return (1 if node.attr["transpose_b"].b else 0,)
    return (0, 1) if node.op == "DepthwiseConv2dNative" else (0, 1, 2)


def fan_in(node: NodeDef, shape: Sequence[int]) -> int:
    """Returns how many products each output of a convolution or matrix product sums."""
    return int(np.prod([shape[axis] for axis in summed_axes(node)]))


def _he(rng: np.random.Generator, shape: tuple[int, ...], inputs: int) -> NDArray[np.float32]:
    return (rng.standard_normal(shape) * math.sqrt(2 / inputs)).astype(np.float32)


def random_head(head: Head, seed: int) -> Head:
    """Returns a Head of the same shape with random weights, as `random_weights` draws them."""
    rng = np.random.default_rng([seed, 1])
    layers = [(_he(rng, w.shape, len(w)), np.zeros_like(b)) for w, b in head.layers]
    return Head(*layers[-1], tuple(layers[:-1]))


def head_weights(head: Head) -> Weights:
    """Returns the weights and biases of a Head's layers by name, to train beside the network's."""
    named: Weights = {}
    for number, (weights, bias) in enumerate(head.layers):
        named[f"{OWN}/{number}/weights"], named[f"{OWN}/{number}/bias"] = weights, bias
    return named


def head_of(weights: Mapping[str, NDArray[np.float32]]) -> Head:
    """Builds the Head from {name: array} as `head_weights` names them; ignores other names."""
    count = sum(name.startswith(OWN) for name in weights) // 2
    layers = [
        (weights[f"{OWN}/{number}/weights"], weights[f"{OWN}/{number}/bias"])
        for number in range(count)
    ]
    return Head(*layers[-1], tuple(layers[:-1]))


@dataclass(frozen=True)
class Batch:
    """Photos to compute gradients for.

    `images` are float32 [n, height, width, 3], `targets` the class indexes [n], `shares` the
    weights of the photos in the loss [n].
    """

    images: NDArray[np.float32]
    targets: NDArray[np.int32]
    shares: NDArray[np.float32]


class TuningGraph:
    """Computes gradients of a network with a head. Threads may call `gradients` concurrently.

    On a CPU, each call computes on `threads` threads, so that concurrent calls share the cores.
    """

    def __init__(
        self,
        network: BaseNetwork,
        weights: Mapping[str, NDArray[np.float32]],
        precision: str = "float32",
        threads: int = 1,
    ) -> None:
        """Builds the graph and its session.

        Args:
            network: a folded BaseNetwork.
            weights: {name: array} of its constants and the head's that are trained.
            precision: `float32` or `bfloat16`.
            threads: number of threads that compute one call.

        Raises:
            TrainingError: TensorFlow has no gradient for one of the network's ops.
        """
        tf = import_tensorflow()
        graph_def = _make_graph(network, weights, precision)
        graph = import_graph(graph_def)

        def tensor(name: str) -> Tensor:
            return graph.get_tensor_by_name(f"{name}:0")

        self._weights = {name: tensor(name) for name in weights}
        self._fed = [tensor(name) for name in (network.input, f"{OWN}/truth", f"{OWN}/shares")]
        self._probabilities = tensor(f"{OWN}/probabilities")
        self._gradients = _gradients(graph, tensor(f"{OWN}/loss"), self._weights, network)
        config = tf.ConfigProto(
            intra_op_parallelism_threads=threads, inter_op_parallelism_threads=os.cpu_count() or 1
        )
        config.use_per_session_threads = True
        self._session: Session = tf.Session(graph=graph, config=config)

    def _feed(
        self, weights: Mapping[str, NDArray[np.float32]], batch: Batch
    ) -> dict[Tensor, NDArray[Any]]:
        values = (batch.images, batch.targets, batch.shares)
        fed: dict[Tensor, NDArray[Any]]
        fed = {self._weights[name]: value for name, value in weights.items()}
        return fed | dict(zip(self._fed, values, strict=True))

    def gradients(
        self, weights: Mapping[str, NDArray[np.float32]], batch: Batch
    ) -> tuple[NDArray[np.float32], Weights]:
        """Returns (probabilities, gradients of `sum(shares * cross entropy)`).

        Probabilities are float32 [n, classes]; gradients have the names and shapes of `weights`,
        which must have the names that the graph was built with.
        """
        fetched = [self._probabilities, self._gradients]
        probabilities, gradients = self._session.run(fetched, self._feed(weights, batch))
        return probabilities, gradients

    def probabilities(
        self, weights: Mapping[str, NDArray[np.float32]], images: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Returns probabilities float32 [n, classes] for images float32 [n, height, width, 3]."""
        fed = {self._weights[name]: value for name, value in weights.items()}
        fed |= {self._fed[0]: images}
        probabilities: NDArray[np.float32] = self._session.run(self._probabilities, fed)
        return probabilities


def _make_graph(
    network: BaseNetwork, weights: Mapping[str, NDArray[np.float32]], precision: str
) -> GraphDef:
    part = batched_part(network.graph_def, network.input, network.bottleneck)
    nodes = nodes_by_name(part)
    for name in weights:
        if name in nodes:
            _make_placeholder(nodes[name], weights[name].shape)
    if precision == "bfloat16":  # the fed weights stay float32 and are cast on their way
        lower(part)
    logits = _add_head(part, network.bottleneck, weights)
    add_node(part, f"{OWN}/probabilities", "Softmax", [logits], T="float32")
    targets = add_node(part, f"{OWN}/truth", "Placeholder", dtype="int32", shape=(-1,))
    shares = add_node(part, f"{OWN}/shares", "Placeholder", dtype="float32", shape=(-1,))
    losses = f"{OWN}/losses"
    op = "SparseSoftmaxCrossEntropyWithLogits"
    add_node(part, losses, op, [logits, targets], T="float32", Tlabels="int32")
    add_node(part, f"{OWN}/weighted", "Mul", [losses, shares], T="float32")
    axis = add_constant(part, f"{OWN}/axis", np.int32(0))
    add_node(part, f"{OWN}/loss", "Sum", [f"{OWN}/weighted", axis], T="float32", Tidx="int32")
    return part


def _make_placeholder(node: NodeDef, shape: Sequence[int]) -> None:
    node.op = "Placeholder"
    node.attr.clear()
    node.attr["dtype"].type = TYPE_NUMBERS["float32"]
    for size in shape:
        node.attr["shape"].shape.dim.add(size=size)


def _add_head(part: GraphDef, source: str, weights: Mapping[str, NDArray[np.float32]]) -> str:
    """Appends the head's layers, with placeholders for weights; returns the logits' name."""
    layers = len(head_of(weights).layers)
    for number in range(layers):
        place = f"{OWN}/{number}"
        for name in (f"{place}/weights", f"{place}/bias"):
            _make_placeholder(part.node.add(name=name), weights[name].shape)
        add_node(part, f"{place}/product", "MatMul", [source, f"{place}/weights"], T="float32")
        add_node(
            part, f"{place}/sum", "BiasAdd", [f"{place}/product", f"{place}/bias"], T="float32"
        )
        source = f"{place}/sum"
        if number < layers - 1:
            source = add_node(part, f"{place}/relu", "Relu", [source], T="float32")
    return source


def _gradients(
    graph: Any, loss: Tensor, weights: Mapping[str, Tensor], network: BaseNetwork
) -> dict[str, Tensor]:
    """Returns the tensors of the loss's gradients, {name: tensor}.

    Raises:
        TrainingError: a weight has no gradient.
    """
    try:
        with graph.as_default():
            gradients = import_tensorflow().gradients(loss, list(weights.values()))
    except LookupError as error:
        raise TrainingError(f"{network.name} cannot be fine-tuned: {error}") from error
    by_name: dict[str, Any] = dict(zip(weights, gradients, strict=True))
    if lost := [name for name, gradient in by_name.items() if gradient is None]:
        raise TrainingError(f"{network.name} cannot be fine-tuned: no gradient reaches {lost[0]}")
    return by_name
