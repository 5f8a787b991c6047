"""Lists the base networks: their files, tensor names and input sizes.

Importing it needs no TensorFlow.
"""

import difflib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from retraining.errors import RetrainingError
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import IMAGE_BYTES
from retraining.graphs.preprocessing import LEGACY_BILINEAR, PerChannel
from retraining.networks import efficientnet_lite
from retraining.networks.dinov2 import Dinov2Base, Dinov2Small
from retraining.networks.keras import BOTTLENECK, KERAS_PREFIX, STOCK, KerasRecipe
from retraining.networks.recipes import Choice, ChoiceError, ModelFiles, Recipe, RecipeType
from retraining.networks.saved_models import SavedModelRecipe
from retraining.networks.vgg16 import Vgg16Recipe
from retraining.system.archives import unpack
from retraining.system.atomic import WriteError, write_files
from retraining.system.download import DownloadError, Remote, UnreachableError, fetch
from retraining.system.observer import Observer, Silent
from retraining.system.scratch import scratch_folder


class NetworkError(RetrainingError):
    """A network's file is missing, cannot be downloaded, or holds another network."""


@dataclass(frozen=True)
class Source:
    """One public archive and the frozen graph in it."""

    remote: Remote
    file_name: str


@dataclass(frozen=True)
class Network:
    """A base network: where its file comes from, how to feed it, and where its vectors are.

    A network without sources or recipe is built from weights in a Python package (see
    efficientnet_lite).

    `input` and `bottleneck` are names of nodes, of which output 0 is meant. Pixels 0..255 are fed
    as `(pixel - mean) / std`, float32 [n, size, size, 3]. If the graph's own nodes give another
    size, mean, std or width of the bottleneck, the graph wins.
    """

    name: str
    folder: str  # in model_dir, where the downloaded file goes
    sources: tuple[Source, ...]
    input: str
    bottleneck: str
    size: int
    mean: PerChannel
    std: PerChannel
    first_weights: tuple[str, tuple[int, ...]] | None = None  # to tell apart networks of one family
    recipe: Recipe | None = None  # makes its file
    kernel: str = LEGACY_BILINEAR  # resizes images; see Preprocessing

    @property
    def file_names(self) -> list[str]:
        """Returns the possible names of its file."""
        return [source.file_name for source in self.sources] or [f"{self.name}.pb"]

    @property
    def required_nodes(self) -> set[str]:
        """Returns the names of nodes that every graph of this network has."""
        own = {IMAGE_BYTES} if self.input == "Mul" else set()
        return own | {self.input, self.bottleneck}


def _inception_v3() -> Network:
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
    )


def _mobilenet_v1(alpha: str, size: int) -> Network:
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


def _efficientnet_lite(name: str) -> Network:
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


ALPHAS, SIZES = ("1.0", "0.75", "0.50", "0.25"), (224, 192, 160, 128)  # of MobileNets

# {the names, as the help of the command gives them: the Networks of this family}
FAMILIES = {
    "inception_v3": [_inception_v3()],
    efficientnet_lite.HELP: [_efficientnet_lite(n) for n in efficientnet_lite.ARCHITECTURES],
    f"mobilenet_<{'|'.join(ALPHAS)}>_<{'|'.join(map(str, SIZES))}>": [
        _mobilenet_v1(alpha, size) for alpha in ALPHAS for size in SIZES
    ],
}
NETWORKS = {network.name: network for family in FAMILIES.values() for network in family}
DEFAULT = "inception_v3"
EMBEDDED = "efficientnet_lite0"  # used if the default cannot be downloaded
MOST_FILES = 100  # in the archive of a network, which has a handful

SAVED_MODEL = "saved_model"
# Recipes that read the model file that the user names; for others, it is the frozen graph.
READ_MODEL_FILE: dict[str, RecipeType] = {
    "dinov2_small": Dinov2Small,
    "dinov2_base": Dinov2Base,
    SAVED_MODEL: SavedModelRecipe,
}
RECIPES: dict[str, RecipeType] = {"vgg16": Vgg16Recipe, **READ_MODEL_FILE}


def describe_names() -> str:
    """Returns the names of all networks, as the help of the command gives them."""
    *names, last = FAMILIES
    recipes = dict.fromkeys(recipe.HELP for recipe in RECIPES.values())
    return "; ".join([f"{', '.join(names)}, or {last}", KerasRecipe.HELP, *recipes])


def find(name: str, choice: Choice | None = None) -> Network:
    """Returns the Network of that name with the user's choices.

    Raises:
        NetworkError: there is no such network, or it does not offer these choices.
    """
    choice = choice or Choice()
    try:
        if name.lower().startswith(KERAS_PREFIX):
            return made_by(KerasRecipe.named(name[len(KERAS_PREFIX) :], choice))
        if name in RECIPES:
            return made_by(RECIPES[name](choice))
        if name in NETWORKS:
            choice.refuse(name, "weights", "layer", "height", "width", "mean", "std")
            return NETWORKS[name]
    except ChoiceError as error:
        raise NetworkError(str(error)) from error
    known = [*NETWORKS, *RECIPES, *(KERAS_PREFIX + stock for stock in STOCK)]
    close = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise NetworkError(f"{name!r} is not a known network{meant}")


def made_by(recipe: Recipe) -> Network:
    """Returns the Network whose file a recipe makes. The file, not `size`, has its exact size."""
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
        kernel=getattr(recipe, "kernel", LEGACY_BILINEAR),
    )


