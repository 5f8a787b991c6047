"""The cross-validation of a run: its accuracy on new photos, estimated from all photos."""

import io
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.vectors import Labelled
from retraining.errors import RetrainingError
from retraining.evaluation import label_audit
from retraining.evaluation.cross_validation import (
    AUTOMATIC_FOLDS,
    CrossValidated,
    CrossValidation,
    TrainingPlan,
    assign_folds,
    cross_validate,
    estimate,
    of_a_hundred,
)
from retraining.evaluation.groups import find_alike, group_photos
from retraining.photos.archive import ArchiveSource
from retraining.photos.exif_time import taken_at
from retraining.photos.split import SPLITS, TESTING, TRAINING, VALIDATION
from retraining.run.audit import undistorted
from retraining.run.notes import RunContext
from retraining.run.settings import ALL
from retraining.system.addresses import is_url
from retraining.system.text import counted, some
from retraining.training.loop import TrainingError

log = logging.getLogger(__name__)

ENOUGH_TESTED = 200  # test photos with which the test alone says how good the model is
# The accuracy of the folds' heads leads if the exported head learns from this many photos for each
# of theirs. By default these are 1.1. With half as many photos, a head is some points worse.
LEAST_SHARE = 2 / 3


class EstimateError(RetrainingError):
    """The cross-validated accuracy is too low, or unknown."""


def cross_validate_photos(bottlenecks: Bottlenecks, run: RunContext) -> CrossValidation | None:
    """Cross-validates the head on the photos of all splits, if the run wants or needs that.

    A run needs it if fewer than ENOUGH_TESTED photos test the model. It is then done only where it
    is quick, and not for a network that is to be fine-tuned, whose accuracy it would not tell.

    Raises:
        EstimateError: the accuracy is lower than the settings accept.
        TrainingError: a head of a wanted cross-validation cannot be trained.
    """
    wanted = run.settings.evaluation
    asked = wanted.folds is not None or wanted.least_cross_validated is not None
    count, tested = sum(map(len, bottlenecks.examples.values())), len(bottlenecks.examples[TESTING])
    tuned = bool(run.settings.fine_tuning.methods)
    if not asked:
        if tested >= ENOUGH_TESTED or tuned:
            return None
        if reason := label_audit.limit(count, len(bottlenecks.labels)):
            log.info(f"skipped the cross-validation that supplements a small test: {reason}")
            return None
    try:
        found = _cross_validated(bottlenecks, run, leads=tested < ENOUGH_TESTED and not tuned)
    except TrainingError as error:
        if asked:
            raise
        log.info(f"skipped the cross-validation that supplements a small test: {error}")
        return None
    log.info(describe(found, bottlenecks, tuned))
    check_accuracy(found.result, wanted.least_cross_validated)
    return found


def _cross_validated(bottlenecks: Bottlenecks, run: RunContext, leads: bool) -> CrossValidation:
    settings, photos = run.settings, undistorted(bottlenecks)
    groups = group_photos(photos, taken_times(photos.paths))
    count = settings.evaluation.folds or AUTOMATIC_FOLDS
    folds = assign_folds(photos.targets, groups, count, settings.seed)
    validation = len(bottlenecks.examples[VALIDATION]) / len(photos.paths)
    plan = TrainingPlan(settings.head.training, settings.head.search, validation)
    rows, vectors = with_views(bottlenecks, photos)
    logits = cross_validate(vectors, len(photos.labels), folds[rows], groups[rows], plan)
    logits = logits[: len(photos.paths)]
    result = estimate(logits, photos.targets, groups, folds)
    exported, of_fold = trained_on(bottlenecks, folds, settings.head.final_fit)
    if exported < LEAST_SHARE * of_fold:
        leads = False
        run.notes.add_caveat(
            f"each cross-validated layer learns from {of_fold} photos but the exported one "
            f"from {exported}, so the exported model is likely to be less accurate"
        )
    if alike := find_alike(photos, groups):
        log.info(
            f"the photos of {some(alike)} look nearly alike; if they show only a few "
            f"subjects, expect a lower accuracy on other subjects"
        )
    return CrossValidation(
        result=result,
        folds=len(np.unique(folds)),
        groups=len(np.unique(groups)),
        paths=photos.paths,
        targets=photos.targets,
        logits=logits,
        twins=find_twins(photos.keys, groups, len(bottlenecks.examples[TESTING])),
        leads=leads and result.total > 0,
        untuned=bool(settings.fine_tuning.methods),
    )


