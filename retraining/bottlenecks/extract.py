"""Computes the vectors of image files: decodes while the network runs, in batches of one size."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.fetch import FETCHED_AHEAD, FETCHERS, Fetched, changed_pixels
from retraining.bottlenecks.runtime import RuntimeSettings, open_runner
from retraining.bottlenecks.store import BottleneckStore
from retraining.bottlenecks.stream import (
    BATCH_SIZE,
    Answer,
    in_order,
    side_by_side,
    stream,
    thread_pool,
)
from retraining.graphs.litert import LiteRunner
from retraining.graphs.run import Runner, Running
from retraining.graphs.runtimes import LITERT, TENSORFLOW
from retraining.graphs.session import return_free_memory
from retraining.graphs.tensorflow import import_tensorflow
from retraining.graphs.twin import VectorPart
from retraining.networks.mirror import images_per_photo
from retraining.networks.network import BaseNetwork
from retraining.networks.pair import NetworkPair
from retraining.photos.bounds import MAX_PIXELS
from retraining.photos.dataset import Example
from retraining.photos.reader import Distortions, ImageError, ImageReader
from retraining.system.background import beside
from retraining.system.memory import free_memory

GPU_BATCH_SIZE = 32
IMAGE_MEMORY = 64 << 20  # bytes that an image takes in the network, estimated generously
T = TypeVar("T")


class ShowProgress(Protocol):
    """Wraps an iterable to show progress, as a Bar does."""

    def __call__(self, iterable: Iterable[T], /, total: int) -> Iterable[T]:
        """Returns an iterable of the same items, `total` in number."""


@dataclass(frozen=True)
class Job:
    """A photo whose vectors to compute: its own and, with distortions, those of its views."""

    example: Example
    distortions: Distortions | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its vectors in the store, the undistorted one first."""
        key = self.example.key
        distortions = self.distortions
        if not distortions:
            return (key,)
        views = range(distortions.views)
        return (key, *(distortions.view_key(key, view) for view in views))


@dataclass(frozen=True)
class Reading:
    """The result of reading a file once."""

    path: str
    key: str | None  # SHA-1 of its bytes, hex; None if it cannot be read
    vector: Answer  # float32 [width]


@dataclass(frozen=True)
class ExtractionSettings:
    """How vectors are computed."""

    precision: str = "float32"  # or `bfloat16`
    batch_size: int | None = None  # photos per call of the network; None: as suits the device
    max_pixels: int = MAX_PIXELS  # of the largest image
    cores: int | None = None  # to use; None: all
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)


class VectorSource(Protocol):
    """Computes the vectors of photos, with one network or with two side by side."""

    @property
    def network(self) -> BaseNetwork | NetworkPair:
        """The network, or both."""

    @property
    def settings(self) -> ExtractionSettings:
        """How they are computed."""

    @property
    def parts(self) -> tuple["Extractor", ...]:
        """The Extractor of each network."""

    def start(self) -> None:
        """Starts in the background, which takes seconds."""

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Answer]]:
        """Yields (job, float32 [keys, width] or ImageError) for each Job, in order."""


class Extractor:
    """Computes vectors with one network; starts when it is first needed."""

    def __init__(self, network: BaseNetwork, settings: ExtractionSettings | None = None) -> None:
        self.network, self.settings = network, settings or ExtractionSettings()
        self.runtime: str | None = None  # what computes the vectors; None: nothing has, so far
        self._asking = threading.Lock()
        self._started: Future[tuple[ImageReader, FixedBatches]] | None = None

    @property
    def parts(self) -> tuple["Extractor", ...]:
        """The Extractor of each network: itself; see PairExtractor."""
        return (self,)

    def start(self) -> None:
        """Starts in the background, which takes seconds."""
        self._start_once()

    def started(self) -> tuple[ImageReader, "FixedBatches"]:
        """Starts if necessary, waits, and returns the reader and the runner."""
        return self._start_once().result()

    def stop(self) -> None:
        """Frees the network's memory; the next call that needs it starts it again."""
        with self._asking:
            self._started = None
        return_free_memory()

    def _start_once(self) -> Future[tuple[ImageReader, "FixedBatches"]]:
        with self._asking:
            self._started = self._started or beside(self._start)
        return self._started

    def _start(self) -> tuple[ImageReader, "FixedBatches"]:
        network, settings = self.network, self.settings
        ends = network.input, network.bottleneck
        part = VectorPart(network.graph_def, *ends, network.preprocessing)
        how = Running(settings.precision, cores=settings.cores)
        runner = open_runner(part, how, settings.runtime)
        self.runtime = LITERT if isinstance(runner, LiteRunner) else TENSORFLOW
        batches = FixedBatches.of(runner, settings.batch_size, images_per_photo(network))
        batches.run(np.zeros((1, *network.preprocessing.size, 3), np.float32))
        reader = ImageReader(network.preprocessing, settings.max_pixels)
        return reader, batches

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Answer]]:
        """Yields (job, float32 [keys, width] or ImageError) for each Job, in order."""
        if not jobs:
            return
        reader, batches = self.started()

        def load(job: Job) -> NDArray[np.float32]:
            return reader.read(job.example.path, job.example.key, job.distortions)

        yield from stream(jobs, load, batches, batches.size)

    def compute(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Answer]]:
        """Computes vectors for the store, as `run`; an engine may yield them in any order."""
        yield from self.run(jobs)

    def read(self, paths: Iterable[str]) -> Iterator[Reading]:
        """Yields a Reading for each path; an engine may yield them in any order.

        Fetches, decodes and runs files in parallel, and fetches each once. The caller must have
        left out files that are too large.

        Raises:
            SourceError: no file of a photo source can be read.
        """
        reader, batches = self.started()

        def decode(fetched: Fetched) -> NDArray[np.float32]:
            return fetched.decoded(reader)

        with thread_pool(FETCHERS) as fetchers:
            files = in_order(fetchers, Fetched, paths, FETCHED_AHEAD)
            for file, vectors in stream(files, decode, batches, batches.size):
                vector = vectors if isinstance(vectors, ImageError) else vectors[0]
                yield Reading(file.path, file.key, vector)


