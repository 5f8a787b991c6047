"""Runs an exported graph on held-out photos and compares it with the trained head."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.collect import collect
from retraining.bottlenecks.extract import Job, VectorSource, beside
from retraining.export.build import Base, ExportError, describe_network
from retraining.graphs.description import read_metadata
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.graphs.surgery import same_part
from retraining.graphs.tensorflow import GraphDef
from retraining.metrics import classification
from retraining.networks.network import BaseNetwork
from retraining.photos.dataset import Example
from retraining.photos.reader import ImageError, is_plain_jpeg, read_file, run_on_bytes
from retraining.system.atomic import temporary_name, write_files
from retraining.system.observer import Bar

MOST_TESTED = 200  # photos that test the exported file
SAME_TOP = 0.99  # least share of them with the first label of the head
SAME_PROBABILITY = 0.02  # largest difference of a probability
SAME_IN_BFLOAT16 = 0.1  # the same, between float32 and bfloat16


@dataclass(frozen=True)
class HeldOutResult:
    """The answers of the exported file to held-out photos."""

    paths: list[str]
    keys: list[str]  # of the photos, as in Example
    targets: NDArray[np.int_]  # int [n]: the numbers of their labels
    probabilities: NDArray[np.float32]  # float32 [n, classes]
    vectors: NDArray[np.float32]  # float32 [n, width], as the network computed them in the test

    @property
    def correct(self) -> int:
        """The number of photos whose first label is the true one."""
        return int((self.probabilities.argmax(axis=1) == self.targets).sum())

    @property
    def total(self) -> int:
        """The number of photos tested."""
        return len(self.targets)

    @property
    def accuracy(self) -> float:
        """The share of correct photos; NaN without photos."""
        return classification.accuracy(self.probabilities, self.targets)


@contextlib.contextmanager
def candidate(path: str, *parts: bytes) -> Iterator[Path]:
    """Writes the bytes of a graph, in parts, to a candidate file beside `path`.

    Yields the path of the candidate, and removes it in the end.

    Raises:
        WriteError: it cannot be written.
    """
    name = temporary_name(Path(os.path.realpath(path)), "candidate")
    write_files({name: parts})
    del parts  # the caller may need their memory
    try:
        yield name
    finally:
        name.unlink(missing_ok=True)


def read_start(path: str | Path, size: int) -> bytes:
    """Returns the first `size` bytes of a file."""
    with open(path, "rb") as file:
        return file.read(size)


def evaluate_exported(
    path: str | Path,
    examples: Sequence[Example],
    extractor: VectorSource,
    progress: Bar,
) -> HeldOutResult:
    """Reads an exported graph back and tests it on the files of held-out photos.

    The photos go through the extractor's session of the base network, since another session takes
    seconds to start, and then through the head as read from the file. This is a test of the file
    because its nodes up to the bottleneck are checked to be those of the base network. One photo
    runs through the whole unchanged file, as in a program of the classic's time. Photos that cannot
    be read are left out of the HeldOutResult.

    Raises:
        ExportError: the file differs from the base network and the head.
    """
    # The ops of the base network were checked when it was read; the head adds harmless ones.
    graph_def = read_graph(path, allow_unsafe_ops=True)
    description = read_metadata(graph_def) or {}
    check_base(graph_def, description, extractor.network)
    output = description["output"]
    untouched = beside(run_untouched, graph_def, output, examples)
    answers = progress(extractor.run([Job(e) for e in examples]), total=len(examples))
    examples, vectors, _ = collect(answers, examples, extractor.network.width)
    head = Runner(graph_def, description["bottleneck_input"], output, Running(optimize=False))
    labels = list(description["labels"])
    targets = np.array([labels.index(example.label) for example in examples], int)
    paths, keys = [e.path for e in examples], [e.key for e in examples]
    result = HeldOutResult(paths, keys, targets, head.run(vectors), vectors)
    check_untouched(result, untouched.result(), extractor.settings.precision)
    return result


def check_base(graph_def: GraphDef, description: Mapping[str, Any], base: Base) -> None:
    """Compares an exported graph, up to its head, with the base network, or with both networks.

    Raises:
        ExportError: a node, a weight or the preprocessing differs.
    """
    described = [description, *([description["second"]] if description.get("second") else [])]
    if len(described) != len(base.exported) or not all(
        _holds(graph_def, *pair) for pair in zip(described, base.exported, strict=True)
    ):
        raise ExportError(
            "the written file does not hold the base network as it was read; nothing was replaced"
        )


def _holds(graph_def: GraphDef, description: Mapping[str, Any], network: BaseNetwork) -> bool:
    """Returns whether a graph has exactly the nodes of a network, and describes them so."""
    ends = network.input, network.bottleneck
    expected = describe_network(network)
    same = all(description.get(name) == value for name, value in expected.items())
    return same and same_part(graph_def, network.graph_def, *ends)


def run_untouched(
    graph_def: GraphDef, output: str, examples: Sequence[Example]
) -> tuple[str, NDArray[np.float32]] | None:
    """Returns (path, float32 [classes]) of the first JPEG that the graph's own decoder reads.

    None if there is none. Photos with an EXIF orientation are skipped, which that decoder ignores.
    """
    runner = BytesRunner(graph_def, output)
    for example in examples:
        with contextlib.suppress(ImageError):  # the decoder does not read CMYK, for example
            content = read_file(example.path)
            if is_plain_jpeg(content):
                return example.path, run_on_bytes(runner, content)[0]
    return None


def check_untouched(
    result: HeldOutResult, untouched: tuple[str, NDArray[np.float32]] | None, precision: str
) -> None:
    """Compares the answers with that of `run_untouched`.

    Raises:
        ExportError: they differ by more than rounding explains.
    """
    if untouched is None or untouched[0] not in result.paths:  # or the photo has vanished
        return
    path, probabilities = untouched
    difference = np.abs(result.probabilities[result.paths.index(path)] - probabilities).max()
    if not difference <= (SAME_PROBABILITY if precision == "float32" else SAME_IN_BFLOAT16):
        raise ExportError(
            f"the exported graph answers differently from a file's bytes than it does here "
            f"({path}, by {difference:.3f}); nothing was replaced"
        )


def check_agreement(result: HeldOutResult, expected: NDArray[np.float32]) -> None:
    """Compares the answers of the file with those of the head, float32 [n, classes].

    Raises:
        ExportError: they differ by more than rounding explains.
    """
    if result.total == 0:
        return
    same, difference = classification.agreement(result.probabilities, expected)
    if not (same >= SAME_TOP and difference <= SAME_PROBABILITY):  # NaN fails this
        raise ExportError(
            f"the exported graph does not answer as the trained layer does: the same first label "
            f"for {same:.1%} of {result.total} photos, probabilities up to {difference:.3f} apart; "
            f"nothing was replaced. Try `NetworkSettings.precision` float32, or an empty "
            f"`BottleneckSettings.folder`"
        )


def check_accuracy(result: HeldOutResult, least: float | None) -> None:
    """Compares the accuracy with the least that the user accepts; None accepts any.

    Raises:
        ExportError: it is lower, or unknown.
    """
    if least is not None and not result.accuracy >= least:
        raise ExportError(
            f"the test accuracy {result.accuracy:.4f} ({result.correct} of {result.total} photos) "
            f"is below `EvaluationSettings.least_accuracy` {least}; nothing was replaced"
        )


def describe_result(result: HeldOutResult) -> dict[str, Any]:
    """Returns the part of a graph's description that tells of its test.

    `held_out` has a row for each photo: its key, the number of its likeliest label, and the
    probability of that label. `held_out_targets` has the number of its true label.
    """
    rows = zip(result.keys, result.probabilities, strict=True)
    return {
        "test_photos": result.total,
        "test_correct": result.correct,
        "held_out": [[key, int(p.argmax()), round(float(p.max()), 4)] for key, p in rows],
        "held_out_targets": result.targets.tolist(),
    }
