"""Mirror averaging: averages the vectors of a photo and of its mirror image.

It is built into the frozen graph, so that training, labelling and other programs all use it
automatically.
"""

from dataclasses import replace

import numpy as np

from retraining.graphs.messages import GraphDef, NodeDef
from retraining.graphs.nodes import add_constant, add_node, node_name
from retraining.graphs.surgery import keep_ancestors, widen_batch
from retraining.networks.network import BaseNetwork

MIRROR = "retraining/mirror"  # prefix of the nodes after the input
AVERAGE = "retraining/mirror_average"  # the new bottleneck
WIDTH_AXIS = 2  # of [n, height, width, 3]


def mirror_average(network: BaseNetwork) -> BaseNetwork:
    """Returns a BaseNetwork that averages the vectors of images and of their mirror images.

    It has the same input, and a bottleneck of the same width. The bottleneck's new name keeps its
    stored vectors apart from those of the original network. A batch of twice the length passes
    through the network once: first the images, then their mirror images.
    """
    plain = keep_ancestors(network.graph_def, network.bottleneck)
    widen_batch(plain)  # even one image becomes two
    mirrored = type(plain)(versions=plain.versions)
    for node in plain.node:
        mirrored.node.append(node)
        if node.name == network.input:
            _add_mirror_image(mirrored, network.input)
        else:
            _redirect(mirrored.node[-1], network.input, f"{MIRROR}/both")
    _add_average(mirrored, network.bottleneck, network.width)
    return replace(network, graph_def=mirrored, bottleneck=AVERAGE)


def images_per_photo(network: BaseNetwork) -> int:
    """Returns how many images a BaseNetwork computes for each image that it is fed."""
    return 2 if network.bottleneck == AVERAGE else 1


def _add_mirror_image(graph_def: GraphDef, pixels: str) -> None:
    """Appends nodes for float32 [2n, height, width, 3]: a batch, then its mirror images."""
    axis = add_constant(graph_def, f"{MIRROR}/axis", np.array([WIDTH_AXIS], np.int32))
    image = add_node(
        graph_def, f"{MIRROR}/image", "ReverseV2", [pixels, axis], T="float32", Tidx="int32"
    )
    first = add_constant(graph_def, f"{MIRROR}/both/axis", np.int32(0))
    add_node(
        graph_def,
        f"{MIRROR}/both",
        "ConcatV2",
        [pixels, image, first],
        T="float32",
        Tidx="int32",
        N=2,
    )


def _redirect(node: NodeDef, old: str, new: str) -> None:
    """Replaces the inputs of a node that come from `old` with `new`."""
    for number, name in enumerate(node.input):
        if node_name(name) == old and not name.startswith("^"):
            node.input[number] = new


def _add_average(graph_def: GraphDef, vectors: str, width: int) -> None:
    """Appends nodes for float32 [n, width]: the means of rows i and n + i of [2n, width]."""
    shape = add_constant(graph_def, f"{AVERAGE}/shape", np.array([2, -1, width], np.int32))
    pairs = add_node(
        graph_def, f"{AVERAGE}/pairs", "Reshape", [vectors, shape], T="float32", Tshape="int32"
    )
    axis = add_constant(graph_def, f"{AVERAGE}/axis", np.array([0], np.int32))
    add_node(graph_def, AVERAGE, "Mean", [pairs, axis], T="float32", Tidx="int32", keep_dims=False)
