"""sorting.py: names of folders, copies, links, and that nothing is overwritten."""

import hashlib
import os
import sys
from pathlib import Path
from unicodedata import normalize

import pytest

from retraining.labelling import sorting
from retraining.labelling.sorting import Sorter, SortError, folder_names


@pytest.fixture
def image(tmp_path):
    """Makes a file in a folder of its own; gives its path."""

    def make(name, content, folder="source"):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / name
        path.write_bytes(content)
        os.utime(path, (1e9, 1e9))
        return str(path)

    return make


def contents(folder):
    """{path below the folder: bytes} of all files, hidden ones too."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("bull mastiff", "bull mastiff"),
        ("Löwenzahn", "Löwenzahn"),
        ("100%", "100%"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("..", "%2E%2E"),
        (".hidden", "%2Ehidden"),
        ("end.", "end%2E"),
        ("end ", "end%20"),
        ("CON", "%43ON"),
        ("com1.x", "%63om1.x"),
        ("console", "console"),
        ("a\nb", "a%0Ab"),
        ("caf\udce9", "caf%E9"),
        ("a\ud800", "a%ED%A0%80"),
        ("क्\u200dष\u00a0", "क्\u200dष\u00a0"),
        ("", "%"),
        ("x" * 300, "x" * 120 + "~" + hashlib.sha1(b"x" * 300).hexdigest()[:8]),
    ],
)
def test_a_label_becomes_a_name_that_every_system_takes(label, name):
    assert folder_names([label]) == {label: name}


def test_no_two_labels_share_a_folder():
    labels = [
        "rose",
        "Rose",
        "é",
        "e\u0301",
        "",
        "%",
        "..",
        "%2E%2E",
        "x" * 200,
        "x" * 201,
        "tulip",
    ]
    names = folder_names(labels)
    seen = {normalize("NFC", normalize("NFC", name).casefold()) for name in names.values()}
    assert len(seen) == len(labels)  # where neither case nor the form of accents counts
    assert names["tulip"] == "tulip"
    assert names["rose"].startswith("rose~")
    assert names == folder_names(reversed(labels))


def test_images_are_copied_with_their_times(tmp_path, image):
    path = image("a.jpg", b"one")
    Sorter(tmp_path / "out", ["red"]).place(path, "red")
    copied = tmp_path / "out" / "red" / "a.jpg"
    assert contents(tmp_path / "out") == {"red/a.jpg": b"one"}
    assert copied.stat().st_mtime == 1e9
    assert not copied.samefile(path)


@pytest.mark.parametrize("by", ["copy", "link"])
def test_again_changes_nothing_and_a_taken_name_gets_a_mark(tmp_path, image, by):
    paths = [image("a.jpg", b"one", "x"), image("a.jpg", b"two", "y"), image("a.jpg", b"3", "z")]
    marked = {  # the first eight digits of the SHA-1 of `two` and `3`
        "red/a.jpg": b"one",
        "red/a~ad782ecd.jpg": b"two",
        "red/a~77de68da.jpg": b"3",
    }
    counts = []
    for order in (paths, paths[::-1]):
        sorter = Sorter(tmp_path / "out", ["red"], by)
        for path in order:
            sorter.place(path, "red")
        counts.append((sorter.placed, sorter.known))
        assert contents(tmp_path / "out") == marked
    assert counts == [(3, 0), (0, 3)]


def test_what_is_there_is_not_overwritten(tmp_path, image):
    path = image("a.jpg", b"one")
    (tmp_path / "out" / "red" / "a.jpg").mkdir(parents=True)
    Sorter(tmp_path / "out", ["red"]).place(path, "red")
    assert list(contents(tmp_path / "out").values()) == [b"one"]
    assert (tmp_path / "out" / "red" / "a.jpg").is_dir()


def test_a_file_is_complete_before_it_has_its_name(tmp_path, image, monkeypatch):
    def breaks(source, target):
        target.write(source.read(2))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", breaks)
    with pytest.raises(SortError, match=r"cannot put .*a.jpg into .*red: No space left"):
        Sorter(tmp_path / "out", ["red"]).place(image("a.jpg", b"long"), "red")
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_is_taken_in_the_meantime_is_not_overwritten(
    tmp_path, image, monkeypatch, links
):
    def refuse(*_):
        raise PermissionError(1, "no links")

    if not links:
        monkeypatch.setattr("os.link", refuse)
    target = Path(image("a.jpg", b"mine", "out"))
    with pytest.raises(OSError, match=r"exists|no links"):
        sorting.copy(image("a.jpg", b"other"), target)
    assert contents(tmp_path / "out") == {"a.jpg": b"mine"}


def test_where_there_are_no_links_a_copy_is_renamed(tmp_path, image, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    path = image("a.jpg", b"one")
    Sorter(tmp_path / "out", ["red"]).place(path, "red")
    assert contents(tmp_path / "out") == {"red/a.jpg": b"one"}
    with pytest.raises(SortError, match=r"cannot be linked .*`Sorter.by` copy"):
        Sorter(tmp_path / "links", ["red"], "link").place(path, "red")


def test_a_link_is_the_same_file(tmp_path, image):
    path = image("a.jpg", b"one")
    Sorter(tmp_path / "out", ["red"], "link").place(path, "red")
    assert (tmp_path / "out" / "red" / "a.jpg").samefile(path)


def test_a_long_name_finds_room_for_its_mark(tmp_path, image):
    name = "é" * 120 + ".jpg"  # 244 bytes
    sorter = Sorter(tmp_path / "out", ["red"])
    for folder in ("x", "y"):
        sorter.place(image(name, folder.encode(), folder), "red")
    assert sorted(contents(tmp_path / "out").values()) == [b"x", b"y"]


def test_a_folder_that_cannot_be_is_an_error(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SortError, match="cannot make the folder"):
        Sorter(tmp_path / "out", ["red"])


def test_a_file_in_the_place_of_a_labels_folder_is_an_error(tmp_path, image):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "red").write_text("a file")
    with pytest.raises(SortError, match="cannot put"):
        Sorter(tmp_path / "out", ["red"]).place(image("a.jpg", b"one"), "red")


@pytest.mark.parametrize(
    ("folder", "source", "apart"),
    [
        ("photos/out", "photos", True),  # left out of the search
        ("out", "photos", True),
        ("photos", "photos", False),
        ("photos", "photos/red", False),
        ("photos", "photos/other", True),
    ],
)
def test_sources_and_folders_sorted_into_are_kept_apart(tmp_path, folder, source, apart):
    (tmp_path / source).mkdir(parents=True)
    sorter = Sorter(tmp_path / folder, ["red"])
    if apart:
        sorter.check_apart([tmp_path / source])
    else:
        with pytest.raises(SortError, match="choose another folder"):
            sorter.check_apart([tmp_path / source])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a symbolic link")
def test_a_link_to_an_image_is_followed(tmp_path, image):
    path = image("a.jpg", b"one")
    os.symlink(path, tmp_path / "b.jpg")
    for by in ("copy", "link"):
        Sorter(tmp_path / by, ["red"], by).place(str(tmp_path / "b.jpg"), "red")
        assert not (tmp_path / by / "red" / "b.jpg").is_symlink()
        assert contents(tmp_path / by) == {"red/b.jpg": b"one"}
