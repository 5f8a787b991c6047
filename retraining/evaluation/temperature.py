"""Fits the temperature that calibrates the scores of a head."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from retraining.metrics.classification import cross_entropy_of_logits, softmax

FEWEST_PHOTOS = 20  # validation photos needed for a fit: 5 % of 20 are one photo
TEMPERATURES = (0.1, 10.0)  # limits of the search; heads trained here need 0.5 to 2

AnyFloat = TypeVar("AnyFloat", bound=np.floating)


def why_no_temperature(logits: NDArray[np.floating], targets: NDArray[np.integer]) -> str | None:
    """Returns a phrase that says why no temperature can be fitted, or None if one can.

    Takes the arguments of `fit_temperature`.
    """
    if len(targets) < FEWEST_PHOTOS:
        return (
            f"a temperature needs {FEWEST_PHOTOS} validation photos, but there are only "
            f"{len(targets)}"
        )
    if logits.shape[1] < 2 or not np.isfinite(logits).all():
        return "a temperature needs two classes and finite logits"
    if (logits.argmax(axis=1) == targets).all():
        return (
            "the model labels every validation photo correctly, so they cannot show where it "
            "is too sure"
        )
    return None


def fit_temperature(logits: NDArray[np.floating], targets: NDArray[np.integer]) -> float:
    """Returns the T that minimises the negative log likelihood of softmax(logits / T).

    See Guo et al. 2017, arXiv:1706.04599. The log likelihood is concave in 1/T, so its slope has
    one zero. T is clamped to TEMPERATURES. Returns 1.0 if no temperature can be fitted
    (`why_no_temperature` says why).

    Args:
        logits: float [n, k].
        targets: int [n], the class indexes.
    """
    if why_no_temperature(logits, targets):
        return 1.0
    from scipy.optimize import brentq

    logits = logits.astype(np.float64)
    true = logits[np.arange(len(targets)), targets]

    def slope(inverse: float) -> float:
        """Returns the slope of the loss by 1/T."""
        expected = (softmax(logits * inverse) * logits).sum(axis=1)
        return float((expected - true).mean())

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if slope(low) >= 0:
        return TEMPERATURES[1]
    return TEMPERATURES[0] if slope(high) <= 0 else 1 / brentq(slope, low, high)


def apply_temperature(probabilities: NDArray[AnyFloat], temperature: float) -> NDArray[AnyFloat]:
    """Turns softmax(logits) [n, k] into softmax(logits / T) [n, k], in the same dtype.

    ln p equals the logits up to a constant per row. A probability of exactly 0 stays 0.
    """
    if temperature == 1:
        return probabilities
    with np.errstate(divide="ignore"):
        logarithms = np.log(probabilities.astype(np.float64))
    tempered: NDArray[AnyFloat] = softmax(logarithms / temperature).astype(probabilities.dtype)
    return tempered


def temperature_gain(
    logits: NDArray[np.floating], targets: NDArray[np.integer], temperature: float
) -> tuple[float, float]:
    """Returns the mean cross entropy in nats without and with the temperature."""
    exact = logits.astype(np.float64)
    before, after = (cross_entropy_of_logits(exact / t, targets) for t in (1.0, temperature))
    return before, after
