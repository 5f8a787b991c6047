"""Base graph + head -> one frozen graph and a labels file; checks what it wrote."""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retraining.bottlenecks.extract import Job, beside
from retraining.errors import RetrainingError
from retraining.graphs.graph import (
    METADATA,
    BytesRunner,
    Runner,
    Running,
    keep_ancestors,
    read_graph,
    read_metadata,
    same_part,
    widen_batch,
)
from retraining.graphs.nodes import (
    ANY_BATCH,
    IMAGE_BYTES,
    add_any_batch,
    add_constant,
    add_front_end,
    add_node,
    nodes_by_name,
    set_constant,
)
from retraining.graphs.quiet_tensorflow import import_tensorflow
from retraining.metrics import evaluate
from retraining.networks.pair import add_second, prefixed_graph
from retraining.photos.images import ImageError, is_plain_jpeg, read_file
from retraining.system.files import temporary_name, write_files

FORMAT = 1  # of the metadata
MOST_TESTED = 200  # photos that are run through the exported file
SAME_TOP = 0.99  # share of them whose first label must be that of the head
SAME_PROBABILITY = 0.02  # largest difference of a probability that is allowed
SAME_IN_BFLOAT16 = 0.1  # the same between a float32 graph and its run in bfloat16


class ExportError(RetrainingError):
    """A graph could not be written, or does not answer as the trained head does."""


def build_graph(base, head, tensor_name):
    """The retrained GraphDef: the base network's own nodes and the classic's head.

    Of a pair.NetworkPair, the second network's nodes are prefixed and read the first's decoder; the
    head reads both vectors side by side, and a float batch has to be fed to both inputs.

    `DecodeJpeg/contents:0` takes one image's bytes and `base.input:0` a float32 batch of any size;
    `tensor_name:0` gives float32 [n, classes]. Node names are those of the classic retrain.py.
    The base's nodes stay as they are but for these, which bound the graph to one image: reshape
    constants [1, n] become [-1, n], `ResizeBilinear` takes its input through a node of unknown
    batch size, and a network that had no decoder gets one before its input placeholder.

    Raises:
        ExportError: `tensor_name` is the name of a node of the base network.
    """
    first, *others = base.networks
    graph_def = _from_bytes(first)
    for second in others:
        add_second(graph_def, prefixed_graph(_from_bytes(second)))
    _add_head(graph_def, base, head, tensor_name)
    return graph_def


def _from_bytes(base):
    """A GraphDef of one base network, from an image's bytes or a float batch to its vector."""
    graph_def = keep_ancestors(base.graph_def, base.bottleneck)
    widen_batch(graph_def)
    if IMAGE_BYTES not in nodes_by_name(graph_def):
        _add_decoder(graph_def, base)
    elif ANY_BATCH not in nodes_by_name(graph_def):
        _loosen_batch(graph_def)
    return graph_def


def _loosen_batch(graph_def):
    resize = nodes_by_name(graph_def)["ResizeBilinear"]
    add_any_batch(graph_def, resize.input[0])
    resize.input[0] = ANY_BATCH


def _add_decoder(graph_def, base):
    """The 2015 graph's front end before a network whose input is a Placeholder.

    The placeholder becomes one with a default, under its own name, type and shape.
    """
    about = base.preprocessing
    pixels = add_front_end(graph_def, about.size, about.mean, about.std)
    placeholder = nodes_by_name(graph_def)[base.input]
    placeholder.op = "PlaceholderWithDefault"
    placeholder.input.append(pixels)


HEAD = "final_training_ops"  # where the classic put the nodes of its layer
LOGITS = f"{HEAD}/Wx_plus_b/add"
OWN_NODES = "retraining/"  # where ours are that are not the classic's
BOTH = f"{OWN_NODES}both_vectors"  # of two networks


def _bottleneck_input(base):
    """The name of the node that takes vectors; as TensorFlow made it unique in the classic."""
    first = base.networks[0]
    taken = any(name.split("/")[0] == "input" for name in nodes_by_name(first.graph_def))
    return f"{'input_1' if taken else 'input'}/BottleneckInputPlaceholder"


