"""`--head auto`: the softmax layer that validation photos prefer, of some fitted to convergence."""

from dataclasses import dataclass, replace

import numpy as np

from retraining.metrics.classification import choose_rows
from retraining.training.head import Head
from retraining.training.loop import (
    MOST_EVALUATED,
    Step,
    TrainingError,
    TrainingOptions,
    check_use,
    follow_lbfgs,
)
from retraining.training.optimizers import LBFGS, Frame

# L2 on weights of vectors scaled to a mean variance of 1: from too strong to too weak for the
# vectors of all networks measured (benchmarks/heads.py).
STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
PATIENCE = 2  # the weakest strengths, which take longest, are rarely the best
MOST_ITERATIONS = 1000  # of L-BFGS for each
AUTO_INTERVAL = 10  # iterations between two evaluations


@dataclass(frozen=True, eq=False)  # arrays have no plain equality
class Candidate:
    """A converged head, the options that give it, and the Steps on the way from the one before."""

    head: Head
    options: TrainingOptions
    course: list[Step]

    @property
    def validation(self):
        """The Evaluation of the head on the validation photos."""
        return self.course[-1].validation


def candidates(training, validation, classes, options):
    """Yields a Candidate per STRENGTHS, each begun where the one before ended.

    After PATIENCE of them in a row without a lower validation cross entropy, no more are tried. The
    loss is convex, so where it begins does not matter to its end, only to the time.

    Args:
        training, validation: Labelled, both with photos; every class has one in `training`.
        options: TrainingOptions, of which seed, class weights and label smoothing count.

    Raises:
        TrainingError: there are no validation photos, or the vectors allow no fit.
    """
    if not len(validation.truth):
        raise TrainingError(
            "--head auto chooses by validation photos, and there are none; add some"
        )
    head = _zeros(training.vectors.shape[1], classes)
    rows = choose_rows(len(training.truth), MOST_EVALUATED)
    variance = Frame(training.vectors[rows]).scale ** 2
    number, tried = 0, []
    for strength in STRENGTHS:
        chosen = replace(
            options,
            optimizer=LBFGS,
            l2=strength * variance,
            steps=MOST_ITERATIONS,
            eval_step_interval=AUTO_INTERVAL,
            learning_rate=None,
        )
        steps = follow_lbfgs(head, training, validation, chosen)
        course = [replace(step, number=step.number + number) for step in steps]
        check_use(head, training, chosen)
        tried.append(Candidate(head.copy(), chosen, course))
        yield tried[-1]
        if best(tried) not in tried[-PATIENCE:]:
            return
        number = course[-1].number + 1


def best(found):
    """The Candidate of the lowest validation cross entropy; of equals, the most regularised."""
    return min(found, key=lambda candidate: candidate.validation.cross_entropy)


def course_of(found):
    """The Steps of all Candidates up to the best one."""
    chosen = found[: found.index(best(found)) + 1]
    return [step for candidate in chosen for step in candidate.course]


def _zeros(width, classes):
    return Head(np.zeros((width, classes), np.float32), np.zeros(classes, np.float32))
