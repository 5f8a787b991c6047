"""Base graph + head -> one frozen graph and a labels file; checks what it wrote."""

import contextlib
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retraining import RetrainingError, evaluate
from retraining.classify import load_classifier
from retraining.graph import (
    METADATA,
    BytesRunner,
    add_node,
    keep_ancestors,
    nodes_by_name,
    read_graph,
    read_metadata,
    set_constant,
    widen_batch,
)
from retraining.images import JPEG_SIGNATURE, ImageError, read_file
from retraining.networks import IMAGE_BYTES
from retraining.quiet_tensorflow import import_tensorflow

FORMAT = 1  # of the metadata
ANY_BATCH = "ExpandDims/any_batch"  # the node that hides that a decoded image is a batch of one
MOST_TESTED = 200  # photos that are run through the exported file
SAME_TOP = 0.99  # share of them whose first label must be that of the head
SAME_PROBABILITY = 0.02  # largest difference of a probability that is allowed


class ExportError(RetrainingError):
    """A graph could not be written, or does not answer as the trained head does."""


def build_graph(base, head, labels, tensor_name, facts):
    """The retrained GraphDef: the base network's own nodes, the classic's head, a description.

    `DecodeJpeg/contents:0` takes one image's bytes and `base.input:0` a float32 batch of any size;
    `tensor_name:0` gives float32 [n, classes]. Node names are those of the classic retrain.py.
    The base's nodes stay as they are but for these, which bound the graph to one image: reshape
    constants [1, n] become [-1, n], `ResizeBilinear` takes its input through a node of unknown
    batch size, and a network that had no decoder gets one before its input placeholder.

    Raises:
        ExportError: `tensor_name` is the name of a node of the base network.
    """
    graph_def = keep_ancestors(base.graph_def, [base.bottleneck])
    widen_batch(graph_def)
    if IMAGE_BYTES not in nodes_by_name(graph_def):
        _add_decoder(graph_def, base)
    elif ANY_BATCH not in nodes_by_name(graph_def):
        _loosen_batch(graph_def)
    if tensor_name in nodes_by_name(graph_def):
        raise ExportError(
            f"--final_tensor_name {tensor_name} is already a node of {base.name}; choose another"
        )
    _add_head(graph_def, base, head, tensor_name)
    set_metadata(graph_def, _description(base, labels, tensor_name, facts))
    return graph_def


def _loosen_batch(graph_def):
    """Gives `ResizeBilinear` an input of unknown batch size.

    `ExpandDims` makes the batch size of everything up to `Mul:0` a known 1, and TensorFlow's
    Python refuses to feed `Mul:0` with another. A PlaceholderWithDefault hides that 1.
    """
    resize = nodes_by_name(graph_def)["ResizeBilinear"]
    _any_batch(graph_def, resize.input[0])
    resize.input[0] = ANY_BATCH


def _any_batch(graph_def, source):
    float32 = import_tensorflow().float32
    shape = [-1, -1, -1, 3]
    add_node(
        graph_def,
        ANY_BATCH,
        "PlaceholderWithDefault",
        [source],
        dtype=float32,
        shape=shape,
    )


def _add_decoder(graph_def, base):
    """The 2015 graph's front end before a network whose input is a Placeholder.

    The placeholder becomes one with a default, under its own name, type and shape.
    """
    tf = import_tensorflow()
    about = base.preprocessing
    constants = {
        "ExpandDims/dim": np.int32(0),
        "ResizeBilinear/size": np.array(about.size, np.int32),
        "Sub/y": np.float32(about.mean),
        "Mul/y": np.float32(1 / about.std),
    }
    for name, value in constants.items():
        set_constant(graph_def.node.add(name=name), value)
    add_node(graph_def, IMAGE_BYTES, "Placeholder", dtype=tf.string, shape=[])
    decode = add_node(graph_def, "DecodeJpeg", "DecodeJpeg", [IMAGE_BYTES])
    decode.attr["channels"].i = 3
    add_node(graph_def, "Cast", "Cast", ["DecodeJpeg"], SrcT=tf.uint8, DstT=tf.float32)
    add_node(graph_def, "ExpandDims", "ExpandDims", ["Cast", "ExpandDims/dim"], T=tf.float32)
    _any_batch(graph_def, "ExpandDims")
    size = [ANY_BATCH, "ResizeBilinear/size"]
    add_node(graph_def, "ResizeBilinear", "ResizeBilinear", size, T=tf.float32)
    add_node(graph_def, "Sub", "Sub", ["ResizeBilinear", "Sub/y"], T=tf.float32)
    add_node(graph_def, "Mul", "Mul", ["Sub", "Mul/y"], T=tf.float32)
    placeholder = nodes_by_name(graph_def)[base.input]
    placeholder.op = "PlaceholderWithDefault"
    placeholder.input.append("Mul")


