"""cross_validation.py: folds, predictions out of fold, the estimate and its interval."""

import numpy as np
import pytest

from retraining.bottlenecks.vectors import Labelled
from retraining.evaluation.cross_validation import (
    INFLATION,
    TrainingPlan,
    assign_folds,
    cross_validate,
    effective_count,
    estimate,
    of_a_hundred,
    validation_rows,
)
from retraining.metrics.classification import wilson_interval
from retraining.training.loop import TrainingOptions, train

# -- folds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 10, 20])
def test_folds_are_stratified_to_the_photo(count):
    targets = np.repeat([0, 1, 2, 3], [100, 37, 5, 1])
    folds = assign_folds(targets, np.arange(143), count)
    table = np.zeros((count, 4), int)
    np.add.at(table, (folds, targets), 1)
    assert (np.ptp(table, axis=0) <= 1).all()
    assert np.ptp(table.sum(axis=1)) <= 2


def test_groups_are_never_split_and_folds_stay_stratified():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 400)
    groups = np.where(
        np.arange(400) < 200, rng.integers(0, 30, 400) * 4 + targets, np.arange(400) + 200
    )
    folds = assign_folds(targets, groups, 5)
    for group in np.unique(groups):
        assert len(set(folds[groups == group])) == 1
    table = np.zeros((5, 4), int)
    np.add.at(table, (folds, targets), 1)
    assert np.ptp(table, axis=0).max() <= 1


def test_a_group_of_two_classes_stays_whole():
    targets, groups = np.array([0, 1] * 10), np.append([7, 7, 7], np.arange(17) + 8)
    folds = assign_folds(targets, groups, 4)
    assert len(set(folds[:3])) == 1
    assert np.bincount(folds, minlength=4).tolist() == [5, 5, 5, 5]


def test_the_seed_decides_and_the_names_of_groups_do_not():
    targets, groups = np.arange(60) % 3, np.arange(60) // 2
    first = assign_folds(targets, groups, 5, seed=1)
    assert (first == assign_folds(targets, groups, 5, seed=1)).all()
    assert (first == assign_folds(targets, groups * 10 + 3, 5, seed=1)).all()
    assert (first != assign_folds(targets, groups, 5, seed=2)).any()


# -- predictions -----------------------------------------------------------------------------


def clusters(count=90, apart=4.0, width=20):
    rng = np.random.default_rng(0)
    targets = np.arange(count) % 3
    vectors = rng.normal(size=(count, width))
    vectors[np.arange(count), targets] += apart
    return Labelled(vectors.astype("f4"), targets)


def test_each_photo_is_predicted_by_a_head_trained_on_the_other_folds():
    photos, groups = clusters(), np.arange(90)
    folds = assign_folds(photos.targets, groups, 3)
    options = TrainingOptions(steps=50, train_batch_size=-1, learning_rate=0.1)
    logits = cross_validate(photos, 3, folds, groups, TrainingPlan(options))
    assert (logits.dtype, logits.shape) == (np.float32, (90, 3))
    for fold in range(3):
        training = Labelled(photos.vectors[folds != fold], photos.targets[folds != fold])
        head = list(train(training, photos.first(0), 3, options))[-1].head
        expected = head.logits(photos.vectors[folds == fold])
        np.testing.assert_allclose(logits[folds == fold], expected, atol=1e-4)


@pytest.mark.parametrize("search", [False, True])
def test_labels_without_meaning_are_not_learnt_by_heart(search):
    rng = np.random.default_rng(1)
    photos = Labelled(rng.normal(size=(150, 400)).astype("f4"), np.arange(150) % 3)
    groups = np.arange(150)
    folds = assign_folds(photos.targets, groups, 5)
    plan = TrainingPlan(TrainingOptions(steps=300), search)
    found = estimate(cross_validate(photos, 3, folds, groups, plan), photos.targets, groups, folds)
    assert found.low < 1 / 3 < found.high


def test_copies_flatter_only_if_their_group_is_split():
    rng = np.random.default_rng(2)
    vectors = np.repeat(rng.normal(size=(60, 300)), 2, axis=0).astype("f4")
    photos, groups = Labelled(vectors, np.repeat(np.arange(60) % 3, 2)), np.repeat(np.arange(60), 2)
    plan = TrainingPlan(TrainingOptions(steps=300))

    def accuracy(kept_together):
        folds = assign_folds(photos.targets, kept_together, 5)
        logits = cross_validate(photos, 3, folds, kept_together, plan)
        return estimate(logits, photos.targets, kept_together, folds).accuracy

    assert accuracy(groups) < 0.55 < 0.7 < accuracy(np.arange(120))


