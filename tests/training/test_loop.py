"""loop.py: training the softmax layer, against plain arithmetic."""

import math
from dataclasses import replace

import numpy as np
import pytest

from retraining.bottlenecks.vectors import Labelled
from retraining.metrics import classification
from retraining.training.head import Head, evaluate, first_head
from retraining.training.loop import Descender, TrainingError, TrainingOptions, train
from retraining.training.loss import Objective
from retraining.training.optimizers import OPTIMIZERS, RATES


def clusters(count, classes=3, width=6, seed=0):
    """Well separated classes."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=count)
    centres = np.eye(classes, width) * 3
    vectors = centres[targets] + rng.normal(size=(count, width)) * 0.3
    return Labelled(vectors.astype("f4"), targets)


def noisy(rows, classes=2, width=8, seed=1):
    """Labelled vectors that are told apart the better, the more of them there are."""
    rng = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    return Labelled((rng.normal(size=(rows, width)) + 0.8 * targets[:, None]).astype("f4"), targets)


def last(steps):
    return list(steps)[-1]


def test_it_learns_what_can_be_learnt():
    step = last(train(clusters(300), clusters(60, seed=1), 3, TrainingOptions(steps=300)))
    assert step.number == 299
    assert step.training.accuracy == 1
    assert step.validation.accuracy == 1
    held_out = clusters(60, seed=2)
    answer = step.head.probabilities(held_out.vectors)
    assert classification.accuracy(answer, held_out.targets) == 1


def test_the_seed_repeats_a_run():
    def head(seed):
        return last(train(clusters(50), clusters(9), 3, TrainingOptions(steps=20, seed=seed))).head

    np.testing.assert_array_equal(head(1).weights, head(1).weights)
    assert (head(1).weights != head(2).weights).any()


def test_the_first_weights_are_small_and_truncated():
    options = TrainingOptions(steps=1, learning_rate=0.0)
    wide = Labelled(np.zeros((3, 4000), "f4"), np.arange(3))
    head = last(train(wide, wide, 3, options)).head
    assert head.weights.shape == (4000, 3)
    assert np.abs(head.weights).max() <= 0.002
    # A normal distribution cut at two standard deviations has 0.8796 of them left.
    assert head.weights.std() == pytest.approx(0.00088, rel=0.03)
    assert (head.bias == 0).all()


def test_one_step_is_the_gradient_of_the_mean_cross_entropy():
    rng = np.random.default_rng(0)
    vectors, targets = rng.normal(size=(5, 4)), np.array([0, 2, 1, 2, 2])
    weights, bias = rng.normal(size=(4, 3)), rng.normal(size=3)

    def loss(w, b):
        return classification.cross_entropy(classification.softmax(vectors @ w + b), targets)

    head = Head(weights.copy(), bias.copy())
    options = TrainingOptions(learning_rate=0.5)
    Descender(head, Objective(), options, rng)((vectors, targets))
    for index in np.ndindex(4, 3):
        nudge = np.zeros((4, 3))
        nudge[index] = 1e-6
        slope = (loss(weights + nudge, bias) - loss(weights - nudge, bias)) / 2e-6
        assert head.weights[index] == pytest.approx(weights[index] - 0.5 * slope, abs=1e-6)
    nudge = np.array([1e-6, 0, 0])
    slope = (loss(weights, bias + nudge) - loss(weights, bias - nudge)) / 2e-6
    assert head.bias[0] == pytest.approx(bias[0] - 0.5 * slope, abs=1e-6)


def test_batches_are_drawn_class_uniformly():
    """A class with 1 of 1000 images counts half: its share of the first error shows in the bias."""
    targets = np.array([0] * 999 + [1])
    data = Labelled(np.zeros((1000, 2), "f4"), targets)
    options = TrainingOptions(steps=1, learning_rate=1.0, train_batch_size=10_000)
    head = last(train(data, data, 2, options)).head
    # The gradient of the bias is 0.5 - share of the class.
    assert head.bias[1] == pytest.approx(0, abs=0.02)
    everything = TrainingOptions(steps=1, learning_rate=1.0, train_batch_size=-1)
    head = last(train(data, data, 2, everything)).head
    assert head.bias[1] == pytest.approx(0.001 - 0.5, abs=1e-4)


def test_every_image_is_drawn_alike():
    """Each of 10 one-hot images gets about the same share of the first step's gradient."""
    data = Labelled(np.eye(10, dtype="f4"), np.arange(10) % 2)
    options = TrainingOptions(steps=1, learning_rate=1.0, train_batch_size=20_000)
    weights = last(train(data, data, 2, options)).head.weights
    np.testing.assert_allclose(np.abs(weights), 0.05, atol=0.008)


