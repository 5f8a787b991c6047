"""Shows what happens with photos as people have them: layouts of folders, formats, archives.

python -m tests.layouts             writes docs/layouts.md
python -m tests.layouts CHECKOUT    prints a table that compares another checkout with this one

Each layout is made of tiny drawn photos. The command then runs up to the network: it reads its
flags, finds the photos, and decodes each.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests import ROOT
from tests.photos.dng import dng

# Runs in a checkout, for each (folder, arguments) in a file; prints a JSON line for each.
DRIVER = """
import collections, json, os, sys
from pathlib import Path

sys.argv[0] = "retrain.py"
import retraining.cli.retrain as command
import retraining.run.retrain as steps
from retraining.photos.decode import decode
from retraining.photos.registry import read_bytes

find, answers = steps.find_photos, sys.stdout

def find_and_decode(run):
    dataset = find(run).dataset
    counts = collections.Counter()
    for example in dataset.examples:
        try:
            decode(read_bytes(example.path))
        except Exception as error:
            print(f"retrain.py: left out: {example.path} {error}", file=sys.stderr)
        else:
            counts[example.label] += 1
    for image in dataset.bad:
        if image.claimed:
            print(f"retrain.py: left out: {image.path} {image.reason}", file=sys.stderr)
    print("\\t" + ", ".join(f"{label} {counts[label]}" for label in dataset.labels))
    sys.exit(0 if all(counts[label] for label in dataset.labels) else 1)

steps.find_photos = find_and_decode
log = Path(sys.argv[1])
sys.stdout = sys.stderr = open(log, "w", encoding="utf-8", buffering=1)
for folder, arguments in json.loads(Path(sys.argv[2]).read_text()):
    os.chdir(folder)
    before = log.stat().st_size
    code = command.main(arguments)
    print(json.dumps([code, log.read_bytes()[before:].decode()]), file=answers)
"""
FEW = ("give a better model", "have fewer than 20 images", " photos of ")  # of no interest here


@dataclass(frozen=True)
class Layout:
    """A layout: its name, what makes it in the folder `photos`, and flags."""

    name: str
    make: Callable[[Path], object]
    flags: tuple[str, ...] = ()
    location: str = "photos"


@dataclass(frozen=True)
class Result:
    """What a run did: its exit code, the photos that it takes, the lines that it printed."""

    code: int
    photos: str
    lines: list[str]

    @property
    def cells(self):
        done = (
            f"takes {self.photos}" if self.code == 0 else "refuses" if self.code > 0 else "crashes"
        )
        return [done, str(self.code), "<br>".join(map(_escaped, self.lines))]


def photo(path, number=0):
    """A small picture, each number another; its name gives the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shades = bytes((37 * number + 11 * place) % 256 for place in range(16 * 12 * 3))
    Image.frombytes("RGB", (16, 12), shades).save(path)


def photos(*folders, suffix=".jpg", count=3):
    """Returns what makes a few photos in each of the folders."""

    def make(top):
        for number, folder in enumerate(folders):
            for n in range(count):
                photo(top / folder / f"photo_{n}{suffix}", 10 * number + n)

    return make


def files(*names):
    """Returns what makes photos of the names; others than .jpg hold text, folders end with /."""

    def make(top):
        for number, name in enumerate(names):
            if name.endswith(".jpg"):
                photo(top / name, 100 + number)
            elif name.endswith("/"):
                (top / name).mkdir(parents=True)
            else:
                (top / name).parent.mkdir(parents=True, exist_ok=True)
                (top / name).write_text("text")

    return make


def renamed(folder, *names):
    """Returns what makes JPEG photos of any names."""

    def make(top):
        for number, name in enumerate(names):
            photo(top / folder / "photo.jpg", 10 * len(folder + name) + number)
            os.rename(top / folder / "photo.jpg", top / folder / name)

    return make


def empty(*names):
    """Returns what makes empty files."""

    def make(top):
        for name in names:
            (top / name).parent.mkdir(exist_ok=True)
            (top / name).touch()

    return make


def both(*makers):
    """Returns what makes several layouts in one folder."""

    def make(top):
        for maker in makers:
            maker(top)

    return make


def links(**targets):
    """Returns what makes links with targets."""

    def make(top):
        for name, target in targets.items():
            os.symlink(target, top / name)

    return make


