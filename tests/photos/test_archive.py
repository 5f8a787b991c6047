"""archive.py, archive_url.py: photos in archives are those of the unpacked folder."""

import json
import os
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from retraining.errors import RetrainingError
from retraining.graphs.read import read_graph
from retraining.photos.archive import ArchiveSource, is_archive_folder, split_name
from retraining.photos.archive_url import archive_url, fetch_archive, kept_as
from retraining.photos.bounds import ImageFileError
from retraining.photos.dataset import load_dataset
from retraining.photos.registry import absolute, canonical, hash_file, kind_of, open_source
from retraining.photos.registry import read_bytes as read
from retraining.photos.source import DatasetError, ScanOptions, SourceError
from retraining.system.observer import Silent
from tests import tiny

MODES = {"photos.zip": "", "photos.tar": "w", "photos.tgz": "w:gz", "photos.tar.xz": "w:xz"}


def archive_of(folder, path, top=""):
    """Packs a folder, below the folder `top` of the archive, without its own name."""
    files = sorted(each for each in Path(folder).rglob("*") if each.is_file())
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for each in files:
                file.write(each, f"{top}{each.relative_to(folder).as_posix()}")
    else:
        with tarfile.open(path, MODES[path.name]) as file:
            file.add(folder, top or ".")
    return str(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of few photos and of some files that are none."""
    folder = tmp_path_factory.mktemp("small") / "photos"
    tiny.write_photos(folder, {"red": 6, "green": 6})
    (folder / "red" / "notes.txt").write_text("text")
    (folder / "red" / "broken.jpg").write_bytes(b"")
    (folder / "__MACOSX" / "red").mkdir(parents=True)
    (folder / "__MACOSX" / "red" / "._a.jpg").write_bytes(b"x")
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


@pytest.fixture(params=MODES)
def packed(request, small, tmp_path):
    return archive_of(small, tmp_path / request.param)


def described(location):
    dataset = load_dataset(str(location))
    start = f"{location}/"
    photos = [(e.path.removeprefix(start), e.label, e.split, e.key) for e in dataset.examples]
    bad = [(image.path.removeprefix(start), image.reason, image.label) for image in dataset.bad]
    return photos, bad, dataset.warnings


def test_an_archive_gives_the_keys_and_splits_of_the_folder(small, packed):
    photos, bad, warnings = described(small)
    assert len(photos) == 12
    assert len(bad) == 2
    assert described(packed) == (photos, bad, warnings)


def test_a_folder_around_the_class_folders_is_entered(small, tmp_path):
    whole = archive_of(small, tmp_path / "photos.tgz", "flower_photos/")
    keys = {example.key for example in load_dataset(whole).examples}
    assert keys == {example.key for example in load_dataset(str(small)).examples}
    inner = load_dataset(f"{whole}/flower_photos")
    assert [e.path for e in inner.examples] == [e.path for e in load_dataset(whole).examples]
    with pytest.raises(DatasetError, match=f"there is no folder 2024 in {whole}"):
        load_dataset(f"{whole}/2024")


def test_a_link_beside_the_class_folders_is_named(small, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.add(small, ".")
        link = tarfile.TarInfo("owl")
        link.type, link.linkname = tarfile.SYMTYPE, "red"
        file.addfile(link)
    (line,) = [w for w in load_dataset(str(tmp_path / "a.tar")).warnings if "passed over" in w]
    assert "1 folder that cannot be read (owl: it is a link" in line


def test_bytes_are_read_by_name_alone(small, packed, monkeypatch):
    name = open_source(packed).path_of("red/photo_01.jpg")
    content = (small / "red" / "photo_01.jpg").read_bytes()
    assert read(name) == read(Path(name)) == content
    assert kind_of(name).head(name, 10) == content[:10]
    monkeypatch.chdir(os.path.dirname(packed))
    short = os.path.relpath(name)
    assert read(short) == content
    assert absolute(short) == name
    assert canonical(f"{packed}/./red/../red/photo_01.jpg") == canonical(short)
    source = ArchiveSource(packed)
    assert pickle.loads(pickle.dumps(source)) == source
    with pytest.raises(OSError, match="not in the archive"):
        kind_of(name).read(f"{packed}/red/none.jpg")


def test_only_files_named_as_archives_are_archives(small, tmp_path):
    folder = tmp_path / "photos.zip"
    folder.mkdir()
    assert split_name(f"{folder}/red/1.jpg") is None
    (folder / "picture.zip").write_bytes((small / "red" / "photo_01.jpg").read_bytes())
    assert split_name(str(folder / "picture.zip")) is None
    inner = archive_of(small, folder / "photos.zip")
    assert split_name(f"{inner}/red/1.jpg") == (inner, "red/1.jpg")
    assert is_archive_folder(f"{inner}/red")
    assert not is_archive_folder(f"{inner}/red/photo_01.jpg")


def test_excluded_photos_are_named_in_the_archive_or_relative_to_it(packed):
    excluded = ("red/photo_01.jpg", f"{packed}/red/photo_02.jpg")
    dataset = load_dataset(packed, scan=ScanOptions(excluded=excluded))
    assert (dataset.excluded, len(dataset.examples)) == (2, 10)


def test_a_table_may_list_photos_of_an_archive(small, packed, tmp_path):
    table = tmp_path / "table.csv"
    rows = [f"{c}/photo_0{n}.jpg,{c}" for c in ("red", "green") for n in range(3)]
    table.write_text("\n".join(["path,label", *rows, "red/none.jpg,red"]))
    scan = open_source(packed, str(table)).scan()
    keys = {hash_file(name) for names in scan.names.values() for name in names}
    assert keys == {hash_file(str(small / row.split(",")[0])) for row in rows}
    assert [image.reason for image in scan.bad] == ["cannot be read: it is not in the archive"]


def test_facts_change_with_the_file(small, tmp_path):
    def facts(name):
        scan = open_source(archive_of(small, tmp_path / name)).scan()
        return {os.path.basename(p.name): p.facts for p in scan.photos["red"]}

    assert facts("photos.zip") == facts("photos.zip")  # checksums tell
    first = facts("photos.tar")
    assert not any(each.settled for each in first.values())  # it has just been written
    os.utime(tmp_path / "photos.tar", (1, 1))
    old = open_source(str(tmp_path / "photos.tar")).scan().photos["red"][0].facts
    assert old.settled
    assert old.stamp not in {each.stamp for each in first.values()}


def test_an_archive_that_changes_is_read_anew(small, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("red/1.jpg", b"one")
    name = f"{tmp_path}/a.zip/red/1.jpg"
    assert read(name) == b"one"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("red/1.jpg", b"another")
    assert read(name) == b"another"
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 cut")
    with pytest.raises(SourceError, match=r"cannot read .*/a.zip: it is damaged"):
        read(name)


def test_a_run_on_an_archive_gives_the_head_of_the_folder(
    tmp_path, photos, run_retrain, monkeypatch, capsys
):
    heads, records = [], []
    places = [
        photos,
        *(archive_of(photos, tmp_path / name) for name in ("photos.zip", "photos.tgz")),
    ]
    for number, place in enumerate(places):
        assert run_retrain(tmp_path / str(number), place) == 0
        printed = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines())
        record = json.loads(Path(printed["metrics"]).read_text())
        records.append([record[part] for part in ("photos", "test", "bad_images", "course")])
        graph = read_graph(printed["graph"])
        tensors = [
            node.attr["value"].tensor.SerializeToString()
            for node in graph.node
            if node.op == "Const" and "final" in node.name
        ]
        heads.append(tensors)
    assert heads[0]
    assert heads[0] == heads[1] == heads[2]
    assert records[0] == records[1] == records[2]


def test_one_part_of_a_download_is_warned_of(small, tmp_path):
    one = archive_of(small, tmp_path / "p-2024-1-001.zip")
    whole = open_source(one).scan().warnings
    for name in ("p-2024-1-002.zip", "p-2024-1-003.zip", "p-2025-1-002.zip"):
        (tmp_path / name).write_bytes(b"PK\3\4")
    assert open_source(one).scan().warnings == [
        f"{one} seems to be one part of a download, and the run reads it alone; unpack it and "
        "p-2024-1-002.zip, p-2024-1-003.zip into one folder, and give that",
        *whole,
    ]


def test_an_archive_that_goes_is_not_taken_for_a_folder(small, tmp_path):
    archive = archive_of(small, tmp_path / "a.zip")
    photos = open_source(archive).scan().photos["red"]
    os.unlink(archive)
    for name in (photos[0].name, archive):
        with pytest.raises(SourceError, match=r"cannot read .*/a.zip: the archive is gone; put it"):
            read(name)
    os.mkdir(archive)  # a folder of that name counts again
    with pytest.raises(ImageFileError, match="No such file"):
        read(photos[0].name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\3\4" + bytes(50), r"is damaged \(its end is missing\)"),
        (b"\x1f\x8b\x08" + bytes(50), "is damaged|is not a zip or tar file"),
        (b"7z\xbc\xaf'\x1c", "is not a zip or tar file"),
    ],
)
def test_what_is_no_archive_ends_the_run_in_a_line(tmp_path, run_retrain, capsys, content, said):
    (tmp_path / "photos.zip").write_bytes(content)
    assert run_retrain(tmp_path, tmp_path / "photos.zip") == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert re.search(said, line)
    assert "photos.zip" in line


def test_urls_of_archives_are_known_by_their_path():
    for url in ("https://host/a/photos.zip?dl=1", "s3://bucket/photos.tar.gz"):
        assert archive_url(url) == (url, "")
    assert archive_url("http://host/a.zip/more%20photos/2024/?dl=1") == (
        "http://host/a.zip?dl=1",
        "more photos/2024",
    )
    for text in ("s3://bucket/photos", "https://my.zip/photos", "photos.zip"):
        assert archive_url(text) is None
    assert kept_as("https://host/photos.zip?dl=1", "b").name.endswith("-photos.zip")
    assert kept_as("https://host/..%2F..%2Fx.zip", "b").parent == Path("b")
    assert kept_as("https://host/a.zip", "b") != kept_as("https://other/a.zip", "b")


def test_an_archive_in_object_storage_is_fetched_once(small, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/photos.zip", Path(archive_of(small, tmp_path / "photos.zip")).read_bytes())
    target = kept_as("memory://bucket/photos.zip", str(tmp_path / "kept"))
    fetch_archive("memory://bucket/photos.zip", target, Silent())
    store.rm("/bucket/photos.zip")
    fetch_archive("memory://bucket/photos.zip", target, Silent())
    assert described(target)[0] == described(small)[0]
    with pytest.raises((OSError, RetrainingError)):
        fetch_archive("memory://bucket/photos.zip", tmp_path / "other.zip", Silent())
    assert np.array_equal(sorted(os.listdir(tmp_path / "kept")), [target.name])
