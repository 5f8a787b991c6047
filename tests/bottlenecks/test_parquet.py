"""--export_vectors: what other tools read; --import_vectors: what is taken back."""

import contextlib
import os
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest

from retraining.bottlenecks import parquet
from retraining.bottlenecks.extract import Extractor
from retraining.photos.dataset import Example
from retraining.system.atomic import WriteError, write_files

arrow = pytest.importorskip("pyarrow.parquet")


def examples(count, split="training"):
    return [Example(f"photos/a/{n}.jpg", "a", split, f"{n:040x}") for n in range(count)]


def test_rows_types_and_facts(tmp_path):
    vectors = np.arange(15, dtype=np.float32).reshape(5, 3)
    path = str(tmp_path / "new" / "vectors.parquet")
    parts = [(examples(2), vectors[:4]), (examples(1, "testing"), vectors[4:]), ([], vectors[:0])]
    write_files(
        {path: parquet.vectors_content(parts, 3, {"network": "inception_v3", "fingerprint": "ab"})}
    )
    table = arrow.read_table(path)
    assert str(table.schema.field("vector").type).startswith("fixed_size_list<element: float")
    assert table.schema.field("vector").type.list_size == 3
    assert table.schema.metadata[b"network"] == b"inception_v3"
    assert table.schema.metadata[b"fingerprint"] == b"ab"
    assert table.to_pylist() == [
        {"path": "photos/a/0.jpg", "label": "a", "split": "training", "key": f"{0:040x}"}
        | {"vector": [0, 1, 2]},
        {"path": "photos/a/1.jpg", "label": "a", "split": "training", "key": f"{1:040x}"}
        | {"vector": [3, 4, 5]},
        {"path": "photos/a/0.jpg", "label": "a", "split": "testing", "key": f"{0:040x}"}
        | {"vector": [12, 13, 14]},
    ]
    assert os.listdir(tmp_path / "new") == ["vectors.parquet"]


def test_many_rows_go_into_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "GROUP_BYTES", 4 * 3 * 100)
    vectors = np.random.default_rng(0).random((250, 3), dtype=np.float32)
    path = str(tmp_path / "vectors.parquet")
    write_files({path: parquet.vectors_content([(examples(250), vectors)], 3, {})})
    file = arrow.ParquetFile(path)
    assert [file.metadata.row_group(n).num_rows for n in range(3)] == [100, 100, 50]
    found = file.read()["vector"].combine_chunks().flatten().to_numpy()
    assert (found.reshape(-1, 3) == vectors).all()


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
def test_names_that_are_no_text(tmp_path):
    odd = Example(os.fsdecode(b"a/\xff.jpg"), "a", "training", "0" * 40)
    path = str(tmp_path / "vectors.parquet")
    write_files({path: parquet.vectors_content([([odd], np.zeros((1, 3), np.float32))], 3, {})})
    assert arrow.read_table(path)["path"].to_pylist() == ["a/\\xff.jpg"]


def test_what_was_there_stays_until_the_new_file_is_complete(tmp_path):
    path = tmp_path / "vectors.parquet"
    path.write_text("before")

    def parts():
        yield examples(1), np.zeros((1, 3), "f4")
        raise OSError(28, "No space left on device")

    with pytest.raises(WriteError, match=r"^cannot write .*vectors.parquet: No space left"):
        write_files({path: parquet.vectors_content(parts(), 3, {})})
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["vectors.parquet"]


# -- reading back -----------------------------------------------------------------------------

TWO = {"network": "a+b", "fingerprint": "aa+bb", "precision": "float32", "width": "2+1"}


def written(tmp_path, vectors, facts=TWO):
    path = str(tmp_path / "vectors.parquet")
    write_files(
        {
            path: parquet.vectors_content(
                [(examples(len(vectors)), vectors)], vectors.shape[1], facts
            )
        }
    )
    return path


def read_all(path):
    """(keys, vectors) of all rows."""
    with parquet.VectorFile(path) as file:
        keys, vectors = zip(*file.rows(), strict=True)
    return [key for some in keys for key in some], np.concatenate(vectors)


def test_what_was_written_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH_ROWS", 7)
    vectors = np.random.default_rng(0).random((20, 3), dtype=np.float32)
    path = written(tmp_path, vectors)
    with parquet.VectorFile(path) as file:
        assert len(file) == 20
        assert file.facts == TWO
        assert file.pixels == 2  # in files that do not say
        assert file.columns == {"aa": slice(0, 2), "bb": slice(2, 3)}
        assert [len(keys) for keys, _ in file.rows()] == [7, 7, 6]
    keys, found = read_all(path)
    assert keys == [f"{n:040x}" for n in range(20)]
    assert (found == vectors).all()


