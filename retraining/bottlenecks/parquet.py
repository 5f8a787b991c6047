"""Writes vectors to Parquet files, for other tools (pandas, DuckDB, Spark ...), and reads them.

The schema's metadata describes the network of the vectors: `network`, `fingerprint`, `precision`
and `width`. For two networks, each entry joins their values with `+`. `pixels` is the version of
the pixels; older files lack it.
"""

import contextlib
import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.store import FIRST_PIXELS
from retraining.errors import RetrainingError
from retraining.networks.pair import JOINT
from retraining.photos.dataset import Example
from retraining.photos.url import INSTALL
from retraining.system.regular import open_regular
from retraining.system.text import one_line

GROUP_BYTES = 64 << 20  # of vectors in a row group, which is held in memory; readers may skip it
BATCH_ROWS = 1_000  # rows read at a time
FACTS = ("network", "fingerprint", "precision", "width")

Parts = Iterable[tuple[Sequence[Example], NDArray[np.float32]]]  # photos with their vectors


class VectorFileError(RetrainingError):
    """A file of vectors cannot be read, or holds other vectors. The text says what to do."""


def why_no_parquet() -> str | None:
    """Returns why no Parquet file can be written here, or None."""
    if importlib.util.find_spec("pyarrow"):
        return None
    return f"needs the package pyarrow: {INSTALL}"


def vectors_content(
    parts: Parts, width: int, facts: Mapping[str, str]
) -> Callable[[BinaryIO], None]:
    """Returns what writes a row per photo: path, label, split, key (SHA-1 in hex) and vector.

    A vector is a fixed-size list of `width` float32. Each of the `parts` is ([Example, ...],
    float32 [n, width]); further rows of vectors are ignored. `facts` go into the schema's metadata.
    The function that is returned raises OSError if it cannot write.
    """

    def write(file: BinaryIO) -> None:
        import pyarrow

        try:
            _write(file, parts, _schema(width, facts))
        except pyarrow.ArrowException as error:
            raise OSError(one_line(error)) from error

    return write


def _schema(width: int, facts: Mapping[str, str]) -> Any:
    import pyarrow

    texts = [(name, pyarrow.string()) for name in ("path", "label", "split", "key")]
    vector = ("vector", pyarrow.list_(pyarrow.float32(), width))
    return pyarrow.schema([*texts, vector], metadata=facts)


