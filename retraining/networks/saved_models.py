"""Freezes anybody's TF2 SavedModel, or Keras model file, that maps images to vectors.

Either can run foreign code while it is loaded: a SavedModel has functions that restore it, a Keras
file names classes and may hold Python. Therefore the content is checked before.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import GraphError, add_notes
from retraining.graphs.safety import SAVED_MODEL
from retraining.graphs.saved_model_safety import describe_unsafe, read_meta_graph
from retraining.graphs.scaling import Scaling, add_scaling, scales_pixels
from retraining.graphs.tensorflow import Tensor, import_whole_tensorflow
from retraining.networks.keras import (
    BOTTLENECK,
    MOST_CONFIG,
    check_model_file,
    import_keras,
    output_of,
)
from retraining.networks.recipes import (
    Choice,
    ChoiceError,
    ModelFiles,
    short_hash,
)
from retraining.system.text import one_line

KERAS_ENDINGS = (".keras", ".h5", ".hdf5")
ASSUMED_STD = 255.0  # for models that do not scale pixels: 0..1, as models of TensorFlow Hub expect

Function: TypeAlias = Callable[[Tensor], Tensor]  # of images


@dataclass(frozen=True)
class SavedModelRecipe:
    """The model that the user names: a SavedModel's folder, or a .keras or .h5 file."""

    HELP: ClassVar[str] = "saved_model for the model in `NetworkSettings.model_file`"

    choice: Choice = field(default_factory=Choice)
    name: str = "saved_model"
    folder: str = "saved_model"
    mean: float = 0.0  # all arithmetic is in the graph
    std: float = 1.0

    def __post_init__(self) -> None:
        self.choice.refuse(self.name, "weights")
        if self.choice.std == 0:
            raise ChoiceError("`Choice.std` 0 would divide by zero; give the model's own value")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels as the user chose; 0 where the model tells."""
        return self.choice.height or 0, self.choice.width or 0

    def _path(self) -> Path:
        if not self.choice.model_file:
            raise ChoiceError(
                "`NetworkSettings.architecture` saved_model needs `NetworkSettings.model_file`: a "
                "SavedModel's folder, or a .keras or .h5 file"
            )
        return Path(self.choice.model_file)

    def file_name_in(self, _files: ModelFiles) -> str:
        """Returns a name that differs by the model's files and the choice. Raises ChoiceError."""
        path, asked = self._path(), self.choice
        is_model = (path / SAVED_MODEL).is_file() or (
            path.is_file() and path.suffix in KERAS_ENDINGS
        )
        if not is_model:
            raise ChoiceError(
                f"{path} is neither a SavedModel folder (with {SAVED_MODEL} in it) nor "
                f"a .keras or .h5 file; see `NetworkSettings.model_file`"
            )
        try:
            parts = [path.resolve().stem, short_hash(path)]
        except OSError as error:
            raise ChoiceError(f"cannot read {path}: {error.strerror}") from error
        fields = ("layer", "height", "width", "mean", "std")
        parts += [f"{f}_{getattr(asked, f)}" for f in fields if getattr(asked, f) is not None]
        return re.sub(r"[^\w.-]", "_", "-".join(parts)) + ".pb"

    def build(self, _files: ModelFiles) -> GraphDef:
        """Returns the GraphDef from `input` (pixels 0..255) to `bottleneck`, with its assumptions.

        Raises:
            ChoiceError: the model cannot be used, or does not allow the choice.
            FreezeError: TensorFlow cannot freeze it.
        """
        from retraining.graphs.freeze import freeze

        path = self._path()
        notes: list[str] = []
        load = load_folder if path.is_dir() else load_keras
        model = load(path, self.choice)
        size = self._size(model.size)
        graph_def = freeze(
            averaged(model.function, notes), size, BOTTLENECK, model.batch, model.dtype
        )
        add_scaling(graph_def, self._scaling(graph_def, model.dtype, notes))
        add_notes(graph_def, notes)
        return graph_def

    def _size(self, own: tuple[int | None, int | None]) -> tuple[int, int]:
        """Returns (height, width) in pixels: of the model or of the choice. Raises ChoiceError."""
        size = own[0] or self.size[0], own[1] or self.size[1]
        if not all(size):
            raise ChoiceError(
                "the model does not specify its image size; give `Choice.height` and `Choice.width`"
            )
        if any(asked and asked != side for asked, side in zip(self.size, size, strict=True)):
            raise ChoiceError(
                f"the model takes images of {size[0]} x {size[1]} pixels; drop "
                f"`Choice.height` and `Choice.width`"
            )
        return size

    def _scaling(self, graph_def: GraphDef, dtype: str, notes: list[str]) -> Scaling:
        """Returns the scaling: as chosen, as the model's first ops or type tell, or a guess."""
        mean, std = self.choice.mean, self.choice.std
        if mean is not None or std is not None:
            return Scaling((mean or 0.0,), (1.0 if std is None else std,))
        if dtype == "uint8" or scales_pixels(graph_def):
            return Scaling()
        notes.append(
            f"the model does not specify its pixel scale; assuming 0..1, as with `Choice.mean` 0 "
            f"`Choice.std` {ASSUMED_STD:g}"
        )
        return Scaling(std=(ASSUMED_STD,))


