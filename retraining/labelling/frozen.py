"""Computes the output of a frozen graph, ours or anyone's, for image files."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.runtime import RuntimeSettings, is_few, open_lite, open_runner
from retraining.bottlenecks.stream import Answer, BatchRunner, side_by_side, stream
from retraining.graphs.description import SECOND_PREFIX
from retraining.graphs.head import HeadRunner
from retraining.graphs.litert import LiteRunner
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import IMAGE_BYTES, GraphError, node_name
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.run import BytesRunner, Runner, Running
from retraining.graphs.twin import VectorPart
from retraining.labelling.labels import check_width
from retraining.labelling.model import AnyImage, Computed, Request
from retraining.labelling.resolve import Overrides
from retraining.networks.precision import resolve_precision
from retraining.photos.reader import Image, ImageError, ImageReader, file_bytes, run_on_bytes


@dataclass(frozen=True)
class Part:
    """One of two networks in a graph: its input and output, its pixels, its arithmetic."""

    input: str
    bottleneck: str
    preprocessing: Preprocessing
    precision: str


@dataclass(frozen=True)
class FrozenModel:
    """A graph and how to use it; `preprocessing` is None if the graph takes file bytes."""

    graph_def: GraphDef
    input: str
    output: str
    preprocessing: Preprocessing | None
    precision: str = "float32"
    # The graph's own description, if it has one.
    described: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()  # the networks, if there are two
    single: int | None = None  # the rank of the input, if it takes one image at a time
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)  # what computes vectors

    def answers(
        self, images: Iterable[AnyImage], request: Request
    ) -> Iterator[tuple[AnyImage, Answer]]:
        """As Model.answers; for a few images, skips start-up work that pays off only for many."""
        if self.parts:
            return self._stream_of_both(images, request)
        return stream(images, *self._loader(request))

    def _stream_of_both(
        self, paths: Iterable[AnyImage], request: Request
    ) -> Iterator[tuple[AnyImage, Answer]]:
        """As `answers`: through each network on its own, then both vectors through the head."""
        joint = self.described["bottleneck_input"]
        head = self._open_head(joint, request.also) or Runner(
            self.graph_def, joint, self.output, Running(optimize=False, also=request.also)
        )
        streams = [self._stream_of_part(part, request) for part in self.parts]
        for path, vectors in side_by_side(paths, streams):
            yield path, vectors if isinstance(vectors, ImageError) else head.run(vectors)

    def _stream_of_part(
        self, part: Part, request: Request
    ) -> Callable[[Iterable[AnyImage]], Iterator[tuple[AnyImage, Answer]]]:
        """Returns a function that yields the vectors of one network, as stream.stream does."""
        reader = ImageReader(part.preprocessing, request.max_pixels)
        vectors = VectorPart(self.graph_def, part.input, part.bottleneck, part.preprocessing)
        how = Running(part.precision, optimize=not is_few(request.count))
        runner = open_runner(vectors, how, self.runtime, request.count)

        def vectors_of(images: Iterable[AnyImage]) -> Iterator[tuple[AnyImage, Answer]]:
            return stream(images, reader.load, runner)

        return vectors_of

    def _loader(
        self, request: Request
    ) -> tuple[Callable[[Image], NDArray[np.float32]], BatchRunner]:
        """(how a path is loaded, what runs the loaded batch)."""
        if self.preprocessing is None:
            return self._from_bytes(request)
        if self.single:
            return self._one_by_one(self.preprocessing, request)
        reader = ImageReader(self.preprocessing, request.max_pixels)
        if without_tensorflow := self._open_lite(self.preprocessing, request):
            return reader.load, without_tensorflow
        how = Running(self.precision, not is_few(request.count), request.also)
        runner = Runner(self.graph_def, self.input, self.output, how)
        check_width(runner.width, request.classes)
        return reader.load, runner

    def _from_bytes(
        self, request: Request
    ) -> tuple[Callable[[Image], NDArray[np.float32]], Computed]:
        """As `_loader`, for a graph that decodes files itself."""
        few, most = is_few(request.count), request.max_pixels
        runner = BytesRunner(self.graph_def, self.output, self.input, request.also, few=few)
        check_width(runner.width, request.classes)

        def load(image: Image) -> NDArray[np.float32]:
            return run_on_bytes(runner, file_bytes(image, most), most).reshape(1, -1)

        return load, Computed()

    def _open_head(self, vectors: str, also: tuple[str, ...]) -> HeadRunner | None:
        """Opens the layers behind a node in NumPy; None if only TensorFlow computes them."""
        try:
            return HeadRunner(self.graph_def, vectors, (self.output, *also))
        except GraphError:
            return None

    def _open_lite(self, preprocessing: Preprocessing, request: Request) -> "_WithHead | None":
        """Opens the network in LiteRT, its head in NumPy; None if TensorFlow runs the graph."""
        own = self.described.get("input"), self.described.get("output")
        vectors = self.described.get("bottleneck")
        if own != (self.input, self.output) or vectors is None:
            return None
        part = VectorPart(self.graph_def, self.input, vectors, preprocessing)
        head = self._open_head(vectors, request.also)
        lite = head and open_lite(part, Running(self.precision), self.runtime, request.count)
        return _WithHead(lite, head) if head and lite else None

    def _one_by_one(
        self, preprocessing: Preprocessing, request: Request
    ) -> tuple[Callable[[Image], NDArray[np.float32]], Computed]:
        """As `_loader`, for a graph that takes single images, or resizes them itself."""
        reader = ImageReader(preprocessing, request.max_pixels)
        runner = BytesRunner(self.graph_def, self.output, self.input, request.also)
        check_width(runner.width, request.classes)

        def load(image: Image) -> NDArray[np.float32]:
            pixels = reader.load(image)
            pixels = pixels if self.single == 4 else pixels[0]
            return runner.run_pixels({self.input: pixels}).reshape(1, -1)

        return load, Computed()


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


def find_parts(
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
