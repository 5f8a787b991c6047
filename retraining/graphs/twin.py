"""Keeps a LiteRT model beside each network: its twin, which gives the same vectors faster.

The frozen graph is the truth. A twin is found by a digest of the nodes and weights of the graph in
use, never by what the graph says of itself, so that no changed graph is answered by the twin of
another. A twin gets its name only after its vectors have been compared with those of TensorFlow
and the unchanged graph. It can be deleted at any time.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from retraining.errors import RetrainingError
from retraining.graphs.litert import ConversionError, LiteRunner
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import GraphError, node_name, nodes_by_name
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.run import BytesRunner
from retraining.graphs.surgery import in_order, is_weights, outline, widen_batch
from retraining.system.atomic import WriteError, write_files

CONVERSION = 1  # version of what to_litert writes
CHECKED_IMAGES = 4
MOST_APART = 1e-5  # of the largest number of a vector, or of 1
MOST_KEPT = 2 << 30  # bytes of twins in the user's cache; beyond, the oldest are removed


class TwinError(RetrainingError):
    """A twin gives other vectors than its graph."""


@dataclass(frozen=True)
class VectorPart:
    """The part of a graph that computes vectors, from scaled pixels to the bottleneck."""

    graph_def: GraphDef
    input: str
    bottleneck: str
    preprocessing: Preprocessing

    def digest(self) -> str:
        """Returns a hex SHA-256 of all that the vectors depend on besides the pixels.

        The digest of a node is that of its op, its attributes with the weights, and the digests of
        its inputs. Names do not count, so the second of two networks in a graph has the twin that
        it has on its own. Nor does the size of the batch, which an exported graph leaves open.

        Raises:
            GraphError: the bottleneck does not depend on the input, or a node is missing.
        """
        widened = outline(self.graph_def, self.bottleneck)
        widen_batch(widened)
        nodes = nodes_by_name(widened)
        weights = {node.name: node for node in self.graph_def.node if is_weights(node)}
        digests: dict[str, bytes] = {}
        for node in in_order(nodes, self.bottleneck, stop=self.input):
            text = hashlib.sha256()
            node = weights.get(node.name, node)
            if node.name == self.input:
                text.update(repr((CONVERSION, "input", self.preprocessing.size)).encode())
            else:
                text.update(repr(node.op).encode())
                for reference in node.input:
                    output = reference.replace(node_name(reference), "", 1).replace(":0", "")
                    text.update(repr(output).encode() + digests[node_name(reference)])
                for key in sorted(node.attr):
                    value = node.attr[key].SerializeToString(deterministic=True)
                    text.update(repr((key, len(value))).encode())
                    text.update(value)
            digests[node.name] = text.digest()
        if self.input not in digests:
            raise GraphError(f"{self.bottleneck!r} does not depend on {self.input!r}")
        return digests[self.bottleneck].hex()


def cache_folder() -> Path:
    """Returns the folder of twins in the user's cache directory."""
    return user_cache_path("image-retraining") / "litert"


def find_twin(digest: str, folders: Iterable[Path]) -> Path | None:
    """Returns the file of a network's twin in one of the folders; None if there is no whole one."""
    return next((path for folder in folders for path in _whole(digest, folder)), None)


def _whole(digest: str, folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):  # no such folder
        for path in sorted(folder.glob(f"{digest[:32]}-*.tflite")):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256")
            if path.name == _file_name(digest, content.hexdigest()):
                yield path


def _file_name(digest: str, content: str) -> str:
    """Returns a twin's file name, of the digests of its network and of its own bytes."""
    return f"{digest[:32]}-{content[:16]}.tflite"


def is_twin(name: str) -> bool:
    """Returns whether a file is named as twins are, or the choices of a runtime beside them."""
    return re.fullmatch(r"[0-9a-f]{32}-[0-9a-f]{16}\.(tflite|json)", name) is not None


def make_twin(part: VectorPart, folders: Iterable[Path]) -> Path:
    """Converts a network and checks the result; returns the file, in the first writable folder.

    Raises:
        ConversionError: LiteRT has no operator for a node, or no folder can be written.
        TwinError: the vectors differ from those of the unchanged graph.
        GraphError: a runtime cannot run the network.
        ModuleNotFoundError: the package `ai-edge-litert` is not installed.
    """
    from retraining.graphs.to_litert import to_litert  # which few processes need

    model = to_litert(part.graph_def, part.input, part.bottleneck, part.preprocessing.size)
    _check(part, model)
    name = _file_name(part.digest(), hashlib.sha256(model).hexdigest())
    for folder in folders:
        with contextlib.suppress(OSError, WriteError):
            folder.mkdir(parents=True, exist_ok=True)
            write_files({folder / name: model})
            _remove_oldest(folder, keep=name)
            return folder / name
    raise ConversionError("no folder for LiteRT's model can be written")


def _check(part: VectorPart, model: bytes) -> None:
    """Compares a twin's vectors with TensorFlow's.

    Raises:
        TwinError: they differ.
    """
    images = check_images(part.preprocessing)
    vectors = LiteRunner(model, parallel=1).run(images)
    graph = BytesRunner(part.graph_def, part.bottleneck, part.input)
    expected = np.concatenate(
        [graph.run_pixels({part.input: image[None]}).reshape(1, -1) for image in images]
    )
    apart = np.abs(vectors - expected).max() if vectors.shape == expected.shape else np.inf
    if not apart <= MOST_APART * max(1.0, float(np.abs(expected).max())):
        raise TwinError(f"LiteRT's vectors differ from TensorFlow's by {apart:g}")


def check_images(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Returns float32 [n, *size, 3]: scaled pixels of coloured areas with noise, the same ones."""
    rng = np.random.default_rng(0)
    height, width = preprocessing.size
    shape = (CHECKED_IMAGES, -(-height // 8), -(-width // 8), 3)
    areas = rng.integers(0, 256, shape).repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    pixels = np.clip(areas + rng.normal(0, 16, areas.shape), 0, 255).astype(np.float32)
    return (pixels - preprocessing.offset) * preprocessing.factor


def _remove_oldest(folder: Path, keep: str) -> None:
    """Removes the twins that were not used for longest, beyond MOST_KEPT bytes."""
    files = [(path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*.tflite")]
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > MOST_KEPT and path.name != keep:
            path.unlink(missing_ok=True)


def touch(path: Path) -> None:
    """Notes that a twin is in use; only the oldest are removed."""
    with contextlib.suppress(OSError):
        os.utime(path)
