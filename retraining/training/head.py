"""The softmax layer, the layers before it, and how well it does on vectors."""

import math
from dataclasses import dataclass

import numpy as np

from retraining.metrics.classification import accuracy, cross_entropy, softmax

WEIGHT_SCALE = 0.001  # standard deviation of the first weights, as in the classic


@dataclass
class Head:
    """A softmax layer: weights float32 [width, classes], bias float32 [classes].

    Before it may be `hidden` layers, each (weights [in, out], bias [out]) followed by a ReLU.
    """

    weights: np.ndarray
    bias: np.ndarray
    hidden: tuple = ()

    @property
    def layers(self):
        """(weights, bias) of each layer, the softmax layer last."""
        return (*self.hidden, (self.weights, self.bias))

    @property
    def parameters(self):
        """The arrays of all layers: weights, bias, weights, bias ..."""
        return [array for layer in self.layers for array in layer]

    @property
    def is_finite(self):
        """Whether no weight or bias is infinite or NaN."""
        return all(np.isfinite(array).all() for array in self.parameters)

    def copy(self):
        """A Head of its own arrays."""
        hidden = tuple((weights.copy(), bias.copy()) for weights, bias in self.hidden)
        return Head(self.weights.copy(), self.bias.copy(), hidden)

    def features(self, vectors):
        """What the softmax layer is fed: `vectors` [n, width] behind the hidden layers."""
        for weights, bias in self.hidden:
            vectors = np.maximum(vectors @ weights + bias, 0)
        return vectors

    @np.errstate(over="ignore", invalid="ignore")  # `train` looks for what is not finite
    def probabilities(self, vectors):
        """float32 [n, classes] for vectors [n, width]."""
        return softmax(self.logits(vectors))

    def logits(self, vectors):
        """float32 [n, classes] for vectors [n, width]."""
        return self.features(vectors) @ self.weights + self.bias


@dataclass(frozen=True)
class Evaluation:
    """Accuracy (0..1) and cross entropy (nats) of one batch of `count` images; NaN for none."""

    accuracy: float
    cross_entropy: float
    count: int


def evaluate(head, vectors, truth):
    """The head's Evaluation on a batch."""
    return evaluation_of(head.probabilities(vectors), truth)


def evaluation_of(probabilities, truth):
    """The Evaluation of answers float32 [n, classes]."""
    figures = accuracy(probabilities, truth), cross_entropy(probabilities, truth)
    return Evaluation(*figures, len(truth))


def first_head(rng, width, classes, hidden_units=()):
    """The Head before training; all biases are 0.

    The softmax layer's weights are from N(0, 0.001) truncated at two standard deviations, as in
    the classic; those of the hidden layers from N(0, 2 / inputs) (He et al. 2015,
    arXiv:1502.01852), which suits ReLU.
    """
    hidden = []
    for units in hidden_units:
        weights = rng.standard_normal((width, units)) * math.sqrt(2 / width)
        hidden.append((weights.astype(np.float32), np.zeros(units, np.float32)))
        width = units
    weights = rng.standard_normal((width, classes))
    while (outside := np.abs(weights) > 2).any():
        weights[outside] = rng.standard_normal(np.count_nonzero(outside))
    weights = (weights * WEIGHT_SCALE).astype(np.float32)
    return Head(weights, np.zeros(classes, np.float32), tuple(hidden))
