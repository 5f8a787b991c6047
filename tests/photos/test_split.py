"""split.py: the split of each photo, by its content or its path."""

import hashlib
import os
import shutil
from collections import Counter

import pytest

from retraining.photos.dataset import load_dataset
from retraining.photos.source import DatasetError
from retraining.photos.split import SplitOptions, percentage
from tests.photos.files import JPEG, fill, write


def splits(dataset):
    return {os.path.basename(e.path): e.split for e in dataset.examples}


def test_split_by_content_table(tmp_path):
    """Which split each content goes to never changes: these are literal values."""
    fill(tmp_path, {"a": 40, "b": 40})
    found = load_dataset(str(tmp_path)).examples
    table = {
        part: [e.path[len(str(tmp_path)) + 1 : -4] for e in found if e.split == part]
        for part in ("validation", "testing")
    }
    assert table == EXPECTED_SPLITS
    for example in found:
        content = JPEG + os.path.relpath(example.path, tmp_path).encode()
        assert example.key == hashlib.sha1(content).hexdigest()


EXPECTED_SPLITS = {
    "validation": ["a/025", "a/027", "a/035", "b/001", "b/011", "b/014", "b/023", "b/025", "b/032"],
    "testing": ["a/000", "a/012", "a/014", "a/023", "a/024", "a/032", "b/008", "b/027", "b/039"],
}


def test_split_by_content_survives_moving_and_renaming(tmp_path):
    fill(tmp_path / "here", {"a": 60, "b": 60})
    before = {e.key: e.split for e in load_dataset(str(tmp_path / "here")).examples}
    shutil.move(tmp_path / "here", tmp_path / "there")
    os.rename(tmp_path / "there" / "a", tmp_path / "there" / "new name")
    for name in os.listdir(tmp_path / "there" / "b"):
        os.rename(tmp_path / "there" / "b" / name, tmp_path / "there" / "b" / f"x{name}")
    after = {e.key: e.split for e in load_dataset(str(tmp_path / "there")).examples}
    assert after == before
    assert len(set(before.values())) == 3


@pytest.mark.parametrize("count", [3, 4, 10])
def test_every_class_of_three_has_all_splits(tmp_path, count):
    labels = [f"class{n}" for n in range(12)]
    fill(tmp_path, dict.fromkeys(labels, count))
    found = Counter((e.label, e.split) for e in load_dataset(str(tmp_path)).examples)
    for label in labels:
        for part in ("training", "validation", "testing"):
            assert found[label, part] >= 1


@pytest.mark.parametrize(("count", "parts"), [(1, {"training"}), (2, {"training", "testing"})])
def test_tiny_classes_train_first(tmp_path, count, parts):
    labels = [f"class{n}" for n in range(12)]
    fill(tmp_path, dict.fromkeys(labels, count))
    examples = load_dataset(str(tmp_path)).examples
    for label in labels:
        assert {e.split for e in examples if e.label == label} == parts


def test_a_split_of_zero_percent_stays_empty(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5})
    dataset = load_dataset(str(tmp_path), SplitOptions(validation=20, testing=0))
    assert Counter(e.split for e in dataset.examples)["testing"] == 0
    assert dataset.split("validation")


def test_percentages_are_kept(tmp_path):
    fill(tmp_path, {"a": 1000, "b": 1000})
    dataset = load_dataset(str(tmp_path), SplitOptions(validation=30, testing=15))
    shares = Counter(e.split for e in dataset.examples)
    assert abs(shares["validation"] / 2000 - 0.30) < 0.04
    assert abs(shares["testing"] / 2000 - 0.15) < 0.04


def fill_with_variants(folder):
    """Two classes of 40 photos, and 15 subjects of four variants each, one with a copy in `b`."""
    fill(folder, {"a": 40, "b": 40})
    for n in range(15):
        names = [f"subject{n}_nohash_{v}.jpg" for v in range(4)]
        write(folder, "a", names)
        shutil.copy(folder / "a" / names[2], folder / "b" / f"copy{n}.jpg")


def test_copies_and_variants_share_a_split(tmp_path):
    fill_with_variants(tmp_path)
    dataset = load_dataset(str(tmp_path))
    found = splits(dataset)
    for n in range(15):
        names = [f"subject{n}_nohash_{v}.jpg" for v in range(4)]
        assert len({found[name] for name in [*names, f"copy{n}.jpg"]}) == 1
    assert len({found[f"copy{n}.jpg"] for n in range(15)}) > 1
    assert "15 files" not in dataset.warnings
    (told,) = [w for w in dataset.warnings if "30 files have the same content in two" in w]
    assert told.endswith(": a/subject0_nohash_2.jpg, b/copy0.jpg, a/subject10_nohash_2.jpg, ...")


def test_a_copy_in_another_class_does_not_cost_a_class_its_training_image(tmp_path):
    for n in range(40):
        folder = tmp_path / str(n)
        write(folder, "b", [f"{n}-{letter}.jpg" for letter in "xyzw"])
        (folder / "a").mkdir()
        shutil.copy(folder / "b" / f"{n}-x.jpg", folder / "a" / "copy.jpg")
        found = Counter((e.label, e.split) for e in load_dataset(str(folder)).examples)
        assert found["a", "training"] == 1
        assert {split for label, split in found if label == "b"} == {
            *("training", "validation", "testing")
        }


