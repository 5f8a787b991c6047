"""Writes what TensorBoard shows: the course of training, the confusion matrix, the projector."""

import contextlib
import io
import itertools
import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.tensorflow import import_tensorflow
from retraining.photos.dataset import Example
from retraining.photos.thumbnails import Thumbnails
from retraining.system.text import is_label, one_line
from retraining.training.loop import Step

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

log = logging.getLogger(__name__)

FILE_VERSION = "brain.Event:2"  # the first record of an event file, as TensorFlow writes it
MOST_CLASSES = 60  # rows and columns in the picture of the confusion matrix
CELL = 36  # width and height of one of its cells in pixels
SPRITE_SIDE = 64  # width and height of a thumbnail in the projector in pixels
DARKEST = (31, 102, 193)  # colour of a cell that holds all photos of its row
MISSING = (128, 128, 128)  # colour of a photo that cannot be shown


class EventFile:
    """Writes summaries to a new event file in a folder, each as soon as it is added.

    TensorFlow's own writer does that on a thread, which prints a traceback if the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        """Makes the folder if needed.

        Raises:
            OSError, tf.errors.OpError: the file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        tf = import_tensorflow()
        self._file, self._event = tf.TFRecordWriter(str(folder / name)), tf.Event
        self._write(file_version=FILE_VERSION)

    def add(self, summary: Any, step: int) -> None:
        """Adds a tf.Summary of a training step; raises as the constructor does."""
        self._write(summary=summary, step=step)

    def close(self) -> None:
        """Closes the file; raises as the constructor does."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()


class TensorBoardLog:
    """Writes accuracy and cross entropy of training and validation as event files.

    Each run gets its own new folder below `summaries_dir`, so that runs never overwrite each other
    and TensorBoard shows them side by side. Use it as a context manager. What cannot be written is
    missing; see `warns_of_failure`.
    """

    def __init__(
        self, summaries_dir: str | Path, name: str | None = None, tags: Sequence[str] = ()
    ) -> None:
        """Makes the folder; with a `name`, `summaries_dir` is a run's, and the log goes below it.

        The name of a new run's folder is the time and the `tags`, such as data set and network.
        """
        self.folder = Path(summaries_dir) / (name or _name(tags))
        self._summary = import_tensorflow().Summary
        self._writers: dict[str, EventFile] = {}
        with warns_of_failure(self.folder):
            self.folder = self.folder if name else _new_folder(self.folder)
            for part in ("train", "validation"):
                self._writers[part] = EventFile(self.folder / part)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with warns_of_failure(self.folder):
            for writer in self._writers.values():
                writer.close()

    def add(self, step: Step) -> None:
        """Adds the evaluations of a Step; skips those without images."""
        for part, evaluation in (("train", step.training), ("validation", step.validation)):
            if not evaluation or not evaluation.count or part not in self._writers:
                continue
            summary = self._summary()
            summary.value.add(tag="accuracy", simple_value=evaluation.accuracy)
            summary.value.add(tag="cross_entropy", simple_value=evaluation.cross_entropy)
            with warns_of_failure(self.folder):
                self._writers[part].add(summary, step.number)
                continue
            self._writers = {}


@contextlib.contextmanager
def warns_of_failure(folder: Path) -> Iterator[None]:
    """Turns an error in writing for TensorBoard into a warning: the model does not depend on it."""
    try:
        yield
    except (OSError, import_tensorflow().errors.OpError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        log.warning(f"the TensorBoard files in {folder} are incomplete: {reason}")


def write_confusion(
    folder: str | Path, confusion: NDArray[np.integer], labels: Sequence[str]
) -> None:
    """Adds a picture of the confusion matrix, int [k, k], to a run's folder as `test`.

    It shows the first MOST_CLASSES classes.
    """
    tf, most = import_tensorflow(), MOST_CLASSES
    picture = draw_confusion(confusion[:most, :most], labels[:most])
    summary, content = tf.Summary(), io.BytesIO()
    picture.save(content, "PNG")
    image = summary.value.add(tag="confusion_matrix").image
    image.width, image.height, image.colorspace = *picture.size, 3
    image.encoded_image_string = content.getvalue()
    file = EventFile(Path(folder) / "test")
    file.add(summary, 0)
    file.close()


def draw_confusion(confusion: NDArray[np.integer], labels: Sequence[str]) -> "Image":
    """Draws a row for each true class and a column for each answer.

    Cells are darker the larger their share of the row is.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(13)
    names = [shown(label)[:24] for label in labels]
    margin = 16 + max((int(font.getlength(name)) for name in names), default=0)
    picture = Image.new("RGB", (margin + CELL * len(labels),) * 2, "white")
    for number, name in enumerate(names):
        beside = Image.new("RGB", (margin, CELL), "white")
        ImageDraw.Draw(beside).text((margin - 8, CELL // 2), name, "black", font, anchor="rm")
        place = margin + CELL * number
        picture.paste(beside, (0, place))
        picture.paste(beside.transpose(Image.Transpose.ROTATE_270), (place, 0))
    draw = ImageDraw.Draw(picture)
    for (row, column), count in np.ndenumerate(confusion):
        corner = margin + CELL * column, margin + CELL * row
        _draw_cell(draw, corner, count, count / max(1, confusion[row].sum()), font)
    return picture


def _draw_cell(
    draw: "ImageDraw",
    corner: tuple[int, int],
    count: int,
    share: float,
    font: "FreeTypeFont | ImageFont",
) -> None:
    """Draws one cell, darker for a larger `share` (0..1) of its row."""
    left, top = corner
    paper = tuple(round(255 - share * (255 - part)) for part in DARKEST)
    draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill=paper)
    ink = "white" if share > 0.5 else "black" if count else "silver"
    draw.text((left + CELL // 2, top + CELL // 2), str(count), ink, font, anchor="mm")


@dataclass(frozen=True)
class Projected:
    """A photo and its vector, float32 [width]."""

    example: Example
    vector: NDArray[np.float32]


def write_projector(
    folder: str | Path, photos: Sequence[Projected], thumbnails: Thumbnails
) -> None:
    """Writes the Projected photos to `test` in a run's folder, for TensorBoard's projector.

    The files are projector_config.pbtxt, vectors.tsv, metadata.tsv (label, split, file) and
    sprite.png.
    """
    if not photos:
        return
    folder = Path(folder) / "test"
    folder.mkdir(exist_ok=True)
    small = thumbnails.of([photo.example.path for photo in photos])
    whole = sprite([small[photo.example.path] for photo in photos])
    whole.save(folder / "sprite.png", compress_level=1)
    row = "\t".join(["%.5g"] * len(photos[0].vector))  # a third of the time of value by value
    for name, lines in (
        ("vectors.tsv", [row % tuple(photo.vector.tolist()) for photo in photos]),
        ("metadata.tsv", ["label\tsplit\tfile", *(_metadata(p.example) for p in photos)]),
        ("projector_config.pbtxt", PROJECTOR),
    ):
        text = "".join(f"{line}\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _metadata(example: Example) -> str:
    return "\t".join((shown(example.label), example.split, shown(os.path.basename(example.path))))


PROJECTOR = f"""embeddings {{
  tensor_name: "bottlenecks"
  tensor_path: "vectors.tsv"
  metadata_path: "metadata.tsv"
  sprite {{
    image_path: "sprite.png"
    single_image_dim: [{SPRITE_SIDE}, {SPRITE_SIDE}]
  }}
}}""".splitlines()


def sprite(jpegs: Sequence[bytes | None]) -> "Image":
    """Arranges all thumbnails (JPEG bytes or None) row by row in one square picture."""
    from PIL import Image

    columns = math.ceil(math.sqrt(len(jpegs)))
    whole = Image.new("RGB", (columns * SPRITE_SIDE,) * 2, "white")
    for number, jpeg in enumerate(jpegs):
        row, column = divmod(number, columns)
        small = Image.new("RGB", (SPRITE_SIDE,) * 2, "white" if jpeg else MISSING)
        if jpeg:
            picture = Image.open(io.BytesIO(jpeg))
            picture.thumbnail(small.size)
            left, top = ((SPRITE_SIDE - side) // 2 for side in picture.size)
            small.paste(picture, (left, top))
        whole.paste(small, (column * SPRITE_SIDE, row * SPRITE_SIDE))
    return whole


def shown(name: str) -> str:
    """Returns the name on one line and without undecodable bytes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(mark if is_label(mark) else "\N{REPLACEMENT CHARACTER}" for mark in text)


def _name(tags: Sequence[str]) -> str:
    """Returns a name for the folder of a run: the time and the tags."""
    safe = (re.sub(r"[^\w.-]+", "-", tag)[:40].strip("-.") for tag in tags)
    return "_".join([time.strftime("%Y-%m-%d_%H%M%S"), *filter(None, safe)])


def _new_folder(folder: Path) -> Path:
    """Makes a folder of that name, or of that name and a number if it is there already."""
    names = itertools.chain([folder.name], (f"{folder.name}_{n}" for n in range(2, 1000)))
    for name in names:
        with contextlib.suppress(FileExistsError):
            (new := folder.with_name(name)).mkdir(parents=True)
            return new
    raise FileExistsError(f"{folder.parent} is full of folders")