def roboflow(*labels_of):
    """Returns what makes a Roboflow download; `labels_of` has the labels of each photo in turn."""

    def make(top):
        number = 0
        for split in ("train", "valid", "test"):
            rows = [["filename", " cat", " dog"]]
            for labels in labels_of:
                number += 1
                photo(top / split / f"{number}.jpg", number)
                rows.append([f"{number}.jpg", *(f" {int(n in labels)}" for n in ("cat", "dog"))])
            with open(top / split / "_classes.csv", "w", newline="") as file:
                csv.writer(file).writerows(rows)
        (top / "README.dataset.txt").write_text("text")

    return make


def heic(folder):
    """HEIC files of tests/photos: turned, in tiles, of 10 bits, with transparency."""
    drawn = {"cat": ("plain", "turned_6", "ten_bits"), "dog": ("grid", "alpha", "second_of_two")}
    for label, names in drawn.items():
        (folder / label).mkdir()
        for name in names:
            shutil.copy(ROOT / f"tests/photos/heic/{name}.heic", folder / label)


def raw(folder):
    """Raw files without a preview."""
    for label, width in (("cat", 64), ("dog", 80)):
        (folder / label).mkdir()
        for n in range(3):
            (folder / label / f"photo_{n}.dng").write_bytes(dng(width, 48 + 2 * n))


def jpeg_xl(folder):
    """Files that begin like JPEG XL."""
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for n in range(3):
            content = b"\xff\x0a" + f"{label} {n}".encode()
            (folder / label / f"photo_{n}.jxl").write_bytes(content)


def zipped(top):
    """Makes photos.zip."""
    CLASSES(top)
    with zipfile.ZipFile(top.parent / "photos.zip", "w") as file:
        for path in sorted(top.rglob("*.jpg")):
            file.write(path, path.relative_to(top.parent))


def file(name, content):
    """Returns what makes a file beside the folder `photos`."""

    def make(top):
        (top.parent / name).write_bytes(content)

    return make


def parts(top):
    """Makes a download from Google Drive in two parts, pets-1-001.zip and pets-1-002.zip."""
    CLASSES(top)
    for part in ("001", "002"):
        with zipfile.ZipFile(top / f"pets-1-{part}.zip", "w") as archive:
            for path in sorted(top.rglob(f"*_{int(part)}.jpg")):
                archive.write(path, path.relative_to(top))
    for label in KINDS:
        shutil.rmtree(top / label)


def without_ending(top):
    """Makes a zip file named photos_zip."""
    zipped(top)
    os.rename(top.parent / "photos.zip", top.parent / "photos_zip")


def flat_zip(top):
    """Makes photos.zip, with one folder of photos that have labels in their names."""
    NUMBERED(top)
    with zipfile.ZipFile(top.parent / "photos.zip", "w") as archive:
        for path in sorted(top.glob("*.jpg")):
            archive.write(path, f"dogs/{path.name}")


def tarred(top):
    """Makes photos.tgz."""
    CLASSES(top)
    with tarfile.open(top.parent / "photos.tgz", "w:gz") as file:
        file.add(top, "photos")


def table(top):
    """Makes photos.csv."""
    CLASSES(top)
    rows = [f"{path.relative_to(top)},{path.parent.name}" for path in sorted(top.rglob("*.jpg"))]
    (top.parent / "photos.csv").write_text("\n".join(["path,label", *rows]))


KINDS = "cat", "dog"
CLASSES = photos(*KINDS)
MORE = photos("ant", "bee", "cat")
NUMBERED = files(*(f"{label}_{n:03d}.jpg" for label in ("corgi", "great_dane") for n in (1, 2, 3)))
KAGGLE = files(*(f"{label}.{n}.jpg" for label in ("cat", "dog") for n in (1, 2, 3)))
CAMERA = files(*(f"IMG_{n}.jpg" for n in range(2001, 2005)))

