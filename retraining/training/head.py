"""The head: the softmax layer, the hidden layers before it, and their evaluation on vectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.metrics.classification import (
    accuracy,
    cross_entropy,
    cross_entropy_of_logits,
    softmax,
)

WEIGHT_SCALE = 0.001  # standard deviation of the initial weights, as in the classic

# The weights float32 [in, out] and the bias float32 [out] of a layer.
Layer: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass
class Head:
    """A softmax layer: weights float32 [width, classes], bias float32 [classes].

    `hidden` layers may precede it: (weights [in, out], bias [out]) each, followed by a ReLU.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    hidden: tuple[Layer, ...] = ()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The (weights, bias) of each layer; the softmax layer comes last."""
        return (*self.hidden, (self.weights, self.bias))

    @property
    def parameters(self) -> list[NDArray[np.float32]]:
        """The arrays of all layers: weights, bias, weights, bias, ..."""
        return [array for layer in self.layers for array in layer]

    @property
    def is_finite(self) -> bool:
        """Whether all weights and biases are finite."""
        return all(np.isfinite(array).all() for array in self.parameters)

    def copy(self) -> "Head":
        """Returns a Head with copies of the arrays."""
        hidden = tuple((weights.copy(), bias.copy()) for weights, bias in self.hidden)
        return Head(self.weights.copy(), self.bias.copy(), hidden)

    def features(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the softmax layer's input: vectors [n, width] after the hidden layers."""
        for weights, bias in self.hidden:
            vectors = np.maximum(vectors @ weights + bias, 0)
        return vectors

    @np.errstate(over="ignore", invalid="ignore")  # `train` checks that the weights stay finite
    def probabilities(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns probabilities float32 [n, classes] for vectors [n, width]."""
        probabilities: NDArray[np.float32] = softmax(self.logits(vectors))
        return probabilities

    def logits(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits float32 [n, classes] for vectors [n, width]."""
        logits: NDArray[np.float32] = self.features(vectors) @ self.weights + self.bias
        return logits


@dataclass(frozen=True)
class Evaluation:
    """Accuracy (0..1) and cross entropy (nats) on `count` images; NaN where there are none."""

    accuracy: float
    cross_entropy: float
    count: int


def evaluate(head: Head, vectors: NDArray[np.float32], targets: NDArray[np.integer]) -> Evaluation:
    """Evaluates the head on vectors float32 [n, width] with class indexes `targets`, int [n]."""
    with np.errstate(over="ignore", invalid="ignore"):  # `train` checks that weights stay finite
        logits = head.logits(vectors)
        figures = accuracy(logits, targets), cross_entropy_of_logits(logits, targets)
    return Evaluation(*figures, len(targets))


def evaluation_of(probabilities: NDArray[np.floating], targets: NDArray[np.integer]) -> Evaluation:
    """Evaluates probabilities [n, classes] against class indexes `targets`, int [n]."""
    figures = accuracy(probabilities, targets), cross_entropy(probabilities, targets)
    return Evaluation(*figures, len(targets))


def first_head(
    rng: np.random.Generator, width: int, classes: int, hidden_units: Sequence[int] = ()
) -> Head:
    """Returns an untrained Head with random weights and biases of 0.

    The softmax layer's weights are drawn from a normal distribution with standard deviation 0.001,
    truncated at two standard deviations, as in the classic. The hidden layers' weights are drawn
    from N(0, 2 / inputs), which suits ReLU (He et al. 2015, arXiv:1502.01852).
    """
    hidden: list[Layer] = []
    for units in hidden_units:
        weights = rng.standard_normal((width, units)) * math.sqrt(2 / width)
        hidden.append((weights.astype(np.float32), np.zeros(units, np.float32)))
        width = units
    weights = rng.standard_normal((width, classes))
    while (outside := np.abs(weights) > 2).any():
        weights[outside] = rng.standard_normal(np.count_nonzero(outside))
    scaled = (weights * WEIGHT_SCALE).astype(np.float32)
    return Head(scaled, np.zeros(classes, np.float32), tuple(hidden))
