"""compute.py: the vectors of all splits, each computed once, imported or exported."""

import contextlib
import logging
import os
import re
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retraining.bottlenecks.classic_cache import ClassicCacheError
from retraining.bottlenecks.compute import (
    BottleneckSettings,
    compute_bottlenecks,
    export_content,
    import_exported,
)
from retraining.bottlenecks.extract import ExtractionSettings, Extractor
from retraining.bottlenecks.parquet import VectorFileError
from retraining.networks.mirror import mirror_average
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS
from retraining.photos.dataset import load_dataset
from retraining.photos.reader import Distortions
from retraining.photos.registry import hash_file
from retraining.photos.split import SPLITS, TRAINING
from retraining.system.atomic import write_files
from retraining.system.observer import Silent
from tests import tiny

pytestmark = pytest.mark.numbers


@pytest.fixture(scope="module")
def network(inception_file):
    return load_network(inception_file, NETWORKS["inception_v3"])


def extractor_of(network):
    return Extractor(network, ExtractionSettings("float32"))


@pytest.fixture(scope="module")
def compute(network):
    """Computes the Bottlenecks of the photos in a folder."""

    def compute(image_dir, folder, extractor=None, **settings):
        dataset = load_dataset(str(image_dir))
        settings = BottleneckSettings(str(folder), **settings)
        return compute_bottlenecks(dataset, extractor or extractor_of(network), settings, Silent())

    return compute


@pytest.fixture(scope="module")
def computed(tmp_path_factory, compute, photos):
    """(the Bottlenecks of `photos`, the folder of their store)."""
    folder = tmp_path_factory.mktemp("computed")
    return compute(photos, folder), folder


class NoExtractor(Extractor):
    """Fails if a vector is asked for."""

    def compute(self, jobs):
        raise AssertionError("a vector is computed")

    def read(self, paths):
        raise AssertionError("a photo is read")


@pytest.fixture
def idle(network):
    return NoExtractor(network, ExtractionSettings("float32"))


def rows(folder):
    """{key: the vector's bytes} of the one store in a folder."""
    (path,) = Path(folder).glob("*-*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT key, vector FROM vectors"))


def vectors_of(bottlenecks):
    """{key: vector} of the photos themselves."""
    return {
        example.key: vector
        for part in SPLITS
        for example, vector in zip(
            bottlenecks.examples[part], bottlenecks.labelled[part].vectors, strict=False
        )
    }


# -- computed once ---------------------------------------------------------------------------


def test_vectors_labels_and_splits_belong_together(computed):
    bottlenecks, folder = computed
    stored = rows(folder)
    assert len(stored) == sum(map(len, bottlenecks.examples.values())) == 90
    for key, vector in vectors_of(bottlenecks).items():
        assert vector.tobytes() == stored[key]
    for part in SPLITS:
        names = [example.label for example in bottlenecks.examples[part]]
        assert [bottlenecks.labels[n] for n in bottlenecks.labelled[part].targets] == names
    assert bottlenecks.bad == []
    assert bottlenecks.imported == set()
    assert bottlenecks.factors is None


def test_looking_up_and_reading_many_vectors_show_progress(computed, photos, network, monkeypatch):
    monkeypatch.setattr("retraining.system.observer.LATE_SECONDS", 0)
    bottlenecks, folder = computed
    shown = {}

    class Watcher(Silent):
        def progress(self, label, unit):
            def bar(iterable, total=None):
                made = Silent.progress(self, label, unit)(iterable, total)
                made.update = lambda n: shown.__setitem__(label, shown.get(label, 0) + n)
                return made

            return bar

    settings = BottleneckSettings(str(folder))
    compute_bottlenecks(load_dataset(str(photos)), extractor_of(network), settings, Watcher())
    count = len({e.key for of_split in bottlenecks.examples.values() for e in of_split})
    assert shown == {"looking up vectors": count, "reading vectors": count}