def locate(network: Network, model_dir: str | Path) -> Path | None:
    """Returns the network's file in `model_dir` or in a folder one level below, or None.

    Every MobileNet's file is called `frozen_graph.pb`. In folders below `model_dir`, such a file
    counts only if the folder is named after the network.
    """
    model_dir = Path(model_dir)
    own = [model_dir / network.folder, model_dir]
    candidates = [folder / name for folder in own for name in network.file_names]
    unmistakable = [name for name in network.file_names if name != "frozen_graph.pb"]
    candidates += [folder / name for folder in _subfolders(model_dir) for name in unmistakable]
    return next((path for path in candidates if path.is_file()), None)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def obtain(
    network: Network,
    model_dir: str | Path,
    observer: Observer | None = None,
    offline: bool = False,
    by_file: bool = True,
) -> Path:
    """Returns the network's file in `model_dir`; builds or downloads it if it is missing.

    Args:
        observer: of downloads.
        offline: forbids them.
        by_file: lets an error suggest to name the file itself.

    Raises:
        NetworkError: the file cannot be obtained. The text says which file to put where.
        WeightsError: the Python package with its weights is missing.
    """
    model_dir = Path(model_dir)
    if network.recipe:
        return _freeze_once(network, network.recipe, ModelFiles(model_dir, offline, observer))
    if path := locate(network, model_dir):
        return path
    if not network.sources:
        return _build(network, model_dir)
    reason = "`NetworkSettings.offline` forbids downloading it"
    if not offline:
        reason = _fetch_any(network, model_dir, observer or Silent())
    if path := locate(network, model_dir):
        return path
    source = network.sources[0]
    raise NetworkError(
        f"{network.name} is not in {model_dir} and {reason}; to get it, put {source.file_name} "
        f"(in {source.remote.urls[0]}) into {model_dir / network.folder}"
        + (", or give its path with `NetworkSettings.model_file`" if by_file else "")
    )


def _fetch_any(network: Network, model_dir: Path, observer: Observer) -> str:
    """Downloads the first archive available; returns why the ones before it failed."""
    errors: list[Exception] = []
    for source in network.sources:
        try:
            _fetch(network, source, model_dir, observer)
            break
        except (DownloadError, NetworkError, OSError) as error:
            errors.append(error)
    if all(isinstance(error, UnreachableError) for error in errors):
        return "cannot be downloaded without a network connection"
    return f"cannot be downloaded ({'; '.join(map(str, errors))})"


def _freeze_once(network: Network, recipe: Recipe, files: ModelFiles) -> Path:
    """Returns the file that the network's recipe makes; makes it if it is missing."""
    try:
        path = files.model_dir / network.folder / recipe.file_name_in(files)
        if path.is_file():
            return path
        graph_def = recipe.build(files)
    except ChoiceError as error:
        raise NetworkError(str(error)) from error
    except RetrainingError as error:  # from freezing, which does not know the name of its model
        named = recipe.choice.model_file or network.name
        raise NetworkError(f"{named} cannot serve as a base network: {error}") from error
    return _write(graph_def, path)


def _build(network: Network, model_dir: Path) -> Path:
    """Writes the frozen graph of an EfficientNet-Lite from the weights in its Python package."""
    weights = efficientnet_lite.read_torch_file(efficientnet_lite.weights_file(network.name))
    graph_def = efficientnet_lite.build_graph(network.name, weights)
    return _write(graph_def, model_dir / network.folder / network.file_names[0])


def _write(graph_def: GraphDef, path: Path) -> Path:
    """Writes a GraphDef to `path`; returns the path."""
    try:
        write_files({path: graph_def.SerializeToString(deterministic=True)})
    except WriteError as error:
        raise NetworkError(f"{error}; see `NetworkSettings.model_dir`") from error
    return path


def _fetch(network: Network, source: Source, model_dir: Path, observer: Observer) -> None:
    """Downloads and unpacks an archive, checks its graph, and only then moves it into place."""
    model_dir.mkdir(parents=True, exist_ok=True)
    archive = model_dir / source.remote.urls[0].rsplit("/", 1)[1]
    unpacked: list[Path] = []
    with scratch_folder(".unpacking-", model_dir) as aside:

        def check(path: Path) -> None:
            unpacked[:] = _unpack_network(path, Path(tempfile.mkdtemp(dir=aside)), network, source)

        fetch(source.remote, archive, observer, check)
        (model_dir / network.folder).mkdir(exist_ok=True)
        for path in unpacked:
            os.replace(path, model_dir / network.folder / path.name)
    archive.unlink(missing_ok=True)


def _unpack_network(archive: Path, folder: Path, network: Network, source: Source) -> list[Path]:
    """Unpacks an archive; returns the paths of its files.

    Raises:
        DownloadError: it cannot be unpacked.
        NetworkError: it does not hold the network.
    """
    unpacked = unpack(archive, folder, max_members=MOST_FILES)
    graph = next((path for path in unpacked if path.name == source.file_name), None)
    if graph is None:
        raise NetworkError(f"the archive {archive} holds no {source.file_name}")
    check_node_names(graph, network)
    return unpacked


def check_node_names(path: str | Path, network: Network) -> None:
    """Checks, without TensorFlow, that a file contains the network's node names.

    A serialized GraphDef holds the name of each node as plain bytes, so a file without them is
    certainly another one. Loading the graph checks the rest.

    Raises:
        NetworkError: one of the names is not in the file.
    """
    content = Path(path).read_bytes()
    missing = sorted(n for n in network.required_nodes if n.encode() not in content)
    if missing:
        raise NetworkError(f"{path} is not {network.name}: it has no node {', '.join(missing)}")
