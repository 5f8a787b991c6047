"""optimizers.py and batches.py: against steps done by hand, and a minimum that is known."""

import numpy as np
import pytest

from retraining.training.batches import ClassUniform, Shuffled, passes_to_steps
from retraining.training.optimizers import RATES, Frame, by_batches, lbfgs


def after(name, gradients, rate=0.1):
    """A weight of 1 after steps with these gradients."""
    weight = np.ones(1, np.float32)
    optimizer = by_batches(name, [weight], rate)
    for slope in gradients:
        optimizer.update([np.full(1, slope * optimizer.scale, np.float32)])
    return float(weight[0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", 1 - 0.1 * 2 - 0.1 * -1),
        ("momentum", 1 - 0.1 * 2 - (0.9 * 0.1 * 2 + 0.1 * -1)),
        ("rmsprop", 1 - 0.1 * 2 / np.sqrt(0.1 * 4) - 0.1 * -1 / np.sqrt(0.9 * 0.4 + 0.1)),
        # Means 0.2 and 0.08 over 1 - 0.9 and 1 - 0.81, squares 0.004 and 0.004996 likewise.
        ("adam", 1 - 0.1 * 2 / 2 - 0.1 * (0.08 / 0.19) / np.sqrt(0.004996 / 0.001999)),
    ],
)
def test_two_steps_by_hand(name, expected):
    assert after(name, [2, -1]) == pytest.approx(expected, abs=1e-5)


def test_each_optimizer_by_batches_has_a_rate_of_its_own():
    assert RATES == {"sgd": 0.01, "momentum": 0.01, "adam": 0.001, "rmsprop": 0.001}


def quadratic(parameters, target):
    """Loss and gradients of half the squared distance from `target`."""
    gradients = [now - end for now, end in zip(parameters, target, strict=True)]
    return sum(float((slope**2).sum()) for slope in gradients) / 2, gradients


def test_lbfgs_finds_a_minimum_whatever_the_frame():
    rng = np.random.default_rng(0)
    target = [rng.normal(size=shape).astype("f4") for shape in ((4, 3), (3,), (3, 2), (2,))]
    parameters = [np.zeros_like(array) for array in target]
    numbers = []
    frame = Frame((rng.normal(size=(50, 4)) * 3 + 5).astype("f4"))
    count = lbfgs(parameters, lambda: quadratic(parameters, target), frame, 100, numbers.append)
    assert numbers == list(range(count))
    for found, wanted in zip(parameters, target, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_a_frame_gives_the_parameters_back_and_the_slope_of_its_own_coordinates():
    rng = np.random.default_rng(1)
    frame = Frame(rng.normal(size=(30, 4)) * 2 + 3)
    parameters = [rng.normal(size=(4, 3)), rng.normal(size=3)]
    target = [rng.normal(size=(4, 3)), rng.normal(size=3)]
    point, again = frame.read(parameters), [np.zeros((4, 3)), np.zeros(3)]
    frame.write(point, again)
    np.testing.assert_allclose(np.concatenate([a.ravel() for a in again]), frame_free(parameters))
    gradients = frame.gradients(quadratic(parameters, target)[1])
    for number in range(len(point)):
        losses = []
        for nudge in (1e-5, -1e-5):
            moved = point.copy()
            moved[number] += nudge
            frame.write(moved, again)
            losses.append(quadratic(again, target)[0])
        assert gradients[number] == pytest.approx(
            (losses[0] - losses[1]) / 2e-5, rel=1e-4, abs=1e-6
        )


def frame_free(parameters):
    return np.concatenate([array.ravel() for array in parameters])


def test_vectors_all_alike_have_a_scale_of_one():
    assert Frame(np.ones((5, 3), "f4")).scale == 1


def test_shuffled_gives_each_row_once_a_pass():
    draw = Shuffled(10, 4, np.random.default_rng(0))
    passes = [[draw() for _ in range(3)] for _ in range(2)]
    assert [[len(rows) for rows in one] for one in passes] == [[4, 4, 2]] * 2
    orders = [np.concatenate(one).tolist() for one in passes]
    assert [sorted(order) for order in orders] == [list(range(10))] * 2
    assert orders[0] != orders[1]
    assert len(Shuffled(10, -1, np.random.default_rng(0))()) == 10


@pytest.mark.parametrize(
    ("count", "batch_size", "steps"), [(10, 4, 6), (10, 5, 4), (10, 100, 2), (10, -1, 2)]
)
def test_two_passes_in_steps(count, batch_size, steps):
    assert passes_to_steps(2, count, batch_size) == steps


def test_class_uniform_draws_a_rare_class_as_often():
    targets = np.array([0] * 990 + [1] * 10)
    rows = ClassUniform(targets, 2, 10_000, np.random.default_rng(0))()
    assert targets[rows].mean() == pytest.approx(0.5, abs=0.02)
