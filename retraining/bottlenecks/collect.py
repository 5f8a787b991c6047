"""Collects the vectors of photos that could be read."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.extract import Job
from retraining.photos.dataset import Example
from retraining.photos.reader import ImageError


def collect(
    answers: Iterable[tuple[Job, NDArray[np.float32] | ImageError]],
    examples: Sequence[Example],
    width: int,
) -> tuple[list[Example], NDArray[np.float32]]:
    """Returns (the examples that could be read, their vectors float32 [n, width])."""
    kept: list[Example] = []
    vectors = np.empty((len(examples), width), np.float32)
    for example, (_, answer) in zip(examples, answers, strict=True):
        if not isinstance(answer, ImageError):
            vectors[len(kept)] = answer[0]
            kept.append(example)
    return kept, vectors[: len(kept)]
