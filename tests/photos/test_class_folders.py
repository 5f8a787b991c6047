"""class_folders.py: which folders are classes, and which are splits."""

import os
from collections import Counter

import pytest

from retraining.photos.dataset import load_dataset
from retraining.photos.registry import open_source
from retraining.photos.source import BadImage, DatasetError, ScanOptions
from retraining.photos.split import SplitOptions
from tests.photos.files import JPEG, fill, split_folders, write


def test_labels_keep_the_folders_spelling(tmp_path):
    fill(tmp_path, {"Foo-Bar_1": 3, "Ünïcode Ωmega": 3, "c++": 3, "猫": 3, "犬": 3})
    dataset = load_dataset(str(tmp_path))
    assert dataset.labels == ["Foo-Bar_1", "c++", "Ünïcode Ωmega", "犬", "猫"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("Foo-Bar", "foo bar"), ("Rose", "rose"), ("daisy", "daisy "), ("caf\u00e9", "cafe\u0301")],
)
def test_folders_that_look_alike_are_classes_of_their_own(tmp_path, one, other):
    fill(tmp_path, {one: 20, other: 20})
    dataset = load_dataset(str(tmp_path))
    assert dataset.labels == sorted([one, other])
    (warning,) = dataset.warnings
    assert "are easily mixed up; the run treats each as a separate class" in warning


@pytest.mark.parametrize("counts", [{}, {"only": 5}])
def test_fewer_than_two_classes_are_refused(tmp_path, counts):
    fill(tmp_path, counts)
    with pytest.raises(DatasetError, match="at least two class folders"):
        load_dataset(str(tmp_path))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot read the image folder"):
        load_dataset(str(tmp_path / "nowhere"))


def test_a_label_that_is_no_line_is_refused(tmp_path):
    fill(tmp_path, {"a": 3, "b\nc": 3})
    with pytest.raises(DatasetError, match="labels file"):
        load_dataset(str(tmp_path))


def test_only_visible_image_files_count(tmp_path):
    fill(tmp_path, {"a": 20, "b": 20, ".hidden": 5})
    (tmp_path / "a" / ".hidden.jpg").write_bytes(JPEG)
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"thumbs")
    (tmp_path / "a" / "folder.jpg").mkdir()
    (tmp_path / "a" / "list.txt").write_text("text")
    (tmp_path / "a" / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n")
    scan = open_source(str(tmp_path)).scan()
    photos, bad, warnings = scan.names, scan.bad, scan.warnings
    assert sorted(photos) == ["a", "b"]
    assert len(photos["a"]) == 21
    assert photos["a"][-1].endswith("picture.txt")
    assert bad == [
        BadImage(str(tmp_path / "a" / "list.txt"), "is not an image of a known format", False)
    ]
    assert warnings == [
        "passed over 1 folder in a class folder (a/folder.jpg; `PhotoSettings.recursive` also "
        "takes the photos in them); 1 file that is not an image (a/list.txt)"
    ]


def test_photos_below_class_folders_are_taken_when_asked_for(tmp_path):
    fill(tmp_path, {"a": 20, "b": 20, "a/deep/er": 3, "a/.hidden": 2})
    (tmp_path / "a" / "deep" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "linked").symlink_to(tmp_path / "a" / "deep" / "er")
    scan = open_source(str(tmp_path)).scan(ScanOptions(recursive=True))
    photos, bad, warnings = scan.names, scan.bad, scan.warnings
    assert [len(photos[label]) for label in ("a", "b")] == [23, 23]
    assert photos["a"][-1].endswith("a/deep/er/002.jpg")
    assert (bad, warnings) == ([], [])
    scan = open_source(str(tmp_path)).scan()
    photos, warnings = scan.names, scan.warnings
    assert [len(photos[label]) for label in ("a", "b")] == [20, 20]
    assert warnings == [
        "passed over 2 folders in class folders (a/deep, b/linked; `PhotoSettings.recursive` also "
        "takes the photos in them)"
    ]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a/x/1.jpg", "b/1.jpg"], "/a holds no images; `PhotoSettings.recursive` also reads"),
        (["train/a/1.jpg", "b/1.jpg"], "train looks like a split folder, but b does not; put all"),
        (
            ["in/a/1.jpg", "in/b/1.jpg", "in/2.jpg"],
            "has only one (in); did you mean `PhotoSettings.image_dir` ",
        ),
        (["in/a/1.jpg", "in/2.jpg"], "has only one (in)"),
        (["in/1.jpg", "2.jpg"], "has only one (in); it holds images itself"),
    ],
)
def test_a_folder_of_another_layout_is_explained(tmp_path, files, said):
    for name in files:
        folder, file = os.path.split(name)
        write(tmp_path, folder, [file])
    with pytest.raises(DatasetError) as caught:
        load_dataset(str(tmp_path))
    assert said in str(caught.value)
    assert "remove" not in str(caught.value)
    assert str(caught.value).endswith(f"image_dir` {tmp_path}/in?") == ("did you mean" in said)


