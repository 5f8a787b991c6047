"""provide.py: the folder flower_photos, fetched or drawn."""

import hashlib
import http.server
import os
import tarfile
import threading
from functools import partial

import pytest

from retraining.examples import provide
from retraining.photos.dataset import load_dataset
from retraining.photos.folder import FolderSource
from retraining.system.download import Remote
from retraining.system.observer import Silent
from tests import tiny


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(provide, "PER_CLASS", 3)


@pytest.fixture
def archive(tmp_path):
    """A small flower_photos.tgz on a local server: its Remote."""
    tiny.write_photos(tmp_path / "source" / "flower_photos", {"red": 4, "blue": 4})
    (tmp_path / "www").mkdir()
    path = tmp_path / "www" / "flower_photos.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "source" / "flower_photos", "flower_photos")
    content = path.read_bytes()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/flower_photos.tgz"
        yield Remote((url,), len(content), hashlib.sha256(content).hexdigest())
        server.shutdown()


NOWHERE = Remote(("http://127.0.0.1:9/flower_photos.tgz",))


def test_the_photos_are_fetched_and_the_archive_removed(tmp_path, archive):
    folder = tmp_path / "flower_photos"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    assert provide.provide(folder, False, Silent(), archive) is None
    assert len(load_dataset(str(folder)).examples) == 8
    assert sorted(os.listdir(folder)) == ["README.md", "blue", "red"]
    assert (folder / "README.md").read_text() == "mine"
    assert provide.caveat(folder) is None


def test_what_is_there_stays(tmp_path, archive):
    folder = tmp_path / "flower_photos"
    (folder / "red").mkdir(parents=True)
    (folder / "red" / "photo_00.jpg").write_text("mine")
    assert provide.provide(folder, False, Silent(), archive) is None
    assert (folder / "red" / "photo_00.jpg").read_text() == "mine"
    assert len(os.listdir(folder / "red")) == 4


def test_without_a_network_flowers_are_drawn_and_marked(tmp_path, few):
    folder = tmp_path / "flower_photos"
    assert "127.0.0.1:9" in provide.provide(folder, False, Silent(), NOWHERE)
    dataset = load_dataset(str(folder))
    assert dataset.labels == ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
    assert len(dataset.examples) == 15
    assert "drawings" in provide.caveat(folder)
    assert sorted(os.listdir(folder)) == ["THESE_ARE_DRAWINGS.txt", *dataset.labels]


def test_offline_draws_without_asking(tmp_path, few, archive):
    folder = tmp_path / "flower_photos"
    assert provide.provide(folder, True, Silent(), archive) == "`NetworkSettings.offline` was given"
    assert (folder / "THESE_ARE_DRAWINGS.txt").exists()


def test_a_wrong_archive_is_not_unpacked(tmp_path, few, archive):
    wrong = Remote(archive.urls, archive.size, "0" * 64)
    folder = tmp_path / "flower_photos"
    assert "SHA-256" in provide.provide(folder, False, Silent(), wrong)
    assert not (folder / "red").exists()
    assert (folder / "daisy").exists()


@pytest.mark.parametrize("left", [0, 0.5])
def test_a_wrong_archive_that_is_there_is_moved_aside(tmp_path, archive, left):
    folder = tmp_path / "flower_photos"
    folder.mkdir()
    sound = (tmp_path / "www" / "flower_photos.tgz").read_bytes()
    bad = sound[: int(left * len(sound))] or b"<html>Please log in</html>"
    (folder / "flower_photos.tgz").write_bytes(bad)
    assert provide.provide(folder, False, Silent(), archive) is None
    assert sorted(os.listdir(folder)) == ["blue", "flower_photos.tgz.refused", "red"]
    assert (folder / "flower_photos.tgz.refused").read_bytes() == bad


def test_an_interrupted_drawing_leaves_nothing_half_done(tmp_path, few, monkeypatch):
    def interrupted(folder, per_class, progress):
        (folder / "daisy").mkdir()
        (folder / "daisy" / "drawing_00.jpg").write_bytes(b"\xff\xd8\xff")
        raise KeyboardInterrupt

    folder = tmp_path / "flower_photos"
    with monkeypatch.context() as patch:
        patch.setattr(provide, "draw_flower_photos", interrupted)
        with pytest.raises(KeyboardInterrupt):
            provide.provide(folder, True, Silent(), NOWHERE)
    assert not FolderSource(folder).holds_images()
    provide.provide(folder, True, Silent(), NOWHERE)
    assert len(load_dataset(str(folder)).examples) == 15


def test_which_folder_is_the_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "project"
    assert provide.is_example_folder("flower_photos", project)
    assert provide.is_example_folder("./flower_photos/", project)
    assert provide.is_example_folder(project / "flower_photos", project)
    assert not provide.is_example_folder("other", project)
    assert not provide.is_example_folder("typo/flower_photos", project)


def test_holds_images(tmp_path):
    assert not FolderSource(tmp_path / "missing").holds_images()
    (tmp_path / "daisy").mkdir()
    (tmp_path / "daisy" / "notes.txt").write_text("x")
    assert not FolderSource(tmp_path).holds_images()
    (tmp_path / "daisy" / "photo").write_bytes(b"\xff\xd8\xff")
    assert FolderSource(tmp_path).holds_images()


def test_the_public_archive_is_pinned():
    assert provide.PHOTOS.size == 228_813_984
    assert provide.PHOTOS.sha256.startswith("4c54ace7911a")
