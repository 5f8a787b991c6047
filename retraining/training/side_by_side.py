"""Trains several heads on parts of the same photos, all in the same matrix products.

Each head sees its own part: a photo has weight 0 in the loss of a head that must not see it. The
heads share no parameters, so each is trained as it would be alone. The first layers of all heads
are the columns of one matrix, since a product with few columns takes as long as one with many: most
of its time goes into reading the vectors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.vectors import Labelled
from retraining.metrics.classification import choose_rows
from retraining.system.background import Together, beside
from retraining.training.head import Head, first_head
from retraining.training.loop import (
    MOST_EVALUATED,
    TrainingOptions,
    check_finite,
    drawer,
    train,
)
from retraining.training.loss import AnyFloat, Mask, balancing_weights
from retraining.training.optimizers import LBFGS, Frame, by_batches, lbfgs
from retraining.training.search import MOST_ITERATIONS, PATIENCE, STRENGTHS

LossAndGradients: TypeAlias = tuple[float, list[NDArray[np.float32]]]

# Optimizers whose steps do not depend on the axes that the vectors are written in.
ROTATABLE = ("sgd", "momentum", LBFGS)


@dataclass(frozen=True)
class Parts:
    """Photos, and which of them each of several heads sees.

    Attributes:
        photos: n vectors and their classes.
        classes: number of classes.
        seen: bool [n, heads]; the photos that a head is trained on.
        held_out: bool [n, heads]; its validation photos, for early stopping and `search_heads`.
    """

    photos: Labelled
    classes: int
    seen: NDArray[np.bool_]
    held_out: NDArray[np.bool_]

    @property
    def heads(self) -> int:
        """The number of heads."""
        return int(self.seen.shape[1])


def train_heads(parts: Parts, options: TrainingOptions) -> NDArray[np.float32]:
    """Trains the heads as `loop.train` does; returns their logits, float32 [n, heads, classes].

    All heads start equal. They share batches, which are larger than those of a single head by so
    much that a head sees as many photos of its own in each. L-BFGS with hidden layers or early
    stopping trains the heads one after the other.

    Raises:
        TrainingError: the weights became infinite or NaN.
    """
    if options.optimizer != LBFGS:
        return _by_batches(parts, options)
    if options.hidden_units or options.early_stopping:
        return np.stack([_alone(parts, head, options) for head in range(parts.heads)], axis=1)
    rng = np.random.default_rng(options.seed)
    start = first_head(rng, parts.photos.vectors.shape[1], parts.classes)
    return SoftmaxFit(parts, options, start)(np.full(parts.heads, options.l2))


def search_heads(parts: Parts, options: TrainingOptions) -> NDArray[np.float32]:
    """Fits the heads as `search.candidates` does, each with the strength of L2 that suits it best.

    Returns their logits, float32 [n, heads, classes]. Every head has validation photos.

    Raises:
        TrainingError: the weights became infinite or NaN.
    """
    fit = SoftmaxFit(
        parts, replace(options, optimizer=LBFGS, learning_rate=None, steps=MOST_ITERATIONS)
    )
    variances = np.array([_variance(parts, head) for head in range(parts.heads)])
    best = np.zeros((len(parts.seen), parts.heads, parts.classes), np.float32)
    lowest, best_at = np.full(parts.heads, np.inf), np.zeros(parts.heads, int)
    for number, strength in enumerate(STRENGTHS):
        going = number - best_at <= PATIENCE
        if not going.any():
            break
        logits = fit(strength * variances, going)
        losses = validation_losses(logits, parts.photos.targets, parts.held_out)
        better = going & (losses < lowest)
        best[:, better] = logits[:, better]
        lowest[better], best_at[better] = losses[better], number
    return best


def _variance(parts: Parts, head: int) -> float:
    """Returns the mean variance of the vectors that a head sees, as search.candidates uses it."""
    rows = np.flatnonzero(parts.seen[:, head])
    sample = parts.photos.vectors[rows[choose_rows(len(rows), MOST_EVALUATED)]]
    return Frame(sample).scale ** 2


def _alone(parts: Parts, head: int, options: TrainingOptions) -> NDArray[np.float32]:
    """Trains one head by `loop.train`; returns its logits for all photos, float32 [n, classes]."""
    photos = parts.photos
    training, validation = (
        Labelled(photos.vectors[rows], photos.targets[rows])
        for rows in (parts.seen[:, head], parts.held_out[:, head])
    )
    for step in train(training, validation, parts.classes, options):  # noqa: B007
        pass
    return step.head.logits(photos.vectors)


@np.errstate(over="ignore", invalid="ignore")  # `check` tells whether the weights stay finite
def validation_losses(
    logits: NDArray[np.float32], targets: NDArray[np.integer], held_out: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Returns each head's mean cross entropy on its validation photos, float64 [heads].

    Args:
        logits: float32 [n, heads, classes].
        targets: class indexes int [n].
        held_out: bool [n, heads]; each head has a photo.
    """
    losses = cross_entropies(logits.astype(np.float64), targets)
    means: NDArray[np.float64] = (losses * held_out).sum(axis=0) / held_out.sum(axis=0)
    return means


