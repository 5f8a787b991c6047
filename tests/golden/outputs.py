"""Describes what a command leaves behind as lines of text, by which two sides are compared.

A file of which all bytes must be equal is one line with its SHA-1. The others:

- frozen graphs: all bytes, and for whoever looks for a difference a line per node and per key of
  the description in them;
- SQLite stores: a row a line, in order of their keys; of the keys of files only those of the
  fixtures and the bucket, since the others' rows hold when the files were made;
- TensorBoard's event files: steps, tags and values, not when they were written;
- checkpoints (.npz): each array by its SHA-1, the JSON beside them without seconds;
- JSON, HTML, tables, logs: without seconds and dates;
- a SavedModel's fingerprint.pb: without its random `uuid`.
"""

import hashlib
import importlib
import io
import json
import os
import shutil
import sqlite3
import struct
import tempfile
import zipfile
from contextlib import closing
from pathlib import Path

from tests.golden import normalize

MADE_NOW = "/run/"  # in the path of a file that the command itself made, or its setup
JOURNALS = ("-wal", "-shm")  # of SQLite, whose rows are read with them


def load_tensorflow():
    """Imports what reads graphs, without what TensorFlow says on stderr while it is loaded."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        importlib.import_module("tensorflow.core.framework.graph_pb2")
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def describe(folder, names):
    """{name: lines} of all files and empty folders in a folder; `names` as for normalize.text.

    Of files whose names differ only by a date, as logs of two runs, the last is compared.
    """
    described = {}
    for path in sorted(Path(folder).rglob("*")):
        name = normalize.text(path.relative_to(folder).as_posix(), names)
        if path.is_symlink():
            described[name] = [f"link to {path.readlink()}"]
        elif path.is_file() and not path.name.endswith(JOURNALS):
            described[name] = lines_of(path, names)
        elif path.is_dir() and not any(path.iterdir()):
            described[f"{name}/"] = ["an empty folder"]
    return described


def lines_of(path, names):
    """What is compared of one file; of a file that is not what its name says, its bytes."""
    content = path.read_bytes()
    try:
        if path.name in NAMES:
            return NAMES[path.name](content)
        if path.name.startswith("events.out.tfevents"):
            return events(content)
        if path.suffix == ".sqlite":
            return store(path)
        if path.suffix in READERS:
            return READERS[path.suffix](content)
        if path.suffix in TEXTS:
            return TEXTS[path.suffix](normalize.text(content.decode(), names)).split("\n")
    except Exception as error:  # whatever a reader of a damaged file raises
        return [f"{sha1(content)} (not read: {type(error).__name__})"]
    return [sha1(content)]


def sha1(content):
    return f"{len(content)} bytes, SHA-1 {hashlib.sha1(content).hexdigest()}"


def graph(content):
    """A GraphDef: a line per node, and its description key by key."""
    from tensorflow.core.framework.graph_pb2 import GraphDef

    graph_def, lines = GraphDef.FromString(content), [sha1(content)]
    for node in graph_def.node:
        value = node.attr["value"].tensor if node.op == "Const" else None
        if value is not None and value.string_val and value.string_val[0].startswith(b"{"):
            lines += description(node.name, json.loads(value.string_val[0]))
        else:
            digest = hashlib.sha1(node.SerializeToString(deterministic=True)).hexdigest()
            lines.append(f"{node.op} {node.name}({', '.join(node.input)}) {digest}")
    return lines


def description(name, about):
    """JSON, a line per key, two levels deep."""
    lines = []
    for key, value in normalize.without_times(about).items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        lines += [f"{name} {key} {part} {json.dumps(found)}" for part, found in inner]
    return lines


def store(original):
    """A SQLite file with its journal: a line per table and row."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store")
        for suffix in ("", *JOURNALS):
            if Path(f"{original}{suffix}").exists():
                shutil.copy(f"{original}{suffix}", f"{path}{suffix}")
        with closing(sqlite3.connect(path)) as connection:
            tables = "SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name"
            for name, sql in connection.execute(tables).fetchall():
                found = connection.execute(f"SELECT * FROM {name}").fetchall()
                rows = [" ".join(map(_cell, row)) for row in found]
                lines += [sql, *sorted(row for row in rows if MADE_NOW not in row)]
    return lines


def _cell(value):
    if isinstance(value, bytes):
        return hashlib.sha1(value).hexdigest() if len(value) > 80 else repr(value)
    return str(value)


def events(content):
    """An event file: a line per value."""
    from tensorflow.core.util.event_pb2 import Event

    lines, place = [], 0
    while place < len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        event = Event.FromString(content[place + 12 : place + 12 + size])
        place += 16 + size  # the length, its check sum, the event, its check sum
        if event.graph_def or event.file_version:
            lines.append(f"{event.file_version} graph {sha1(event.graph_def)}")
        for value in event.summary.value:
            digest = hashlib.sha1(value.SerializeToString(deterministic=True)).hexdigest()
            lines.append(f"{event.step} {value.tag} {value.simple_value} {digest}")
    return lines


def checkpoint(content):
    """A .npz file: a line per array."""
    lines = []
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            array = archive.read(name)
            if name == "about.npy":
                about = json.loads(array[array.index(b"{", 128) :])
                lines += description(name, about)
            else:
                lines.append(f"{name} {sha1(array)}")
    return lines


def saved_model(content):
    """A saved_model.pb: its functions, ops and signatures, and all of its bytes.

    They are the same in two runs of the same code, but hold names of Python's functions.
    """
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    lines = []
    for meta in SavedModel.FromString(content).meta_graphs:
        for function in meta.graph_def.library.function:
            ops = [node.op for node in function.node_def]
            lines.append(f"function {function.signature.name}: {' '.join(ops)}")
        for name, signature in sorted(meta.signature_def.items()):
            for part in ("inputs", "outputs"):
                tensors = sorted(getattr(signature, part).items())
                lines += [f"{name} {part} {key} {t.dtype} {_shape(t)}" for key, t in tensors]
    return [*lines, sha1(content)]


def fingerprint(content):
    """A fingerprint.pb, without its `uuid`, which is drawn at random."""
    from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef

    return [
        line for line in str(FingerprintDef.FromString(content)).split("\n") if "uuid" not in line
    ]


def _shape(tensor):
    return [axis.size for axis in tensor.tensor_shape.dim]


def record(content):
    """A metrics file."""
    return json.dumps(normalize.without_times(json.loads(content)), indent=1)


NAMES = {"saved_model.pb": saved_model, "fingerprint.pb": fingerprint}
READERS = {".pb": graph, ".npz": checkpoint}
TEXTS = {
    ".json": record,
    ".html": normalize.page,
    ".tsv": normalize.table,
    **dict.fromkeys((".md", ".txt", ".pbtxt", ".csv", ".jsonl"), str),
}
