"""The softmax layer: options, loop, metrics. Arrays in, arrays out."""

from dataclasses import dataclass

import numpy as np

from retraining import RetrainingError
from retraining.evaluate import accuracy, choose_rows, cross_entropy, softmax

DRAWN_AT_ONCE = 25_600  # row numbers; batch by batch, drawing would take a tenth of all the time
WEIGHT_SCALE = 0.001  # standard deviation of the first weights, as in the classic


class TrainingError(RetrainingError):
    """Training went wrong; says what to change."""


@dataclass(frozen=True)
class TrainingOptions:
    """The classic's settings and their defaults; a batch size of -1 means all images."""

    steps: int = 4000
    learning_rate: float = 0.01
    train_batch_size: int = 100
    validation_batch_size: int = 100
    eval_step_interval: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Labelled:
    """Vectors float32 [n, width] and the class index of each, int [n]."""

    vectors: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(cls, vectors, names, labels):
        """`names` [n] are the vectors' labels, `labels` all classes in the order of the output."""
        index = {label: number for number, label in enumerate(labels)}
        return cls(vectors, np.array([index[name] for name in names], int))

    @classmethod
    def join(cls, parts):
        """All rows of several Labelled."""
        vectors, truth = zip(*((part.vectors, part.truth) for part in parts), strict=True)
        return cls(np.concatenate(vectors), np.concatenate(truth))

    def first(self, count):
        """The first rows, without a copy."""
        return Labelled(self.vectors[:count], self.truth[:count])

    def thinned(self, most):
        """At most so many rows, evenly spread."""
        rows = choose_rows(len(self.truth), most)
        return Labelled(self.vectors[rows], self.truth[rows])


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


@dataclass(frozen=True)
class Step:
    """What is known after a step; the evaluations are None between evaluation steps."""

    number: int
    head: Head
    training: Evaluation | None = None
    validation: Evaluation | None = None


def train(training, validation, classes, options):
    """Yields a Step after each step of plain gradient descent; the last one has the final head.

    Batches are drawn class-uniformly: first a class, then one of its images, as in the classic,
    so that a rare class counts as much as a frequent one. The same seed gives the same head.

    Args:
        training, validation: Labelled; every class has an example in `training`.
        classes: number of classes.

    Raises:
        TrainingError: the weights became infinite or NaN.
    """
    rng = np.random.default_rng(options.seed)
    head = _first_head(rng, training.vectors.shape[1], classes)
    draw = _Drawer(training.truth, classes, options.train_batch_size, rng)
    draw_validation = _Drawer(validation.truth, classes, options.validation_batch_size, rng)
    for number in range(options.steps):
        rows = draw()
        vectors, truth = training.vectors[rows], training.truth[rows]
        descend(head, vectors, truth, options.learning_rate)
        if number % options.eval_step_interval == 0 or number == options.steps - 1:
            if not np.isfinite(head.weights).all():  # NaN stays NaN: no step in between is missed
                raise TrainingError(
                    f"training went astray at step {number}: the weights are no longer finite; "
                    f"lower --learning_rate"
                )
            rows = draw_validation()
            yield Step(
                number,
                head,
                evaluate(head, vectors, truth),
                evaluate(head, validation.vectors[rows], validation.truth[rows]),
            )
        else:
            yield Step(number, head)


def descend(head, vectors, truth, learning_rate):
    """One step of gradient descent on the batch's mean cross entropy; changes `head` in place."""
    weights, bias = downhill(head, vectors, truth, learning_rate)
    head.weights -= weights
    head.bias -= bias


@np.errstate(over="ignore", invalid="ignore")
def downhill(head, vectors, truth, learning_rate):
    """`learning_rate` times the gradient of the batch's mean cross entropy, by weights and by bias.

    The gradient of softmax cross entropy by the logits is (probabilities - one-hot truth) / n.
    """
    error = head.probabilities(vectors)
    error[np.arange(len(truth)), truth] -= 1
    error *= np.float32(learning_rate / len(truth))
    return vectors.T @ error, error.sum(axis=0)


def evaluate(head, vectors, truth):
    """The head's Evaluation on a batch."""
    return evaluation_of(head.probabilities(vectors), truth)


