"""From the graph of a classifier, ours or anyone's, to class probabilities of image files."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.runtime import RuntimeSettings, is_few, open_lite, open_runner
from retraining.bottlenecks.stream import Answer, BatchRunner, side_by_side, stream
from retraining.errors import RetrainingError
from retraining.evaluation import trust
from retraining.evaluation.temperature import FEWEST_PHOTOS, apply_temperature
from retraining.evaluation.unknown import UnknownScore
from retraining.graphs.description import SECOND_PREFIX, read_metadata
from retraining.graphs.head import HeadRunner
from retraining.graphs.litert import LiteRunner
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import IMAGE_BYTES, GraphError, constant, node_name, nodes_by_name
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.graphs.runtimes import AUTO, LITERT, TENSORFLOW
from retraining.graphs.safety import describe_unsafe
from retraining.graphs.twin import VectorPart, cache_folder
from retraining.labelling.resolve import Overrides, resolve
from retraining.networks.precision import resolve_precision
from retraining.photos.bounds import MAX_PIXELS
from retraining.photos.class_folders import same_label
from retraining.photos.reader import Image, ImageError, ImageReader, file_bytes, run_on_bytes
from retraining.system.lines import TextError, read_lines
from retraining.system.text import is_label, some

# The label of unknown images: the first of these that is not a class.
UNKNOWN = ("unknown", "(unknown)", "((unknown))", "(((unknown)))")

AnyImage = TypeVar("AnyImage", bound=Image)
MOST_LABEL_BYTES = 1 << 24  # 16 MiB of a labels file: a hundred thousand classes and more
# Lengths of lists of ImageNet's classes, without and with a background class. In the usual ones,
# `crane` and `maillot` name two classes each.
IMAGENET_CLASSES = (1000, 1001)
# Such as "is ..." of an image that cannot be read; programs read these reasons, too.
NO_NUMBERS = "has no answer: the graph gives infinity or NaN for it, which a wrong scale may cause"


class LabelsError(RetrainingError):
    """The labels file is missing or does not fit the graph."""


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
    single: int | None = None  # the rank of the input, if it takes one image at a time
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)  # what computes vectors

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
        count = len(images) if isinstance(images, Sequence) else None
        for image, answer, novelty in self.predict(images, count, unknown_share):
            if isinstance(answer, ImageError):
                yield Labels(image, {}, str(answer))
                continue
            order = (-answer).argsort(kind="stable")
            scores: dict[str, float] = {}
            for row in order:  # of classes with one name, the likeliest counts
                scores.setdefault(self.labels[row], float(answer[row]))
            yield Labels(image, scores, unknown=novelty is not None)

    def predict(
        self, images: Iterable[AnyImage], count: int | None = None, share: float | None = None
    ) -> Iterator[tuple[AnyImage, Answer, float | None]]:
        """Yields (image, probabilities float32 [classes] or ImageError, novelty), in order.

        An image counts as unknown (out-of-distribution) if it looks less like the classes than all
        but `share` (0..1) of the validation photos. The novelty (0..1) is that of
        `UnknownScore.novelty` for an unknown image, and None for any other image, or if `share` is
        None. `count` is the number of images, if it is known: for a few, start-up work is skipped
        that pays off only for many.

        Raises:
            GraphError: TensorFlow cannot load or run the graph.
            LabelsError: there are more or fewer labels than probabilities. It is raised before the
                first image is read, if the graph tells its width.
            TrustError: there is a share, but the graph has no score for unknown images.
        """
        if share is not None and not self.unknown:
            raise trust.TrustError(
                "`unknown_share` needs a graph that retrain.py made with "
                f"{FEWEST_PHOTOS} validation photos or more; this one has no such score"
            )
        also = () if share is None else self.unknown_inputs
        answers = self._stream_of_both if self.parts else self._stream
        for image, outputs in answers(images, count, also):
            if isinstance(outputs, ImageError):
                yield image, outputs, None
                continue
            outputs = outputs.reshape(1, -1)
            rest = outputs[:, len(self.labels) :] if also else outputs[:, :0]
            answer = self._checked(outputs[:, : outputs.shape[1] - rest.shape[1]])
            if not np.isfinite(answer).all():
                yield image, ImageError(NO_NUMBERS), None
                continue
            yield image, answer, self._novelty(rest, share) if also else None

    def _novelty(self, rest: NDArray[np.float32], share: float | None) -> float | None:
        """Returns 0..1 for an unknown image, or None; `rest` is [1, width + classes]."""
        if self.unknown is None or share is None:
            return None
        width = len(self.unknown.origin)
        if rest.shape[1] != width + len(self.labels):
            raise trust.TrustError("the score for unknown images was fitted for other vectors")
        score = self.unknown.score(rest[:, :width], rest[:, width:])
        if score[0] >= self.unknown.threshold(share):
            return None
        return float(self.unknown.novelty(score)[0])

    def _stream(
        self, paths: Iterable[AnyImage], count: int | None, also: tuple[str, ...]
    ) -> Iterator[tuple[AnyImage, Answer]]:
        """As stream.stream: (path, the output's columns and those of `also`, or ImageError)."""
        return stream(paths, *self._loader(count, also))

    def _stream_of_both(
        self, paths: Iterable[AnyImage], count: int | None, also: tuple[str, ...]
    ) -> Iterator[tuple[AnyImage, Answer]]:
        """As `_stream`: through each network on its own, then both vectors through the head."""
        joint = self.described["bottleneck_input"]
        head = self._open_head(joint, also) or Runner(
            self.graph_def, joint, self.output, Running(optimize=False, also=also)
        )
        streams = [self._stream_of_part(part, count) for part in self.parts]
        for path, vectors in side_by_side(paths, streams):
            yield path, vectors if isinstance(vectors, ImageError) else head.run(vectors)

    def _stream_of_part(
        self, part: Part, count: int | None
    ) -> Callable[[Iterable[AnyImage]], Iterator[tuple[AnyImage, Answer]]]:
        """Returns a function that yields the vectors of one network, as stream.stream does."""
        reader = ImageReader(part.preprocessing, self.max_pixels)
        vectors = VectorPart(self.graph_def, part.input, part.bottleneck, part.preprocessing)
        how = Running(part.precision, optimize=not is_few(count))
        runner = open_runner(vectors, how, self.runtime, count)

        def vectors_of(images: Iterable[AnyImage]) -> Iterator[tuple[AnyImage, Answer]]:
            return stream(images, reader.load, runner)

        return vectors_of

    def _loader(
        self, count: int | None, also: tuple[str, ...]
    ) -> tuple[Callable[[Image], NDArray[np.float32]], BatchRunner]:
        """(how a path is loaded, what runs the loaded batch)."""
        if self.preprocessing is None:
            from_bytes = BytesRunner(
                self.graph_def, self.output, self.input, also, few=is_few(count)
            )
            self._check_width(from_bytes.width)
            most = self.max_pixels

            def load(image: Image) -> NDArray[np.float32]:
                return run_on_bytes(from_bytes, file_bytes(image, most), most).reshape(1, -1)

            return load, _Done()
        if self.single:
            return self._one_by_one(self.preprocessing, also)
        reader = ImageReader(self.preprocessing, self.max_pixels)
        if without_tensorflow := self._open_lite(self.preprocessing, count, also):
            return reader.load, without_tensorflow
        ends = self.input, self.output
        runner = Runner(self.graph_def, *ends, Running(self.precision, not is_few(count), also))
        self._check_width(runner.width)
        return reader.load, runner

    def _open_head(self, vectors: str, also: tuple[str, ...]) -> HeadRunner | None:
        """Opens the layers behind a node in NumPy; None if only TensorFlow computes them."""
        try:
            return HeadRunner(self.graph_def, vectors, (self.output, *also))
        except GraphError:
            return None

    def _open_lite(
        self, preprocessing: Preprocessing, count: int | None, also: tuple[str, ...]
    ) -> "_WithHead | None":
        """Opens the network in LiteRT, its head in NumPy; None if TensorFlow runs the graph."""
        own = self.described.get("input"), self.described.get("output")
        vectors = self.described.get("bottleneck")
        if own != (self.input, self.output) or vectors is None:
            return None
        part = VectorPart(self.graph_def, self.input, vectors, preprocessing)
        head = self._open_head(vectors, also)
        lite = head and open_lite(part, Running(self.precision), self.runtime, count)
        return _WithHead(lite, head) if head and lite else None

    def _one_by_one(
        self, preprocessing: Preprocessing, also: tuple[str, ...]
    ) -> tuple[Callable[[Image], NDArray[np.float32]], "_Done"]:
        """As `_loader`, for a graph that takes single images, or resizes them itself."""
        reader = ImageReader(preprocessing, self.max_pixels)
        runner = BytesRunner(self.graph_def, self.output, self.input, also)
        self._check_width(runner.width)

        def load(image: Image) -> NDArray[np.float32]:
            pixels = reader.load(image)
            pixels = pixels if self.single == 4 else pixels[0]
            return runner.run_pixels({self.input: pixels}).reshape(1, -1)

        return load, _Done()

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


@dataclass(frozen=True)
class _WithHead:
    """A runner for batches whose vectors one runtime computes, and NumPy the rest."""

    vectors: LiteRunner
    head: HeadRunner

    @property
    def parallel(self) -> int:
        return self.vectors.parallel

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.head.run(self.vectors.run(batch))


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
    runtime: str = AUTO,
) -> Classifier:
    """Reads a retrained graph, or any frozen image classifier.

    `labels_path` may also be a tuple of the labels themselves.

    A graph that describes itself needs nothing else. For other graphs the overrides come first,
    then the facts in the graph's nodes, then what is usual for such graphs (with a line in
    `notes`).

    Raises:
        GraphError: the file is not a frozen graph, or is not known to be harmless, or lacks a fact
            that the overrides do not give.
        LabelsError: there is no labels file, or it is unreadable, or labels are repeated.
    """
    overrides = overrides or Overrides()
    if runtime == LITERT and precision == "auto":
        precision = "float32"
    graph_def = read_graph(graph_path, overrides.allow_unsafe_ops)
    described = read_metadata(graph_def) or {}
    unsafe = overrides.allow_unsafe_ops and describe_unsafe(graph_def)
    notes = [f"running {graph_path}, although it holds {unsafe}"] if unsafe else []
    labels = _find_labels(graph_path, labels_path, described, notes)
    ends = resolve(graph_def, overrides, described)
    if ends.output == described.get("output"):
        _check_order(labels, described["labels"])
    parts: tuple[Part, ...] = ()
    if described.get("second") and ends.preprocessing:
        parts = _find_parts(graph_def, described, overrides, precision)
    classifier = Classifier(
        graph_def,
        ends.input,
        ends.output,
        ends.preprocessing,
        labels,
        resolve_precision(precision, graph_def),
        (*notes, *ends.assumed),
        described,
        parts=parts,
        single=ends.single,
        runtime=RuntimeSettings(
            TENSORFLOW if precision == "bfloat16" else runtime,
            (cache_folder(), Path(graph_path).parent),
        ),
    )
    if ends.output != described.get("output"):
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
    notes: list[str],
) -> tuple[str, ...]:
    """Returns the labels as given, as in the graph, or those beside it; adds a note on the last."""
    beside = Path(graph_path).with_name("retrained_labels.txt")  # the default name of retrain.py
    if isinstance(labels_path, tuple):
        return labels_path
    if labels_path:
        return read_labels(labels_path)
    if described:
        own = tuple(described["labels"])
        if twice := [label for label, count in Counter(own).items() if count > 1]:
            raise LabelsError(
                f"the graph's own labels name several classes {some(list(map(repr, twice)))}; give "
                f"a labels file with a different name for each with `labels_path`"
            )
        if beside.is_file() and _differ(beside, own):
            notes.append(f"using the labels in the graph; those in {beside} differ")
        return own
    if beside.is_file():
        notes.append(
            f"using the labels in {beside}; to use others, give their file with `labels_path`"
        )
        return read_labels(beside)
    raise LabelsError("this graph holds no labels; give their file with `labels_path`")