def test_rows_that_are_no_vectors_are_left_out(tmp_path):
    import pyarrow

    path = str(tmp_path / "vectors.parquet")
    rows = [
        ("0" * 40, [1.0, 2.0, 3.0]),
        ("1" * 39, [1.0, 2.0, 3.0]),
        ("2" * 40, [1.0, float("nan"), 3.0]),
        (None, [1.0, 2.0, 3.0]),
        ("4" * 40, None),
        ("5" * 40, [4.0, 5.0, 6.0]),
    ]
    keys, vectors = (list(column) for column in zip(*rows, strict=True))
    table = pyarrow.table({"vector": vectors, "key": keys})  # lists of float64 of any length
    arrow.write_table(table.replace_schema_metadata(TWO), path)
    keys, found = read_all(path)
    assert keys == ["0" * 40, "5" * 40]
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("columns", "facts"),
    [
        ({"key": ["0" * 40], "vector": [[1.0, 2.0, 3.0]]}, {}),
        ({"key": ["0" * 40], "vector": [[1.0, 2.0, 3.0]]}, TWO | {"width": "3"}),
        ({"key": ["0" * 40], "vector": [[1.0, 2.0, 3.0]]}, TWO | {"width": "2+x"}),
        ({"name": ["0" * 40], "vector": [[1.0, 2.0, 3.0]]}, TWO),
        ({"key": ["0" * 40], "vector": [[1.0, 2.0, 3.0]]}, TWO | {"width": "2+" + "9" * 5000}),
        ({"key": ["0" * 40], "vector": [[1.0, 2.0, 3.0]]}, TWO | {"network": "\x1b[31m"}),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, columns, facts):
    import pyarrow

    path = str(tmp_path / "other.parquet")
    arrow.write_table(pyarrow.table(columns).replace_schema_metadata(facts), path)
    with pytest.raises(parquet.VectorFileError, match="does not say what network") as error:
        parquet.VectorFile(path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("vector", [[[1.0, 2.0]], ["1, 2, 3"], [7]])
def test_vectors_of_another_kind_are_refused(tmp_path, vector):
    import pyarrow

    path = str(tmp_path / "other.parquet")
    table = pyarrow.table({"key": ["0" * 40], "vector": vector})
    arrow.write_table(table.replace_schema_metadata(TWO), path)
    with pytest.raises(parquet.VectorFileError, match=r"^cannot read the vectors in "):
        read_all(path)


def test_a_file_that_stands_for_far_more_than_its_size_is_not_expanded(tmp_path):
    """Long keys that every row repeats are one text; vectors that are too long are not read."""
    import pyarrow

    path, rows = str(tmp_path / "bomb.parquet"), 1000
    indices = pyarrow.array([0] * (rows - 1) + [1], pyarrow.int32())
    keys = pyarrow.DictionaryArray.from_arrays(indices, ["x" * 3_000_000, "5" * 40])
    table = pyarrow.table({"key": keys, "vector": [[1.0, 2.0, 3.0]] * rows})
    arrow.write_table(table.replace_schema_metadata(TWO), path)  # 3 GB of keys
    assert read_all(path)[0] == ["5" * 40]
    table = pyarrow.table({"key": ["5" * 40] * 2, "vector": [[1.0, 2.0, 3.0], [1.0] * 5]})
    arrow.write_table(table.replace_schema_metadata(TWO), path)
    with pytest.raises(parquet.VectorFileError, match="they have more than 3 numbers"):
        parquet.VectorFile(path)


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    path = str(tmp_path / "vectors.parquet")
    os.mkfifo(path)
    with pytest.raises(parquet.VectorFileError, match="it is a pipe"):
        parquet.VectorFile(path)


def test_odd_columns_are_refused(tmp_path):
    import pyarrow

    path = str(tmp_path / "odd.parquet")
    vector = pyarrow.array([[1.0, 2.0, 3.0]])
    names = pyarrow.array([b"\xff" * 40]).view(pyarrow.string())
    twice = pyarrow.Table.from_arrays([names, names, vector], ["key", "key", "vector"])
    for table in (pyarrow.table({"key": names, "vector": vector}), twice):
        arrow.write_table(table.replace_schema_metadata(TWO), path)
        with pytest.raises(parquet.VectorFileError, match=r"^cannot read the vectors in ") as error:
            read_all(path)
        assert len(str(error.value).splitlines()) == 1


def test_what_is_no_parquet_file_is_refused(tmp_path):
    path = tmp_path / "vectors.parquet"
    with pytest.raises(parquet.VectorFileError, match=r"vectors.parquet: No such file"):
        parquet.VectorFile(str(path))
    path.write_text("not at all")
    with pytest.raises(parquet.VectorFileError, match=r"^cannot read the vectors in "):
        parquet.VectorFile(str(path))


def test_a_flipped_bit_is_found(tmp_path):
    path = written(tmp_path, np.random.default_rng(0).random((100, 3), dtype=np.float32))
    content = bytearray(Path(path).read_bytes())
    column = arrow.read_metadata(path).row_group(0).column(4)
    content[column.data_page_offset + column.total_compressed_size - 50] ^= 4
    Path(path).write_bytes(content)
    with pytest.raises(parquet.VectorFileError, match="CRC"):
        read_all(path)


def stored(folder):
    """{key: the vector's bytes} of the one store in a run's folder."""
    (path,) = (folder / "bottleneck_cache").glob("*-*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as store:
        return dict(store.execute("SELECT key, vector FROM vectors"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, photos, run_retrain):
    """The folder of a run that wrote vectors.parquet."""
    folder = tmp_path_factory.mktemp("exported")
    flags = ("--export_vectors", folder / "vectors.parquet", "--no_report")
    assert run_retrain(folder, photos, *flags, "--precision", "float32") == 0
    return folder


def test_photos_at_a_url_are_only_hashed_where_vectors_are_imported(
    tmp_path, photos, run_retrain, exported, object_store, monkeypatch
):
    monkeypatch.setattr(Extractor, "compute", None)  # a use of it would fail
    monkeypatch.setattr(Extractor, "read", None)
    url = object_store.upload(photos, "imported")
    flags = ("--import_vectors", exported / "vectors.parquet", "--no_report")
    flags = (*flags, "--projector_photos", 0, "--precision", "float32")
    assert run_retrain(tmp_path, url, *flags) == 0
    assert stored(tmp_path) == stored(exported)
