"""leaks.py: training photos that are near-duplicates of given held-out photos are left out."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.vectors import Labelled
from retraining.evaluation.label_audit import MOST_PHOTOS
from retraining.photos.dataset import Example
from retraining.photos.source import DatasetError
from retraining.photos.split import SPLITS, TESTING, TRAINING, VALIDATION
from retraining.run.leaks import leave_out_leaks
from retraining.run.notes import RunContext
from retraining.run.settings import HeadSettings, PhotoSettings, RunSettings
from retraining.system.observer import Silent

COUNTS = {TRAINING: 20, VALIDATION: 6, TESTING: 8}
LABELS = ["a", "b"]


@pytest.fixture
def run():
    return RunContext(RunSettings(PhotoSettings("x")), Silent())


def photos(near, given, views=0, counts=COUNTS):
    """Unrelated photos of the classes in turn; `near` {(split, row): (split, row that it is like)}.

    Training photos have distorted views, whose vectors are theirs and 1 more for each.
    """
    rng = np.random.default_rng(0)
    vectors = {part: rng.random((count, 64)) ** 4 for part, count in counts.items()}
    for (part, row), (other, there) in near.items():
        vectors[part][row] = vectors[other][there] + 0.001
    examples, labelled = {}, {}
    for part, count in counts.items():
        targets = np.arange(count) % 2
        examples[part] = [
            Example(f"{part}/{row}.jpg", LABELS[row % 2], part, f"{part}{row}")
            for row in range(count)
        ]
        shown = [vectors[part] + view for view in range(1 + views * (part == TRAINING))]
        labelled[part] = Labelled(np.concatenate(shown).astype("f4"), np.tile(targets, len(shown)))
    return Bottlenecks(LABELS, examples, labelled, [], set(), given=frozenset(given))


LIKE = {(TRAINING, 3): (TESTING, 1), (TRAINING, 4): (VALIDATION, 5), (TRAINING, 9): (TRAINING, 10)}


@pytest.mark.parametrize(
    ("given", "gone"),
    [(SPLITS, {3, 4}), ((TRAINING, TESTING), {3}), ((TRAINING,), set()), ((), set())],
)
def test_near_duplicates_of_given_splits_are_left_out_of_training(run, given, gone):
    before = photos(LIKE, given)
    after = leave_out_leaks(before, run)
    expected = [row for row in range(20) if row not in gone]
    assert after.examples[TRAINING] == [before.examples[TRAINING][row] for row in expected]
    for part in (VALIDATION, TESTING):
        assert after.examples[part] == before.examples[part]
        np.testing.assert_array_equal(after.labelled[part].vectors, before.labelled[part].vectors)
    assert len(run.notes.warnings) == bool(gone)
    assert run.notes.caveats == []


def test_they_are_counted_and_named_with_what_they_are_like(run, caplog):
    leave_out_leaks(photos(LIKE, SPLITS), run)
    text = (
        "2 training photos nearly duplicate held-out photos; the run leaves out "
        "a/4.jpg (of b/5.jpg), b/3.jpg (of b/1.jpg)"
    )
    assert run.notes.warnings == [text]
    assert text in caplog.text


@pytest.mark.parametrize(
    ("cut", "given", "near"),
    [
        (VALIDATION, TESTING, {(VALIDATION, 2): (TESTING, 1)}),
        (TESTING, VALIDATION, {(VALIDATION, 1): (TESTING, 2)}),
    ],
)
def test_photos_of_a_split_cut_from_training_are_left_out_too(run, cut, given, near):
    after = leave_out_leaks(photos(near, (TRAINING, given)), run)
    left = [e.path for e in after.examples[cut]]
    assert left == [f"{cut}/{row}.jpg" for row in range(COUNTS[cut]) if row != 2]
    assert len(after.labelled[cut].targets) == len(left)
    assert len(after.examples[given]) == COUNTS[given]


def test_a_needed_split_that_gets_empty_is_refused(run):
    near = {(VALIDATION, row): (TESTING, 1) for row in range(6)}
    needing = replace(run, settings=replace(run.settings, head=HeadSettings(search=True)))
    with pytest.raises(
        DatasetError, match=r"`HeadSettings.search` needs photos for validation, and there are none"
    ):
        leave_out_leaks(photos(near, (TRAINING, TESTING)), needing)
    assert not leave_out_leaks(photos(near, (TRAINING, TESTING)), run).examples[VALIDATION]


def test_their_distorted_views_go_with_them(run):
    before = photos(LIKE, SPLITS, views=2)
    after = leave_out_leaks(before, run).labelled[TRAINING]
    rows = [row for row in range(60) if row % 20 not in (3, 4)]
    np.testing.assert_array_equal(after.vectors, before.labelled[TRAINING].vectors[rows])
    np.testing.assert_array_equal(after.targets, before.labelled[TRAINING].targets[rows])


@pytest.mark.parametrize(("count", "left"), [(5, 5), (6, 10), (10, 10)])
def test_a_class_keeps_its_training_photos_if_most_are_near_duplicates(run, count, left):
    near = {(TRAINING, 2 * row + 1): (TESTING, 1) for row in range(count)}
    after = leave_out_leaks(photos({**near, (TRAINING, 4): (TESTING, 0)}, SPLITS), run)
    assert Counter(e.label for e in after.examples[TRAINING]) == {"a": 9, "b": left}
    caveat = (
        "in 1 class, most training photos look the same as held-out photos; the run keeps "
        "them, so the accuracy may look better than it is: b"
    )
    assert run.notes.caveats == [caveat] * (left == 10)
    assert len(run.notes.warnings) == 1


def test_too_many_photos_are_not_compared(run, caplog):
    caplog.set_level("INFO")
    before = photos(LIKE, SPLITS, counts={**COUNTS, TRAINING: MOST_PHOTOS - 13})
    assert leave_out_leaks(before, run) is before
    assert (
        f"skipped the search for near-duplicates across splits: it handles at most "
        f"{MOST_PHOTOS} photos" in caplog.text
    )
