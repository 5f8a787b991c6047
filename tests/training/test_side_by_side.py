"""side_by_side.py: heads trained together equal heads trained alone."""

from dataclasses import replace

import numpy as np
import pytest

from retraining.bottlenecks.vectors import Labelled
from retraining.training import search, side_by_side
from retraining.training.batches import ClassUniform
from retraining.training.head import first_head
from retraining.training.loop import Descender, TrainingError, TrainingOptions, train
from retraining.training.loss import Objective
from retraining.training.side_by_side import Parts, compacted, search_heads, train_heads, weights_of

HEADS = 4


def parts_of(count=120, width=30, apart=3.0, seed=0):
    """Three overlapping classes; head f sees all but fold f, and validates on the next fold."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    vectors = rng.normal(size=(count, width)) + 1
    vectors[np.arange(count), targets] += apart
    folds = np.arange(count) // 3 % HEADS
    held_out = folds[:, None] == (np.arange(HEADS) + 1) % HEADS
    seen = (folds[:, None] != np.arange(HEADS)) & ~held_out
    return Parts(Labelled(vectors.astype("f4"), targets), 3, seen, held_out)


def of_head(parts, head):
    """(training, validation) of one head."""
    photos = parts.photos
    chosen = (parts.seen[:, head], parts.held_out[:, head])
    return [Labelled(photos.vectors[rows], photos.targets[rows]) for rows in chosen]


FULL = TrainingOptions(steps=60, train_batch_size=-1, learning_rate=0.05)
WIDE = {"hidden_units": (7, 5)}


@pytest.mark.parametrize("width", [30, 200])  # wider than there are photos: compacted
@pytest.mark.parametrize(
    "options",
    [
        FULL,
        replace(FULL, class_weights="balanced", l2=0.1, label_smoothing=0.1),
        replace(FULL, optimizer="momentum", **WIDE),
        replace(FULL, optimizer="adam", learning_rate=0.003, l2=0.01, **WIDE),
        replace(FULL, optimizer="rmsprop", learning_rate=0.003),
        replace(FULL, early_stopping=2, learning_rate=0.4),
        replace(FULL, optimizer="lbfgs", early_stopping=1, steps=30),
        replace(FULL, optimizer="lbfgs", steps=20, hidden_units=(5,), l2=0.1),
    ],
)
def test_full_batches_train_each_head_as_alone(options, width):
    parts = parts_of(width=width, apart=1.0)
    together = train_heads(parts, options)
    assert together.shape == (120, HEADS, 3)
    for head in range(HEADS):
        alone = list(train(*of_head(parts, head), 3, options))[-1].head
        expected = alone.logits(parts.photos.vectors)
        np.testing.assert_allclose(together[:, head], expected, atol=2e-3)
        assert np.abs(expected).max() > 0.1


def test_drawn_batches_train_each_head_as_its_own_photos_of_them_do():
    parts, options = parts_of(width=12), TrainingOptions(steps=200, train_batch_size=10)
    together = train_heads(parts, options)
    for head in range(HEADS):
        rng = np.random.default_rng(options.seed)
        alone = first_head(rng, 12, 3)
        draw = ClassUniform(parts.photos.targets, 3, 20, rng)  # a head sees half of the photos
        descend = Descender(alone, Objective(), options, rng)
        for _ in range(options.steps):
            rows = draw()
            rows = rows[parts.seen[rows, head]]
            descend((parts.photos.vectors[rows], parts.photos.targets[rows]))
        expected = alone.logits(parts.photos.vectors)
        np.testing.assert_allclose(together[:, head], expected, atol=1e-4)


@pytest.mark.parametrize("options", [TrainingOptions(), TrainingOptions(epochs=300)])
def test_drawn_batches_answer_as_heads_trained_alone(options):
    parts = parts_of(count=300, apart=4.0)
    together = train_heads(parts, options)
    for head in range(HEADS):
        alone = list(train(*of_head(parts, head), 3, options))[-1].head
        answers = alone.logits(parts.photos.vectors).argmax(axis=1)
        assert (answers == together[:, head].argmax(axis=1)).mean() > 0.97


def test_dropout_draws_and_the_same_seed_gives_the_same_logits():
    options = TrainingOptions(steps=50, hidden_units=(16,), dropout=0.5)
    first, again = (train_heads(parts_of(), options) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert np.abs(first - train_heads(parts_of(), replace(options, dropout=0.0))).max() > 1e-3


@pytest.mark.parametrize("width", [30, 200])
def test_the_search_chooses_as_for_each_head_alone(width):
    parts, options = parts_of(width=width, apart=2.0), TrainingOptions()
    together = search_heads(parts, options)
    strengths = set()
    for head in range(HEADS):
        found = search.best(list(search.candidates(*of_head(parts, head), 3, options)))
        strengths.add(found.options.l2)
        expected = found.head.logits(parts.photos.vectors)
        np.testing.assert_allclose(together[:, head], expected, atol=0.1)  # L-BFGS's tolerance
        assert np.abs(expected).max() > 1
    assert len(strengths) > 1


def test_a_photo_that_a_head_does_not_see_changes_nothing_for_it():
    parts = parts_of(width=12)
    other = parts.photos.vectors.copy()
    row = int(np.flatnonzero(~parts.seen[:, 1] & ~parts.held_out[:, 1])[0])
    other[row] += 50
    changed = replace(parts, photos=Labelled(other, parts.photos.targets))
    options = TrainingOptions(steps=100)
    before, after = train_heads(parts, options), train_heads(changed, options)
    rest = np.arange(120) != row
    np.testing.assert_allclose(after[rest, 1], before[rest, 1], atol=1e-4)
    assert np.abs(after[rest, 2] - before[rest, 2]).max() > 0.03


def test_weights_by_hand():
    targets = np.array([0, 0, 0, 0, 1, 1])
    seen = np.ones((6, 2), bool)
    seen[0, 0] = seen[1, 0] = False
    parts = Parts(Labelled(np.zeros((6, 1), "f4"), targets), 2, seen, ~seen)
    # Head 0 sees half of class 0 and all of class 1: shares 0.5 and 1, mean 0.75.
    drawn = weights_of(parts, TrainingOptions())
    np.testing.assert_allclose(drawn[:, 0], [0, 0, 1.5, 1.5, 0.75, 0.75])
    np.testing.assert_allclose(drawn[:, 1], 1)
    weighed = weights_of(parts, TrainingOptions(epochs=1))  # 2 + 2 photos, and 4 + 2
    np.testing.assert_allclose(weighed[:, 0], [0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(weighed[:, 1], [0.75] * 4 + [1.5] * 2)
    plain = weights_of(parts, TrainingOptions(class_weights="none"))
    np.testing.assert_allclose(plain, seen)


def test_compacted_vectors_keep_all_products():
    rng = np.random.default_rng(0)
    vectors, head = rng.normal(size=(6, 40)).astype("f4"), first_head(rng, 40, 3, (4,))
    short, same = compacted(vectors, head)
    assert short.shape == (6, 6)
    np.testing.assert_allclose(short @ short.T, vectors @ vectors.T, atol=1e-4)
    np.testing.assert_allclose(same.logits(short), head.logits(vectors), atol=1e-5)
    assert compacted(vectors[:, :6], first_head(rng, 6, 3))[0].shape == (6, 6)


def test_training_that_goes_astray_ends_with_an_error():
    parts = parts_of()
    for options in (
        TrainingOptions(learning_rate=1e38),
        TrainingOptions(learning_rate=1e38, early_stopping=3),
    ):
        with pytest.raises(TrainingError, match="diverged"):
            side_by_side.train_heads(parts, options)
