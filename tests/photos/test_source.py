"""source.py and registry.py: every kind of source is one thing to those that use it."""

import pickle
from dataclasses import dataclass

import pytest

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
