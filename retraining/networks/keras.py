"""The networks of keras.applications: their names, sizes, pixels, weights; each frozen once.

Keras itself, which takes seconds to import, is imported by `KerasRecipe.build` only.
"""

import contextlib
import difflib
import json
import os
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from retraining.graphs.nodes import add_notes
from retraining.graphs.scaling import Scaling, add_scaling
from retraining.networks.recipes import Choice, ChoiceError, short_hash
from retraining.system.download import DownloadError, Remote, fetch
from retraining.system.text import one_line

PREFIX = "keras:"
IMAGENET, RANDOM = "imagenet", "random"
TOP = "softmax"  # the node of the classifier's probabilities
BOTTLENECK = "bottleneck"
CLASSES = 1000
UNTRAINED = (
    "the weights of {} are random, nothing was learned before: expect no more than a layer on "
    "random features gives, or what --fine_tune learns from these photos alone"
)

# What each network wants of pixels 0..255, by the names of keras.applications.imagenet_utils:
# `tf` is x / 127.5 - 1; `caffe` is BGR less ImageNet's means; `torch` is ImageNet's mean and
# standard deviation per channel; `inside` means that its own first layers do it.
TF, CAFFE, TORCH, INSIDE = "tf", "caffe", "torch", "inside"


def _sized(prefix, sizes, mode):
    return {f"{prefix}{name}": (size, mode) for name, size in sizes.items()}


# {name: (height and width in pixels, mode)}; a test compares it with the Keras that is installed.
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


def parse(name):
    """(name of keras.applications, alpha or None, size or None) of what follows `keras:`.

    MobileNets may be followed by their width and size, as in `MobileNet_0.25_128`.

    Raises:
        ChoiceError: there is no such network.
    """
    scaled = SCALED_NAME.fullmatch(name)
    stem = scaled["stock"] if scaled else name
    known = {stock.lower(): stock for stock in STOCK}
    if stem.lower() not in known:
        close = difflib.get_close_matches(stem.lower(), known, 1)
        meant = f"; did you mean {PREFIX}{known[close[0]]}?" if close else ""
        raise ChoiceError(f"keras.applications has no network {stem!r}{meant}")
    stock = known[stem.lower()]
    if not scaled:
        return stock, None, None
    if stock not in SCALABLE:
        raise ChoiceError(f"{PREFIX}{stock} has no alpha; only {', '.join(SCALABLE)} have")
    return stock, scaled["alpha"], int(scaled["size"]) if scaled["size"] else None


