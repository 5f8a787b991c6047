"""classification.py: the metrics of classes."""

import numpy as np
import pytest

from retraining.metrics import classification


def test_how_probable_few_or_many_hits_are():
    assert classification.chance_of_at_most(0, 2, 1, 3) == pytest.approx(1 / 3)
    assert classification.chance_of_at_most(1, 2, 1, 3) == pytest.approx(1)
    assert classification.chance_of_at_least(2, 3, 0.5) == pytest.approx(0.5)
    assert classification.chance_of_at_least(0, 3, 0.5) == 1


def test_the_truth_is_in_the_rows():
    confusion = classification.confusion_matrix([0, 0, 0, 2, 2], [0, 1, 1, 2, 0], 4)
    assert confusion.dtype.kind == "i"
    np.testing.assert_array_equal(
        confusion, [[1, 2, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(classification.confusion_matrix([], [], 2), np.zeros((2, 2)))


def test_precision_recall_and_f1_by_hand():
    confusion = np.array([[1, 2, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    precision, recall, f1, support = classification.per_class(confusion)
    np.testing.assert_allclose(precision, [1 / 2, 0, 1, np.nan])
    np.testing.assert_allclose(recall, [1 / 3, np.nan, 1 / 2, np.nan])
    np.testing.assert_allclose(f1, [2 / 5, 0, 2 / 3, np.nan])
    np.testing.assert_array_equal(support, [3, 0, 2, 0])


def test_far_below_needs_a_large_difference_that_chance_does_not_explain():
    reference = np.arange(200) < 180
    assert classification.far_below(np.arange(200) < 150, reference)
    assert not classification.far_below(np.arange(200) < 171, reference)  # 4.5 points
    assert not classification.far_below(np.arange(10) < 8, np.arange(10) < 9)  # one photo
    assert not classification.far_below(reference, np.arange(200) < 150)


def test_the_cross_entropy_of_logits_is_that_of_their_softmax():
    logits, targets = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 4
    expected = classification.cross_entropy(classification.softmax(logits), targets)
    assert classification.cross_entropy_of_logits(logits, targets) == pytest.approx(expected)
    far = np.array([[0.0, 2000.0]])
    assert classification.cross_entropy_of_logits(far, np.array([0])) == 2000
    assert np.isnan(classification.cross_entropy_of_logits(logits[:0], targets[:0]))
