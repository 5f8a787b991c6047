"""Measures how good the head is with fewer photos, to tell whether more photos would help."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.vectors import Labelled
from retraining.system.observer import ignore
from retraining.training.head import Head, first_head
from retraining.training.loop import (
    Descender,
    TrainingOptions,
    drawer,
    follow_lbfgs,
    objective_of,
)
from retraining.training.optimizers import LBFGS

SIZE_SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of the training photos
SIZE_STEPS = 300  # for up to FEW_CLASSES classes; k times as many for k times as many classes
FEW_CLASSES = 10
MOST_STEPS = 3000  # for any number of classes
SIZE_BATCH = 50
# Photos x weights that the steps of one head may multiply. A core takes some ten seconds for them.
MOST_WORK = 80_000_000_000
LBFGS_STEPS = 100  # that L-BFGS, which reads all photos in each, usually takes


@dataclass(frozen=True)
class SizePoint:
    """A head trained on `photos` examples, and whether it classifies each held-out photo `right`.

    `right` is bool [n].
    """

    photos: int
    right: NDArray[np.bool_]


def compare_sizes(
    training: Labelled,
    held_out: Labelled,
    classes: int,
    options: TrainingOptions,
    count: Callable[[int], object] = ignore,
) -> list[SizePoint]:
    """Trains heads on shares SIZE_SHARES of each class's photos; returns a SizePoint for each.

    Each subset contains the smaller ones. Training takes a number of steps that depends on the
    classes only, so that it costs seconds however many photos there are, and uses momentum instead
    of plain descent. The heads therefore only approximate the real one. Returns an empty list if
    training diverges, or if there is nothing to compare: no held-out photos, or a single size.

    Args:
        training: vectors of the training photos; every class has an example.
        held_out: vectors of the photos to evaluate on.
        classes: number of classes.
        options: how the real head is trained.
        count: called with the number of heads trained since the last call.
    """
    order = _spread_classes(training.targets, options.seed)
    points: list[SizePoint] = []
    sizes = sorted({max(classes, round(share * len(order))) for share in SIZE_SHARES})
    if len(sizes) < 2 or not len(held_out.targets):
        return []
    count(0)
    for photos in sizes:
        rows = np.sort(order[:photos])
        head = _quick_head(training, rows, classes, options)
        count(1)
        if not head.is_finite:
            return []
        answers = head.probabilities(held_out.vectors).argmax(axis=1)
        points.append(SizePoint(len(rows), answers == held_out.targets))
    return points


def limit(photos: int, weights: int, classes: int, options: TrainingOptions) -> str | None:
    """Returns why `compare_sizes` would take too long, or None if it would not.

    Args:
        photos: number of training photos.
        weights: number of weights of a head.
        classes: number of classes.
        options: how the real head is trained.
    """
    read = photos * LBFGS_STEPS if options.optimizer == LBFGS else SIZE_BATCH * _steps(classes)
    if read * weights <= MOST_WORK:
        return None
    return f"it would take too long for {photos} photos of {classes} classes"


def _steps(classes: int) -> int:
    """Returns the number of steps with which heads of that many classes are trained."""
    return min(MOST_STEPS, SIZE_STEPS * max(1, classes // FEW_CLASSES))


def _spread_classes(targets: NDArray[np.integer], seed: int) -> NDArray[np.integer]:
    """Returns all row numbers in an order in which every prefix has about the same class shares.

    The first photo of each class comes first, so that no subset lacks a class.
    """
    rng, place = np.random.default_rng(seed), np.empty(len(targets))
    for label in np.unique(targets):
        rows = rng.permutation(np.flatnonzero(targets == label))
        place[rows] = np.arange(len(rows)) / len(rows)
    return np.argsort(place, kind="stable")


def _quick_head(
    training: Labelled, rows: NDArray[np.integer], classes: int, options: TrainingOptions
) -> Head:
    """Trains a Head on some rows of `training` for a few steps."""
    rng = np.random.default_rng(options.seed)
    head = first_head(rng, training.vectors.shape[1], classes, options.hidden_units)
    part = Labelled(training.vectors, training.targets[rows])
    options = _quick(options, classes)
    if options.optimizer == LBFGS:
        follow_lbfgs(head, Labelled(training.vectors[rows], part.targets), part.first(0), options)
        return head
    draw = drawer(part.targets, classes, options, rng)
    descend = Descender(head, objective_of(part.targets, classes, options), options, rng)
    for _ in range(options.steps):
        batch = draw()
        descend((training.vectors[rows[batch]], part.targets[batch]))
    return head


def _quick(options: TrainingOptions, classes: int) -> TrainingOptions:
    """Returns options with which few steps get about as far as a full training."""
    optimizer = "momentum" if options.optimizer == "sgd" else options.optimizer
    return replace(
        options,
        optimizer=optimizer,
        learning_rate=None if optimizer == LBFGS else options.rate,
        steps=_steps(classes),
        epochs=None,
        train_batch_size=SIZE_BATCH,
    )
