"""Runs an exported graph on held-out photos and compares it with what was trained."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retraining.bottlenecks.collect import collect
from retraining.bottlenecks.extract import Job, beside
from retraining.export.build import ExportError, describe_network
from retraining.graphs.description import read_metadata
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.graphs.surgery import same_part
from retraining.metrics import classification
from retraining.photos.reader import ImageError, is_plain_jpeg, read_file, run_on_bytes
from retraining.system.atomic import temporary_name, write_files

MOST_TESTED = 200  # photos that are run through the exported file
SAME_TOP = 0.99  # share of them whose first label must be that of the head
SAME_PROBABILITY = 0.02  # largest difference of a probability that is allowed
SAME_IN_BFLOAT16 = 0.1  # the same between a float32 graph and its run in bfloat16


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
        return classification.accuracy(self.probabilities, self.truth)


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


def read_start(path, size):
    """The first `size` bytes of a file."""
    with open(path, "rb") as file:
        return file.read(size)


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
    expected = describe_network(network)
    same = all(about.get(name) == value for name, value in expected.items())
    return same and same_part(graph_def, network.graph_def, *ends)


def run_untouched(graph_def, output, examples):
    """(path, float32 [classes]) of the first JPEG that the graph's own decoder reads, or None.

    One that is to be turned is passed over: that decoder knows nothing of orientation.
    """
    runner = BytesRunner(graph_def, output)
    for example in examples:
        with contextlib.suppress(ImageError):  # as it does not read CMYK
            content = read_file(example.path)
            if is_plain_jpeg(content):
                return example.path, run_on_bytes(runner, content)[0]
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
    same, difference = classification.agreement(result.probabilities, expected)
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
