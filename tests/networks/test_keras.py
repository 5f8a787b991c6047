"""keras.py, freeze.py: names without Keras, frozen graphs that give what Keras gives."""

import gc
import json
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

import label_image
from retraining.graphs.fold import fold
from retraining.graphs.nodes import constant, nodes_by_name, read_notes
from retraining.graphs.read import read_graph
from retraining.graphs.run import Runner
from retraining.graphs.safety import describe_unsafe
from retraining.networks import keras as keras_networks
from retraining.networks.keras import (
    CAFFE,
    INSIDE,
    STOCK,
    TF,
    TORCH,
    KerasRecipe,
    import_keras,
    parse,
    random_weights,
)
from retraining.networks.network import load_network
from retraining.networks.recipes import Choice, ChoiceError, ModelFiles
from retraining.networks.registry import NetworkError, find, obtain
from retraining.networks.saved_models import load_keras
from retraining.training.head import Head
from retraining.training.tuning_graph import (
    Batch,
    TuningGraph,
    find_weights,
    fold_network,
    head_weights,
)
from tests import ROOT, tiny

SMALL = "keras:MobileNet_0.25_32"


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def keras():
    return import_keras()


@pytest.fixture(scope="module")
def whole(keras, tmp_path_factory):
    """Keras's MobileNet 0.25 for 32 x 32 pixels with random weights, and files of these."""
    folder = tmp_path_factory.mktemp("weights")
    options = {"alpha": 0.25, "input_shape": (32, 32, 3), "weights": None}
    model = keras.applications.MobileNet(**options)
    model.set_weights(random_weights(model.weights))
    model.save_weights(folder / "whole.weights.h5")
    bare = keras.applications.MobileNet(**options, include_top=False, pooling="avg")
    bare.set_weights(model.get_weights()[: len(bare.weights)])
    bare.save_weights(folder / "bare.weights.h5")
    return SimpleNamespace(model=model, bare=bare, folder=folder)


def vectors(base, pixels):
    about = base.preprocessing
    scaled = (pixels - np.float32(about.mean)) / np.float32(about.std)
    return Runner(base.graph_def, base.input, base.bottleneck).run(scaled)


def frozen(name, model_dir, **chosen):
    network = find(name, Choice(**chosen))
    return load_network(obtain(network, model_dir, offline=True), network)


@pytest.fixture(scope="module")
def bare_network(whole, tmp_path_factory):
    """(the frozen network of the bare model, its --model_dir); do not change them."""
    folder = tmp_path_factory.mktemp("bare")
    return frozen(SMALL, folder, weights=str(whole.folder / "bare.weights.h5")), folder


@pytest.fixture
def base(bare_network):
    """The bare network, with a GraphDef of its own."""
    graph_def = type(bare_network[0].graph_def)()
    graph_def.CopyFrom(bare_network[0].graph_def)
    return replace(bare_network[0], graph_def=graph_def)


def assert_close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("inceptionv3", ("InceptionV3", None, None)),
        ("EfficientNetV2B0", ("EfficientNetV2B0", None, None)),
        ("mobilenet_0.25_128", ("MobileNet", "0.25", 128)),
        ("MobileNetV2_1.4", ("MobileNetV2", "1.4", None)),
    ],
)
def test_names_are_read_in_any_case(name, expected):
    assert parse(name) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("keras:InceptionV4", "did you mean keras:InceptionV3?"),
        ("keras:VGG16_0.5", "has no alpha"),
        ("vgg15", "did you mean vgg16?"),
    ],
)
def test_a_wrong_name_gets_a_suggestion(name, text):
    with pytest.raises(NetworkError) as error:
        find(name)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["weights", "layer", "height", "width", "mean", "std"])
def test_a_choice_that_a_network_does_not_leave_is_refused(field):
    with pytest.raises(NetworkError, match="has no effect with inception_v3"):
        find("inception_v3", Choice(**{field: 1}))


