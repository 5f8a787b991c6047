"""vectors.py: vectors with their labels."""

import numpy as np

from retraining.bottlenecks.vectors import Labelled


def test_labelled_of_names():
    found = Labelled.of(np.zeros((3, 2)), ["b", "a", "b"], ["a", "b"])
    assert found.targets.tolist() == [1, 0, 1]


def noisy(rows, classes=2, width=8, seed=1):
    """Labelled vectors that are told apart the better, the more of them there are."""
    rng = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    return Labelled((rng.normal(size=(rows, width)) + 0.8 * targets[:, None]).astype("f4"), targets)


def test_labelled_parts_are_joined_and_thinned():
    joined = Labelled.join([noisy(10), noisy(6)])
    assert joined.vectors.shape == (16, 8)
    assert joined.targets.tolist() == [0, 1] * 8
    assert noisy(100).thinned(3).targets.tolist() == [0, 1, 1]
    assert len(noisy(5).thinned(9).targets) == 5
    assert noisy(9).first(4).targets.tolist() == [0, 1, 0, 1]
