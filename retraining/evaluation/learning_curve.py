"""How good the head is with fewer photos: whether more photos would help."""

from dataclasses import dataclass, replace

import numpy as np

from retraining.bottlenecks.vectors import Labelled
from retraining.training.head import first_head
from retraining.training.loop import Descender, drawer, follow_lbfgs, objective_of
from retraining.training.optimizers import LBFGS

SIZE_SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of the training photos
SIZE_STEPS = 300
SIZE_BATCH = 50


@dataclass(frozen=True)
class SizePoint:
    """A layer trained on `photos` examples: which of the held-out ones it has right, bool [n]."""

    photos: int
    right: np.ndarray


def compare_sizes(training, held_out, classes, options):
    """A SizePoint per SIZE_SHARES: how good the layer is with fewer photos of each class.

    Each subset holds the smaller ones. To cost a second whatever the number of photos, the layers
    are trained for SIZE_STEPS steps, with momentum for plain descent, so they come close to the
    real one only. An empty list if such training goes astray.

    Args:
        training, held_out: Labelled; every class has an example in `training`.
    """
    order = _spread_classes(training.truth, options.seed)
    points = []
    for photos in sorted({max(classes, round(share * len(order))) for share in SIZE_SHARES}):
        rows = np.sort(order[:photos])
        head = _quick_head(training, rows, classes, options)
        if not head.is_finite:
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
    """A Head trained on some rows of `training` by a few steps."""
    rng = np.random.default_rng(options.seed)
    head = first_head(rng, training.vectors.shape[1], classes, options.hidden_units)
    part = Labelled(training.vectors, training.truth[rows])
    options = _quick(options)
    if options.optimizer == LBFGS:
        follow_lbfgs(head, Labelled(training.vectors[rows], part.truth), part.first(0), options)
        return head
    draw = drawer(part.truth, classes, options, rng)
    descend = Descender(head, objective_of(part.truth, classes, options), options, rng)
    for _ in range(SIZE_STEPS):
        batch = draw()
        descend((training.vectors[rows[batch]], part.truth[batch]))
    return head


def _quick(options):
    """The options for SIZE_STEPS steps that come as far as many do."""
    optimizer = "momentum" if options.optimizer == "sgd" else options.optimizer
    return replace(
        options,
        optimizer=optimizer,
        learning_rate=None if optimizer == LBFGS else options.rate,
        steps=SIZE_STEPS,
        epochs=None,
        train_batch_size=SIZE_BATCH,
    )
