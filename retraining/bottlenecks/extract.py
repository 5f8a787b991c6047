"""Computes the vectors of image files: decodes while the network runs, in batches of one size."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.fetch import FETCHED_AHEAD, FETCHERS, Fetched, changed_pixels
from retraining.bottlenecks.runtime import RuntimeSettings, open_runner
from retraining.bottlenecks.store import BottleneckStore
from retraining.graphs.litert import LiteRunner
from retraining.graphs.run import Runner, Running
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

BATCH_SIZE = 8  # images per call of the network; larger batches are no faster on a processor
GPU_BATCH_SIZE = 32
IMAGE_MEMORY = 64 << 20  # bytes that an image takes in the network, estimated generously
# Stands among items of any type: no more are at hand, so yield the answers to all taken so far.
FLUSH: Any = object()

Answer = NDArray[np.float32] | ImageError  # vectors, or the reason why there are none

T = TypeVar("T")
R = TypeVar("R")


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


def side_by_side(
    items: Iterable[T], streams: Sequence[Callable[[Iterable[T]], Iterable[tuple[T, Answer]]]]
) -> Iterator[tuple[T, Answer]]:
    """Yields (item, float32 [k, sum of widths] or ImageError) for each item, in order.

    Calls each of the `streams` with the items; they yield (item, float32 [k, width] or ImageError)
    as `stream` does, and FLUSH has the same effect.
    """
    copies = itertools.tee(items, len(streams))
    runs = [run(copy) for run, copy in zip(streams, copies, strict=True)]
    for (item, first), *others in zip(*runs, strict=True):
        answers = [first, *(answer for _, answer in others)]
        errors = [answer for answer in answers if isinstance(answer, ImageError)]
        vectors = [answer for answer in answers if not isinstance(answer, ImageError)]
        yield item, errors[0] if errors else np.concatenate(vectors, axis=1)


class BatchRunner(Protocol):
    """Runs a network on batches of images: a Runner, or FixedBatches."""

    @property
    def parallel(self) -> int:
        """How many threads may call `run` at once."""

    def run(self, images: NDArray[np.float32], /) -> NDArray[np.float32]:
        """Returns float32 [n, width] for float32 [n, height, width, 3]."""


@dataclass(frozen=True)
class FixedBatches:
    """Runs a network on batches of one size, `parallel` of them at once.

    The last bits of a vector depend on the number of images in its batch, but not on the other
    images. With one size, a photo gets the same vector, bit for bit, in any company.
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


def stream(
    items: Iterable[T],
    load: Callable[[T], NDArray[np.float32]],
    runner: BatchRunner,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[T, Answer]]:
    """Yields (item, float32 [k, width] or ImageError) for each item, in order.

    `load(item)` returns the item's k input images, float32 [k, height, width, 3], or raises
    ImageError. Threads call it while `runner.run` computes earlier batches. All batches have
    `batch_size` images except the last one and the last one before a FLUSH. The number of images in
    memory is bounded. After a FLUSH, all answers are yielded before the next item is requested.
    """

    def load_or_error(item: T) -> tuple[T, Answer]:
        try:
            return item, load(item)
        except ImageError as error:
            return item, error

    threads = runner.parallel
    waiting: deque[tuple[T, int | ImageError]] = deque()
    with thread_pool(max(2, threads)) as decoders, thread_pool(threads) as networks:
        # Decode enough images for every thread's next batch and the one after.
        loaded = in_order(decoders, load_or_error, items, ahead=batch_size * (threads + 1))
        batches = _batches(loaded, batch_size, waiting)
        yield from _answers(in_order(networks, runner.run, batches, ahead=threads), waiting)


def in_order(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Maps as `map` does, in `pool`, up to `ahead` items in advance; passes FLUSH on."""
    pending: deque[Future[R]] = deque()
    for item in items:
        flush = item is FLUSH
        if not flush:
            pending.append(pool.submit(function, item))
        while len(pending) > ahead or (flush and pending):
            yield pending.popleft().result()
        if flush:
            yield FLUSH
    while pending:
        yield pending.popleft().result()


@contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yields a thread pool that drops its queue when it is left early.

    Waits for running calls, but not after Ctrl-C, since a batch may take seconds.
    """
    pool, wait = ThreadPoolExecutor(threads), True
    try:
        yield pool
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)


def _batches(
    loaded: Iterable[tuple[T, Answer]], batch_size: int, waiting: deque[tuple[T, int | ImageError]]
) -> Iterator[NDArray[np.float32]]:
    """Yields float32 [batch_size, height, width, 3], fewer at the end and before each FLUSH.

    Appends (item, number of its images or its ImageError) to `waiting`, in order.
    """
    pieces: list[NDArray[np.float32]] = []
    count = 0
    for answer in loaded:
        flush = answer is FLUSH
        if flush:
            if count:
                yield np.concatenate(pieces)
            pieces, count = [], 0
            yield FLUSH
            continue
        item, images = answer
        if isinstance(images, ImageError):
            waiting.append((item, images))
            continue
        waiting.append((item, len(images)))
        pieces.append(images)
        count += len(images)
        if count >= batch_size:
            images, full = np.concatenate(pieces), count - count % batch_size
            yield from (images[at : at + batch_size] for at in range(0, full, batch_size))
            pieces, count = [images[full:]], count - full
    if count:
        yield np.concatenate(pieces)


def _answers(
    outputs: Iterable[NDArray[np.float32]], waiting: deque[tuple[T, int | ImageError]]
) -> Iterator[tuple[T, Answer]]:
    """Yields (item, float32 [k, width] or ImageError) for the `waiting` items, in order.

    `outputs` yields float32 [n, width] with the items' rows in order, and FLUSH.
    """
    rows = np.empty((0, 0), np.float32)
    for output in outputs:
        if output is not FLUSH:
            rows = np.concatenate([rows, output]) if len(rows) else output
        while waiting:
            item, count = waiting[0]
            if isinstance(count, ImageError):
                yield item, count
            elif count <= len(rows):
                yield item, rows[:count]
                rows = rows[count:]
            else:
                break
            waiting.popleft()
    for item, error in waiting:
        assert isinstance(error, ImageError), "none but bad images are left"
        yield item, error


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