def _write(file: BinaryIO, parts: Parts, schema: Any) -> None:
    from pyarrow.parquet import ParquetWriter

    width = schema.field("vector").type.list_size
    rows = max(1, GROUP_BYTES // (4 * width))
    # Dictionaries and compression hardly shrink floats that are all different.
    texts = ["label", "split"]
    compression = dict.fromkeys(("path", "label", "split", "key"), "snappy")
    compression["vector.list.element"] = "none"
    how = {"use_dictionary": texts, "compression": compression, "write_page_checksum": True}
    with ParquetWriter(file, schema, **how) as writer:
        for examples, vectors in parts:
            for start in range(0, len(examples), rows):
                part = examples[start : start + rows]
                writer.write_table(_table(part, vectors[start : start + len(part)], schema))


def _table(examples: Sequence[Example], vectors: NDArray[np.float32], schema: Any) -> Any:
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


def _text(path: str) -> str:
    """Returns the path in UTF-8, with invalid bytes as \\xNN."""
    return os.fsencode(path).decode(errors="backslashreplace")


class VectorFile:
    """Reads a file of `vectors_content`. Use as a context manager.

    `facts` are those in its metadata; `columns` is {fingerprint of a network: its slice of the
    vectors}; `pixels` is the version of the pixels that all were computed from.
    """

    def __init__(self, path: str) -> None:
        """Opens the file.

        Raises:
            VectorFileError: it is not such a file.
        """
        self.path = path
        from pyarrow.parquet import ParquetFile

        with contextlib.ExitStack() as opened, self._explained():
            content = opened.enter_context(open_regular(path, sys.maxsize))
            self._file = ParquetFile(content)
            self.facts, self._width, self.columns = self._about()
            # Keys as a dictionary, since a few bytes may stand for a long one in every row.
            how: dict[str, Any] = {"read_dictionary": ["key"], "page_checksum_verification": True}
            self._file = ParquetFile(content, metadata=self._file.metadata, **how)
            self._check_counts()
            self._opened = opened.pop_all()

    def __enter__(self) -> "VectorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def _about(self) -> tuple[dict[str, str], int, dict[str, slice]]:
        schema = self._file.schema_arrow
        told = schema.metadata or {}
        facts = {name: told.get(name.encode(), b"").decode() for name in FACTS}
        widths, prints = (facts[name].split(JOINT) for name in ("width", "fingerprint"))
        sound = all(re.fullmatch("[0-9]{1,6}", width) for width in widths)
        sound &= len(widths) == len(prints) and all(map(str.isprintable, facts.values()))
        if not sound or not {"key", "vector"} <= set(schema.names):
            raise VectorFileError(
                f"{self.path} does not say what network its vectors are of, as files of "
                f"`BottleneckSettings.export_file` do; give one of these, as it was written"
            )
        pixels = told.get(b"pixels", b"")
        self.pixels = int(pixels) if re.fullmatch(b"[0-9]{1,6}", pixels) else FIRST_PIXELS
        ends = list(itertools.accumulate(map(int, widths), initial=0))
        return facts, ends[-1], dict(zip(prints, map(slice, ends, ends[1:]), strict=True))

    def _check_counts(self) -> None:
        """Checks that no row group has more numbers than its rows; pyarrow would read them all."""
        about = self._file.metadata
        for number in range(about.num_row_groups):
            group = about.row_group(number)
            columns = map(group.column, range(group.num_columns))
            counts = [c.num_values for c in columns if c.path_in_schema.split(".")[0] == "vector"]
            if sum(counts) > group.num_rows * self._width:
                raise VectorFileError(
                    f"cannot read the vectors in {self.path}: they have more than "
                    f"{self._width} numbers"
                )

    def rows(self) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Yields ([key, ...], float32 [n, width]), a bounded number at a time.

        Leaves out rows whose key is not a SHA-1 or whose numbers are not all finite.

        Raises:
            VectorFileError: the file is damaged.
        """
        batches = self._file.iter_batches(BATCH_ROWS, columns=["key", "vector"])
        while True:
            with self._explained():
                batch = next(batches, None)
                if batch is None:
                    return
                keys, vectors = self._arrays(batch)
            keyed = np.array([re.fullmatch("[0-9a-f]{40}", key) is not None for key in keys], bool)
            sound = keyed & np.isfinite(vectors).all(axis=1)
            yield [key for key, good in zip(keys, sound, strict=True) if good], vectors[sound]

    def _arrays(self, batch: Any) -> tuple[list[str], NDArray[np.float32]]:
        """Returns (keys, float32 [n, width]) of a record batch; null rows have the key ""."""
        import pyarrow

        vectors = batch["vector"].cast(pyarrow.list_(pyarrow.float32(), self._width))
        nulls = vectors.is_null().to_numpy(zero_copy_only=False)
        vectors = vectors.fill_null([0.0] * self._width) if nulls.any() else vectors
        flat = vectors.flatten().to_numpy(zero_copy_only=False)
        texts = batch["key"].dictionary.cast(pyarrow.string()).to_pylist()
        indices = batch["key"].indices.to_pylist()
        keys = [
            "" if null or index is None else texts[index] or ""
            for index, null in zip(indices, nulls, strict=True)
        ]
        return keys, flat.reshape(len(keys), self._width)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except VectorFileError:
            raise
        except Exception as error:  # the kind depends on the damage
            reason = getattr(error, "strerror", None) or one_line(error)
            raise VectorFileError(f"cannot read the vectors in {self.path}: {reason}") from error
