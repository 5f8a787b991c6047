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
