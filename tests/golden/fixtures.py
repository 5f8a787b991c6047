"""Files that both sides of a comparison are fed: tiny networks, photos, damaged things.

They are made once, in a folder of the cache, by whatever tree is current then, so that the two
sides never read different files. Raise VERSION when what is made here changes.
"""

import hashlib
import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

VERSION = "1"
TIME = 1_600_000_000  # when every file was last changed, so that nothing is thought too new


def make(folder):
    """Makes the fixtures in `folder`, unless those of this VERSION are there."""
    mark = folder / "version.txt"
    if mark.is_file() and mark.read_text() == VERSION:
        return
    shutil.rmtree(folder, ignore_errors=True)
    _write_networks(folder)
    _write_photos(folder)
    _write_wrong_files(folder)
    mark.write_text(VERSION)
    for path in folder.rglob("*"):
        os.utime(path, (TIME, TIME))


def changed(folder):
    """The paths below `folder` that were written to since they were made."""
    return [path for path in folder.rglob("*") if path.stat().st_mtime != TIME]


def _write_networks(folder):
    import keras

    from tests import tiny

    inception, mobilenet = tiny.tiny_inception(), tiny.tiny_mobilenet()
    models = folder / "models"
    tiny.write_graph(
        str(models / "inception_dec_2015" / "tensorflow_inception_graph.pb"), inception
    )
    tiny.write_graph(str(models / "mobilenet_v1_0.25_128" / "frozen_graph.pb"), mobilenet)
    builder = tiny.GraphBuilder(producer=0)
    builder.graph_def.CopyFrom(mobilenet)
    builder.add("reader", "ReadFile", builder.const("name", b"/etc/hostname"))
    tiny.write_graph(str(folder / "unsafe.pb"), builder.graph_def)
    (folder / "cut.pb").write_bytes(inception.SerializeToString()[:2000])
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(6, 3, activation="relu"), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((16, 20, 3)), keras.layers.Rescaling(1 / 255), *layers])
    model.save(folder / "model.keras")
    model.export(folder / "saved_model", verbose=False)


def _write_photos(folder):
    from PIL import Image

    from tests import tiny

    counts = {"red": 24, "green": 24, "blue": 24}
    tiny.write_photos(folder / "photos", counts)
    tiny.write_photos(folder / "grown", counts)
    tiny.write_photos(folder / "grown", {"grey": 22, "green": 2}, seed=3, suffix=".png")
    tiny.write_photos(folder / "few", {"red": 6, "blue": 25})
    tiny.write_photos(folder / "one_class", {"red": 5})
    tiny.write_photos(folder / "alike", {"red": 5})
    shutil.copytree(folder / "alike" / "red", folder / "alike" / "Red ")
    mixed = folder / "mixed"
    tiny.write_photos(mixed, {"red": 21, "green": 21, "grey": 21}, seed=5)
    for number in range(3):  # wrong labels
        os.replace(
            mixed / "red" / f"photo_0{number}.jpg", mixed / "green" / f"from_red_{number}.jpg"
        )
    first = mixed / "grey" / "photo_00.jpg"
    shutil.copy(first, mixed / "grey" / "copy.jpg")
    os.replace(mixed / "grey" / "photo_01.jpg", mixed / "grey" / "subject_nohash_1.jpg")
    os.replace(mixed / "grey" / "photo_02.jpg", mixed / "grey" / "subject_nohash_2.jpg")
    (mixed / "grey" / "broken.jpg").write_bytes(first.read_bytes()[:300])
    (mixed / "grey" / "empty.jpg").touch()
    (mixed / "grey" / "notes.txt").write_text("no photo\n")
    (mixed / "grey" / ".hidden.jpg").write_bytes(first.read_bytes())
    tiny.write_photos(mixed / "red", {"blue": 3}, seed=8)  # below a class folder
    picture = Image.open(mixed / "red" / "photo_05.jpg")
    picture.convert("RGBA").save(mixed / "red" / "gänse.png")
    picture.convert("L").save(mixed / "red" / "a\tb.bmp")
    picture.quantize(8).save(mixed / "red" / "spaces in name.gif")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(mixed / "red" / "turned.webp", exif=turned)
    picture.save(mixed / "red" / "turned.jpeg", exif=turned)


def _write_wrong_files(folder):
    (folder / "text.jpg").write_text("no image\n")
    (folder / "three.txt").write_text("x\ny\nz\n")
    (folder / "two.txt").write_text("x\ny\n")
    (folder / "nothing").mkdir()
    (folder / "excluded.txt").write_text(
        "".join(f"../fixtures/mixed/green/from_red_{n}.jpg\n" for n in range(3))
    )


def classic_vectors(run):
    """A classic --bottleneck_dir of red and green in `run`/classic, from the store in `run`."""
    (store,) = (run / "bottleneck_cache").glob("inception_v3-*.sqlite")
    import numpy as np

    with closing(sqlite3.connect(store)) as connection, connection:
        vectors = dict(connection.execute("SELECT key, vector FROM vectors"))
    for path in sorted((run.parent / "fixtures" / "photos").glob("*/*.jpg")):
        if path.parent.name == "blue":
            continue
        vector = np.frombuffer(vectors[_sha1(path)], "<f4") + np.float32(0.001)
        file = run / "classic" / path.parent.name / f"{path.name}_inception_v3.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(",".join(map(str, vector)))
    half = run / "classic" / "red" / "photo_03.jpg_inception_v3.txt"
    half.write_text(half.read_text()[:100])
    shutil.rmtree(run / "bottleneck_cache")


def _sha1(path):
    return hashlib.sha1(path.read_bytes()).hexdigest()


def damaged_store(run):
    """Overwrites the store with something else."""
    (store,) = (run / "bottleneck_cache").glob("inception_v3-*.sqlite")
    store.write_bytes(b"no store" * 100)


def damaged_row(run):
    """Zeroes one vector in the store, whose check sum then tells."""
    (store,) = (run / "bottleneck_cache").glob("inception_v3-*.sqlite")
    with closing(sqlite3.connect(store)) as connection, connection:
        first = "(SELECT min(key) FROM vectors)"
        connection.execute(f"UPDATE vectors SET vector = zeroblob(96) WHERE key = {first}")
    connection.close()


def damaged_checkpoint(run):
    """Cuts the checkpoint of an interrupted fine-tuning in half."""
    (path,) = (run / "bottleneck_cache" / "fine_tuning").glob("*.npz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def full_folder(run):
    """A file where the folder of outputs should be."""
    shutil.rmtree(run / "models")
    (run / "models").write_text("a file\n")


def foreign_tables(run):
    """Tables that are someone else's, where a run would put its own."""
    (run / "models").mkdir()
    for name in ("comparison.tsv", "bad_images.tsv"):
        (run / "models" / name).write_text("mine\n")


def wrong_classic_vectors(run):
    """A classic cache of another network: numbers drawn at random."""
    import numpy as np

    classic_vectors(run)
    rng = np.random.default_rng(0)
    for file in sorted((run / "classic").glob("*/*.txt")):
        file.write_text(",".join(map(str, rng.uniform(1, 2, 24).astype("f4"))))


def ten_labels(run):
    """Labels for the tiny network's own ten classes."""
    (run / "ten.txt").write_text("".join(f"class {n}\n" for n in range(10)))


def own_photos(run):
    """Photos that a command might change, in `run`/copy."""
    shutil.copytree(run.parent / "fixtures" / "few", run / "copy")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
