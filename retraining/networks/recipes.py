"""Defines what users can choose of a network that we freeze, and what its recipe must offer."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from retraining.errors import RetrainingError
from retraining.graphs.messages import GraphDef
from retraining.graphs.preprocessing import PerChannel
from retraining.system.download import CHUNK
from retraining.system.observer import Observer
from retraining.system.regular import open_regular

MAX_MODEL = 4 << 30  # bytes of a file of weights: twice those that a frozen graph can hold


class ChoiceError(RetrainingError):
    """A network is unknown, or does not offer what the user chose."""


@dataclass(frozen=True)
class Choice:
    """The user's choices; None leaves a choice to the network."""

    weights: str | None = None  # a file, or `imagenet` or `random`
    layer: str | None = None  # the layer whose output is the bottleneck
    height: int | None = None  # pixels
    width: int | None = None
    mean: float | None = None  # for pixels 0..255
    std: float | None = None
    model_file: str | None = None
    allow_unsafe_ops: bool = False

    def refuse(self, network: str, *fields: str) -> None:
        """Raises ChoiceError if the user chose any of `fields`, which `network` does not offer."""
        for field in fields:
            if getattr(self, field) is not None:
                raise ChoiceError(f"`Choice.{field}` has no effect with {network}; drop it")


@dataclass(frozen=True)
class ModelFiles:
    """Where a recipe may look for files, and whether it may download them."""

    model_dir: Path
    offline: bool = False
    observer: Observer | None = None  # of downloads


class Recipe(Protocol):
    """Makes a network's frozen graph once. The properties mean the same as in registry.Network."""

    @property
    def choice(self) -> Choice: ...

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> str: ...

    @property
    def size(self) -> tuple[int, int]:
        """Returns (height, width) in pixels; 0 if only the graph tells."""

    @property
    def mean(self) -> PerChannel: ...

    @property
    def std(self) -> PerChannel: ...

    def file_name_in(self, files: ModelFiles, /) -> str:
        """Returns a name for the graph's file; different graphs have different names.

        Raises:
            ChoiceError: a file that the user chose is missing or cannot be read.
        """

    def build(self, files: ModelFiles, /) -> GraphDef:
        """Returns the frozen graph. Raises RetrainingError."""


class RecipeType(Protocol):
    """The class of a Recipe, which the registry lists."""

    HELP: str  # how users name its networks, in the help of the command

    def __call__(self, choice: Choice, /) -> Recipe: ...


def short_hash(path: str | Path) -> str:
    """Returns 12 hex digits of a SHA-1 hash of a file, or of all files in a folder.

    Raises:
        OSError: a file cannot be read, is no regular file, or has more than MAX_MODEL bytes.
    """
    path, digest = Path(path), hashlib.sha1()
    files = [path] if not path.is_dir() else sorted(p for p in path.rglob("*") if not p.is_dir())
    for file_path in files:
        if file_path != path:
            digest.update(file_path.relative_to(path).as_posix().encode("utf-8", "surrogateescape"))
        with open_regular(file_path, MAX_MODEL) as file:
            digest.update(b"\0%d\0" % os.fstat(file.fileno()).st_size)
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:12]