def test_names_and_help_need_neither_keras_nor_tensorflow():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, retrain\n"
            "from retraining.cli import flags\n"
            "from retraining.networks import registry\n"
            "registry.find('keras:VGG16'), flags.build_parser().format_help()\n"
            "print([name for name in sys.modules if name in ('keras', 'tensorflow', 'h5py')])",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_table_is_that_of_the_installed_keras(keras):
    names = {name for name in dir(keras.applications) if name[0].isupper()}
    assert set(STOCK) == names
    pixel = np.array([[[[10.0, 100.0, 250.0]]]], np.float32)
    expected = {
        TF: pixel / 127.5 - 1,
        CAFFE: pixel[..., ::-1] - np.array([103.939, 116.779, 123.68]),
        TORCH: (pixel / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        INSIDE: pixel,
    }
    seen = set()
    for module in vars(keras.applications).values():
        for name in set(STOCK) & set(dir(module)):
            found = module.preprocess_input(pixel.copy())
            np.testing.assert_allclose(found, expected[STOCK[name][1]], atol=1e-4)
            seen.add(name)
    # MobileNetV3's two have their preprocess_input in a module without them.
    assert names - seen <= {"MobileNetV3Small", "MobileNetV3Large"}


@pytest.fixture(params=["bare.weights.h5", "whole.weights.h5"])
def of_a_file(request, whole, bare_network, tmp_path, capfd):
    """The network with the weights of a file; nothing is printed on the way."""
    if request.param.startswith("bare"):
        return bare_network[0]
    base = frozen(SMALL, tmp_path, weights=str(whole.folder / request.param))
    assert capfd.readouterr().out == ""
    return base


def test_weights_from_a_file_with_or_without_the_classes(whole, pixels, of_a_file):
    assert (of_a_file.input, of_a_file.bottleneck, of_a_file.width) == ("input", "bottleneck", 256)
    assert of_a_file.preprocessing.size == (32, 32)
    assert read_notes(of_a_file.graph_def) == []
    expected = whole.bare.predict(pixels / 127.5 - 1, verbose=0)
    assert_close(vectors(of_a_file, pixels), expected)


def test_the_graph_is_plain_and_folds(base):
    assert describe_unsafe(base.graph_def) == ""
    assert not base.graph_def.library.function
    fold(base.graph_def, "bottleneck")
    ops = {node.op for node in base.graph_def.node}
    assert not ops & {"Mul", "Rsqrt", "Sub", "AddV2", "Reshape", "FusedBatchNormV3"}


def test_it_is_frozen_once(whole, bare_network, monkeypatch):
    first, folder = bare_network
    monkeypatch.setattr(KerasRecipe, "build", None)
    again = frozen(SMALL, folder, weights=str(whole.folder / "bare.weights.h5"))
    assert again.file_sha1 == first.file_sha1
    assert len(list(folder.rglob("*"))) == 2  # a folder, a file


def test_a_layer_can_be_the_bottleneck(keras, whole, pixels, tmp_path):
    weights = str(whole.folder / "whole.weights.h5")
    base = frozen(SMALL, tmp_path, weights=weights, layer="conv_pw_6_relu")
    part = keras.Model(whole.model.input, whole.model.get_layer("conv_pw_6_relu").output)
    assert_close(vectors(base, pixels), part.predict(pixels / 127.5 - 1, verbose=0).mean((1, 2)))
    with pytest.raises(
        NetworkError, match="no layer 'conv_pw_6_relo'; did you mean conv_pw_6_relu"
    ):
        frozen(SMALL, tmp_path, weights=weights, layer="conv_pw_6_relo")


def test_files_that_are_not_the_networks_weights_are_one_line(whole, tmp_path):
    (tmp_path / "text.weights.h5").write_text("no weights")
    (tmp_path / "weights.txt").write_text("no weights")
    wrong = [("keras:MobileNet_0.5_32", str(whole.folder / "bare.weights.h5"))]
    wrong += [(SMALL, str(tmp_path / name)) for name in ("text.weights.h5", "weights.txt", "gone")]
    for name, weights in wrong:
        with pytest.raises(NetworkError) as error:
            frozen(name, tmp_path / "models", weights=weights)
        assert "\n" not in str(error.value)
        assert weights in str(error.value)
    assert not (tmp_path / "models").exists()


def test_all_layers_of_a_keras_network_can_be_fine_tuned(base, pixels):
    folded = fold_network(base)
    kinds, nodes = find_weights(folded), nodes_by_name(folded.graph_def)
    # 27 convolutions, with a batch norm folded into each.
    assert sorted(kinds.values()) == ["shift"] * 27 + ["weights"] * 27
    weights = {name: constant(nodes, name) for name in kinds}
    rng = np.random.default_rng(0)
    weights |= head_weights(Head(rng.normal(size=(256, 3)).astype("f4"), np.zeros(3, "f4")))
    batch = Batch(pixels / 127.5 - 1, np.arange(3, dtype="i4"), np.ones(3, "f4"))
    _, slopes = TuningGraph(folded, weights).gradients(weights, batch)
    assert all((slope != 0).any() for slope in slopes.values())


def test_weights_of_imagenet_come_from_kerass_cache(whole, pixels, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "models").mkdir(parents=True)
    name = "keras:MobileNet_0.25_128"
    with pytest.raises(NetworkError) as error:
        frozen(name, tmp_path / "models")
    assert str(error.value).startswith("mobilenet_2_5_128_tf_no_top.h5 is not in Keras's cache")
    assert "`NetworkSettings.offline`" in str(error.value)
    assert str(tmp_path / "home" / "models") in str(error.value)
    file = tmp_path / "home" / "models" / "mobilenet_2_5_128_tf_no_top.h5"
    whole.bare.save(file)
    base = frozen(name, tmp_path / "models")
    same = frozen("keras:MobileNet_0.25_128", tmp_path / "models", weights=str(file))
    large = np.repeat(np.repeat(pixels, 4, 1), 4, 2)
    np.testing.assert_array_equal(vectors(base, large), vectors(same, large))


@pytest.fixture
def web(tmp_path, monkeypatch):
    """Serves tmp_path/www to fetch Keras's files from; the cache of Keras is in tmp_path/home."""
    (tmp_path / "www").mkdir()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("wrong", ["portal", "cut"])
@pytest.mark.parametrize("kind", ["weights", "labels"])
def test_a_wrong_file_for_kerass_cache_does_not_stay(web, whole, tmp_path, wrong, kind):
    index = {str(number): [f"n{number}", f"class_{number}"] for number in range(1000)}
    sound = (whole.folder / "bare.weights.h5").read_bytes()
    sound = sound if kind == "weights" else json.dumps(index).encode()
    check = (
        keras_networks.check_model_file if kind == "weights" else keras_networks._read_class_index
    )
    bad = b"<html>Please log in</html>" if wrong == "portal" else sound[: len(sound) // 2]
    files = ModelFiles(tmp_path / "models")
    cached = [f"{kind}.h5", f"{web}/file", files, check]
    (tmp_path / "www" / "file").write_bytes(bad)
    with pytest.raises(ChoiceError, match=r"cannot be downloaded .* damaged"):
        keras_networks.cached_file(*cached)
    assert list((tmp_path / "home" / "models").iterdir()) == []
    (tmp_path / "home" / "models" / f"{kind}.h5").write_bytes(bad)
    with pytest.raises(ChoiceError, match="damaged"):
        keras_networks.cached_file(*cached[:2], replace(files, offline=True), check)
    (tmp_path / "www" / "file").write_bytes(sound)
    assert keras_networks.cached_file(*cached).read_bytes() == sound
    names = sorted(path.name for path in (tmp_path / "home" / "models").iterdir())
    assert names == [f"{kind}.h5", f"{kind}.h5.refused"]


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and devices")
@pytest.mark.parametrize("name", [SMALL, "vgg16"])
def test_weights_that_have_no_end_are_one_line(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.h5")
    with open(tmp_path / "sparse.h5", "wb") as file:
        file.truncate(6 << 30)
    said = {"pipe.h5": "a pipe, a socket or a device", "sparse.h5": "it has 6442450944 bytes"}
    said |= {"/dev/zero": "a pipe, a socket or a device"}
    for weights, reason in said.items():
        with pytest.raises(NetworkError, match=f"cannot read the weights .*: .*{reason}") as error:
            obtain(find(name, Choice(str(tmp_path / weights))), tmp_path / "models")
        assert "\n" not in str(error.value)


def bombs(folder):
    """{reason: file of weights that claims more than it holds, or leads elsewhere}."""
    made = {}
    for number, (reason, make) in enumerate(BOMBS.items()):
        made[reason] = folder / f"{number}.h5"
        with h5py.File(made[reason], "w") as file:
            make(file)
    for name in ("config.json", "model.weights.h5", "metadata.json"):
        made[name] = folder / f"{name}.keras"
        with zipfile.ZipFile(made[name], "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr(name, b" " * (100 << 20))
    return made


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "w", (4,))
    file.create_virtual_dataset("w", layout)


BOMBS = {
    "unpack": lambda file: file.create_dataset("w", (1 << 30,), "f4", chunks=True),
    "is a link": lambda file: file.update(w=h5py.ExternalLink("pipe.h5", "/w")),
    "'w' is a link": lambda file: file.update(w=h5py.SoftLink("/lost")),
    "lies in other files": lambda file: file.create_dataset("w", (4,), "f4", external="/dev/zero"),
    "'w' lies in other files": virtual,
}


def test_files_of_weights_that_unpack_to_more_than_they_hold_are_refused(keras, tmp_path):
    for reason, path in bombs(tmp_path).items():
        with pytest.raises(ChoiceError) as error:
            keras_networks.check_model_file(path)
        said = "unpack to" if path.suffix == ".keras" else reason
        assert said in str(error.value)
        assert "\n" not in str(error.value)
        with pytest.raises(ChoiceError, match=r"unpack|link|other files"):
            keras_networks.load_weights(keras.Sequential([keras.Input((2,))]), str(path))


def test_a_description_of_blanks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_networks, "MOST_CONFIG", 1000)
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", b"{}" + b" " * 2000)
    with pytest.raises(ChoiceError, match=r"its config\.json has 2002 bytes"):
        load_keras(tmp_path / "m.keras", Choice())


def test_another_keras_is_one_line_and_files_of_weights_go_on(keras, whole, tmp_path, monkeypatch):
    monkeypatch.delattr("keras.src.utils.file_utils.get_file")
    with pytest.raises(NetworkError) as error:
        frozen("keras:MobileNet_0.25_128", tmp_path)
    assert str(error.value).startswith(f"Keras {keras.__version__} keeps its files of weights in")
    assert "\n" not in str(error.value)
    frozen(SMALL, tmp_path, weights=str(whole.folder / "bare.weights.h5"))


@pytest.fixture(scope="module")
def vgg(keras):
    """Keras's VGG16 for 32 x 32 pixels as `random` makes it."""
    model = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3))
    model.set_weights(random_weights(model.weights))
    return model


