"""Splits that folders named train, val, test give."""

import os
import shutil
from collections import Counter

import pytest

from retraining.photos.dataset import load_dataset
from retraining.photos.registry import open_source
from retraining.photos.source import DatasetError
from retraining.photos.split import SplitOptions
from tests.photos.test_dataset import fill


def counts(dataset):
    return dict(sorted(Counter((e.label, e.split) for e in dataset.examples).items()))


def test_split_folders_are_used_as_they_are(tmp_path):
    fill(tmp_path / "Train", {"cat": 30, "dog": 25})
    fill(tmp_path / "VALID", {"cat": 4, "dog": 5})
    fill(tmp_path / "testing", {"cat": 6, "dog": 7})
    for name in ("data.yaml", "README.txt"):
        (tmp_path / name).write_text("names: [cat, dog]")
    (tmp_path / ".git").mkdir()
    shutil.rmtree(tmp_path / "VALID" / "dog")  # `fill` gives equal names equal content
    for split in ("VALID", "testing"):
        for path in (tmp_path / split).rglob("*.jpg"):
            path.write_bytes(path.read_bytes() + split.encode())
    dataset = load_dataset(str(tmp_path))
    assert counts(dataset) == {
        ("cat", "testing"): 6,
        ("cat", "training"): 30,
        ("cat", "validation"): 4,
        ("dog", "testing"): 7,
        ("dog", "training"): 25,
    }
    assert dataset.warnings == ["1 class without a photo for validation: dog"]
    assert dataset.note == "splits as given: 55 for training, 4 for validation, 13 for testing"


def split_folders(tmp_path, **folders):
    """Folders of classes, each photo of its own content."""
    for name, classes in folders.items():
        fill(tmp_path / name, classes)
        for path in (tmp_path / name).rglob("*.jpg"):
            path.write_bytes(path.read_bytes() + name.encode())
    return str(tmp_path)


def test_a_missing_split_is_cut_from_training(tmp_path):
    folder = split_folders(tmp_path, train={"a": 200, "b": 200}, test={"a": 3, "b": 3})
    dataset = load_dataset(folder)
    parts = Counter(e.split for e in dataset.examples)
    assert parts["testing"] == 6
    assert 20 <= parts["validation"] <= 60
    assert dataset.note.endswith("400 for training, 6 for testing; validation cut from training")
    by_content = load_dataset(
        os.path.join(folder, "train"), SplitOptions(testing=0, by="content")
    ).examples
    expected = {e.key for e in by_content if e.split == "validation"}
    assert {e.key for e in dataset.split("validation")} == expected
    none = load_dataset(folder, SplitOptions(validation=0))
    assert not none.split("validation")


def test_test_photos_are_cut_from_training_unless_unwanted(tmp_path):
    folder = split_folders(tmp_path, training={"a": 100, "b": 100}, val={"a": 3, "b": 3})
    dataset = load_dataset(folder)
    assert len(dataset.split("validation")) == 6
    assert dataset.split("testing")
    assert all("/training/" in e.path for e in dataset.split("testing"))
    assert not load_dataset(folder, SplitOptions(testing=0)).split("testing")


def test_content_pools_all_photos(tmp_path):
    folder = split_folders(tmp_path, train={"a": 50, "b": 50}, test={"a": 50, "b": 50})
    dataset = load_dataset(folder, SplitOptions(by="content"))
    assert {e.path.split("/")[-3] for e in dataset.split("testing")} == {"train", "test"}
    assert (dataset.labels, dataset.note) == (["a", "b"], "")


def test_path_takes_each_folder_for_a_class(tmp_path):
    folder = split_folders(tmp_path, train={"a": 5, "b": 5}, test={"a": 5, "b": 5})
    with pytest.raises(DatasetError, match=r"the class folder .*/test holds no images"):
        load_dataset(folder, SplitOptions(by="path"))


def test_copies_stay_in_the_last_split_only(tmp_path):
    folder = split_folders(
        tmp_path, train={"a": 30, "b": 30}, val={"a": 5, "b": 5}, test={"a": 5, "b": 5}
    )
    shutil.copy(tmp_path / "test/a/000.jpg", tmp_path / "train/a/x.jpg")
    shutil.copy(tmp_path / "test/a/001.jpg", tmp_path / "val/b/y.jpg")
    shutil.copy(tmp_path / "val/b/000.jpg", tmp_path / "train/b/z.jpg")
    shutil.copy(tmp_path / "train/b/000.jpg", tmp_path / "train/b/twice.jpg")
    dataset = load_dataset(folder)
    parts = Counter(e.split for e in dataset.examples)
    assert parts == {"training": 61, "validation": 10, "testing": 10}
    assert not {"x.jpg", "y.jpg", "z.jpg"} & {os.path.basename(e.path) for e in dataset.examples}
    assert dataset.warnings == [
        "3 photos are also in another split and left out of training and validation (testing comes "
        "first, then validation): x.jpg, z.jpg, y.jpg",
        "2 files have the same content in two classes: a/001.jpg, b/y.jpg",
    ]


def test_a_class_without_training_photos_is_refused(tmp_path):
    folder = split_folders(tmp_path, train={"a": 5, "b": 5}, test={"a": 5, "b": 5, "c": 5})
    with pytest.raises(DatasetError, match="no image of c is for training, only for testing"):
        load_dataset(folder)


@pytest.mark.parametrize(
    "folders",
    [
        {"train": {"a": 1}, "other": {"a": 1}},
        {"train": {"a": 2}, "test": {"b": 2}},
        {"train": {}, "test": {}},
    ],
)
def test_other_layouts_are_class_folders(tmp_path, folders):
    split_folders(tmp_path, **folders)
    for name in folders:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + name.encode())
    dataset = load_dataset(str(tmp_path), SplitOptions(testing=0, validation=0))
    assert dataset.labels == sorted(folders)
    with pytest.raises(DatasetError, match="gives no splits"):
        load_dataset(str(tmp_path), SplitOptions(by="folders"))


def test_photos_without_a_class_are_warned_of(tmp_path):
    folder = split_folders(tmp_path, train={"a": 30, "b": 30})
    (tmp_path / "test").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "test" / name).write_bytes(b"\xff\xd8\xff\xe0")
    scan = open_source(folder).scan()
    assert {label: len(photos) for label, photos in scan.photos.items()} == {"a": 30, "b": 30}
    assert scan.warnings == [
        f"2 files in {tmp_path}/test lie in no class folder and are left out: 1.jpg, 2.jpg"
    ]


def test_labels_must_match_to_the_letter(tmp_path):
    folder = split_folders(tmp_path, train={"Cat": 3, "dog": 3}, test={"cat": 3, "dog": 3})
    with pytest.raises(DatasetError, match=r"no image of cat is for training.* the name of 'Cat'"):
        load_dataset(folder)