def test_evaluations_come_at_their_steps():
    options = TrainingOptions(steps=25, eval_step_interval=10)
    steps = [s.number for s in train(clusters(30), clusters(9), 3, options) if s.training]
    assert steps == [0, 10, 20, 24]


def test_weights_that_explode_are_an_error():
    data = clusters(30)
    large = Labelled(data.vectors * 1e4, data.targets)
    with pytest.raises(TrainingError, match=r"lower `TrainingOptions.learning_rate`"):
        list(train(large, clusters(9), 3, TrainingOptions(steps=50, learning_rate=1e38)))


def test_no_validation_images_give_nan():
    nothing = Labelled(np.zeros((0, 6), "f4"), np.zeros(0, int))
    step = last(train(clusters(30), nothing, 3, TrainingOptions(steps=2)))
    assert math.isnan(step.validation.accuracy)
    assert math.isnan(step.validation.cross_entropy)


# -- other ways to train ---------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("hidden_units", [(), (16,), (16, 8)])
def test_every_optimizer_learns_what_can_be_learnt(optimizer, hidden_units):
    rate = {"adam": 0.01, "rmsprop": 0.01, "lbfgs": None}.get(optimizer, 0.05)
    options = TrainingOptions(
        steps=300, learning_rate=rate, optimizer=optimizer, hidden_units=hidden_units
    )
    head = last(train(clusters(300), clusters(60, seed=1), 3, options)).head
    assert [weights.shape[1] for weights, _ in head.layers] == [*hidden_units, 3]
    held_out = clusters(90, seed=2)
    assert classification.accuracy(head.probabilities(held_out.vectors), held_out.targets) == 1


def test_hidden_layers_learn_what_no_linear_head_can():
    """Exclusive or."""
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "f4") * 2 - 1
    data = Labelled(corners, np.array([0, 1, 1, 0]))
    options = TrainingOptions(steps=500, optimizer="adam", learning_rate=0.01, seed=1)
    linear = last(train(data, data, 2, options))
    deep = last(train(data, data, 2, replace(options, hidden_units=(16,), dropout=0.2)))
    assert (linear.head.probabilities(corners).argmax(axis=1) == data.targets).sum() <= 3
    assert (deep.head.probabilities(corners).argmax(axis=1) == data.targets).all()


def test_hidden_weights_begin_as_he_et_al_have_them():
    head = first_head(np.random.default_rng(0), 500, 3, (400, 30))
    (first, bias), (second, _) = head.hidden
    assert first.std() == pytest.approx(np.sqrt(2 / 500), rel=0.02)
    assert second.std() == pytest.approx(np.sqrt(2 / 400), rel=0.03)
    assert head.weights.std() < 0.001
    assert (bias == 0).all()


def test_epochs_are_passes_over_all_photos():
    options = TrainingOptions(epochs=3, train_batch_size=40, eval_step_interval=1)
    steps = list(train(clusters(100), clusters(9), 3, options))
    assert [step.training.count for step in steps] == [40, 40, 20] * 3
    assert options.steps_for(100) == 9


def first_bias(targets, **settings):
    """The second class's bias after one step of rate 1 from zeros, where the gradient is plain."""
    data = Labelled(np.zeros((len(targets), 2), "f4"), targets)
    options = TrainingOptions(steps=1, learning_rate=1.0, **settings)
    return last(train(data, data, 2, options)).head.bias[1]


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"train_batch_size": 900}, 0.5),  # by drawing
        ({"train_batch_size": 1000, "class_weights": "none"}, 0.1),
        ({"train_batch_size": -1}, 0.1),  # as in the classic
        ({"train_batch_size": -1, "class_weights": "balanced"}, 0.5),
        ({"train_batch_size": 1000, "epochs": 1}, 0.5),  # by weights
        ({"train_batch_size": 1000, "epochs": 1, "class_weights": "none"}, 0.1),
    ],
)
def test_class_weights(settings, share):
    targets = np.array([0] * 900 + [1] * 100)
    assert first_bias(targets, **settings) == pytest.approx(share - 0.5, abs=0.06)


