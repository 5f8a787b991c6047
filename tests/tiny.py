"""Tiny frozen graphs with the real networks' node names and ops, and generated photos."""

import os

import numpy as np
import tensorflow as tf
from PIL import Image

from retraining.graphs.messages import GraphDef
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS

SIZE = 32  # of the tiny Inception's input
WIDTH = 24  # of its bottleneck vector

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 60, 210),
    "grey": (128, 128, 128),
}


class GraphBuilder:
    """Writes a GraphDef node by node, so that old ops and odd names are possible."""

    def __init__(self, producer):
        self.tf = tf
        self.graph_def = GraphDef()
        self.graph_def.versions.producer = producer

    def add(self, name, op, *inputs, **attributes):
        node = self.graph_def.node.add(name=name, op=op, input=inputs)
        for key, value in attributes.items():
            self._set(node.attr[key], value)
        return name

    def _set(self, attr, value):
        if isinstance(value, self.tf.DType):
            attr.type = value.as_datatype_enum
        elif isinstance(value, bool):
            attr.b = value
        elif isinstance(value, int):
            attr.i = value
        elif isinstance(value, float):
            attr.f = value
        elif isinstance(value, str):
            attr.s = value.encode()
        elif isinstance(value, list):
            attr.list.i.extend(value)
        elif isinstance(value, tuple):
            for size in value:
                attr.shape.dim.add(size=size)

    def const(self, name, value):
        node = self.graph_def.node.add(name=name, op="Const")
        tensor = self.tf.make_tensor_proto(value)
        node.attr["dtype"].type = tensor.dtype
        node.attr["value"].tensor.MergeFromString(tensor.SerializeToString())
        return name

    def float_op(self, name, op, *inputs, **attributes):
        return self.add(name, op, *inputs, T=self.tf.float32, **attributes)

    def conv(self, name, source, weights, rng, scale_after=True):
        """Convolution, old batch norm, CheckNumerics and ReLU as the 2015 graph has them."""
        count = weights.shape[3]
        self.const(f"{name}/conv2d_params", weights.astype("f4"))
        conv = self.float_op(
            f"{name}/Conv2D",
            "Conv2D",
            source,
            f"{name}/conv2d_params",
            strides=[1, 2, 2, 1],
            padding="SAME",
        )
        statistics = {
            "moving_mean": rng.normal(size=count) * 0.1,
            "moving_variance": rng.uniform(0.5, 2, count),
            "beta": rng.normal(size=count) * 0.3,
            "gamma": rng.uniform(0.5, 1.5, count),
        }
        for key, value in statistics.items():
            self.const(f"{name}/batchnorm/{key}", value.astype("f4"))
        norm = self.float_op(
            f"{name}/batchnorm",
            "BatchNormWithGlobalNormalization",
            conv,
            *(f"{name}/batchnorm/{key}" for key in statistics),
            variance_epsilon=0.001,
            scale_after_normalization=scale_after,
        )
        check = self.float_op(f"{name}/CheckNumerics", "CheckNumerics", norm, message="")
        ordered = self.float_op(f"{name}/control_dependency", "Identity", norm, f"^{check}")
        return self.float_op(name, "Relu", ordered)

    def eightbit_conv(self, name, source, weights):
        """The nodes of the classic's `quantize_graph --mode=eightbit` for a convolution.

        The steps of its input and of its output depend on the range over the whole batch.
        """
        quint8, qint32 = self.tf.quint8, self.tf.qint32
        low, high = weights.min(), weights.max()
        steps = np.rint((weights - low) / (high - low) * 255).astype(np.uint8)
        self.const(f"{name}/weights", steps)
        self.graph_def.node[-1].attr["dtype"].type = quint8.as_datatype_enum
        self.graph_def.node[-1].attr["value"].tensor.dtype = quint8.as_datatype_enum
        self.const(f"{name}/low", np.float32(low))
        self.const(f"{name}/high", np.float32(high))
        self.const(f"{name}/all", np.arange(4, dtype=np.int32))
        ends = [self.float_op(f"{name}/{op}", op, source, f"{name}/all") for op in ("Min", "Max")]
        pixels = self.add(f"{name}/in", "QuantizeV2", source, *ends, T=quint8, mode="MIN_FIRST")
        inputs = (pixels, f"{name}/weights", f"{pixels}:1", f"{pixels}:2")
        sums = self.add(
            f"{name}/sums",
            "QuantizedConv2D",
            *(*inputs, f"{name}/low", f"{name}/high"),
            **{"Tinput": quint8, "Tfilter": quint8, "out_type": qint32},
            strides=[1, 2, 2, 1],
            padding="SAME",
        )
        of_sums = [sums, f"{sums}:1", f"{sums}:2"]
        self.add(f"{name}/range", "RequantizationRange", *of_sums, Tinput=qint32)
        ends = [f"{name}/range", f"{name}/range:1"]
        out = self.add(f"{name}/out", "Requantize", *of_sums, *ends, Tinput=qint32, out_type=quint8)
        return self.add(name, "Dequantize", out, f"{out}:1", f"{out}:2", T=quint8, mode="MIN_FIRST")


