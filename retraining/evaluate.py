"""Predictions -> accuracy, intervals, confusion. NumPy only."""

import math

import numpy as np


def wilson_interval(correct, total, z=1.959964):
    """The Wilson score interval (low, high) of a share `correct / total`; z = 1.96 gives 95 %.

    Wilson (1927), doi:10.1080/01621459.1927.10502953. (0, 1) when `total` is 0.
    """
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    centre = share + z * z / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def softmax(logits):
    """Probabilities [n, k] of logits [n, k], in their dtype."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def accuracy(probabilities, truth):
    """Share of rows of [n, k] whose largest entry is at `truth` [n]; NaN without rows."""
    if len(truth) == 0:
        return math.nan
    return float((probabilities.argmax(axis=1) == truth).mean())


def cross_entropy(probabilities, truth):
    """Mean of -ln(probability of the true class), in nats; NaN without rows."""
    if len(truth) == 0:
        return math.nan
    chosen = probabilities[np.arange(len(truth)), truth]
    tiny = np.finfo(probabilities.dtype).tiny  # keeps ln finite where a probability underflows
    return float(-np.log(np.maximum(chosen, tiny)).mean())


def calibration_error(probabilities, truth, bins=15):
    """Expected calibration error (0..1) of [n, k] against `truth` [n]; NaN without rows.

    The mean gap between the largest probability and how often it is right, over equally wide bins
    (Guo et al. 2017, arXiv:1706.04599).
    """
    if len(truth) == 0:
        return math.nan
    largest = probabilities.max(axis=1)
    gaps = (probabilities.argmax(axis=1) == truth) - largest.astype(np.float64)
    which = np.minimum((largest * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(which, gaps, bins)).sum() / len(truth))


def agreement(probabilities, expected):
    """(share of rows with the same top class, largest difference of a probability)."""
    same = probabilities.argmax(axis=1) == expected.argmax(axis=1)
    return float(same.mean()), float(np.abs(probabilities - expected).max())


def confusion_matrix(truth, predicted, classes):
    """int [classes, classes]: how many of the true class (row) were given which class (column).

    `truth` and `predicted` are int [n] of class numbers 0..classes-1.
    """
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (np.asarray(truth, int), np.asarray(predicted, int)), 1)
    return counts


def per_class(confusion):
    """(precision, recall, f1, support) of each class: float64 [k] each, support int [k].

    From a confusion matrix [k, k] with the truth in rows. Precision is the share of the answers of
    a class that are right, recall the share of its photos that are answered right, F1 their
    harmonic mean, support the number of its photos (van Rijsbergen, Information Retrieval, 1979,
    ch. 7). NaN where there is nothing to take a share of: precision of a class never answered,
    recall of one without photos, F1 of one with neither.
    """
    right = np.diag(confusion)
    answered, support = confusion.sum(axis=0), confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return right / answered, right / support, 2 * right / (answered + support), support
