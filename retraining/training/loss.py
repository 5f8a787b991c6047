"""The loss that training minimises, and its gradient. Uses NumPy only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from retraining.metrics.classification import softmax
from retraining.training.head import Head

ANSWERS_AT_ONCE = 1_000_000  # photos x classes whose float64 logits are in memory, 8 MB an array

AnyFloat = TypeVar("AnyFloat", bound=np.floating)
# Vectors float32 [n, width] and the class index of each, int [n].
VectorBatch: TypeAlias = tuple[NDArray[np.float32], NDArray[np.integer]]
# What dropout multiplies the outputs of a hidden layer by, float32 [n, out]; None without dropout.
Mask: TypeAlias = NDArray[np.float32] | None


@dataclass(frozen=True)
class Objective:
    """Mean softmax cross entropy with optional regularisation.

    `class_weights` float32 [k] weigh each photo by its true class. `label_smoothing` e makes the
    target (1 - e) times the one-hot label plus e / k for every class (Szegedy et al. 2016,
    arXiv:1512.00567, section 7). `l2` / 2 times the sum of the squared weights is added to the
    loss; biases do not count. `dropout` is the share of a hidden layer's outputs that a training
    step sets to 0. It multiplies the others by 1 / (1 - share), so that inference needs no change
    (Srivastava et al. 2014, section 10).
    """

    class_weights: NDArray[np.float32] | None = None
    label_smoothing: float = 0.0
    l2: float = 0.0
    dropout: float = 0.0

    @np.errstate(over="ignore", invalid="ignore")  # `train` checks that the weights stay finite
    def gradients(
        self,
        head: Head,
        batch: VectorBatch,
        scale: float = 1.0,
        rng: np.random.Generator | None = None,
    ) -> list[NDArray[np.float32]]:
        """Returns `scale` times the gradient by the weights and biases of `head.layers`.

        The arrays are float32, in the order of `head.parameters`.

        Args:
            batch: (vectors float32 [n, width], class indexes int [n]).
            rng: draws the outputs that dropout sets to 0; None turns dropout off.
        """
        vectors, targets = batch
        inputs, masks = self._forward(head, vectors, rng)
        error = softmax(inputs[-1] @ head.weights + head.bias)
        return self._backward(head, inputs, masks, self._errors(error, targets, scale), scale)

    @np.errstate(over="ignore", invalid="ignore")
    def loss_and_gradients(
        self, head: Head, batch: VectorBatch
    ) -> tuple[float, list[NDArray[np.float32]]]:
        """Returns (loss, gradients as in `gradients`), without dropout.

        Takes ANSWERS_AT_ONCE at a time, so that many photos of many classes take little memory.
        """
        vectors, targets = batch
        step = max(1, ANSWERS_AT_ONCE // len(head.bias))
        loss, gradients = self._penalty(head), [np.zeros_like(p) for p in head.parameters]
        for start in range(0, len(targets), step):
            part = vectors[start : start + step], targets[start : start + step]
            share = len(part[1]) / len(targets)
            loss_of_part, of_part = self._part(head, part, share)
            loss += share * loss_of_part
            for gradient, more in zip(gradients, of_part, strict=True):
                gradient += more
        return loss, gradients

    def _part(
        self, head: Head, batch: VectorBatch, share: float
    ) -> tuple[float, list[NDArray[np.float32]]]:
        """Returns (loss without L2, `share` times the gradients) of a batch, without dropout."""
        vectors, targets = batch
        inputs, _ = self._forward(head, vectors, None)
        logits = (inputs[-1] @ head.weights + head.bias).astype(np.float64)
        loss = self._data_loss(logits, targets)
        error = self._errors(softmax(logits), targets, share).astype(np.float32)
        return loss, self._backward(head, inputs, [None] * len(head.hidden), error, share)

    def _forward(
        self, head: Head, vectors: NDArray[np.float32], rng: np.random.Generator | None
    ) -> tuple[list[NDArray[np.float32]], list[Mask]]:
        """Returns (the input of each layer, [n, in]; the dropout mask of each hidden layer)."""
        inputs = [vectors]
        masks: list[Mask] = []
        for weights, bias in head.hidden:
            outputs = np.maximum(inputs[-1] @ weights + bias, 0)
            mask: Mask = None
            if rng is not None and self.dropout:
                kept = rng.random(outputs.shape, np.float32) >= self.dropout
                mask = kept * np.float32(1 / (1 - self.dropout))
                outputs *= mask
            inputs.append(outputs)
            masks.append(mask)
        return inputs, masks

    def _errors(
        self, probabilities: NDArray[AnyFloat], targets: NDArray[np.integer], scale: float
    ) -> NDArray[AnyFloat]:
        """Turns probabilities, in place, into the gradient by the logits.

        It is (probabilities - target) * class weight * scale / n.
        """
        error, classes = probabilities, probabilities.shape[1]
        if self.label_smoothing:
            error -= error.dtype.type(self.label_smoothing / classes)
        error[np.arange(len(targets)), targets] -= error.dtype.type(1 - self.label_smoothing)
        if self.class_weights is not None:
            error *= self.class_weights[targets][:, None]
        error *= error.dtype.type(scale / len(targets))
        return error

    def _backward(
        self,
        head: Head,
        inputs: Sequence[NDArray[np.float32]],
        masks: Sequence[Mask],
        error: NDArray[np.float32],
        scale: float,
    ) -> list[NDArray[np.float32]]:
        """Propagates `error` [n, k] from the last layer to the first; returns all gradients."""
        gradients: list[NDArray[np.float32]] = []
        for number in range(len(head.layers) - 1, -1, -1):
            weights = head.layers[number][0]
            gradient = inputs[number].T @ error
            if self.l2:
                gradient += weights * np.float32(scale * self.l2)
            gradients[:0] = [gradient, error.sum(axis=0)]
            if number:
                error = (error @ weights.T) * (inputs[number] > 0)
                if (mask := masks[number - 1]) is not None:
                    error *= mask
        return gradients

    def _data_loss(self, logits: NDArray[np.float64], targets: NDArray[np.integer]) -> float:
        logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        losses = -(1 - self.label_smoothing) * logs[np.arange(len(targets)), targets]
        if self.label_smoothing:
            losses -= self.label_smoothing * logs.mean(axis=1)
        if self.class_weights is not None:
            losses *= self.class_weights[targets]
        return float(losses.mean())

    def _penalty(self, head: Head) -> float:
        squares = sum(float((w.astype(np.float64) ** 2).sum()) for w, _ in head.layers)
        return self.l2 / 2 * squares if self.l2 else 0.0


def balancing_weights(targets: NDArray[np.integer], classes: int) -> NDArray[np.float32]:
    """Returns class weights float32 [classes] that make all classes count equally.

    The weight of a class is n / (k n_c): n photos, n_c of the class, k classes with photos. A class
    without photos gets 0. This is scikit-learn's class_weight="balanced", after King and Zeng
    (2001), Logistic Regression in Rare Events Data.
    """
    counts = np.bincount(targets, minlength=classes)
    present = np.count_nonzero(counts)
    return np.where(counts, len(targets) / (present * np.maximum(counts, 1)), 0).astype(np.float32)