def tiny_inception(seed=0):
    """A GraphDef like that of December 2015: producer 8, bytes in, `pool_3/_reshape` [1, 24]."""
    b, rng = GraphBuilder(producer=8), np.random.default_rng(seed)
    tf = b.tf
    b.const("DecodeJpeg/contents", b"")
    b.add("DecodeJpeg", "DecodeJpeg", "DecodeJpeg/contents", channels=3)
    b.add("Cast", "Cast", "DecodeJpeg", SrcT=tf.uint8, DstT=tf.float32)
    b.const("ExpandDims/dim", np.int32(0))
    b.float_op("ExpandDims", "ExpandDims", "Cast", "ExpandDims/dim")
    b.const("ResizeBilinear/size", np.array([SIZE, SIZE], np.int32))
    b.float_op("ResizeBilinear", "ResizeBilinear", "ExpandDims", "ResizeBilinear/size")
    b.const("Sub/y", np.float32(128))
    b.float_op("Sub", "Sub", "ResizeBilinear", "Sub/y")
    b.const("Mul/y", np.float32(1 / 128))
    b.float_op("Mul", "Mul", "Sub", "Mul/y")
    stem = b.conv("conv", "Mul", rng.normal(size=(3, 3, 3, 8)) * 0.3, rng)
    left = b.conv("mixed/conv", stem, rng.normal(size=(1, 1, 8, 12)) * 0.4, rng)
    right = b.conv("mixed/tower", stem, rng.normal(size=(3, 3, 8, 12)) * 0.2, rng, False)
    b.const("mixed/join/concat_dim", np.int32(3))
    b.float_op("mixed/join", "Concat", "mixed/join/concat_dim", left, right, N=2)
    pool = b.float_op(
        "pool_3",
        "AvgPool",
        "mixed/join",
        ksize=[1, SIZE // 4, SIZE // 4, 1],
        strides=[1, 1, 1, 1],
        padding="VALID",
    )
    b.const("pool_3/_reshape/shape", np.array([1, WIDTH], np.int32))
    b.float_op("pool_3/_reshape", "Reshape", pool, "pool_3/_reshape/shape")
    b.const("softmax/weights", rng.normal(size=(WIDTH, 10)).astype("f4"))
    b.const("softmax/biases", rng.normal(size=10).astype("f4"))
    b.float_op("softmax/logits/MatMul", "MatMul", "pool_3/_reshape", "softmax/weights")
    b.float_op("softmax/logits", "BiasAdd", "softmax/logits/MatMul", "softmax/biases")
    b.float_op("softmax", "Softmax", "softmax/logits")
    return b.graph_def


def tiny_mobilenet(size=128, channels=8, seed=0, eightbit=False):
    """A GraphDef with MobileNet v1's ends: `input` [1, size, size, 3] -> Predictions/Reshape."""
    b, rng = GraphBuilder(producer=0), np.random.default_rng(seed)
    b.add("input", "Placeholder", dtype=b.tf.float32, shape=(1, size, size, 3))
    kernel = rng.normal(size=(3, 3, 3, channels)).astype("f4") * 0.3
    weights = b.const("MobilenetV1/Conv2d_0/weights", kernel)
    if eightbit:
        conv = b.eightbit_conv("MobilenetV1/conv", "input", kernel)
    else:
        conv = b.float_op(
            "MobilenetV1/conv", "Conv2D", "input", weights, strides=[1, 2, 2, 1], padding="SAME"
        )
    relu = b.float_op("MobilenetV1/relu", "Relu6", conv)
    side = (size + 1) // 2
    pool = b.float_op(
        "MobilenetV1/pool",
        "AvgPool",
        relu,
        ksize=[1, side, side, 1],
        strides=[1, 1, 1, 1],
        padding="VALID",
    )
    b.const("MobilenetV1/Predictions/Reshape/shape", np.array([1, channels], np.int32))
    b.float_op(
        "MobilenetV1/Predictions/Reshape", "Reshape", pool, "MobilenetV1/Predictions/Reshape/shape"
    )
    b.float_op("MobilenetV1/Predictions/Softmax", "Softmax", "MobilenetV1/Predictions/Reshape")
    return b.graph_def


def base_networks(inception_file, folder):
    """(the tiny Inception of a file, a tiny MobileNet in a new file) as network.BaseNetworks."""
    mobilenet = write_graph(str(folder / "frozen_graph.pb"), tiny_mobilenet())
    return (
        load_network(inception_file, NETWORKS["inception_v3"]),
        load_network(mobilenet, NETWORKS["mobilenet_0.25_128"]),
    )


def write_graph(path, graph_def):
    """Writes a GraphDef plainly."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(graph_def.SerializeToString())
    return path


def photo(colour, rng, size=(60, 44)):
    """A noisy picture of about one colour."""
    noise = rng.normal(0, 25, (size[1], size[0], 3))
    pixels = np.clip(np.array(colour) + rng.normal(0, 15, 3) + noise, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def write_photos(folder, counts, seed=0, suffix=".jpg"):
    """`counts` = {label: n}; writes folder/label/photo_00.jpg ...; returns the folder as str."""
    rng = np.random.default_rng(seed)
    for label, count in counts.items():
        os.makedirs(os.path.join(folder, label), exist_ok=True)
        for number in range(count):
            path = os.path.join(folder, label, f"photo_{number:02d}{suffix}")
            photo(COLOURS[label], rng).save(path)
    return str(folder)
