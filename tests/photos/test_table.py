"""table.py: photos that a table lists."""

import io
import json
import os
import pickle
import tarfile
from types import SimpleNamespace

import pytest

from retraining.photos import table
from retraining.photos.dataset import load_dataset
from retraining.photos.registry import open_source
from retraining.photos.source import DatasetError, ScanOptions
from retraining.photos.split import SplitOptions
from tests import tiny

ROWS = [("red/photo_00.jpg", "red", "Train"), ("blue/photo_00.jpg", "b, c", "test")]


@pytest.fixture
def folder(tmp_path):
    tiny.write_photos(tmp_path, {"red": 3, "blue": 3})
    return tmp_path


def lines_of(end):
    if end in (".jsonl", ".ndjson"):
        return [json.dumps(dict(zip(("Path", "LABEL", "split"), row, strict=True))) for row in ROWS]
    mark = "\t" if end == ".tsv" else ","
    return ["Path,LABEL , split".replace(",", mark)] + [
        mark.join(f'"{cell}"' for cell in row) for row in ROWS
    ]


def found(source):
    photos = [photo for of_class in source.scan().photos.values() for photo in of_class]
    return [(os.path.relpath(p.name, os.path.dirname(source.location)), p.label, p.split)
            for p in photos]  # fmt: skip


@pytest.mark.parametrize("end", [".csv", ".tsv", ".jsonl", ".ndjson"])
@pytest.mark.parametrize("sniffed", [False, True])
@pytest.mark.parametrize("begin", ["", "\ufeff", "\n\r\n"])
def test_all_formats_give_the_same_photos(folder, end, sniffed, begin):
    path = folder / ("table.txt" if sniffed else f"table{end.upper()}")
    path.write_text(begin + "\r\n\r\n".join(lines_of(end)), newline="")
    source = open_source("", str(path))
    assert found(source) == [
        ("blue/photo_00.jpg", "b, c", "testing"),
        ("red/photo_00.jpg", "red", "training"),
    ]
    assert pickle.loads(pickle.dumps(source)) == source


def test_paths_are_relative_to_the_folder_if_given(folder, monkeypatch):
    text = "path,label\nred/photo_00.jpg,red\nblue/photo_00.jpg,blue\n"
    (folder / "sub").mkdir()
    (folder / "sub" / "table.csv").write_text(text)
    scan = open_source(str(folder), str(folder / "sub" / "table.csv")).scan()
    assert scan.names["red"] == [f"{folder}/red/photo_00.jpg"]
    stdin = SimpleNamespace(buffer=io.BytesIO(text.encode()))
    monkeypatch.setattr(table.sys, "stdin", stdin)
    source = open_source(str(folder), "-")
    assert source.scan().photos == source.scan().photos == scan.photos


def test_files_that_are_no_images_are_named(folder):
    (folder / "notes.txt").write_text("text")
    (folder / "t.csv").write_text(
        "path,label\ngone.jpg,red\nnotes.txt,red\nred,red\nred/photo_00.jpg,red\n"
        "blue/photo_00.jpg,blue\n"
    )
    bad = open_source("", str(folder / "t.csv")).scan().bad
    assert [(os.path.basename(b.path), b.claimed, b.label) for b in bad] == [
        ("gone.jpg", True, "red"),
        ("notes.txt", True, "red"),
        ("red", True, "red"),
    ]


