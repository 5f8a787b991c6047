"""From the graph of a classifier, ours or anyone's, to class probabilities of image files."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.runtime import RuntimeSettings
from retraining.bottlenecks.stream import Answer
from retraining.evaluation import trust
from retraining.evaluation.temperature import FEWEST_PHOTOS, apply_temperature
from retraining.evaluation.unknown import UnknownScore
from retraining.graphs.description import read_metadata
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import GraphError, constant, nodes_by_name
from retraining.graphs.read import read_graph
from retraining.graphs.runtimes import AUTO, LITERT, TENSORFLOW
from retraining.graphs.safety import describe_unsafe
from retraining.graphs.twin import cache_folder
from retraining.labelling.exported import Description, model_of
from retraining.labelling.formats import Format, format_of
from retraining.labelling.frozen import FrozenModel, Part, find_parts
from retraining.labelling.labels import check_order, check_width, find_labels
from retraining.labelling.model import AnyImage, Model, Request
from retraining.labelling.resolve import Overrides, resolve
from retraining.networks.precision import resolve_precision
from retraining.photos.bounds import MAX_PIXELS
from retraining.photos.reader import Image, ImageError

# The label of unknown images: the first of these that is not a class.
UNKNOWN = ("unknown", "(unknown)", "((unknown))", "(((unknown)))")

# Such as "is ..." of an image that cannot be read; programs read these reasons, too.
NO_NUMBERS = "has no answer: the graph gives infinity or NaN for it, which a wrong scale may cause"


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
class Classifier:
    """A model and what its outputs mean."""

    model: Model
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()  # the assumptions that were made, a line each
    # The graph's own description, if it has one.
    described: Mapping[str, Any] = field(default_factory=dict)
    max_pixels: int = MAX_PIXELS  # larger images are refused
    temperature: float = 1.0  # applied to the output's probabilities
    raw_temperature: float = 1.0  # which gives the plain softmax instead
    unknown: UnknownScore | None = None
    unknown_inputs: tuple[str, ...] = ()  # the nodes of the vectors and logits for that score

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
                "`unknown_share` needs a frozen graph that retrain.py made with "
                f"{FEWEST_PHOTOS} validation photos or more; this one has no such score"
            )
        also = () if share is None else self.unknown_inputs
        request = Request(len(self.labels), count, self.max_pixels, also)
        for image, outputs in self.model.answers(images, request):
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

    def _checked(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        probabilities = outputs.reshape(-1)
        check_width(len(probabilities), len(self.labels))
        calibrated: NDArray[np.float32]
        (calibrated,) = apply_temperature(probabilities[None], self.temperature)
        return calibrated


def load_classifier(
    graph_path: str | Path,
    labels_path: str | Path | tuple[str, ...] | None = None,
    overrides: Overrides | None = None,
    precision: str = "auto",
    runtime: str = AUTO,
) -> Classifier:
    """Reads a retrained graph, or any frozen image classifier, or a model of another format.

    `labels_path` may also be a tuple of the labels themselves.

    A model that describes itself needs nothing else. For other graphs the overrides come first,
    then the facts in the graph's nodes, then what is usual for such graphs (with a line in
    `notes`).

    Raises:
        GraphError: the file is not a model, or is not known to be harmless, or lacks a fact
            that the overrides do not give.
        LabelsError: there is no labels file, or it is unreadable, or labels are repeated.
    """
    overrides = overrides or Overrides()
    if (kind := format_of(graph_path)) is None:
        return _load_frozen(graph_path, labels_path, overrides, precision, runtime)
    _check_options(graph_path, kind, overrides, precision, runtime)
    return _load_exported(graph_path, kind, labels_path, overrides)


def _check_options(
    path: str | Path, kind: Format, overrides: Overrides, precision: str, runtime: str
) -> None:
    """Raises GraphError for what only a frozen graph can do."""
    options = {
        "`Overrides.input_layer`": overrides.input_layer is None,
        "`Overrides.output_layer`": overrides.output_layer is None,
        "`precision`": precision in ("auto", "float32"),
        "`runtime`": runtime in kind.runtimes,
    }
    if wrong := [name for name, allowed in options.items() if not allowed]:
        raise GraphError(
            f"{path} is {kind.name}, for which {wrong[0]} cannot be chosen; drop it, or give the "
            f"frozen graph"
        )


def _load_exported(
    path: str | Path,
    kind: Format,
    labels_path: str | Path | tuple[str, ...] | None,
    overrides: Overrides,
) -> Classifier:
    """As load_classifier, for a model of another format."""
    try:
        program = kind.open(path, overrides.allow_unsafe_ops)
        own = None if program.description is None else Description.parse(program.description)
        model = model_of(program, own, overrides)
    except GraphError as error:
        raise GraphError(f"{path} is {kind.name} that cannot be used: {error}") from error
    notes = [f"running {path}, although it holds {program.unsafe}"] if program.unsafe else []
    told = (own.labels if own else program.labels) or None
    labels = find_labels(path, labels_path, told, notes)
    if told:
        check_order(labels, told)
    classifier = Classifier(model, labels, tuple(notes))
    if own is None:
        return classifier
    return replace(classifier, temperature=own.temperature, raw_temperature=own.raw_temperature)


def _load_frozen(
    graph_path: str | Path,
    labels_path: str | Path | tuple[str, ...] | None,
    overrides: Overrides,
    precision: str,
    runtime: str,
) -> Classifier:
    """As load_classifier, for a frozen graph."""
    if runtime == LITERT and precision == "auto":
        precision = "float32"
    graph_def = read_graph(graph_path, overrides.allow_unsafe_ops)
    described = read_metadata(graph_def) or {}
    unsafe = overrides.allow_unsafe_ops and describe_unsafe(graph_def)
    notes = [f"running {graph_path}, although it holds {unsafe}"] if unsafe else []
    labels = find_labels(graph_path, labels_path, described.get("labels"), notes)
    ends = resolve(graph_def, overrides, described)
    if ends.output == described.get("output"):
        check_order(labels, described["labels"])
    parts: tuple[Part, ...] = ()
    if described.get("second") and ends.preprocessing:
        parts = find_parts(graph_def, described, overrides, precision)
    model = FrozenModel(
        graph_def=graph_def,
        input=ends.input,
        output=ends.output,
        preprocessing=ends.preprocessing,
        precision=resolve_precision(precision, graph_def),
        described=described,
        parts=parts,
        single=ends.single,
        runtime=RuntimeSettings(
            TENSORFLOW if precision == "bfloat16" else runtime,
            (cache_folder(), Path(graph_path).parent),
        ),
    )
    classifier = Classifier(model, labels, (*notes, *ends.assumed), described)
    if ends.output != described.get("output"):
        return classifier  # temperature and score were fitted for another output
    return replace(classifier, **_find_trust(graph_def, described))


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
