"""A results record -> TensorBoard. Never touches a graph."""

import io
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retraining.errors import RetrainingError
from retraining.graphs.tensorflow import import_tensorflow
from retraining.photos.dataset import Example

MOST_CLASSES = 60  # sides of the confusion matrix's picture
CELL = 36  # pixels of one of its cells
SPRITE_SIDE = 64  # pixels of a thumbnail in the projector
DARKEST = (31, 102, 193)  # colour of a cell that holds all of its row
MISSING = (128, 128, 128)  # colour of a photo that cannot be shown


class ReportError(RetrainingError):
    """The report cannot be written; says why."""


class TensorBoardLog:
    """Writes accuracy and cross entropy of training and validation as event files.

    Each run gets its own new folder below `summaries_dir`, so that nothing is ever deleted and
    TensorBoard shows runs side by side. Use as a context manager.
    """

    def __init__(self, summaries_dir, name=None):
        """With a `name`, `summaries_dir` is a run's folder, and the log a part of it.

        Raises:
            ReportError: the folder cannot be made.
        """
        tf = import_tensorflow()
        self.folder = Path(summaries_dir) / name if name else _new_folder(Path(summaries_dir))
        self._summary = tf.Summary
        with tf.Graph().as_default():  # this writer needs no tensorboard, but no eager mode either
            self._writers = {
                part: tf.FileWriter(str(self.folder / part)) for part in ("train", "validation")
            }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for writer in self._writers.values():
            writer.close()

    def add(self, step):
        """Adds a train.Step that has evaluations."""
        for part, evaluation in (("train", step.training), ("validation", step.validation)):
            if not evaluation.count:
                continue
            summary = self._summary()
            summary.value.add(tag="accuracy", simple_value=evaluation.accuracy)
            summary.value.add(tag="cross_entropy", simple_value=evaluation.cross_entropy)
            self._writers[part].add_summary(summary, step.number)


def write_confusion(folder, confusion, labels):
    """Adds a picture of the confusion matrix, int [k, k], to a run's folder as `test`.

    Of many classes the first MOST_CLASSES are drawn.
    """
    tf, most = import_tensorflow(), MOST_CLASSES
    picture = draw_confusion(confusion[:most, :most], labels[:most])
    summary, content = tf.Summary(), io.BytesIO()
    picture.save(content, "PNG")
    image = summary.value.add(tag="confusion_matrix").image
    image.width, image.height, image.colorspace = *picture.size, 3
    image.encoded_image_string = content.getvalue()
    with tf.Graph().as_default():
        writer = tf.FileWriter(str(Path(folder) / "test"))
    writer.add_summary(summary, 0)
    writer.close()


def draw_confusion(confusion, labels):
    """A Pillow picture: a row per true class, a column per answer, darker for more of the row."""
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


def _draw_cell(draw, corner, count, share, font):
    """One cell; `share` (0..1) of its row makes it darker."""
    left, top = corner
    paper = tuple(round(255 - share * (255 - part)) for part in DARKEST)
    draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill=paper)
    ink = "white" if share > 0.5 else "black" if count else "silver"
    draw.text((left + CELL // 2, top + CELL // 2), str(count), ink, font, anchor="mm")


@dataclass(frozen=True)
class Projected:
    """A photo (dataset.Example) and its vector, float32 [width]."""

    example: Example
    vector: np.ndarray


def write_projector(folder, photos, thumbnails):
    """Puts the Projected photos where TensorBoard's projector finds them: beside events, `test`.

    Files: projector_config.pbtxt, vectors.tsv, metadata.tsv (label, split, file), sprite.png.
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


def _metadata(example):
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


def sprite(jpegs):
    """One square Pillow picture of all thumbnails (JPEG bytes or None), row by row."""
    from PIL import Image

    columns = math.ceil(math.sqrt(len(jpegs)))
    whole = Image.new("RGB", (columns * SPRITE_SIDE,) * 2, "white")
    for number, jpeg in enumerate(jpegs):
        row, column = divmod(number, columns)
        small = Image.new("RGB", (SPRITE_SIDE,) * 2, "white" if jpeg else MISSING)
        if jpeg:
            picture = Image.open(io.BytesIO(jpeg))
            picture.thumbnail(small.size)
            small.paste(picture, tuple((SPRITE_SIDE - side) // 2 for side in picture.size))
        whole.paste(small, (column * SPRITE_SIDE, row * SPRITE_SIDE))
    return whole


def shown(name):
    """The name on one line and without undecodable bytes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in text)


def _new_folder(parent):
    """Makes a folder named after the time; two runs in one second get two."""
    stamp = time.strftime("%Y-%m-%d_%H%M%S")
    for name in (stamp, *(f"{stamp}_{n}" for n in range(2, 1000))):
        try:
            (parent / name).mkdir(parents=True)
            return parent / name
        except FileExistsError:
            continue
        except OSError as error:
            raise ReportError(f"cannot make a folder in {parent}: {error.strerror}") from error
    raise ReportError(f"{parent} is a file or full of folders; choose another --summaries_dir")
