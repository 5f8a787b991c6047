"""classification.py: the metrics of classes."""

import numpy as np

from retraining.metrics import classification


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