def _add_head(graph_def, base, head, tensor_name):
    """The nodes that the classic's `add_final_training_ops` left in its frozen graph.

    Hidden layers, which it had not, come before them, as `final_training_ops/hidden_1` and so on.
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
    if tensor_name.startswith(OWN_NODES) or tensor_name in nodes_by_name(graph_def):
        raise ExportError(
            f"--final_tensor_name {tensor_name} is already the name of a node; choose another"
        )
    add_node(graph_def, tensor_name, "Softmax", [logits], T="float32")


def _add_joint(graph_def, base):
    """The name of the node that gives the vectors: the bottleneck, or that of both side by side."""
    vectors = [network.bottleneck for network in base.exported]
    if len(vectors) == 1:
        return vectors[0]
    axis = add_constant(graph_def, f"{BOTH}/axis", np.int32(1))
    count = len(vectors)
    return add_node(
        graph_def, BOTH, "ConcatV2", [*vectors, axis], T="float32", Tidx="int32", N=count
    )


def _add_hidden(graph_def, source, layers):
    """Appends the hidden layers behind the node `source`; returns the last one's output."""
    for number, (weights, bias) in enumerate(layers, 1):
        scope = _hidden(number)
        weights = _add_variable(graph_def, f"{scope}/weights", weights)
        bias = _add_variable(graph_def, f"{scope}/biases", bias)
        product = add_node(graph_def, f"{scope}/MatMul", "MatMul", [source, weights], T="float32")
        total = add_node(graph_def, f"{scope}/add", "Add", [product, bias], T="float32")
        source = add_node(graph_def, f"{scope}/Relu", "Relu", [total], T="float32")
    return source


def _hidden(number):
    return f"{HEAD}/hidden_{number}"


def features_node(base, head):
    """The name of the node that gives what the softmax layer is fed (train.Head.features)."""
    return f"{_hidden(len(head.hidden))}/Relu" if head.hidden else _bottleneck_input(base)


def _add_variable(graph_def, name, value):
    """A constant read through an Identity, as a frozen variable is."""
    add_constant(graph_def, name, value)
    return add_node(graph_def, f"{name}/read", "Identity", [name], T="float32")


def describe(base, labels, tensor_name, facts):
    """What the graph says of itself (dict): how to use it, and `facts`."""
    first, *others = map(_describe_network, base.exported)
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


def _describe_network(network):
    """What a graph says of one network in it (dict); the names are those of its nodes there."""
    about = network.preprocessing
    return {
        "network": network.name,
        "network_sha1": network.file_sha1,
        "input": network.input,
        "bottleneck": network.bottleneck,
        "size": list(about.size),
        "mean": about.mean,
        "std": about.std,
    }


def graph_bytes(graph_def):
    """The file's content; the same graph always gives the same bytes."""
    return graph_def.SerializeToString(deterministic=True)


def metadata_bytes(description, constants=None):
    """The node that holds the description, as bytes to append to those of a graph.

    `constants` {name: array} become nodes beside it, on which nothing depends.

    Serialized messages may be concatenated: what is repeated, as nodes are, adds up
    (protobuf.dev, Encoding, "Last One Wins").
    """
    graph_def = import_tensorflow().GraphDef()
    text = json.dumps(description, sort_keys=True)  # ASCII: names may hold undecodable bytes
    set_constant(graph_def.node.add(name=METADATA), np.array(text.encode(), object))
    for name, value in (constants or {}).items():
        add_constant(graph_def, name, value)
    return graph_bytes(graph_def)


def labels_bytes(labels):
    """One label a line, UTF-8, in the order of the graph's output."""
    return "".join(f"{label}\n" for label in labels).encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class HeldOutResult:
    """How the exported file did on held-out photos."""

    paths: list[str]
    keys: list[str]  # of the photos, as in dataset.Example
    truth: np.ndarray  # int [n]
    probabilities: np.ndarray  # float32 [n, classes]
    vectors: np.ndarray  # float32 [n, width], as the network gave them just now

    @property
    def correct(self):
        """Number of photos whose first label is the true one."""
        return int((self.probabilities.argmax(axis=1) == self.truth).sum())

    @property
    def total(self):
        """Number of photos tested."""
        return len(self.truth)

    @property
    def accuracy(self):
        """Share of correct photos, NaN without photos."""
        return evaluate.accuracy(self.probabilities, self.truth)


@contextlib.contextmanager
def candidate(path, graph, description):
    """Writes a graph's bytes and its description's beside `path`, to be tested.

    Yields that name and removes it after.

    Raises:
        ExportError: it cannot be written.
    """
    name = temporary_name(Path(os.path.realpath(path)), "candidate")
    write_files({name: graph + description})  # joined only while they are written
    try:
        yield name
    finally:
        name.unlink(missing_ok=True)


