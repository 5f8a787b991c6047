"""head.py: what is said of the head of a run."""

import numpy as np
import pytest

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.vectors import Labelled
from retraining.photos.split import SPLITS
from retraining.run.head import fit_trust, try_fewer_photos, warn_of_scores
from retraining.run.notes import RunContext
from retraining.run.settings import PhotoSettings, RunSettings
from retraining.system.observer import Silent
from retraining.training.head import Evaluation, Head
from retraining.training.loop import Trained, TrainingOptions


def test_scores_worse_than_guessing_are_warned_of(caplog):
    warn_of_scores(Evaluation(0.5, 2.5, 100), 5, 4000)
    assert caplog.messages == []
    warn_of_scores(Evaluation(0.5, 2.7, 100), 5, 4000)
    assert "2.70 on the validation photos is far above that of guessing, 1.61" in caplog.text
    assert "train shorter" in caplog.text
    caplog.clear()
    warn_of_scores(Evaluation(0.5, 2.7, 100), 5, 10)
    assert "train longer" in caplog.text


@pytest.mark.parametrize(("scale", "limited"), [(1, False), (1000, True)])
def test_a_temperature_at_its_limit_is_told(caplog, scale, limited):
    caplog.set_level("INFO", "retraining")
    targets = np.arange(40) % 2
    answered = np.where(np.arange(40) < 30, targets, 1 - targets)  # three of four are right
    part = Labelled(np.eye(2, dtype="f4")[answered] * scale, targets)
    examples = {name: [None] * 40 for name in SPLITS}
    bottlenecks = Bottlenecks(["a", "b"], examples, dict.fromkeys(SPLITS, part), [], set())
    trusted = fit_trust(Head(np.eye(2, dtype="f4"), np.zeros(2, "f4")), bottlenecks)
    assert (trusted.temperature == 10) == limited
    assert ("the limit of the search" in caplog.text) == limited


def test_training_on_fewer_photos_is_skipped_in_words_where_it_takes_too_long(caplog, monkeypatch):
    caplog.set_level("INFO", "retraining")
    part = Labelled(np.eye(2, dtype="f4")[np.arange(40) % 2], np.arange(40) % 2)
    examples = {name: [None] * 40 for name in SPLITS}
    bottlenecks = Bottlenecks(["a", "b"], examples, dict.fromkeys(SPLITS, part), [], set())
    head = Head(np.eye(2, dtype="f4"), np.zeros(2, "f4"))
    trained = Trained(head, [], None, TrainingOptions(), 0.0)
    run = RunContext(RunSettings(PhotoSettings("x")), Silent())
    assert [point.photos for point in try_fewer_photos(bottlenecks, trained, run)] == [
        5,
        10,
        20,
        40,
    ]
    assert caplog.messages == []
    monkeypatch.setattr("retraining.evaluation.learning_curve.MOST_WORK", 6 * 50 * 300 - 1)
    assert try_fewer_photos(bottlenecks, trained, run) == []
    assert caplog.messages == [
        "skipped training on fewer photos, which tells whether more would help: "
        "it would take too long for 40 photos of 2 classes"
    ]
