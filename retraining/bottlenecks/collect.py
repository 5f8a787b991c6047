"""Collects the vectors of photos that could be read."""

import numpy as np

from retraining.photos.reader import ImageError


def collect(answers, examples, width):
    """(the examples that could be read, their vectors float32 [n, width])."""
    kept, vectors = [], np.empty((len(examples), width), np.float32)
    for example, (_, answer) in zip(examples, answers, strict=True):
        if not isinstance(answer, ImageError):
            vectors[len(kept)] = answer[0]
            kept.append(example)
    return kept, vectors[: len(kept)]