def test_exported(path, examples, extractor, progress):
    """Reads an exported graph back and runs it from held-out photos' files: a HeldOutResult.

    The photos go through the extractor's session of the base network (starting another one takes
    seconds), which counts since the file's own nodes up to the bottleneck are shown to be the very
    same, and through the head as read from the file. One photo runs through the whole file,
    untouched, as in a program of the classic's time.

    Raises:
        ExportError: the file is not as it should be. A photo that cannot be read is left out.
    """
    # What the base network holds has been judged when it was read, and nothing is added to it.
    graph_def = read_graph(path, allow_unsafe_ops=True)
    about = read_metadata(graph_def)
    check_base(graph_def, about, extractor.network)
    untouched = beside(run_untouched, graph_def, about["output"], examples)
    answers = progress(extractor.run([Job(e) for e in examples]), total=len(examples))
    examples, vectors = collect(answers, examples, extractor.network.width)
    head = Runner(graph_def, about["bottleneck_input"], about["output"], Running(optimize=False))
    labels = list(about["labels"])
    truth = np.array([labels.index(example.label) for example in examples], int)
    paths, keys = [e.path for e in examples], [e.key for e in examples]
    result = HeldOutResult(paths, keys, truth, head.run(vectors), vectors)
    check_untouched(result, untouched.result(), extractor.settings.precision)
    return result


def check_base(graph_def, about, base):
    """Compares what an exported graph does before its head with the base network, or with both.

    Raises:
        ExportError: a node, a weight or the preprocessing is another.
    """
    descriptions = [about, *([about["second"]] if about.get("second") else [])]
    if len(descriptions) != len(base.exported) or not all(
        _holds(graph_def, *each) for each in zip(descriptions, base.exported, strict=True)
    ):
        raise ExportError(
            "the written file does not hold the base network as it was read; nothing was replaced"
        )


def _holds(graph_def, about, network):
    """Whether a graph has a network's very nodes, and describes them so."""
    ends = network.input, network.bottleneck
    expected = _describe_network(network)
    same = all(about.get(name) == value for name, value in expected.items())
    return same and same_part(graph_def, network.graph_def, *ends)


def collect(answers, examples, width):
    """(the examples that could be read, their vectors float32 [n, width])."""
    kept, vectors = [], np.empty((len(examples), width), np.float32)
    for example, (_, answer) in zip(examples, answers, strict=True):
        if not isinstance(answer, ImageError):
            vectors[len(kept)] = answer[0]
            kept.append(example)
    return kept, vectors[: len(kept)]


def run_untouched(graph_def, output, examples):
    """(path, float32 [classes]) of the first JPEG that the graph's own decoder reads, or None.

    One that is to be turned is passed over: that decoder knows nothing of orientation.
    """
    runner = BytesRunner(graph_def, output)
    for example in examples:
        with contextlib.suppress(ImageError):  # as it does not read CMYK
            content = read_file(example.path)
            if is_plain_jpeg(content):
                return example.path, runner.run(content)[0]
    return None


def check_untouched(result, untouched, precision):
    """Compares the answers with that of `run_untouched`.

    Raises:
        ExportError: they differ by more than arithmetic explains.
    """
    if untouched is None or untouched[0] not in result.paths:  # or it has vanished meanwhile
        return
    path, probabilities = untouched
    difference = np.abs(result.probabilities[result.paths.index(path)] - probabilities).max()
    if not difference <= (SAME_PROBABILITY if precision == "float32" else SAME_IN_BFLOAT16):
        raise ExportError(
            f"the exported graph answers differently from a file's bytes than it does here "
            f"({path}, by {difference:.3f}); nothing was replaced"
        )


def check_agreement(result, expected):
    """Compares the file's answers with the head's own, float32 [n, classes].

    Raises:
        ExportError: they differ by more than arithmetic explains.
    """
    if result.total == 0:
        return
    same, difference = evaluate.agreement(result.probabilities, expected)
    if not (same >= SAME_TOP and difference <= SAME_PROBABILITY):  # NaN agrees with nothing
        raise ExportError(
            f"the exported graph does not answer as the trained layer does: the same first label "
            f"for {same:.1%} of {result.total} photos, probabilities up to {difference:.3f} apart; "
            f"nothing was replaced. Try --precision float32, or an empty --bottleneck_dir"
        )


def check_accuracy(result, least):
    """Compares the accuracy with the least that is asked for; None asks for nothing.

    Raises:
        ExportError: it is lower, or unknown.
    """
    if least is not None and not result.accuracy >= least:
        raise ExportError(
            f"the test accuracy {result.accuracy:.4f} ({result.correct} of {result.total} photos) "
            f"is below --assert_accuracy_at_least {least}; nothing was replaced"
        )


def describe_result(result):
    """What a graph says of its test (dict). `held_out` has a row per photo: its key, the number of
    its likeliest label, that label's probability."""
    rows = zip(result.keys, result.probabilities, strict=True)
    return {
        "test_photos": result.total,
        "test_correct": result.correct,
        "held_out": [[key, int(p.argmax()), round(float(p.max()), 4)] for key, p in rows],
    }