class PairExtractor:
    """Computes the vectors of two networks side by side, as an Extractor does for one."""

    def __init__(self, first: Extractor, second: Extractor) -> None:
        """Takes two Extractors."""
        self.parts: tuple[Extractor, ...] = (first, second)
        self.network = NetworkPair(first.network, second.network)
        # "bfloat16+float32" if they differ; each part computes in its own.
        precisions = dict.fromkeys(part.settings.precision for part in self.parts)
        self.settings = replace(first.settings, precision="+".join(precisions))

    def start(self) -> None:
        """Starts both in the background."""
        for part in self.parts:
            part.start()

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Answer]]:
        """Yields (job, float32 [keys, width of both] or ImageError) for each Job, in order."""
        if jobs:
            yield from side_by_side(jobs, [part.run for part in self.parts])


@dataclass(frozen=True)
class FixedBatches:
    """Runs a network on batches of one size, `parallel` of them at once.

    The last bits of a vector depend on the number of images in its batch, but not on the other
    images. With one size, a photo gets the same vector, bit for bit, in any company, except where
    TensorFlow's own kernels also round by the place in the batch (seen with AVX2, without oneDNN).
    """

    runner: Runner | LiteRunner
    size: int  # photos
    parallel: int

    @classmethod
    def of(
        cls, runner: Runner | LiteRunner, size: int | None = None, images_per_photo: int = 1
    ) -> "FixedBatches":
        """Chooses the size if None. The network computes `images_per_photo` for each photo."""
        if runner.one_at_a_time:
            size = 1
        size = size or default_batch_size(runner.parallel) // images_per_photo
        return cls(runner, size, batches_in_memory(size * images_per_photo, runner.parallel))

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns float32 [n, width] for float32 [n, height, width, 3], n from 1 to `size`.

        Raises:
            GraphError: see Runner.run.
        """
        if len(images) == self.size:
            return self.runner.run(images)
        padding = np.zeros((self.size - len(images), *images.shape[1:]), images.dtype)
        return self.runner.run(np.concatenate([images, padding]))[: len(images)]


def default_batch_size(parallel: int) -> int:
    """Returns the images per call; `parallel` calls run at once (1: on a GPU or one core)."""
    return BATCH_SIZE if parallel > 1 or not import_tensorflow().gpus() else GPU_BATCH_SIZE


def batches_in_memory(images: int, most: int) -> int:
    """Returns how many batches of so many images may run at once: 1 to `most`.

    Together they take at most a quarter of the free memory, if the system reports it. The size of a
    batch does not change, since the bits of a vector depend on it.
    """
    free = free_memory()
    if free is None:
        return most
    return max(1, min(most, free // 4 // (images * IMAGE_MEMORY)))


def fill_store(
    store: BottleneckStore,
    jobs: Sequence[Job],
    extractor: Extractor,
    progress: ShowProgress,
    broken: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Computes the vectors that the store lacks; returns {image key: reason} of unreadable images.

    Computes a photo if any of its keys is missing, copies of a file once, and photos known to be
    `broken` (also {image key: reason}) not at all. Starts the network only if there is something to
    compute.
    """
    names = {key: job.example.path for job in jobs for key in job.keys}
    missing = set(store.missing(names, changed_pixels(names)))
    bad = dict(broken or {})
    jobs = [job for job in jobs if job.example.key not in bad]
    wanted = {job.keys: job for job in jobs if missing.intersection(job.keys)}.values()
    if not wanted:
        return bad
    for job, vectors in progress(extractor.compute(wanted), total=len(wanted)):
        if isinstance(vectors, ImageError):
            bad[job.example.key] = str(vectors)
            continue
        for key, vector in zip(job.keys, vectors, strict=True):
            store.put(key, vector)
    store.commit()
    return bad
