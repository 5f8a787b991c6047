"""class_folders.py: which names can be classes, as they are, and which are easily mixed up."""

import itertools
import json

import pytest

from retraining.photos.class_folders import same_label
from retraining.photos.folder import FolderSource
from retraining.photos.source import DatasetError
from retraining.photos.table import TableSource
from tests import tiny

NAMES = {
    "Devanagari with a joiner": "क्\u200dष",
    "Devanagari with a non-joiner": "नमस्\u200cते",
    "Persian with a non-joiner": "می\u200cخواهم",  # noqa: RUF001
    "Arabic": "مرحبا",
    "Hebrew with a mark of direction": "שלום\u200f!",
    "Thai": "ภาษาไทย",
    "Chinese": "猫",
    "composed": "caf\u00e9",
    "decomposed": "cafe\u0301",
    "no-break space": "a\u00a0b",
    "narrow no-break space": "a\u202fb",
    "ideographic space": "猫\u3000犬",
    "zero width no-break space": "\ufeffa",
    "soft hyphen": "a\u00adb",
    "emoji": "😀",
    "family": "👨\u200d👩\u200d👧",
    "variation selector": "❤\ufe0f",
    "private use": "\ue000",
    "unassigned": "\U0003fff0",
    "space before": " lead",
    "space after": "trail ",
    "a space": " ",
    "sign": "-1",
    "number": "1",
    "upper": "A",
    "lower": "a",
    "comment": "#1",
    "backslash": "a\\tb",
    "quotes": "\"'",
}
NO_NAMES = {
    "tab": "a\tb",
    "line feed": "a\nb",
    "carriage return": "a\r",
    "escape": "\x1b[31m",
    "delete": "a\x7f",
    "next line": "a\x85",
    "C1 control": "\x9b1m",
    "line separator": "a\u2028b",
    "paragraph separator": "\u2029",
    "lone byte": "a\udcff",
}


def class_folders(folder, names):
    tiny.write_photos(folder, {"red": 1})
    content = (folder / "red" / "photo_00.jpg").read_bytes()
    for number, name in enumerate(names):
        (folder / "photos" / name).mkdir(parents=True)
        (folder / "photos" / name / "1.jpg").write_bytes(content + bytes([number]))
    return FolderSource(str(folder / "photos"))


def table(folder, names):
    tiny.write_photos(folder, {"red": len(names)})
    rows = [
        json.dumps({"path": f"red/photo_{number:02d}.jpg", "label": name})
        for number, name in enumerate(names)
    ]
    (folder / "t.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return TableSource(str(folder / "t.jsonl"))


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_of_any_script_is_taken_as_it_is(tmp_path, kind):
    scan = class_folders(tmp_path, [NAMES[kind], "other"]).scan()
    assert sorted(scan.photos) == sorted([NAMES[kind], "other"])
    assert scan.warnings == []
    if NAMES[kind].strip():
        assert sorted(table(tmp_path, [NAMES[kind], "other"]).scan().photos) == sorted(scan.photos)


@pytest.mark.parametrize("kind", NO_NAMES)
@pytest.mark.parametrize(("source", "what"), [(class_folders, "class folder"), (table, "label")])
def test_what_breaks_a_line_or_is_no_text_is_refused(tmp_path, kind, source, what):
    with pytest.raises(DatasetError) as error:
        source(tmp_path, [NO_NAMES[kind], "other"]).scan()
    assert f"the {what} {NO_NAMES[kind]!r} in " in str(error.value)
    assert "that a labels file cannot hold; rename it" in str(error.value)
    assert str(error.value).isprintable()


def test_surrogates_that_are_no_bytes_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"the label '\\ud800' in .* has characters"):
        table(tmp_path, ["\ud800", "other"]).scan()


def test_all_names_are_classes_beside_each_other(tmp_path):
    names = list(NAMES.values())
    scan = class_folders(tmp_path, names).scan()
    assert sorted(scan.photos) == sorted(names)
    assert [len(photos) for photos in scan.photos.values()] == [1] * len(names)
    listed = [name for name in names if name.strip()]
    assert sorted(table(tmp_path, listed).scan().photos) == sorted(listed)


ALIKE = [
    ("A", "a"),
    ("-1", "1"),
    ("+1", "1"),
    ("\u22121", "1"),
    ("\u20131", "-1"),
    ("\uff11", "1"),
    ("a b", "a_b"),
    ("a b", "a-b"),
    ("a", "a "),
    ("a b", "a\u00a0b"),
    ("caf\u00e9", "cafe\u0301"),
    ("क्\u200dष", "क्ष"),
    ("❤", "❤\ufe0f"),
    ("İ", "i\u0307"),
    ("straße", "STRASSE"),
]
DIFFERENT = ["a", "b", "å", "م", "à", "1", "2", "a1", "a.b", "a b", "猫"]


@pytest.mark.parametrize(("one", "other"), ALIKE)
@pytest.mark.parametrize("source", [class_folders, table])
def test_names_that_are_easily_mixed_up_have_a_warning(tmp_path, source, one, other):
    scan = source(tmp_path, [one, other, "z"]).scan()
    assert sorted(scan.photos) == sorted([one, other, "z"])
    (warning,) = scan.warnings
    shown = [repr(one), repr(other)]
    if (one, other) == ("caf\u00e9", "cafe\u0301"):  # which look the same
        shown = [r"'caf\xe9'", r"'cafe\u0301'"]
    assert all(name in warning for name in shown)
    assert "are easily mixed up" in warning
    assert warning.isprintable()


def test_a_sign_makes_another_label():
    names = ["1", "-1", "+1", "\u22121", "\u20131", "1-", "x -1", "x 1"]
    assert len({same_label(name) for name in names}) == len(names)


def test_other_names_are_told_apart(tmp_path):
    assert class_folders(tmp_path, DIFFERENT).scan().warnings == []
    assert len({same_label(name) for name in DIFFERENT}) == len(DIFFERENT)


def test_a_group_of_names_has_one_warning(tmp_path):
    names = ["".join(letters) for letters in itertools.product("aA", repeat=2)]
    (warning,) = class_folders(tmp_path, [*names, "z"]).scan().warnings
    assert warning.startswith("the class folders 'AA', 'Aa', 'aA', ... in ")


def test_spaces_around_a_label_of_a_csv_do_not_count(tmp_path):
    tiny.write_photos(tmp_path, {"red": 3})
    (tmp_path / "t.csv").write_text(
        "path, label\nred/photo_00.jpg, a\nred/photo_01.jpg,a \t\nred/photo_02.jpg,\u00a0a",
        encoding="utf-8",
    )
    scan = TableSource(str(tmp_path / "t.csv")).scan()
    assert {label: len(photos) for label, photos in scan.photos.items()} == {"a": 2, "\u00a0a": 1}