def test_moving_and_renaming_recomputes_nothing_and_changing_one_does(
    tmp_path, compute, computed, photos, idle
):
    moved, cache = tmp_path / "moved", tmp_path / "cache"
    shutil.copytree(photos, moved)
    shutil.copytree(computed[1], cache)
    os.rename(moved / "red", moved / "crimson")
    os.rename(moved / "blue" / "photo_03.jpg", moved / "blue" / "a.jpg")
    before = rows(cache)
    assert compute(moved, cache, idle).labels == ["blue", "crimson", "green"]
    assert rows(cache) == before
    changed = moved / "blue" / "photo_04.jpg"
    tiny.photo((20, 20, 250), np.random.default_rng(9)).save(changed)
    compute(moved, cache)
    after = rows(cache)
    assert after.keys() - before.keys() == {hash_file(changed)}
    assert all(after[key] == vector for key, vector in before.items())


def test_distorted_views_follow_the_training_photos_and_are_computed_once(
    tmp_path, compute, photos, idle
):
    distortions = Distortions(flip_left_right=True, random_brightness=20, views=3)
    found = compute(photos, tmp_path, distortions=distortions)
    training = len(found.examples[TRAINING])
    assert len(found.labelled[TRAINING].targets) == 4 * training
    assert len(rows(tmp_path)) == 90 + 3 * training
    again = compute(photos, tmp_path, idle, distortions=distortions)
    vectors = [each.labelled[TRAINING].vectors for each in (found, again)]
    np.testing.assert_array_equal(*vectors)
    plain = compute(photos, tmp_path, idle)  # the undistorted ones are there as well
    np.testing.assert_array_equal(plain.labelled[TRAINING].vectors, vectors[0][:training])
    compute(photos, tmp_path, distortions=replace(distortions, seed=1))
    assert len(rows(tmp_path)) == 90 + 6 * training


