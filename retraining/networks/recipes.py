"""What a user may choose of a network that is frozen here, and what its maker is told.

A recipe is what makes a network's frozen graph once. It has `name`, `folder`, `size`, `mean` and
`std` as a networks.Network has them, `file_name_in(Place)`, which differs wherever the graph would,
and `build(Place) -> GraphDef`.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from retraining.errors import RetrainingError
from retraining.system.download import CHUNK

FLAGS = {
    "weights": "--weights",
    "layer": "--bottleneck_layer",
    "height": "--input_height",
    "width": "--input_width",
    "mean": "--input_mean",
    "std": "--input_std",
}


class ChoiceError(RetrainingError):
    """A network that is not known, or cannot be had as it was asked for."""


@dataclass(frozen=True)
class Choice:
    """What was asked for; None where the network shall decide."""

    weights: str | None = None  # a file, or `imagenet` or `random`
    layer: str | None = None  # whose output is the bottleneck
    height: int | None = None  # pixels
    width: int | None = None
    mean: float | None = None  # of pixels of 0..255
    std: float | None = None
    model_file: str | None = None
    allow_unsafe_ops: bool = False

    def refuse(self, network, *fields):
        """Raises ChoiceError if one of the fields is chosen, which means nothing for `network`."""
        for field in fields:
            if getattr(self, field) is not None:
                raise ChoiceError(f"{FLAGS[field]} has no meaning with {network}; drop it")


@dataclass(frozen=True)
class Place:
    """Where a recipe may look for files, and whether it may fetch them."""

    model_dir: Path
    offline: bool = False
    quiet: bool = False


def short_hash(path):
    """The first 12 hex digits of the SHA-1 of a file's bytes, or of all files in a folder.

    Raises:
        OSError: it cannot be read.
    """
    path, digest = Path(path), hashlib.sha1()
    files = [path] if not path.is_dir() else sorted(p for p in path.rglob("*") if p.is_file())
    for each in files:
        if each != path:
            digest.update(each.relative_to(path).as_posix().encode("utf-8", "surrogateescape"))
        digest.update(b"\0%d\0" % os.path.getsize(each))
        with open(each, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:12]
