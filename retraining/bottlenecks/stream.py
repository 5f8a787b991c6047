"""Streams images through a network: decodes while the network runs, in batches, in order."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from retraining.photos.reader import ImageError

BATCH_SIZE = 8  # images per call of the network; larger batches are no faster on a processor
# Stands among items of any type: no more are at hand, so yield the answers to all taken so far.
FLUSH: Any = object()

Answer = NDArray[np.float32] | ImageError  # vectors, or the reason why there are none

T = TypeVar("T")
R = TypeVar("R")


class BatchRunner(Protocol):
    """Runs a network on batches of images: a Runner, or FixedBatches."""

    @property
    def parallel(self) -> int:
        """How many threads may call `run` at once."""

    def run(self, images: NDArray[np.float32], /) -> NDArray[np.float32]:
        """Returns float32 [n, width] for float32 [n, height, width, 3]."""


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
