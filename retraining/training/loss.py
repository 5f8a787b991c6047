"""What training makes small: the loss of a head on photos, and its gradient. NumPy only."""

from dataclasses import dataclass

import numpy as np

from retraining.metrics.classification import softmax


@dataclass(frozen=True)
class Objective:
    """Mean softmax cross entropy, and what may be added to it.

    `class_weights` float32 [k] weigh each photo by its true class. `label_smoothing` e makes the
    target (1 - e) of the true class and e / k of each (Szegedy et al. 2016, arXiv:1512.00567,
    section 7). `l2` / 2 times the sum of the squared weights, not the biases, is added. `dropout`
    is the share of a hidden layer's outputs that is 0 in a training step, the others growing by
    1 / (1 - share), so that nothing changes in use (Srivastava et al. 2014, section 10).
    """

    class_weights: np.ndarray | None = None
    label_smoothing: float = 0.0
    l2: float = 0.0
    dropout: float = 0.0

    @np.errstate(over="ignore", invalid="ignore")  # `train` looks for what is not finite
    def gradients(self, head, batch, scale=1.0, rng=None):
        """`scale` times the gradient: [weights, bias, weights, ...] of `head.layers`, float32.

        Args:
            batch: (vectors float32 [n, width], truth int [n]).
            rng: draws what dropout leaves out; without it, there is none.
        """
        vectors, truth = batch
        inputs, masks = self._forward(head, vectors, rng)
        error = softmax(inputs[-1] @ head.weights + head.bias)
        return self._backward(head, inputs, masks, self._errors(error, truth, scale), scale)

    @np.errstate(over="ignore", invalid="ignore")
    def loss_and_gradients(self, head, batch):
        """(the loss as a float, its gradients as `gradients` gives them); without dropout."""
        vectors, truth = batch
        inputs, _ = self._forward(head, vectors, None)
        logits = (inputs[-1] @ head.weights + head.bias).astype(np.float64)
        loss = self._data_loss(logits, truth) + self._penalty(head)
        error = self._errors(softmax(logits), truth, 1.0).astype(np.float32)
        return loss, self._backward(head, inputs, [None] * len(head.hidden), error, 1.0)

    def _forward(self, head, vectors, rng):
        """(what each layer is fed, [n, in]; what dropout multiplied each hidden layer by)."""
        inputs, masks = [vectors], []
        for weights, bias in head.hidden:
            outputs = np.maximum(inputs[-1] @ weights + bias, 0)
            mask = None
            if rng is not None and self.dropout:
                kept = rng.random(outputs.shape, np.float32) >= self.dropout
                mask = kept * np.float32(1 / (1 - self.dropout))
                outputs *= mask
            inputs.append(outputs)
            masks.append(mask)
        return inputs, masks

    def _errors(self, probabilities, truth, scale):
        """The gradient by the logits, (probabilities - target) weight scale / n, in their place."""
        error, classes = probabilities, probabilities.shape[1]
        if self.label_smoothing:
            error -= error.dtype.type(self.label_smoothing / classes)
        error[np.arange(len(truth)), truth] -= error.dtype.type(1 - self.label_smoothing)
        if self.class_weights is not None:
            error *= self.class_weights[truth][:, None]
        error *= error.dtype.type(scale / len(truth))
        return error

    def _backward(self, head, inputs, masks, error, scale):
        """The gradients of all layers, from the last one's `error` [n, k] back to the first."""
        found = []
        for number in range(len(head.layers) - 1, -1, -1):
            weights = head.layers[number][0]
            slope = inputs[number].T @ error
            if self.l2:
                slope += weights * np.float32(scale * self.l2)
            found[:0] = [slope, error.sum(axis=0)]
            if number:
                error = (error @ weights.T) * (inputs[number] > 0)
                if masks[number - 1] is not None:
                    error *= masks[number - 1]
        return found

    def _data_loss(self, logits, truth):
        logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        losses = -(1 - self.label_smoothing) * logs[np.arange(len(truth)), truth]
        if self.label_smoothing:
            losses -= self.label_smoothing * logs.mean(axis=1)
        if self.class_weights is not None:
            losses *= self.class_weights[truth]
        return float(losses.mean())

    def _penalty(self, head):
        squares = sum(float((w.astype(np.float64) ** 2).sum()) for w, _ in head.layers)
        return self.l2 / 2 * squares if self.l2 else 0.0


def balancing_weights(truth, classes):
    """float32 [classes]: n / (k n_c), so that each class counts as much as any other; 0 for none.

    The formula of scikit-learn's class_weight="balanced", after King and Zeng (2001), Logistic
    Regression in Rare Events Data.
    """
    counts = np.bincount(truth, minlength=classes)
    present = np.count_nonzero(counts)
    return np.where(counts, len(truth) / (present * np.maximum(counts, 1)), 0).astype(np.float32)
