"""tensorboard.py: what TensorBoard finds in a run's folder."""

import csv
import io
import os
import socket

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.framework.summary_pb2 import Summary

from retraining.photos.dataset import Example
from retraining.photos.thumbnails import Thumbnails
from retraining.report import tensorboard
from retraining.report.tensorboard import (
    SPRITE_SIDE,
    Projected,
    TensorBoardLog,
    draw_confusion,
    sprite,
    write_confusion,
    write_projector,
)
from retraining.training.head import Evaluation
from retraining.training.loop import Step


def values(folder):
    """Each summary value in the folder's event files."""
    for path in folder.glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            yield from event.summary.value


def projected(folder, colours):
    """Photos of one colour each, with vectors that count up."""
    photos = []
    for number, (name, colour) in enumerate(colours.items()):
        path = str(folder / f"{name}.png")
        Image.new("RGB", (80, 80), colour).save(path)
        example = Example(path, name, "testing", "")
        photos.append(Projected(example, np.array([number, number + 0.5], "f4")))
    return photos


def test_curves_of_both_parts(tmp_path):
    with TensorBoardLog(tmp_path) as log:
        log.add(Step(3, None, Evaluation(0.5, 1.25, 10), Evaluation(0.25, 2.0, 10)))
    for part, accuracy, entropy in (("train", 0.5, 1.25), ("validation", 0.25, 2.0)):
        found = {value.tag: value.simple_value for value in values(log.folder / part)}
        assert found == {"accuracy": accuracy, "cross_entropy": entropy}


def test_each_run_has_a_folder_of_its_own(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    folders = []
    for number in range(3):
        with TensorBoardLog(tmp_path) as log:
            log.add(Step(number, None, Evaluation(0.5, 1.25, 10), None))
        folders.append(log.folder)
    assert sorted(tmp_path.iterdir()) == sorted([*folders, tmp_path / "mine.txt"])
    assert all(len(list(values(folder / "train"))) == 2 for folder in folders)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_costs_a_warning(tmp_path, caplog, capfd, monkeypatch):
    for part in ("train", "validation"):
        (tmp_path / "run" / part).mkdir(parents=True)
    monkeypatch.setattr(tensorboard.time, "time", lambda: 1.0)
    name = f"events.out.tfevents.0000000001.{socket.gethostname()}"
    (tmp_path / "run" / "train" / name).symlink_to("/dev/full")
    with TensorBoardLog(tmp_path, "run") as log:
        for number in range(3):
            log.add(Step(number, None, Evaluation(0.5, 1.25, 10), Evaluation(0.5, 1.25, 10)))
    assert caplog.text.count("are incomplete") == 1
    assert "No space left on device" in caplog.text
    assert capfd.readouterr().err == ""


def test_the_confusion_matrix_is_an_image(tmp_path):
    write_confusion(tmp_path, np.array([[3, 1], [0, 2]]), ["cat", "dog \udcff"])
    (value,) = values(tmp_path / "test")
    assert isinstance(value, Summary.Value)
    picture = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert value.tag == "confusion_matrix"
    assert picture.size == (value.image.width, value.image.height)


def test_a_full_row_is_dark_and_an_empty_cell_is_white():
    picture = draw_confusion(np.array([[0, 4], [0, 0]]), ["a", "b"])
    side = picture.width
    assert picture.getpixel((side - 5, side - 36 - 5)) == (31, 102, 193)
    assert picture.getpixel((side - 36 - 5, side - 36 - 5)) == (255, 255, 255)


def test_a_thousand_classes_are_cut(tmp_path):
    write_confusion(tmp_path, np.zeros((1000, 1000), int), [f"class {n}" for n in range(1000)])
    (value,) = values(tmp_path / "test")
    assert value.image.width < 3000


def test_the_projector_finds_vectors_names_and_thumbnails(tmp_path):
    photos = projected(tmp_path, {"red": "red", "lime": "lime", "blue": "blue"})
    write_projector(tmp_path, photos, Thumbnails())
    folder = tmp_path / "test"
    assert np.loadtxt(folder / "vectors.tsv").tolist() == [[0, 0.5], [1, 1.5], [2, 2.5]]
    with open(folder / "metadata.tsv", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[0] == ["label", "split", "file"]
    assert rows[2] == ["lime", "testing", "lime.png"]
    whole = Image.open(folder / "sprite.png")
    assert whole.size == (2 * SPRITE_SIDE, 2 * SPRITE_SIDE)
    middle = SPRITE_SIDE // 2
    red, green, blue = whole.getpixel((middle, middle + SPRITE_SIDE))
    assert blue > 240 > 20 > max(red, green)  # the third: second row, first column


def test_tensorboard_itself_reads_the_projector(tmp_path):
    plugin = pytest.importorskip("tensorboard.plugins.projector.projector_plugin")
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    write_projector(tmp_path, projected(tmp_path, {"red": "red", "blue": "blue"}), Thumbnails())
    folder = tmp_path / "test"
    config = text_format.Parse(
        (folder / plugin.metadata.PROJECTOR_FILENAME).read_text(), ProjectorConfig()
    )
    (embedding,) = config.embeddings
    assert plugin._read_tensor_tsv_file(str(folder / embedding.tensor_path)).shape == (2, 2)
    assert (folder / embedding.metadata_path).is_file()
    assert (folder / embedding.sprite.image_path).is_file()
    assert list(embedding.sprite.single_image_dim) == [SPRITE_SIDE, SPRITE_SIDE]


def test_odd_names_stay_on_their_line(tmp_path):
    example = Example(str(tmp_path / "a\tb\n\udcff.jpg"), "c\udcfe", "training", "")
    write_projector(tmp_path, [Projected(example, np.zeros(2, "f4"))], Thumbnails())
    lines = (tmp_path / "test" / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert lines[1].count("\t") == 2


def test_a_missing_photo_is_grey_and_no_photo_writes_nothing(tmp_path):
    assert sprite([None]).getpixel((5, 5)) == (128, 128, 128)
    write_projector(tmp_path, [], Thumbnails())
    assert list(tmp_path.iterdir()) == []
