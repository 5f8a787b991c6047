"""Reads safetensors files: a JSON header and raw numbers, by the format's own description.

The file is 8 bytes with the length of the header (little-endian), the header, and the tensors'
bytes without gaps (github.com/huggingface/safetensors, README, Format). Nothing in it can run.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.system.regular import open_regular

MAX_FILE = 4 << 30  # bytes
MAX_HEADER = 16 << 20  # bytes; that of a network of 24 blocks has 50 kB
MAX_DIMENSIONS = 8
# {name of a type: bytes of a number}. Tensors of the first three can be read.
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
SIZES |= {"U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
READ = ("F32", "F16", "BF16")


class SafetensorsError(RetrainingError):
    """A file is no whole safetensors file, or a tensor is not of floats. The text says why."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: bytes `start` to `end` of the file."""

    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_entries(path: str | Path) -> dict[str, Entry]:
    """Returns {name: Entry} of the tensors in a file, whose header is checked as a whole.

    Raises:
        SafetensorsError: the file cannot be read, is cut short or is otherwise malformed.
    """
    try:
        with open_regular(Path(path), MAX_FILE) as file:
            return _entries(file)
    except OSError as error:
        raise SafetensorsError(f"cannot read it: {error.strerror or error}") from error


def _entries(file: IO[bytes]) -> dict[str, Entry]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise SafetensorsError("it is cut short, or not a safetensors file")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise SafetensorsError("its header is damaged") from error
    if not isinstance(header, dict):
        raise SafetensorsError("its header lists no tensors")
    header.pop("__metadata__", None)
    start = 8 + length
    entries = {name: _entry(name, value, start) for name, value in header.items()}
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != start:
            raise SafetensorsError("its tensors overlap, or leave gaps")
        start = entry.end
    if start != size:
        raise SafetensorsError(f"its tensors end at byte {start}, the file at byte {size}")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(names := dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _entry(name: str, value: Any, offset: int) -> Entry:
    """Returns the Entry that the header describes; `offset` is where the tensors begin."""
    try:
        kind, shape, (start, end) = value["dtype"], value["shape"], value["data_offsets"]
        counts = [*shape, start, end]
        sound = all(type(count) is int and 0 <= count <= MAX_FILE for count in counts)
        sound = sound and len(shape) <= MAX_DIMENSIONS
        sound = sound and end - start == math.prod(shape) * SIZES[kind]
    except (TypeError, KeyError, ValueError) as error:
        raise SafetensorsError(f"its tensor {name[:80]!r} is malformed") from error
    if not sound:
        raise SafetensorsError(f"the shape and the size of its tensor {name[:80]!r} differ")
    return Entry(kind, tuple(shape), offset + start, offset + end)


def read_tensors(path: str | Path, entries: Mapping[str, Entry]) -> dict[str, NDArray[np.float32]]:
    """Returns {name: float32 array} of tensors in a file that are float32, float16 or bfloat16.

    Raises:
        SafetensorsError: the file cannot be read, or a tensor is of another type.
    """
    try:
        with open_regular(Path(path), MAX_FILE) as file:
            return {name: _tensor(file, name, entry) for name, entry in entries.items()}
    except OSError as error:
        raise SafetensorsError(f"cannot read it: {error.strerror or error}") from error


def _tensor(file: IO[bytes], name: str, entry: Entry) -> NDArray[np.float32]:
    if entry.kind not in READ:
        raise SafetensorsError(f"its {name} is of type {entry.kind}, not of {', '.join(READ)}")
    file.seek(entry.start)
    content = file.read(entry.end - entry.start)
    if len(content) != entry.end - entry.start:
        raise SafetensorsError("it has changed while it was read")
    if entry.kind == "BF16":  # the upper half of a float32
        bits = np.frombuffer(content, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(entry.shape)
    values = np.frombuffer(content, "<f4" if entry.kind == "F32" else "<f2")
    return values.astype(np.float32).reshape(entry.shape)
