"""Computes accuracy, intervals, confusion and calibration of predictions. Uses only NumPy."""

import math
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floating = TypeVar("Floating", bound=np.floating[Any])
Floats: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.integer[Any]]

BINS = 10  # in a reliability diagram
Z = 1.959964  # standard deviations on each side of a 95 % interval
SHORTFALL = 0.05  # of an accuracy that is far below another


def wilson_interval(correct: float, total: float) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval (low, high) of `correct / total`.

    The interval is (0, 1) if `total` is 0. Wilson (1927), doi:10.1080/01621459.1927.10502953.
    """
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    centre = share + Z * Z / (2 * total)
    reach = Z * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    scale = 1 + Z * Z / total
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def softmax(logits: NDArray[Floating]) -> NDArray[Floating]:
    """Returns the probabilities [n, k] of logits [n, k], in the dtype of the logits."""
    powers: NDArray[Floating] = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[Floating] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def accuracy(probabilities: Floats, targets: Ints) -> float:
    """Returns the share of rows [n, k] with the largest entry at `targets`; NaN without rows."""
    if len(targets) == 0:
        return math.nan
    return float((probabilities.argmax(axis=1) == targets).mean())


def top_accuracy(probabilities: Floats, targets: Ints, top: int) -> float:
    """Returns the share of rows [n, k] with `targets` [n] among their `top` largest entries.

    NaN without rows.
    """
    if len(targets) == 0:
        return math.nan
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return float((likeliest == np.asarray(targets)[:, None]).any(axis=1).mean())


def cross_entropy(probabilities: Floats, targets: Ints) -> float:
    """Returns the mean of -ln(probability of the true class) in nats; NaN without rows."""
    if len(targets) == 0:
        return math.nan
    own = probabilities[np.arange(len(targets)), targets]
    tiny = np.finfo(probabilities.dtype).tiny  # keeps ln finite if a probability underflows
    return float(-np.log(np.maximum(own, tiny)).mean())


def cross_entropy_of_logits(logits: Floats, targets: Ints) -> float:
    """Returns the mean of -ln(softmax probability of the true class) in nats; NaN without rows.

    Unlike `cross_entropy`, it is exact for probabilities that are too small for a float.
    """
    if len(targets) == 0:
        return math.nan
    exact = logits.astype(np.float64)
    own = exact[np.arange(len(targets)), targets]
    return float((np.logaddexp.reduce(exact, axis=1) - own).mean())


def agreement(probabilities: Floats, expected: Floats) -> tuple[float, float]:
    """Returns (share of rows with the same top class, largest difference of any probability)."""
    same = probabilities.argmax(axis=1) == expected.argmax(axis=1)
    return float(same.mean()), float(np.abs(probabilities - expected).max())


def choose_rows(count: int, most: int) -> NDArray[np.int_]:
    """Returns at most `most` of the row numbers 0..count-1, evenly spread, as int [n]."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def confusion_matrix(targets: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int_]:
    """Counts photos by true class (row) and predicted class (column); int [classes, classes].

    `targets` and `predicted` are class numbers 0..classes-1, int [n].
    """
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (np.asarray(targets, int), np.asarray(predicted, int)), 1)
    return counts


def per_class(
    confusion: NDArray[np.int_],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int_]]:
    """Returns precision, recall and F1 of each class, float64 [k], and its support, int [k].

    Takes a confusion matrix [k, k] with the true classes in rows. Precision is the share of a
    class's predictions that are correct, recall the share of its photos that are predicted
    correctly, F1 the harmonic mean of both, support the number of its photos (van Rijsbergen,
    Information Retrieval, 1979, ch. 7). Precision is NaN for a class that is never predicted,
    recall for a class without photos, and F1 for a class with neither.
    """
    right = np.diag(confusion)
    answered, support = confusion.sum(axis=0), confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return right / answered, right / support, 2 * right / (answered + support), support


def reliability(
    probabilities: Floats, targets: Ints, bins: int = BINS
) -> tuple[NDArray[np.int_], NDArray[np.float64], NDArray[np.float64]]:
    """Groups rows [n, k] by largest entry; returns (count, confidence, accuracy), each [bins].

    Bins have equal width over 0..1, open below and closed above, as in Guo et al. (2017),
    arXiv:1706.04599. Confidence is the mean largest entry. Confidence and accuracy are NaN in an
    empty bin.
    """
    confidence = probabilities.max(axis=1).astype(float)
    right = probabilities.argmax(axis=1) == targets
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bin_of, v, minlength=bins) / count for v in (confidence, right)]
    return count, means[0], means[1]


def expected_calibration_error(count: Ints, confidence: Floats, accuracy: Floats) -> float:
    """Returns the mean of |confidence - accuracy| over `reliability`'s bins, weighted by count.

    NaN if all bins are empty. Equation 3 of Guo et al. (2017), arXiv:1706.04599.
    """
    if not count.sum():
        return math.nan
    filled = count > 0
    gaps = np.abs(confidence - accuracy)[filled]
    return float((gaps * count[filled]).sum() / count.sum())


def calibration_error(probabilities: Floats, targets: Ints) -> float:
    """Returns the expected calibration error (0..1) of rows [n, k] for `targets` [n], or NaN."""
    return expected_calibration_error(*reliability(probabilities, targets))


def paired_difference(
    before: NDArray[np.bool_], after: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Returns (difference, low, high) of the accuracies of two models on the same photos.

    `before` and `after` tell which photos each model classifies correctly, bool [n]. The interval
    is the adjusted Wald interval (95 %) for matched pairs, which adds half a photo to each of the
    four cells: Agresti and Min (2005), doi:10.1002/sim.1781. NaN without photos.
    """
    if len(before) == 0:
        return math.nan, math.nan, math.nan
    gained = int((after & ~before).sum())
    lost = int((before & ~after).sum())
    total = len(before) + 2
    centre = (gained - lost) / total
    reach = Z * math.sqrt((gained + lost + 1) / total - centre**2) / math.sqrt(total)
    return (gained - lost) / len(before), centre - reach, centre + reach


def far_below(right: NDArray[np.bool_], reference: NDArray[np.bool_]) -> bool:
    """Tells whether a model is far less accurate than a reference model on the same photos.

    Takes which photos each of them classifies correctly, bool [n]. The accuracy must be lower by
    more than SHORTFALL, and by more than chance explains (`paired_difference`).
    """
    difference, _, high = paired_difference(reference, right)
    return difference < -SHORTFALL and high < 0


def chance_of_at_most(correct: int, photos: int, all_correct: int, all_photos: int) -> float:
    """Returns how probable at most `correct` right answers to `photos` of all photos are by chance.

    It is the lower tail of the hypergeometric distribution, as in Fisher's exact test.
    """
    wrong = all_photos - all_correct
    fewest = max(0, photos - wrong)
    ways = sum(
        math.comb(all_correct, right) * math.comb(wrong, photos - right)
        for right in range(fewest, min(correct, all_correct) + 1)
    )
    return ways / math.comb(all_photos, photos)


def chance_of_at_least(count: int, trials: int, share: float) -> float:
    """Returns how probable `count` or more hits in `trials` are, each with probability `share`."""
    fewer = (math.comb(trials, n) * share**n * (1 - share) ** (trials - n) for n in range(count))
    return max(0.0, 1 - sum(fewer))