def cross_entropies(
    logits: NDArray[np.float64], targets: NDArray[np.integer], smoothing: float = 0.0
) -> NDArray[np.float64]:
    """Returns the cross entropy in nats of logits [n, heads, classes], float64 [n, heads].

    `smoothing` is that of the labels `targets`, int [n]; see loss.Objective.
    """
    sums = np.log(np.exp(logits - (top := logits.max(axis=2, keepdims=True))).sum(axis=2))
    losses: NDArray[np.float64] = sums + top[:, :, 0]
    losses -= (1 - smoothing) * logits[np.arange(len(targets)), :, targets]
    return losses - smoothing * logits.mean(axis=2) if smoothing else losses


def weights_of(parts: Parts, options: TrainingOptions) -> NDArray[np.float32]:
    """Returns the weight of each photo in the loss of each head, float32 [n, heads].

    A batch that draws the classes uniformly from all photos holds more of a class of which a head
    sees a larger share; the weights undo that.
    """
    targets = parts.photos.targets
    weights = np.ones((parts.classes, parts.heads), np.float32)
    all_counts = np.bincount(targets, minlength=parts.classes)
    for head, seen in enumerate(parts.seen.T):
        if options.draws_classes:
            shares = np.bincount(targets[seen], minlength=parts.classes) / np.maximum(all_counts, 1)
            present = shares > 0
            weights[present, head] = shares[present].mean() / shares[present]
        elif options.balanced:
            weights[:, head] = balancing_weights(targets[seen], parts.classes)
    return np.where(parts.seen, weights[targets], np.float32(0))


def compacted(vectors: NDArray[np.float32], head: Head) -> tuple[NDArray[np.float32], Head]:
    """Writes n vectors that are wider than n in n coordinates; returns them and the head in them.

    The coordinates are those along an orthonormal basis of the vectors. All products of two
    vectors stay as they are, and so do the logits after each step of an optimizer in ROTATABLE.
    """
    if vectors.shape[1] < 2 * len(vectors):
        return vectors, head
    basis, coordinates = np.linalg.qr(vectors.T)
    (weights, bias), *others = head.layers
    *hidden, (last, last_bias) = [(basis.T @ weights, bias), *others]
    return np.ascontiguousarray(coordinates.T), Head(last, last_bias, tuple(hidden))


# -- by batches ------------------------------------------------------------------------------


