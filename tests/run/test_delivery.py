"""delivery.py: what is written at the end of a run."""

import numpy as np
import pytest

from retraining.photos.dataset import Example
from retraining.photos.thumbnails import Thumbnails
from retraining.report.tensorboard import Projected
from retraining.run.delivery import write_summaries
from tests.records import made_up


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
    assert f"TensorBoard's files in {tmp_path} are not complete: Is a directory" in caplog.text
