"""A frozen network and a head as something to be trained: weights in, gradients out.

The network is folded first (`graph.fold`), so that the statistics of its batch norms are part of
its convolutions and stay as they are. Its weights are then fed like the photos are, so that all of
the state of training is in NumPy arrays.
"""

import difflib
import hashlib
import os
from dataclasses import dataclass, replace

import numpy as np

from retraining.graphs.fold import fold
from retraining.graphs.nodes import (
    GraphError,
    add_constant,
    add_node,
    constant,
    node_name,
    nodes_by_name,
    set_constant,
)
from retraining.graphs.precision import lower
from retraining.graphs.read import import_graph
from retraining.graphs.surgery import ancestors, batched_part, keep_ancestors
from retraining.graphs.tensorflow import import_tensorflow
from retraining.graphs.write import graph_bytes
from retraining.training.head import Head
from retraining.training.loop import TrainingError

WEIGHTS, SCALE, SHIFT = "weights", "scale", "shift"
MULTIPLYING = ("Conv2D", "DepthwiseConv2dNative", "MatMul")
BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
TRAINED = {  # of these ops, the inputs that are trained where they are constants
    **{op: {1: WEIGHTS} for op in MULTIPLYING},
    **{op: {1: SCALE, 2: SHIFT} for op in BATCH_NORMS},
    "BiasAdd": {1: SHIFT},
    "Mul": {0: SCALE, 1: SCALE},
    **{op: {0: SHIFT, 1: SHIFT} for op in ("Add", "AddV2", "Sub")},
}
SHARD = 8  # photos that one thread computes gradients of at once
OWN = "retraining/tuning"  # where our nodes are


def fold_network(network):
    """The BaseNetwork with a folded graph, from all that it is fed to its bottleneck."""
    graph_def = keep_ancestors(network.graph_def, network.bottleneck)
    fold(graph_def, network.bottleneck)
    return _with_graph(network, graph_def)


def _with_graph(network, graph_def):
    digest = hashlib.sha1(graph_bytes(graph_def)).hexdigest()
    return replace(network, graph_def=graph_def, file_sha1=digest)


def with_weights(network, weights):
    """A folded BaseNetwork with other values, {name: array}, of some of its constants."""
    graph_def = type(network.graph_def)()
    graph_def.CopyFrom(network.graph_def)
    nodes = nodes_by_name(graph_def)
    for name, value in weights.items():
        set_constant(nodes[name], value)
    return _with_graph(network, graph_def)


# -- what is trained -------------------------------------------------------------------------


def find_weights(network, freeze_until=None):
    """{name: kind} of a folded BaseNetwork's constants that are trained, kind as in TRAINED.

    Those are the weights, biases, scales and shifts from its first convolution on; where
    `freeze_until` names a layer, only those on which that layer does not depend.

    Raises:
        GraphError: there is no such layer.
        TrainingError: nothing is left to be trained.
    """
    part = batched_part(network.graph_def, network.input, network.bottleneck)
    nodes = nodes_by_name(part)
    kinds, others = {}, set()
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
    found = {name: kind for name, kind in kinds.items() if name not in frozen}
    if not found:
        after = f" after {freeze_until}; choose an earlier layer for --freeze_until"
        what = after if freeze_until else "; it cannot be fine-tuned"
        raise TrainingError(f"{network.name} has no weights{what}")
    return found


def _behind_weights(part):
    """The names of the nodes that depend on a convolution or a matrix product."""
    behind = set()
    for node in part.node:  # frozen graphs list a node after its inputs
        if node.op in MULTIPLYING or any(node_name(name) in behind for name in node.input):
            behind.add(node.name)
    return behind


def _is_trainable(nodes, name, op):
    """Whether a node is a float32 constant: of the arithmetic ops, one value per channel."""
    if nodes[name].op != "Const":
        return False
    value = constant(nodes, name)
    per_channel = value.size > 1 and value.size == value.shape[-1] if value.ndim else False
    return value.dtype == np.float32 and (op in MULTIPLYING or per_channel)


def _needed_by(part, nodes, layer):
    """The names of all nodes that a layer depends on, its own among them."""
    own = _nodes_of(layer, nodes)
    used = [node.name for node in part.node if any(node_name(i) in own for i in node.input)]
    constants = {name for name in own if nodes[name].op == "Const"}
    users = [name for name in used if constants.intersection(map(node_name, nodes[name].input))]
    needed = set()
    for name in {*own, *users}:
        needed |= ancestors(nodes, name)
    return needed