def test_early_stopping_keeps_the_best_head_on_all_validation_photos():
    training, validation = noisy(40, width=60), noisy(200, width=60, seed=2)
    options = TrainingOptions(
        steps=2000, learning_rate=0.1, eval_step_interval=5, early_stopping=3, optimizer="momentum"
    )
    steps = list(train(training, validation, 2, options))
    losses = {step.number: step.validation.cross_entropy for step in steps if step.validation}
    final = steps[-1]
    assert {step.validation.count for step in steps if step.validation} == {200}
    assert final.number == final.kept + 15 < 1999
    assert losses[final.kept] == min(losses.values())
    answer = final.head.probabilities(validation.vectors)
    assert classification.cross_entropy(answer, validation.targets) == pytest.approx(
        losses[final.kept], rel=1e-5
    )


def test_validation_is_over_all_photos_each_once_unless_a_batch_is_asked_for():
    training, validation = noisy(40, width=60), noisy(230, width=60, seed=2)
    every = last(train(training, validation, 2, TrainingOptions(steps=20)))
    right = every.head.logits(validation.vectors).argmax(axis=1) == validation.targets
    assert every.validation.count == 230
    assert every.validation.accuracy == right.mean()
    drawn = last(
        train(training, validation, 2, TrainingOptions(steps=20, validation_batch_size=70))
    )
    assert drawn.validation.count == 70


def test_a_head_so_sure_that_scores_are_0_or_1_is_refused_and_a_short_trial_is_not():
    training = Labelled(clusters(60).vectors * 100, clusters(60).targets)
    with pytest.raises(TrainingError, match=r"logits grew up to [0-9.e+]+, so that most prob"):
        last(train(training, training, 3, TrainingOptions(steps=20, learning_rate=5.0)))
    trial = last(train(noisy(100), noisy(100), 2, TrainingOptions(steps=2, learning_rate=5.0)))
    assert trial.head.is_finite


def test_the_cross_entropy_of_a_head_is_exact_where_probabilities_underflow():
    head = Head(np.array([[0, 300]], "f4"), np.zeros(2, "f4"))
    assert evaluate(head, np.ones((1, 1), "f4"), np.array([0])).cross_entropy == 300


def test_early_stopping_needs_validation_photos():
    with pytest.raises(TrainingError, match=r"`TrainingOptions.early_stopping` needs validation"):
        list(train(clusters(30), clusters(9).first(0), 3, TrainingOptions(early_stopping=1)))


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize("hidden_units", [(), (8,)])
def test_a_rate_that_makes_the_head_useless_is_an_error(optimizer, hidden_units):
    options = TrainingOptions(
        steps=50, learning_rate=1e30, optimizer=optimizer, hidden_units=hidden_units
    )
    with pytest.raises(TrainingError, match=r"`TrainingOptions.learning_rate`, which is 1e\+30"):
        list(train(noisy(60), noisy(60), 2, options))


def test_vectors_that_lbfgs_cannot_bear_are_an_error():
    data = noisy(60)
    broken = Labelled(data.vectors * np.float32(np.inf), data.targets)
    with pytest.raises(TrainingError, match=r"another `TrainingOptions.optimizer`"):
        list(train(broken, data, 2, TrainingOptions(optimizer="lbfgs")))


def test_lbfgs_tells_of_its_course():
    options = TrainingOptions(
        optimizer="lbfgs", l2=0.01, eval_step_interval=2, class_weights="none"
    )
    steps = list(train(noisy(100), noisy(50, seed=2), 2, options))
    numbers = [step.number for step in steps]
    assert numbers[:3] == [0, 2, 4]
    assert numbers == sorted(set(numbers))
    losses = [step.training.cross_entropy for step in steps]
    assert losses[-1] < losses[0]
    assert (steps[-1].training.count, steps[-1].validation.count) == (100, 50)


def test_with_many_classes_fewer_photos_are_evaluated_before_the_last_step(monkeypatch):
    monkeypatch.setattr("retraining.training.loop.MOST_ANSWERS", 120)
    options = TrainingOptions(steps=12, eval_step_interval=5)
    steps = list(train(clusters(300), clusters(60, seed=1), 3, options))
    counts = [step.validation.count for step in steps if step.validation]
    assert counts == [40, 40, 40, 60]