@pytest.mark.parametrize(
    ("name", "head", "said"),
    [
        ("photos", b"PK\3\4", "is an archive; rename it so that its name ends in .zip"),
        ("photos.gz", b"\x1f\x8b\x08", "is an archive; rename it so that its name ends in .tgz"),
        ("photos", b"x" * 257 + b"ustar\0", "is an archive; rename it so that .* in .tar"),
        ("photos.7z", b"7z\xbc\xaf'\x1c", "is an archive; unpack it, and give the unpacked folder"),
        ("photos.zip", b"", "is no archive: it is empty; download it again"),
        (
            "photos.tgz",
            b"\n <!DOCTYPE html>",
            "is no archive: it is not .* but a web page; download",
        ),
        ("photos.csv", b"path,label", "is a file; give a table of photos as `PhotoSettings.photo_"),
        ("a.jpg", b"\xff\xd8\xff", r"cannot read .* \(Not a directory\); it must be a folder"),
    ],
)
def test_a_file_is_told_from_a_folder(tmp_path, name, head, said):
    (tmp_path / name).write_bytes(head + b"\xff\n\xff" if head else b"")
    with pytest.raises(DatasetError, match=said):
        open_source(str(tmp_path / name)).scan()


def test_a_folder_of_archives_is_explained(tmp_path):
    for name in ("p-1-002.zip", "p-1-001.zip", "notes.txt"):
        (tmp_path / name).write_bytes(b"PK\3\4")
    said = r"has none; it holds archives \(p-1-001.zip, p-1-002.zip\): give one of them as"
    with pytest.raises(DatasetError, match=said):
        open_source(str(tmp_path)).scan()


@pytest.mark.parametrize("head", [b"PK\3\4", b"\x1f\x8b\x08", b"x" * 257 + b"ustar\0"])
def test_an_archive_is_no_table(tmp_path, head):
    (tmp_path / "photos").write_bytes(head + b"\xff\n\xff")
    with pytest.raises(DatasetError, match=f"^{tmp_path}/photos is an archive; unpack it, and"):
        open_source("", str(tmp_path / "photos")).scan()


def test_path_takes_each_folder_for_a_class(tmp_path):
    folder = split_folders(tmp_path, train={"a": 5, "b": 5}, test={"a": 5, "b": 5})
    with pytest.raises(DatasetError, match=r"the class folder .*/test holds no images"):
        load_dataset(folder, SplitOptions(by="path"))


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
        "passed over 2 photos outside the class folders (test/1.jpg, test/2.jpg)"
    ]


def test_split_folders_may_lie_in_folders_of_the_same_name(tmp_path):
    split_folders(tmp_path / "training_set", training_set={"a": 2, "b": 3})
    split_folders(tmp_path / "test_set", test_set={"a": 1, "b": 1})
    split_folders(tmp_path, val={"val": 2, "a": 1})  # which are classes
    write(tmp_path / "test_set", ".", ["1.jpg"])
    scan = open_source(str(tmp_path)).scan()
    splits = Counter((p.label, p.split) for photos in scan.photos.values() for p in photos)
    assert splits == {
        ("a", "training"): 2,
        ("b", "training"): 3,
        ("a", "testing"): 1,
        ("b", "testing"): 1,
        ("a", "validation"): 1,
        ("val", "validation"): 2,
    }
    assert scan.warnings == ["passed over 1 photo outside the class folders (test_set/1.jpg)"]


