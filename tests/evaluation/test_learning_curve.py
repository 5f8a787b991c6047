"""learning_curve.py: whether more photos would help."""

import numpy as np
import pytest

from retraining.bottlenecks.vectors import Labelled
from retraining.evaluation import learning_curve
from retraining.evaluation.learning_curve import compare_sizes
from retraining.training.loop import TrainingOptions


def noisy(rows, classes=2, width=8, seed=1):
    """Labelled vectors that are told apart the better, the more of them there are."""
    rng = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    return Labelled((rng.normal(size=(rows, width)) + 0.8 * targets[:, None]).astype("f4"), targets)


def test_fewer_photos_give_points_of_an_eighth_to_all():
    training, held_out = noisy(400), noisy(300, seed=2)
    points = compare_sizes(training, held_out, 2, TrainingOptions(learning_rate=0.1))
    assert [point.photos for point in points] == [50, 100, 200, 400]
    assert all(point.right.shape == (300,) for point in points)
    assert points[-1].right.mean() > 0.8
    again = compare_sizes(training, held_out, 2, TrainingOptions(learning_rate=0.1))
    assert [(a.right == b.right).all() for a, b in zip(points, again, strict=True)] == [True] * 4


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "learning_rate": 0.01, "hidden_units": (16,), "epochs": 5},
        {"optimizer": "lbfgs", "l2": 0.01},
    ],
)
def test_fewer_photos_are_tried_with_heads_of_the_same_kind(settings):
    points = compare_sizes(noisy(400), noisy(300, seed=2), 2, TrainingOptions(**settings))
    assert [point.photos for point in points] == [50, 100, 200, 400]
    assert points[-1].right.mean() > 0.8


def test_each_class_keeps_its_share_in_the_smallest_subset():
    """With one class of 8 and one of 792, an eighth must still know the rare one."""
    targets = np.array([0] * 792 + [1] * 8)
    vectors = np.eye(2, dtype="f4")[targets]
    points = compare_sizes(
        Labelled(vectors, targets),
        Labelled(vectors, targets),
        2,
        TrainingOptions(learning_rate=0.1),
    )
    assert [point.right.all() for point in points] == [True] * 4


def test_with_very_few_photos_no_class_is_without_one():
    data = Labelled(np.eye(6, dtype="f4")[:, :5], np.array([0, 1, 2, 3, 4, 4]))
    points = compare_sizes(data, data, 5, TrainingOptions(learning_rate=0.1))
    assert [point.photos for point in points] == [5, 6]
    assert points[0].right[:5].all()


def test_a_single_size_or_nothing_held_out_is_no_comparison(monkeypatch):
    monkeypatch.setattr(learning_curve, "_quick_head", lambda *_: 1 / 0)
    data = Labelled(np.eye(5, dtype="f4"), np.arange(5))
    assert compare_sizes(data, data, 5, TrainingOptions()) == []
    assert compare_sizes(Labelled.join([data] * 9), data.first(0), 5, TrainingOptions()) == []


def test_sizes_are_not_compared_where_training_goes_astray():
    data = Labelled(np.full((8, 2), 1e30, "f4"), np.arange(8) % 2)
    assert compare_sizes(data, data, 2, TrainingOptions(learning_rate=1e30)) == []


@pytest.mark.parametrize(
    ("photos", "weights", "classes", "settings", "too_long"),
    [
        (1_000_000, 1280 * 10, 10, {}, False),  # the number of photos does not matter
        (5_000, 1280 * 400, 400, {}, False),
        (50_000, 1280 * 1000, 1000, {}, True),
        (4_000, 2048 * 10, 10, {"optimizer": "lbfgs"}, False),
        (1_000_000, 1280 * 10, 10, {"optimizer": "lbfgs"}, True),  # it reads all photos
    ],
)
def test_what_takes_too_long_is_told(photos, weights, classes, settings, too_long):
    told = learning_curve.limit(photos, weights, classes, TrainingOptions(**settings))
    assert told == (
        f"it would take too long for {photos} photos of {classes} classes" if too_long else None
    )


def test_trained_heads_are_counted():
    counts = []
    compare_sizes(noisy(400), noisy(300), 2, TrainingOptions(learning_rate=0.1), counts.append)
    assert counts == [0, 1, 1, 1, 1]
