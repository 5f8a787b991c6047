"""Other formats of a retrained graph, each run again on held-out photos before it is written."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from retraining.export.build import ExportError
from retraining.export.convert import FORMATS, FROM_FILES
from retraining.export.to_onnx import check_installed
from retraining.export.verify import SAME_PROBABILITY, SAME_TOP

PROJECT = Path(__file__).resolve().parents[2]
MOST_PHOTOS = 50  # on which a format is tried
INT8 = "tflite_int8"  # what TensorFlow Lite with int8 weights is called here
# Least share of photos with the graph's first label, and largest difference of a probability. With
# int8 weights the 0.25 MobileNet keeps the first label of 96 %, and one probability moved by 0.66.
TOLERANCES = {INT8: (0.8, 1.0)}
TOLERANCE = (SAME_TOP, SAME_PROBABILITY)


@dataclass(frozen=True)
class Format:
    """One format that is asked for: `kind` as in convert.FORMATS, `path` where it goes."""

    kind: str
    path: str

    @property
    def name(self):
        """What it is called where results are printed."""
        return self.kind.removesuffix("_int8")


def asked_for(options):
    """The Formats that the flags of retrain.py ask for."""
    formats = []
    if options.saved_model_dir:
        formats.append(Format("saved_model", options.saved_model_dir))
    if options.tflite_file:
        quantized = options.tflite_quantize == "dynamic"
        formats.append(Format(INT8 if quantized else "tflite", options.tflite_file))
    if options.onnx_file:
        formats.append(Format("onnx", options.onnx_file))
    return formats


def check_possible(formats):
    """Whether what the formats need is installed, before hours are spent.

    Raises:
        MissingPackageError: it is not.
    """
    if any(each.name == "onnx" for each in formats):
        check_installed()


@dataclass(frozen=True)
class Made:
    """One format that is ready to be written; `name` is its Format's.

    `content` goes to `path`: bytes, or {path in it: bytes} of a folder; `agreement` says in one
    line how large it is and how its answers compare with the graph's.
    """

    name: str
    path: str
    content: bytes | dict[str, bytes]
    agreement: str


def make(formats, graph, photos, max_pixels):
    """A Made for each Format of a retrained graph, tried on photos.

    Args:
        graph: bytes of a retrained graph that describes itself; photos: paths, one at least.
        max_pixels: larger images are not read.

    Raises:
        ExportError: one cannot be made, or answers otherwise than the graph does.
    """
    with tempfile.TemporaryDirectory(prefix="retrain-", ignore_cleanup_errors=True) as folder:
        folder = Path(folder)
        (folder / "graph.pb").write_bytes(graph)
        request = {
            "photos": [os.path.abspath(path) for path in photos],
            "max_image_pixels": max_pixels,
        }
        return [_made(each, folder, _convert(folder, each.kind, request)) for each in formats]


def _convert(folder, kind, request):
    """Runs `convert` for one format in a process of its own; gives its answers.

    What libraries say there is kept from stderr, and the memory that they took is free again before
    the next format is made.
    """
    request = json.dumps({"format": kind, **request})
    (folder / "request.json").write_text(request, encoding="ascii")
    command = [sys.executable, "-m", "retraining.export.convert", os.path.abspath(folder)]
    done = subprocess.run(
        command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"the converter ended with exit code {done.returncode}"
        raise ExportError(f"another format cannot be made: {reason}; nothing was replaced")
    return json.loads((folder / "answers.json").read_text(encoding="ascii"))


def _made(wanted, folder, ways):
    """The Made of a Format, whose file is in the folder of `convert`, with its answers' report."""
    agreement = "; ".join(f"from {fed} {_judge(wanted, *found)}" for fed, found in ways.items())
    if wanted.kind == "saved_model" and FROM_FILES not in ways:
        agreement += f"; from {FROM_FILES} not checked, as TensorFlow reads none of these photos"
    file, path = folder / FORMATS[wanted.kind][0], wanted.path
    if file.is_dir():
        content = {p.relative_to(file).as_posix(): p.read_bytes() for p in _files_in(file)}
        path, size = next_version(path), sum(map(len, content.values()))
    else:
        content = file.read_bytes()
        size = len(content)
    return Made(wanted.name, path, content, f"{wanted.kind}, {size / 1e6:.1f} MB: {agreement}")


def _files_in(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _judge(wanted, count, same, difference):
    """One line on how a format's answers compare with those of the graph.

    Raises:
        ExportError: they differ by more than TOLERANCE, or TOLERANCES, allows.
    """
    least, most = TOLERANCES.get(wanted.kind, TOLERANCE)
    found = (
        f"the same first label for {round(same * count)} of {count} photos, probabilities up to "
        f"{difference:.2g} apart"
    )
    if not (same >= least and difference <= most):  # NaN agrees with nothing
        raise ExportError(
            f"{wanted.kind} does not answer as the retrained graph does: {found}; nothing was "
            f"replaced"
        )
    return found


def next_version(folder):
    """The path of the next numbered folder in one of TensorFlow Serving's: 1, or one more."""
    with contextlib.suppress(FileNotFoundError):
        numbers = [int(name) for name in os.listdir(folder) if re.fullmatch("[0-9]+", name)]
        return os.path.join(folder, str(max(numbers, default=0) + 1))
    return os.path.join(folder, "1")