def test_bad_images_are_left_out_with_their_reasons(tmp_path, compute, photos):
    work = tmp_path / "work"
    shutil.copytree(photos, work)
    (work / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    found = compute(work, tmp_path / "cache")
    (bad,) = found.bad
    assert bad.path == f"{work}/red/broken.jpg"
    assert bad.reason.startswith("is ")
    assert len(vectors_of(found)) == 90


# -- vectors of the classic ------------------------------------------------------------------


def write_classic_cache(folder, computed, photos, shift):
    """A text file per photo of red and green, its vector moved by `shift`; {key: the vector}."""
    vectors, written = vectors_of(computed[0]), {}
    for path in sorted(Path(photos).glob("*/*.jpg")):
        key = hash_file(path)
        if path.parent.name != "blue":
            written[key] = vectors[key] + np.float32(shift)
            file = folder / path.parent.name / f"{path.name}_inception_v3.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(",".join(map(str, written[key])))
    return written


def test_a_classic_cache_is_taken_over(tmp_path, compute, computed, photos, caplog):
    classic = tmp_path / "classic"
    written = write_classic_cache(classic, computed, photos, 0.001)
    half = classic / "red" / "photo_03.jpg_inception_v3.txt"
    half.write_text(half.read_text()[:100])
    with caplog.at_level(logging.INFO):
        found = compute(photos, tmp_path / "cache", classic_folder=str(classic))
    line = (
        "53 vectors imported from {}; 6 recomputed to check them, 0 already cached, 1 skipped, 30"
    )
    assert line.format(classic) in caplog.text
    name = os.path.join("red", half.name)
    assert f"not imported, not 24 numbers: {name}" in caplog.messages[0]
    vectors, own = vectors_of(found), vectors_of(computed[0])
    assert len(found.imported) == 53
    assert len(vectors) == 90
    for key, vector in vectors.items():
        if key in found.imported:
            np.testing.assert_array_equal(vector, written[key])
        else:
            np.testing.assert_allclose(vector, own[key], atol=1e-5)


def test_a_stale_class_is_named_in_one_line_and_computed(
    tmp_path, compute, computed, photos, caplog
):
    classic = tmp_path / "classic"
    write_classic_cache(classic, computed, photos, 0)
    for file in classic.glob("red/*.txt"):
        file.write_text(",".join(reversed(file.read_text().split(","))))
    with caplog.at_level(logging.INFO):
        found = compute(photos, tmp_path / "cache", classic_folder=str(classic))
    line = (
        rf"the vectors of 'red' in {re.escape(str(classic))} differ from those that the network "
        r"computes \(cosine 0\.\d{3} for \S*red\S*\.jpg\), so it computes them anew"
    )
    assert [re.fullmatch(line, text) is not None for text in caplog.messages] == [True, False]
    assert "27 vectors imported" in caplog.messages[1]
    assert "30 skipped, 30 without a file" in caplog.messages[1]
    own = vectors_of(computed[0])
    for key, vector in vectors_of(found).items():
        np.testing.assert_allclose(vector, own[key], atol=1e-5)


def test_a_classic_cache_of_something_else_is_refused(tmp_path, compute, computed, photos):
    classic = tmp_path / "classic"
    write_classic_cache(classic, computed, photos, 0)
    for file in sorted(classic.glob("*/*.txt")):
        file.write_text(",".join(reversed(file.read_text().split(","))))
    with pytest.raises(ClassicCacheError, match="not those of this network and these photos"):
        compute(photos, tmp_path / "cache", classic_folder=str(classic))


# -- Parquet ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory, computed, network):
    """The path of vectors.parquet with the vectors of `photos`."""
    pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("exported") / "vectors.parquet"
    write_files({path: export_content(computed[0], extractor_of(network))})
    return str(path)


def test_photos_are_exported_without_their_distorted_views(tmp_path, compute, photos, network):
    arrow = pytest.importorskip("pyarrow.parquet")
    distortions = Distortions(flip_left_right=True, views=1)
    found = compute(photos, tmp_path, distortions=distortions)
    path = str(tmp_path / "vectors.parquet")
    write_files({path: export_content(found, extractor_of(network))})
    exported = arrow.read_table(path).to_pylist()
    assert len(exported) == 90
    assert {row["split"] for row in exported} == set(SPLITS)
    assert all(row["path"].split(os.sep)[-2] == row["label"] for row in exported)
    stored = rows(tmp_path)
    for row in exported:
        assert row["vector"] == np.frombuffer(stored[row["key"]], "<f4").tolist()
    facts = arrow.read_schema(path).metadata
    assert facts[b"network"] == b"inception_v3"
    assert facts[b"fingerprint"].decode() == network.fingerprint("float32")


def import_file(path, folder, extractor):
    import_exported(extractor, BottleneckSettings(str(folder), import_file=path), Silent())


def test_imported_vectors_are_not_computed(
    tmp_path, compute, computed, photos, exported, idle, caplog
):
    with caplog.at_level(logging.INFO):
        import_file(exported, tmp_path, idle)
        import_file(exported, tmp_path, idle)
    assert caplog.messages == [
        f"90 vectors imported from {exported}",
        f"0 vectors imported from {exported}, 90 already cached",
    ]
    assert rows(tmp_path) == rows(computed[1])
    compute(photos, tmp_path, idle)


def test_a_damaged_store_is_told_when_vectors_come_into_a_new_one(
    tmp_path, computed, exported, idle, caplog
):
    (store,) = computed[1].glob("*-*.sqlite")
    (tmp_path / store.name).write_text("no store at all")
    import_file(exported, tmp_path, idle)
    assert f"{store.name} was damaged or not a bottleneck store; moved it to" in caplog.text


def test_vectors_of_another_network_are_refused(tmp_path, exported, network):
    with pytest.raises(VectorFileError, match="holds vectors of inception_v3 in float32, this run"):
        import_file(exported, tmp_path, extractor_of(mirror_average(network)))
