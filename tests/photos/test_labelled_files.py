"""labelled_files.py: labels in `_classes.csv` files and in names of files."""

import os

import pytest

from retraining.photos.class_folders import scan_class_folders
from retraining.photos.folder import FolderSource
from retraining.photos.labelled_files import label_in, labels_in
from retraining.photos.source import DatasetError, ScanOptions
from tests.photos.files import write

BY_NAME = ScanOptions(label_from="name")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("golden_retriever_012.jpg", "golden_retriever"),
        ("cat.123.jpg", "cat"),
        ("cat (12).jpg", "cat"),
        ("St. Bernard - 7.jpeg", "St. Bernard"),
        ("IMG_1234.JPG", "IMG"),
        ("class_7_003.png", "class_7"),
        ("Ä-1.jpg", "Ä"),
        ("a/b_2/cat_1", "cat"),
        ("cat12.jpg", None),
        ("cat.jpg", None),
        ("0123.jpg", None),
        ("_12.jpg", None),
        ("cat_12b.jpg", None),
        ("f52e8ee070.jpg", None),
    ],
)
def test_a_label_stands_before_the_number(name, label):
    assert label_in(name) == label


def test_a_long_name_of_separators_takes_no_time():
    assert label_in("a" + "_" * 5000 + "x.jpg") is None


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["cat_1.jpg", "dog_1.jpg", "cat_2.jpg", "dog_2.jpg"], ["cat", "dog"]),
        (["cat_1.jpg", "dog_1.jpg"], []),  # one photo of each: names of another kind
        (["IMG_1.jpg", "IMG_2.jpg"], []),
        (["cat_1.jpg", "cat_2.jpg", "dog_1.jpg", "dog_2.jpg", "x.jpg"], []),
        ([], []),
    ],
)
def test_names_seem_to_hold_labels(names, labels):
    assert labels_in(names) == labels


def scan(folder, options=None, least=2):
    return scan_class_folders(FolderSource(str(folder)), options or ScanOptions(), least)


def flat(tmp_path, names, folder="."):
    write(tmp_path, folder, names)


def counts(found):
    return {label: len(photos) for label, photos in found.photos.items()}


def test_names_of_photos_are_labels_when_asked_for(tmp_path):
    flat(tmp_path, ["cat_1.jpg", "dog_1.jpg", "dog_2.jpg", "other.jpg"])
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "list_1.txt").write_text("text")
    flat(tmp_path, ["cat_2.jpg"], "more")
    found = scan(tmp_path, ScanOptions(label_from="name", classes=("dog", "cat")))
    assert counts(found) == {"dog": 2, "cat": 1}
    assert found.bad == []
    assert found.warnings == [
        "passed over 1 folder beside the photos (more; `PhotoSettings.recursive` also takes the "
        "photos in them); 1 photo without a label (other.jpg); 2 files that are not images "
        "(list_1.txt, notes.txt)"
    ]
    found = scan(tmp_path, ScanOptions(label_from="name", recursive=True))
    assert counts(found)["cat"] == 2


def test_names_of_photos_in_split_folders(tmp_path):
    for folder in ("train", "test"):
        flat(tmp_path, ["cat_1.jpg", "dog_1.jpg"], folder)
    found = scan(tmp_path, BY_NAME)
    assert [(p.label, p.split) for p in found.photos["cat"]] == [
        ("cat", "testing"),
        ("cat", "training"),
    ]


def test_an_empty_folder_beside_split_folders_does_not_count(tmp_path):
    for folder in ("train", "test"):
        flat(tmp_path, ["cat_1.jpg", "dog_1.jpg"], folder)
    (tmp_path / "New folder").mkdir()
    (tmp_path / "train" / "raw").mkdir()
    found = scan(tmp_path, BY_NAME)
    assert counts(found) == {"cat": 2, "dog": 2}
    assert found.warnings == ["passed over 2 empty folders (New folder, train/raw)"]


