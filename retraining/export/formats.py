"""Other formats of a retrained graph; each is tested on held-out photos before it is written."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retraining.export.build import ExportError
from retraining.export.convert import FORMATS, FROM_FILES, Agreement
from retraining.export.to_onnx import check_installed
from retraining.export.verify import SAME_PROBABILITY, SAME_TOP
from retraining.photos.registry import absolute
from retraining.system.atomic import Content
from retraining.system.package import project_folder

MOST_PHOTOS = 50  # that test a format
INT8 = "tflite_int8"  # TensorFlow Lite with int8 weights
# The least share of photos with the graph's first label, and the largest difference of a
# probability. With int8 weights the 0.25 MobileNet keeps the first label of 96 %, and one
# probability moved by 0.66.
TOLERANCES = {INT8: (0.8, 1.0)}
TOLERANCE = (SAME_TOP, SAME_PROBABILITY)


@dataclass(frozen=True)
class Format:
    """One format that the user asks for: `kind` as in convert.FORMATS, `path` of the output."""

    kind: str
    path: str

    @property
    def name(self) -> str:
        """The name of the format in printed results."""
        return self.kind.removesuffix("_int8")


def check_possible(formats: Sequence[Format]) -> None:
    """Checks that the packages of the formats are installed, before the run spends hours.

    Raises:
        MissingPackageError: one is missing.
    """
    if any(each.name == "onnx" for each in formats):
        check_installed()


@dataclass(frozen=True)
class Made:
    """One format that is ready to be written; `name` is that of its Format.

    `content` belongs at `path`: bytes, or {path in it: bytes} of a folder. `agreement` says in one
    line how large it is and how its answers compare with those of the graph.
    """

    name: str
    path: str
    content: Content
    agreement: str


def make(
    formats: Sequence[Format], graph: bytes, photos: Sequence[str], max_pixels: int
) -> list[Made]:
    """Converts a retrained graph to each Format and tests it on photos; returns a Made for each.

    Args:
        graph: bytes of a retrained graph that describes itself; photos: paths, at least one.
        max_pixels: larger images are not read.

    Raises:
        ExportError: a format cannot be made, or its answers differ from those of the graph.
    """
    with tempfile.TemporaryDirectory(prefix="retrain-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "graph.pb").write_bytes(graph)
        request = {
            "photos": [absolute(path) for path in photos],
            "max_image_pixels": max_pixels,
        }
        return [_made(each, folder, _convert(folder, each.kind, request)) for each in formats]


def _convert(folder: Path, kind: str, request: Mapping[str, Any]) -> dict[str, Agreement]:
    """Runs `convert` for one format in a process of its own; returns its answers.

    That process keeps the output of the libraries from stderr, and gives back their memory before
    the next format begins.
    """
    text = json.dumps({"format": kind, **request})
    (folder / "request.json").write_text(text, encoding="ascii")
    command = [sys.executable, "-m", "retraining.export.convert", os.path.abspath(folder)]
    done = subprocess.run(
        command,
        cwd=project_folder(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"the converter ended with exit code {done.returncode}"
        raise ExportError(f"another format cannot be made: {reason}; nothing was replaced")
    answers = json.loads((folder / "answers.json").read_text(encoding="ascii"))
    return {fed: tuple(found) for fed, found in answers.items()}


def _made(wanted: Format, folder: Path, ways: Mapping[str, Agreement]) -> Made:
    """Returns the Made of a Format that `convert` wrote to the folder; `ways` are its answers."""
    agreement = "; ".join(f"from {fed} {_judge(wanted, *found)}" for fed, found in ways.items())
    if wanted.kind == "saved_model" and FROM_FILES not in ways:
        agreement += f"; from {FROM_FILES} not checked, as TensorFlow reads none of these photos"
    file, path = folder / FORMATS[wanted.kind][0], wanted.path
    content: Content
    if file.is_dir():
        content = {p.relative_to(file).as_posix(): p.read_bytes() for p in _files_in(file)}
        path, size = next_version(path), sum(map(len, content.values()))
    else:
        content = file.read_bytes()
        size = len(content)
    return Made(wanted.name, path, content, f"{wanted.kind}, {size / 1e6:.1f} MB: {agreement}")


def _files_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _judge(wanted: Format, count: int, same: float, difference: float) -> str:
    """Returns one line on how the answers of a format compare with those of the graph.

    Raises:
        ExportError: they differ by more than TOLERANCE or TOLERANCES allows.
    """
    least, most = TOLERANCES.get(wanted.kind, TOLERANCE)
    found = (
        f"the same first label for {round(same * count)} of {count} photos, probabilities up to "
        f"{difference:.2g} apart"
    )
    if not (same >= least and difference <= most):  # NaN fails this
        raise ExportError(
            f"{wanted.kind} does not answer as the retrained graph does: {found}; nothing was "
            f"replaced"
        )
    return found


def next_version(folder: str) -> str:
    """Returns the path of the next version in a model folder of TensorFlow Serving."""
    with contextlib.suppress(FileNotFoundError):
        numbers = [int(name) for name in os.listdir(folder) if re.fullmatch("[0-9]+", name)]
        return os.path.join(folder, str(max(numbers, default=0) + 1))
    return os.path.join(folder, "1")
