"""Trains a head: options, steps, early stopping."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retraining.errors import RetrainingError
from retraining.metrics.classification import choose_rows
from retraining.training.batches import ClassUniform, Shuffled, passes_to_steps
from retraining.training.head import Evaluation, Head, evaluate, first_head
from retraining.training.loss import Objective, balancing_weights
from retraining.training.optimizers import LBFGS, RATES, Frame, by_batches, lbfgs

MOST_EVALUATED = 4000  # training photos on which L-BFGS's course and a finished head are judged
SUREST = 1000  # logits by which the best class leads; exp(-1000) is 0 many times over
BALANCED, NONE = CLASS_WEIGHTS = ("balanced", "none")


class TrainingError(RetrainingError):
    """Training went wrong; says what to change."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a head is trained. The defaults are the classic's; a batch size of -1 means all images.

    `learning_rate` None is the optimizer's own. `epochs`, if any, takes the place of `steps`, which
    are iterations at most with L-BFGS. `early_stopping` is a number of evaluations. `class_weights`
    None is as in the classic, see `balanced`. The others are as in objective.Objective.
    """

    steps: int = 4000
    learning_rate: float | None = None
    train_batch_size: int = 100
    validation_batch_size: int = 100
    eval_step_interval: int = 10
    seed: int = 0
    optimizer: str = "sgd"
    hidden_units: tuple[int, ...] = ()
    dropout: float = 0.0
    l2: float = 0.0
    label_smoothing: float = 0.0
    class_weights: str | None = None
    epochs: int | None = None
    early_stopping: int | None = None

    @property
    def rate(self):
        """The learning rate."""
        return RATES[self.optimizer] if self.learning_rate is None else self.learning_rate

    @property
    def balanced(self):
        """Whether a class counts as much as any other, however many photos it has.

        In the classic that was so, as batches were drawn class-uniformly, but for a batch of all
        photos, which it took as they are.
        """
        if self.class_weights is None:
            return self.optimizer == LBFGS or self.train_batch_size != -1
        return self.class_weights == BALANCED

    @property
    def draws_classes(self):
        """Whether that is done by drawing classes, not by weights."""
        by_drawing = self.train_batch_size != -1 and not self.epochs and self.optimizer != LBFGS
        return self.balanced and by_drawing

    def steps_for(self, photos):
        """The number of steps for so many training photos."""
        if self.epochs:
            return passes_to_steps(self.epochs, photos, self.train_batch_size)
        return self.steps


@dataclass(frozen=True)
class Step:
    """What is known after a step; the evaluations are None between evaluation steps.

    Of the last one, `kept` is the number of the step whose head it has, if that is an earlier one.
    """

    number: int
    head: Head
    training: Evaluation | None = None
    validation: Evaluation | None = None
    kept: int | None = None


def train(training, validation, classes, options):
    """Yields a Step after each training step; the last one has the final head.

    Unless options say otherwise, batches are drawn class-uniformly (batches.ClassUniform). With
    L-BFGS the Steps, only those with evaluations, come after its end. The same seed gives the
    same head.

    Args:
        training, validation: Labelled; every class has an example in `training`.
        classes: number of classes.

    Raises:
        TrainingError: the weights became infinite, NaN or useless, or there is nothing to stop by.
    """
    if options.early_stopping and not len(validation.truth):
        raise TrainingError("--early_stopping needs validation photos; add some to each class")
    rng = np.random.default_rng(options.seed)
    head = first_head(rng, training.vectors.shape[1], classes, options.hidden_units)
    if options.optimizer == LBFGS:
        steps = follow_lbfgs(head, training, validation, options)
    else:
        steps = _by_batches(head, training, validation, rng, options)
    if options.early_stopping:
        last = options.steps_for(len(training.truth)) - 1
        steps = _until_no_better(steps, last, options.early_stopping)
    for step in steps:
        yield step
    check_use(step.head, training, options)


def _by_batches(head, training, validation, rng, options):
    """Yields a Step after each step of an optimizer in RATES, which changes `head` in place."""
    classes = len(head.bias)
    draw = drawer(training.truth, classes, options, rng)
    size = -1 if options.early_stopping else options.validation_batch_size
    draw_validation = ClassUniform(validation.truth, classes, size, rng)
    descend = Descender(head, objective_of(training.truth, classes, options), options, rng)
    steps = options.steps_for(len(training.truth))
    for number in range(steps):
        rows = draw()
        batch = training.vectors[rows], training.truth[rows]
        descend(batch)
        if number % options.eval_step_interval == 0 or number == steps - 1:
            check_finite(head, number, options)
            rows = draw_validation()
            held_out = validation.vectors[rows], validation.truth[rows]
            yield Step(number, head, evaluate(head, *batch), evaluate(head, *held_out))
        else:
            yield Step(number, head)


class Descender:
    """Takes steps: each changes `head` in place, by the gradient of an Objective on a batch."""

    def __init__(self, head, objective, options, rng):
        self._head, self._objective, self._rng = head, objective, rng
        self._optimizer = by_batches(options.optimizer, head.parameters, options.rate)

    @np.errstate(over="ignore", invalid="ignore")  # `train` looks for what is not finite
    def __call__(self, batch):
        """One step on (vectors [n, width], truth [n])."""
        scale = self._optimizer.scale
        self._optimizer.update(self._objective.gradients(self._head, batch, scale, self._rng))


def drawer(truth, classes, options, rng):
    """What gives the rows of each batch."""
    if options.draws_classes or (options.train_batch_size == -1 and not options.epochs):
        return ClassUniform(truth, classes, options.train_batch_size, rng)
    return Shuffled(len(truth), options.train_batch_size, rng)


def objective_of(truth, classes, options):
    """The Objective that options ask for on photos of classes `truth`."""
    weighs = options.balanced and not options.draws_classes
    weights = balancing_weights(truth, classes) if weighs else None
    return Objective(weights, options.label_smoothing, options.l2, options.dropout)


def follow_lbfgs(head, training, validation, options):
    """Fits `head` in place by L-BFGS; returns the Steps with evaluations, the last after its end.

    They are of all photos, or MOST_EVALUATED of them.
    """
    data = training.vectors, training.truth
    seen, held_out = training.thinned(MOST_EVALUATED), validation.thinned(MOST_EVALUATED)
    objective = objective_of(training.truth, len(head.bias), options)
    rows, steps = choose_rows(len(training.truth), MOST_EVALUATED), []

    def look(number, now):
        parts = ((part.vectors, part.truth) for part in (seen, held_out))
        return Step(number, now, *(evaluate(now, *part) for part in parts))

    def after(number):
        if number % options.eval_step_interval == 0:
            steps.append(look(number, head))

    def loss_and_slopes():
        return objective.loss_and_gradients(head, data)

    frame = Frame(training.vectors[rows])
    count = lbfgs(head.parameters, loss_and_slopes, frame, options.steps, after)
    check_finite(head, count, options)
    return [step for step in steps if step.number < count - 1] + [look(max(0, count - 1), head)]


def _until_no_better(steps, last, patience):
    """Yields Steps up to `patience` evaluations without a lower validation cross entropy.

    The final one, number `last` at most, has the head of the lowest.
    """
    best, since = None, 0
    for step in steps:
        if step.validation:
            since += 1
            if best is None or step.validation.cross_entropy < best.validation.cross_entropy:
                best, since = replace(step, head=step.head.copy()), 0
            if since == patience or step.number == last:
                yield replace(step, head=best.head, kept=best.number)
                return
        yield step


def check_finite(head, number, options):
    """Raises TrainingError if a weight is infinite or NaN. NaN stays NaN: no step is missed."""
    if not head.is_finite:
        raise TrainingError(
            f"training went astray at step {number}: the weights are no longer finite; "
            f"{_remedy(options)}"
        )


def check_use(head, training, options):
    """Raises TrainingError if the head's probabilities are useless even on the training photos.

    That is, if they are worse than those of guessing by a nat, or so sure that most are 0 or 1.
    """
    part = training.thinned(MOST_EVALUATED)
    logits = np.sort(head.logits(part.vectors).astype(np.float64), axis=1)
    loss = evaluate(head, part.vectors, part.truth).cross_entropy
    guessing = math.log(len(head.bias))
    sure = np.median(logits[:, -1] - logits[:, -2]) if logits.shape[1] > 1 else 0
    if not (loss <= guessing + 1 and sure <= SUREST):
        raise TrainingError(
            f"training went astray: the layer's probabilities say nothing (cross entropy "
            f"{abs(loss):.3g} on the training photos, {guessing:.3g} by guessing; logits up to "
            f"{np.abs(logits).max():.1g}); {_remedy(options)}"
        )


def _remedy(options):
    if options.optimizer == LBFGS:
        return "use another --optimizer"
    return f"lower --learning_rate, which is {options.rate:g}" + (", or --l2" * bool(options.l2))


@dataclass(frozen=True)
class Trained:
    """The head, the Steps with evaluations on the way, TensorBoard's folder, how it was trained."""

    head: Head
    course: list[Step]
    log_folder: Path
    settings: TrainingOptions
    seconds: float


def describe_step(step):
    """One line on a Step that has evaluations."""
    line = (
        f"step {step.number}: train accuracy {step.training.accuracy:.1%}, cross entropy "
        f"{step.training.cross_entropy:.3f}"
    )
    if step.validation.count:
        line += f", validation accuracy {step.validation.accuracy:.1%}"
    return line
