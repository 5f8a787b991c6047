"""Tells by its content which format a model has."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retraining.graphs.runtimes import AUTO, LITERT
from retraining.labelling.exported import Program
from retraining.labelling.lite_file import open_lite_file
from retraining.system.regular import open_regular


@dataclass(frozen=True)
class Format:
    """A format besides frozen graphs. `open` takes a path and whether unsafe ops are allowed."""

    name: str
    open: Callable[[str | Path, bool], Program]
    runtimes: tuple[str, ...] = (AUTO,)  # those that run it


LITE = Format("a LiteRT file", open_lite_file, (AUTO, LITERT))


def format_of(path: str | Path) -> Format | None:
    """Returns the format of a model; None for a frozen graph, and for what cannot be read."""
    if os.path.isdir(path):
        return None
    try:
        with open_regular(path, 1 << 62) as file:
            head = file.read(8)
    except OSError:
        return None
    return LITE if head[4:] == b"TFL3" else None