STRATIFIED = SplitOptions(stratified=True)


def test_a_stratified_split_is_exact_in_each_class(tmp_path):
    fill(tmp_path, {"a": 100, "b": 87, "c": 34, "d": 5, "e": 3})
    dataset = load_dataset(str(tmp_path), STRATIFIED)
    counts = Counter((e.label, e.split) for e in dataset.examples)
    table = {
        label: tuple(counts[label, part] for part in ("training", "validation", "testing"))
        for label in dataset.labels
    }
    # 87: 69.6, 8.7, 8.7; 34: 27.2, 3.4, 3.4; the smallest have one of each all the same.
    assert table == {"a": (80, 10, 10), "b": (69, 9, 9), "c": (27, 3, 4), "d": (3, 1, 1),
                     "e": (1, 1, 1)}  # fmt: skip
    other = load_dataset(str(tmp_path), SplitOptions(20, 5, stratified=True))
    counts = Counter((e.label, e.split) for e in other.examples)
    assert (counts["a", "validation"], counts["a", "testing"]) == (20, 5)
    assert not any(
        e.split == "testing"
        for e in load_dataset(str(tmp_path), SplitOptions(10, 0, stratified=True)).examples
    )


def test_a_stratified_split_goes_by_content_not_by_name(tmp_path):
    fill(tmp_path / "here", {"a": 60, "b": 45})
    before = {e.key: e.split for e in load_dataset(str(tmp_path / "here"), STRATIFIED).examples}
    shutil.move(tmp_path / "here", tmp_path / "there")
    os.rename(tmp_path / "there" / "a", tmp_path / "there" / "z")
    for name in os.listdir(tmp_path / "there" / "b"):
        os.rename(tmp_path / "there" / "b" / name, tmp_path / "there" / "b" / f"x{name[::-1]}.jpg")
    after = {e.key: e.split for e in load_dataset(str(tmp_path / "there"), STRATIFIED).examples}
    assert after == before


def test_copies_and_variants_share_a_stratified_split(tmp_path):
    fill_with_variants(tmp_path)
    shutil.copy(tmp_path / "b" / "007.jpg", tmp_path / "b" / "same.jpg")
    dataset = load_dataset(str(tmp_path), STRATIFIED)
    found = splits(dataset)
    by_key = {}
    for example in dataset.examples:
        by_key.setdefault(example.key, set()).add(example.split)
    assert all(len(parts) == 1 for parts in by_key.values())
    for n in range(15):
        assert len({found[f"subject{n}_nohash_{v}.jpg"] for v in range(4)}) == 1
    counts = Counter((e.label, e.split) for e in dataset.examples)
    assert [counts["a", part] for part in ("training", "validation", "testing")] == [80, 10, 10]
    assert [counts["b", part] for part in ("training", "validation", "testing")] == [45, 5, 6]


def test_split_by_path_is_the_classics(tmp_path, monkeypatch):
    """A literal table, computed with the classic's own lines for `flowers/daisy/...`."""
    monkeypatch.chdir(tmp_path)
    for label in ("daisy", "roses"):
        write(tmp_path / "flowers", label, [f"{n}.jpg" for n in range(60)])
        write(tmp_path / "flowers", label, [f"same_nohash_{n}.jpg" for n in range(3)])
    dataset = load_dataset("flowers", SplitOptions(by="path"))
    for example in dataset.examples:
        assert example.split == classic_split(example.path, 10, 10)
    table = sorted(e.path[8:-4] for e in dataset.examples if e.split == "testing")
    assert table == EXPECTED_TESTING


EXPECTED_TESTING = [
    "daisy/13",
    "daisy/28",
    "daisy/44",
    "daisy/49",
    "daisy/55",
    "roses/31",
    "roses/32",
    "roses/43",
    "roses/48",
    "roses/49",
    "roses/56",
]


def classic_split(file_name, testing_percentage, validation_percentage):
    """As published in image_retraining/retrain.py, `create_image_lists`."""
    import re

    max_images = 2**27 - 1
    hash_name = re.sub(r"_nohash_.*$", "", file_name)
    hash_name_hashed = hashlib.sha1(hash_name.encode("utf-8")).hexdigest()
    percentage_hash = (int(hash_name_hashed, 16) % (max_images + 1)) * (100.0 / max_images)
    if percentage_hash < validation_percentage:
        return "validation"
    if percentage_hash < testing_percentage + validation_percentage:
        return "testing"
    return "training"


def test_percentage_of_known_text():
    assert percentage(b"flower_photos/daisy/100080576_f52e8ee070_n.jpg") == pytest.approx(
        64.6538165558
    )


def test_split_by_path_without_training_images_is_refused(tmp_path):
    fill(tmp_path, {"a": 1, "b": 1, "c": 1, "d": 1})
    with pytest.raises(DatasetError, match="is left for training"):
        load_dataset(str(tmp_path), SplitOptions(validation=49, testing=50, by="path"))
