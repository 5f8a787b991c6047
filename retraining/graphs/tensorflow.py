"""Imports TensorFlow on demand, silently, and no more of it than is needed.

`import tensorflow` takes seconds, mostly for eager mode, Keras, datasets and the tables of its
public names. Frozen graphs need only graph mode. `import_tensorflow` imports that in less than half
the time: it imports the package's inner modules and skips `tensorflow/__init__.py`.
"""

import contextlib
import functools
import importlib.util
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, TypeAlias

from retraining.errors import RetrainingError

# TensorFlow has no usable types. These aliases document which object is meant.
TensorFlow: TypeAlias = Any
Tensor: TypeAlias = Any
Session: TypeAlias = Any


class MissingTensorFlowError(RetrainingError, ModuleNotFoundError):
    """TensorFlow is needed and not installed, as after a light install for labelling."""


@functools.cache
def import_tensorflow() -> TensorFlow:
    """Returns a namespace of TensorFlow's graph mode, with the public names or similar ones."""
    # Errors in C++ code reach us as Python exceptions; the log beside them is noise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with muted_stderr():
        if sys.modules.get("tensorflow") is None:
            sys.modules["tensorflow"] = _unexecuted_package("tensorflow")
        from tensorflow.core.framework.graph_pb2 import GraphDef
        from tensorflow.core.framework.summary_pb2 import Summary
        from tensorflow.core.protobuf.config_pb2 import ConfigProto
        from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
        from tensorflow.core.util.event_pb2 import Event
        from tensorflow.python.client.session import Session
        from tensorflow.python.eager.context import context
        from tensorflow.python.framework import errors
        from tensorflow.python.framework.importer import import_graph_def
        from tensorflow.python.framework.ops import Graph
        from tensorflow.python.lib.io.tf_record import TFRecordWriter
    return SimpleNamespace(
        ConfigProto=ConfigProto,
        Event=Event,
        Graph=Graph,
        GraphDef=GraphDef,
        SavedModel=SavedModel,
        Session=Session,
        Summary=Summary,
        TFRecordWriter=TFRecordWriter,
        errors=errors,
        gradients=_gradients,
        gpus=lambda: context().list_physical_devices("GPU"),
        import_graph_def=import_graph_def,
    )


def import_whole_tensorflow() -> TensorFlow:
    """Returns the package `tensorflow` with eager mode and converters; takes seconds longer."""
    import_tensorflow()
    import tensorflow

    tensorflow.function  # noqa: B018 - the first access runs the package's __init__
    return tensorflow


def _gradients(*arguments: Any) -> Any:
    """Calls tf.gradients. Only training needs it, so its half second of imports happens here."""
    for name in ("array_grad", "math_grad", "nn_grad"):  # these register the gradients of ops
        importlib.import_module(f"tensorflow.python.ops.{name}")
    from tensorflow.python.ops.gradients_impl import gradients

    return gradients(*arguments)


def is_installed() -> bool:
    """Returns whether TensorFlow is installed, without importing it."""
    return importlib.util.find_spec("tensorflow") is not None


def _unexecuted_package(name: str) -> ModuleType:
    """Returns a package without running its `__init__.py`, so that single modules can be imported.

    The first access to a missing attribute runs `__init__.py`: code that imports TensorFlow after
    us finds all of it.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or (loader := spec.loader) is None:
        raise MissingTensorFlowError(
            "TensorFlow is not installed, and no checked LiteRT model of this network is at hand; "
            "install requirements.txt, or copy the folder that `OutputSettings.bundle` names"
        )
    package = importlib.util.module_from_spec(spec)

    def execute_and_get(attribute: str) -> Any:
        del package.__dict__["__getattr__"]
        with muted_stderr():
            loader.exec_module(package)
        return getattr(package, attribute)

    package.__dict__["__getattr__"] = execute_and_get
    return package


# How the lines begin that libjpeg writes to stderr about damaged files (jerror.h), whatever the
# log level.
LINE_OF_LIBJPEG = re.compile(
    rb"^(?:Application transferred|Arithmetic table 0x|Backing store not|Bogus |Buffer passed"
    rb"|CCIR601 |Cannot |Corrupt JPEG data|DCT |Didn't expect more|Empty |Fractional sampling"
    rb"|Huffman table 0x|IDCT |Image too wide|Improper call to JPEG|Inconsistent progression"
    rb"|Input file read|Insufficient memory|Invalid |JPEG datastream|Maximum supported image"
    rb"|Missing Huffman|Not a JPEG|Premature end of JPEG|Quantization table 0x|Sampling factors"
    rb"|Scan script|Sorry, |Suspension not|Unexpected |Unknown Adobe|Unsupported |Virtual array"
    rb"|Warning: unknown JFIF).*\n",
    re.MULTILINE,
)
# Held by the thread that mutes stderr: the process has one stderr, and each thread must put back
# the one that it found. Hold it to write there what another thread must not discard.
stderr_lock = threading.RLock()


@contextlib.contextmanager
def without_lines_of_libjpeg() -> Iterator[None]:
    """Drops what libjpeg writes to stderr in this context, one thread at a time.

    What others write there meanwhile appears at the end of the context.
    """
    with muted_stderr(lambda text: LINE_OF_LIBJPEG.sub(b"", text)):
        yield


@contextlib.contextmanager
def muted_stderr(kept: Callable[[bytes], bytes] = lambda text: b"") -> Iterator[None]:
    """Discards what C++ code writes to stderr, some of it regardless of the log level.

    Also discards what Python writes there meanwhile, unless it holds `stderr_lock`. In the end, it
    writes there what `kept` returns of all that. One thread at a time is in this context.
    """
    with stderr_lock:
        yield from _muted(kept)


def _muted(kept: Callable[[bytes], bytes]) -> Iterator[None]:
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # started without a stderr
        yield
        return
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            os.write(2, kept(caught.read()))