def test_photos_in_such_a_folder_are_named(tmp_path):
    split_folders(tmp_path / "train", train={"a": 2, "b": 3})
    write(tmp_path / "test" / "test", ".", ["1.jpg"])
    scan = open_source(str(tmp_path)).scan()
    assert list(scan.photos) == ["a", "b"]
    assert scan.warnings == ["passed over 1 photo outside the class folders (test/test/1.jpg)"]


def test_a_folder_of_the_name_of_its_class_may_hold_the_classes(tmp_path):
    split_folders(tmp_path / "seg_train", seg_train={"a": 2, "b": 3})
    split_folders(tmp_path / "seg_pred", seg_pred={"a": 2, "b": 3})
    said = (
        r"the class folder .*/seg_pred holds no images; `PhotoSettings.recursive` also reads the "
        r"folders within it; if .*/seg_pred/seg_pred holds class folders, give it as "
        r"`PhotoSettings.image_dir`$"
    )
    with pytest.raises(DatasetError, match=said):
        load_dataset(str(tmp_path))


def test_labels_must_match_to_the_letter(tmp_path):
    folder = split_folders(tmp_path, train={"Cat": 3, "dog": 3}, test={"cat": 3, "dog": 3})
    with pytest.raises(DatasetError, match=r"no image of cat is for training.* the name of 'Cat'"):
        load_dataset(folder)


def test_labels_that_look_the_same_are_told_apart(tmp_path):
    folder = split_folders(tmp_path, train={"caf\u00e9": 3, "b": 3}, test={"cafe\u0301": 3, "b": 3})
    said = (
        r"no image of cafe\u0301 is for training.* the name of 'caf\\xe9' if it is the same class"
    )
    with pytest.raises(DatasetError, match=said):
        load_dataset(folder)


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_links_that_lead_back_are_no_classes_and_not_entered(tmp_path):
    fill(tmp_path, {"a": 2, "b": 1})
    (tmp_path / "self").symlink_to(".")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "b" / "top").symlink_to("/")
    (tmp_path / "b" / "other").symlink_to("../a")
    scan = open_source(str(tmp_path)).scan(ScanOptions(recursive=True))
    assert {label: len(photos) for label, photos in scan.photos.items()} == {"a": 2, "b": 3}
    assert scan.warnings == []


# -- class folders that lie deeper -------------------------------------------------------------


def described(tmp_path, **options):
    scan = open_source(str(tmp_path)).scan(ScanOptions(**options))
    return {label: len(photos) for label, photos in scan.photos.items()}, scan.notes, scan.warnings


@pytest.mark.parametrize("inner", ["pets", "data/pets", "a/b/c"])
@pytest.mark.parametrize("recursive", [False, True])
def test_the_only_folder_may_hold_the_class_folders(tmp_path, inner, recursive):
    fill(tmp_path / inner, {"a": 2, "b": 3})
    (tmp_path / "README.txt").write_text("text")
    (tmp_path / "New folder").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    note = f"taking the photos in {tmp_path}/{inner}, the only folder in {tmp_path}"
    assert described(tmp_path, recursive=recursive)[:2] == ({"a": 2, "b": 3}, [note])


def test_the_only_folder_may_hold_split_folders(tmp_path):
    split_folders(tmp_path / "pets", train={"a": 2, "b": 2}, test={"a": 1, "b": 1})
    scan = open_source(str(tmp_path)).scan()
    assert [photo.split for photo in scan.photos["a"]] == ["testing", "training", "training"]
    assert scan.folders["a"] == [f"{tmp_path}/pets/test/a", f"{tmp_path}/pets/train/a"]


