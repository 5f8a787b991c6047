"""Scores how much an image looks like the known classes."""

from dataclasses import dataclass

import numpy as np

from retraining.evaluation.temperature import FEWEST_PHOTOS

STRANGEST_SHARE = 0.05  # of known photos that `auto` gives away
AXES = 64  # of the subspace; more are hardly better (benchmarks/unknown.py) and take more space
MOST_FITTED = 4000  # vectors from which the subspace is found
SWEEPS = 6  # of the subspace iteration
QUANTILES = np.linspace(0, 1, 101)


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