def _by_batches(parts: Parts, options: TrainingOptions) -> NDArray[np.float32]:
    """Trains the heads by an optimizer in RATES; returns their logits [n, heads, classes]."""
    rng = np.random.default_rng(options.seed)
    photos = parts.photos
    vectors, first = (
        photos.vectors,
        first_head(rng, photos.vectors.shape[1], parts.classes, options.hidden_units),
    )
    if options.optimizer in ROTATABLE:
        vectors, first = compacted(vectors, first)
    heads = Stacked(first, parts.heads)
    descent = Descent(heads, replace(parts, photos=Labelled(vectors, photos.targets)), options, rng)
    if options.early_stopping:
        return _until_none_is_better(descent, heads, parts, options)
    for number in descent:
        if number % options.eval_step_interval == 0:
            heads.check(number, options)
    heads.check(number, options)
    return heads.logits(vectors)


def _until_none_is_better(
    descent: "Descent", heads: "Stacked", parts: Parts, options: TrainingOptions
) -> NDArray[np.float32]:
    """Returns each head's logits at its lowest validation cross entropy before its patience ends.

    This is the early stopping of `loop.train`.
    """
    patience = options.early_stopping or 0
    best = np.zeros((len(parts.seen), parts.heads, parts.classes), np.float32)
    lowest, since = np.full(parts.heads, np.inf), np.zeros(parts.heads, int)
    for number in descent:
        if number % options.eval_step_interval and number != descent.steps - 1:
            continue
        heads.check(number, options)
        logits = heads.logits(descent.vectors)
        losses = validation_losses(logits, parts.photos.targets, parts.held_out)
        better = (since < patience) & ((losses < lowest) | np.isinf(lowest))
        best[:, better], lowest[better] = logits[:, better], losses[better]
        since = np.where(better, 0, np.where(since < patience, since + 1, since))
        if (since >= patience).all():
            break
    return best


