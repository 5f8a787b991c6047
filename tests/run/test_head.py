"""head.py: what is said of the head of a run."""

from retraining.run.head import warn_of_scores
from retraining.training.head import Evaluation


def test_scores_worse_than_guessing_are_warned_of(caplog):
    warn_of_scores(Evaluation(0.5, 2.5, 100), 5, 4000)
    assert caplog.messages == []
    warn_of_scores(Evaluation(0.5, 2.7, 100), 5, 4000)
    assert "2.70 on the validation photos is far above that of guessing, 1.61" in caplog.text
    assert "train shorter" in caplog.text
    caplog.clear()
    warn_of_scores(Evaluation(0.5, 2.7, 100), 5, 10)
    assert "train longer" in caplog.text
