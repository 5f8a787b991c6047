"""dinov2.py: the graph gives what NumPy gives, and what PyTorch gives; other files are refused."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from retraining.cli.console import ConsoleObserver
from retraining.graphs.litert import LiteRunner
from retraining.graphs.lowering import lower
from retraining.graphs.nodes import add_constant, add_node, type_of
from retraining.graphs.run import Runner, Running
from retraining.graphs.to_litert import to_litert
from retraining.networks import dinov2, network
from retraining.networks.dinov2 import build_graph, find_sizes, resized_positions
from retraining.networks.network import load_network
from retraining.networks.recipes import Choice, ChoiceError
from retraining.networks.registry import NetworkError, find, obtain
from retraining.system.download import Remote
from tests import needs_bfloat16
from tests.networks.dinov2_weights import TINY, WIDE, random_weights, safetensors_bytes
from tests.system.test_download import Server, broken_off, ranges, whole

SIDE = 42  # three patches
SIZES = pytest.mark.parametrize("sizes", [TINY, WIDE], ids=["plain", "registers"])
REGISTERS = pytest.mark.parametrize("registers", [0, 4], ids=["plain", "registers"])


def images(count=3):
    return np.random.default_rng(1).normal(size=(count, SIDE, SIDE, 3)).astype(np.float32)


def by_hand(weights, sizes, pixels):
    """The vectors that NumPy computes in float64, step by step as in transformers' Dinov2Model."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    heads, depth = max(1, sizes.width // 64), min(64, sizes.width)

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(name, x):
        parts = (linear(f"{name}.attention.{p}", x) for p in ("query", "key", "value"))
        q, k, v = (p.reshape(*p.shape[:2], heads, depth).transpose(0, 2, 1, 3) for p in parts)
        scores = np.exp(q @ k.transpose(0, 1, 3, 2) / math.sqrt(depth))
        mixed = scores / scores.sum(-1, keepdims=True) @ v
        return linear(f"{name}.output.dense", mixed.transpose(0, 2, 1, 3).reshape(x.shape))

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    n, grid, start = len(pixels), SIDE // sizes.patch, "embeddings."
    squares = pixels.reshape(n, grid, sizes.patch, grid, sizes.patch, 3).astype(np.float64)
    kernel = weights[start + "patch_embeddings.projection.weight"]
    x = np.einsum("nhiwjc,dcij->nhwd", squares, kernel).reshape(n, grid * grid, -1)
    x += weights[start + "patch_embeddings.projection.bias"]
    positions = weights[start + "position_embeddings"][0]
    x += resized_positions(positions[1:], grid, sizes.registers > 0)
    first = weights[start + "cls_token"] + positions[0]
    parts = [first, weights.get(start + "register_tokens", np.zeros((1, 0, sizes.width)))]
    x = np.concatenate([*(np.repeat(part, n, axis=0) for part in parts), x], axis=1)
    for number in range(sizes.blocks):
        name = f"encoder.layer.{number}"
        y = attention(f"{name}.attention", norm(f"{name}.norm1", x))
        x = x + y * weights[f"{name}.layer_scale1.lambda1"]
        y = gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x)))
        x = x + linear(f"{name}.mlp.fc2", y) * weights[f"{name}.layer_scale2.lambda1"]
    x = norm("layernorm", x)
    return np.concatenate([x[:, 0], x[:, 1 + sizes.registers :].mean(1)], axis=1)


@SIZES
@pytest.mark.numbers
def test_the_graph_gives_what_numpy_gives(sizes):
    weights = random_weights(sizes)
    found = Runner(build_graph(weights, SIDE), "input", "bottleneck").run(images())
    expected = by_hand(weights, sizes, images())
    assert found.shape == (3, 2 * sizes.width)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@SIZES
@pytest.mark.numbers
def test_litert_gives_the_same(sizes):
    graph_def = build_graph(random_weights(sizes), SIDE)
    expected = Runner(graph_def, "input", "bottleneck").run(images())
    lite = LiteRunner(to_litert(graph_def, "input", "bottleneck", (SIDE, SIDE)), parallel=1)
    np.testing.assert_allclose(lite.run(images()), expected, atol=1e-5 * np.abs(expected).max())


