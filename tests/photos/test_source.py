"""source.py and registry.py: every kind of source is one thing to those that use it."""

import json
import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from retraining.photos import registry
from retraining.photos.class_folders import scan_class_folders
from retraining.photos.dataset import load_dataset
from retraining.photos.folder import FolderSource
from retraining.photos.registry import absolute, hash_file, kind_of, open_source, read_bytes
from retraining.photos.source import Facts, Photo, Scan, ScanOptions
from retraining.photos.split import SplitOptions
from retraining.photos.url import UrlSource


@dataclass(frozen=True)
class TableSource(FolderSource):
    """What a table of photos gives: labels and splits of its own, names that are paths."""

    def scan(self, options=None, least_classes=2):
        photos = {"red": [], "blue": []}
        for number, split in enumerate(["training"] * 3 + ["testing"]):
            for label, of_class in photos.items():
                of_class.append(Photo(self.path_of(f"{label}{number}"), label, split))
        return Scan(photos)


@dataclass(frozen=True)
class ZipSource:
    """Class folders in a zip file, all that a module for archives would need."""

    location: str
    remote = False

    def scan(self, options=None, least_classes=2):
        return scan_class_folders(self, options or ScanOptions(), least_classes)

    def path_of(self, relative):
        return f"{self.location}/{relative}"

    @staticmethod
    def claims(text):
        return ".zip" in text

    @staticmethod
    def check(name, max_pixels):
        pass

    @staticmethod
    def read(name):
        path, _, member = name.partition(".zip/")
        with zipfile.ZipFile(f"{path}.zip") as file:
            return file.read(member)

    @staticmethod
    def absolute(name):
        return os.path.abspath(name)

    canonical = absolute

    def class_folders(self):
        with zipfile.ZipFile(self.location) as file:
            return sorted({name.split("/")[0] for name in file.namelist()})

    def files_below(self, folder, recursive):
        with zipfile.ZipFile(self.location) as file:
            names = sorted(map(self.path_of, file.namelist()))
        below = {name for name in names if name.startswith(f"{folder}/")}
        here = {name for name in below if "/" not in name[len(folder) + 1 :]}
        inner = {folder + name[len(folder) :].rpartition("/")[0] for name in below - here}
        return iter([(name, False) for name in sorted(here)] + [(n, True) for n in sorted(inner)])

    def look_at(self, name, max_pixels):
        return Facts(len(self.read(name)), 0, settled=False)


@pytest.mark.parametrize(
    ("location", "kind", "remote"),
    [
        ("flowers", FolderSource, False),
        ("C:\\flowers", FolderSource, False),
        ("s3://b/p", UrlSource, True),
    ],
)
def test_the_text_of_a_location_or_a_name_decides(location, kind, remote):
    source = open_source(location)
    assert source == kind(location)
    assert kind_of(source.path_of("red/1.jpg")) is kind
    assert source.remote is remote
    assert pickle.loads(pickle.dumps(source)) == source


def test_bytes_are_read_by_name(tmp_path, monkeypatch):
    (tmp_path / "photo.jpg").write_bytes(b"hello")
    monkeypatch.chdir(tmp_path)
    assert read_bytes("photo.jpg") == read_bytes(absolute("photo.jpg")) == b"hello"
    assert absolute("photo.jpg") == str(tmp_path / "photo.jpg")
    assert absolute("s3://b/photo.jpg") == "s3://b/photo.jpg"
    assert hash_file("photo.jpg") == "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d"


def test_a_source_may_assign_splits(tmp_path):
    source = TableSource(str(tmp_path))
    dataset = load_dataset(
        source, SplitOptions(validation=0), key_of=lambda photo: f"{hash(photo.name):040x}"
    )
    assert [example.split for example in dataset.examples] == [
        *("training", "training", "training", "testing") * 2
    ]
    assert dataset.labels == ["blue", "red"]


def test_excluded_photos_of_any_source_are_left_out(tmp_path):
    scan = ScanOptions(excluded=("red0", str(tmp_path / "blue1")))
    dataset = load_dataset(TableSource(str(tmp_path)), key_of=lambda photo: photo.name, scan=scan)
    assert dataset.excluded == 2


def test_the_default_facts_never_count_as_unchanged():
    assert Photo("a").facts == Facts(0, 0, settled=False)


def test_a_new_kind_of_source_is_a_class_and_an_entry(
    tmp_path, photos, run_retrain, monkeypatch, capsys
):
    monkeypatch.setattr(registry, "SOURCES", (ZipSource, *registry.SOURCES))
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for path in sorted(Path(photos).rglob("*.jpg")):
            file.write(path, path.relative_to(photos))
    results = []
    for location in (photos, tmp_path / "photos.zip"):
        assert run_retrain(tmp_path / f"of_{len(results)}", location) == 0
        printed = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines())
        record = json.loads(Path(printed["metrics"]).read_text())
        results.append([record[part] for part in ("photos", "test", "bad_images", "course")])
    assert results[0] == results[1]
    assert results[0][1]["photos"] > 0
