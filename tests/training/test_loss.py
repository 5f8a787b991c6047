"""loss.py: losses by hand, gradients against finite differences."""

import math

import numpy as np
import pytest

from retraining.training import loss as loss_module
from retraining.training.head import Head, first_head
from retraining.training.loss import Objective, balancing_weights


def batch(count=7, width=4, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)), rng.integers(classes, size=count)


def head(hidden=(), seed=1):
    """A Head in float64, so that finite differences are exact, with biases that are not 0."""
    rng = np.random.default_rng(seed)
    made = first_head(rng, 4, 3, hidden)
    layers = [(w.astype(float) + rng.normal(size=w.shape), rng.normal(size=b.shape)) for w, b in
              made.layers]  # fmt: skip
    return Head(*layers[-1], tuple(layers[:-1]))


OBJECTIVES = [
    Objective(),
    Objective(l2=0.3),
    Objective(label_smoothing=0.2),
    Objective(class_weights=np.array([0.5, 2, 1.5])),
    Objective(np.array([0.5, 2, 1.5]), label_smoothing=0.1, l2=0.05),
]


@pytest.mark.parametrize("hidden", [(), (5,), (6, 5)])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_those_of_the_loss(objective, hidden):
    made, data = head(hidden), batch()
    _, slopes = objective.loss_and_gradients(made, data)
    scaled = objective.gradients(made, data, scale=0.5)
    for array, slope, half in zip(made.parameters, slopes, scaled, strict=True):
        np.testing.assert_allclose(half, slope / 2, atol=1e-6)
        for index in np.ndindex(array.shape):
            before, losses = array[index], []
            for nudge in (1e-6, -1e-6):
                array[index] = before + nudge
                losses.append(objective.loss_and_gradients(made, data)[0])
            array[index] = before
            assert slope[index] == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=2e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_photos_taken_a_few_at_a_time_give_the_same_loss_and_gradients(monkeypatch, objective):
    made, data = head((5,)), batch()
    loss, slopes = objective.loss_and_gradients(made, data)
    monkeypatch.setattr(loss_module, "ANSWERS_AT_ONCE", 6)  # two of seven photos, three classes
    again, others = objective.loss_and_gradients(made, data)
    assert again == pytest.approx(loss, rel=1e-9)
    for slope, other in zip(slopes, others, strict=True):
        np.testing.assert_allclose(other, slope, atol=1e-6)


def test_the_losses_of_a_case_done_by_hand():
    made = Head(np.array([[math.log(3), 0.0]]), np.zeros(2))  # 3/4 and 1/4 for a vector of 1
    data = np.ones((2, 1)), np.array([0, 1])

    def loss(**settings):
        return Objective(**settings).loss_and_gradients(made, data)[0]

    sure, unsure = -math.log(0.75), -math.log(0.25)
    assert loss() == pytest.approx((sure + unsure) / 2)
    assert loss(l2=2.0) == pytest.approx((sure + unsure) / 2 + math.log(3) ** 2)
    assert loss(class_weights=np.array([3.0, 0])) == pytest.approx(3 * sure / 2)
    first, second = 0.9 * sure + 0.1 * unsure, 0.9 * unsure + 0.1 * sure
    assert loss(label_smoothing=0.2) == pytest.approx((first + second) / 2)


def test_dropout_leaves_out_its_share_and_keeps_the_mean():
    """Of one layer of ones, the gradient by the softmax weights shows what it was fed."""
    units = 2000
    made = Head(np.zeros((units, 2)), np.zeros(2), ((np.ones((1, units)), np.zeros(units)),))
    data = np.ones((1, 1)), np.array([0])
    objective = Objective(dropout=0.25)
    fed = -2 * objective.gradients(made, data, rng=np.random.default_rng(0))[2][:, 0]
    assert set(np.round(fed, 4)) == {0.0, 1.3333}
    assert (fed == 0).mean() == pytest.approx(0.25, abs=0.03)
    assert fed.mean() == pytest.approx(1, abs=0.04)
    np.testing.assert_allclose(-2 * objective.gradients(made, data)[2][:, 0], 1)


def test_a_unit_that_was_left_out_learns_nothing():
    made, data = head((40,)), batch()
    rng = np.random.default_rng(0)
    weights, _, outputs, _ = Objective(dropout=0.9).gradients(
        made, (data[0][:1], data[1][:1]), rng=rng
    )
    silent = (outputs == 0).all(axis=1)
    assert 0 < silent.sum() < 40
    assert (weights[:, silent] == 0).all()
    assert (weights[:, ~silent] != 0).any()


def test_what_is_kept_passes_its_slope_on_as_much_enlarged():
    """With tiny softmax weights the answer is one half, so the slope of each unit is known."""
    units = 50
    softmax = np.tile([1e-6, -1e-6], (units, 1))
    made = Head(softmax, np.zeros(2), ((np.ones((1, units)), np.zeros(units)),))
    data = np.ones((1, 1)), np.array([0])
    slopes = Objective(dropout=0.25).gradients(made, data, rng=np.random.default_rng(0))[0]
    kept = slopes[slopes != 0]
    assert 25 < len(kept) < 50
    np.testing.assert_allclose(kept, -1e-6 * 4 / 3, rtol=1e-3)


def test_balancing_weights_make_classes_count_alike():
    targets = np.array([0] * 6 + [2] * 2)
    weights = balancing_weights(targets, 3)
    np.testing.assert_allclose(weights, [8 / 12, 0, 2])
    assert weights[targets].mean() == pytest.approx(1)