@needs_bfloat16
@pytest.mark.numbers
def test_bfloat16_keeps_the_direction_of_vectors():
    graph_def = build_graph(random_weights(WIDE), SIDE)
    exact = Runner(graph_def, "input", "bottleneck").run(images())
    found = Runner(graph_def, "input", "bottleneck", Running("bfloat16")).run(images())
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1)
    assert ((found * exact).sum(axis=1) / norms).min() > 0.999


def test_bfloat16_leaves_the_sums_between_blocks_and_the_head_in_float32():
    graph_def = build_graph(random_weights(), SIDE)
    add_constant(graph_def, "head/weights", np.ones((48, 3), np.float32))
    add_node(graph_def, "head", "MatMul", ["bottleneck", "head/weights"], T="float32")
    lower(graph_def)
    types = {node.name: type_of(node, "T") for node in graph_def.node}
    low = ("qkv", "qkv/product", "output", "output/product")
    assert {types[f"block_1/attention/{name}"] for name in low} == {"bfloat16"}
    assert {types[f"block_1/mlp/fc2{end}"] for end in ("", "/product")} == {"bfloat16"}
    kept = ("block_0/attention", "block_0/mlp", "norm/mean", "bottleneck", "head")
    assert {types[name] for name in kept} == {"float32"}


def test_vectors_of_versions_that_lowered_no_products_are_not_taken(tiny, tmp_path, monkeypatch):
    file = write(tmp_path / "dinov2_small" / "model.safetensors", random_weights())
    known = find("dinov2_small")
    base = load_network(obtain(known, file.parent.parent), known)
    now = [base.fingerprint(precision) for precision in ("float32", "bfloat16")]
    monkeypatch.setattr(network, "lowered_products", lambda _: set())
    before = [base.fingerprint(precision) for precision in ("float32", "bfloat16")]
    assert [a == b for a, b in zip(now, before, strict=True)] == [True, False]


def test_positions_of_the_same_grid_stay():
    positions = np.random.default_rng(0).normal(size=(25, 4))
    assert resized_positions(positions, 5, False) is positions


@REGISTERS
def test_positions_are_resized_as_by_torch(registers):
    torch = pytest.importorskip("torch")
    positions = np.random.default_rng(0).normal(size=(37 * 37, 4))
    grid = torch.tensor(positions).reshape(1, 37, 37, 4).permute(0, 3, 1, 2)
    scale = (16 if registers else 16.1) / 37
    resized = torch.nn.functional.interpolate(
        grid, scale_factor=(scale, scale), mode="bicubic", antialias=bool(registers)
    )
    expected = resized.permute(0, 2, 3, 1).reshape(256, 4).numpy()
    found = resized_positions(positions, 16, bool(registers))
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("has_registers", [False, True])
def test_resized_positions_keep_a_level(has_registers):
    level = np.full((37 * 37, 2), 3.0)
    np.testing.assert_allclose(resized_positions(level, 16, has_registers), 3.0, atol=1e-12)


def of_timm(state, registers):
    """{name as in transformers: array} of the weights of timm's network."""
    names = {
        "cls_token": dinov2.CLASS,
        "pos_embed": dinov2.POSITIONS,
        "reg_token": dinov2.REGISTERS,
        "patch_embed.proj": dinov2.PATCHES,
        "norm.": "layernorm.",
        "blocks.": "encoder.layer.",
    }
    inner = {
        ".attn.proj.": ".attention.output.dense.",
        ".ls1.gamma": ".layer_scale1.lambda1",
        ".ls2.gamma": ".layer_scale2.lambda1",
    }
    made = {}
    for name, value in state.items():
        array = value.numpy()
        start = next(start for start in names if name.startswith(start))
        name = names[start] + name.removeprefix(start)
        for old, new in inner.items():
            name = name.replace(old, new)
        if ".attn.qkv." in name:
            for part, rows in zip(dinov2.ATTENTION, np.split(array, 3), strict=True):
                made[name.replace("attn.qkv", part)] = rows
        else:
            made[name] = array
    if registers:  # timm adds the position of the class token to the token itself
        positions = made[dinov2.POSITIONS]
        made[dinov2.POSITIONS] = np.concatenate([np.zeros_like(positions[:, :1]), positions], 1)
    return made


