"""Scores how much an image looks like the known classes, to detect out-of-distribution images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retraining.evaluation.temperature import FEWEST_PHOTOS
from retraining.training.head import Head

AXES = 64  # of the subspace; more take space and hardly help (benchmarks/unknown.py)
MOST_FITTED = 4000  # vectors that determine the subspace
SWEEPS = 6  # of the subspace iteration
BLOCK = 1024  # vectors measured together; bounds the memory that their differences take
QUANTILES = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class UnknownScore:
    """How much an image looks like the known classes: ViM (Wang et al. 2022, arXiv:2203.10807).

    The score is the log-sum-exp of the logits minus `scale` times the length of the part of
    `vector - origin` that lies outside the principal subspace of the training vectors. Images of
    known classes score higher. Vectors are the softmax layer's input, after any hidden layers.
    `quantiles` are the validation photos' scores at the shares QUANTILES.
    """

    origin: NDArray[np.float32]  # float32 [width]
    axes: NDArray[np.float32]  # float32 [width, kept], orthonormal columns
    scale: float
    quantiles: NDArray[np.float64]  # float64 [101], rising
    factors: NDArray[np.float32] | None = None  # float32 [width]; vectors are multiplied by them

    def score(
        self, vectors: NDArray[np.float32], logits: NDArray[np.floating]
    ) -> NDArray[np.floating]:
        """Returns scores, float [n], for vectors [n, width] and their logits [n, k]."""
        if self.factors is not None:
            vectors = vectors * self.factors
        energy = np.logaddexp.reduce(logits, axis=1)
        outside = _outside(vectors, self.origin, self.axes)
        scores: NDArray[np.floating] = energy - self.scale * outside
        return scores

    def threshold(self, share: float) -> float:
        """Returns the score below which at most `share` (0..1) of the validation photos lie."""
        return float(np.interp(share, QUANTILES, self.quantiles))

    def novelty(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Returns the shares (0..1) of validation photos that score higher, float [n]."""
        below: NDArray[np.float64] = np.interp(scores, self.quantiles, QUANTILES)
        return 1 - below


def fit_unknown(
    training: NDArray[np.float32], head: Head, validation: NDArray[np.float32]
) -> UnknownScore | None:
    """Fits an UnknownScore; returns None with fewer than FEWEST_PHOTOS validation vectors.

    Args:
        training: vectors float32 [n, width].
        head: the head trained on them.
        validation: vectors float32 [n, width].
    """
    if len(validation) < FEWEST_PHOTOS:
        return None
    rows = np.linspace(0, len(training) - 1, min(len(training), MOST_FITTED)).astype(int)
    fitted = head.features(training[rows])
    # The vector at which all logits are as close to zero as possible (least squares).
    origin = (-np.linalg.pinv(head.weights.T) @ head.bias).astype(np.float32)
    kept = max(1, min(AXES, fitted.shape[1] // 2, len(fitted) // 2))
    axes = principal_axes(fitted - origin, kept)
    lengths = _outside(fitted, origin, axes).mean()
    # Gives both parts of the score a similar mean, as in the paper.
    largest = head.logits(training[rows]).max(axis=1).mean()
    scale = float(max(largest, 0) / lengths) if lengths > 0 else 0.0
    score = UnknownScore(origin, axes, scale, QUANTILES)
    known = score.score(head.features(validation), head.logits(validation)).astype(np.float64)
    return UnknownScore(origin, axes, scale, np.quantile(known, QUANTILES, method="lower"))


def principal_axes(vectors: NDArray[np.float32], kept: int) -> NDArray[np.float32]:
    """Returns the `kept` directions with the largest second moment, float32 [width, kept].

    Uses subspace iteration (Halko et al. 2011, arXiv:0909.4061) from a fixed start, because a full
    decomposition for vectors of width 2,048 takes seconds.
    """
    start = np.random.default_rng(0).standard_normal((vectors.shape[1], kept))
    axes = np.linalg.qr(start.astype(np.float32))[0]
    for _ in range(SWEEPS):
        axes = np.linalg.qr(vectors.T @ (vectors @ axes))[0]
    return axes


def _outside(
    vectors: NDArray[np.float32], origin: NDArray[np.float32], axes: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Returns lengths [n]: of the part of each `vector - origin` orthogonal to the axes."""
    lengths = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), BLOCK):
        moved = vectors[start : start + BLOCK] - origin
        moved -= (moved @ axes) @ axes.T
        lengths[start : start + BLOCK] = np.linalg.norm(moved, axis=1)
    return lengths