@dataclass(frozen=True)
class Loaded:
    """A loaded model: its function, and the images that it takes."""

    function: Function  # of a tensor [batch, height, width, 3] of `dtype`
    size: tuple[int | None, int | None]  # (height, width); None if any
    batch: int | None = None
    dtype: str = "float32"


def averaged(function: Function, notes: list[str]) -> Function:
    """Returns a function that averages an output that is an image; adds a note on that."""

    def vectors(images: Tensor) -> Tensor:
        tf = import_whole_tensorflow()
        output = function(images)
        if output.shape.rank == 4:
            notes.append(f"the model gives {output.shape}; its average over the image is used")
            output = tf.reduce_mean(output, (1, 2))
        return tf.cast(output, tf.float32)

    return vectors


def load_keras(path: Path, choice: Choice) -> Loaded:
    """Loads a .keras or .h5 model. Raises ChoiceError."""
    check_model_file(path)
    check_config(path, _read_config(path))
    keras = import_keras()
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras, h5py and zipfile raise any kind for a damaged file
        raise ChoiceError(f"Keras cannot load {path}: {one_line(error)}") from error
    if choice.layer:
        model = output_of(model, choice.layer)
    shape = getattr(model, "input_shape", None)
    size = _image_size([shape] if isinstance(shape, tuple) else shape, path)
    if len(model.outputs or ()) > 1:
        raise ChoiceError(f"{path} has several outputs; name a layer with `Choice.layer`")
    return Loaded(lambda images: model(images, training=False), size)


def _image_size(
    shapes: Sequence[Sequence[int | None]] | None, path: Path
) -> tuple[int | None, int | None]:
    """Returns (height, width) of a model's only input [n, height, width, 3]. Raises ChoiceError."""
    shape = shapes[0] if shapes and len(shapes) == 1 else None
    if shape is None or len(shape) != 4 or shape[3] not in (3, None):
        raise ChoiceError(
            f"{path} does not take one image [n, height, width, 3] but {shapes}; it cannot be used"
        )
    return shape[1], shape[2]


def _read_config(path: Path) -> Any:
    """Reads the JSON that describes the layers of a Keras file. Raises ChoiceError."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("config.json"))
        import h5py

        with h5py.File(path, "r") as file:
            config = file.attrs["model_config"]
        if len(config) > MOST_CONFIG:
            raise ValueError(f"its model_config has {len(config)} bytes")
        return json.loads(config)
    except KeyError as error:
        raise ChoiceError(
            f"{path} holds weights only; give `NetworkSettings.architecture` keras:NAME and this "
            f"file as `Choice.weights`"
        ) from error
    except (OSError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ChoiceError(f"{path} is damaged or not a Keras model: {one_line(error)}") from error


# Classes that describe models in Keras files and only compute: those of keras.applications and of
# ordinary networks for images. Others of Keras read files (StringLookup, TFSMLayer), fetch them or
# run code.
CLASSES_TEXT = """
Functional Model Sequential InputLayer InputSpec DTypePolicy Policy TensorShape
__keras_tensor__ __tensor__ __numpy__ __tuple__ __ellipsis__ __slice__

Conv1D Conv2D Conv2DTranspose DepthwiseConv2D SeparableConv2D Dense EinsumDense Embedding
AveragePooling2D MaxPooling2D GlobalAveragePooling1D GlobalAveragePooling2D GlobalMaxPooling1D
GlobalMaxPooling2D AdaptiveAveragePooling2D AdaptiveMaxPooling2D
BatchNormalization GroupNormalization LayerNormalization Normalization RMSNormalization
SpectralNormalization UnitNormalization
Activation ELU LeakyReLU PReLU ReLU Softmax ThresholdedReLU
Add Average Concatenate Dot Maximum Minimum Multiply Subtract
Cropping2D Flatten Identity Masking Permute RepeatVector Rescaling Reshape Resizing CenterCrop
UpSampling2D ZeroPadding2D
ActivityRegularization AlphaDropout Dropout GaussianDropout GaussianNoise SpatialDropout1D
SpatialDropout2D
AdditiveAttention Attention GroupQueryAttention MultiHeadAttention
GRU GRUCell LSTM LSTMCell SimpleRNN SimpleRNNCell RNN Bidirectional TimeDistributed
AugMix AutoContrast CutMix Equalization MixUp RandAugment RandomBrightness
RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform
RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHeight RandomHue RandomInvert
RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear
RandomTranslation RandomWidth RandomZoom Solarization
CustomScaleLayer LayerScale StochasticDepth

