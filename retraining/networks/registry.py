"""What is known of each base network: its files, tensor names, input size. No TensorFlow."""

import difflib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from retraining.errors import RetrainingError
from retraining.graphs.nodes import IMAGE_BYTES, nodes_by_name
from retraining.graphs.precision import native_precision
from retraining.networks import efficientnet_lite
from retraining.networks.keras import BOTTLENECK, PREFIX, STOCK, KerasRecipe
from retraining.networks.recipes import Choice, ChoiceError, Place
from retraining.networks.saved_models import SavedModelRecipe
from retraining.networks.vgg16 import Vgg16Recipe
from retraining.system.archives import unpack
from retraining.system.download import DownloadError, Remote, UnreachableError, fetch


class NetworkError(RetrainingError):
    """A network's file is missing, cannot be fetched or is not that network."""


@dataclass(frozen=True)
class Source:
    """One public archive and the frozen graph in it."""

    remote: Remote
    file_name: str


@dataclass(frozen=True)
class Network:
    """A base network: where its file comes from and how it is fed and read.

    One without sources is built from the weights in a Python package (see efficientnet_lite).

    Names are node names; output 0 of each is meant. Pixels 0..255 are fed as
    `(pixel - mean) / std`, float32 [n, size, size, 3]. Where the graph's own nodes say
    otherwise (size, mean, std, width of the bottleneck), the graph is believed.
    """

    name: str
    folder: str  # below model_dir, where the file is put when fetched
    sources: tuple[Source, ...]
    input: str
    bottleneck: str
    size: int
    mean: float
    std: float
    first_weights: tuple[str, tuple[int, ...]] | None = None  # tells networks of one family apart
    # Whether its vectors keep a cosine of 0.999 or more in bfloat16, for every photo measured.
    bfloat16: bool = False
    recipe: object = None  # makes its file, see recipes.py

    @property
    def file_names(self):
        """What its file may be called."""
        return [source.file_name for source in self.sources] or [f"{self.name}.pb"]

    @property
    def required_nodes(self):
        """Names without which a graph is not this network."""
        own = {IMAGE_BYTES} if self.input == "Mul" else set()
        return own | {self.input, self.bottleneck}


def _inception_v3():
    storage = "https://storage.googleapis.com/download.tensorflow.org/models/inception_dec_2015.zip"
    tgz = "http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz"
    return Network(
        name="inception_v3",
        folder="inception_dec_2015",
        sources=(
            Source(Remote((storage,)), "tensorflow_inception_graph.pb"),
            Source(Remote((tgz,), size=88_931_400), "classify_image_graph_def.pb"),
        ),
        input="Mul",
        bottleneck="pool_3/_reshape",
        size=299,
        mean=128.0,
        std=128.0,
        bfloat16=True,
    )


def _mobilenet_v1(alpha, size):
    folder = f"mobilenet_v1_{alpha}_{size}"
    url = f"http://download.tensorflow.org/models/{folder}_frozen.tgz"
    return Network(
        name=f"mobilenet_{alpha}_{size}",
        folder=folder,
        sources=(Source(Remote((url,)), "frozen_graph.pb"),),
        input="input",
        bottleneck="MobilenetV1/Predictions/Reshape",
        size=size,
        mean=127.5,
        std=127.5,
        first_weights=("MobilenetV1/Conv2d_0/weights", (3, 3, 3, round(32 * float(alpha)))),
    )


def _efficientnet_lite(name):
    return Network(
        name=name,
        folder=name,
        sources=(),
        input="Mul",
        bottleneck="pool/vector",
        size=efficientnet_lite.ARCHITECTURES[name].side,
        mean=efficientnet_lite.INPUT_MEAN,
        std=efficientnet_lite.INPUT_STD,
    )


def _registry():
    mobilenets = [
        _mobilenet_v1(alpha, size)
        for alpha in ("1.0", "0.75", "0.50", "0.25")
        for size in (224, 192, 160, 128)
    ]
    lites = map(_efficientnet_lite, efficientnet_lite.ARCHITECTURES)
    return {network.name: network for network in (_inception_v3(), *lites, *mobilenets)}


NETWORKS = _registry()
DEFAULT = "inception_v3"
EMBEDDED = "efficientnet_lite0"  # used where the default is not to be had


SAVED_MODEL = "saved_model"
RECIPES = {"vgg16": Vgg16Recipe, SAVED_MODEL: SavedModelRecipe}


def find(name, choice=None):
    """The Network of that name, as a recipes.Choice wants it where that is possible.

    Raises:
        NetworkError: there is none, or it leaves no such choice.
    """
    choice = choice or Choice()
    try:
        if name.lower().startswith(PREFIX):
            return made_by(KerasRecipe.named(name[len(PREFIX) :], choice))
        if name in RECIPES:
            return made_by(RECIPES[name](choice))
        if name in NETWORKS:
            choice.refuse(name, "weights", "layer", "height", "width", "mean", "std")
            return NETWORKS[name]
    except ChoiceError as error:
        raise NetworkError(str(error)) from error
    known = [*NETWORKS, *RECIPES, *(PREFIX + stock for stock in STOCK)]
    close = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise NetworkError(f"{name!r} is no network known here{meant}")


def made_by(recipe):
    """The Network whose file a recipe makes; its size is in that file."""
    return Network(
        name=recipe.name,
        folder=recipe.folder,
        sources=(),
        input="input",
        bottleneck=BOTTLENECK,
        size=max(recipe.size),
        mean=recipe.mean,
        std=recipe.std,
        recipe=recipe,
    )


