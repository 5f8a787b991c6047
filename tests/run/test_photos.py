"""photos.py: settings that need held-out photos, and whether the source gives any."""

import zipfile

import pytest

from retraining.bottlenecks.compute import BottleneckSettings
from retraining.bottlenecks.ray_engine import Local, Ray
from retraining.photos.dataset import Example
from retraining.photos.source import DatasetError
from retraining.photos.split import SPLITS, VALIDATION, SplitOptions
from retraining.run.notes import RunContext
from retraining.run.photos import check_classes, find_photos
from retraining.run.settings import (
    EvaluationSettings,
    HeadSettings,
    PhotoSettings,
    RunSettings,
)
from retraining.system.observer import Silent
from retraining.system.ranges import SettingsError
from retraining.training.loop import TrainingOptions
from tests.photos.files import JPEG, split_folders

NOTHING_CUT = SplitOptions(validation=0, testing=0)
PARTS = {"train": {"a": 5, "b": 5}, "val": {"a": 2, "b": 2}}


def find(tmp_path, engine, split=NOTHING_CUT, **parts):
    vectors = BottleneckSettings(str(tmp_path / "cache"), engine=engine)
    photos = PhotoSettings(str(tmp_path / "photos"), split=split)
    return find_photos(RunContext(RunSettings(photos, bottlenecks=vectors, **parts), Silent()))


@pytest.mark.parametrize("engine", [Local(), Ray()])
@pytest.mark.parametrize(
    "head", [HeadSettings(search=True), HeadSettings(TrainingOptions(early_stopping=3))]
)
def test_given_validation_photos_are_enough(tmp_path, engine, head):
    split_folders(tmp_path / "photos", **PARTS)
    found = find(tmp_path, engine, head=head)
    assert found.dataset is None or len(found.dataset.split(VALIDATION)) == 4


@pytest.mark.parametrize("engine", [Local(), Ray()])
def test_photos_that_no_one_holds_out_are_missed_before_any_vector(tmp_path, engine):
    split_folders(tmp_path / "photos", **PARTS)
    least = EvaluationSettings(least_accuracy=0.5)
    with pytest.raises(
        DatasetError, match=r"`EvaluationSettings.least_accuracy` needs photos for testing"
    ):
        find(tmp_path, engine, evaluation=least)
    pooled = SplitOptions(validation=0, testing=10, by="content")
    with pytest.raises(SettingsError, match=r"`HeadSettings.search` needs photos for validation"):
        find(tmp_path, engine, pooled, head=HeadSettings(search=True))


def test_a_folder_in_an_archive_at_a_url_is_read(tmp_path):
    store = pytest.importorskip("fsspec").filesystem("memory")
    with store.open("/bucket/photos.zip", "wb") as stored, zipfile.ZipFile(stored, "w") as file:
        for name in ("more photos/a/1.jpg", "more photos/b/1.jpg", "other/c/1.jpg"):
            file.writestr(name, JPEG + name.encode())
    photos = PhotoSettings("memory://bucket/photos.zip/more%20photos", split=NOTHING_CUT)
    vectors = BottleneckSettings(str(tmp_path / "cache"))
    found = find_photos(RunContext(RunSettings(photos, bottlenecks=vectors), Silent()))
    assert [example.label for example in found.dataset.examples] == ["a", "b"]
    (kept,) = (tmp_path / "cache" / "archives").iterdir()
    assert found.dataset.examples[0].path == f"{kept}/more photos/a/1.jpg"


def test_photos_that_take_long_to_find_and_to_hash_show_progress(tmp_path, monkeypatch):
    monkeypatch.setattr("retraining.system.observer.LATE_SECONDS", 0)
    split_folders(tmp_path / "photos", **PARTS)
    shown, events = [], []

    class Watcher(Silent):
        def progress(self, label, unit):
            shown.append([label, 0])
            of_label, bar = shown[-1], super().progress(label, unit)

            def counting(iterable, total=None):
                made = bar(iterable, total)
                made.update = lambda n: of_label.__setitem__(1, of_label[1] + n)
                made.close = lambda: events.append(f"{label} ends")
                events.append(label)
                return made

            return counting

    vectors = BottleneckSettings(str(tmp_path / "cache"))
    settings = RunSettings(PhotoSettings(str(tmp_path / "photos")), bottlenecks=vectors)
    find_photos(RunContext(settings, Watcher()))
    assert shown == [["finding photos", 14], ["hashing photos", 14]]
    one_by_one = ["finding photos", "finding photos ends", "hashing photos", "hashing photos ends"]
    assert list(dict.fromkeys(events)) == one_by_one


def test_many_classes_that_bad_photos_have_made_small_get_one_warning(caplog):
    labels = [f"class {number}" for number in range(200)]
    examples = {part: [Example(f"{n}.jpg", n, part, n) for n in labels] for part in SPLITS}
    check_classes(examples, labels)
    (warning,) = caplog.messages
    assert warning.startswith("200 classes have fewer than 20 readable images left: class 0 (3), ")
    with pytest.raises(DatasetError, match="no readable image of class 7 is left"):
        check_classes({**examples, "training": examples["training"][:7]}, labels)
