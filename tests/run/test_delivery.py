"""delivery.py: what is written at the end of a run."""

import numpy as np
import pytest

from retraining.photos.dataset import Example
from retraining.photos.thumbnails import Thumbnails
from retraining.report.tensorboard import Projected
from retraining.run.delivery import calibrated_validation, write_summaries
from tests.records import cross_validated, made_up


@pytest.fixture
def record():
    return made_up(["cat", "dog"], ["a.jpg", "b.jpg"], [0, 1], [0, 1])


PROJECTED = [Projected(Example("a.jpg", "cat", "testing", ""), np.zeros(3, "f4"))]


def test_tensorboard_gets_the_confusion_matrix_and_the_projector(tmp_path, record):
    write_summaries(tmp_path, record, PROJECTED, Thumbnails())
    assert list((tmp_path / "test").glob("events.*"))
    assert len(list(tmp_path.rglob("projector_config.pbtxt"))) == 1


def test_tensorboard_in_trouble_is_only_warned_of(tmp_path, record, caplog):
    (tmp_path / "test" / "projector_config.pbtxt").mkdir(parents=True)
    write_summaries(tmp_path, record, PROJECTED, Thumbnails())
    assert f"the TensorBoard files in {tmp_path} are incomplete: Is a directory" in caplog.text


def test_cross_validated_probabilities_get_the_temperature_of_the_exported_network_only():
    found = cross_validated(["a.jpg", "b.jpg"], [0, 1], [0, 0], 2)  # 80 % sure: odds of 4 to 1
    cooled = calibrated_validation(found, 2.0)  # odds of 2 to 1
    np.testing.assert_allclose(cooled.predicted.probabilities, [[2 / 3, 1 / 3]] * 2, atol=1e-6)
    before_tuning = cross_validated(["a.jpg", "b.jpg"], [0, 1], [0, 0], 2, untuned=True)
    same = calibrated_validation(before_tuning, 2.0)
    np.testing.assert_allclose(same.predicted.probabilities, [[0.8, 0.2]] * 2, atol=1e-6)
    assert calibrated_validation(None, 2.0) is None
