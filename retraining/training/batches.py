"""Which photos a training step sees."""

import numpy as np

DRAWN_AT_ONCE = 25_600  # row numbers; batch by batch, drawing would take a tenth of all the time


class ClassUniform:
    """Draws row numbers class-uniformly, with replacement; -1 (or no row) gives all rows.

    First a class is drawn, then one of its rows, as in the classic, so that a rare class counts as
    much as a frequent one.
    """

    def __init__(self, truth, classes, batch_size, rng):
        rows = [np.flatnonzero(truth == label) for label in range(classes)]
        rows = [of_class for of_class in rows if len(of_class)]
        self._counts = np.array([len(of_class) for of_class in rows])
        self._rows = np.concatenate(rows) if rows else np.arange(0)
        self._starts = np.cumsum(self._counts) - self._counts
        self._batch_size, self._rng, self._drawn = batch_size, rng, []

    def __call__(self):
        """Row numbers, int [batch size]."""
        if self._batch_size == -1 or not len(self._rows):
            return self._rows
        if not self._drawn:
            self._drawn = list(self._draw(max(1, DRAWN_AT_ONCE // self._batch_size)))
        return self._drawn.pop()

    def _draw(self, batches):
        shape = (batches, self._batch_size)
        labels = self._rng.integers(len(self._counts), size=shape)
        nth = (self._rng.random(shape) * self._counts[labels]).astype(np.int64)
        return self._rows[self._starts[labels] + nth]


class Shuffled:
    """Gives the rows in random order, each once, then in another order; -1 gives all at once."""

    def __init__(self, count, batch_size, rng):
        self._count, self._rng = count, rng
        self._batch_size = count if batch_size == -1 else batch_size
        self._left = np.arange(0)

    def __call__(self):
        """Row numbers, int [batch size], or what is left of this pass."""
        if not len(self._left):
            self._left = self._rng.permutation(self._count)
        rows, self._left = np.split(self._left, [self._batch_size])
        return rows


def passes_to_steps(passes, count, batch_size):
    """Steps that so many passes over `count` rows take with Shuffled."""
    return passes * (1 if batch_size == -1 else -(-count // batch_size))
