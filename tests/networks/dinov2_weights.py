"""Makes small DINOv2s with random weights, and files of them."""

import json

import numpy as np

from retraining.networks.dinov2 import Sizes

TINY = Sizes(width=24, blocks=2, grid=5, patch=14)
WIDE = Sizes(width=128, blocks=1, grid=5, patch=14, registers=4)  # two heads


def random_weights(sizes=TINY, seed=0):
    """Weights with which each part of the network changes the vector: {name: float32}."""
    rng, made = np.random.default_rng(seed), {}
    for name, shape in sizes.shapes().items():
        scale = 0.3 if len(shape) < 4 and "embeddings" in name else np.prod(shape[1:]) ** -0.5
        near = 1.0 if ("norm" in name and name.endswith("weight")) or "lambda" in name else 0.0
        scale = 0.2 if len(shape) == 1 else scale
        made[name] = (near + scale * rng.standard_normal(shape)).astype(np.float32)
    return made


def safetensors_bytes(tensors, metadata=None):
    """The bytes of a safetensors file of {name: float32 array}, by the format's description."""
    header, end = ({"__metadata__": metadata} if metadata else {}), 0
    for name, value in tensors.items():
        start, end = end, end + value.nbytes
        header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [start, end]}
    return with_header(header, b"".join(value.tobytes() for value in tensors.values()))


def with_header(header, content=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content
