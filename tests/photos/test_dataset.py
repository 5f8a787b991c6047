"""dataset.py: folders, labels, splits."""

import hashlib
import os
import shutil
from collections import Counter

import pytest

from retraining.photos.dataset import load_dataset
from retraining.photos.exclude import read_listed
from retraining.photos.registry import hash_file, open_source
from retraining.photos.source import BadImage, DatasetError, ScanOptions
from retraining.photos.split import SplitOptions, percentage
from retraining.system.text import table

JPEG = b"\xff\xd8\xff\xe0"


def write(folder, label, names):
    """Files that begin like a JPEG, each of its own content."""
    (folder / label).mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / label / name).write_bytes(JPEG + f"{label}/{name}".encode())


def fill(folder, counts):
    for label, count in counts.items():
        write(folder, label, [f"{n:03d}.jpg" for n in range(count)])
    return str(folder)


def splits(dataset):
    return {os.path.basename(e.path): e.split for e in dataset.examples}


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
    assert "are easily mixed up; each is a class of its own" in warning


@pytest.mark.parametrize("counts", [{}, {"only": 5}])
def test_fewer_than_two_classes_are_refused(tmp_path, counts):
    fill(tmp_path, counts)
    with pytest.raises(DatasetError, match="at least two class folders"):
        load_dataset(str(tmp_path))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot read the image folder"):
        load_dataset(str(tmp_path / "nowhere"))


def test_a_class_without_images_is_refused(tmp_path):
    fill(tmp_path, {"a": 3, "b": 3, "empty": 0})
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(DatasetError, match="empty holds no images"):
        load_dataset(str(tmp_path))


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
        f"1 file in {tmp_path / 'a'} is no image: list.txt",
        f"1 folder in {tmp_path / 'a'} is not looked into (folder.jpg); "
        "`PhotoSettings.recursive` takes photos "
        "there, too",
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
    assert len(warnings) == 2


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
        ("empty.jpg", "is not an image of a known format"),
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
    with pytest.raises(DatasetError, match=r"b holds no images \(.*x.jpg is not an image"):
        load_dataset(str(tmp_path))


def test_a_small_class_is_warned_of(tmp_path):
    fill(tmp_path, {"small": 19, "enough": 20})
    assert load_dataset(str(tmp_path)).warnings == [
        "small has only 19 images; 20 or more give a better model"
    ]


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


def test_copies_and_variants_share_a_split(tmp_path):
    fill(tmp_path, {"a": 40, "b": 40})
    for n in range(15):
        names = [f"subject{n}_nohash_{v}.jpg" for v in range(4)]
        write(tmp_path, "a", names)
        # A copy, under another name and class, of one variant of the subject.
        shutil.copy(tmp_path / "a" / names[2], tmp_path / "b" / f"copy{n}.jpg")
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
    fill(tmp_path, {"a": 40, "b": 40})
    for n in range(15):
        names = [f"subject{n}_nohash_{v}.jpg" for v in range(4)]
        write(tmp_path, "a", names)
        shutil.copy(tmp_path / "a" / names[2], tmp_path / "b" / f"copy{n}.jpg")
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
        assert dataset.warnings == [f"1 of the excluded are no photos in {folder}: no.jpg"]


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
    assert read_listed(path) == [os.fsdecode(b"a b\xff.jpg"), "x.jpg\ty", " c.jpg"]
    path.write_text("path\tgiven\tsuggested\tscore\treason\na.jpg\tb\tc\t0.9\tlabel\n#d.jpg\tb\n")
    assert read_listed(path) == ["a.jpg"]
    path.write_bytes(b"")
    assert read_listed(path) == []


def test_a_list_that_is_none_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot read the list"):
        read_listed(tmp_path)
    (tmp_path / "zeros").write_bytes(bytes(5))
    with pytest.raises(DatasetError, match=r"line 1 of the list .* is no text in UTF-8"):
        read_listed(tmp_path / "zeros")


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