def locate(network, model_dir):
    """The network's file in `model_dir` or one folder down, or None.

    `frozen_graph.pb` is the name of every MobileNet's file, so one folder down only a folder
    named after the network counts for it.
    """
    model_dir = Path(model_dir)
    own = [model_dir / network.folder, model_dir]
    places = [folder / name for folder in own for name in network.file_names]
    unmistakable = [name for name in network.file_names if name != "frozen_graph.pb"]
    places += [folder / name for folder in _subfolders(model_dir) for name in unmistakable]
    return next((path for path in places if path.is_file()), None)


def _subfolders(folder):
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def obtain(network, model_dir, quiet=False, offline=False, by_file=True):
    """The network's file: found in `model_dir`, or built or fetched into it (unless `offline`).

    `by_file` tells whether --model_file could name it instead, which an error then says.

    Raises:
        NetworkError: it is neither there nor to be had; says which file to put where.
        WeightsError: the Python package with its weights is missing.
    """
    model_dir = Path(model_dir)
    if network.recipe:
        return _freeze_once(network, Place(model_dir, offline, quiet))
    found = locate(network, model_dir)
    if found:
        return found
    if not network.sources:
        return _build(network, model_dir)
    reason = "--offline forbids fetching it" if offline else _fetch_any(network, model_dir, quiet)
    found = locate(network, model_dir)
    if found:
        return found
    wanted = network.sources[0]
    raise NetworkError(
        f"{network.name} is not in {model_dir} and {reason}; to get it, put {wanted.file_name} "
        f"(in {wanted.remote.urls[0]}) into {model_dir / network.folder}"
        + (", or name it with --model_file" if by_file else "")
    )


def _fetch_any(network, model_dir, quiet):
    """Fetches the first archive that is to be had; returns the reasons why others were not."""
    errors = []
    for source in network.sources:
        try:
            _fetch(network, source, model_dir, quiet)
            break
        except (DownloadError, NetworkError, OSError) as error:
            errors.append(error)
    if all(isinstance(error, UnreachableError) for error in errors):
        return "cannot be fetched without a network"
    return f"cannot be fetched ({'; '.join(map(str, errors))})"


def _freeze_once(network, place):
    """The file that the network's recipe makes, made now if it is not there."""
    try:
        path = place.model_dir / network.folder / network.recipe.file_name_in(place)
        if path.is_file():
            return path
        graph_def = network.recipe.build(place)
    except ChoiceError as error:
        raise NetworkError(str(error)) from error
    except RetrainingError as error:  # of freezing: it does not know what it froze
        named = network.recipe.choice.model_file or network.name
        raise NetworkError(f"{named} cannot be made a base network: {error}") from error
    return _write(graph_def, path)


def _build(network, model_dir):
    """Writes the frozen graph of an EfficientNet-Lite, from the weights in its Python package."""
    weights = efficientnet_lite.read_torch_file(efficientnet_lite.weights_file(network.name))
    graph_def = efficientnet_lite.build_graph(network.name, weights)
    return _write(graph_def, model_dir / network.folder / network.file_names[0])


def _write(graph_def, path):
    """Puts a GraphDef at `path` once it is whole; returns the path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=path.parent) as aside:
            new = Path(aside) / path.name
            new.write_bytes(graph_def.SerializeToString(deterministic=True))
            os.replace(new, path)
    except OSError as error:
        raise NetworkError(f"cannot write {path}: {error.strerror}; see --model_dir") from error
    return path


def _fetch(network, source, model_dir, quiet):
    """Fetches the archive, unpacks it aside, checks the graph and only then puts it in place."""
    model_dir.mkdir(parents=True, exist_ok=True)
    archive = model_dir / source.remote.urls[0].rsplit("/", 1)[1]
    fetch(source.remote, archive, quiet)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=model_dir) as aside:
        unpacked = unpack(archive, Path(aside))
        graph = next((path for path in unpacked if path.name == source.file_name), None)
        if graph is None:
            raise NetworkError(f"the archive holds no {source.file_name}; delete {archive}")
        check_node_names(graph, network)
        (model_dir / network.folder).mkdir(exist_ok=True)
        for path in unpacked:
            os.replace(path, model_dir / network.folder / path.name)
    archive.unlink()


def check_node_names(path, network):
    """Looks for the network's node names in the file without TensorFlow.

    A serialized GraphDef holds each node's name as plain bytes, so a file without them is
    certainly another one (the full check is made when TensorFlow reads it).

    Raises:
        NetworkError: one of the names is not in the file.
    """
    content = Path(path).read_bytes()
    missing = sorted(n for n in network.required_nodes if n.encode() not in content)
    if missing:
        raise NetworkError(f"{path} is not {network.name}: it has no node {', '.join(missing)}")


def resolve_precision(precision, graph_def, prefix=""):
    """`auto` made `float32` or `bfloat16`; the others as they are.

    `auto` is bfloat16 where the processor has it and the graph is made of a network that bears it.
    `prefix` is before the names of that network's nodes, if it is the second of a graph.
    """
    if precision != "auto":
        return precision
    nodes = nodes_by_name(graph_def)
    bears_it = any(
        known.bfloat16 and prefix + known.bottleneck in nodes for known in NETWORKS.values()
    )
    return native_precision() if bears_it else "float32"
