"""Runs an exported graph on held-out photos and compares it with the trained head."""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.extract import VectorSource
from retraining.export.build import Base, ExportError, describe_network
from retraining.graphs.description import read_metadata
from retraining.graphs.messages import GraphDef
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.graphs.surgery import same_part
from retraining.metrics import classification
from retraining.networks.network import BaseNetwork
from retraining.photos.dataset import Example
from retraining.photos.reader import (
    ImageError,
    ImageReader,
    is_plain_jpeg,
    read_file,
    run_on_bytes,
)
from retraining.system.atomic import temporary_name, write_files
from retraining.system.background import beside

SPOT_CHECKED = 16  # held-out photos that run through the whole exported graph
FROM_BYTES = 4  # of them, those that it decodes itself
ROWS_AT_ONCE = 4096  # vectors that go through the head together
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
    logits: NDArray[np.float32]  # float32 [n, classes], of which they are the softmax

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
    vectors: NDArray[np.float32],
    extractor: VectorSource,
) -> HeldOutResult:
    """Reads an exported graph back and tests it on held-out photos.

    Their `vectors` float32 [n, width], as the base network computes them, go through the head as
    read from the file. This is a test of the file because its nodes up to the bottleneck are
    checked to be those of the base network, and because up to SPOT_CHECKED of the photos, spread
    over the classes, run through the whole unchanged file.

    Raises:
        ExportError: the file differs from the base network and the head.
    """
    # The ops of the base network were checked when it was read; the head adds harmless ones.
    graph_def = read_graph(path, allow_unsafe_ops=True)
    description = read_metadata(graph_def) or {}
    check_base(graph_def, description, extractor.network)
    spread = spread_over_classes(examples, SPOT_CHECKED)
    spots = beside(run_whole, graph_def, description, spread, extractor.settings.max_pixels)
    probabilities, logits = run_head(graph_def, description, vectors)
    labels = list(description["labels"])
    targets = np.array([labels.index(example.label) for example in examples], int)
    paths, keys = [e.path for e in examples], [e.key for e in examples]
    result = HeldOutResult(paths, keys, targets, probabilities, logits)
    check_spots(result, spots.result(), extractor.settings.precision)
    return result


def spread_over_classes(examples: Sequence[Example], most: int) -> list[Example]:
    """Returns at most `most` of the examples: the first of each class, then the second, and so on.

    With more than `most` classes, these are spread evenly.
    """
    of_class: dict[str, list[Example]] = {}
    for example in examples:
        of_class.setdefault(example.label, []).append(example)
    classes = list(of_class.values())
    classes = [classes[row] for row in classification.choose_rows(len(classes), most)]
    rounds = itertools.zip_longest(*classes)
    chosen = (example for one_round in rounds for example in one_round if example)
    return list(itertools.islice(chosen, most))


def run_head(
    graph_def: GraphDef, description: Mapping[str, Any], vectors: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns (probabilities, logits), float32 [n, classes], of the graph's head."""
    how = Running(optimize=False, also=(description["logits"],))
    head = Runner(graph_def, description["bottleneck_input"], description["output"], how)
    starts = range(0, max(1, len(vectors)), ROWS_AT_ONCE)
    parts = [head.run(vectors[start : start + ROWS_AT_ONCE]) for start in starts]
    probabilities, logits = np.split(np.concatenate(parts), 2, axis=1)
    return probabilities, logits


@dataclass(frozen=True)
class Spot:
    """The answer of the whole file to one photo, float32 [classes], and what it was `fed`."""

    path: str
    fed: str
    probabilities: NDArray[np.float32]


def run_whole(
    graph_def: GraphDef,
    description: Mapping[str, Any],
    examples: Sequence[Example],
    max_pixels: int,
) -> list[Spot]:
    """Runs the whole graph on photos; leaves out those that cannot be read or have changed.

    Up to FROM_BYTES of them go in as files, as in a program of the classic's time, the others as
    pixels. The graph's own decoder ignores an EXIF orientation and reads JPEG files only, so that
    photos with one and other files always go in as pixels.
    """
    runner = BytesRunner(graph_def, description["output"])
    networks = [description, *([description["second"]] if description.get("second") else [])]
    readers = {n["input"]: ImageReader(Preprocessing.of(n), max_pixels) for n in networks}
    spots: list[Spot] = []
    from_bytes = 0
    for example in examples:
        with contextlib.suppress(ImageError):
            content = read_unchanged(example, max_pixels)
            if from_bytes < FROM_BYTES and is_plain_jpeg(content):
                with contextlib.suppress(ImageError):  # the decoder does not read CMYK, for example
                    answer = run_on_bytes(runner, content, max_pixels)[0]
                    spots.append(Spot(example.path, "a file's bytes", answer))
                    from_bytes += 1
                    continue
            pixels = {name: reader.decode(content) for name, reader in readers.items()}
            spots.append(Spot(example.path, "pixels", runner.run_pixels(pixels)[0]))
    return spots


def read_unchanged(example: Example, max_pixels: int) -> bytes:
    """Returns the bytes of a photo's file.

    Raises:
        ImageError: the file cannot be read, or is no longer the photo.
    """
    content = read_file(example.path, max_pixels)
    if example.key and hashlib.sha1(content, usedforsecurity=False).hexdigest() != example.key:
        raise ImageError("has changed during the run")
    return content


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
            "the written file does not hold the base network unchanged; nothing was replaced"
        )


def _holds(graph_def: GraphDef, description: Mapping[str, Any], network: BaseNetwork) -> bool:
    """Returns whether a graph has exactly the nodes of a network, and describes them so."""
    ends = network.input, network.bottleneck
    expected = describe_network(network)
    same = all(description.get(name) == value for name, value in expected.items())
    return same and same_part(graph_def, network.graph_def, *ends)


def check_spots(result: HeldOutResult, spots: Sequence[Spot], precision: str) -> None:
    """Compares the answers of the head with those of the whole file.

    Raises:
        ExportError: they differ by more than rounding explains.
    """
    rows = {path: row for row, path in enumerate(result.paths)}
    for spot in spots:
        difference = np.abs(result.probabilities[rows[spot.path]] - spot.probabilities).max()
        if not difference <= (SAME_PROBABILITY if precision == "float32" else SAME_IN_BFLOAT16):
            raise ExportError(
                f"the exported graph answers differently from {spot.fed} than it does here "
                f"({spot.path}, by {difference:.3f}); nothing was replaced"
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