def test_a_class_in_one_fold_has_no_prediction_and_does_not_count():
    photos, groups = clusters(), np.arange(90)
    groups[photos.targets == 2] = 2
    folds = assign_folds(photos.targets, groups, 5)
    logits = cross_validate(photos, 3, folds, groups, TrainingPlan(TrainingOptions(steps=50)))
    np.testing.assert_array_equal(np.isnan(logits).all(axis=1), photos.targets == 2)
    assert estimate(logits, photos.targets, groups, folds).total == 60


def test_validation_photos_are_as_many_as_the_runs_and_share_no_group_with_training():
    targets, groups = np.arange(200) % 4, np.arange(200) // 2
    folds = assign_folds(targets, groups, 5)
    outside = folds[:, None] != np.arange(5)
    held_out = validation_rows(targets, groups, outside, TrainingPlan(TrainingOptions(), True, 0.1))
    assert not (held_out & ~outside).any()
    assert set(held_out.sum(axis=0)) <= {18, 20, 22}
    for fold in range(5):
        training = outside[:, fold] & ~held_out[:, fold]
        assert not set(groups[training]) & set(groups[held_out[:, fold]])


def test_a_class_of_one_group_is_trained_on_not_validated_on():
    targets = np.repeat([0, 1, 2], [40, 40, 1])
    outside = np.ones((81, 2), bool)
    for seed in range(10):
        plan = TrainingPlan(TrainingOptions(seed=seed), True, 0.45)
        assert not validation_rows(targets, np.arange(81), outside, plan)[80].any()


# -- the estimate ----------------------------------------------------------------------------


def test_the_estimate_by_hand():
    targets, folds = np.zeros(10, int), np.repeat([0, 1], 5)
    logits = np.tile([1.0, 0.0], (10, 1))
    logits[[0, 5, 6]] = [0.0, 1.0]
    found = estimate(logits, targets, np.arange(10), folds)
    assert (found.accuracy, found.correct, found.total) == (0.7, 7, 10)
    assert (found.low, found.high) == pytest.approx(wilson_interval(7 / INFLATION, 10 / INFLATION))
    assert found.deviation == pytest.approx(np.std([0.8, 0.6], ddof=1))
    pairs = estimate(logits, targets, np.arange(10) // 2, folds)
    assert (pairs.low, pairs.high) == pytest.approx(wilson_interval(3.5 / INFLATION, 5 / INFLATION))


def test_nothing_is_known_without_predictions():
    found = estimate(np.full((4, 2), np.nan), np.zeros(4, int), np.arange(4), np.arange(4))
    assert np.isnan([found.accuracy, found.low, found.high, found.deviation]).all()
    assert (found.correct, found.total) == (0, 0)


@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
def test_one_group_of_all_photos_allows_no_prediction(optimizer):
    photos, alike = Labelled(np.ones((6, 3), "f4"), np.arange(6) % 2), np.zeros(6, int)
    plan = TrainingPlan(TrainingOptions(optimizer=optimizer, steps=3))
    assert np.isnan(cross_validate(photos, 2, alike, alike, plan)).all()


def test_the_effective_count_by_hand():
    assert effective_count(np.arange(7)) == 7
    assert effective_count(np.array([3, 3, 5, 5])) == 2
    assert effective_count(np.array([0, 0, 0, 1])) == pytest.approx(16 / 10)
    assert effective_count(np.array([], int)) == 0


def test_the_interval_covers_on_made_data():
    """Photos of a group are right or wrong together; the share of groups is covered."""
    rng = np.random.default_rng(0)
    groups = np.concatenate([np.arange(40), np.repeat(np.arange(40, 60), 4)])
    targets, folds, covered = np.zeros(120, int), groups % 5, 0
    for _ in range(400):
        right = (rng.random(60) < 0.8)[groups]
        logits = np.stack([right, ~right], axis=1).astype(float)
        found = estimate(logits, targets, groups, folds)
        covered += found.low <= 0.8 <= found.high
    assert 0.95 <= covered / 400 < 1


def test_an_interval_in_whole_photos_is_rounded_outward_from_what_is_printed():
    assert of_a_hundred(0.8733, 0.9116) == (87, 92)
    assert of_a_hundred(0.47, 0.70003) == (47, 70)  # printed as 47.0% to 70.0%
    assert of_a_hundred(0.28999, 0.701) == (29, 71)
    assert of_a_hundred(0.0, 1.0) == (0, 100)
