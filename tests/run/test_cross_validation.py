"""cross_validation.py: when a run cross-validates, on what, and what it says."""

import math

import numpy as np
import pytest

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.vectors import Labelled
from retraining.evaluation.cross_validation import CrossValidated
from retraining.photos.dataset import Example
from retraining.photos.split import SPLITS, TESTING, TRAINING, VALIDATION
from retraining.run.audit import undistorted
from retraining.run.cross_validation import (
    EstimateError,
    check_accuracy,
    cross_validate_photos,
    describe,
    find_twins,
    with_views,
)
from retraining.run.notes import RunContext
from retraining.run.settings import (
    EvaluationSettings,
    FineTuningSettings,
    HeadSettings,
    PhotoSettings,
    RunSettings,
)
from retraining.system.observer import Silent
from retraining.training.loop import TrainingOptions

WIDTH = 12


def photos(subjects, shots, classes=2, seed=0, apart=1.0):
    """Bottlenecks of `subjects` a class with `shots` nearly alike; every tenth shot is tested.

    Subjects lie about their class by `apart` times their own spread.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, WIDTH)) * apart
    examples, labelled = {part: [] for part in SPLITS}, {part: [] for part in SPLITS}
    number = 0
    for label in range(classes):
        for subject in range(subjects):
            centre = centres[label] + rng.normal(size=WIDTH) * 3
            for shot in range(shots):
                part = TESTING if number % 5 == 4 else VALIDATION if number % 5 == 3 else TRAINING
                name = f"{label}/{subject}x{shot}.jpg"
                examples[part].append(Example(name, "ab"[label], part, f"{number:040x}"))
                vector = 10 + centre + rng.normal(size=WIDTH) * 0.01
                labelled[part].append((vector.astype("f4"), label))
                number += 1
    parts = {
        part: Labelled(np.array([v for v, _ in rows]), np.array([t for _, t in rows]))
        for part, rows in labelled.items()
    }
    return Bottlenecks(["a", "b"], examples, parts, [], set())


def context(*methods, **evaluation):
    settings = RunSettings(
        PhotoSettings("x"),
        head=HeadSettings(training=TrainingOptions(steps=300, learning_rate=0.01)),
        fine_tuning=FineTuningSettings(methods=methods),
        evaluation=EvaluationSettings(**evaluation),
    )
    return RunContext(settings, Silent())


def test_shots_of_one_subject_do_not_vouch_for_each_other(caplog):
    """20 subjects x 5 shots that cannot be told by their class: the split test says 100 %."""
    burst = photos(20, 5, apart=0.0)
    found = cross_validate_photos(burst, context())
    assert found.groups == 40
    assert (found.folds, found.result.total, found.leads) == (5, 200, True)
    assert found.result.accuracy < 0.75
    assert found.result.high - found.result.low > 0.2  # 40 subjects, not 200 photos
    assert found.twins == {example.key for example in burst.examples[TESTING]}


def test_a_run_with_enough_test_photos_needs_none():
    many = photos(500, 2)
    assert len(many.examples[TESTING]) >= 200
    assert cross_validate_photos(many, context()) is None
    found = cross_validate_photos(many, context(folds=3))
    assert (found.folds, found.leads) == (3, False)


def test_a_network_to_be_fine_tuned_is_not_led_by_it(caplog):
    caplog.set_level("INFO", "retraining")
    few = photos(20, 1, apart=3.0)
    assert cross_validate_photos(few, context("two_rates")) is None
    found = cross_validate_photos(few, context("two_rates", folds=4))
    assert not found.leads
    assert "measured before fine-tuning" in caplog.text


def test_an_accuracy_that_is_too_low_ends_the_run():
    few = photos(20, 1, apart=0.0)
    with pytest.raises(EstimateError, match=r"is below `EvaluationSettings.least_cross_validated`"):
        cross_validate_photos(few, context(least_cross_validated=0.99))
    check_accuracy(CrossValidated(0.9, 0.8, 0.95, 0.1, 9, 10), 0.9)
    with pytest.raises(EstimateError):
        check_accuracy(CrossValidated(math.nan, 0, 1, math.nan, 0, 0), 0.1)


def test_distorted_views_are_trained_on_with_their_photo_and_not_counted():
    few = photos(10, 1, apart=3.0)
    own = few.labelled[TRAINING]
    views = np.concatenate([own.vectors, own.vectors + 1, own.vectors + 2])
    few.labelled[TRAINING] = Labelled(views, np.tile(own.targets, 3))
    rows, vectors = with_views(few, undistorted(few))
    training = len(few.examples[TRAINING])
    np.testing.assert_array_equal(rows[-2 * training :], [*range(training), *range(training)])
    np.testing.assert_allclose(
        vectors.vectors[rows == 0], own.vectors[0] + [[0], [1], [2]], rtol=1e-6
    )
    np.testing.assert_array_equal(vectors.targets[20:], np.tile(own.targets, 2))
    assert cross_validate_photos(few, context()).result.total == 20


def test_a_class_of_one_subject_allows_no_prediction(caplog):
    caplog.set_level("INFO", "retraining")
    found = cross_validate_photos(photos(1, 20), context())
    assert (found.groups, found.result.total, found.leads) == (2, 0, False)
    assert "the cross-validation has no photos to predict" in caplog.text


def test_classes_without_a_prediction_are_named(caplog):
    caplog.set_level("INFO", "retraining")
    rare = photos(20, 1, apart=3.0)
    for part in SPLITS:
        kept = [e.label == "a" or e.path.startswith("1/0x") for e in rare.examples[part]]
        rare.examples[part] = [e for e, k in zip(rare.examples[part], kept, strict=True) if k]
        own = rare.labelled[part]
        rare.labelled[part] = Labelled(own.vectors[kept], own.targets[kept])
    assert cross_validate_photos(rare, context()).result.total == 20
    assert (
        "; not counting b (1 photo), since all photos of such a class show one subject"
        in caplog.text
    )


def test_folds_are_counted_as_used():
    found = cross_validate_photos(photos(3, 1, apart=3.0), context(folds=20))
    assert found.folds == 6


def test_a_model_of_far_fewer_photos_is_not_judged_by_the_folds(caplog):
    """Nine tenths are for testing: the folds learn from 64 of 80 photos, the model from 8."""
    few = photos(40, 1, apart=3.0)
    moved = {part: rows.vectors for part, rows in few.labelled.items()}
    run = context()
    assert cross_validate_photos(few, run).leads
    assert run.notes.caveats == []
    order = [*few.examples[TRAINING][6:], *few.examples[VALIDATION], *few.examples[TESTING]]
    vectors = np.concatenate([moved[TRAINING][6:], moved[VALIDATION], moved[TESTING]])
    targets = np.array(["ab".index(example.label) for example in order])
    few.examples.update({TRAINING: few.examples[TRAINING][:6], VALIDATION: [], TESTING: order})
    few.labelled[TRAINING] = few.labelled[TRAINING].first(6)
    few.labelled[VALIDATION] = few.labelled[VALIDATION].first(0)
    few.labelled[TESTING] = Labelled(vectors, targets)
    assert not cross_validate_photos(few, run).leads
    assert run.notes.caveats == [
        "each cross-validated layer learns from 64 photos but the exported one from 6, so "
        "the exported model is likely to be less accurate"
    ]


def test_photos_that_all_look_alike_are_told(caplog):
    caplog.set_level("INFO", "retraining")
    alike = photos(20, 1)
    for rows in alike.labelled.values():
        rows.vectors[:] -= 10
    cross_validate_photos(alike, context())
    assert "look nearly alike" not in caplog.text
    for rows in alike.labelled.values():
        rows.vectors[rows.targets == 1] += 50
    cross_validate_photos(alike, context())
    assert "the photos of b look nearly alike" in caplog.text


def test_twins_are_test_photos_in_a_group_with_others():
    assert find_twins(["a", "b", "c", "d"], np.array([0, 1, 1, 2]), 2) == {"c"}
    assert find_twins(["a", "b"], np.array([0, 0]), 0) == frozenset()


def test_what_is_said_is_in_whole_photos():
    few = photos(20, 1, apart=3.0)
    found = cross_validate_photos(few, context())
    line = describe(found, few, tuned=False)
    assert line.startswith("cross-validated accuracy = ")
    assert f"of {found.result.total} photos in 5 folds" in line
    assert "of 100 new photos like these, expect" in line
