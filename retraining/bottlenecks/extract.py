"""Image files -> vectors: decoding beside the network, batches, progress, the store."""

import itertools
import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from retraining.graphs.run import Runner, Running
from retraining.graphs.tensorflow import import_tensorflow
from retraining.networks.mirror import images_per_photo
from retraining.networks.pair import NetworkPair
from retraining.photos.dataset import Example
from retraining.photos.decode import MAX_PIXELS
from retraining.photos.reader import Distortions, ImageError, ImageReader

BATCH_SIZE = 8  # images per call of the network; on a processor more are no faster
GPU_BATCH_SIZE = 32
IMAGE_MEMORY = 64 << 20  # bytes that an image takes in the network, a generous estimate
FLUSH = object()  # among items: no more is at hand now, so what was taken shall be answered


@dataclass(frozen=True)
class Job:
    """One photo whose vectors are wanted: its own and, with distortions, those of its views."""

    example: Example
    distortions: Distortions | None = None

    @property
    def keys(self):
        """The keys under which its vectors are stored, the undistorted one first."""
        key = self.example.key
        if not self.distortions:
            return (key,)
        views = range(self.distortions.views)
        return (key, *(self.distortions.view_key(key, view) for view in views))


def beside(function, *arguments):
    """Calls a function on a thread of its own, which keeps nobody from ending; gives its Future."""
    future = Future()

    def call():
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


@dataclass(frozen=True)
class Settings:
    """How vectors are computed: `float32` or `bfloat16`, images per call of the network (None
    leaves the choice to us), the largest image, in pixels, and the cores to use (None: all)."""

    precision: str = "float32"
    batch_size: int | None = None
    max_pixels: int = MAX_PIXELS
    cores: int | None = None


class Extractor:
    """Computes vectors with one network (graph.BaseNetwork); starts when it is first needed."""

    def __init__(self, network, settings=None):
        self.network, self.settings = network, settings or Settings()
        self._asking, self._started = threading.Lock(), None

    @property
    def parts(self):
        """The Extractors it is made of: itself; see PairExtractor."""
        return (self,)

    def start(self):
        """Starts, which takes seconds, beside other work; gives the Future of reader and runner."""
        with self._asking:
            self._started = self._started or beside(self._start)
        return self._started

    def _start(self):
        network, about, chosen = self.network, self.network.preprocessing, self.settings
        ends = network.input, network.bottleneck
        runner = Runner(network.graph_def, *ends, Running(chosen.precision, cores=chosen.cores))
        batches = FixedBatches.of(runner, chosen.batch_size, images_per_photo(network))
        batches.run(np.zeros((1, *about.size, 3), np.float32))
        reader = ImageReader(about.size, about.mean, about.std, chosen.max_pixels)
        return reader, batches

    def run(self, jobs):
        """Yields (job, float32 [keys, width] or ImageError) for each Job, in order."""
        if not jobs:
            return
        reader, batches = self.start().result()

        def load(job):
            return reader.read(job.example.path, job.example.key, job.distortions)

        yield from stream(jobs, load, batches, batches.size)

    def compute(self, jobs):
        """As `run`, for vectors that are to be stored: an engine may yield them in any order."""
        yield from self.run(jobs)


class PairExtractor:
    """Computes the vectors of two networks side by side, as an Extractor does for one."""

    def __init__(self, first, second):
        """Takes two Extractors."""
        self.parts = (first, second)
        self.network = NetworkPair(first.network, second.network)
        # Said as "bfloat16+float32" where they differ; each part computes in its own.
        precisions = dict.fromkeys(part.settings.precision for part in self.parts)
        self.settings = replace(first.settings, precision="+".join(precisions))

    def start(self):
        """Starts both beside other work."""
        for part in self.parts:
            part.start()

    def run(self, jobs):
        """Yields (job, float32 [keys, width of both] or ImageError) for each Job, in order."""
        if jobs:
            yield from side_by_side(jobs, [part.run for part in self.parts])


def side_by_side(items, streams):
    """Yields (item, float32 [k, sum of widths] or ImageError) for each item, in order.

    Each of the `streams` is called with the items and yields (item, float32 [k, width] or
    ImageError), as `stream` does; FLUSH among the items has the same effect.
    """
    copies = itertools.tee(items, len(streams))
    runs = [run(copy) for run, copy in zip(streams, copies, strict=True)]
    for (item, first), *others in zip(*runs, strict=True):
        answers = [first, *(answer for _, answer in others)]
        errors = [answer for answer in answers if isinstance(answer, ImageError)]
        yield item, errors[0] if errors else np.concatenate(answers, axis=1)


