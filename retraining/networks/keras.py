"""The networks of keras.applications: names, sizes, preprocessing, weights; each is frozen once.

Only `KerasRecipe.build` imports Keras itself, which takes seconds.
"""

import contextlib
import difflib
import io
import json
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import add_notes
from retraining.graphs.scaling import Scaling, add_scaling
from retraining.networks.recipes import (
    MAX_MODEL,
    Choice,
    ChoiceError,
    ModelFiles,
    short_hash,
)
from retraining.system.download import Check, DownloadError, Remote, fetch
from retraining.system.regular import open_regular
from retraining.system.text import one_line

KERAS_PREFIX = "keras:"
IMAGENET, RANDOM = "imagenet", "random"
TOP = "softmax"  # the node of the classifier's probabilities
BOTTLENECK = "bottleneck"
CLASSES = 1000
MOST_CONFIG = 16 << 20  # bytes of JSON; EfficientNetV2L's description has 1 MB
MOST_OTHERS = 16  # times MOST_CONFIG: bytes of an HDF5 file that are in no dataset
MOST_EXPANSION = 20  # times the size of a file; weights hardly compress
UNTRAINED = (
    "the weights of {} are random, not pretrained: expect no more than a layer on random "
    "features gives, or what fine-tuning learns from these photos alone"
)

# The preprocessing of pixels 0..255, by the names of keras.applications.imagenet_utils: `tf` is
# x / 127.5 - 1; `caffe` is BGR minus the means of ImageNet; `torch` uses the mean and standard
# deviation of ImageNet per channel; `inside` means that the first layers of the network do it.
TF, CAFFE, TORCH, INSIDE = "tf", "caffe", "torch", "inside"


def _sized(prefix: str, sizes: Mapping[str, int], mode: str) -> dict[str, tuple[int, str]]:
    return {f"{prefix}{name}": (size, mode) for name, size in sizes.items()}


# {name: (height and width in pixels, mode)}; a test compares it with the installed Keras.
STOCK = {
    **_sized("ConvNeXt", dict.fromkeys(("Tiny", "Small", "Base", "Large", "XLarge"), 224), INSIDE),
    **_sized("DenseNet", dict.fromkeys(("121", "169", "201"), 224), TORCH),
    **_sized(
        "EfficientNet",
        {"B0": 224, "B1": 240, "B2": 260, "B3": 300, "B4": 380, "B5": 456, "B6": 528, "B7": 600},
        INSIDE,
    ),
    **_sized(
        "EfficientNetV2",
        {"B0": 224, "B1": 240, "B2": 260, "B3": 300, "S": 384, "M": 480, "L": 480},
        INSIDE,
    ),
    **_sized("Inception", {"V3": 299, "ResNetV2": 299}, TF),
    **_sized("MobileNet", {"": 224, "V2": 224}, TF),
    **_sized("MobileNetV3", {"Small": 224, "Large": 224}, INSIDE),
    **_sized("NASNet", {"Mobile": 224, "Large": 331}, TF),
    **_sized("ResNet", dict.fromkeys(("50", "101", "152"), 224), CAFFE),
    **_sized("ResNet", dict.fromkeys(("50V2", "101V2", "152V2"), 224), TF),
    **_sized("VGG", dict.fromkeys(("16", "19"), 224), CAFFE),
    "Xception": (299, TF),
}
SCALABLE = ("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large")  # have an alpha
# The names that Caffe and the classic VGG graphs have for Keras's layers.
ALIASES = {"relu6": "fc1", "relu7": "fc2"}
SCALED_NAME = re.compile(r"(?P<stock>[a-z]\w*?)_(?P<alpha>\d(\.\d+)?)(_(?P<size>\d{2,4}))?", re.I)