def taken_times(paths: Sequence[str]) -> NDArray[np.float64] | None:
    """Returns when photos in files of this machine were taken, float64 [n]; see exif_time.py.

    NaN where that is unknown. None for more photos than are compared in pairs.
    """
    if len(paths) > label_audit.MOST_PHOTOS:
        return None
    return np.array([_taken(path) for path in paths], np.float64)


def _taken(path: str) -> float:
    if is_url(path):
        return np.nan
    try:
        if ArchiveSource.claims(path):
            return taken_at(io.BytesIO(ArchiveSource.read(path)))
        with open(path, "rb") as file:
            return taken_at(file)
    except OSError:
        return np.nan


def with_views(
    bottlenecks: Bottlenecks, photos: label_audit.AuditedPhotos
) -> tuple[NDArray[np.int_], Labelled]:
    """Returns the vectors of all photos and after them those of distorted views.

    Also returns the row of the photo of each vector, int [m].
    """
    training = len(bottlenecks.examples[TRAINING])
    views = bottlenecks.labelled[TRAINING].vectors[training:]
    rows = np.arange(len(photos.paths))
    of_views = np.tile(np.arange(training), len(views) // max(1, training))
    targets = photos.targets[np.concatenate([rows, of_views])]
    if not len(views):
        return rows, Labelled(photos.vectors, targets)
    vectors = np.concatenate([photos.vectors, views])
    return np.concatenate([rows, of_views]), Labelled(vectors, targets)


def find_twins(keys: Sequence[str], groups: NDArray[np.integer], tested: int) -> frozenset[str]:
    """Returns the keys of those of the last `tested` photos that share a group with an earlier one.

    `groups` is int [n]. The photos are in the order of SPLITS, so that test photos come last.
    """
    assert SPLITS[-1] == TESTING
    seen = len(keys) - tested
    twins = np.isin(groups[seen:], groups[:seen])
    return frozenset(key for key, twin in zip(keys[seen:], twins, strict=True) if twin)


def trained_on(
    bottlenecks: Bottlenecks, folds: NDArray[np.integer], final_fit: str
) -> tuple[int, int]:
    """Returns how many photos the exported head learns from, and a head of a fold at least."""
    validation = len(bottlenecks.examples[VALIDATION]) / len(folds)
    of_fold = (len(folds) - np.bincount(folds).max()) * (1 - validation)
    exported = len(folds) if final_fit == ALL else len(bottlenecks.examples[TRAINING])
    return exported, round(of_fold)


def describe(found: CrossValidation, bottlenecks: Bottlenecks, tuned: bool) -> str:
    """Returns one line on the accuracy; `tuned` tells that the exported network is another one."""
    result = found.result
    if not result.total:
        return (
            "the cross-validation has no photos to predict: each class needs photos of at "
            "least two subjects"
        )
    line = (
        f"cross-validated accuracy = {result.accuracy:.1%} ({result.correct} of {result.total} "
        f"photos in {found.folds} folds): {expectation(result)}"
    )
    unknown = np.bincount(found.targets[~np.isfinite(found.logits).all(axis=1)])
    left_out = [
        f"{label} ({counted(int(count), 'photo')})"
        for label, count in zip(bottlenecks.labels, unknown, strict=False)
        if count
    ]
    if left_out:
        line += (
            f"; not counting {some(left_out)}, since all photos of such a class show one subject"
        )
    return line + ("; measured before fine-tuning" if tuned else "")


def expectation(result: CrossValidated) -> str:
    """Says in whole photos what the interval means."""
    low, high = of_a_hundred(result.low, result.high)
    return f"of 100 new photos like these, expect {low} to {high} to be right"


def check_accuracy(result: CrossValidated, least: float | None) -> None:
    """Compares the accuracy with the least that the user accepts; None accepts any.

    Raises:
        EstimateError: it is lower, or unknown.
    """
    if least is not None and not result.total:
        raise EstimateError(
            "the cross-validated accuracy is unknown, since there are no photos to predict; "
            "nothing was replaced"
        )
    if least is not None and not result.accuracy >= least:
        raise EstimateError(
            f"the cross-validated accuracy {result.accuracy:.4f} ({result.correct} of "
            f"{result.total} photos) is below `EvaluationSettings.least_cross_validated` {least}; "
            f"nothing was replaced"
        )
