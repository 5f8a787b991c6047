"""Fits the temperature that makes the scores of a head calibrated."""

import numpy as np

from retraining.metrics.classification import cross_entropy, softmax

FEWEST_PHOTOS = 20  # validation photos below which nothing is fitted: 5 % of 20 are one photo
TEMPERATURES = (0.1, 10.0)  # limits of the search; a head as trained here needs 0.5 to 2
HALVINGS = 50  # of the interval of 1/T: 10 / 2 ** 50 is exact enough for anybody


def why_no_temperature(logits, truth):
    """Why no temperature can be fitted (a phrase), or None; arguments as `fit_temperature`."""
    if len(truth) < FEWEST_PHOTOS:
        return (
            f"a temperature is fitted on {FEWEST_PHOTOS} validation photos or more, not on "
            f"{len(truth)}; raise --validation_percentage"
        )
    if logits.shape[1] < 2 or not np.isfinite(logits).all():
        return "the logits do not allow it"
    if (logits.argmax(axis=1) == truth).all():
        return "every validation photo is answered right, which sets no limit to certainty"
    return None


def fit_temperature(logits, truth):
    """The T that minimises the negative log likelihood of softmax(logits / T): a float.

    Guo et al. 2017, arXiv:1706.04599. The likelihood is concave in 1/T, so that the zero of its
    slope is found by bisection; T is clamped to TEMPERATURES. 1.0 where it cannot be fitted
    (`why_no_temperature` says why).

    Args:
        logits: float [n, k]; truth: int [n], the true classes.
    """
    if why_no_temperature(logits, truth):
        return 1.0
    logits = logits.astype(np.float64)
    true = logits[np.arange(len(truth)), truth]
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        expected = (softmax(logits * middle) * logits).sum(axis=1)
        if (expected - true).mean() < 0:  # the slope of the loss by 1/T
            low = middle
        else:
            high = middle
    return float(2 / (low + high))


def apply_temperature(probabilities, temperature):
    """softmax(logits / T) [n, k] from softmax(logits) [n, k], in its dtype.

    ln p is the logits but for a constant per row. A probability of exactly 0 stays 0.
    """
    if temperature == 1:
        return probabilities
    with np.errstate(divide="ignore"):
        logarithms = np.log(probabilities.astype(np.float64))
    return softmax(logarithms / temperature).astype(probabilities.dtype)


def temperature_gain(logits, truth, temperature):
    """Mean cross entropy in nats (as it was, with the temperature)."""
    exact = logits.astype(np.float64)
    return tuple(cross_entropy(softmax(exact / t), truth) for t in (1.0, temperature))
