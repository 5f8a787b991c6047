"""Collects the vectors of photos that could be read."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.extract import Job
from retraining.photos.dataset import Example
from retraining.photos.reader import ImageError
from retraining.photos.source import BadImage


def collect(
    answers: Iterable[tuple[Job, NDArray[np.float32] | ImageError]],
    examples: Sequence[Example],
    width: int,
) -> tuple[list[Example], NDArray[np.float32], list[BadImage]]:
    """Returns (the examples that could be read, their vectors float32 [n, width], the others)."""
    kept: list[Example] = []
    bad: list[BadImage] = []
    vectors = np.empty((len(examples), width), np.float32)
    for example, (_, answer) in zip(examples, answers, strict=True):
        if isinstance(answer, ImageError):
            bad.append(BadImage(example.path, str(answer)))
            continue
        vectors[len(kept)] = answer[0]
        kept.append(example)
    return kept, vectors[: len(kept)], bad