def test_rows_are_taken_once(folder):
    (folder / "t.csv").write_text(
        "path,label\nred/photo_00.jpg,red\n./red/../red/photo_00.jpg,red\nblue/photo_00.jpg,blue\n"
    )
    names = open_source("", str(folder / "t.csv")).scan().names
    assert {label: len(paths) for label, paths in names.items()} == {"red": 1, "blue": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "must have at least two labels, but has none"),
        ("t.csv", "path,label\na.jpg,red", r"has only one \(red\)"),
        ("t.csv", "file,label\na,b", "line 1 of .* names no column 'path', but file, label"),
        ("t.csv", "path,label,Label\na,b,c", "line 1 of .* names a column twice"),
        ("t.csv", "path,label\n\na.jpg\n", "line 3 of .* has 1 field, the header has 2"),
        ("t.csv", "path,label\na.jpg, \n", "line 2 of .* has no label"),
        ("t.csv", 'path,label\n"a\nb.jpg",red\n,red', "line 4 of .* has no path"),
        ("t.csv", "path,label,split\na,b,dev", "line 2 of .* has the split 'dev'; there are train"),
        ("t.csv", "path,label\na,b\nc,d\na,e", "lines 2 and 4 of .* different labels: b and e"),
        (
            "t.csv",
            "path,label,split\na,b,test\na,b,\n",
            "lines 2 and 3 of .* different splits: testing and none",
        ),
        ("t.csv", "path,label\ns3://b/a.jpg,b", "line 2 of .* has the URL"),
        # Each line ends within a quoted field, so that all of them are one row.
        (
            "t.csv",
            'path,label\na.jpg,red\n"' + 2000 * 'a","b","\n',
            "line 3 .* row of more than 1000",
        ),
        ("t.csv", "path,label\na\0,b", "line 2 of .* is not text in UTF-8"),
        ("t.csv", b"path,label\n\xe9,b", "line 2 of .* is not text in UTF-8"),
        ("t.csv", "path,label\n" + "a" * 70_000, "line 2 of .* is longer than"),
        ("t.csv", 'path,label\n"' + (1000 * "a" + "\n") * 200, "line 2 of .* field larger"),
        ("t.csv", "path,label\na,red\x85\nb,blue", r"the label 'red\\x85' in .* labels file"),
        (
            "t.jsonl",
            '{"path": "a", "label": "b"}\n{"path": "a", "Label": "b", "label": "c"}',
            "line 2 of .* gives 'label' twice",
        ),
        ("t.jsonl", '{"path": {}, "label": "b"}', "line 1 of .* has a path that is not text"),
        ("t.csv", "path;label;split\na;b;", "line 1 of .* is it separated by semicolons[?] Save"),
        ("t.jsonl", "[1]", "line 1 of .* is not a JSON object"),
        ("t.jsonl", "[" * 60_000, "line 1 of .* is not a JSON object"),
        ("t.jsonl", '{"path": "a", "label": ["b"]}', "line 1 of .* has a label that is not text"),
        ("t.jsonl", '{"path": "a"}', "line 1 of .* has no label"),
        ("t.jsonl", r'{"path": "\u0000", "label": "b"}', "line 1 of .* path that is not valid"),
        ("t.jsonl", r'{"path": "\ud800", "label": "b"}', "line 1 of .* path that is not valid"),
        (
            "t.jsonl",
            '{"path": "a", "label": "\\ud800"}\n{"path": "b", "label": "c"}',
            "has characters that a labels file cannot hold",
        ),
    ],
)
def test_what_is_wrong_is_named_by_line(tmp_path, name, text, message):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=message):
        open_source("", str(tmp_path / name)).scan()


def test_a_missing_table_and_recursive_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"cannot read .*: No such file"):
        open_source("", str(tmp_path / "t.csv")).scan()
    with pytest.raises(DatasetError, match="is for folders"):
        open_source("", str(tmp_path / "t.csv")).scan(ScanOptions(recursive=True))


def test_picked_labels_of_a_table(folder):
    table = folder / "picked.csv"
    table.write_text("path,label\n" + "".join(f"{n}.jpg,{n}\n" for n in "abc"))
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    scan = open_source("", str(table)).scan(ScanOptions(classes=("c", "a")))
    assert list(scan.photos) == ["c", "a"]
    assert sorted(len(photos) for photos in scan.photos.values()) == [1, 1]
    with pytest.raises(DatasetError, match=r"names d, which .*picked.csv does not have; it has a"):
        open_source("", str(table)).scan(ScanOptions(classes=("a", "d")))
    with pytest.raises(DatasetError, match=r"`PhotoSettings.label_from` is for folders"):
        open_source("", str(table)).scan(ScanOptions(label_from="name"))


def test_a_table_of_too_many_photos_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "MOST_ROWS", 2)
    (tmp_path / "t.csv").write_text("path,label\na,x\na,x\nb,y\nc,x")
    with pytest.raises(DatasetError, match="more than 2 photos"):
        open_source("", str(tmp_path / "t.csv")).scan()


def test_rows_without_a_split_are_for_training(folder):
    rows = [f"{label}/photo_0{n}.jpg,{label}," for label in ("red", "blue") for n in (0, 1)]
    rows += [f"{label}/photo_02.jpg,{label},Test" for label in ("red", "blue")]
    (folder / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    source = open_source("", str(folder / "t.csv"))
    dataset = load_dataset(source, SplitOptions(validation=0))
    assert {(os.path.basename(e.path), e.split) for e in dataset.examples} == {
        ("photo_00.jpg", "training"),
        ("photo_01.jpg", "training"),
        ("photo_02.jpg", "testing"),
    }
    (folder / "t.csv").write_text("\n".join(["path,label", *(r.rsplit(",", 1)[0] for r in rows)]))
    with pytest.raises(DatasetError, match="gives no splits"):
        load_dataset(open_source("", str(folder / "t.csv")), SplitOptions(by="folders"))


def test_photos_in_many_compressed_tars_are_warned_of(folder, monkeypatch):
    rows = ["path,label"]
    for name, mode in (("a.tgz", "w:gz"), ("b.tar.xz", "w:xz"), ("c.tar", "w"), ("d.tar", "w")):
        with tarfile.open(folder / name, mode) as file:
            for label in ("red", "blue"):
                file.add(folder / label / "photo_00.jpg", f"{label}.jpg")
                rows.append(f"{name}/{label}.jpg,{label}")
    (folder / "photos.csv").write_text("\n".join(rows))
    assert open_source("", str(folder / "photos.csv")).scan().warnings == []
    monkeypatch.setattr(table, "MOST_OPEN", 1)
    assert open_source("", str(folder / "photos.csv")).scan().warnings == [
        f"{folder}/photos.csv names photos in 2 compressed tars; the run keeps 1 decompressed at a "
        "time, and so decompresses each many times: make them zips"
    ]
