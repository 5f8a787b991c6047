"""Vectors of photos as a Parquet file, for other tools (pandas, Polars, DuckDB, Spark ...)."""

import contextlib
import importlib.util
import os
from pathlib import Path

from retraining.files import WriteError, temporary_name
from retraining.places import INSTALL

GROUP_BYTES = 64 << 20  # of vectors in a row group: what is held in memory, and what readers skip


def why_no_parquet():
    """Why no Parquet file can be written here, or None."""
    if importlib.util.find_spec("pyarrow"):
        return None
    return f"needs the package pyarrow: {INSTALL}"


def write_vectors(path, parts, width, facts):
    """Writes a row per photo: path, label, split, key (SHA-1 of its bytes, hex) and vector, a
    fixed-size list of `width` float32.

    `parts` are ([Example, ...], float32 [n, width]) each, further rows of vectors being ignored;
    `facts` (dict of str) go into the schema's metadata. What was at `path` is replaced once the
    new file is complete.

    Raises:
        WriteError: it cannot be written.
    """
    import pyarrow

    place = Path(os.path.realpath(path))
    temporary = temporary_name(place, "vectors")
    try:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                _write(file, parts, _schema(width, facts))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except (OSError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise WriteError(f"cannot write {path}: {reason}") from error


def _schema(width, facts):
    import pyarrow

    texts = [(name, pyarrow.string()) for name in ("path", "label", "split", "key")]
    vector = ("vector", pyarrow.list_(pyarrow.float32(), width))
    return pyarrow.schema([*texts, vector], metadata=facts)


def _write(file, parts, schema):
    from pyarrow.parquet import ParquetWriter

    width = schema.field("vector").type.list_size
    rows = max(1, GROUP_BYTES // (4 * width))
    # Neither a dictionary nor compression makes floats that are all different much smaller.
    texts = ["label", "split"]
    compression = dict.fromkeys(("path", "label", "split", "key"), "snappy")
    compression["vector.list.element"] = "none"
    with ParquetWriter(file, schema, use_dictionary=texts, compression=compression) as writer:
        for examples, vectors in parts:
            for start in range(0, len(examples), rows):
                chosen = examples[start : start + rows]
                writer.write_table(_table(chosen, vectors[start : start + len(chosen)], schema))


def _table(examples, vectors, schema):
    import numpy as np
    import pyarrow

    flat = pyarrow.array(np.asarray(vectors).reshape(-1))
    columns = [
        pyarrow.array([_text(example.path) for example in examples]),
        *(
            pyarrow.array([getattr(example, name) for example in examples])
            for name in ("label", "split", "key")
        ),
        pyarrow.FixedSizeListArray.from_arrays(flat, schema.field("vector").type.list_size),
    ]
    return pyarrow.table(columns, schema=schema)


def _text(path):
    """The path in UTF-8; bytes that are no such text as \\xNN."""
    return os.fsencode(path).decode(errors="backslashreplace")