@REGISTERS
@pytest.mark.numbers
def test_timms_network_gives_the_same(registers):
    """Its weights are random, made for 518 x 518 pixels; torch resizes its positions."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    torch.manual_seed(0)
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    state = timm.create_model(name, num_classes=0).state_dict()
    for value in state.values():
        size = 0.2 if value.ndim == 1 else 0.3 if value.ndim == 3 else value[0].numel() ** -0.5
        value.copy_(torch.randn(value.shape) * size + (value.ndim == 1) * 0.7)
    graph_def = build_graph(of_timm(state, registers))
    before = 0 if registers else 1
    grid = state["pos_embed"][:, before:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    scale = (16 if registers else 16.1) / 37
    resized = torch.nn.functional.interpolate(
        grid, scale_factor=(scale, scale), mode="bicubic", antialias=bool(registers)
    )
    resized = resized.permute(0, 2, 3, 1).reshape(1, 256, -1)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :before], resized], 1)
    model = timm.create_model(name, num_classes=0, img_size=224).eval()
    model.load_state_dict(state)
    pixels = torch.randn(2, 224, 224, 3)
    with torch.inference_mode():
        tokens = model.forward_features(pixels.permute(0, 3, 1, 2))
    expected = torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(1)], 1).numpy()
    found = Runner(graph_def, "input", "bottleneck").run(pixels.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-4)


# --- The recipe ----------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """Lets `dinov2_small` be TINY, for images of SIDE pixels."""
    monkeypatch.setattr(dinov2.Dinov2Small, "SIZES", TINY)
    monkeypatch.setattr(dinov2, "build_graph", lambda weights: build_graph(weights, SIDE))


def write(path, weights):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors_bytes(weights))
    return path


def test_it_is_found_built_once_and_read(tiny, tmp_path, monkeypatch):
    write(tmp_path / "dinov2_small" / "model.safetensors", random_weights())
    known = find("dinov2_small")
    path = obtain(known, tmp_path, offline=True)
    assert path.parent == tmp_path / "dinov2_small"
    base = load_network(path, known)
    assert (base.width, base.preprocessing.size) == (48, (SIDE, SIDE))
    assert base.preprocessing.describe()["kernel"] == "antialiased_cubic"
    assert base.preprocessing.mean == (123.675, 116.28, 103.53)
    assert base.preprocessing.std == (58.395, 57.12, 57.375)
    monkeypatch.setattr(dinov2, "build_graph", None)
    assert obtain(known, tmp_path) == path


@pytest.mark.parametrize("prefix", ["", "dinov2.", "dinov2_with_registers."])
def test_a_file_at_hand_is_taken_with_registers_or_a_classifier(tiny, tmp_path, prefix):
    sizes = replace(TINY, registers=4)
    weights = {prefix + name: value for name, value in random_weights(sizes).items()}
    weights["classifier.weight"] = np.zeros((3, 48), np.float32)
    file = write(tmp_path / "mine.safetensors", weights)
    known = find("dinov2_small", Choice(model_file=str(file)))
    base = load_network(obtain(known, tmp_path), known)
    expected = by_hand(random_weights(sizes), sizes, images())
    found = Runner(base.graph_def, "input", "bottleneck").run(images())
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_a_missing_file_is_named_with_its_place(tmp_path):
    with pytest.raises(NetworkError) as error:
        obtain(find("dinov2_base"), tmp_path, offline=True)
    assert str(error.value) == (
        f"dinov2_base needs model.safetensors in {tmp_path / 'dinov2_base'}, and "
        "`NetworkSettings.offline` forbids downloading it; put the file of "
        "https://huggingface.co/facebook/dinov2-base/resolve/main/model.safetensors there, or name "
        "it with `NetworkSettings.model_file`"
    )


@pytest.fixture
def hugging_face(monkeypatch):
    """A server of our own in place of Hugging Face."""
    with Server() as server:
        remote = Remote((f"{server.url}/{dinov2.FILE}",))
        monkeypatch.setattr(dinov2.Dinov2Recipe, "remote", remote)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


def test_a_download_is_resumed_shown_and_done_once(tiny, hugging_face, tmp_path, capsys):
    body = safetensors_bytes(random_weights())
    sound = {"body": body, "etag": '"one"'}
    hugging_face.replies = [broken_off(len(body) // 2, body, ETag='"one"'), ranges(**sound)]
    path = obtain(find("dinov2_small"), tmp_path, ConsoleObserver(quiet=False))
    assert hugging_face.asked("Range") == [None, f"bytes={len(body) // 2}-"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("model.safetensors: 0.1 of 0.1 MB")
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, "model.safetensors"]
    assert (path.parent / "model.safetensors").read_bytes() == body
    assert obtain(find("dinov2_small"), tmp_path) == path
    assert len(hugging_face.requests) == 2


def test_a_download_of_another_network_is_refused(tiny, hugging_face, tmp_path):
    other = random_weights(replace(TINY, blocks=1))
    hugging_face.replies = [whole(safetensors_bytes(other))]
    with pytest.raises(NetworkError, match="another network, of 1 x 24"):
        obtain(find("dinov2_small"), tmp_path)


def test_the_weights_come_from_their_authors():
    urls = [find(f"dinov2_{size}").recipe.remote.urls for size in ("small", "base")]
    assert urls == [
        (f"https://huggingface.co/facebook/dinov2-{size}/resolve/main/model.safetensors",)
        for size in ("small", "base")
    ]


def test_a_wrong_download_leaves_nothing_behind(tiny, hugging_face, tmp_path):
    hugging_face.replies = [whole(b"<html>Please log in</html>")]
    with pytest.raises(NetworkError, match=r"cannot be downloaded .*cut short, or not a") as error:
        obtain(find("dinov2_small"), tmp_path)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "dinov2_small").iterdir()) == []


def test_offline_asks_nobody(tiny, hugging_face, tmp_path):
    hugging_face.replies = [whole(safetensors_bytes(random_weights()))]
    with pytest.raises(NetworkError, match=r"`NetworkSettings.offline` forbids"):
        obtain(find("dinov2_small"), tmp_path, offline=True)
    assert hugging_face.requests == []
    assert list(tmp_path.iterdir()) == []


def changed(**values):
    weights = random_weights()
    for name, value in values.items():
        weights[name] = value
    return weights


NORM = "encoder.layer.1.norm2.weight"
WRONG = {
    "none": ({}, "a tensor of its embeddings is missing"),
    "flat": ({dinov2.CLASS: np.zeros(24, np.float32)}, "of its embeddings is missing"),
    "another width": (
        {dinov2.CLASS: np.zeros((1, 1, 25), np.float32)},
        r"has the shape \(1, 26, 24\), not \(1, 26, 25\)",
    ),
    "another shape": ({NORM: np.ones(23, np.float32)}, r"norm2.weight has the shape \(23,\)"),
    "not finite": ({NORM: np.full(24, np.nan, np.float32)}, "numbers that are not finite"),
    "empty": ({dinov2.CLASS: np.zeros((1, 1, 0), np.float32)}, "has the shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_refused_in_one_line(tiny, tmp_path, name):
    values, reason = WRONG[name]
    path = write(tmp_path / "x.safetensors", changed(**values) if values else {})
    known = find("dinov2_small", Choice(model_file=str(path)))
    with pytest.raises(NetworkError, match=reason) as error:
        obtain(known, tmp_path)
    assert str(error.value).startswith(f"{path} is not a usable model.safetensors of dinov2_small")
    assert "\n" not in str(error.value)


def test_a_missing_tensor_is_named():
    weights = random_weights()
    del weights[NORM]
    with pytest.raises(ChoiceError, match=f"it lacks the tensor {NORM}"):
        build_graph(weights, SIDE)


def test_a_network_of_another_size_is_named(tiny, tmp_path):
    path = write(tmp_path / "x.safetensors", random_weights(WIDE))
    with pytest.raises(NetworkError, match="it holds another network, of 1 x 128"):
        obtain(find("dinov2_small", Choice(model_file=str(path))), tmp_path)


def test_a_file_with_many_registers_is_refused(tiny, tmp_path):
    weights = random_weights(replace(TINY, registers=17))
    path = write(tmp_path / "x.safetensors", weights)
    with pytest.raises(NetworkError, match="it has 17 registers, more than 16"):
        obtain(find("dinov2_small", Choice(model_file=str(path))), tmp_path)


def test_the_published_sizes():
    small, base = dinov2.Dinov2Small.SIZES, dinov2.Dinov2Base.SIZES
    assert find_sizes(small.shapes()) == small
    # 21 M and 86 M parameters by the README of facebookresearch/dinov2
    counts = [sum(map(math.prod, sizes.shapes().values())) for sizes in (small, base)]
    assert counts == [22_056_192, 86_579_712]