LAYOUTS = [
    Layout("class folders", CLASSES),
    Layout("class folders of one photo each", photos("cat", "dog", count=1)),
    Layout("split folders", photos("train/cat", "train/dog", "val/cat", "val/dog")),
    Layout("split folders in one folder", photos("pets/train/cat", "pets/train/dog")),
    Layout(
        "split folders in folders of the same name (Kaggle)",
        photos(*(f"{s}/{s}/{label}" for s in ("training_set", "test_set") for label in KINDS)),
    ),
    Layout(
        "folders of the same name, not named like splits",
        photos(*(f"{s}/{s}/{label}" for s in ("seg_train", "seg_test") for label in KINDS)),
    ),
    Layout("split folders that hold photos themselves", photos("train", "test")),
    Layout("class folders one level deeper", photos("pets/cat", "pets/dog")),
    Layout("class folders two levels deeper", photos("data/pets/cat", "data/pets/dog")),
    Layout(
        "class folders two levels deeper, and more on the way",
        both(photos("data/pets/cat", "data/pets/dog"), files("data/New folder/")),
    ),
    Layout(
        "class folders one level deeper, and a photo",
        both(photos("pets/cat", "pets/dog"), files("1.jpg")),
    ),
    Layout("Roboflow, one label for each photo", roboflow(["cat"], ["dog"])),
    Layout(
        "Roboflow, with more beside the split folders",
        both(roboflow(["cat"], ["dog"]), files("1.jpg", "New folder/", "more/2.jpg")),
    ),
    Layout("Roboflow, some with two or no labels", roboflow(["cat"], ["dog"], ["cat", "dog"], [])),
    Layout("Roboflow, most with two labels", roboflow(["cat", "dog"], ["cat", "dog"], ["dog"])),
    Layout("one folder, labels in the names", NUMBERED),
    Layout("one folder, labels in the names", NUMBERED, ("--label_from", "name")),
    Layout(
        "split folders, labels in the names",
        files(*(f"{s}/{label}_{n}.jpg" for s in ("train", "val") for label in "ab" for n in "123")),
        ("--label_from", "name"),
    ),
    Layout(
        "one folder in a folder, labels in the names",
        files(*(f"all/{label}_{n}.jpg" for label in KINDS for n in "123")),
        ("--label_from", "name"),
    ),
    Layout(
        "labels in the names, with folders and other files",
        both(NUMBERED, files("more/corgi_4.jpg", "notes_1.txt")),
        ("--label_from", "name"),
    ),
    Layout("`cat.1.jpg` (Kaggle)", KAGGLE, ("--label_from", "name")),
    Layout("one folder of a camera", CAMERA),
    Layout("one folder of a camera", CAMERA, ("--label_from", "name")),
    Layout("one class folder", photos("cat")),
    Layout("an empty `New folder`", both(CLASSES, files("New folder/"))),
    Layout(
        "folders of systems and programs",
        both(CLASSES, files("__MACOSX/._cat", "@eaDir/x.jpg", ".thumbnails/x.jpg", "Thumbs.db")),
    ),
    Layout(
        "more of them",
        both(CLASSES, files("$RECYCLE.BIN/x", "System Volume Information/x", "cat/@eaDir/x.jpg")),
    ),
    Layout("split folders with them", both(photos("train/cat", "train/dog"), files("__MACOSX/x"))),
    Layout("a link to a drive that is not there", both(CLASSES, links(owl="/nowhere/owl"))),
    Layout("a folder that cannot be read", both(CLASSES, links(owl="owl"))),
    Layout("a link back to the folder", both(CLASSES, links(owl="."))),
    Layout("a name of a class in two forms of Unicode", photos("caf\u00e9", "cafe\u0301")),
    Layout("photos beside class folders", both(CLASSES, files("1.jpg", "2.jpg", "README.txt"))),
    Layout("folders in class folders", both(CLASSES, files("cat/raw/1.jpg", "dog/raw/1.jpg"))),
    Layout(
        "folders in class folders",
        both(CLASSES, files("cat/raw/1.jpg", "dog/raw/1.jpg")),
        ("--recursive",),
    ),
    Layout("photos only in folders of class folders", photos("cat/a", "dog/a")),
    Layout("files that are not images", both(CLASSES, files("cat/notes.txt", "cat/cat.json"))),
    Layout(
        "what an iPhone keeps beside photos",
        both(CLASSES, files("cat/IMG_1.MOV", "cat/IMG_1.AAE", "dog/.DS_Store")),
    ),
    Layout(
        "names of all kinds",
        both(
            renamed("cat", "IMG-20240101-WA0001.jpg", "a.jpg.jpg", "B.JPG"),
            renamed("dog", "c.jfif", "d", "WhatsApp Image 2024-01-01 at 10.10.10 (1).jpeg"),
        ),
    ),
    Layout("empty files in place of photos", both(CLASSES, empty("cat/1.jpg", "dog/1.HEIC"))),
    Layout("nothing but empty files of a class", both(photos("cat"), empty("dog/1.jpg"))),
    Layout("photos that iCloud keeps", both(CLASSES, files("dog/.1.jpg.icloud"))),
    Layout(
        "class folders one level deeper, and a network of somebody",
        both(photos("pets/cat", "pets/dog"), files("EfficientNet.h5", "pets.csv")),
    ),
    Layout("some classes", MORE, ("--classes", "cat,ant")),
    Layout("a class that is not there", MORE, ("--classes", "cat,aunt")),
    Layout("a table", table, ("--photo_table", "photos.csv")),
    Layout("a zip file", zipped, location="photos.zip"),
    Layout("a tar file", tarred, location="photos.tgz"),
    Layout("a folder in a zip file", zipped, location="photos.zip/photos"),
    Layout("a zip file, labels in the names", flat_zip, location="photos.zip"),
    Layout(
        "a zip file, labels in the names",
        flat_zip,
        ("--label_from", "name"),
        location="photos.zip",
    ),
    Layout("a zip file without the ending of one", without_ending, location="photos_zip"),
    Layout("a download in two zip files (Google Drive)", parts, location="photos/pets-1-001.zip"),
    Layout("a folder of such files", parts),
    Layout("a 7-Zip archive", file("photos.7z", b"7z\xbc\xaf'\x1c"), location="photos.7z"),
    Layout(
        "`photos.zip` that is a page of a web site",
        file("photos.zip", b"<!DOCTYPE html>"),
        location="photos.zip",
    ),
    Layout("`photos.zip` that is empty", file("photos.zip", b""), location="photos.zip"),
    Layout(
        "`photos.zip` of which the end is missing",
        file("photos.zip", b"PK\3\4" + bytes(500)),
        location="photos.zip",
    ),
    Layout("a table in place of the folder", table, location="photos.csv"),
    *(
        Layout(f"{name} photos", photos("cat", "dog", suffix=suffix))
        for name, suffix in {
            "JPEG": ".jpg",
            "PNG": ".png",
            "GIF": ".gif",
            "WebP": ".webp",
            "TIFF": ".tif",
            "BMP": ".bmp",
            "AVIF": ".avif",
            "JPEG 2000": ".jp2",
            "PPM": ".ppm",
        }.items()
    ),
    Layout("HEIC photos", heic),
    Layout("raw files of a camera, with `requirements-formats.txt`", raw),
    Layout("JPEG XL photos", jpeg_xl),
    Layout("icons, which no decoder here reads", photos("cat", "dog", suffix=".ico")),
]


