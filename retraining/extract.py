"""Image files -> vectors: decoding beside the network, batches, progress, the store."""

import itertools
import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from retraining.dataset import Example
from retraining.graph import Runner, Running
from retraining.image_files import MAX_PIXELS
from retraining.images import Distortions, ImageError, ImageReader
from retraining.mirror import images_per_photo
from retraining.pair import NetworkPair
from retraining.quiet_tensorflow import import_tensorflow

BATCH_SIZE = 8  # images per call of the network; on a processor more are no faster
GPU_BATCH_SIZE = 32
IMAGE_MEMORY = 64 << 20  # bytes an image takes in the network, amply
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
        batch_size = chosen.batch_size or choose_batch_size(
            runner.parallel, images_per_photo(network)
        )
        runner.run(np.zeros((batch_size, *about.size, 3), np.float32))
        reader = ImageReader(about.size, about.mean, about.std, chosen.max_pixels)
        return reader, runner, batch_size

    def run(self, jobs):
        """Yields (job, float32 [keys, width] or ImageError) for each Job, in order."""
        if not jobs:
            return
        reader, runner, batch_size = self.start().result()

        def load(job):
            return reader.read(job.example.path, job.example.key, job.distortions)

        yield from stream(jobs, load, runner, batch_size)

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


def choose_batch_size(parallel, images_per_photo=1):
    """Photos per call of the network, of which `parallel` run at once (1: on a GPU or one core).

    The network makes `images_per_photo` of each; as many images are computed all the same. Halved
    while the batches would take more than a quarter of the memory that is free, where the
    system tells it.
    """
    size = BATCH_SIZE if parallel > 1 or not import_tensorflow().gpus() else GPU_BATCH_SIZE
    size //= images_per_photo
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return size
    while size > 1 and size * images_per_photo * parallel * IMAGE_MEMORY > free / 4:
        size //= 2
    return size


def stream(items, load, runner, batch_size=BATCH_SIZE):
    """Yields (item, float32 [k, width] or ImageError) for each item, in order.

    `load(item)` gives the item's k input images, float32 [k, height, width, 3], or raises
    ImageError; it is called on threads while `runner.run` computes the batches before. A bounded
    number of images is held whatever the number of items. Where `items` yields FLUSH, all answers
    up to there come before the next item is asked for.
    """

    def load_or_error(item):
        try:
            return item, load(item)
        except ImageError as error:
            return item, error

    def answer(batch):
        return list(_answers(batch, runner, batch_size))

    threads = runner.parallel
    with thread_pool(max(2, threads)) as decoders, thread_pool(threads) as networks:
        # Enough decoded images for every thread's next batch and the one after.
        loaded = in_order(decoders, load_or_error, items, ahead=batch_size * (threads + 1))
        batches = _batches(loaded, batch_size)
        for answers in in_order(networks, answer, batches, ahead=threads):
            yield from () if answers is FLUSH else answers


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


def _batches(loaded, batch_size):
    """Groups consecutive (item, images) until they hold `batch_size` images, or up to a FLUSH."""
    batch, count = [], 0
    for answer in loaded:
        if answer is not FLUSH:
            batch.append(answer)
            count += 0 if isinstance(answer[1], ImageError) else len(answer[1])
        if batch and (count >= batch_size or answer is FLUSH):
            yield batch
            batch, count = [], 0
        if answer is FLUSH:
            yield FLUSH
    if batch:
        yield batch


def _answers(batch, runner, batch_size):
    good = [images for _, images in batch if not isinstance(images, ImageError)]
    if good:
        images = np.concatenate(good)
        parts = [
            runner.run(images[start : start + batch_size])
            for start in range(0, len(images), batch_size)
        ]
        outputs = np.concatenate(parts)
    row = 0
    for item, images in batch:
        if isinstance(images, ImageError):
            yield item, images
        else:
            yield item, outputs[row : row + len(images)]
            row += len(images)


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