@pytest.mark.parametrize("inner", ["holiday", "data/holiday"])
def test_named_photos_may_lie_in_the_only_folder(tmp_path, inner):
    flat(tmp_path, ["cat_1.jpg", "dog_1.jpg"], inner)
    (tmp_path / "README.txt").write_text("text")
    (tmp_path / "gone").symlink_to("/nowhere")
    found = scan(tmp_path, BY_NAME)
    assert counts(found) == {"cat": 1, "dog": 1}
    assert found.notes == [
        f"taking the photos in {tmp_path}/{inner}, the only folder in {tmp_path}"
    ]
    assert found.warnings == ["passed over 1 link that leads nowhere (gone)"]
    flat(tmp_path, ["owl_1.jpg", "cat_2.jpg"])  # then that folder is not the place of the photos
    assert counts(scan(tmp_path, BY_NAME)) == {"cat": 1, "owl": 1}


def test_a_photo_without_an_ending_has_a_label_in_its_name(tmp_path):
    flat(tmp_path, ["cat_1", "dog_1.jpg"])
    assert counts(scan(tmp_path, BY_NAME)) == {"cat": 1, "dog": 1}


@pytest.mark.parametrize(
    ("names", "give"), [(["IMG_1.jpg"], r"only one label \(IMG\)"), ([], "no")]
)
def test_names_of_one_label_are_refused(tmp_path, names, give):
    flat(tmp_path, [*names, "x.jpg"])
    said = f"the names of the photos in {tmp_path} give {give}.*; passed over 1 photo without"
    with pytest.raises(DatasetError, match=said):
        scan(tmp_path, BY_NAME)


def test_a_flat_folder_is_told_of_the_labels_in_its_names(tmp_path):
    flat(tmp_path, ["cat_1.jpg", "dog_1.jpg", "cat_2.jpg", "dog_2.jpg"])
    said = r"names may be labels \(cat, dog\): give `PhotoSettings.label_from` name, or sort them"
    with pytest.raises(DatasetError, match=said):
        scan(tmp_path)


def test_so_is_a_folder_of_nothing_but_such_a_folder(tmp_path):
    flat(tmp_path, ["cat_1.jpg", "dog_1.jpg", "cat_2.jpg", "dog_2.jpg"], "data/all")
    said = r"only one \(data\); it holds photos whose names may be labels \(cat, dog\): give"
    with pytest.raises(DatasetError, match=said):
        scan(tmp_path)


# -- _classes.csv -----------------------------------------------------------------------------


def listed(folder, rows, names, header="filename, cat, dog"):
    flat(folder, names)
    text = "\n".join([header, *rows]) + "\n"
    (folder / "_classes.csv").write_text(text, encoding="utf-8")


def test_lists_in_split_folders_tell_labels(tmp_path):
    header = "\ufefffilename, cat, dog, owl"
    listed(tmp_path / "train", ["1.jpg, 1, 0, 0", "2.jpg,0,1,0"], ["1.jpg", "2.jpg"], header)
    listed(tmp_path / "valid", ["3.jpg, 1, 0"], ["3.jpg", "4.jpg"])
    (tmp_path / "test").mkdir()
    (tmp_path / "README.dataset.txt").write_text("text")
    found = scan(tmp_path)
    assert [(p.name, p.split) for p in found.photos["cat"]] == [
        (f"{tmp_path}/train/1.jpg", "training"),
        (f"{tmp_path}/valid/3.jpg", "validation"),
    ]
    assert counts(found) == {"cat": 2, "dog": 1}
    assert found.bad == []
    assert found.notes == ["taking the labels from the _classes.csv files"]
    assert found.warnings == [
        "passed over 1 photo that _classes.csv does not list (valid/4.jpg); "
        "1 label without photos (owl)"
    ]


def test_what_lies_beside_the_lists_is_told(tmp_path):
    listed(tmp_path / "train", ["1.jpg,1,0", "2.jpg,0,1"], ["1.jpg", "2.jpg"])
    flat(tmp_path, ["3.jpg"])
    flat(tmp_path, ["4.jpg"], "more")
    for folder in ("New folder", "train/raw"):
        (tmp_path / folder).mkdir()
    found = scan(tmp_path)
    assert counts(found) == {"cat": 1, "dog": 1}
    assert found.warnings == [
        "passed over 1 photo outside the class folders (3.jpg); "
        "2 empty folders (train/raw, New folder); 1 folder beside the split folders (more)"
    ]


