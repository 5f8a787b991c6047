"""search.py: --head auto on vectors of which the best strength is known."""

import numpy as np
import pytest

from retraining.bottlenecks.vectors import Labelled
from retraining.metrics.classification import accuracy, cross_entropy
from retraining.training.loop import TrainingError, TrainingOptions
from retraining.training.search import STRENGTHS, best, candidates, course_of


def photos(count, seed, width=30, apart=1.0):
    """Classes 0, 1, 2 that overlap: too weak a regularisation learns the noise by heart."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    vectors = rng.normal(size=(count, width)) * 4 + 10  # neither centred nor scaled
    vectors[np.arange(count), targets] += 4 * apart
    return Labelled(vectors.astype("f4"), targets)


@pytest.fixture(scope="module")
def found():
    return list(candidates(photos(90, 0), photos(300, 1), 3, TrainingOptions()))


def test_each_candidate_has_its_strength_and_converged(found):
    ratios = [candidate.options.l2 / found[0].options.l2 for candidate in found]
    np.testing.assert_allclose(ratios, STRENGTHS[: len(found)])
    assert found[0].options.l2 == pytest.approx(STRENGTHS[0] * 16, rel=0.15)  # their variance
    training = photos(90, 0)
    for candidate in found:
        head = candidate.head
        error = head.probabilities(training.vectors)
        error[np.arange(90), training.targets] -= 1
        centred = training.vectors - training.vectors.mean(axis=0)
        slope = centred.T @ error / 90 + candidate.options.l2 * head.weights
        assert np.abs(slope).max() < 0.02
        assert np.abs(error.mean(axis=0)).max() < 0.01


def test_the_best_has_the_lowest_validation_cross_entropy(found):
    validation = photos(300, 1)
    losses = [
        cross_entropy(candidate.head.probabilities(validation.vectors), validation.targets)
        for candidate in found
    ]
    chosen = found.index(best(found))
    assert chosen == int(np.argmin(losses))
    assert min(losses[0], losses[-1]) > losses[chosen] + 0.01  # or else there was no choice


def test_none_is_tried_after_two_that_are_worse(found):
    assert found.index(best(found)) == len(found) - 3 < len(STRENGTHS) - 3


def test_all_are_tried_while_they_get_better():
    easy = photos(90, 0, width=3, apart=50)
    assert len(list(candidates(easy, easy, 3, TrainingOptions()))) == len(STRENGTHS)


def test_the_course_ends_with_the_best_and_its_numbers_rise(found):
    course = course_of(found)
    numbers = [step.number for step in course]
    assert numbers == sorted(set(numbers))
    assert course[-1].validation == best(found).validation
    assert course[-1].training.count == 90


def test_a_rare_class_counts_as_much_unless_told_otherwise():
    data = photos(300, 0, width=3)
    rows = np.r_[np.flatnonzero(data.targets != 2), np.flatnonzero(data.targets == 2)[:10]]
    rare, held_out = Labelled(data.vectors[rows], data.targets[rows]), photos(300, 1, width=3)

    def recall(class_weights):
        options = TrainingOptions(class_weights=class_weights)
        head = best(list(candidates(rare, held_out, 3, options))).head
        of_rare = held_out.targets == 2
        return accuracy(head.probabilities(held_out.vectors[of_rare]), held_out.targets[of_rare])

    assert recall(None) == recall("balanced") > recall("none") + 0.2


def test_without_validation_photos_there_is_nothing_to_choose_by():
    with pytest.raises(TrainingError, match="validation photos"):
        list(candidates(photos(30, 0), photos(30, 1).first(0), 3, TrainingOptions()))


def test_each_step_is_counted():
    counts = []
    (*_, last) = candidates(photos(90, 0), photos(300, 1), 3, TrainingOptions(), counts.append)
    assert set(counts) == {1}
    assert len(counts) == last.course[-1].number + 1
