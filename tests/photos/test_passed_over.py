"""passed_over.py: one line on everything that a scan leaves out."""

import os

import pytest

from retraining.photos.dataset import load_dataset
from retraining.photos.folder import FolderSource
from retraining.photos.passed_over import EMPTY, LOOSE, OTHER, PassedOver
from retraining.photos.source import DatasetError, ScanOptions
from tests.photos.files import JPEG, fill, split_folders, write


def scan(folder, **options):
    return FolderSource(str(folder)).scan(ScanOptions(**options))


def line_of(folder, **options):
    (line,) = scan(folder, **options).warnings
    return line


def test_the_line_names_the_first_of_each_kind():
    passed = PassedOver(FolderSource("in"))
    assert passed.lines() == []
    passed.add(OTHER, ["in/a/x.txt"])
    passed.add(EMPTY, [f"in/{n}" for n in range(5)])
    passed.add(EMPTY, ["in/0"])
    passed.add(LOOSE, [])
    assert passed.lines() == [
        "passed over 5 empty folders (0, 1, 2, ...); 1 file that is not an image (a/x.txt)"
    ]


def test_nothing_vanishes_in_silence(tmp_path):
    fill(tmp_path, {"a": 3, "b": 3, "a/deeper": 1})
    (tmp_path / "New folder").mkdir()
    (tmp_path / "tulips").symlink_to("/nowhere/tulips")
    (tmp_path / "loop").symlink_to("loop")
    write(tmp_path, ".", ["1.jpg"])
    (tmp_path / "named_so").write_bytes(JPEG)
    for name in ("README.txt", "a/notes.txt", "b/labels.json"):
        (tmp_path / name).write_text("text")
    assert line_of(tmp_path) == (
        "passed over 2 photos outside the class folders (1.jpg, named_so); "
        "1 link that leads nowhere (tulips); "
        "1 folder that cannot be read (loop: Too many levels of symbolic links); "
        "1 empty folder (New folder); "
        "1 folder in a class folder (a/deeper; `PhotoSettings.recursive` also takes the photos in "
        "them); 2 files that are not images (a/notes.txt, b/labels.json)"
    )


def test_what_lies_on_the_way_to_the_class_folders_is_named(tmp_path):
    fill(tmp_path / "data" / "pets", {"a": 1, "b": 1})
    for folder in ("New folder", "data/empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "owl").symlink_to("/nowhere")
    assert line_of(tmp_path) == (
        "passed over 1 link that leads nowhere (data/owl); 2 empty folders (data/empty, New folder)"
    )


def test_photos_that_icloud_keeps_are_told(tmp_path):
    fill(tmp_path, {"a": 1, "b": 1})
    write(tmp_path, "b", [".1.jpg.icloud"])
    found = scan(tmp_path)
    assert [(image.path, image.reason, image.claimed) for image in found.bad] == [
        (
            os.path.join(tmp_path, "b", ".1.jpg.icloud"),
            "stands for a photo in iCloud; download the photo first",
            True,
        )
    ]
    (tmp_path / "b" / "000.jpg").unlink()
    with pytest.raises(DatasetError, match=r"/b holds no images \(.*stands for a photo in iCloud"):
        load_dataset(str(tmp_path))


def test_many_folders_are_one_line(tmp_path):
    fill(tmp_path, {f"{n:03d}/deeper": 1 for n in range(200)} | {f"{n:03d}": 1 for n in range(200)})
    assert line_of(tmp_path).startswith(
        "passed over 200 folders in class folders (000/deeper, 001/deeper, 002/deeper, ...; "
    )


def test_a_large_archive_beside_class_folders_is_no_photo(tmp_path):
    fill(tmp_path, {"a": 1, "b": 1})
    with open(tmp_path / "photos.zip", "wb") as file:
        file.truncate(1 << 32)
    assert scan(tmp_path).warnings == []


def test_a_class_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 1, "b": 1, "locked": 1})
    files_below = FolderSource.files_below

    def denied(self, folder, recursive):
        if folder.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return files_below(self, folder, recursive)

    monkeypatch.setattr(FolderSource, "files_below", denied)
    assert line_of(tmp_path) == (
        "passed over 1 folder that cannot be read (locked: Permission denied)"
    )
    said = (
        r"`PhotoSettings.classes` names locked, which has no photos; passed over 1 folder that "
        r"cannot be read \(locked: Permission denied\)$"
    )
    with pytest.raises(DatasetError, match=said):
        scan(tmp_path, classes=("a", "locked"))


def test_no_photo_of_a_class_is_looked_at_for_the_account(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 3, "b": 3})
    write(tmp_path, ".", ["1.jpg", "2.jpg"])
    looked = []
    look_at = FolderSource.look_at
    monkeypatch.setattr(
        FolderSource,
        "look_at",
        lambda self, name, most: looked.append(name) or look_at(self, name, most),
    )
    scan(tmp_path)
    assert sorted(looked) == sorted(
        os.path.join(tmp_path, label, f"{n:03d}.jpg") for label in "ab" for n in range(3)
    )


@pytest.mark.parametrize(
    "name",
    [
        *("__MACOSX", "@eaDir", ".thumbnails", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found"),
        "System Volume Information",
    ],
)
@pytest.mark.parametrize("split", [False, True])
def test_folders_of_systems_are_no_classes(tmp_path, name, split):
    if split:
        split_folders(tmp_path, train={"a": 2, "b": 2}, test={"a": 2, "b": 2})
    else:
        fill(tmp_path, {"a": 2, "b": 2})
    write(tmp_path, name, ["1.jpg", "x.txt"])
    write(tmp_path, f"{'train/' if split else ''}a/{name}", ["2.jpg"])
    found = scan(tmp_path, recursive=True)
    assert list(found.photos) == ["a", "b"]
    assert (found.warnings, found.bad) == ([], [])
    assert not any(name in photo.name for photo in found.photos["a"])


def test_an_empty_folder_beside_split_folders_does_not_disturb_them(tmp_path):
    split_folders(tmp_path, train={"a": 2, "b": 2}, test={"a": 2, "b": 2})
    (tmp_path / "New folder").mkdir()
    found = scan(tmp_path)
    assert {photo.split for photo in found.photos["a"]} == {"training", "testing"}
    assert found.warnings == ["passed over 1 empty folder (New folder)"]


@pytest.mark.parametrize("names", [["empty"], ["empty", "also empty"]])
def test_empty_folders_do_not_make_two_classes(tmp_path, names):
    fill(tmp_path, {"a": 2})
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(DatasetError, match=r"has only one \(a\); passed over \d empty folder"):
        scan(tmp_path)
