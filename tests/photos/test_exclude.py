"""exclude.py: the photos that the user lists are left out."""

import os

import pytest

from retraining.photos.dataset import load_dataset
from retraining.photos.exclude import read_listed
from retraining.photos.source import DatasetError, ScanOptions
from retraining.system.text import table
from tests.photos.files import fill, write


def test_listed_photos_are_left_out_however_they_are_spelled(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    fill(photos, {"a": 20, "b": 25})
    (tmp_path / "link").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    listed = ["b/000.jpg", "photos/b/001.jpg", str(photos / "b" / "002.jpg")]
    listed += [
        "./photos/../photos/b//003.jpg",
        str(tmp_path / "link" / "b" / "004.jpg"),
        "b/no.jpg",
    ]
    for folder in ("photos", str(photos), "link"):
        dataset = load_dataset(folder, scan=ScanOptions(excluded=listed))
        left = sorted(os.path.basename(e.path) for e in dataset.examples if e.label == "b")
        assert left == [f"{n:03d}.jpg" for n in range(5, 25)]
        assert dataset.excluded == 5
        assert dataset.warnings == [f"1 excluded path matches no photo in {folder}: b/no.jpg"]


def test_a_class_that_becomes_small_is_warned_of_and_an_empty_one_refused(tmp_path):
    fill(tmp_path, {"a": 20, "b": 20})
    (warning,) = load_dataset(str(tmp_path), scan=ScanOptions(excluded=["a/000.jpg"])).warnings
    assert warning.startswith("a has only 19 images")
    with pytest.raises(DatasetError, match="all photos of a are excluded"):
        load_dataset(
            str(tmp_path), scan=ScanOptions(excluded=[f"a/{n:03d}.jpg" for n in range(20)])
        )


def test_excluding_moves_no_other_photo_to_another_split(tmp_path):
    fill(tmp_path, {"a": 40, "b": 40})
    before, after = (
        load_dataset(str(tmp_path)),
        load_dataset(str(tmp_path), scan=ScanOptions(excluded=["a/001.jpg"])),
    )
    assert [e for e in before.examples if not e.path.endswith("a/001.jpg")] == after.examples


def test_lists_of_paths(tmp_path):
    path = tmp_path / "list"
    path.write_bytes(b"\xef\xbb\xbf# a comment\r\n\r\n  \na b\xff.jpg\r\nx.jpg\ty\n c.jpg")
    names = ["# a comment", os.fsdecode(b"a b\xff.jpg"), "x.jpg\ty", " c.jpg"]
    assert read_listed(path) == names
    path.write_text("path\tgiven\tsuggested\tscore\treason\na.jpg\tb\tc\t0.9\tlabel\n#d.jpg\tb\n")
    assert read_listed(path) == ["a.jpg", "#d.jpg"]
    path.write_bytes(b"")
    assert read_listed(path) == []


def test_a_list_that_is_none_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot read the list"):
        read_listed(tmp_path)
    (tmp_path / "zeros").write_bytes(bytes(5))
    with pytest.raises(DatasetError, match=r"line 1 of the list .* is not text in UTF-8"):
        read_listed(tmp_path / "zeros")


def test_a_line_with_a_hash_is_a_photo_if_it_names_one_and_else_a_comment(tmp_path):
    fill(tmp_path, {"#A": 21, "b": 20})
    listed = ["# A/001.jpg", "#A/001.jpg", "#b/001.jpg", "#"]
    dataset = load_dataset(str(tmp_path), scan=ScanOptions(excluded=listed))
    assert dataset.excluded == 1
    assert f"{tmp_path}/#A/001.jpg" not in [example.path for example in dataset.examples]
    assert dataset.warnings == []


def test_escaped_and_literal_names_are_found(tmp_path):
    names = ["tab\there.jpg", "back\\there.jpg", "lin\ne\\.jpg", "plain.jpg", "other.jpg"]
    write(tmp_path, "a", names)
    write(tmp_path, "b", ["1.jpg"])
    listed = ["a/tab\\there.jpg", "a/back\\there.jpg", "a/lin\\ne\\\\.jpg"]
    dataset = load_dataset(str(tmp_path), scan=ScanOptions(excluded=listed))
    assert dataset.excluded == 3
    left = {os.path.basename(e.path) for e in dataset.examples if e.label == "a"}
    assert left == {"plain.jpg", "other.jpg"}


def test_a_table_names_exactly_its_photos(tmp_path):
    names = ["a\tb.jpg", "a\\tb.jpg", "a\\\\tb.jpg", "a\\b.jpg", "other.jpg"]
    write(tmp_path, "a", names)
    write(tmp_path, "b", ["1.jpg"])
    for name in names[:4]:
        (tmp_path / "list.tsv").write_bytes(table([["path", "reason"], [f"a/{name}", "doubtful"]]))
        excluded = tuple(read_listed(tmp_path / "list.tsv"))
        dataset = load_dataset(str(tmp_path), scan=ScanOptions(excluded=excluded))
        left = {os.path.basename(e.path) for e in dataset.examples if e.label == "a"}
        assert left == {*names} - {name}
