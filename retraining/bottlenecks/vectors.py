"""Bottleneck vectors with the classes of their photos."""

from dataclasses import dataclass

import numpy as np

from retraining.metrics.classification import choose_rows


@dataclass(frozen=True)
class Labelled:
    """Vectors float32 [n, width] and the class index of each, int [n]."""

    vectors: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(cls, vectors, names, labels):
        """`names` [n] are the vectors' labels, `labels` all classes in the order of the output."""
        index = {label: number for number, label in enumerate(labels)}
        return cls(vectors, np.array([index[name] for name in names], int))

    @classmethod
    def join(cls, parts):
        """All rows of several Labelled."""
        vectors, truth = zip(*((part.vectors, part.truth) for part in parts), strict=True)
        return cls(np.concatenate(vectors), np.concatenate(truth))

    def first(self, count):
        """The first rows, without a copy."""
        return Labelled(self.vectors[:count], self.truth[:count])

    def thinned(self, most):
        """At most so many rows, evenly spread."""
        rows = choose_rows(len(self.truth), most)
        return Labelled(self.vectors[rows], self.truth[rows])