@dataclass(frozen=True)
class KerasRecipe:
    """One network of keras.applications as it was asked for."""

    stock: str
    alpha: str | None
    side: int | None
    choice: Choice = field(default_factory=Choice)
    classifier: bool = False  # the whole network with its 1,000 classes, not vectors

    @classmethod
    def named(cls, name, choice=None, classifier=False):
        """The recipe of `keras:NAME`. Raises ChoiceError."""
        choice = choice or Choice()
        recipe = cls(*parse(name.removeprefix(PREFIX)), choice, classifier)
        choice.refuse(recipe.name, "mean", "std")
        return recipe

    @property
    def name(self):
        """As typed, but in Keras's capitals."""
        scale = [part for part in (self.alpha, self.side) if part]
        return PREFIX + "_".join([self.stock, *map(str, scale)])

    @property
    def folder(self):
        """Below --model_dir."""
        return f"keras_{self.stock}"

    @property
    def size(self):
        """(height, width) of its images in pixels."""
        side = self.side or STOCK[self.stock][0]
        return self.choice.height or side, self.choice.width or side

    @property
    def mean(self):
        """What is subtracted from pixels before the graph; other arithmetic is in it."""
        return 127.5 if self._mode == TF else 0.0

    @property
    def std(self):
        """What pixels are divided by then."""
        return 127.5 if self._mode == TF else 1.0

    @property
    def output(self):
        """The graph's output node."""
        return TOP if self.classifier else BOTTLENECK

    @property
    def _mode(self):
        return STOCK[self.stock][1]

    @property
    def weights(self):
        """`imagenet`, `random` or a file."""
        return self.choice.weights or IMAGENET

    def file_name_in(self, _place):
        """Differs where the graph would: by network, size, layer and weights.

        Raises:
            ChoiceError: the file of weights cannot be read.
        """
        parts = [self.name.removeprefix(PREFIX), "{}x{}".format(*self.size), self._weights_id()]
        layer = ALIASES.get(self.choice.layer, self.choice.layer)
        end = TOP if self.classifier else layer
        if end:
            parts.append(re.sub(r"\W", "_", end))
        return "-".join(parts) + ".pb"

    def _weights_id(self):
        if self.weights in (IMAGENET, RANDOM):
            return self.weights
        try:
            return short_hash(self.weights)
        except OSError as error:
            raise ChoiceError(
                f"cannot read the weights {self.weights}: {error.strerror}; name a file, "
                f"{IMAGENET} or {RANDOM} with --weights"
            ) from error

    def build(self, place):
        """The frozen GraphDef: `input` -> `bottleneck`, or `softmax` of a classifier.

        Raises:
            ChoiceError: no weights, or not those of this network, or no such layer.
            FreezeError: Keras or TensorFlow cannot make it.
        """
        from retraining.graphs.freeze import freeze

        fetching = self.weights == IMAGENET
        with downloads_into_cache(place) if fetching else contextlib.nullcontext():
            model = self._model()
        graph_def = freeze(lambda images: model(images, training=False), self.size, self.output)
        if self._mode == CAFFE:
            add_scaling(graph_def, Scaling((103.939, 116.779, 123.68), flip=True))
        elif self._mode == TORCH:
            mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
            mean, std = (tuple(255 * value for value in values) for values in (mean, std))
            add_scaling(graph_def, Scaling(mean, std))
        if self.weights == RANDOM:
            add_notes(graph_def, [UNTRAINED.format(self.name)])
        return graph_def

    # -- Keras's model -----------------------------------------------------------------------

    def _model(self):
        """Keras's Model of float32 [n, *size, 3] to [n, width], its weights loaded."""
        layer = ALIASES.get(self.choice.layer, self.choice.layer)
        whole = self.classifier or layer is not None
        if self.weights == IMAGENET:
            model = self._application(whole, IMAGENET)
        elif self.weights == RANDOM:
            model = self._application(whole, None)
            model.set_weights(random_weights(model.weights))
        else:
            model = self._from_file(whole)
        return model if layer is None or self.classifier else output_of(model, layer)

    def _application(self, whole, weights):
        keras = import_keras()
        options = {"include_top": whole, "weights": weights, "input_shape": (*self.size, 3)}
        if not whole:
            options["pooling"] = "avg"
        if self.alpha:
            options["alpha"] = float(self.alpha)
        try:
            return getattr(keras.applications, self.stock)(**options)
        except (ValueError, OSError) as error:
            raise ChoiceError(f"Keras cannot make {self.name}: {one_line(error)}") from error

    def _from_file(self, whole):
        """With weights from a file, which may have those of the classes or not."""
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
            return other  # a layer below the classes is asked for
        # The classes' layers come last, so the first weights are those of the rest.
        wanted.set_weights(other.get_weights()[: len(wanted.weights)])
        return wanted


def import_keras():
    """Keras on TensorFlow, in float32 and channels last, whatever the user's settings are."""
    from retraining.graphs.tensorflow import import_tensorflow

    import_tensorflow()  # first, so that its C++ code is quiet
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    if not hasattr(keras, "config"):
        raise ChoiceError("Keras 2 is installed; pip install -r requirements.txt")
    if keras.config.backend() != "tensorflow":
        raise ChoiceError("Keras was imported with another backend than TensorFlow in this process")
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    return keras


