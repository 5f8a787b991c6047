"""Bottleneck vectors with the classes of their photos."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retraining.metrics.classification import choose_rows


@dataclass(frozen=True)
class Labelled:
    """Vectors, float32 [n, width], and the class index of each, int [n]."""

    vectors: NDArray[np.float32]
    targets: NDArray[np.int_]

    @classmethod
    def of(
        cls, vectors: NDArray[np.float32], names: Iterable[str], labels: Iterable[str]
    ) -> "Labelled":
        """Labels vectors; `names` [n] are theirs, `labels` all classes in the output's order."""
        index = {label: number for number, label in enumerate(labels)}
        return cls(vectors, np.array([index[name] for name in names], int))

    @classmethod
    def join(cls, parts: Sequence["Labelled"]) -> "Labelled":
        """Joins the rows of several Labelled."""
        vectors, targets = zip(*((part.vectors, part.targets) for part in parts), strict=True)
        return cls(np.concatenate(vectors), np.concatenate(targets))

    def first(self, count: int) -> "Labelled":
        """Returns the first rows, without a copy."""
        return Labelled(self.vectors[:count], self.targets[:count])

    def thinned(self, most: int) -> "Labelled":
        """Returns at most `most` rows, evenly spread."""
        rows = choose_rows(len(self.targets), most)
        return Labelled(self.vectors[rows], self.targets[rows])
