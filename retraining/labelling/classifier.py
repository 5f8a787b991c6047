"""From the graph of a classifier, ours or anyone's, to class probabilities of image files."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks import extract
from retraining.bottlenecks.extract import Answer
from retraining.errors import RetrainingError
from retraining.evaluation import trust
from retraining.evaluation.temperature import FEWEST_PHOTOS, apply_temperature
from retraining.evaluation.unknown import UnknownScore
from retraining.graphs.description import read_metadata, read_preprocessing
from retraining.graphs.nodes import IMAGE_BYTES, GraphError, constant, node_name, nodes_by_name
from retraining.graphs.preprocessing import (
    PartialPreprocessing,
    PerChannel,
    Preprocessing,
    spelled,
)
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.graphs.safety import describe_unsafe
from retraining.graphs.tensorflow import GraphDef, NodeDef, import_tensorflow
from retraining.networks.pair import SECOND_PREFIX
from retraining.networks.registry import NETWORKS, resolve_precision
from retraining.photos.bounds import MAX_PIXELS
from retraining.photos.reader import Image, ImageError, ImageReader, file_bytes, run_on_bytes

# The usual input and output nodes of old graphs, the likeliest first.
KNOWN_INPUTS = ("Mul", "input", "Placeholder", IMAGE_BYTES)
KNOWN_OUTPUTS = ("final_result", "softmax", "MobilenetV1/Predictions/Reshape_1")
# The label of unknown images: the first of these that is not a class.
UNKNOWN = ("unknown", "(unknown)", "((unknown))", "(((unknown)))")

T = TypeVar("T")
AnyImage = TypeVar("AnyImage", bound=Image)
FEW = 8  # images up to which the optimizer's start-up costs more than it saves


class LabelsError(RetrainingError):
    """The labels file is missing or does not fit the graph."""


@dataclass(frozen=True)
class Overrides:
    """What the user says about a graph; None where the graph itself tells."""

    input_layer: str | None = None
    output_layer: str | None = None
    input_height: int | None = None
    input_width: int | None = None
    input_mean: float | None = None
    input_std: float | None = None
    allow_unsafe_ops: bool = False


@dataclass(frozen=True)
class Labels:
    """What a classifier says of one image.

    `scores` are {label: probability}, the likeliest first. They are empty where `error` says why
    the image cannot be read. `unknown` is whether the image looks like none of the classes; it is
    False where that was not asked for.
    """

    image: Image
    scores: Mapping[str, float]
    error: str | None = None
    unknown: bool = False

    @property
    def best(self) -> str | None:
        """The likeliest label."""
        return next(iter(self.scores), None)


@dataclass(frozen=True)
class Part:
    """One of two networks in a graph: its input and output, its pixels, its arithmetic."""

    input: str
    bottleneck: str
    preprocessing: Preprocessing
    precision: str


@dataclass(frozen=True)
class Classifier:
    """A graph and how to use it; `preprocessing` is None if the graph takes file bytes."""

    graph_def: GraphDef
    input: str
    output: str
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    precision: str = "float32"
    notes: tuple[str, ...] = ()  # the assumptions that were made, a line each
    described: Mapping[str, Any] = field(
        default_factory=dict
    )  # the graph's own description, if it has one
    max_pixels: int = MAX_PIXELS  # larger images are refused
    temperature: float = 1.0  # applied to the output's probabilities
    unknown: UnknownScore | None = None
    unknown_inputs: tuple[str, ...] = ()  # the nodes of the vectors and logits for that score
    parts: tuple[Part, ...] = ()  # the networks, if there are two

    @property
    def unknown_label(self) -> str:
        """The label for an image of no known class; never the label of a class."""
        return next(label for label in UNKNOWN if label not in self.labels)

    def label(
        self, images: Image | Iterable[Image], unknown_share: float | None = None
    ) -> Iterator[Labels]:
        """Yields Labels for each image, in order, or for a single one.

        An image is a path, the bytes of an image file, or pixels (see photos.reader.Image).

        With an `unknown_share` (0 to 1), an image is unknown if it looks less like the classes than
        all but this share of the validation photos.

        Raises:
            GraphError: TensorFlow cannot load or run the graph.
            LabelsError: there are more or fewer labels than probabilities.
            TrustError: there is a share, but the graph has no score for unknown images.
        """
        if isinstance(images, str | bytes | os.PathLike | np.ndarray):
            images = [images]
        few = isinstance(images, Sequence) and len(images) <= FEW
        for image, answer, novelty in self.predict(images, few, unknown_share):
            if isinstance(answer, ImageError):
                yield Labels(image, {}, str(answer))
                continue
            order = (-answer).argsort(kind="stable")
            scores = {self.labels[row]: float(answer[row]) for row in order}
            yield Labels(image, scores, unknown=novelty is not None)

    def classify(
        self, paths: Iterable[AnyImage], few: bool = False
    ) -> Iterator[tuple[AnyImage, Answer]]:
        """Yields (path, probabilities float32 [classes] or ImageError) for each path, in order.

        `few` skips the start-up work that pays off only for many images.

        Raises:
            GraphError: TensorFlow cannot load or run the graph.
            LabelsError: there are more or fewer labels than probabilities. It is raised before the
                first image is read, if the graph tells its width.
        """
        for path, answer, _ in self.predict(paths, few):
            yield path, answer

    def predict(
        self, paths: Iterable[AnyImage], few: bool = False, share: float | None = None
    ) -> Iterator[tuple[AnyImage, Answer, float | None]]:
        """Yields what `classify` does and, of each image, its strangeness if it counts as unknown.

        An image counts as unknown (out-of-distribution) if it looks less like the classes than all
        but `share` (0..1) of the validation photos. The strangeness of any other image is None, and
        that of every image if `share` is None.

        Raises:
            TrustError: there is a share, but the graph has no score for unknown images.
        """
        if share is not None and not self.unknown:
            raise trust.TrustError(
                "`unknown_share` needs a graph that retrain.py made with "
                f"{FEWEST_PHOTOS} validation photos or more; this one has no such score"
            )
        also = () if share is None else self.unknown_inputs
        stream = self._stream_of_both if self.parts else self._stream
        for path, outputs in stream(paths, not few, also):
            if isinstance(outputs, ImageError):
                yield path, outputs, None
                continue
            outputs = outputs.reshape(1, -1)
            rest = outputs[:, len(self.labels) :] if also else outputs[:, :0]
            answer = self._checked(outputs[:, : outputs.shape[1] - rest.shape[1]])
            yield path, answer, self._novelty(rest, share) if also else None

    def _novelty(self, rest: NDArray[np.float32], share: float | None) -> float | None:
        """Returns 0..1 for an unknown image, or None; `rest` is [1, width + classes]."""
        if self.unknown is None or share is None:
            return None
        width = len(self.unknown.origin)
        score = self.unknown.score(rest[:, :width], rest[:, width:])
        if score[0] >= self.unknown.threshold(share):
            return None
        return float(self.unknown.novelty(score)[0])

    def _stream(
        self, paths: Iterable[AnyImage], optimize: bool, also: tuple[str, ...]
    ) -> Iterator[tuple[AnyImage, Answer]]:
        """As extract.stream: (path, the output's columns and those of `also`, or ImageError)."""
        return extract.stream(paths, *self._loader(optimize, also))

    def _stream_of_both(
        self, paths: Iterable[AnyImage], optimize: bool, also: tuple[str, ...]
    ) -> Iterator[tuple[AnyImage, Answer]]:
        """As `_stream`: through each network on its own, then both vectors through the head."""
        joint = self.described["bottleneck_input"]
        head = Runner(self.graph_def, joint, self.output, Running(optimize=False, also=also))
        self._check_width(head.width)
        streams = [self._stream_of_part(part, optimize) for part in self.parts]
        for path, vectors in extract.side_by_side(paths, streams):
            yield path, vectors if isinstance(vectors, ImageError) else head.run(vectors)

    def _stream_of_part(
        self, part: Part, optimize: bool
    ) -> Callable[[Iterable[AnyImage]], Iterator[tuple[AnyImage, Answer]]]:
        """Returns a function that yields the vectors of one network, as extract.stream does."""
        reader = ImageReader(part.preprocessing, self.max_pixels)
        ends = part.input, part.bottleneck
        runner = Runner(self.graph_def, *ends, Running(part.precision, optimize))

        def stream(images: Iterable[AnyImage]) -> Iterator[tuple[AnyImage, Answer]]:
            return extract.stream(images, reader.load, runner)

        return stream

    def _loader(
        self, optimize: bool, also: tuple[str, ...]
    ) -> tuple[Callable[[Image], NDArray[np.float32]], "Runner | _Done"]:
        """(how a path is loaded, what runs the loaded batch)."""
        if self.preprocessing is None:
            from_bytes = BytesRunner(self.graph_def, self.output, self.input, also)
            self._check_width(from_bytes.width)
            most = self.max_pixels

            def load(image: Image) -> NDArray[np.float32]:
                return run_on_bytes(from_bytes, file_bytes(image, most), most).reshape(1, -1)

            return load, _Done()
        ends = self.input, self.output
        runner = Runner(self.graph_def, *ends, Running(self.precision, optimize, also))
        self._check_width(runner.width)
        return ImageReader(self.preprocessing, self.max_pixels).load, runner

    def _checked(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        probabilities = outputs.reshape(-1)
        self._check_width(len(probabilities))
        calibrated: NDArray[np.float32] = apply_temperature(probabilities[None], self.temperature)[
            0
        ]
        return calibrated

    def _check_width(self, width: int | None) -> None:
        if width not in (None, len(self.labels)):
            raise LabelsError(
                f"the graph gives {width} probabilities for {len(self.labels)} "
                f"labels; name the labels file that belongs to it with `labels_path`"
            )


class _Done:
    """A runner for batches whose answers were computed during loading."""

    parallel = 1

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return batch


def load_classifier(
    graph_path: str | Path,
    labels_path: str | Path | tuple[str, ...] | None = None,
    overrides: Overrides | None = None,
    precision: str = "auto",
) -> Classifier:
    """Reads a retrained graph, or any frozen image classifier.

    `labels_path` may also be a tuple of the labels themselves.

    A graph that describes itself needs nothing else. For other graphs the overrides come first,
    then the facts in the graph's nodes, then what is usual for such graphs (with a line in
    `notes`).

    Raises:
        GraphError: the file is not a frozen graph, or is not known to be harmless, or lacks a fact
            that the overrides do not give.
        LabelsError: there is no labels file, or it is unreadable.
    """
    overrides = overrides or Overrides()
    graph_def = read_graph(graph_path, overrides.allow_unsafe_ops)
    described = read_metadata(graph_def) or {}
    labels = _find_labels(graph_path, labels_path, described)
    unsafe = describe_unsafe(graph_def)
    notes = [f"{graph_path} is run though it holds {unsafe}"] if unsafe else []
    input_name, output, preprocessing = _find_ends(graph_def, overrides, described, notes)
    parts: tuple[Part, ...] = ()
    if described.get("second") and preprocessing:
        parts = _find_parts(graph_def, described, overrides, precision)
    precision = resolve_precision(precision, graph_def)
    classifier = Classifier(
        graph_def, input_name, output, preprocessing, labels, precision, tuple(notes), described
    )
    classifier = replace(classifier, parts=parts)
    if output != described.get("output"):
        return classifier  # temperature and score were fitted for another output
    return replace(classifier, **_find_trust(graph_def, described))


def _find_parts(
    graph_def: GraphDef, described: Mapping[str, Any], overrides: Overrides, precision: str
) -> tuple[Part, ...]:
    """Returns the Parts of a graph of two networks, which tells how to feed it.

    Raises:
        GraphError: the overrides contradict the graph.
    """
    size = overrides.input_height, overrides.input_width
    scale = overrides.input_mean, overrides.input_std
    other_input = overrides.input_layer and node_name(overrides.input_layer) != described["input"]
    if other_input or any(value is not None for value in (*size, *scale)):
        raise GraphError(
            f"this graph holds two networks and knows how to feed them; drop "
            f"`Overrides.input_height`, `Overrides.input_width`, `Overrides.input_mean` and "
            f"`Overrides.input_std`, and `Overrides.input_layer` or give {IMAGE_BYTES}"
        )
    return tuple(
        Part(
            description["input"],
            description["bottleneck"],
            Preprocessing.of(description),
            resolve_precision(precision, graph_def, prefix),
        )
        for description, prefix in ((described, ""), (described["second"], SECOND_PREFIX))
    )


def _find_trust(graph_def: GraphDef, described: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the graph's temperature and unknown score, as fields of a Classifier."""
    nodes = nodes_by_name(graph_def)
    temperature, unknown = trust.read(
        described.get("trust", {}), lambda name: constant(nodes, name)
    )
    if not unknown:
        return {"temperature": temperature}
    # Older graphs have no hidden layers, and no name for the features after them.
    features = described.get("features") or described["bottleneck_input"]
    inputs = (features, described["logits"])
    return {"temperature": temperature, "unknown": unknown, "unknown_inputs": inputs}


def _find_labels(
    graph_path: str | Path,
    labels_path: str | Path | tuple[str, ...] | None,
    described: Mapping[str, Any],
) -> tuple[str, ...]:
    beside = Path(graph_path).with_name("retrained_labels.txt")  # the default name of retrain.py
    if isinstance(labels_path, tuple):
        return labels_path
    if labels_path:
        return read_labels(labels_path)
    if described:
        return tuple(described["labels"])
    if beside.is_file():
        return read_labels(beside)
    raise LabelsError("this graph does not carry its labels; name their file with `labels_path`")


def _find_ends(
    graph_def: GraphDef, overrides: Overrides, described: Mapping[str, Any], notes: list[str]
) -> tuple[str, str, Preprocessing | None]:
    """Returns (input, output, Preprocessing or None): as overridden, described or usual."""
    nodes = nodes_by_name(graph_def)
    known_inputs = [described["input"]] if described else KNOWN_INPUTS
    known_outputs = [described["output"]] if described else KNOWN_OUTPUTS
    input_name = _named(nodes, overrides.input_layer, known_inputs, "input_layer")
    output = _named(nodes, overrides.output_layer, known_outputs, "output_layer")
    if _takes_bytes(graph_def, input_name):
        return input_name, output, None
    known = read_preprocessing(graph_def, input_name)
    if described and input_name == described["input"]:
        known = Preprocessing.of(described)
    return input_name, output, _preprocessing(graph_def, known, overrides, notes)


def _named(
    nodes: Mapping[str, NodeDef], given: str | None, known: Sequence[str], setting: str
) -> str:
    if given is not None:
        if node_name(given) not in nodes:
            raise GraphError(f"the graph has no node {given!r}; see `Overrides.{setting}`")
        return node_name(given)
    for name in known:
        if name in nodes:
            return name
    raise GraphError(
        f"cannot tell which node of the graph to use; name it with `Overrides.{setting}`"
    )


def _takes_bytes(graph_def: GraphDef, input_name: str) -> bool:
    """Returns whether the node gives strings: a Placeholder or Const of that type."""
    node = nodes_by_name(graph_def)[input_name]
    if "dtype" not in node.attr:  # reading it would add it
        return False
    return bool(node.attr["dtype"].type == import_tensorflow().dtypes.string.as_datatype_enum)


def _preprocessing(
    graph_def: GraphDef, known: PartialPreprocessing, overrides: Overrides, notes: list[str]
) -> Preprocessing:
    """Returns the preprocessing: as overridden, as the graph tells, or as usual."""
    own_height, own_width = known.size or (None, None)
    height = _first(overrides.input_height, own_height)
    width = _first(overrides.input_width, own_width)
    if not height or not width:
        raise GraphError(
            "the graph does not tell its image size; give `Overrides.input_height` and "
            "`Overrides.input_width`"
        )
    if known.size and known.fixed_size and known.size != (height, width):
        raise GraphError(
            f"the graph takes images of {known.size[0]} x {known.size[1]} pixels; drop "
            f"`Overrides.input_height` and `Overrides.input_width`"
        )
    mean = known.mean if overrides.input_mean is None else overrides.input_mean
    std = known.std if overrides.input_std is None else overrides.input_std
    if mean is None or std is None:
        usual_mean, usual_std = _usual_scale(graph_def)
        mean = usual_mean if mean is None else mean
        std = usual_std if std is None else std
        notes.append(
            f"this graph does not tell how pixels are scaled; assuming `Overrides.input_mean` "
            f"{spelled(mean)} `Overrides.input_std` {spelled(std)}"
        )
    if isinstance(known, Preprocessing):  # which tells the kernel and the orientation, too
        return replace(known, size=(height, width), mean=mean, std=std)
    return Preprocessing((height, width), mean, std)


def _usual_scale(graph_def: GraphDef) -> tuple[PerChannel, PerChannel]:
    """Returns mean and std: those of MobileNets, or of the classic label_image.py (0 and 255)."""
    if any(node.name.startswith("MobilenetV1/") for node in graph_def.node):
        network = NETWORKS["mobilenet_1.0_224"]
        return network.mean, network.std
    return 0.0, 255.0


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Reads the lines of a labels file, without line ends.

    Raises:
        LabelsError: the file is unreadable, empty or not UTF-8 text.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            labels = tuple(line.rstrip("\r\n") for line in file)
    except OSError as error:
        raise LabelsError(f"cannot read the labels file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelsError(f"the labels file {path} is not UTF-8 text") from error
    if not any(labels):
        raise LabelsError(f"the labels file {path} is empty")
    return labels
