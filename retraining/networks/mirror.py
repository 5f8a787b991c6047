"""Mirror averaging: a network whose vector is the mean of a photo's and of its mirror image's.

The surgery is on the frozen graph, so that training, labelling and others' programs all use it
without a word.
"""

from dataclasses import replace

import numpy as np

from retraining.graphs.nodes import add_constant, add_node, node_name
from retraining.graphs.surgery import keep_ancestors, widen_batch

MIRROR = "retraining/mirror"  # where the nodes behind the input are
AVERAGE = "retraining/mirror_average"  # the new bottleneck
WIDTH_AXIS = 2  # of [n, height, width, 3]


def mirror_average(network):
    """The graph.BaseNetwork that averages the vectors of a batch and of its mirror images.

    The same input, and a bottleneck of the same width under another name, so that its stored
    vectors are not taken for the network's own. Each batch goes through the network once, twice
    as long: its images first, then all of them mirrored.
    """
    plain = keep_ancestors(network.graph_def, network.bottleneck)
    widen_batch(plain)  # even one image is two now
    mirrored = type(plain)(versions=plain.versions)
    for node in plain.node:
        mirrored.node.append(node)
        if node.name == network.input:
            _add_mirror_image(mirrored, network.input)
        else:
            _redirect(mirrored.node[-1], network.input, f"{MIRROR}/both")
    _add_average(mirrored, network.bottleneck, network.width)
    return replace(network, graph_def=mirrored, bottleneck=AVERAGE)


def images_per_photo(network):
    """How many images a graph.BaseNetwork computes for each that it is given."""
    return 2 if network.bottleneck == AVERAGE else 1


def _add_mirror_image(graph_def, pixels):
    """Appends float32 [2n, height, width, 3]: a batch, then its mirror images."""
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


def _redirect(node, old, new):
    """Makes a node take `new` where it took the output of `old`."""
    for number, name in enumerate(node.input):
        if node_name(name) == old and not name.startswith("^"):
            node.input[number] = new


def _add_average(graph_def, vectors, width):
    """Appends float32 [n, width]: the means of rows i and n + i of [2n, width]."""
    shape = add_constant(graph_def, f"{AVERAGE}/shape", np.array([2, -1, width], np.int32))
    pairs = add_node(
        graph_def, f"{AVERAGE}/pairs", "Reshape", [vectors, shape], T="float32", Tshape="int32"
    )
    axis = add_constant(graph_def, f"{AVERAGE}/axis", np.array([0], np.int32))
    add_node(graph_def, AVERAGE, "Mean", [pairs, axis], T="float32", Tidx="int32", keep_dims=False)