def run(layouts, scratch, checkout=ROOT):
    """Runs the command of a checkout on each layout, made in the folder; returns the Results."""
    jobs = [
        (str(folder), ["--image_dir", layout.location, *layout.flags]) for layout, folder in layouts
    ]
    (scratch / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(scratch / "log.txt"), str(scratch / "jobs.json")],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [_result(*json.loads(line)) for line in done.stdout.splitlines()]


def _result(code, printed):
    taken, lines = "", []
    for line in printed.splitlines():
        if line.startswith("\t"):
            taken = line[1:]
        elif not line.startswith("usage:") and not any(words in line for words in FEW):
            lines.append(line.removeprefix("retrain.py: "))
    return Result(code, taken, lines)


def results(checkouts):
    """Returns [(layout, a Result for each checkout)]."""
    with tempfile.TemporaryDirectory() as scratch:
        made = [(layout, Path(scratch) / str(number)) for number, layout in enumerate(LAYOUTS)]
        for layout, folder in made:
            (folder / "photos").mkdir(parents=True)
            layout.make(folder / "photos")
        columns = [run(made, Path(scratch), checkout) for checkout in checkouts]
    return [(layout, of_layout) for (layout, _), *of_layout in zip(made, *columns, strict=True)]


def _escaped(text):
    return text.replace("|", r"\|").replace("<", "&lt;").replace("__", r"\_\_")


def name_of(layout):
    given = f" (`{' '.join(layout.flags)}`)" if layout.flags else ""
    return layout.name + given


def to_markdown(header, rows):
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


INTRODUCTION = """# Layouts of photos

What `retrain.py` does with photos as people have them: each row is a run on a few drawn photos in
the folder `photos`. The last column has the words of the command, without its warnings of few
photos. [Photos and splits](photos-and-splits.md) has the rules.
"""
GENERATED = "<!-- python -m tests.layouts writes this page. -->"


def page():
    """Returns the text of docs/layouts.md."""
    rows = [[name_of(layout), *result.cells] for layout, (result,) in results([ROOT])]
    header = ["photos", "what the run does", "exit code", "what it says"]
    return f"{INTRODUCTION}\n{to_markdown(header, rows)}\n\n{GENERATED}\n"


def comparison(checkout):
    """Returns the table of another checkout and this one."""
    rows = []
    for layout, (before, after) in results([checkout, ROOT]):
        cells = [f"{r.cells[0]} ({r.code})<br>{r.cells[2]}" for r in (before, after)]
        rows.append([name_of(layout), *cells])
    return to_markdown(["photos", "before", "after"], rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(comparison(Path(sys.argv[1]).resolve()))
    else:
        (ROOT / "docs" / "layouts.md").write_text(page(), encoding="utf-8")