def _nodes_of(layer, nodes):
    """The names of a layer's nodes: `layer` or `layer/...`, or else `layer_...` and the like.

    Raises:
        GraphError: there are none; names what is most alike, or some that there are.
    """
    layer = layer.rstrip("/")
    own = {name for name in nodes if name == layer or name.startswith(layer + "/")}
    # Of Conv2d_1, Conv2d_1_depthwise and Conv2d_1_pointwise, but not Conv2d_10.
    own = own or {n for n in nodes if n.startswith(layer) and not n[len(layer)].isalnum()}
    if not own:
        parts = (name.split("/") for name in nodes)
        known = {"/".join(words[:end]) for words in parts for end in range(1, len(words) + 1)}
        like = difflib.get_close_matches(layer, sorted(known), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(like)}?" if like else f"it has {_some_layers(nodes)} ..."
        raise GraphError(f"--freeze_until: the network has no layer {layer}; {hint}")
    return own


def _some_layers(nodes):
    """Up to four layers with weights, from the first on, with commas between."""
    names = [node.name for node in nodes.values() if node.op in MULTIPLYING]
    layers = list(dict.fromkeys(name.rpartition("/")[0] or name for name in names))
    return ", ".join(layers[:: len(layers) // 4 + 1])


def random_weights(network, kinds, seed):
    """{name: array} of first values for weights that `find_weights` found.

    Weights from N(0, 2 / fan-in) (He et al. 2015, arXiv:1502.01852), scales 1, shifts 0.
    """
    rng, nodes = np.random.default_rng(seed), nodes_by_name(network.graph_def)
    users = _users(network.graph_def)
    made = {}
    for name, kind in kinds.items():
        shape = constant(nodes, name).shape
        if kind == WEIGHTS:
            made[name] = _he(rng, shape, fan_in(users[name], shape))
        else:
            made[name] = np.full(shape, kind == SCALE, np.float32)
    return made


def weight_sizes(network, weights):
    """{name: float32 array that broadcasts to it}: by how much the steps of weights are multiplied.

    The root mean square of a convolution's or matrix product's weights for each of its outputs, or
    of all values of a bias or scale: where batch norms are folded, the weights of one channel can
    be a thousand times those of another. 1 for biases of zeros.
    """
    users = _users(network.graph_def)
    return {name: _size(value, users.get(name)) for name, value in weights.items()}


def _size(value, user):
    """`weight_sizes` of the weights `value` of a node `user`; None is one of the head's."""
    if user is not None and user.op in MULTIPLYING:
        return np.sqrt(np.square(value).mean(summed_axes(user), keepdims=True))
    if user is None and value.ndim == 2:
        return np.sqrt(np.square(value).mean(axis=0, keepdims=True))
    return np.sqrt(np.square(value).mean()) or np.float32(1)


def _users(graph_def):
    """{name: node} of the nodes that have something as their second input."""
    return {node_name(node.input[1]): node for node in graph_def.node if len(node.input) > 1}


def summed_axes(node):
    """The axes of its weights over which a convolution or matrix product sums up."""
    if node.op == "MatMul":
        return (1 if node.attr["transpose_b"].b else 0,)
    return (0, 1) if node.op == "DepthwiseConv2dNative" else (0, 1, 2)


def fan_in(node, shape):
    """How many values each output of a convolution or matrix product sums up."""
    return int(np.prod([shape[axis] for axis in summed_axes(node)]))


def _he(rng, shape, inputs):
    return (rng.standard_normal(shape) * np.sqrt(2 / inputs)).astype(np.float32)


def random_head(head, seed):
    """A Head of the same shape with such weights."""
    rng = np.random.default_rng([seed, 1])
    layers = [(_he(rng, w.shape, len(w)), np.zeros_like(b)) for w, b in head.layers]
    return Head(*layers[-1], tuple(layers[:-1]))


def head_weights(head):
    """{name: array} of a Head's layers, to be trained beside the network's."""
    named = {}
    for number, (weights, bias) in enumerate(head.layers):
        named[f"{OWN}/{number}/weights"], named[f"{OWN}/{number}/bias"] = weights, bias
    return named


def head_of(weights):
    """The Head in {name: array}; other names are passed over."""
    count = sum(name.startswith(OWN) for name in weights) // 2
    layers = [
        (weights[f"{OWN}/{number}/weights"], weights[f"{OWN}/{number}/bias"])
        for number in range(count)
    ]
    return Head(*layers[-1], tuple(layers[:-1]))


# -- the graph -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Some photos: float32 [n, height, width, 3], their class numbers and how much each counts in
    the loss, [n] each."""

    images: np.ndarray
    truth: np.ndarray
    shares: np.ndarray


class TuningGraph:
    """Gives gradients of a network with a head. `gradients` may be called from threads at once.

    On a processor a call computes on one thread, so that several side by side use all of them.
    """

    def __init__(self, network, weights, precision="float32", threads=1):
        """A folded BaseNetwork; `weights` {name: array} are those of it and of the head that are
        trained. `threads` are those of one call.

        Raises:
            TrainingError: TensorFlow knows no gradient of one of its ops.
        """
        tf = import_tensorflow()
        graph_def = _make_graph(network, weights, precision)
        graph = import_graph(graph_def)

        def tensor(name):
            return graph.get_tensor_by_name(f"{name}:0")

        self._weights = {name: tensor(name) for name in weights}
        self._fed = [tensor(name) for name in (network.input, f"{OWN}/truth", f"{OWN}/shares")]
        self._probabilities = tensor(f"{OWN}/probabilities")
        self._slopes = _slopes(graph, tensor(f"{OWN}/loss"), self._weights, network)
        config = tf.ConfigProto(
            intra_op_parallelism_threads=threads, inter_op_parallelism_threads=os.cpu_count() or 1
        )
        config.use_per_session_threads = True
        self._session = tf.Session(graph=graph, config=config)

    def _feed(self, weights, batch):
        values = (batch.images, batch.truth, batch.shares)
        fed = {self._weights[name]: value for name, value in weights.items()}
        return fed | dict(zip(self._fed, values, strict=True))

    def gradients(self, weights, batch):
        """(probabilities float32 [n, classes], {name: gradient}) of `sum(shares * cross entropy)`.

        `weights` {name: array} are those named when the graph was made.
        """
        fetched = [self._probabilities, self._slopes]
        return tuple(self._session.run(fetched, self._feed(weights, batch)))

    def probabilities(self, weights, images):
        """float32 [n, classes] for images float32 [n, height, width, 3]."""
        fed = {self._weights[name]: value for name, value in weights.items()}
        return self._session.run(self._probabilities, fed | {self._fed[0]: images})


def _make_graph(network, weights, precision):
    part = batched_part(network.graph_def, network.input, network.bottleneck)
    nodes = nodes_by_name(part)
    for name in weights:
        if name in nodes:
            _make_placeholder(nodes[name], weights[name].shape)
    if precision == "bfloat16":  # the fed weights stay float32 and are cast on their way
        lower(part)
    logits = _add_head(part, network.bottleneck, weights)
    add_node(part, f"{OWN}/probabilities", "Softmax", [logits], T="float32")
    truth = add_node(part, f"{OWN}/truth", "Placeholder", dtype="int32", shape=(-1,))
    shares = add_node(part, f"{OWN}/shares", "Placeholder", dtype="float32", shape=(-1,))
    losses = f"{OWN}/losses"
    op = "SparseSoftmaxCrossEntropyWithLogits"
    add_node(part, losses, op, [logits, truth], T="float32", Tlabels="int32")
    add_node(part, f"{OWN}/weighted", "Mul", [losses, shares], T="float32")
    axis = add_constant(part, f"{OWN}/axis", np.int32(0))
    add_node(part, f"{OWN}/loss", "Sum", [f"{OWN}/weighted", axis], T="float32", Tidx="int32")
    return part


def _make_placeholder(node, shape):
    node.op = "Placeholder"
    node.attr.clear()
    node.attr["dtype"].type = import_tensorflow().dtypes.float32.as_datatype_enum
    for size in shape:
        node.attr["shape"].shape.dim.add(size=size)


def _add_head(part, source, weights):
    """Appends the layers of the head, fed like the other weights; returns the logits' name."""
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


def _slopes(graph, loss, weights, network):
    """{name: tensor} of the loss's gradients."""
    try:
        with graph.as_default():
            slopes = import_tensorflow().gradients(loss, list(weights.values()))
    except LookupError as error:
        raise TrainingError(f"{network.name} cannot be fine-tuned: {error}") from error
    if lost := [name for name, slope in zip(weights, slopes, strict=True) if slope is None]:
        raise TrainingError(f"{network.name} cannot be fine-tuned: no gradient reaches {lost[0]}")
    return dict(zip(weights, slopes, strict=True))
