"""dataset.py: classes without photos, files that cannot be read, splits that the source gives."""

import os
import shutil
from collections import Counter

import pytest

from retraining.photos.bounds import EMPTY
from retraining.photos.dataset import load_dataset
from retraining.photos.registry import hash_file
from retraining.photos.source import BadImage, DatasetError
from retraining.photos.split import SplitOptions
from tests.photos.files import fill, split_folders


def test_a_class_without_images_is_refused(tmp_path):
    fill(tmp_path, {"a": 3, "b": 3, "empty": 0})
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(DatasetError, match="empty holds no images"):
        load_dataset(str(tmp_path))


def test_what_cannot_be_read_is_left_out_and_named(tmp_path):
    fill(tmp_path, {"a": 20, "b": 20})
    (tmp_path / "a" / "empty.jpg").write_bytes(b"")
    (tmp_path / "a" / "text.PNG").write_text("text")
    (tmp_path / "a" / "broken link.jpg").symlink_to("nowhere")
    (tmp_path / "a" / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    with open(tmp_path / "a" / "huge.bmp", "wb") as file:  # hashing it would take minutes
        file.write(b"BM")
        file.truncate(1 << 40)
    dataset = load_dataset(str(tmp_path))
    assert len(dataset.examples) == 40
    assert [(os.path.basename(image.path), image.reason) for image in dataset.bad] == [
        ("broken link.jpg", "cannot be read: No such file or directory"),
        ("empty.jpg", EMPTY),
        (
            "huge.bmp",
            "has 1099511627776 bytes, more than any image that `max_pixels` allows",
        ),
        ("loop.jpg", "cannot be read: Too many levels of symbolic links"),
        ("pipe.jpg", "is a pipe, a socket or a device, not an image file"),
        ("text.PNG", "is not an image of a known format"),
    ]
    assert all(image.claimed for image in dataset.bad)


def test_a_file_that_vanishes_while_it_is_hashed_is_left_out(tmp_path):
    fill(tmp_path, {"a": 20, "b": 20})

    def key_of(photo):
        if photo.name.endswith("a/003.jpg"):
            os.remove(photo.name)
        return hash_file(photo.name)

    dataset = load_dataset(str(tmp_path), key_of=key_of)
    assert len(dataset.examples) == 39
    gone = str(tmp_path / "a" / "003.jpg")
    assert dataset.bad == [BadImage(gone, "cannot be read: No such file or directory")]


def test_a_class_of_broken_images_says_why(tmp_path):
    fill(tmp_path, {"a": 20, "b": 0})
    (tmp_path / "b" / "x.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"b holds no images \(.*x.jpg is empty; if a cloud"):
        load_dataset(str(tmp_path))


def test_a_small_class_is_warned_of(tmp_path):
    fill(tmp_path, {"small": 19, "enough": 20})
    assert load_dataset(str(tmp_path)).warnings == [
        "small has only 19 images; 20 or more give a better model"
    ]


def test_many_small_classes_are_warned_of_in_one_line(tmp_path):
    fill(tmp_path, {f"c{n}": 3 for n in range(6)})
    dataset = load_dataset(str(tmp_path))
    assert dataset.warnings[0] == (
        "6 classes have fewer than 20 images: c0 (3), c1 (3), c2 (3), ...; add photos of each to "
        "get a better model"
    )
    assert not any("has only" in line for line in dataset.warnings)


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
    assert dataset.warnings == ["1 class without photos for validation: dog"]
    assert (
        dataset.note == "using the given splits: 55 for training, 4 for validation, 13 for testing"
    )


def test_a_missing_split_is_cut_from_training(tmp_path):
    folder = split_folders(tmp_path, train={"a": 200, "b": 200}, test={"a": 3, "b": 3})
    dataset = load_dataset(folder)
    parts = Counter(e.split for e in dataset.examples)
    assert parts["testing"] == 6
    assert 20 <= parts["validation"] <= 60
    assert dataset.note.endswith(
        "400 for training, 6 for testing; validation taken from the training photos"
    )
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


def test_a_class_that_copies_leave_empty_is_refused(tmp_path):
    folder = split_folders(tmp_path, train={"a": 5, "b": 5, "c": 1}, test={"a": 5, "b": 5})
    shutil.copy(tmp_path / "test/a/000.jpg", tmp_path / "train/c/000.jpg")
    with pytest.raises(DatasetError, match="no image of c is for training; add some, or pool"):
        load_dataset(folder)
