"""Chooses the photos of each training step."""

import numpy as np
from numpy.typing import NDArray

DRAWN_AT_ONCE = 25_600  # row numbers; drawing batch by batch takes a tenth of the training time


class ClassUniform:
    """Draws row numbers class-uniformly, with replacement.

    Each draw takes a class first and then one of its rows, as the classic did, so that a rare class
    counts as much as a frequent one. A batch size of -1 gives all rows. Without rows, batches are
    empty.
    """

    def __init__(
        self,
        targets: NDArray[np.integer],
        classes: int,
        batch_size: int,
        rng: np.random.Generator,
    ) -> None:
        rows = [np.flatnonzero(targets == label) for label in range(classes)]
        rows = [of_class for of_class in rows if len(of_class)]
        self._counts = np.array([len(of_class) for of_class in rows])
        self._rows: NDArray[np.integer] = np.concatenate(rows) if rows else np.arange(0)
        self._starts = np.cumsum(self._counts) - self._counts
        self._batch_size, self._rng = batch_size, rng
        self._drawn: list[NDArray[np.integer]] = []

    def __call__(self) -> NDArray[np.integer]:
        """Returns the row numbers of the next batch, int [batch size]."""
        if self._batch_size == -1 or not len(self._rows):
            return self._rows
        if not self._drawn:
            self._drawn = list(self._draw(max(1, DRAWN_AT_ONCE // self._batch_size)))
        return self._drawn.pop()

    def _draw(self, batches: int) -> NDArray[np.integer]:
        shape = (batches, self._batch_size)
        labels = self._rng.integers(len(self._counts), size=shape)
        nth = (self._rng.random(shape) * self._counts[labels]).astype(np.int64)
        drawn: NDArray[np.integer] = self._rows[self._starts[labels] + nth]
        return drawn


class Shuffled:
    """Gives every row once in random order, then again in another order.

    A batch size of -1 gives all rows at once.
    """

    def __init__(self, count: int, batch_size: int, rng: np.random.Generator) -> None:
        self._count, self._rng = count, rng
        self._batch_size = count if batch_size == -1 else batch_size
        self._left: NDArray[np.integer] = np.arange(0)

    def __call__(self) -> NDArray[np.integer]:
        """Returns the row numbers of the next batch, int [batch size].

        The last batch of a pass holds the rows that are left.
        """
        if not len(self._left):
            self._left = self._rng.permutation(self._count)
        rows: NDArray[np.integer]
        rows, self._left = np.split(self._left, [self._batch_size])
        return rows


def passes_to_steps(passes: int, count: int, batch_size: int) -> int:
    """Returns how many steps Shuffled needs for that many passes over `count` rows."""
    return passes * (1 if batch_size == -1 else -(-count // batch_size))