Constant GlorotNormal GlorotUniform HeNormal HeUniform IdentityInitializer LecunNormal
LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform SeedGenerator
TruncatedNormal VarianceScaling Zeros
L1 L1L2 L2 OrthogonalRegularizer MaxNorm MinMaxNorm NonNeg UnitNorm
"""
CLASSES = frozenset(CLASSES_TEXT.split())
# Modules of which every class only computes: operators between layers, and what training needs.
MODULES = (
    *(f"keras.src.ops.{name}" for name in ("image", "math", "nn", "numpy")),
    *(f"keras.{name}" for name in ("optimizers", "optimizers.schedules", "losses", "metrics")),
)


def check_config(path: Path, config: Any) -> None:
    """Refuses classes with code of their own, and those of Keras that are not known to be harmless.

    Raises:
        ChoiceError: there is such a class.
    """
    waiting = [config]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, dict):
            if problem := _problem_of(entry):
                raise ChoiceError(
                    f"{path} was not loaded, since it holds {problem}; export it as a SavedModel "
                    f"(model.export) and name that folder"
                )
            waiting += entry.values()
        elif isinstance(entry, list):
            waiting += entry


def _problem_of(entry: Mapping[str, Any]) -> str | None:
    """Returns why a part of a description is refused, or None."""
    name, module = entry.get("class_name"), entry.get("module") or "keras"
    if not name:
        return None
    registered = str(entry.get("registered_name"))  # `package>name` is a foreign class
    own = str(module).split(".")[0] == "keras" and ">" not in registered
    if name in ("Lambda", "__lambda__", "function") or not own:
        return f"code of its own ({str(name)[:60]!r})"
    if str(name) in CLASSES or str(module) in MODULES:
        return None
    return f"the layer {str(name)[:60]!r}, which is not known only to compute"


def load_folder(path: Path, choice: Choice) -> Loaded:
    """Loads a SavedModel: its signature, or else its own call. Raises ChoiceError."""
    _check_saved_model(path, choice.allow_unsafe_ops)
    import_keras()
    tf = import_whole_tensorflow()
    try:
        model = tf.saved_model.load(str(path))
    except Exception as error:  # TensorFlow raises any kind for a damaged folder
        raise ChoiceError(f"TensorFlow cannot load {path}: {one_line(error)}") from error
    signatures = dict(model.signatures)
    signature = signatures.get("serving_default") or next(iter(signatures.values()), None)
    if signature is not None:
        return _signed(path, model, signature, choice.layer)
    if not callable(model):
        raise ChoiceError(f"{path} has no signature and cannot be called; export it with one")
    # `model` must live as long as its function does.
    return Loaded(lambda images: model(images), (None, None))


def _signed(path: Path, model: Any, signature: Any, wanted: str | None) -> Loaded:
    """Returns the Loaded function of a signature, which keeps `model` alive."""
    inputs = signature.structured_input_signature[1]
    shapes = [spec.shape.as_list() if spec.shape.rank else [] for spec in inputs.values()]
    size = _image_size(shapes, path)
    (name, spec), *_ = inputs.items()
    outputs = signature.structured_outputs
    if len(outputs) > 1 and wanted not in outputs:
        raise ChoiceError(
            f"{path} has the outputs {', '.join(sorted(outputs))}; name one with `Choice.layer`"
        )
    if wanted is not None and wanted not in outputs:
        raise ChoiceError(f"{path} has no output {wanted!r}, only {', '.join(sorted(outputs))}")
    key = wanted or next(iter(outputs))
    kept = (model, signature)
    if spec.dtype.name not in ("float32", "uint8"):
        raise ChoiceError(f"{path} takes {spec.dtype.name}, not images of float32 or uint8")
    return Loaded(
        lambda images: kept[1](**{name: images})[key], size, shapes[0][0], spec.dtype.name
    )


def _check_saved_model(path: Path, allow_unsafe_ops: bool) -> None:
    """Refuses a SavedModel whose functions could do more than compute while it is loaded.

    Raises:
        ChoiceError: it has such functions, is damaged, or is not of TensorFlow 2.
    """
    try:
        unsafe = describe_unsafe(read_meta_graph(path))
    except GraphError as error:
        raise ChoiceError(f"{path} is a SavedModel that cannot be used: {error}") from error
    if unsafe and not allow_unsafe_ops:
        raise ChoiceError(
            f"{path} was not loaded, since it could do more than compute: it holds {unsafe}; if "
            f"you trust whoever made it, add `Choice.allow_unsafe_ops`"
        )
