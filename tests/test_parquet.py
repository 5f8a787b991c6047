"""--export_vectors: what other tools read."""

import os
import sqlite3
import sys

import numpy as np
import pytest

from retraining import parquet
from retraining.dataset import Example
from retraining.files import WriteError

arrow = pytest.importorskip("pyarrow.parquet")


def examples(count, split="training"):
    return [Example(f"photos/a/{n}.jpg", "a", split, f"{n:040x}") for n in range(count)]


def test_rows_types_and_facts(tmp_path):
    vectors = np.arange(15, dtype=np.float32).reshape(5, 3)
    path = str(tmp_path / "new" / "vectors.parquet")
    parts = [(examples(2), vectors[:4]), (examples(1, "testing"), vectors[4:]), ([], vectors[:0])]
    parquet.write_vectors(path, parts, 3, {"network": "inception_v3", "fingerprint": "ab"})
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
    parquet.write_vectors(path, [(examples(250), vectors)], 3, {})
    file = arrow.ParquetFile(path)
    assert [file.metadata.row_group(n).num_rows for n in range(3)] == [100, 100, 50]
    found = file.read()["vector"].combine_chunks().flatten().to_numpy()
    assert (found.reshape(-1, 3) == vectors).all()


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
def test_names_that_are_no_text(tmp_path):
    odd = Example(os.fsdecode(b"a/\xff.jpg"), "a", "training", "0" * 40)
    path = str(tmp_path / "vectors.parquet")
    parquet.write_vectors(path, [([odd], np.zeros((1, 3), np.float32))], 3, {})
    assert arrow.read_table(path)["path"].to_pylist() == ["a/\\xff.jpg"]


def test_what_was_there_stays_until_the_new_file_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "vectors.parquet"
    path.write_text("before")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "_table", fail)
    with pytest.raises(WriteError, match=r"^cannot write .*vectors.parquet: No space left"):
        parquet.write_vectors(str(path), [(examples(1), np.zeros((1, 3), "f4"))], 3, {})
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["vectors.parquet"]


def test_a_run_exports_what_its_store_holds(tmp_path, photos, run_retrain):
    path = tmp_path / "vectors.parquet"
    flags = ("--export_vectors", path, "--no_report", "--precision", "float32")
    distorted = ("--flip_left_right", "--distorted_views", 1)
    assert run_retrain(tmp_path, photos, *flags, *distorted) == 0
    rows = arrow.read_table(path).to_pylist()
    assert len(rows) == 90
    assert {row["split"] for row in rows} == {"training", "validation", "testing"}
    assert all(row["path"].split(os.sep)[-2] == row["label"] for row in rows)
    (store,) = (tmp_path / "bottleneck_cache").glob("inception_v3-*.sqlite")
    stored = dict(sqlite3.connect(store).execute("SELECT key, vector FROM vectors"))
    for row in rows:
        assert row["vector"] == np.frombuffer(stored[row["key"]], "<f4").tolist()
    facts = arrow.read_schema(path).metadata
    assert facts[b"network"] == b"inception_v3"
    assert store.name == f"inception_v3-{facts[b'fingerprint'].decode()[:16]}.sqlite"


def test_without_the_package_it_is_refused_at_once(tmp_path, run_retrain, monkeypatch, capsys):
    monkeypatch.setattr(parquet.importlib.util, "find_spec", lambda name: None)
    assert run_retrain(tmp_path, tmp_path, "--export_vectors", tmp_path / "x.parquet") == 2
    error = capsys.readouterr().err
    assert "--export_vectors needs the package pyarrow: pip install -r requirements-" in error