@pytest.mark.parametrize(
    "names",
    [
        ["pets/a/1.jpg", "pets/b/1.jpg", "1.jpg"],  # photos beside it
        ["pets/a/1.jpg", "pets/b/1.jpg", "pets/1.jpg"],  # photos of its own
        ["pets/a/1.jpg"],  # one class
        ["pets/a/deep/1.jpg", "pets/b/deep/1.jpg"],  # no photos in the class folders
        ["1/2/3/4/a/1.jpg", "1/2/3/4/b/1.jpg"],  # too deep
    ],
)
def test_a_folder_that_may_be_something_else_is_not_entered(tmp_path, names):
    for name in names:
        write(tmp_path, *os.path.split(name)[:1], [os.path.basename(name)])
    with pytest.raises(DatasetError, match="at least two class folders with photos, but has only"):
        open_source(str(tmp_path)).scan()


def test_what_lies_beside_the_only_folder_is_accounted_for(tmp_path):
    fill(tmp_path / "pets", {"a": 2, "b": 3})
    (tmp_path / "pets" / "c").mkdir()
    (tmp_path / "New folder").mkdir()
    (tmp_path / "tulips").symlink_to("/nowhere")
    assert described(tmp_path)[2] == [
        "passed over 1 link that leads nowhere (tulips); 2 empty folders (New folder, pets/c)"
    ]


def test_a_single_class_to_score_is_not_entered_with_its_folders(tmp_path):
    fill(tmp_path, {"a/day1": 2, "a/day2": 3})
    scan = open_source(str(tmp_path)).scan(ScanOptions(recursive=True), least_classes=1)
    assert {label: len(photos) for label, photos in scan.photos.items()} == {"a": 5}


# -- classes that the user picks ---------------------------------------------------------------


def test_picked_classes_keep_their_order(tmp_path):
    fill(tmp_path, {"a": 3, "b": 3, "c": 3})
    write(tmp_path, "a", ["x"])
    dataset = load_dataset(str(tmp_path), scan=ScanOptions(classes=("c", "a")))
    assert dataset.labels == ["c", "a"]
    assert {example.label for example in dataset.examples} == {"a", "c"}
    assert load_dataset(str(tmp_path)).labels == ["a", "b", "c"]


def test_no_photo_of_another_class_is_opened(tmp_path):
    fill(tmp_path, {"a": 3, "b": 3})
    write(tmp_path, "c", [])
    (tmp_path / "c" / "broken.jpg").write_text("text")
    scan = open_source(str(tmp_path)).scan(ScanOptions(classes=("b", "a")))
    assert (scan.bad, scan.warnings) == ([], [])


def test_picked_classes_of_split_folders(tmp_path):
    folder = split_folders(tmp_path, train={"a": 3, "b": 3, "c": 3}, test={"a": 1, "b": 1})
    dataset = load_dataset(folder, scan=ScanOptions(classes=("b", "a")))
    assert (dataset.labels, len(dataset.examples)) == (["b", "a"], 8)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Rose", r"did you mean rose\?"),
        ("rosse", r"did you mean rose\?"),
        ("x", "it has daisy, rose$"),
        ("train", "it has daisy, rose$"),
    ],
)
def test_a_picked_class_that_is_not_there_is_refused(tmp_path, name, hint):
    fill(tmp_path, {"rose": 3, "daisy": 3})
    said = f"`PhotoSettings.classes` names {name}, which {tmp_path} does not have; {hint}"
    with pytest.raises(DatasetError, match=said):
        open_source(str(tmp_path)).scan(ScanOptions(classes=("daisy", name)))


def test_a_picked_class_without_photos_is_refused(tmp_path):
    fill(tmp_path, {"a": 3, "b": 3, "c": 0})
    said = r"`PhotoSettings.classes` names c, which has no photos; passed over 1 empty folder \(c\)"
    with pytest.raises(DatasetError, match=said):
        open_source(str(tmp_path)).scan(ScanOptions(classes=("a", "c")))


def test_class_folders_that_are_named_like_splits_are_warned_of(tmp_path):
    fill(tmp_path, {"train": 2, "test": 2})
    (warning,) = open_source(str(tmp_path)).scan().warnings
    assert warning.startswith(f"the run takes the folders test, train in {tmp_path}, which are")
    assert warning.endswith("give `PhotoSettings.label_from` name")
    by_path = open_source(str(tmp_path)).scan(ScanOptions(split_folders=False))
    assert by_path.warnings == []