def parse(name: str) -> tuple[str, str | None, int | None]:
    """Parses the text after `keras:`; returns (name of keras.applications, alpha, size).

    Alpha and size are None unless given, as in `MobileNet_0.25_128`; only MobileNets have them.

    Raises:
        ChoiceError: there is no such network.
    """
    scaled = SCALED_NAME.fullmatch(name)
    stem = scaled["stock"] if scaled else name
    known = {stock.lower(): stock for stock in STOCK}
    if stem.lower() not in known:
        close = difflib.get_close_matches(stem.lower(), known, 1)
        meant = f"; did you mean {KERAS_PREFIX}{known[close[0]]}?" if close else ""
        raise ChoiceError(f"keras.applications has no network {stem!r}{meant}")
    stock = known[stem.lower()]
    if not scaled:
        return stock, None, None
    if stock not in SCALABLE:
        raise ChoiceError(f"{KERAS_PREFIX}{stock} has no alpha; only {', '.join(SCALABLE)} have")
    return stock, scaled["alpha"], int(scaled["size"]) if scaled["size"] else None


@dataclass(frozen=True)
class KerasRecipe:
    """One network of keras.applications, as the user chose it."""

    HELP: ClassVar[str] = "keras:NAME for any of keras.applications, such as keras:InceptionV3"

    stock: str
    alpha: str | None
    side: int | None
    choice: Choice = field(default_factory=Choice)
    classifier: bool = False  # the whole network with its 1,000 classes, not vectors

    @classmethod
    def named(
        cls, name: str, choice: Choice | None = None, classifier: bool = False
    ) -> "KerasRecipe":
        """Returns the recipe of `keras:NAME`. Raises ChoiceError."""
        choice = choice or Choice()
        recipe = cls(*parse(name.removeprefix(KERAS_PREFIX)), choice, classifier)
        choice.refuse(recipe.name, "mean", "std")
        return recipe

    @property
    def name(self) -> str:
        """The name as the user typed it, but with the capitals of Keras."""
        scale = [part for part in (self.alpha, self.side) if part]
        return KERAS_PREFIX + "_".join([self.stock, *map(str, scale)])

    @property
    def folder(self) -> str:
        """The folder below the one of all networks."""
        return f"keras_{self.stock}"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        side = self.side or STOCK[self.stock][0]
        return self.choice.height or side, self.choice.width or side

    @property
    def mean(self) -> float:
        """What is subtracted from pixels before the graph; the graph does all other arithmetic."""
        return 127.5 if self._mode == TF else 0.0

    @property
    def std(self) -> float:
        """What pixels are divided by after that."""
        return 127.5 if self._mode == TF else 1.0

    @property
    def output(self) -> str:
        """The output node of the graph."""
        return TOP if self.classifier else BOTTLENECK

    @property
    def _mode(self) -> str:
        return STOCK[self.stock][1]

    @property
    def _layer(self) -> str | None:
        """The Keras name of the layer that the user chose."""
        layer = self.choice.layer
        return None if layer is None else ALIASES.get(layer, layer)

    @property
    def weights(self) -> str:
        """`imagenet`, `random` or the path of a file."""
        return self.choice.weights or IMAGENET

    def file_name_in(self, _files: ModelFiles) -> str:
        """Returns a name that differs if the graph does: by network, size, layer and weights.

        Raises:
            ChoiceError: the file of weights cannot be read.
        """
        parts = [
            self.name.removeprefix(KERAS_PREFIX),
            "{}x{}".format(*self.size),
            self._weights_id(),
        ]
        end = TOP if self.classifier else self._layer
        if end:
            parts.append(re.sub(r"\W", "_", end))
        return "-".join(parts) + ".pb"

    def _weights_id(self) -> str:
        if self.weights in (IMAGENET, RANDOM):
            return self.weights
        try:
            return short_hash(self.weights)
        except OSError as error:
            raise ChoiceError(
                f"cannot read the weights {self.weights}: {error.strerror}; name a file, "
                f"{IMAGENET} or {RANDOM} with `Choice.weights`"
            ) from error

    def build(self, files: ModelFiles) -> GraphDef:
        """Returns the frozen GraphDef from `input` to `bottleneck` (of a classifier: `softmax`).

        Raises:
            ChoiceError: the weights are missing or of another network, or there is no such layer.
            FreezeError: Keras or TensorFlow cannot make the graph.
        """
        from retraining.graphs.freeze import freeze

        fetching = self.weights == IMAGENET
        with downloads_into_cache(files) if fetching else contextlib.nullcontext():
            model = self._model()
        graph_def = freeze(lambda images: model(images, training=False), self.size, self.output)
        if self._mode == CAFFE:
            add_scaling(graph_def, Scaling((103.939, 116.779, 123.68), flip=True))
        elif self._mode == TORCH:
            of_shares = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
            mean, std = (tuple(255 * value for value in values) for values in of_shares)
            add_scaling(graph_def, Scaling(mean, std))
        if self.weights == RANDOM:
            add_notes(graph_def, [UNTRAINED.format(self.name)])
        return graph_def

    # -- Keras's model -----------------------------------------------------------------------

    def _model(self) -> Any:
        """Returns the Keras model of float32 [n, *size, 3] to [n, width], with its weights."""
        layer = self._layer
        whole = self.classifier or layer is not None
        if self.weights == IMAGENET:
            model = self._application(whole, IMAGENET)
        elif self.weights == RANDOM:
            model = self._application(whole, None)
            model.set_weights(random_weights(model.weights))
        else:
            model = self._from_file(whole)
        return model if layer is None or self.classifier else output_of(model, layer)

    def _application(self, whole: bool, weights: str | None) -> Any:
        keras = import_keras()
        options: dict[str, Any] = {
            "include_top": whole,
            "weights": weights,
            "input_shape": (*self.size, 3),
        }
        if not whole:
            options["pooling"] = "avg"
        if self.alpha:
            options["alpha"] = float(self.alpha)
        try:
            return getattr(keras.applications, self.stock)(**options)
        except (ValueError, OSError) as error:
            raise ChoiceError(f"Keras cannot make {self.name}: {one_line(error)}") from error

    def _from_file(self, whole: bool) -> Any:
        """Returns the model with weights from a file, with or without those of the classes."""
        wanted, errors = self._application(whole, None), []
        try:
            load_weights(wanted, self.weights)
            return wanted
        except ChoiceError as error:
            errors.append(error)
        if self.classifier:
            raise errors[0]
        other = self._application(not whole, None)
        try:
            load_weights(other, self.weights)
        except ChoiceError:
            raise ChoiceError(f"{errors[0]} ({self.name})") from errors[0]
        if whole:
            return other  # the chosen layer lies below the classes
        # The layers of the classes come last, so the first weights belong to the others.
        wanted.set_weights(other.get_weights()[: len(wanted.weights)])
        return wanted