def test_caffe_pixels_and_vgg_layers(keras, vgg, pixels, tmp_path):
    base = frozen("keras:vgg16", tmp_path, weights="random", height=32, width=32, layer="relu7")
    part = keras.Model(vgg.input, vgg.get_layer("fc2").output)
    prepared = keras.applications.vgg16.preprocess_input(pixels.copy())
    assert base.width == 4096
    assert base.preprocessing == type(base.preprocessing)((32, 32), 0.0, 1.0)
    assert_close(vectors(base, pixels), part.predict(prepared, verbose=0))


def test_random_weights_are_the_same_each_time(whole):
    for one, other in zip(
        random_weights(whole.model.weights[:20]),
        random_weights(whole.model.weights[:20]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_random_weights_are_noted_in_the_graph(tmp_path):
    (note,) = read_notes(frozen(SMALL, tmp_path, weights="random").graph_def)
    assert note.startswith(f"the weights of {SMALL} are random")


def test_label_image_names_imagenets_classes(whole, tmp_path, capsys, monkeypatch):
    weights = str(whole.folder / "whole.weights.h5")
    photo = tmp_path / "photo.png"
    tiny.photo((200, 40, 40), np.random.default_rng(0), (32, 32)).save(photo)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    flags = ["--graph", SMALL, "--weights", weights, "--model_dir", str(tmp_path), "--offline"]
    assert label_image.main([*flags, str(photo)]) == 1
    assert "imagenet_class_index.json is not in Keras's cache" in capsys.readouterr().err
    index = {str(number): [f"n{number}", f"class_{number}"] for number in range(1000)}
    (tmp_path / "home" / "models").mkdir(parents=True)
    file = tmp_path / "home" / "models" / "imagenet_class_index.json"
    file.write_text(json.dumps(index))
    assert label_image.main([*flags, str(photo)]) == 0
    lines = capsys.readouterr().out.splitlines()
    with photo.open("rb") as opened:
        image = np.asarray(label_image_pixels(opened), np.float32)
    expected = whole.model.predict(image[None] / 127.5 - 1, verbose=0)[0]
    capsys.readouterr()
    best = np.argsort(-expected)[:5]
    assert [line.split(" (")[0] for line in lines] == [f"class {number}" for number in best]
    names = tmp_path / "labels.txt"
    names.write_text("\n".join(["background", *(f"class {number}" for number in range(1000))]))
    assert label_image.main([*flags, "--labels", str(names), str(photo)]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def label_image_pixels(file):
    from PIL import Image

    return Image.open(file).convert("RGB")


def test_a_graph_that_was_frozen_is_a_classifier_for_anyone(whole, tmp_path):
    recipe = KerasRecipe.named(SMALL, Choice(str(whole.folder / "whole.weights.h5")), True)
    graph_def = recipe.build(ModelFiles(tmp_path, offline=True))
    path = tmp_path / "graph.pb"
    path.write_bytes(graph_def.SerializeToString())
    assert {"input", "softmax"} <= set(nodes_by_name(read_graph(path)))
    with pytest.raises(ChoiceError, match=r"`Choice.mean` has no effect"):
        KerasRecipe.named(SMALL, Choice(mean=1.0))


def settle(model, pixels):
    """Gives batch norms the statistics of `pixels` [n, height, width, 3], as training would.

    With random statistics a deep network is no function to compare: EfficientNetV2B1 then differs
    from itself by 21 % of its largest number when pixels move by 1e-6. The shift of 1 keeps most
    values where a ReLU is linear; without it, InceptionV3 differs by 0.3 %, with it by 0.006 %.
    """
    for layer in model.layers:
        if hasattr(layer, "moving_mean"):
            layer.momentum = 0
            if layer.beta is not None:
                layer.beta.assign(np.ones(layer.beta.shape, np.float32))
        elif hasattr(layer, "rate"):  # dropout
            layer.rate = 0
    model(pixels, training=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
def test_every_network_gives_what_keras_gives(name, keras, tmp_path):
    """At 96 x 96 pixels, with random weights."""
    pixels = np.random.default_rng(1).uniform(0, 255, (8, 96, 96, 3)).astype(np.float32)
    weights, expected = settled_weights(name, pixels, keras, tmp_path)
    recipe = KerasRecipe.named(name, Choice(weights, height=96, width=96))
    graph_def = recipe.build(ModelFiles(tmp_path, offline=True))
    forget_models(keras)
    scaled = (pixels[:2] - recipe.mean) / np.float32(recipe.std)
    assert_close(Runner(graph_def, "input", "bottleneck").run(scaled), expected)


def settled_weights(name, pixels, keras, folder):
    """(a file of a settled model's weights, what the model itself gives for two images)."""
    modules = [m for m in vars(keras.applications).values() if hasattr(m, name)]
    prepared = modules[0].preprocess_input(pixels.copy()) if modules else pixels
    options = {"include_top": False, "pooling": "avg", "weights": None}
    model = getattr(keras.applications, name)(input_shape=pixels.shape[1:], **options)
    model.set_weights(random_weights(model.weights))
    settle(model, prepared)
    path = str(folder / "settled.weights.h5")
    model.save_weights(path)
    return path, model.predict(prepared[:2], verbose=0)


def forget_models(keras):
    """Frees the memory of models that nothing uses, whose layers refer to each other."""
    keras.utils.clear_session()
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
def test_every_network_has_the_size_that_keras_gives_it(name, keras):
    """MobileNetV3, which takes any, has the size that its weights were trained with."""
    side = STOCK[name][0]
    default = getattr(keras.applications, name)(weights=None).input_shape[1:3]
    forget_models(keras)
    assert default == ((None, None) if "MobileNetV3" in name else (side, side))
