"""Converts a retrained graph to other formats; tests each on photos before it is written."""

import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retraining.errors import RetrainingError
from retraining.export.build import ExportError
from retraining.export.convert import Agreement
from retraining.export.converter import Converter
from retraining.export.pixels_graph import has_temperature
from retraining.export.registry import CONVERTERS
from retraining.graphs.description import IMAGE, PIXELS
from retraining.metrics.classification import choose_rows
from retraining.photos.bounds import MAX_PIXELS
from retraining.photos.registry import absolute
from retraining.system.atomic import Content, naming
from retraining.system.children import run_module
from retraining.system.observer import Observer
from retraining.system.scratch import scratch_folder

SAME_ENOUGH = 0.95  # share of photos with the graph's first label; a run warns of less
ROOM = 5  # times the size of a graph that a conversion may need for temporary files


class MissingPackageError(RetrainingError):
    """A package that a format needs is not installed; the message says how to install it."""


def check_installed(kinds: Iterable[str]) -> None:
    """Checks that the packages of the formats are installed; imports none of them.

    Raises:
        MissingPackageError: one is missing.
    """
    for converter in (CONVERTERS[kind] for kind in kinds):
        missing = [name for name in converter.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingPackageError(
                f"--{converter.option} needs {', '.join(missing)}: pip install -r "
                f"{converter.requirements}"
            )


@dataclass(frozen=True)
class Photos:
    """Photos for conversions: {path: index of its label} to test them, and training photos.

    Those with more than `max_pixels` are not read.
    """

    testing: Mapping[str, int]
    calibration: Sequence[str] = ()
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class Made:
    """One format that is ready to be written; `name` is that of its Converter.

    `content` belongs at `path`: bytes, or {path in it: bytes} of a folder. `agreement` says in one
    line how large it is and how its answers compare with those of the graph, `checks` has the
    numbers by kind of input. `warning` says that far too many answers differ, or is ''. `takes` is
    one of TAKES, or RAW_PIXELS.
    """

    name: str
    path: str
    content: Content
    agreement: str
    takes: str
    kind: str = ""
    size: int = 0  # in bytes
    checks: Mapping[str, Agreement | None] = field(default_factory=dict)
    warning: str = ""

    def describe(self) -> dict[str, Any]:
        """Returns what the record of a run tells of it."""
        return {
            "format": self.name,
            "kind": self.kind,
            "path": self.path,
            "bytes": self.size,
            "takes": self.takes,
            "temperature_inside": has_temperature(self.takes),
            "checks": [
                {
                    "input": kind,
                    "photos": check.photos,
                    "same_label": check.same,
                    "largest_difference": check.difference,
                    "correct": check.correct,
                    "correct_by_graph": check.correct_by_graph,
                }
                for kind, check in self.checks.items()
                if check
            ],
        }


def make(
    formats: Mapping[str, str],
    graph: bytes,
    photos: Photos,
    takes: str = PIXELS,
    observer: Observer | None = None,
) -> list[Made]:
    """Converts a retrained graph to other formats and tests them; returns a Made for each.

    Args:
        formats: {kind of Converter: path that is set for it}.
        graph: bytes of a retrained graph that describes itself.
        photos: of those that test, at least one; a format takes as many as its Converter says.
        takes: one of TAKES, for formats that allow the choice.
        observer: is told of each format before its conversion, which can take twenty seconds.

    Raises:
        ExportError: a format cannot be made, or its answers differ from those of the graph.
    """
    with scratch_folder("retrain-") as folder:
        with naming(folder / "graph.pb"):
            (folder / "graph.pb").write_bytes(graph)
        made = []
        for number, (kind, path) in enumerate(formats.items(), 1):
            if observer:
                observer.tell(f"converting to {kind} ({number} of {len(formats)})")
            request = _request(CONVERTERS[kind], photos)
            answers = _convert(folder, kind, {**request, "takes": takes})
            made.append(_made(CONVERTERS[kind], path, folder / kind, answers, takes))
        return made


def _request(converter: Converter, photos: Photos) -> dict[str, Any]:
    """Returns the part of a request to `convert` that is about photos."""
    paths = list(photos.testing)
    chosen = [paths[row] for row in choose_rows(len(paths), converter.test_photos)]
    calibration = photos.calibration if converter.calibrate else ()
    return {
        "photos": [absolute(path) for path in chosen],
        "targets": [photos.testing[path] for path in chosen],
        "calibration": [absolute(path) for path in calibration],
        "max_image_pixels": photos.max_pixels,
    }


def _convert(folder: Path, kind: str, request: Mapping[str, Any]) -> dict[str, Agreement | None]:
    """Runs `convert` for one format in a process of its own; returns its answers.

    That process keeps the output of the libraries from stderr, and gives back their memory before
    the next format begins.
    """
    text = json.dumps({"format": kind, **request})
    with naming(folder / "request.json"):
        (folder / "request.json").write_text(text, encoding="ascii")
    done = run_module("retraining.export.convert", [os.path.abspath(folder)], folder)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"the converter ended with exit code {done.returncode}"
        room = _room(folder)
        raise ExportError(f"cannot make another format: {reason}{room}; nothing was replaced")
    answers: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    return {kind: numbers and Agreement(*numbers) for kind, numbers in answers.items()}


def _room(folder: Path) -> str:
    """Returns what to add to an error if the disk is nearly full, which libraries may not tell."""
    free = shutil.disk_usage(folder).free
    if free > ROOM * sum(path.stat().st_size for path in folder.glob("graph.pb")):
        return ""
    return f" ({free / 1e6:.1f} MB are left for temporary files in {folder.parent}; see TMPDIR)"


def _made(
    converter: Converter,
    path: str,
    written: Path,
    answers: Mapping[str, Agreement | None],
    takes: str,
) -> Made:
    """Returns the Made of what `convert` wrote; `path` is the path that is set for the format."""
    checks = "; ".join(
        f"from {'an image' if kind == IMAGE else kind}, {_check(converter, agreement)}"
        for kind, agreement in answers.items()
    )
    content: Content
    if converter.is_folder:
        content = {p.relative_to(written).as_posix(): p.read_bytes() for p in _files_in(written)}
        size = sum(map(len, content.values()))
    else:
        content = written.read_bytes()
        size = len(content)
    return Made(
        name=converter.name,
        path=converter.output(path),
        content=content,
        agreement=f"{converter.kind}, {size / 1e6:.1f} MB: {checks}",
        takes=converter.taking(takes),
        kind=converter.kind,
        size=size,
        checks=answers,
        warning=_warning(converter, answers.values()),
    )


def _warning(converter: Converter, answers: Iterable[Agreement | None]) -> str:
    """Returns a line if an answer of a format is too often another than the graph's, else ''."""
    for check in answers:
        if check and check.same < SAME_ENOUGH:
            return (
                f"{converter.kind} gives only {check.same:.1%} of {check.photos} photos the first "
                f"label that the graph gives them"
            )
    return ""


def _files_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _check(converter: Converter, agreement: Agreement | None) -> str:
    """Returns one line on how the answers of a format compare with those of the graph.

    Raises:
        ExportError: they differ by more than the Converter allows.
    """
    if agreement is None:
        return (
            "not checked, as TensorFlow reads none of these photos, or ignores their transparency"
        )
    count, same, difference = agreement[:3]
    line = (
        f"the same first label for {round(same * count)} of {count} photos, probabilities up to "
        f"{difference:.2g} apart"
    )
    if converter.quantized:
        line += f"; {agreement.correct} right (the graph: {agreement.correct_by_graph})"
    # NaN fails this.
    if not (same >= converter.least_same and difference <= converter.most_apart):
        raise ExportError(
            f"{converter.kind} does not answer as the retrained graph does: {line}; nothing was "
            f"replaced"
        )
    return line