@dataclass(frozen=True)
class FixedBatches:
    """Runs a network on batches of one size, `parallel` of them at once.

    The last bits of a vector depend on the number of images in its batch, but not on the other
    images. With one size, a photo gets the same vector, bit for bit, whatever comes with it.
    """

    runner: Runner
    size: int  # photos
    parallel: int

    @classmethod
    def of(cls, runner, size=None, images_per_photo=1):
        """`size` None: as many as suit the device. The network makes `images_per_photo` of each."""
        if runner.one_at_a_time:
            size = 1
        size = size or default_batch_size(runner.parallel) // images_per_photo
        return cls(runner, size, batches_in_memory(size * images_per_photo, runner.parallel))

    def run(self, images):
        """float32 [n, width] for float32 [n, height, width, 3], n from 1 to `size`.

        Raises:
            GraphError: see Runner.run.
        """
        padding = np.zeros((self.size - len(images), *images.shape[1:]), images.dtype)
        return self.runner.run(np.concatenate([images, padding]))[: len(images)]


def default_batch_size(parallel):
    """Images per call of the network, of which `parallel` run at once (1: on a GPU or one core)."""
    return BATCH_SIZE if parallel > 1 or not import_tensorflow().gpus() else GPU_BATCH_SIZE


def batches_in_memory(images, most):
    """How many batches of so many images may run at once: 1 to `most`.

    Together they take at most a quarter of the free memory, where the system tells it. Their size
    stays, since the bits of a vector depend on it.
    """
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return most
    return max(1, min(most, free // 4 // (images * IMAGE_MEMORY)))


def stream(items, load, runner, batch_size=BATCH_SIZE):
    """Yields (item, float32 [k, width] or ImageError) for each item, in order.

    `load(item)` gives the item's k input images, float32 [k, height, width, 3], or raises
    ImageError; it is called on threads while `runner.run` computes the batches before. All batches
    are of `batch_size` images but the last, and the last before a FLUSH. A bounded number of images
    is held whatever the number of items. Where `items` yields FLUSH, all answers up to there come
    before the next item is asked for.
    """

    def load_or_error(item):
        try:
            return item, load(item)
        except ImageError as error:
            return item, error

    threads, waiting = runner.parallel, deque()
    with thread_pool(max(2, threads)) as decoders, thread_pool(threads) as networks:
        # Enough decoded images for every thread's next batch and the one after.
        loaded = in_order(decoders, load_or_error, items, ahead=batch_size * (threads + 1))
        batches = _batches(loaded, batch_size, waiting)
        yield from _answers(in_order(networks, runner.run, batches, ahead=threads), waiting)


def in_order(pool, function, items, ahead):
    """Like `map`, computed by `pool` up to `ahead` items in advance; FLUSH is passed on."""
    pending = deque()
    for item in items:
        if item is not FLUSH:
            pending.append(pool.submit(function, item))
        while len(pending) > ahead or (item is FLUSH and pending):
            yield pending.popleft().result()
        if item is FLUSH:
            yield FLUSH
    while pending:
        yield pending.popleft().result()


@contextmanager
def thread_pool(threads):
    """A thread pool that drops its queue when it is left early.

    What runs is waited for, but not after Ctrl-C: a batch may take seconds.
    """
    pool, wait = ThreadPoolExecutor(threads), True
    try:
        yield pool
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)


def _batches(loaded, batch_size, waiting):
    """Yields float32 [batch_size, height, width, 3], fewer at the end and before each FLUSH.

    Appends (item, number of its images, or its ImageError) to `waiting`, in order.
    """
    pieces, count = [], 0
    for answer in loaded:
        if answer is FLUSH:
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


def _answers(outputs, waiting):
    """Yields (item, float32 [k, width] or ImageError) of the `waiting` items, in order.

    `outputs` yields float32 [n, width], which hold the items' rows one after the other, and FLUSH.
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
    yield from waiting  # none but bad images are left


def fill_store(store, jobs, extractor, progress, broken=()):
    """Computes the vectors that the store lacks; returns {image key: reason} of unreadable images.

    A photo is computed if any of its keys is missing; copies of a file once; those that are known
    to be `broken` (a dict of the same kind) not at all.
    `progress(iterable, total)` wraps what is iterated, as tqdm does. The network is only started
    if there is something to compute.
    """
    missing = set(store.missing(key for job in jobs for key in job.keys))
    bad = dict(broken)
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
