"""Fits softmax layers with several strengths of L2, picks the best on validation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retraining.bottlenecks.vectors import Labelled
from retraining.metrics.classification import choose_rows
from retraining.system.observer import ignore
from retraining.training.head import Evaluation, Head
from retraining.training.loop import (
    MOST_EVALUATED,
    Step,
    TrainingError,
    TrainingOptions,
    check_use,
    follow_lbfgs,
)
from retraining.training.optimizers import LBFGS, Frame

# Strengths of L2 for vectors scaled to a mean variance of 1. They range from too strong to too weak
# for every network measured (benchmarks/heads.py).
STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
PATIENCE = 2  # the weakest strengths, which take longest, are rarely the best
MOST_ITERATIONS = 1000  # of L-BFGS for each
AUTO_INTERVAL = 10  # iterations between evaluations


@dataclass(frozen=True, eq=False)  # arrays have no plain equality
class Candidate:
    """A converged head, its options, and the Steps that led to it from the previous candidate."""

    head: Head
    options: TrainingOptions
    course: list[Step]

    @property
    def validation(self) -> Evaluation:
        """The Evaluation of the head on the validation photos."""
        return self.course[-1].evaluations[1]


def candidates(
    training: Labelled,
    validation: Labelled,
    classes: int,
    options: TrainingOptions,
    count: Callable[[int], object] = ignore,
) -> Iterator[Candidate]:
    """Yields a Candidate for each of STRENGTHS; each fit starts from the head of the previous one.

    Stops after PATIENCE candidates in a row without a lower validation cross entropy. The loss is
    convex, so the start changes only the time of a fit, not its result.

    Args:
        training: vectors of the training photos; every class has an example.
        validation: vectors of the validation photos.
        options: only seed, class weights and label smoothing are used.
        count: called with 1 after each step of L-BFGS.

    Raises:
        TrainingError: there are no validation photos, or the vectors allow no fit.
    """
    if not len(validation.targets):
        raise TrainingError(
            "`HeadSettings.search` chooses by validation photos, and there are none; add some"
        )
    head = _zeros(training.vectors.shape[1], classes)
    rows = choose_rows(len(training.targets), MOST_EVALUATED)
    variance = Frame(training.vectors[rows]).scale ** 2
    number = 0
    tried: list[Candidate] = []
    for strength in STRENGTHS:
        strength_options = replace(
            options,
            optimizer=LBFGS,
            l2=strength * variance,
            steps=MOST_ITERATIONS,
            eval_step_interval=AUTO_INTERVAL,
            learning_rate=None,
        )
        steps = follow_lbfgs(head, training, validation, strength_options, count)
        course = [replace(step, number=step.number + number) for step in steps]
        check_use(head, training, strength_options)
        tried.append(Candidate(head.copy(), strength_options, course))
        yield tried[-1]
        if best(tried) not in tried[-PATIENCE:]:
            return
        number = course[-1].number + 1


def best(candidates: Sequence[Candidate]) -> Candidate:
    """Returns the Candidate with the lowest validation cross entropy; of equals, the most
    regularised.
    """
    return min(candidates, key=lambda candidate: candidate.validation.cross_entropy)


def course_of(candidates: Sequence[Candidate]) -> list[Step]:
    """Returns the Steps of all Candidates up to and including the best one."""
    until_best = candidates[: candidates.index(best(candidates)) + 1]
    return [step for candidate in until_best for step in candidate.course]


def _zeros(width: int, classes: int) -> Head:
    """Returns a Head whose weights and biases are 0."""
    return Head(np.zeros((width, classes), np.float32), np.zeros(classes, np.float32))