def test_a_photo_that_two_rows_label_differently_has_several_labels(tmp_path):
    rows = ["1.jpg,1,0", "2.jpg,0,1", "2.jpg,0,1", "3.jpg,1,0", "3.jpg,0,1"]
    listed(tmp_path, rows, ["1.jpg", "2.jpg", "3.jpg"], "filename,cat,dog")
    found = scan(tmp_path)
    assert counts(found) == {"cat": 1, "dog": 1}
    assert "1 photo with several labels (3.jpg)" in found.warnings[-1]


def test_blank_lines_before_the_header_do_not_count(tmp_path):
    listed(tmp_path, ["filename,cat,dog", "1.jpg,1,0", "2.jpg,0,1"], ["1.jpg", "2.jpg"], "\n \f")
    assert counts(scan(tmp_path)) == {"cat": 1, "dog": 1}


def test_photos_without_one_label_are_passed_over(tmp_path):
    rows = ["1.jpg,1,0", "2.jpg,0,1", "3.jpg,1,1", "4.jpg,0,0", "gone.jpg,1,0"]
    listed(tmp_path, rows, ["1.jpg", "2.jpg", "3.jpg", "4.jpg"])
    found = scan(tmp_path)
    assert counts(found) == {"cat": 1, "dog": 1}
    assert found.warnings == [
        "passed over 1 photo without a label (4.jpg); 1 photo with several labels (3.jpg); "
        "1 listed photo that is not there (gone.jpg)"
    ]


def test_a_listed_file_that_is_no_image_is_bad(tmp_path):
    listed(tmp_path, ["1.jpg,1,0", "2.jpg,0,1", "3.jpg,0,1"], ["1.jpg", "2.jpg"])
    (tmp_path / "3.jpg").write_text("text")
    assert [(image.path, image.label) for image in scan(tmp_path).bad] == [
        (f"{tmp_path}/3.jpg", "dog")
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"filename,a,b\n1.jpg,1,1\n2.jpg,1,0\n3.jpg,1,1\n", "give 2 of 3 photos several labels"),
        (b"filename,a\n1.jpg,1\n", "at least 2 labels, but give only a"),
        (b"filename,a,b\n1.jpg,1\n", "line 2 of .*_classes.csv does not have a 0 or 1 for each"),
        (b"filename,a,b\n1.jpg,1,x\n", "line 2 of .*_classes.csv does not have a 0 or 1 for each"),
        (b"filename,a,a\n1.jpg,1,0\n", "the first line of .*_classes.csv is not `filename` and"),
        (b"path,a,b\n1.jpg,1,0\n", "the first line of .*_classes.csv is not `filename` and"),
        (b"filename,a,b\n1.jpg,1,\xff\n", "_classes.csv is not UTF-8"),
        (b"filename,a,b\n" + b"x" * 200_000 + b",1,0\n", "line 2 of .* cannot be read: field"),
        (b"", "_classes.csv is empty; if a cloud"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path, content, said):
    flat(tmp_path, ["1.jpg", "2.jpg", "3.jpg"])
    (tmp_path / "_classes.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=said):
        scan(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/nowhere", path)])
def test_a_list_that_is_no_file_is_not_opened(tmp_path, make):
    flat(tmp_path, ["1.jpg"])
    make(tmp_path / "_classes.csv")
    with pytest.raises(DatasetError, match=r"_classes.csv (is a pipe|cannot be read: No such)"):
        scan(tmp_path)


def test_a_list_beside_class_folders_is_no_layout(tmp_path):
    listed(tmp_path / "train", ["1.jpg,1,0"], ["1.jpg"])
    for split in ("train", "test"):
        for label in ("a", "b"):
            write(tmp_path, f"{split}/{label}", ["x.jpg"])
    found = scan(tmp_path)
    assert counts(found) == {"a": 2, "b": 2}
    assert found.warnings == ["passed over 1 photo outside the class folders (train/1.jpg)"]
