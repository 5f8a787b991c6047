"""classification.py: the metrics of classes."""

import math

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


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Published values of the Wilson interval at 95 %.
        (81, 263, 0.2553, 0.3662),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(correct, total, low, high):
    assert classification.wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_softmax_and_its_figures():
    logits = np.log(np.array([[1.0, 1.0, 2.0], [7.0, 2.0, 1.0]]))
    answer = classification.softmax(logits)
    np.testing.assert_allclose(answer, [[0.25, 0.25, 0.5], [0.7, 0.2, 0.1]])
    np.testing.assert_allclose(classification.softmax(logits + 1000), answer)
    targets = np.array([2, 1])
    assert classification.accuracy(answer, targets) == 0.5
    expected = -(math.log(0.5) + math.log(0.2)) / 2
    assert classification.cross_entropy(answer, targets) == pytest.approx(expected)


def test_cross_entropy_stays_finite():
    assert classification.cross_entropy(np.array([[1.0, 0.0]]), np.array([1])) < 1000


def test_agreement():
    one = np.array([[0.6, 0.4], [0.1, 0.9]])
    other = np.array([[0.45, 0.55], [0.1, 0.9]])
    assert classification.agreement(one, other) == (0.5, pytest.approx(0.15))