class Stacked:
    """Several heads with equal shapes.

    The weights of the first layers are the columns of one matrix [width, heads * out], with biases
    [heads * out]. Those of a later layer are an array [heads, in, out], with biases [heads, 1,
    out]. Activations are [n, heads, out].
    """

    def __init__(self, head: Head, count: int) -> None:
        """Makes `count` copies of a head."""
        self.count = count
        (weights, bias), *others = head.layers
        self.parameters = [np.tile(weights, (1, count)), np.tile(bias, count)]
        for weights, bias in others:
            self.parameters += [np.tile(weights, (count, 1, 1)), np.tile(bias, (count, 1, 1))]

    @np.errstate(over="ignore", invalid="ignore")  # `check` tells whether the weights stay finite
    def forward(
        self, vectors: NDArray[np.float32], dropout: float, rng: np.random.Generator | None
    ) -> tuple[list[NDArray[np.float32]], list[Mask]]:
        """Returns (the outputs of each layer, the last of which are logits; dropout masks)."""
        weights, bias, *others = self.parameters
        outputs = [(vectors @ weights + bias).reshape(len(vectors), self.count, -1)]
        masks: list[Mask] = []
        for weights, bias in zip(others[::2], others[1::2], strict=True):
            hidden, mask = np.maximum(outputs[-1], 0), None
            if rng is not None and dropout:
                kept = rng.random(hidden.shape, np.float32) >= dropout
                mask = kept * np.float32(1 / (1 - dropout))
                hidden *= mask
            outputs[-1] = hidden
            masks.append(mask)
            outputs.append((hidden.transpose(1, 0, 2) @ weights + bias).transpose(1, 0, 2))
        return outputs, masks

    def logits(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the logits of vectors float32 [n, width], float32 [n, heads, classes]."""
        return self.forward(vectors, 0, None)[0][-1]

    def backward(
        self,
        vectors: NDArray[np.float32],
        outputs: list[NDArray[np.float32]],
        masks: list[Mask],
        error: NDArray[np.float32],
    ) -> list[NDArray[np.float32]]:
        """Propagates `error` [n, heads, classes] to the first layer; returns all gradients."""
        found: list[NDArray[np.float32]] = []
        for number in range(len(outputs) - 1, 0, -1):
            inputs, gradients = outputs[number - 1], error.transpose(1, 0, 2)
            found[:0] = [
                inputs.transpose(1, 2, 0) @ gradients,
                gradients.sum(axis=1, keepdims=True),
            ]
            back = gradients @ self.parameters[2 * number].transpose(0, 2, 1)
            error = back.transpose(1, 0, 2) * (inputs > 0)
            if (mask := masks[number - 1]) is not None:
                error *= mask
        flat = error.reshape(len(vectors), -1)
        return [vectors.T @ flat, flat.sum(axis=0), *found]

    def check(self, number: int, options: TrainingOptions) -> None:
        """Raises TrainingError if a weight is infinite or NaN after step `number`."""
        weights, bias = self.parameters[0], self.parameters[1]
        rest = tuple(zip(self.parameters[2::2], self.parameters[3::2], strict=True))
        check_finite(Head(weights, bias, rest), number, options)


class Descent:
    """Takes the training steps of Stacked heads; iterating yields the number of each step."""

    def __init__(
        self, heads: Stacked, parts: Parts, options: TrainingOptions, rng: np.random.Generator
    ) -> None:
        self._heads, self._parts, self._options, self._rng = heads, parts, options, rng
        self.vectors = parts.photos.vectors
        self._weights = weights_of(parts, options)
        self._optimizer = by_batches(options.optimizer, heads.parameters, options.rate)
        seen = float(parts.seen.sum(axis=0).mean())
        self.steps = options.steps_for(round(seen))
        size = options.train_batch_size
        if size != -1:
            size = round(size * len(parts.seen) / seen)
        larger = replace(options, train_batch_size=size)
        self._draw = drawer(parts.photos.targets, parts.classes, larger, rng)

    def __iter__(self) -> Iterator[int]:
        for number in range(self.steps):
            self._step()
            yield number

    @np.errstate(over="ignore", invalid="ignore")  # `check` tells whether the weights stay finite
    def _step(self) -> None:
        self._optimizer.update(self._gradients(self._draw()))

    def _gradients(self, rows: NDArray[np.integer]) -> list[NDArray[np.float32]]:
        """Returns the gradients of loss.Objective for each head, times the optimizer's scale."""
        options, scale = self._options, self._optimizer.scale
        vectors = self.vectors[rows]
        outputs, masks = self._heads.forward(vectors, options.dropout, self._rng)
        counts = np.maximum(self._parts.seen[rows].sum(axis=0), 1)
        weights = self._weights[rows] * (scale / counts).astype(np.float32)
        error = _errors(outputs[-1], self._parts.photos.targets[rows], weights, options)
        found = self._heads.backward(vectors, outputs, masks, error)
        if options.l2:
            for gradient, now in zip(found[::2], self._heads.parameters[::2], strict=True):
                gradient += now * np.float32(scale * options.l2)
        return found


def _errors(
    logits: NDArray[AnyFloat],
    targets: NDArray[np.integer],
    weights: NDArray[np.floating],
    options: TrainingOptions,
) -> NDArray[AnyFloat]:
    """Returns (probabilities - target) * weight, [n, heads, classes], in the place of the logits.

    `weights` is [n, heads].
    """
    logits -= logits.max(axis=2, keepdims=True)
    error: NDArray[AnyFloat] = np.exp(logits, out=logits)
    error /= error.sum(axis=2, keepdims=True)
    if options.label_smoothing:
        error -= error.dtype.type(options.label_smoothing / error.shape[2])
    error[np.arange(len(targets)), :, targets] -= error.dtype.type(1 - options.label_smoothing)
    error *= weights[:, :, None]
    return error


# -- L-BFGS ----------------------------------------------------------------------------------


class SoftmaxFit:
    """Fits softmax layers by L-BFGS; each call starts where the previous one ended.

    Each head has an L-BFGS of its own, on a thread of its own. Their losses are computed together.
    """

    def __init__(self, parts: Parts, options: TrainingOptions, start: Head | None = None) -> None:
        """Starts with `start`, or with weights of 0."""
        photos, shape = parts.photos, (parts.photos.vectors.shape[1], parts.classes)
        start = start or Head(np.zeros(shape, np.float32), np.zeros(shape[1], np.float32))
        self._vectors, start = compacted(photos.vectors, start)
        self._heads = [start.copy() for _ in range(parts.heads)]
        self._targets, self._options = photos.targets, options
        weights = weights_of(parts, options).astype(np.float64)
        self._weights = (weights / parts.seen.sum(axis=0)).T  # [heads, n]
        self._frames = [self._frame(seen) for seen in parts.seen.T]

    def _frame(self, seen: NDArray[np.bool_]) -> Frame:
        rows = np.flatnonzero(seen)
        return Frame(self._vectors[rows[choose_rows(len(rows), MOST_EVALUATED)]])

    def __call__(
        self, l2: NDArray[np.float64], going: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Fits the heads that are `going`, bool [heads] (None: all), with L2 of float [heads].

        Returns the logits of all photos, float32 [n, heads, classes].
        """
        chosen = range(len(self._heads)) if going is None else np.flatnonzero(going).tolist()
        together = Together(chosen, lambda numbers: self._losses(numbers, l2))
        for ended in [beside(self._fit, number, together) for number in chosen]:
            ended.result()
        return np.stack([head.logits(self._vectors) for head in self._heads], axis=1)

    def _fit(self, number: int, together: Together[int, LossAndGradients]) -> None:
        """Fits a head; its losses are computed together with those of the others."""
        head, most = self._heads[number], self._options.steps
        with together.member(number) as ask:
            count = lbfgs(head.parameters, ask, self._frames[number], most, lambda number: None)
        check_finite(head, count, self._options)

    @np.errstate(over="ignore", invalid="ignore")  # `check_finite` tells whether they stay finite
    def _losses(self, numbers: Sequence[int], l2: NDArray[np.float64]) -> list[LossAndGradients]:
        """Returns (loss, its gradients) of each of the heads; see loss.Objective."""
        heads = [self._heads[number] for number in numbers]
        joint = np.concatenate([head.weights.T for head in heads])
        bias = np.concatenate([head.bias for head in heads])
        logits = (joint @ self._vectors.T + bias[:, None]).reshape(
            len(heads), len(heads[0].bias), -1
        )
        losses, error = self._entropies(logits.astype(np.float64))
        weights = self._weights[numbers]
        error *= weights[:, None]
        slopes = error.reshape(len(joint), -1).astype(np.float32) @ self._vectors
        found = []
        for place, head in enumerate(heads):
            strength, own = l2[numbers[place]], slopes.reshape(len(heads), -1, len(head.weights))
            loss = losses[place] @ weights[place]
            loss += strength * (head.weights.astype(np.float64) ** 2).sum() / 2
            slope = own[place].T + np.float32(strength) * head.weights
            found.append((float(loss), [slope, error[place].sum(axis=1)]))
        return found

    def _entropies(
        self, logits: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns (cross entropies [heads, n], their gradients by logits [heads, classes, n])."""
        smoothing = self._options.label_smoothing
        own = slice(None), self._targets, np.arange(len(self._targets))
        powers = np.exp(logits - (top := logits.max(axis=1, keepdims=True)))
        sums = powers.sum(axis=1, keepdims=True)
        losses = (np.log(sums) + top)[:, 0] - (1 - smoothing) * logits[own]
        error: NDArray[np.float64] = np.divide(powers, sums, out=powers)
        error[own] -= 1 - smoothing
        if smoothing:
            losses -= smoothing * logits.mean(axis=1)
            error -= smoothing / error.shape[1]
        return losses, error
