"""Trains a head: options, steps, early stopping."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.vectors import Labelled
from retraining.errors import RetrainingError
from retraining.metrics.classification import choose_rows
from retraining.system.observer import ignore
from retraining.system.ranges import Range, SettingsError, check_choice, check_ranges
from retraining.training.batches import ClassUniform, Shuffled, passes_to_steps
from retraining.training.head import Evaluation, Head, evaluate, first_head
from retraining.training.loss import Objective, VectorBatch, balancing_weights
from retraining.training.optimizers import LBFGS, OPTIMIZERS, RATES, Frame, by_batches, lbfgs

MOST_EVALUATED = 4000  # training photos on which L-BFGS's steps and the final head are evaluated
# Photos x classes to evaluate on before the last step. With 1,000 classes, an evaluation on
# MOST_EVALUATED photos every ten steps took four times as long as the steps.
MOST_ANSWERS = 400_000
SUREST = 1000  # largest median lead of the best logit over the second; exp(-1000) is 0 in floats
BALANCED, NONE = CLASS_WEIGHTS = ("balanced", "none")

Draw: TypeAlias = Callable[[], NDArray[np.integer]]  # gives the row numbers of the next batch


class TrainingError(RetrainingError):
    """Training failed; the message says what to change."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a head is trained. The defaults are the classic's.

    A batch size of -1 means all images. `validation_batch_size` is the size of the class-uniform
    draw on which the classic evaluates; None evaluates on each validation photo once.
    `learning_rate` None selects the optimizer's default.
    `epochs`, if given, replaces `steps`; with L-BFGS, `steps` is the largest number of iterations.
    `early_stopping` is the number of evaluations without improvement after which training ends.
    With `class_weights` None, classes are balanced as in the classic (see `balanced`). For the
    other fields, see loss.Objective.
    """

    steps: int = 4000
    learning_rate: float | None = None
    train_batch_size: int = 100
    validation_batch_size: int | None = None
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

    RANGES: ClassVar[Mapping[str, Range]] = {
        "steps": (1, math.inf),
        "learning_rate": (0, math.inf),
        "train_batch_size": (-1, 100_000),
        "validation_batch_size": (-1, 100_000),
        "eval_step_interval": (1, math.inf),
        "seed": (0, math.inf),
        "dropout": (0, 0.99),
        "l2": (0, 1e6),
        "label_smoothing": (0, 0.99),
        "epochs": (1, 1_000_000),
        "early_stopping": (1, 1_000_000),
    }

    def __post_init__(self) -> None:
        check_ranges(self, self.RANGES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        if 0 in (self.train_batch_size, self.validation_batch_size):
            raise SettingsError("a batch holds at least 1 vector; -1 means all")

    @property
    def rate(self) -> float:
        """The learning rate."""
        return RATES[self.optimizer] if self.learning_rate is None else self.learning_rate

    @property
    def balanced(self) -> bool:
        """Whether all classes count equally, however many photos each has.

        The classic drew batches class-uniformly, which balances the classes. It did not balance a
        batch of all photos.
        """
        if self.class_weights is None:
            return self.optimizer == LBFGS or self.train_batch_size != -1
        return self.class_weights == BALANCED

    @property
    def draws_classes(self) -> bool:
        """Whether drawing classes uniformly, not weighting photos, balances the classes."""
        by_drawing = self.train_batch_size != -1 and not self.epochs and self.optimizer != LBFGS
        return self.balanced and by_drawing

    def steps_for(self, photos: int) -> int:
        """Returns the number of steps for that many training photos."""
        if self.epochs:
            return passes_to_steps(self.epochs, photos, self.train_batch_size)
        return self.steps


@dataclass(frozen=True)
class Step:
    """The state after a training step; the evaluations are None between evaluation steps.

    If early stopping returns to an earlier head, `kept` of the last Step is the number of the step
    that the head is from.
    """

    number: int
    head: Head
    training: Evaluation | None = None
    validation: Evaluation | None = None
    kept: int | None = None

    @property
    def evaluations(self) -> tuple[Evaluation, Evaluation]:
        """The Evaluations on training and on validation photos.

        Raises:
            ValueError: the step has none.
        """
        if self.training is None or self.validation is None:
            raise ValueError(f"step {self.number} has no evaluations")
        return self.training, self.validation


def train(
    training: Labelled, validation: Labelled, classes: int, options: TrainingOptions
) -> Iterator[Step]:
    """Yields a Step after each training step; the last one has the final head.

    Unless the options say otherwise, batches are drawn class-uniformly (batches.ClassUniform).
    L-BFGS yields only the Steps with evaluations, after it has ended. The same seed gives the same
    head.

    Args:
        training: vectors of the training photos; every class has an example.
        validation: vectors of the validation photos, possibly none.
        classes: number of classes.

    Raises:
        TrainingError: the weights became infinite, NaN or useless, or early stopping has no
            validation photos.
    """
    if options.early_stopping and not len(validation.targets):
        raise TrainingError(
            "`TrainingOptions.early_stopping` needs validation photos; add some to each class"
        )
    rng = np.random.default_rng(options.seed)
    head = first_head(rng, training.vectors.shape[1], classes, options.hidden_units)
    steps: Iterable[Step]
    if options.optimizer == LBFGS:
        steps = follow_lbfgs(head, training, validation, options)
    else:
        steps = _by_batches(head, training, validation, rng, options)
    if options.early_stopping:
        last = options.steps_for(len(training.targets)) - 1
        steps = _until_no_better(steps, last, options.early_stopping)
    for step in steps:
        yield step
    check_use(step.head, training, options)


def _by_batches(
    head: Head,
    training: Labelled,
    validation: Labelled,
    rng: np.random.Generator,
    options: TrainingOptions,
) -> Iterator[Step]:
    """Yields a Step after each step of an optimizer in RATES; changes `head` in place."""
    classes = len(head.bias)
    draw = drawer(training.targets, classes, options, rng)
    draw_validation = _validation_drawer(validation.targets, classes, options, rng)
    descend = Descender(head, objective_of(training.targets, classes, options), options, rng)
    steps = options.steps_for(len(training.targets))
    for number in range(steps):
        rows = draw()
        batch = training.vectors[rows], training.targets[rows]
        descend(batch)
        if number % options.eval_step_interval == 0 or number == steps - 1:
            check_finite(head, number, options)
            rows = draw_validation(number == steps - 1)
            held_out = validation.vectors[rows], validation.targets[rows]
            yield Step(number, head, evaluate(head, *batch), evaluate(head, *held_out))
        else:
            yield Step(number, head)


def _validation_drawer(
    targets: NDArray[np.integer],
    classes: int,
    options: TrainingOptions,
    rng: np.random.Generator,
) -> Callable[[bool], NDArray[np.integer]]:
    """Returns `draw(last)`, which gives the rows of the validation photos to evaluate on.

    These are all photos, each once. Before the last step they are at most MOST_EVALUATED, evenly
    spread, and fewer where MOST_ANSWERS bounds them.
    """
    if options.validation_batch_size is not None and not options.early_stopping:
        draw = ClassUniform(targets, classes, options.validation_batch_size, rng)
        return lambda last: draw()
    most = min(MOST_EVALUATED, max(1, MOST_ANSWERS // classes))
    every, some = np.arange(len(targets)), choose_rows(len(targets), most)
    return lambda last: every if last or options.early_stopping else some


class Descender:
    """Takes training steps, which change `head` in place along the gradient on a batch."""

    def __init__(
        self,
        head: Head,
        objective: Objective,
        options: TrainingOptions,
        rng: np.random.Generator,
    ) -> None:
        self._head, self._objective, self._rng = head, objective, rng
        self._optimizer = by_batches(options.optimizer, head.parameters, options.rate)

    @np.errstate(over="ignore", invalid="ignore")  # `train` checks that the weights stay finite
    def __call__(self, batch: VectorBatch) -> None:
        """Takes one step on (vectors [n, width], class indexes [n])."""
        scale = self._optimizer.scale
        self._optimizer.update(self._objective.gradients(self._head, batch, scale, self._rng))


def drawer(
    targets: NDArray[np.integer],
    classes: int,
    options: TrainingOptions,
    rng: np.random.Generator,
) -> Draw:
    """Returns the function that draws the rows of each batch."""
    if options.draws_classes or (options.train_batch_size == -1 and not options.epochs):
        return ClassUniform(targets, classes, options.train_batch_size, rng)
    return Shuffled(len(targets), options.train_batch_size, rng)


def objective_of(targets: NDArray[np.integer], classes: int, options: TrainingOptions) -> Objective:
    """Returns the Objective for the options and photos with class indexes `targets`, int [n]."""
    weighs = options.balanced and not options.draws_classes
    weights = balancing_weights(targets, classes) if weighs else None
    return Objective(weights, options.label_smoothing, options.l2, options.dropout)


def follow_lbfgs(
    head: Head,
    training: Labelled,
    validation: Labelled,
    options: TrainingOptions,
    count: Callable[[int], object] = ignore,
) -> list[Step]:
    """Fits `head` in place by L-BFGS; returns the Steps with evaluations, the final one last.

    Each evaluation uses at most MOST_EVALUATED training photos. `count` is called with 1 after each
    step.
    """
    data = training.vectors, training.targets
    seen, held_out = training.thinned(MOST_EVALUATED), validation
    objective = objective_of(training.targets, len(head.bias), options)
    rows = choose_rows(len(training.targets), MOST_EVALUATED)
    steps: list[Step] = []

    def look(number: int, now: Head) -> Step:
        trained, other = (evaluate(now, part.vectors, part.targets) for part in (seen, held_out))
        return Step(number, now, trained, other)

    def after(number: int) -> None:
        count(1)
        if number % options.eval_step_interval == 0:
            steps.append(look(number, head))

    def loss_and_gradients() -> tuple[float, list[NDArray[np.float32]]]:
        return objective.loss_and_gradients(head, data)

    frame = Frame(training.vectors[rows])
    taken = lbfgs(head.parameters, loss_and_gradients, frame, options.steps, after)
    check_finite(head, taken, options)
    return [step for step in steps if step.number < taken - 1] + [look(max(0, taken - 1), head)]


def _until_no_better(steps: Iterable[Step], last: int, patience: int) -> Iterator[Step]:
    """Yields Steps until `patience` evaluations in a row bring no lower validation cross entropy.

    The final Step, number `last` at the latest, has the head with the lowest one.
    """
    best: Step | None = None
    since, lowest = 0, math.inf
    for step in steps:
        if step.validation:
            since, loss = since + 1, step.validation.cross_entropy
            if best is None or loss < lowest:
                best, since, lowest = replace(step, head=step.head.copy()), 0, loss
            if since == patience or step.number == last:
                yield replace(step, head=best.head, kept=best.number)
                return
        yield step


def check_finite(head: Head, number: int, options: TrainingOptions) -> None:
    """Raises TrainingError if a weight is infinite or NaN.

    NaN stays NaN, so checking at evaluation steps misses nothing.
    """
    if not head.is_finite:
        raise TrainingError(
            f"training diverged at step {number}: the weights are no longer finite; "
            f"{_remedy(options)}"
        )


def check_use(head: Head, training: Labelled, options: TrainingOptions) -> None:
    """Raises TrainingError if most of the head's probabilities on training photos are 0 or 1.

    The head then gives every answer as certain, and no temperature can mend its float32 scores.
    """
    part = training.thinned(MOST_EVALUATED)
    logits = np.sort(head.logits(part.vectors).astype(np.float64), axis=1)
    if logits.shape[1] < 2 or np.median(logits[:, -1] - logits[:, -2]) <= SUREST:
        return
    raise TrainingError(
        f"training diverged: the logits grew up to {np.abs(logits).max():.1g}, so that most "
        f"probabilities are exactly 0 or 1; {_remedy(options)}"
    )


def _remedy(options: TrainingOptions) -> str:
    if options.optimizer == LBFGS:
        return "use another `TrainingOptions.optimizer`"
    lower_l2 = ", or `TrainingOptions.l2`" * bool(options.l2)
    return f"lower `TrainingOptions.learning_rate`, which is {options.rate:g}{lower_l2}"


@dataclass(frozen=True)
class Trained:
    """A trained head, its Steps with evaluations, TensorBoard's folder, the options, the time."""

    head: Head
    course: list[Step]
    log_folder: Path
    settings: TrainingOptions
    seconds: float


def describe_step(step: Step) -> str:
    """Describes a Step that has evaluations, in one line."""
    training, validation = step.evaluations
    line = (
        f"step {step.number}: train accuracy {training.accuracy:.1%}, cross entropy "
        f"{training.cross_entropy:.3f}"
    )
    if validation.count:
        line += f", validation accuracy {validation.accuracy:.1%}"
    return line