def import_keras() -> Any:
    """Imports Keras on TensorFlow, in float32 and channels last, whatever the user's settings."""
    from retraining.graphs.tensorflow import import_tensorflow

    import_tensorflow()  # first, so that the C++ code of TensorFlow is quiet
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    if not hasattr(keras, "config"):
        raise ChoiceError("Keras 2 is installed; pip install -r requirements.txt")
    if keras.config.backend() != "tensorflow":
        raise ChoiceError("Keras was imported with another backend than TensorFlow in this process")
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    return keras


def load_weights(model: Any, path: str) -> None:
    """Loads the weights in a file, and nothing else from it, into a Keras model.

    Raises:
        ChoiceError: they do not belong to the model.
    """
    # For layers that are missing in the file, Keras only warns: then these NaN stay.
    empty = [np.full_like(v, np.nan if v.dtype.kind == "f" else 0) for v in model.get_weights()]
    check_model_file(Path(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.set_weights(empty)
            model.load_weights(path)
        if any(np.isnan(value).any() for value in model.get_weights() if value.dtype.kind == "f"):
            raise ValueError("it holds only some of them")
    except Exception as error:  # h5py, zipfile and Keras raise any kind for a wrong file
        raise ChoiceError(
            f"{path} does not hold the weights that are needed (.weights.h5, .keras or .h5 of that "
            f"very network): {one_line(error)}"
        ) from error


def check_model_file(path: Path) -> None:
    """Checks that a Keras file, a zip or HDF5, holds no more than its size lets expect.

    Keras would read all of a member or dataset into memory, and follow links to other files.

    Raises:
        ChoiceError: it is damaged, of another kind, or claims too much.
    """
    try:
        open_regular(path, MAX_MODEL).close()
        if zipfile.is_zipfile(path):
            _check_zip(path)
        else:
            check_h5(path)
    except (OSError, ValueError, RuntimeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ChoiceError(f"{path} is damaged or not a Keras file: {one_line(error)}") from error


def _check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        # zipfile reads no more than these sizes, even if they are lies.
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        _check_expansion(sum(sizes.values()), path.stat().st_size)
        for name, size in sizes.items():
            if name.endswith(".json") and size > MOST_CONFIG:
                raise ValueError(f"its {name} has {size} bytes")
            if name.endswith(".h5"):
                check_h5(io.BytesIO(archive.read(name)))


def check_h5(file: Path | io.BytesIO) -> None:
    """Checks that an HDF5 file is sound, has no links, and no more data than its size lets expect.

    Raises:
        OSError, ValueError, RuntimeError: it is not.
    """
    import h5py

    # h5py stops at what these return, and does not survive all that they could raise.
    def problem_of_link(name: str, link: Any) -> str | None:
        return None if isinstance(link, h5py.HardLink) else f"its {name!r} is a link"

    def problem_of_item(name: str, item: Any) -> str | None:
        if not isinstance(item, h5py.Dataset):
            return None
        sizes.append(int(item.size or 0) * item.dtype.itemsize)
        stored.append(item.id.get_storage_size())
        return f"its {name!r} lies in other files" if item.external or item.is_virtual else None

    sizes: list[int] = []
    stored: list[int] = []
    with h5py.File(file, "r") as opened:
        problem = opened.visititems_links(problem_of_link) or opened.visititems(problem_of_item)
    if problem:
        raise ValueError(problem)
    size = len(file.getbuffer()) if isinstance(file, io.BytesIO) else file.stat().st_size
    _check_expansion(sum(sizes), size)
    # h5py reads an attribute, such as the description of a model, as a whole.
    if size - sum(stored) > MOST_OTHERS * MOST_CONFIG:
        raise ValueError(f"{size - sum(stored)} of its bytes are no weights")


def _check_expansion(size: int, stored: int) -> None:
    """Raises ValueError if `size` bytes come from a file of only `stored` bytes."""
    if size > min(MAX_MODEL, MOST_EXPANSION * stored + MOST_CONFIG):
        raise ValueError(f"its {stored} bytes unpack to {size}")


def random_weights(variables: Iterable[Any]) -> list[NDArray[Any]]:
    """Returns values for Keras variables, always the same, whose vectors tell images apart.

    Kernels are normal with variance 2 / inputs (He et al. 2015), so that signals pass ReLUs. All
    other values are those that Keras starts with, plus up to 0.1.
    """
    rng, values = np.random.default_rng(0), []
    for variable in variables:
        value = np.asarray(variable.numpy())
        if value.ndim > 1:
            depthwise = value.ndim == 4 and value.shape[-1] == 1
            inputs = np.prod(value.shape[: -2 if depthwise else -1])
            value = rng.normal(0, np.sqrt(2 / inputs), value.shape)
        elif value.dtype.kind == "f":
            value = value + rng.uniform(0, 0.1, value.shape)
        values.append(np.asarray(value, variable.dtype))
    return values


def output_of(model: Any, layer: str) -> Any:
    """Returns a Keras model that ends at a layer; averages an output that is an image.

    Raises:
        ChoiceError: there is no such layer, or its output is neither a vector nor an image.
    """
    keras = import_keras()
    names = [known.name for known in model.layers]
    if layer not in names:
        close = difflib.get_close_matches(layer, names, 1)
        meant = f"did you mean {close[0]}?" if close else f"its last are {', '.join(names[-4:])}"
        raise ChoiceError(f"the network has no layer {layer!r}; {meant} See `Choice.layer`")
    output = model.get_layer(layer).output
    rank = len(output.shape) if hasattr(output, "shape") else 0
    if rank not in (2, 4):
        raise ChoiceError(f"the layer {layer} gives neither a vector nor an image; choose another")
    if rank == 4:
        output = keras.layers.GlobalAveragePooling2D()(output)
    return keras.Model(model.inputs, output)


def cache_folder() -> Path:
    """Returns the folder of Keras for files of weights: `models` in KERAS_HOME or ~/.keras."""
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    return Path(home) / "models"


def cached_file(name: str, url: str, files: ModelFiles, check: Check) -> Path:
    """Returns a file in the cache of Keras; fetches it if it is missing and `files` allows that.

    `check` is that of `download.fetch`, which replaces a file that it refuses.

    Raises:
        ChoiceError: the file is missing or wrong and cannot be fetched; says which file to put
            where.
    """
    path = cache_folder() / name
    if files.offline and path.is_file():
        check(path)
        return path
    reason = "`NetworkSettings.offline` forbids downloading it"
    if not files.offline:
        try:
            return fetch(Remote((url,)), path, files.observer, check)
        except DownloadError as error:
            reason = f"cannot be downloaded ({error})"
    raise ChoiceError(
        f"{name} is not in Keras's cache and {reason}; put it ({url}) into {path.parent}, or see "
        f"`Choice.weights` and `labels_path`"
    )


@contextlib.contextmanager
def downloads_into_cache(files: ModelFiles) -> Iterator[None]:
    """Makes keras.applications find its files by `cached_file`.

    The get_file of Keras uses the network even if `place` forbids it, and writes to stdout.

    Raises:
        ChoiceError: this Keras is not that of requirements.txt, and lacks that function.
    """
    keras = import_keras()
    try:
        from keras.src.applications.vgg16 import file_utils  # the applications look it up here

        original, validate_file = file_utils.get_file, file_utils.validate_file
    except (ImportError, AttributeError) as error:
        raise ChoiceError(
            f"Keras {keras.__version__} keeps its files of weights in another way than is known "
            f"here; pip install -r requirements.txt, or name a file with `Choice.weights`"
        ) from error

    def get_file(fname: str, origin: str, file_hash: str | None = None, **_: object) -> str:
        def check(path: Path) -> None:
            if file_hash and not validate_file(str(path), file_hash):
                raise ChoiceError(f"{path} is damaged or another file than Keras's; delete it")
            check_model_file(path)

        return str(cached_file(fname, origin, files, check))

    file_utils.get_file = get_file
    try:
        yield
    finally:
        file_utils.get_file = original


CLASS_INDEX = (
    "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json"
)


def imagenet_labels(files: ModelFiles) -> tuple[str, ...]:
    """Returns the 1,000 labels of ImageNet, as Keras names them, in the order of the outputs.

    Raises:
        ChoiceError: the labels file of Keras cannot be fetched, or is damaged.
    """
    path = cached_file("imagenet_class_index.json", CLASS_INDEX, files, _read_class_index)
    return _read_class_index(path)


def _read_class_index(path: Path) -> tuple[str, ...]:
    """Reads the labels in Keras's file. Raises ChoiceError."""
    try:
        with open_regular(path, MOST_CONFIG) as file:
            index = json.loads(file.read())
        return tuple(str(index[str(number)][1]).replace("_", " ") for number in range(CLASSES))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ChoiceError(f"{path} is damaged; delete it") from error


def without_background(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns labels without the first of 1,001, the background class, which Keras lacks."""
    return tuple(labels[1:] if len(labels) == CLASSES + 1 else labels)