def evaluation_of(probabilities, truth):
    """The Evaluation of answers float32 [n, classes]."""
    figures = accuracy(probabilities, truth), cross_entropy(probabilities, truth)
    return Evaluation(*figures, len(truth))


def _first_head(rng, width, classes):
    """Weights from N(0, 0.001) truncated at two standard deviations, bias 0."""
    weights = rng.standard_normal((width, classes))
    while (outside := np.abs(weights) > 2).any():
        weights[outside] = rng.standard_normal(np.count_nonzero(outside))
    return Head((weights * WEIGHT_SCALE).astype(np.float32), np.zeros(classes, np.float32))


class _Drawer:
    """Draws row numbers class-uniformly, with replacement; -1 (or no row) gives all rows."""

    def __init__(self, truth, classes, batch_size, rng):
        rows = [np.flatnonzero(truth == label) for label in range(classes)]
        rows = [of_class for of_class in rows if len(of_class)]
        self._counts = np.array([len(of_class) for of_class in rows])
        self._rows = np.concatenate(rows) if rows else np.arange(0)
        self._starts = np.cumsum(self._counts) - self._counts
        self._batch_size, self._rng, self._drawn = batch_size, rng, []

    def __call__(self):
        """Row numbers, int [batch size]."""
        if self._batch_size == -1 or not len(self._rows):
            return self._rows
        if not self._drawn:
            self._drawn = list(self._draw(max(1, DRAWN_AT_ONCE // self._batch_size)))
        return self._drawn.pop()

    def _draw(self, batches):
        shape = (batches, self._batch_size)
        labels = self._rng.integers(len(self._counts), size=shape)
        nth = (self._rng.random(shape) * self._counts[labels]).astype(np.int64)
        return self._rows[self._starts[labels] + nth]


SIZE_SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of the training photos
SIZE_STEPS = 300
SIZE_BATCH = 50
MOMENTUM = 0.9  # makes a step count as much as ten without it


@dataclass(frozen=True)
class SizePoint:
    """A layer trained on `photos` examples: which of the held-out ones it has right, bool [n]."""

    photos: int
    right: np.ndarray


def compare_sizes(training, held_out, classes, options):
    """A SizePoint per SIZE_SHARES: how good the layer is with fewer photos of each class.

    Each subset holds the smaller ones. To cost a second whatever the number of photos, the layers
    are trained for SIZE_STEPS steps with momentum, so they come close to the real one only.
    An empty list if such training goes astray.

    Args:
        training, held_out: Labelled; every class has an example in `training`.
    """
    order = _spread_classes(training.truth, options.seed)
    points = []
    for photos in sorted({max(classes, round(share * len(order))) for share in SIZE_SHARES}):
        rows = np.sort(order[:photos])
        head = _quick_head(training, rows, classes, options)
        if not np.isfinite(head.weights).all():
            return []
        answers = head.probabilities(held_out.vectors).argmax(axis=1)
        points.append(SizePoint(len(rows), answers == held_out.truth))
    return points


def _spread_classes(truth, seed):
    """All row numbers, so ordered that every beginning holds about the same share of each class.

    The first of each class come first, so that no class is ever without an example.
    """
    rng, place = np.random.default_rng(seed), np.empty(len(truth))
    for label in np.unique(truth):
        rows = rng.permutation(np.flatnonzero(truth == label))
        place[rows] = np.arange(len(rows)) / len(rows)
    return np.argsort(place, kind="stable")


def _quick_head(training, rows, classes, options):
    """A Head trained on some rows of `training` by a few steps with momentum (Polyak, 1964)."""
    rng = np.random.default_rng(options.seed)
    head = _first_head(rng, training.vectors.shape[1], classes)
    draw = _Drawer(training.truth[rows], classes, SIZE_BATCH, rng)
    speed = Head(np.zeros_like(head.weights), np.zeros_like(head.bias))
    for _ in range(SIZE_STEPS):
        batch = rows[draw()]
        vectors, truth = training.vectors[batch], training.truth[batch]
        weights, bias = downhill(head, vectors, truth, options.learning_rate)
        for now, last, change in (
            (head.weights, speed.weights, weights),
            (head.bias, speed.bias, bias),
        ):
            last *= MOMENTUM
            last += change
            now -= last
    return head
