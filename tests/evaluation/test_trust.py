"""trust.py: temperature and the score for unknown images, on synthetic data."""

import numpy as np
import pytest

from retraining.evaluation import trust, unknown
from retraining.evaluation.temperature import (
    apply_temperature,
    fit_temperature,
    temperature_gain,
    why_no_temperature,
)
from retraining.metrics.classification import calibration_error, softmax
from retraining.training.head import Head


def drawn(count=5000, classes=4, spread=2.0, seed=0):
    """Logits float32 [n, k] and classes drawn with exactly the probabilities they stand for."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (count, classes)).astype(np.float32)
    targets = (softmax(logits).cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return logits, targets


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_found_again(temperature):
    logits, targets = drawn()
    assert fit_temperature(logits * temperature, targets) == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_the_likelihood_is_never_worse_than_without(seed):
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(0, 3, (30, 3)), rng.integers(0, 3, 30)
    found = fit_temperature(logits, targets)
    before, after = temperature_gain(logits, targets, found)
    assert found > 1  # such scores say nothing
    assert after < before


def test_the_temperature_is_clamped():
    logits = np.tile(np.float32([5, 0]), (40, 1))
    always_wrong, nearly_right = np.ones(40, int), np.r_[1, np.zeros(39, int)]
    assert fit_temperature(logits, always_wrong) == pytest.approx(10)
    assert fit_temperature(logits / 1000, nearly_right) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("logits", "targets", "reason"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "needs 20 validation photos, but there are only 0"),
        (np.zeros((19, 3)), np.ones(19, int), "there are only 19"),
        (np.ones((30, 1)), np.zeros(30, int), "finite logits"),
        (np.full((30, 2), np.nan), np.zeros(30, int), "finite logits"),
        (np.tile([2.0, 1.0], (30, 1)), np.zeros(30, int), "every validation photo correctly"),
    ],
)
def test_where_none_can_be_fitted_it_is_one_and_said(logits, targets, reason):
    assert fit_temperature(logits, targets) == 1.0
    assert reason in why_no_temperature(logits, targets)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1, 2.5, 10])
def test_a_temperature_works_on_probabilities_as_on_logits(temperature):
    logits, _ = drawn(200)
    found = apply_temperature(softmax(logits), temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, softmax(logits / temperature), atol=1e-5)
    assert (found.argmax(axis=1) == logits.argmax(axis=1)).all()


def test_zeros_stay_zeros():
    rows = np.float32([[0, 1, 0], [0.5, 0.5, 0]])
    np.testing.assert_array_equal(apply_temperature(rows, 2.0), rows)


def test_a_fitted_temperature_lowers_the_calibration_error():
    logits, targets = drawn()
    overconfident = softmax(logits * 3)
    after = apply_temperature(overconfident, fit_temperature(logits * 3, targets))
    assert calibration_error(overconfident, targets) > 0.1
    assert calibration_error(after, targets) < 0.03


def test_the_calibration_error_of_a_case_done_by_hand():
    rows = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    # bin of 0.9: right once of two, gap 0.4 on 2/3 of the rows; bin of 0.6: gap 0.4 on 1/3
    assert calibration_error(rows, np.array([0, 1, 1])) == pytest.approx(0.4)
    assert np.isnan(calibration_error(rows[:0], np.zeros(0, int)))


# -- unknown images --------------------------------------------------------------------------

WIDTH = 40
CENTRES = np.random.default_rng(1).normal(0, 3, (4, WIDTH)).astype(np.float32)


def cluster(which, count, seed):
    rng = np.random.default_rng(seed)
    return CENTRES[which] + rng.normal(size=(count, WIDTH)).astype(np.float32)


def known(count, seed):
    return np.concatenate([cluster(which, count, seed + which) for which in range(3)])


@pytest.fixture(scope="module")
def head():
    """Nearest class mean, written as a linear layer, for the first three clusters."""
    means = CENTRES[:3] / 10
    return Head(means.T.copy(), -(CENTRES[:3] * means).sum(axis=1) / 2)


@pytest.fixture(scope="module")
def fitted(head):
    return unknown.fit_unknown(known(100, 10), head, known(30, 20))


def scores(fitted, head, vectors):
    return fitted.score(vectors, head.logits(vectors))


def test_another_cluster_and_noise_score_below_the_known(fitted, head):
    threshold = fitted.threshold(0.05)
    assert (scores(fitted, head, cluster(3, 50, 5)) < threshold).mean() > 0.95
    far = np.random.default_rng(0).normal(0, 10, (50, WIDTH)).astype(np.float32)
    assert (scores(fitted, head, far) < threshold).mean() > 0.95
    assert (scores(fitted, head, known(50, 30)) >= threshold).mean() > 0.85


@pytest.mark.parametrize("count", [7, 30, 47])  # of each of three classes
@pytest.mark.parametrize("share", [0, 0.05, 0.123, 0.5])
def test_no_more_than_the_share_of_validation_photos_is_given_away(head, count, share):
    validation = known(count, 20)
    fitted = unknown.fit_unknown(known(50, 10), head, validation)
    # The thresholds are scores of these very vectors, which another sum may round otherwise.
    below = (scores(fitted, head, validation) < fitted.threshold(share) - 1e-4).mean()
    assert below <= share
    assert below >= share - 2 / len(validation)


def test_behind_hidden_layers_the_score_is_of_what_the_softmax_layer_is_fed(head):
    """The hidden layer keeps each number, positive or negative."""
    keep = np.eye(WIDTH, dtype=np.float32)
    hidden = ((np.hstack([keep, -keep]), np.zeros(2 * WIDTH, np.float32)),)
    deep = Head(np.vstack([head.weights, -head.weights]), head.bias, hidden)
    training, validation = known(100, 10), known(30, 20)
    fitted = unknown.fit_unknown(training, deep, validation)
    assert fitted.origin.shape == (2 * WIDTH,)
    plain = Head(deep.weights, deep.bias)
    expected = unknown.fit_unknown(deep.features(training), plain, deep.features(validation))
    np.testing.assert_allclose(fitted.origin, expected.origin, atol=1e-4)
    np.testing.assert_allclose(fitted.quantiles, expected.quantiles, rtol=1e-4)
    scored = fitted.score(deep.features(validation), deep.logits(validation))
    assert 0.05 < (scored < fitted.threshold(0.1) - 1e-4).mean() <= 0.1
    strange = cluster(3, 50, 5)
    scored = fitted.score(deep.features(strange), deep.logits(strange))
    assert (scored < fitted.threshold(0.05)).mean() > 0.9


def test_strangeness_is_the_share_that_looks_more_like_the_classes(fitted):
    lowest, middle, highest = fitted.quantiles[[0, 50, 100]]
    found = fitted.novelty(np.array([lowest - 9, middle, highest + 9]))
    assert found == pytest.approx([1, 0.5, 0])


def test_few_validation_photos_give_no_score(head):
    assert unknown.fit_unknown(known(10, 1), head, known(7, 2)[:19]) is None
    assert unknown.fit_unknown(known(10, 1), head, known(7, 2)[:20]) is not None


def test_a_class_with_one_photo_is_enough(head):
    fitted = unknown.fit_unknown(CENTRES[:3], head, known(10, 2))
    assert np.isfinite(scores(fitted, head, known(5, 3))).all()


def test_the_axes_are_those_of_the_decomposition():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(300, 30)) * np.repeat([5, 1], [5, 25])).astype(np.float32)
    found = unknown.principal_axes(vectors, 5)
    exact = np.linalg.svd(vectors, full_matrices=False)[2][:5].T
    np.testing.assert_allclose(found.T @ found, np.eye(5), atol=1e-4)
    assert np.linalg.svd(found.T @ exact)[1].min() > 0.999


# -- in the graph ----------------------------------------------------------------------------


def test_what_is_stored_is_read_again(fitted, head):
    about, arrays = trust.described(1.7, fitted), trust.constants(fitted)
    temperature, again = trust.read(about, arrays.get)
    assert temperature == 1.7
    vectors = known(5, 40)
    np.testing.assert_array_equal(
        scores(again, head, vectors), scores(fitted, head, vectors), strict=True
    )
    assert again.threshold(0.05) == fitted.threshold(0.05)


def test_nothing_stored_is_no_trust():
    assert trust.read({}, {}.get) == (1.0, None)
    assert trust.read(trust.described(2.0, None), {}.get) == (2.0, None)
    assert trust.constants(None) == {}


@pytest.mark.parametrize(
    "damage",
    [
        {"temperature": "hot"},
        {"temperature": 0},
        {"unknown": {"score": "vim"}},
        {"unknown": {"score": "vim", "scale": 1, "quantiles": [1, 2]}},
        {"unknown": 5},
    ],
)
def test_damage_is_named(fitted, damage):
    with pytest.raises(trust.TrustError, match="damaged"):
        trust.read(damage, trust.constants(fitted).get)
