"""Estimates a head's accuracy from all photos: each is predicted by a head that did not see it.

The photos are divided into folds. For each fold, a head with the training of the run's own head is
trained on the other folds. Photos of one group (see evaluation/groups.py) share a fold.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.vectors import Labelled
from retraining.metrics.classification import softmax, wilson_interval
from retraining.training.loop import TrainingError, TrainingOptions
from retraining.training.side_by_side import Parts, search_heads, train_heads

FEWEST_FOLDS, MOST_FOLDS = 2, 20
AUTOMATIC_FOLDS = 5
# Variance of (estimate - accuracy of the exported head on new photos) as a multiple of that of
# independent photos: that head varies with its training photos, and the heads of the folds share
# theirs. benchmarks/coverage.py gives 1.2 to 1.7 for 100 photos, by network and head.
INFLATION = 1.5


@dataclass(frozen=True)
class TrainingPlan:
    """How the run trains its head.

    Attributes:
        options: the options of the head's training.
        search: whether the head is the best of several strengths of L2 (`HeadSettings.search`).
        validation: share (0..1) of the photos that the training may look at to choose or to stop.
    """

    options: TrainingOptions
    search: bool = False
    validation: float = 0.1

    @property
    def needs_validation(self) -> bool:
        """Whether the training looks at validation photos."""
        return self.search or bool(self.options.early_stopping)


@dataclass(frozen=True)
class CrossValidated:
    """The accuracy (0..1) of predictions out of fold, and its 95 % interval (low, high).

    `deviation` is the standard deviation of the accuracy over the folds; NaN with a single one.
    Without a prediction, all four are NaN.
    """

    accuracy: float
    low: float
    high: float
    deviation: float
    correct: int
    total: int


@dataclass(frozen=True)
class Predicted:
    """The photos that have a prediction out of fold.

    `targets` are int [n], the class indexes, and `probabilities` float64 [n, classes].
    """

    paths: list[str]
    targets: NDArray[np.integer]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class CrossValidation:
    """What the photos say, each predicted by a head that did not see it.

    `targets` are the class indexes of all photos, int [n], and `logits` float32 [n, classes]; NaN
    for a photo that has no prediction. `twins` are the keys of test photos that show the same as a
    photo that the exported head saw. `leads` tells that the test alone has too few photos,
    `untuned` that the run fine-tunes the network afterwards. `temperature` divides the logits.
    """

    result: CrossValidated
    folds: int
    groups: int
    paths: list[str]
    targets: NDArray[np.integer]
    logits: NDArray[np.float32]
    twins: frozenset[str]
    leads: bool
    untuned: bool = False
    temperature: float = 1.0

    @property
    def predicted(self) -> Predicted:
        """The photos with a prediction."""
        known = np.isfinite(self.logits).all(axis=1)
        paths = [self.paths[row] for row in np.flatnonzero(known)]
        logits = self.logits[known].astype(np.float64)  # in which near-equal ones stay unequal
        return Predicted(paths, self.targets[known], softmax(logits / self.temperature))


def assign_folds(
    targets: NDArray[np.integer], groups: NDArray[np.integer], count: int, seed: int = 0
) -> NDArray[np.int_]:
    """Returns a fold (0..count - 1) for each photo, int [n]: stratified, groups kept whole.

    Groups are dealt from the largest to the smallest, in random order among equals. Each goes to
    the fold that has the fewest photos of the group's classes; of such folds, to the smallest.

    Args:
        targets: class indexes int [n].
        groups: int [n].
        count: number of folds.
        seed: of the random order.
    """
    members = np.unique(groups, return_inverse=True)[1].ravel()
    sizes = np.bincount(members)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    rows = np.split(np.argsort(members, kind="stable"), np.cumsum(sizes)[:-1])
    filled = np.zeros((count, int(targets.max(initial=0)) + 1), int)
    totals = np.zeros(count, int)
    folds = np.empty(len(targets), int)
    for group in order:
        labels = targets[rows[group]]
        fold = np.lexsort((totals, filled[:, labels].sum(axis=1)))[0]
        folds[rows[group]] = fold
        np.add.at(filled[fold], labels, 1)
        totals[fold] += len(labels)
    return folds


def cross_validate(
    photos: Labelled,
    classes: int,
    folds: NDArray[np.integer],
    groups: NDArray[np.integer],
    plan: TrainingPlan,
) -> NDArray[np.float32]:
    """Returns the logits of each photo by a head trained on the other folds, float32 [n, classes].

    Rows are NaN for photos of a class that lies in one fold entirely. Distorted views of a photo
    may be rows of their own; they belong to the photo's group and fold.

    Args:
        photos: vectors of all photos, whatever their split.
        classes: number of classes.
        folds: as `assign_folds` returns them, int [n].
        groups: int [n]; keeps validation photos apart from training photos.
        plan: how the run trains its head.

    Raises:
        TrainingError: the training of a fold's head went astray, or lacks validation photos.
    """
    outside = folds[:, None] != np.arange(folds.max() + 1)
    held_out = np.zeros_like(outside)
    if plan.needs_validation:
        held_out = validation_rows(photos.targets, groups, outside, plan)
        if not held_out.any(axis=0).all():
            raise TrainingError("there are too few photos to hold some of each fold out")
    parts = Parts(photos, classes, outside & ~held_out, held_out)
    if not parts.seen.any():
        return np.full((len(folds), classes), np.nan, np.float32)
    fit = search_heads if plan.search else train_heads
    rows = np.arange(len(folds))
    logits: NDArray[np.float32] = fit(parts, plan.options)[rows, folds]
    counts = np.zeros((outside.shape[1], classes), int)
    np.add.at(counts, (folds, photos.targets), 1)
    logits[counts[folds, photos.targets] == counts.sum(axis=0)[photos.targets]] = np.nan
    return logits


def validation_rows(
    targets: NDArray[np.integer],
    groups: NDArray[np.integer],
    outside: NDArray[np.bool_],
    plan: TrainingPlan,
) -> NDArray[np.bool_]:
    """Chooses the validation photos of each fold's head among those `outside`, bool [n, folds].

    They are as many as the run has, by the plan's share of all photos. Of a class that would have
    no training photos otherwise, none is chosen.
    """
    held_out = np.zeros_like(outside)
    for fold, rows in enumerate(map(np.flatnonzero, outside.T)):
        parts = max(2, round(len(rows) / max(1, plan.validation * len(targets))))
        chosen = assign_folds(targets[rows], groups[rows], parts, plan.options.seed) == 0
        trained = np.isin(targets[rows], targets[rows][~chosen])
        held_out[rows[chosen & trained], fold] = True
    return held_out


def estimate(
    logits: NDArray[np.floating],
    targets: NDArray[np.integer],
    groups: NDArray[np.integer],
    folds: NDArray[np.integer],
) -> CrossValidated:
    """Computes the accuracy of predictions out of fold, and its interval.

    The interval is Wilson's for `effective_count` photos / INFLATION. Photos without a prediction,
    whose rows of `logits` [n, classes] are NaN, do not count. All but them are int [n].
    """
    known = np.isfinite(logits).all(axis=1)
    right = logits[known].argmax(axis=1) == targets[known]
    of_fold = [right[folds[known] == fold].mean() for fold in np.unique(folds[known])]
    accuracy = float(right.mean()) if len(right) else np.nan
    count = effective_count(groups[known]) / INFLATION
    low, high = wilson_interval(accuracy * count, count) if count else (np.nan, np.nan)
    deviation = float(np.std(of_fold, ddof=1)) if len(of_fold) > 1 else np.nan
    return CrossValidated(accuracy, low, high, deviation, int(right.sum()), len(right))


def effective_count(groups: NDArray[np.integer]) -> float:
    """Returns the number of independent photos that tell as much as photos in `groups`, int [n].

    It is (sum of sizes)^2 / (sum of squared sizes), as if the photos of a group were all right or
    all wrong together: Kish (1965), Survey Sampling, section 5.4. It is 0 without photos.
    """
    sizes = np.unique(groups, return_counts=True)[1]
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def of_a_hundred(low: float, high: float) -> tuple[int, int]:
    """Returns an interval (0..1) in whole photos of a hundred.

    It is rounded outward from tenths of a percent, the precision in which intervals are printed,
    so that the two agree.
    """
    return math.floor(round(low * 100, 1)), math.ceil(round(high * 100, 1))
