"""The drawings that stand in for the flower photos."""

import errno
import io
import itertools
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from retraining.examples import drawings
from retraining.examples.drawings import DrawingError, draw_flower, draw_flower_photos

LABELS = ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
PER_CLASS = 6


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with six drawings of each class; read only."""
    folder = tmp_path_factory.mktemp("drawn") / "flower_photos"
    assert draw_flower_photos(folder, PER_CLASS) == len(LABELS) * PER_CLASS
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, by its path relative to it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pixels_of(file: Path | io.BytesIO) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image, dtype=float)


def test_writes_these_files_and_no_others(drawn):
    expected = {f"{label}/drawing_{i:02d}.jpg" for label in LABELS for i in range(PER_CLASS)}
    assert set(contents(drawn)) == expected | {"THESE_ARE_DRAWINGS.txt"}


def test_pictures_are_rgb_jpegs_of_the_stated_sizes(drawn):
    sizes = set()
    for path in drawn.glob("*/*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.add(image.size)
    assert all(320 <= width <= 400 and 240 <= height <= 400 for width, height in sizes)
    assert len(sizes) > PER_CLASS


def test_note_says_what_they_are_and_how_to_get_the_photos(drawn):
    note = (drawn / "THESE_ARE_DRAWINGS.txt").read_text()
    assert "drawings, not photos" in note
    assert "http://download.tensorflow.org/example_images/flower_photos.tgz" in note
    assert "228,813,984 bytes" in note
    assert "Delete the drawings" in note


def test_same_seed_gives_the_same_bytes_whatever_the_number(drawn, tmp_path):
    draw_flower_photos(tmp_path, per_class=2)
    again = contents(tmp_path)
    assert len(again) == 11
    assert again == {name: data for name, data in contents(drawn).items() if name in again}


def test_another_process_gives_the_same_bytes(drawn, tmp_path):
    code = (
        "import pathlib, sys; from retraining.examples.drawings import draw_flower_photos as draw"
    )
    code += "; draw(pathlib.Path(sys.argv[1]), 1)"
    subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        check=True,
        cwd=Path(drawings.__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    assert len(contents(tmp_path)) == 6
    assert contents(tmp_path).items() <= contents(drawn).items()


def test_another_seed_gives_other_pictures(drawn, tmp_path):
    draw_flower_photos(tmp_path, per_class=1, seed=1)
    for label in LABELS:
        name = f"{label}/drawing_00.jpg"
        assert (tmp_path / name).read_bytes() != (drawn / name).read_bytes()


def test_a_killed_run_is_marked_and_can_be_finished(drawn, tmp_path):
    def kill(done, total):
        assert total == 5
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_flower_photos(tmp_path, per_class=1, progress=kill)
    assert len(contents(tmp_path)) == 4
    assert (tmp_path / "THESE_ARE_DRAWINGS.txt").exists()
    assert draw_flower_photos(tmp_path, per_class=1) == 2
    for label in LABELS:
        name = f"{label}/drawing_00.jpg"
        assert (tmp_path / name).read_bytes() == (drawn / name).read_bytes()


def test_the_note_is_there_before_the_first_drawing(tmp_path, monkeypatch):
    def note_is_there(label, rng):
        assert (tmp_path / "THESE_ARE_DRAWINGS.txt").exists()
        return b"a drawing"

    monkeypatch.setattr(drawings, "draw_flower", note_is_there)
    assert draw_flower_photos(tmp_path, per_class=1) == 5


@pytest.fixture
def quick(monkeypatch):
    """A few bytes in place of each drawing, for tests that are about files only."""
    monkeypatch.setattr(drawings, "draw_flower", lambda label, rng: b"a drawing")


@pytest.mark.usefixtures("quick")
def test_existing_files_are_left_as_they_are(tmp_path):
    mine = {"roses/drawing_00.jpg": b"my rose", "THESE_ARE_DRAWINGS.txt": b"my note"}
    (tmp_path / "roses").mkdir()
    for name, data in mine.items():
        (tmp_path / name).write_bytes(data)
    steps = []
    assert draw_flower_photos(tmp_path, 2, progress=lambda *step: steps.append(step)) == 9
    after = contents(tmp_path)
    assert {name: after[name] for name in mine} == mine
    assert steps == [(done, 10) for done in range(1, 11)]
    assert draw_flower_photos(tmp_path, 2) == 0
    assert contents(tmp_path) == after


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DrawingError) as caught:
        draw_flower_photos(tmp_path / "file" / "flower_photos", per_class=1)
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'file'}")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("quick")
def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path, monkeypatch):
    replace = os.replace

    def run_full(source, target):
        if Path(target).name == "drawing_01.jpg":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", run_full)
    with pytest.raises(DrawingError, match=r"^cannot write .*: No space left on device; choose"):
        draw_flower_photos(tmp_path, per_class=2)
    assert set(contents(tmp_path)) == {"THESE_ARE_DRAWINGS.txt", "daisy/drawing_00.jpg"}


@pytest.mark.parametrize("seed", range(4))
def test_the_same_scene_whatever_the_flower(seed):
    pictures = [pixels_of(io.BytesIO(draw_flower(label, Random(seed)))) for label in LABELS]
    assert len({picture.shape for picture in pictures}) == 1
    usual = np.median(np.stack(pictures), axis=0)
    for picture in pictures:
        same = np.abs(picture - usual).max(axis=2) < 12  # JPEG changes pixels near a flower
        assert same[:20].mean() > 0.6, "the top edge shows the same background"
        assert same.mean() < 0.99, "but the flowers differ"


def test_the_background_does_not_tell_the_class(drawn):
    edges = np.array(
        [
            [pixels_of(path)[:12].mean(axis=(0, 1)) for path in sorted((drawn / label).iterdir())]
            for label in LABELS
        ]
    )
    between = np.abs(edges.mean(axis=1) - edges.mean(axis=(0, 1))).max()
    within = edges.std(axis=1).mean()
    assert edges.shape == (5, PER_CLASS, 3)
    assert between < within


@pytest.mark.parametrize("label", LABELS)
def test_the_pictures_of_a_class_differ(drawn, label):
    small = []
    for path in sorted((drawn / label).iterdir()):
        with Image.open(path) as image:
            small.append(np.asarray(image.resize((32, 32)), dtype=float))
    for first, second in itertools.combinations(small, 2):
        assert np.abs(first - second).mean() > 10
