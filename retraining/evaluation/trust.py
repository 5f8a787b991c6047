"""How far to trust a probability: a temperature, and a score for images of no class. NumPy only.

Both are fitted on a training run's vectors and travel in the exported graph.
"""

from dataclasses import dataclass

import numpy as np

from retraining.errors import RetrainingError
from retraining.metrics.evaluate import cross_entropy, softmax

FEWEST_PHOTOS = 20  # validation photos below which nothing is fitted: 5 % of 20 are one photo
TEMPERATURES = (0.1, 10.0)  # limits of the search; a head as trained here needs 0.5 to 2
HALVINGS = 50  # of the interval of 1/T: 10 / 2 ** 50 is exact enough for anybody
STRANGEST_SHARE = 0.05  # of known photos that `auto` gives away
AXES = 64  # of the subspace; more are hardly better (benchmarks/unknown.py) and take more space
MOST_FITTED = 4000  # vectors from which the subspace is found
SWEEPS = 6  # of the subspace iteration
QUANTILES = np.linspace(0, 1, 101)


class TrustError(RetrainingError):
    """What a graph stores of its trust cannot be used."""


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


@dataclass(frozen=True)
class UnknownScore:
    """How much an image looks like the known classes: ViM (Wang et al. 2022, arXiv:2203.10807).

    The score is the log-sum-exp of the logits less `scale` times the length of what of
    `vector - origin` lies outside the training vectors' principal subspace; higher is more like
    the known. Vectors are what the softmax layer is fed: behind hidden layers, if any.
    `quantiles` are the validation photos' scores at the shares QUANTILES.
    """

    origin: np.ndarray  # float32 [width]
    axes: np.ndarray  # float32 [width, kept], orthonormal columns
    scale: float
    quantiles: np.ndarray  # float64 [101], rising
    factors: np.ndarray | None = None  # float32 [width], by which vectors are multiplied first

    def score(self, vectors, logits):
        """float [n] for vectors [n, width] and their logits [n, k]."""
        if self.factors is not None:
            vectors = vectors * self.factors
        energy = np.logaddexp.reduce(logits, axis=1)
        return energy - self.scale * _outside(vectors - self.origin, self.axes)

    def threshold(self, share):
        """The score below which `share` (0..1) of the validation photos lie, or fewer."""
        return float(np.interp(share, QUANTILES, self.quantiles))

    def strangeness(self, scores):
        """Share (0..1) of the validation photos that look more like the classes, float [n]."""
        return 1 - np.interp(scores, self.quantiles, QUANTILES)


def fit_unknown(training, head, validation):
    """An UnknownScore, or None with fewer than FEWEST_PHOTOS validation vectors.

    Args:
        training, validation: float32 [n, width]; head: a train.Head.
    """
    if len(validation) < FEWEST_PHOTOS:
        return None
    rows = np.linspace(0, len(training) - 1, min(len(training), MOST_FITTED)).astype(int)
    fitted = head.features(training[rows])
    # Where all logits are zero, as nearly as may be: what the network sees in no class.
    origin = (-np.linalg.pinv(head.weights.T) @ head.bias).astype(np.float32)
    kept = max(1, min(AXES, fitted.shape[1] // 2, len(fitted) // 2))
    axes = principal_axes(fitted - origin, kept)
    lengths = _outside(fitted - origin, axes).mean()
    largest = (
        head.logits(training[rows]).max(axis=1).mean()
    )  # makes the two parts alike, as in the paper
    scale = float(max(largest, 0) / lengths) if lengths > 0 else 0.0
    score = UnknownScore(origin, axes, scale, QUANTILES)
    known = score.score(head.features(validation), head.logits(validation)).astype(np.float64)
    return UnknownScore(origin, axes, scale, np.quantile(known, QUANTILES, method="lower"))


def principal_axes(vectors, kept):
    """The `kept` directions of the largest second moment, float32 [width, kept].

    By subspace iteration (Halko et al. 2011, arXiv:0909.4061) from a fixed start: a whole
    decomposition of 2,048-wide vectors takes seconds.
    """
    start = np.random.default_rng(0).standard_normal((vectors.shape[1], kept))
    axes = np.linalg.qr(start.astype(np.float32))[0]
    for _ in range(SWEEPS):
        axes = np.linalg.qr(vectors.T @ (vectors @ axes))[0]
    return axes


def _outside(vectors, axes):
    """Length [n] of the part of each vector that is orthogonal to the axes."""
    return np.linalg.norm(vectors - (vectors @ axes) @ axes.T, axis=1)


# -- in the graph ----------------------------------------------------------------------------

ORIGIN, AXES_NODE = "retraining/unknown/origin", "retraining/unknown/axes"
FACTORS = "retraining/unknown/factors"  # only there where there are factors


def described(temperature, unknown):
    """The part of a graph's description (dict for JSON) that goes with `constants`."""
    about = {"temperature": temperature}
    if unknown:
        about["unknown"] = {
            "score": "vim",
            "scale": unknown.scale,
            "quantiles": unknown.quantiles.tolist(),
        }
    return about


def constants(unknown):
    """{node name: array} to be stored in the graph."""
    if not unknown:
        return {}
    factors = {} if unknown.factors is None else {FACTORS: unknown.factors}
    return {ORIGIN: unknown.origin, AXES_NODE: unknown.axes, **factors}


def read(about, constant):
    """(temperature, UnknownScore or None) of a graph's description; (1.0, None) of others.

    Args:
        about: dict, the description; constant: gives the array of a node's name, or None.

    Raises:
        TrustError: the description is damaged.
    """
    stored = about.get("unknown")
    try:
        temperature = float(about.get("temperature", 1.0))
        if not 0 < temperature < np.inf:
            raise ValueError
        if not stored or stored["score"] != "vim":
            return temperature, None
        quantiles = np.array(stored["quantiles"], np.float64)
        unknown = UnknownScore(
            constant(ORIGIN),
            constant(AXES_NODE),
            float(stored["scale"]),
            quantiles,
            constant(FACTORS),
        )
        if unknown.factors is not None and unknown.factors.shape != unknown.origin.shape:
            raise ValueError
        if quantiles.shape != QUANTILES.shape or unknown.origin.shape != unknown.axes.shape[:1]:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrustError("the graph's own temperature or unknown score is damaged") from error
    return temperature, unknown
