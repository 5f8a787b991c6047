"""audit.py: whether a run audits its labels, and what it says of it."""

from collections import Counter

import numpy as np

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.vectors import Labelled
from retraining.evaluation.label_audit import (
    DOUBT,
    DUPLICATE,
    ELSEWHERE,
    LABEL,
    MOST_PHOTOS,
    Finding,
)
from retraining.photos.dataset import Example
from retraining.photos.split import SPLITS, TRAINING
from retraining.run.audit import describe_audit, end_audit, start_audit, undistorted
from retraining.run.settings import OutputSettings, PhotoSettings, RunSettings
from retraining.training.head import Head

HEAD = Head(np.zeros((3, 2), "f4"), np.zeros(2, "f4"))


def bottlenecks(count, views=0):
    """`count` photos for training, with `views` distorted ones behind them, whose vectors are 9."""
    examples = {part: [] for part in SPLITS}
    examples[TRAINING] = [Example(f"{n}.jpg", "ab"[n % 2], TRAINING, str(n)) for n in range(count)]
    targets = np.arange(count) % 2
    vectors = np.concatenate([np.zeros((count, 3), "f4"), np.full((views * count, 3), 9, "f4")])
    labelled = {part: Labelled(vectors[:0], targets[:0]) for part in SPLITS}
    labelled[TRAINING] = Labelled(vectors, np.tile(targets, 1 + views))
    return Bottlenecks(["a", "b"], examples, labelled, [], set())


def test_too_many_photos_are_not_audited(caplog):
    settings = RunSettings(PhotoSettings("x"))
    assert start_audit(bottlenecks(MOST_PHOTOS + 1), HEAD, settings) is None
    assert f"no label audit: it handles at most {MOST_PHOTOS} photos" in caplog.text


def test_no_audit_where_none_is_wanted(caplog):
    unwanted = RunSettings(PhotoSettings("x"), outputs=OutputSettings(label_audit=""))
    assert start_audit(bottlenecks(20), HEAD, unwanted) is None
    assert end_audit(None, unwanted) is None
    assert caplog.text == ""


def test_an_audit_ends_with_its_findings(caplog):
    settings = RunSettings(PhotoSettings("x"))
    caplog.set_level("INFO")
    alike = bottlenecks(20)
    alike.labelled[TRAINING].vectors[:] = 1
    findings = end_audit(start_audit(alike, HEAD, settings), settings)
    assert Counter(finding.reason for finding in findings) == {DUPLICATE: 18, ELSEWHERE: 19}
    assert "18 near-duplicates within a class, 19 across classes: " in caplog.text


def test_distorted_views_are_not_audited():
    photos = undistorted(bottlenecks(20, views=2))
    assert photos.paths == [f"{n}.jpg" for n in range(20)]
    assert photos.vectors.shape == (20, 3)
    assert not photos.vectors.any()


def test_the_audit_is_told_in_numbers():
    reasons = [LABEL, DUPLICATE, DOUBT, DOUBT]
    assert describe_audit([Finding("a.jpg", "red", "blue", 0.9, r) for r in reasons]) == (
        "label audit: 1 label looks wrong and 2 doubtful; "
        "1 near-duplicate within a class, 0 across classes"
    )
