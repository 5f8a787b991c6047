"""Opens LiteRT files (.tflite): what retrain.py exports, and models of others.

LiteRT verifies the structure of the model. Its metadata and the zip archive behind it are read with
bounds here.
"""

import contextlib
import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retraining.bottlenecks.runtime import is_few
from retraining.graphs.description import DESCRIPTION_FILE
from retraining.graphs.flat_table import FlatTable, FlatTableError
from retraining.graphs.lite_safety import check_sizes, describe_unsafe
from retraining.graphs.litert import LiteRunner, inputs_of, open_interpreter
from retraining.graphs.nodes import GraphError
from retraining.graphs.preprocessing import PerChannel, per_channel
from retraining.graphs.safety import MAX_BYTES
from retraining.graphs.tensorflow import muted_stderr
from retraining.labelling.labels import MOST_LABEL_BYTES
from retraining.labelling.program import Input, Program, read_file, refuse_unsafe
from retraining.system.text import is_label, one_line

BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, EOFError)
# As TensorFlow Lite's metadata.md and metadata_schema.fbs say.
METADATA, IDENTIFIER, NORMALIZATION_OPTIONS = b"TFLITE_METADATA", b"M001", 1


def open_lite_file(path: str | Path, allow_unsafe_ops: bool) -> Program:
    """Opens a LiteRT file.

    Raises:
        GraphError: it is unreadable, damaged, or not known to be harmless, or LiteRT is missing.
    """
    content = read_file(path, MAX_BYTES)
    try:
        with muted_stderr():  # it tells which delegate it made
            interpreter = open_interpreter(content, threads=1)
        unsafe = describe_unsafe(interpreter)
        refuse_unsafe(unsafe, allow_unsafe_ops)
        check_sizes(interpreter.get_tensor_details())
        inputs = {name: _input(details) for name, details in inputs_of(interpreter).items()}
        outputs = interpreter.get_output_details()
    except ModuleNotFoundError as error:
        raise GraphError(
            "LiteRT files need the package ai-edge-litert; pip install -r requirements-label.txt"
        ) from error
    except ValueError as error:  # such as names that are no UTF-8
        raise GraphError(f"it is damaged: {one_line(error)}") from error
    if len(outputs) != 1:
        raise GraphError(f"it has {len(outputs)} outputs, not one of probabilities")
    files = _files_behind(content)
    return Program(
        inputs,
        int(np.prod(outputs[0]["shape"])),
        partial(_start, content),
        description=files.get(DESCRIPTION_FILE),
        labels=_only_labels(files),
        scale=_scale(content),
        unsafe=unsafe,
    )


def _start(content: bytes, count: int | None) -> LiteRunner:
    """Returns interpreters on all cores: one for a few images, else one for each core."""
    if is_few(count):
        return LiteRunner(content, parallel=1, threads=os.cpu_count() or 1)
    return LiteRunner(content)


def _input(details: Mapping[str, Any]) -> Input:
    sizes = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
    shape = tuple(None if size < 0 else int(size) for size in sizes)
    scale, _ = details["quantization"]
    return Input(shape, np.dtype(details["dtype"]).name, quantised=scale != 0)


def _files_behind(content: bytes) -> dict[str, bytes]:
    """Returns {name: bytes} of the text files in the zip archive behind a model, if there is one.

    Raises:
        GraphError: one is damaged or too large.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):
        if DESCRIPTION_FILE.encode() in content:  # its temperature would be missing
            raise GraphError("it is cut short; fetch it again")
        return {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith((".txt", ".json"))]
            if sum(member.file_size for member in members) > MOST_LABEL_BYTES:
                raise GraphError("the files behind the model are too large")
            return {member.filename: archive.read(member) for member in members}
    except BROKEN_ZIP as error:
        raise GraphError("the archive behind the model is damaged") from error


def _only_labels(files: Mapping[str, bytes]) -> tuple[str, ...] | None:
    """Returns the lines of the only text file; None unless all are labels."""
    texts = [content for name, content in files.items() if name.endswith(".txt")]
    with contextlib.suppress(UnicodeDecodeError):
        labels = texts[0].decode().splitlines() if len(texts) == 1 else []
        return tuple(labels) if labels and all(map(is_label, labels)) else None
    return None


def _scale(content: bytes) -> tuple[PerChannel, PerChannel] | None:
    """Returns (mean, std) of the first input in TensorFlow Lite's metadata, if they are there.

    The numbers of the fields are those of schema.fbs and metadata_schema.fbs; see tflite_metadata.

    Raises:
        GraphError: the metadata is damaged.
    """
    try:
        model = FlatTable.root(content)
        entries = [entry.number(1) for entry in model.tables(6) if entry.text(0) == METADATA]
        described = model.tables(4)[entries[0]].text(0) if entries else b""
        if described[4:8] != IDENTIFIER:
            return None
        image = FlatTable.root(described).tables(3)[0].tables(2)[0]
        options = [u.table(1) for u in image.tables(4) if u.byte(0) == NORMALIZATION_OPTIONS]
        if not options or options[0] is None:
            return None
        mean, std = (options[0].array(field, np.dtype("<f4")).tolist() for field in (0, 1))
        return _for_channels(mean), _for_channels(std)
    except (FlatTableError, IndexError, ValueError) as error:
        raise GraphError("its metadata is damaged") from error


def _for_channels(numbers: list[float]) -> PerChannel:
    return per_channel(numbers[0] if len(numbers) == 1 else numbers)