def load_weights(model, path):
    """Loads weights, and nothing else that the file may hold, into a Keras model.

    Raises:
        ChoiceError: they are not those of the model.
    """
    # A file may leave layers as they were, with no more than a warning: then these NaN stay.
    empty = [np.full_like(v, np.nan if v.dtype.kind == "f" else 0) for v in model.get_weights()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.set_weights(empty)
            model.load_weights(path)
        if any(np.isnan(value).any() for value in model.get_weights() if value.dtype.kind == "f"):
            raise ValueError("it holds only some of them")
    except Exception as error:  # h5py, zipfile and Keras raise whatever a wrong file makes them
        raise ChoiceError(
            f"{path} does not hold the weights that are needed (.weights.h5, .keras or .h5 of that "
            f"very network): {one_line(error)}"
        ) from error


def random_weights(variables):
    """Values for Keras variables, the same every time and lively enough to tell images apart.

    Kernels are normal with variance 2 / inputs (He et al. 2015), so that signals pass ReLUs; the
    rest is Keras's initial value plus up to a tenth.
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


def output_of(model, layer):
    """A Keras model that ends at a layer, averaged over the image if it gives one.

    Raises:
        ChoiceError: there is no such layer, or it gives neither a vector nor an image.
    """
    keras = import_keras()
    names = [each.name for each in model.layers]
    if layer not in names:
        close = difflib.get_close_matches(layer, names, 1)
        meant = f"did you mean {close[0]}?" if close else f"its last are {', '.join(names[-4:])}"
        raise ChoiceError(f"the network has no layer {layer!r}; {meant} See --bottleneck_layer")
    output = model.get_layer(layer).output
    rank = len(output.shape) if hasattr(output, "shape") else 0
    if rank not in (2, 4):
        raise ChoiceError(f"the layer {layer} gives neither a vector nor an image; choose another")
    if rank == 4:
        output = keras.layers.GlobalAveragePooling2D()(output)
    return keras.Model(model.inputs, output)


# -- Keras's cache ---------------------------------------------------------------------------


def cache_folder():
    """Where Keras keeps files of weights: KERAS_HOME or ~/.keras, `models`."""
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    return Path(home) / "models"


def cached_file(name, url, place):
    """A file of Keras's cache, fetched into it if need be and allowed.

    Raises:
        ChoiceError: it is not there and not to be had; says which file to put where.
    """
    path = cache_folder() / name
    if path.is_file():
        return path
    reason = "--offline forbids fetching it"
    if not place.offline:
        try:
            return fetch(Remote((url,)), path, place.quiet)
        except DownloadError as error:
            reason = f"cannot be fetched ({error})"
    raise ChoiceError(
        f"{name} is not in Keras's cache and {reason}; put it ({url}) into {path.parent}, or see "
        f"--weights and --labels"
    )


@contextlib.contextmanager
def downloads_into_cache(place):
    """Within it, keras.applications finds its files by `cached_file`.

    Keras's own get_file asks the network whatever was said of it, and writes to stdout.

    Raises:
        ChoiceError: this is another Keras than that of requirements.txt, and has no such function.
    """
    keras = import_keras()
    try:
        from keras.src.applications.vgg16 import file_utils  # where the applications look it up

        original, validate_file = file_utils.get_file, file_utils.validate_file
    except (ImportError, AttributeError) as error:
        raise ChoiceError(
            f"Keras {keras.__version__} keeps its files of weights in another way than is known "
            f"here; pip install -r requirements.txt, or name a file with --weights"
        ) from error

    def get_file(fname, origin, file_hash=None, **_):
        path = cached_file(fname, origin, place)
        if file_hash and not validate_file(str(path), file_hash):
            raise ChoiceError(f"{path} is damaged or another file than Keras's; delete it")
        return str(path)

    file_utils.get_file = get_file
    try:
        yield
    finally:
        file_utils.get_file = original


CLASS_INDEX = (
    "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json"
)


def imagenet_labels(place):
    """ImageNet's 1,000 labels as Keras names them, in the order of its networks' outputs.

    Raises:
        ChoiceError: Keras's file of them is not to be had, or damaged.
    """
    path = cached_file("imagenet_class_index.json", CLASS_INDEX, place)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return tuple(str(index[str(number)][1]).replace("_", " ") for number in range(CLASSES))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ChoiceError(f"{path} is damaged; delete it") from error


def without_background(labels):
    """Labels of a file, less the first of 1,001, the background class, which Keras has not."""
    return tuple(labels[1:] if len(labels) == CLASSES + 1 else labels)
