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
from retraining.files import beside, write_files
from retraining.graph import (
    METADATA,
    BytesRunner,
    keep_ancestors,
    read_graph,
    read_metadata,
    widen_batch,
)
from retraining.images import JPEG_SIGNATURE, ImageError, ImageReader, read_file
from retraining.nodes import (
    ANY_BATCH,
    IMAGE_BYTES,
    add_any_batch,
    add_constant,
    add_front_end,
    add_node,
    nodes_by_name,
    set_constant,
)

FORMAT = 1  # of the metadata
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
    graph_def = keep_ancestors(base.graph_def, base.bottleneck)
    widen_batch(graph_def)
    if IMAGE_BYTES not in nodes_by_name(graph_def):
        _add_decoder(graph_def, base)
    elif ANY_BATCH not in nodes_by_name(graph_def):
        _loosen_batch(graph_def)
    _add_head(graph_def, base, head, tensor_name)
    set_metadata(graph_def, _description(base, labels, tensor_name, facts))
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


def _add_head(graph_def, base, head, tensor_name):
    """The nodes that the classic's `add_final_training_ops` left in its frozen graph."""
    taken = any(name.split("/")[0] == "input" for name in nodes_by_name(graph_def))
    scope = "input_1" if taken else "input"
    bottleneck = add_node(
        graph_def,
        f"{scope}/BottleneckInputPlaceholder",
        "PlaceholderWithDefault",
        [base.bottleneck],
        dtype="float32",
        shape=(-1, base.width),
    )
    weights = _add_variable(graph_def, f"{HEAD}/weights/final_weights", head.weights)
    bias = _add_variable(graph_def, f"{HEAD}/biases/final_biases", head.bias)
    product, logits = f"{HEAD}/Wx_plus_b/MatMul", f"{HEAD}/Wx_plus_b/add"
    add_node(graph_def, product, "MatMul", [bottleneck, weights], T="float32")
    add_node(graph_def, logits, "Add", [product, bias], T="float32")
    if tensor_name in {METADATA, *nodes_by_name(graph_def)}:
        raise ExportError(
            f"--final_tensor_name {tensor_name} is already the name of a node; choose another"
        )
    add_node(graph_def, tensor_name, "Softmax", [logits], T="float32")


def _add_variable(graph_def, name, value):
    """A constant read through an Identity, as a frozen variable is."""
    add_constant(graph_def, name, value)
    return add_node(graph_def, f"{name}/read", "Identity", [name], T="float32")


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
    text = json.dumps(description, sort_keys=True)  # ASCII: names may hold undecodable bytes
    set_constant(node, np.array(text.encode(), object))


def graph_bytes(graph_def):
    """The file's content; the same graph always gives the same bytes."""
    return graph_def.SerializeToString(deterministic=True)


def labels_bytes(labels):
    """One label a line, UTF-8, in the order of the graph's output."""
    return "".join(f"{label}\n" for label in labels).encode("utf-8", "surrogateescape")


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
    name = beside(Path(os.path.realpath(path)), "candidate")
    write_files({name: graph_bytes(graph_def)})
    try:
        yield name
    finally:
        name.unlink(missing_ok=True)


def with_results(path, result):
    """The bytes of the tested file at `path`, with the test's outcome in its description."""
    graph_def = read_graph(path)
    results = {"test_photos": result.total, "test_correct": result.correct}
    set_metadata(graph_def, {**read_metadata(graph_def), "results": results})
    return graph_bytes(graph_def)


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
    if not (same >= SAME_TOP and difference <= SAME_PROBABILITY):  # NaN agrees with nothing
        raise ExportError(
            f"the exported graph does not answer as the trained layer does: the same first label "
            f"for {same:.1%} of {result.total} photos, probabilities up to {difference:.3f} apart; "
            f"nothing was replaced. Try --precision float32, or an empty --bottleneck_dir"
        )


def check_bytes_path(path, examples, most=2):
    """Runs JPEGs through the written file as the classic did: untouched, from bytes, one by one.

    The answers must be those from the pixels that the tool itself feeds, both in float32. Photos
    that the graph's own decoder refuses, as CMYK, are left out.

    Raises:
        ExportError: they differ by more than arithmetic explains.
    """
    graph_def = read_graph(path)
    about = read_metadata(graph_def)
    runner = BytesRunner(graph_def, about["output"])
    reader = ImageReader(tuple(about["size"]), about["mean"], about["std"])
    jpegs = (e.path for e in examples if read_file(e.path).startswith(JPEG_SIGNATURE))
    for name in itertools.islice(jpegs, most):
        with contextlib.suppress(ImageError):
            from_bytes = runner.run(read_file(name))
            from_pixels = runner.run_pixels(about["input"], reader.read(name))
            difference = np.abs(from_bytes - from_pixels).max()
            if not difference <= SAME_PROBABILITY:
                raise ExportError(
                    f"the exported graph answers differently from a file's bytes than from its "
                    f"pixels ({name}, by {difference:.3f}); nothing was replaced"
                )
