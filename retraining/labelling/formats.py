"""Tells by its content which format a model has."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retraining.graphs.runtimes import AUTO, LITERT, TENSORFLOW
from retraining.graphs.safety import SAVED_MODEL
from retraining.labelling.lite_file import open_lite_file
from retraining.labelling.onnx_file import open_onnx_file
from retraining.labelling.program import Program
from retraining.labelling.saved_folder import open_saved_folder
from retraining.system.regular import open_regular


@dataclass(frozen=True)
class Format:
    """A format besides frozen graphs. `open` takes a path and whether unsafe ops are allowed."""

    name: str
    open: Callable[[str | Path, bool], Program]
    runtimes: tuple[str, ...] = (AUTO,)  # those that run it


LITE = Format("a LiteRT file", open_lite_file, (AUTO, LITERT))
ONNX = Format("an ONNX file", open_onnx_file)
SAVED = Format("a SavedModel", open_saved_folder, (AUTO, TENSORFLOW))
# An ONNX file begins with its first field, the version of the format, which is 3 or more. A frozen
# graph cannot begin with that byte; the saved_model.pb of a SavedModel can, for its version 1.
VERSION, VERSIONS = 0x08, range(3, 0x80)


def format_of(path: str | Path) -> Format | None:
    """Returns the format of a model; None for a frozen graph, and for what cannot be read."""
    if os.path.isdir(path):
        return SAVED if os.path.exists(os.path.join(path, SAVED_MODEL)) else None
    try:
        with open_regular(path, 1 << 62) as file:
            head = file.read(8)
    except OSError:
        return None
    if head[4:] == b"TFL3":
        return LITE
    is_onnx = len(head) > 1 and head[0] == VERSION and head[1] in VERSIONS
    return ONNX if is_onnx or str(path).lower().endswith(".onnx") else None
