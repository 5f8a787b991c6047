"""Predictions -> accuracy, intervals, confusion. NumPy only."""

import math

import numpy as np

BINS = 10  # of a reliability diagram


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


def top_accuracy(probabilities, truth, top):
    """Share of rows of [n, k] whose `top` largest entries hold that at `truth` [n]; NaN without."""
    if len(truth) == 0:
        return math.nan
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return float((likeliest == np.asarray(truth)[:, None]).any(axis=1).mean())


def cross_entropy(probabilities, truth):
    """Mean of -ln(probability of the true class), in nats; NaN without rows."""
    if len(truth) == 0:
        return math.nan
    chosen = probabilities[np.arange(len(truth)), truth]
    tiny = np.finfo(probabilities.dtype).tiny  # keeps ln finite where a probability underflows
    return float(-np.log(np.maximum(chosen, tiny)).mean())


def agreement(probabilities, expected):
    """(share of rows with the same top class, largest difference of a probability)."""
    same = probabilities.argmax(axis=1) == expected.argmax(axis=1)
    return float(same.mean()), float(np.abs(probabilities - expected).max())


def choose_rows(count, most):
    """At most `most` of the row numbers 0..count-1, evenly spread, int [n]."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


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


def reliability(probabilities, truth, bins=BINS):
    """(count, confidence, accuracy), each [bins]: rows [n, k] grouped by their largest entry.

    Bins are of equal width over 0..1, open below and closed above, as in Guo et al. (2017),
    arXiv:1706.04599; confidence is the mean largest entry. Both are NaN in an empty bin.
    """
    confidence = probabilities.max(axis=1).astype(float)
    right = probabilities.argmax(axis=1) == truth
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bin_of, v, minlength=bins) / count for v in (confidence, right)]
    return count, *means


def expected_calibration_error(count, confidence, accuracy):
    """Mean of |confidence - accuracy| over `reliability`'s bins, weighted by count; NaN if empty.

    Equation 3 of Guo et al. (2017), arXiv:1706.04599.
    """
    if not count.sum():
        return math.nan
    filled = count > 0
    gaps = np.abs(confidence - accuracy)[filled]
    return float((gaps * count[filled]).sum() / count.sum())


def calibration_error(probabilities, truth, bins=BINS):
    """The expected calibration error (0..1) of [n, k] against `truth` [n]; NaN without rows."""
    return expected_calibration_error(*reliability(probabilities, truth, bins))


def paired_difference(before, after, z=1.959964):
    """(difference, low, high) of two shares of right answers on the same photos, bool [n] each.

    The interval is the adjusted Wald one for matched pairs, which adds half a photo to each of the
    four cells: Agresti and Min (2005), doi:10.1002/sim.1781; z = 1.96 gives 95 %. NaN without
    photos.
    """
    if len(before) == 0:
        return math.nan, math.nan, math.nan
    gained = int((after & ~before).sum())
    lost = int((before & ~after).sum())
    total = len(before) + 2
    centre = (gained - lost) / total
    reach = z * math.sqrt((gained + lost + 1) / total - centre**2) / math.sqrt(total)
    return (gained - lost) / len(before), centre - reach, centre + reach
