"""saved_models.py: anybody's SavedModel or Keras file gives the vectors that it gives itself."""

import json
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from retraining.graphs import saved_model_safety
from retraining.graphs.nodes import read_notes
from retraining.graphs.run import Runner
from retraining.networks import keras as keras_networks
from retraining.networks import saved_models
from retraining.networks.keras import import_keras, random_weights
from retraining.networks.network import load_network
from retraining.networks.recipes import Choice, ChoiceError
from retraining.networks.registry import NetworkError, find, obtain
from retraining.networks.saved_models import load_keras

ASSUMED = "the model does not specify its pixel scale; assuming 0..1"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny Keras model in every form, with and without a Rescaling in front."""
    keras, folder = import_keras(), tmp_path_factory.mktemp("models")
    layers = keras.layers
    inner = keras.Sequential(
        [
            keras.Input((16, 20, 3)),
            layers.Conv2D(6, 3, groups=1, activation="relu", name="conv"),
            layers.BatchNormalization(),
            layers.Conv2D(6, 3, groups=6, name="grouped"),
            layers.Activation("silu", name="last"),
            layers.GlobalAveragePooling2D(),
        ]
    )
    inner.set_weights(random_weights(inner.weights))
    scaled = keras.Sequential([keras.Input((16, 20, 3)), layers.Rescaling(1 / 255), inner])
    image = keras.Model(inner.inputs, inner.get_layer("last").output)
    for name, model in (("inner", inner), ("scaled", scaled), ("image", image)):
        model.save(folder / f"{name}.keras")
        model.save(folder / f"{name}.h5")
        model.export(folder / name, verbose=False)
    return SimpleNamespace(folder=folder, inner=inner)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).uniform(0, 255, (3, 16, 20, 3)).astype(np.float32)


def frozen(path, model_dir, **chosen):
    network = find("saved_model", Choice(model_file=str(path), **chosen))
    return load_network(obtain(network, model_dir, offline=True), network)


def vectors(base, pixels):
    assert (base.preprocessing.mean, base.preprocessing.std) == (0, 1)
    assert base.preprocessing.size == (16, 20)
    return Runner(base.graph_def, base.input, base.bottleneck).run(pixels)


@pytest.mark.parametrize("ending", ["", ".keras", ".h5"])
def test_pixels_are_scaled_as_the_model_or_the_user_says(models, pixels, tmp_path, ending):
    expected = models.inner.predict(pixels / 255, verbose=0)
    for name, chosen in (("scaled", {}), ("inner", {"std": 255.0}), ("inner", {})):
        base = frozen(f"{models.folder}/{name}{ending}", tmp_path, **chosen)
        np.testing.assert_allclose(vectors(base, pixels), expected, atol=1e-5)
        notes = read_notes(base.graph_def)
        assert [note[: len(ASSUMED)] for note in notes] == (
            [] if chosen or name == "scaled" else [ASSUMED]
        )
    base = frozen(f"{models.folder}/inner{ending}", tmp_path, mean=100.0, std=50.0)
    expected = models.inner.predict((pixels - 100) / 50, verbose=0)
    np.testing.assert_allclose(vectors(base, pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "chosen"), [("image", {}), ("image.keras", {}), ("inner.keras", {"layer": "last"})]
)
def test_what_is_an_image_is_averaged_over_it(models, pixels, tmp_path, name, chosen):
    base = frozen(models.folder / name, tmp_path, std=255.0, **chosen)
    expected = models.inner.predict(pixels / 255, verbose=0)
    np.testing.assert_allclose(vectors(base, pixels), expected, atol=1e-5)
    assert bool(read_notes(base.graph_def)) == (not chosen)


def test_signatures_of_several_outputs_any_size_and_bytes(tmp_path):
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
        def call(self, images):
            means = tf.reduce_mean(tf.cast(images, tf.float32), (1, 2))
            return {"means": means, "twice": 2 * means}

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "m"), {"serving_default": module.call})
    with pytest.raises(
        NetworkError, match=r"the outputs means, twice; name one with `Choice.layer`"
    ):
        frozen(tmp_path / "m", tmp_path, height=16, width=20)
    with pytest.raises(NetworkError, match=r"image size; give `Choice.height` and `Choice.width`"):
        frozen(tmp_path / "m", tmp_path, layer="twice")
    base = frozen(tmp_path / "m", tmp_path, layer="twice", height=16, width=20)
    pixels = np.full((2, 16, 20, 3), [10, 20, 30], np.float32)
    np.testing.assert_allclose(vectors(base, pixels), [[20, 40, 60]] * 2, rtol=1e-5)
    assert read_notes(base.graph_def) == []


def test_a_saved_model_that_writes_files_is_not_loaded(tmp_path):
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32)])
        def __call__(self, images):
            tf.io.write_file(str(tmp_path / "evil"), "x")
            return tf.reduce_mean(images, (1, 2))

    tf.saved_model.save(Module(), str(tmp_path / "m"))
    (tmp_path / "evil").unlink(missing_ok=True)
    with pytest.raises(NetworkError, match=r"holds 'WriteFile'; .*`Choice.allow_unsafe_ops`"):
        frozen(tmp_path / "m", tmp_path / "models")
    assert not (tmp_path / "evil").exists()


def test_a_model_that_cannot_be_frozen_is_named(tmp_path):
    keras = import_keras()
    layers = [keras.Input((8, 8, 3)), keras.layers.Reshape((64, 3))]
    path = tmp_path / "rows.keras"
    keras.Sequential(layers).save(path)
    with pytest.raises(NetworkError) as error:
        frozen(path, tmp_path / "models")
    assert str(error.value).startswith(
        f"{path} cannot serve as a base network: it gives (None, 64,"
    )


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_keras_file_with_code_is_not_loaded(tmp_path, ending):
    keras = import_keras()
    layers = [keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x + 1)]
    path = tmp_path / f"m{ending}"
    keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()]).save(path)
    with pytest.raises(NetworkError, match="was not loaded, since it holds code of its own"):
        frozen(path, tmp_path / "models")


HARMFUL = {
    "TFSMLayer": ("keras.layers", {"filepath": "/tmp"}),
    "StringLookup": ("keras.layers", {"vocabulary": "/etc/passwd"}),
    "get_file": ("keras.utils", {"origin": "http://127.0.0.1:1/x"}),
    "__typespec__": (None, {}),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_class_that_is_not_known_to_be_harmless_is_named(tmp_path, name):
    module, config = HARMFUL[name]
    layer = {"module": module, "class_name": name, "config": config}
    layers = {"name": "m", "layers": [layer]}
    model = {"module": "keras", "class_name": "Sequential", "config": layers}
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(model))
    with pytest.raises(ChoiceError, match=f"it holds the layer '{name}', which is not known"):
        load_keras(tmp_path / "m.keras", Choice())


def test_ordinary_keras_models_are_loaded(tmp_path):
    keras = import_keras()
    layers = keras.layers
    image = keras.Input((16, 16, 3))
    features = layers.Conv2D(3, 3, kernel_regularizer="l2", kernel_constraint="max_norm")(
        layers.RandomFlip()(image) / 255.0
    )
    mean = keras.ops.mean(keras.ops.relu(features - 1), axis=(1, 2))
    inner = keras.Model(image, layers.Dense(2, dtype="mixed_float16")(mean))
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.9)
    model = keras.Sequential([keras.Input((16, 16, 3)), layers.Rescaling(2.0), inner])
    for each in (inner, model):
        loss = keras.losses.CategoricalCrossentropy()
        each.compile(keras.optimizers.SGD(rate), loss, metrics=[keras.metrics.AUC()])
    model.save(tmp_path / "m.keras")
    pixels = np.ones((1, 16, 16, 3), np.float32)
    loaded = load_keras(tmp_path / "m.keras", Choice())
    np.testing.assert_array_equal(loaded.function(pixels), model(pixels))


def test_what_is_no_weights_in_an_h5_file_has_a_limit(models, monkeypatch):
    monkeypatch.setattr(keras_networks, "MOST_CONFIG", 10)
    with pytest.raises(ChoiceError, match="of its bytes are no weights"):
        load_keras(models.folder / "inner.h5", Choice())
    monkeypatch.undo()
    monkeypatch.setattr(saved_models, "MOST_CONFIG", 10)
    with pytest.raises(ChoiceError, match=r"its model_config has \d+ bytes"):
        load_keras(models.folder / "inner.h5", Choice())


def edited(models, folder, edit):
    """A SavedModel of which `edit` has changed the first meta graph."""
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(models.folder / "inner", folder)
    path = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    edit(saved.meta_graphs[0])
    path.write_bytes(saved.SerializeToString())
    return folder


def test_a_constant_that_a_saved_model_only_claims_is_refused(models, tmp_path):
    def edit(meta):
        nodes = (n for f in meta.graph_def.library.function for n in f.node_def)
        node = next(n for n in nodes if n.op == "Const")
        node.attr["dtype"].type = 1
        tensor = node.attr["value"].tensor
        tensor.Clear()
        tensor.dtype = 1
        tensor.float_val.append(1)
        tensor.tensor_shape.dim.add(size=3 << 30)

    with pytest.raises(
        NetworkError, match=r"cannot be used: it is damaged: .* a shape of 3221225472 elem"
    ):
        frozen(edited(models, tmp_path / "m", edit), tmp_path / "models")


def test_a_saved_model_of_too_many_objects_is_refused(models, tmp_path, monkeypatch):
    monkeypatch.setattr(saved_model_safety, "MAX_NODES", 3)
    with pytest.raises(
        NetworkError, match="cannot be used: it is damaged: it has more than 3 objects"
    ):
        frozen(models.folder / "inner", tmp_path / "models")


def test_what_cannot_be_used_is_one_line(models, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "saved_model.pb").write_bytes(b"\xff\xff")
    (tmp_path / "damaged.keras").write_bytes(b"PK\x03\x04")
    (tmp_path / "damaged.h5").write_bytes(b"HDF")
    models.inner.save_weights(tmp_path / "only.weights.h5")
    wrong = [
        (
            tmp_path,
            {},
            "is neither a SavedModel folder (with saved_model.pb in it) nor a .keras or",
        ),
        (tmp_path / "gone.h5", {}, "is neither a SavedModel folder"),
        (tmp_path / "m", {}, "damaged"),
        (tmp_path / "damaged.keras", {}, "damaged"),
        (tmp_path / "damaged.h5", {}, "damaged"),
        (tmp_path / "only.weights.h5", {}, "holds weights only"),
        (models.folder / "inner.keras", {"height": 17}, "takes images of 16 x 20 pixels"),
        (models.folder / "inner.keras", {"layer": "lost"}, "did you mean last"),
        (models.folder / "inner", {"layer": "no"}, "has no output 'no'"),
    ]
    for path, chosen, text in wrong:
        with pytest.raises(NetworkError) as error:
            frozen(path, tmp_path / "models", **chosen)
        assert text in str(error.value)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "models").exists()


def test_keras_files_with_an_odd_description_are_one_line(tmp_path):
    h5py = pytest.importorskip("h5py")
    odd, deep = tmp_path / "odd.h5", tmp_path / "deep.keras"
    with h5py.File(odd, "w") as file:
        file.attrs["model_config"] = 3
    with zipfile.ZipFile(deep, "w") as archive:
        archive.writestr("config.json", "[" * 200_000 + "]" * 200_000)
    for path in (odd, deep):
        with pytest.raises(ChoiceError, match="is damaged or not a Keras model"):
            load_keras(path, Choice())