def _differ(path: Path, labels: tuple[str, ...]) -> bool:
    try:
        return read_labels(path) != labels
    except LabelsError:
        return True


def _check_order(labels: Sequence[str], own: Sequence[str]) -> None:
    """Refuses labels that give one class of the graph the name of another. New names are fine.

    Names that are spelled alike are compared first; then the rest by `same_label`.

    Raises:
        LabelsError: there is such a label.
    """
    if len(labels) != len(own):
        return  # which the graph's width shows
    _check_rows(labels, own, str)
    _check_rows(
        [label if label not in own else "" for label in labels],
        [label if label not in labels else "" for label in own],
        same_label,
    )


def _check_rows(labels: Sequence[str], own: Sequence[str], key_of: Callable[[str], str]) -> None:
    """Refuses labels whose key belongs to another row. Empty and ambiguous names are passed over.

    Raises:
        LabelsError: there is such a label.
    """
    rows = {key_of(label): row for row, label in enumerate(own) if label}
    given, known = (Counter(key_of(name) for name in names if name) for names in (labels, own))
    for row, label in enumerate(labels):
        key = key_of(label)
        if label and given[key] == known[key] == 1 and rows[key] != row:
            raise LabelsError(
                f"the labels are in another order than the graph's own: {label!r} is number "
                f"{row + 1}, and number {rows[key] + 1} in the graph; drop `labels_path`"
            )


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Reads the lines of a labels file, without line ends and without empty lines at the end.

    Raises:
        LabelsError: the file is unreadable, empty or no text, or a line is no label, or repeats
            one. A list of ImageNet's classes may repeat labels.
    """
    name = f"the labels file {path}"
    try:
        labels = read_lines(path, name, MOST_LABEL_BYTES)
    except TextError as error:
        raise LabelsError(str(error)) from error
    while labels and not labels[-1]:
        labels.pop()
    if not labels:
        raise LabelsError(f"{name} is empty")
    lines: dict[str, int] = {}
    for line, label in enumerate(labels, start=1):
        if not label:
            raise LabelsError(f"line {line} of {name} is empty; give that class a name")
        if not is_label(label):
            raise LabelsError(
                f"line {line} of {name} ({label!r}) has characters that cannot stand in a label"
            )
        if lines.setdefault(label, line) != line and len(labels) not in IMAGENET_CLASSES:
            raise LabelsError(
                f"line {line} of {name} repeats {label!r} of line {lines[label]}; give each class "
                f"a name of its own"
            )
    return tuple(labels)