def _add_head(graph_def, base, head, tensor_name):
    """The nodes that the classic's `add_final_training_ops` left in its frozen graph."""
    float32 = import_tensorflow().float32
    taken = any(name.split("/")[0] == "input" for name in nodes_by_name(graph_def))
    bottleneck = f"{'input_1' if taken else 'input'}/BottleneckInputPlaceholder"
    weights, bias = (
        "final_training_ops/weights/final_weights",
        "final_training_ops/biases/final_biases",
    )
    product, logits = "final_training_ops/Wx_plus_b/MatMul", "final_training_ops/Wx_plus_b/add"
    add_node(
        graph_def,
        bottleneck,
        "PlaceholderWithDefault",
        [base.bottleneck],
        dtype=float32,
        shape=[-1, base.width],
    )
    for name, value in ((weights, head.weights), (bias, head.bias)):
        set_constant(graph_def.node.add(name=name), value)
        add_node(graph_def, f"{name}/read", "Identity", [name], T=float32)
    add_node(graph_def, product, "MatMul", [bottleneck, f"{weights}/read"], T=float32)
    add_node(graph_def, logits, "Add", [product, f"{bias}/read"], T=float32)
    add_node(graph_def, tensor_name, "Softmax", [logits], T=float32)


def _description(base, labels, tensor_name, facts):
    about = base.preprocessing
    return {
        "format": FORMAT,
        "network": base.name,
        "network_sha1": base.file_sha1,
        "labels": list(labels),
        "image_bytes": IMAGE_BYTES,
        "input": base.input,
        "bottleneck": base.bottleneck,
        "output": tensor_name,
        "size": list(about.size),
        "mean": about.mean,
        "std": about.std,
        **facts,
    }


def set_metadata(graph_def, description):
    """Puts the description (a dict) into the graph's metadata node, in place."""
    node = nodes_by_name(graph_def).get(METADATA) or graph_def.node.add(name=METADATA)
    text = json.dumps(description, ensure_ascii=False, sort_keys=True)
    set_constant(node, np.array(text.encode(), object))


def write_file(path, content):
    """Writes bytes under a temporary name, flushes them to disk, then renames.

    Raises:
        ExportError: the folder cannot be made or written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from error


def write_graph(path, graph_def):
    """Writes a GraphDef as `write_file`."""
    write_file(path, graph_def.SerializeToString(deterministic=True))


def write_labels(path, labels):
    """One label a line, UTF-8, in the order of the graph's output."""
    write_file(path, "".join(f"{label}\n" for label in labels).encode())


@dataclass(frozen=True)
class HeldOutResult:
    """How the exported file did on held-out photos."""

    paths: list[str]
    truth: np.ndarray  # int [n]
    probabilities: np.ndarray  # float32 [n, classes]

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


def choose_rows(count, most=MOST_TESTED):
    """At most `most` of the row numbers 0..count-1, evenly spread, int [n]."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


@contextlib.contextmanager
def candidate(path, graph_def):
    """Writes the graph beside `path`, to be tested there; yields that name and removes it after.

    Raises:
        ExportError: it cannot be written.
    """
    beside = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.candidate")
    write_graph(beside, graph_def)
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def describe_results(graph_def, result):
    """Adds the test's outcome to the graph's description, in place."""
    results = {"test_photos": result.total, "test_correct": result.correct}
    set_metadata(graph_def, {**read_metadata(graph_def), "results": results})


def run_exported(path, examples, precision, progress):
    """Reads an exported graph back and runs it from the files of held-out photos.

    Raises:
        ExportError: a photo that could be read before cannot be read now.
    """
    classifier = load_classifier(path, precision=precision)
    labels, rows = list(classifier.labels), []
    paths = [example.path for example in examples]
    for name, answer in progress(classifier.classify(paths), total=len(paths)):
        if isinstance(answer, ImageError):
            raise ExportError(f"{name} {answer}, though it could be read before; run again")
        rows.append(answer)
    truth = np.array([labels.index(example.label) for example in examples], int)
    return HeldOutResult(paths, truth, np.array(rows).reshape(len(paths), len(labels)))


def check_agreement(result, expected):
    """Compares the file's answers with the head's own, float32 [n, classes].

    Raises:
        ExportError: they differ by more than arithmetic explains.
    """
    if result.total == 0:
        return
    same, difference = evaluate.agreement(result.probabilities, expected)
    if same < SAME_TOP or difference > SAME_PROBABILITY:
        raise ExportError(
            f"the exported graph does not answer as the trained layer does: the same first label "
            f"for {same:.1%} of {result.total} photos, probabilities up to {difference:.3f} apart; "
            f"nothing was replaced. Run again with an empty --bottleneck_dir"
        )


def answer_bytes(path, examples, most=2):
    """{path: float32 [classes]} of `most` JPEGs, the classic way: the graph as it is, bytes in.

    Photos that the graph's own decoder refuses, as CMYK, are left out.
    """
    graph_def, answers = read_graph(path), {}
    runner = BytesRunner(graph_def, read_metadata(graph_def)["output"])
    jpegs = (e.path for e in examples if read_file(e.path).startswith(JPEG_SIGNATURE))
    for name in itertools.islice(jpegs, most):
        with contextlib.suppress(ImageError):
            answers[name] = runner.run(read_file(name))[0]
    return answers


def check_bytes_path(result, answers):
    """Compares `answer_bytes` with the answers from pixels.

    Raises:
        ExportError: they differ by more than arithmetic explains.
    """
    for name, answer in answers.items():
        difference = np.abs(answer - result.probabilities[result.paths.index(name)]).max()
        if difference > SAME_PROBABILITY:
            raise ExportError(
                f"the exported graph answers differently from a file's bytes than from its pixels "
                f"({name}, by {difference:.3f}); nothing was replaced"
            )
