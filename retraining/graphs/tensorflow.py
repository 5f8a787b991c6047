"""TensorFlow, imported only when asked for, without its chatter, and no more of it than is used.

`import tensorflow` takes seconds, most of them for eager mode, Keras, datasets and the tables of
its public names. Frozen graphs need its graph mode only, which `import_tensorflow` gives in less
than half the time: it enters the package by its inner modules, past `tensorflow/__init__.py`.
"""

import contextlib
import functools
import importlib.util
import os
import sys
import tempfile
from types import SimpleNamespace


@functools.cache
def import_tensorflow():
    """TensorFlow's graph mode: what is listed at the end, under its usual names."""
    # Errors of its C++ code reach us as Python exceptions; what it logs beside is noise here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules:
        sys.modules["tensorflow"] = _unexecuted_package("tensorflow")
    with muted_stderr():
        from tensorflow.core.framework.graph_pb2 import GraphDef
        from tensorflow.core.framework.summary_pb2 import Summary
        from tensorflow.core.protobuf.config_pb2 import ConfigProto
        from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
        from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
        from tensorflow.python.client.session import Session
        from tensorflow.python.eager.context import context
        from tensorflow.python.framework import dtypes, errors, op_def_registry
        from tensorflow.python.framework.importer import import_graph_def
        from tensorflow.python.framework.ops import Graph
        from tensorflow.python.framework.tensor_util import MakeNdarray, make_tensor_proto
        from tensorflow.python.summary.writer.writer import FileWriter
    return SimpleNamespace(
        ConfigProto=ConfigProto,
        FileWriter=FileWriter,
        Graph=Graph,
        GraphDef=GraphDef,
        MetaGraphDef=MetaGraphDef,
        SavedModel=SavedModel,
        Session=Session,
        Summary=Summary,
        dtypes=dtypes,
        errors=errors,
        gradients=_gradients,
        gpus=lambda: context().list_physical_devices("GPU"),
        import_graph_def=import_graph_def,
        make_ndarray=MakeNdarray,
        make_tensor_proto=make_tensor_proto,
        op_definition=op_def_registry.get,
    )


def import_whole_tensorflow():
    """The package `tensorflow` itself, with eager mode and converters; takes seconds more."""
    import_tensorflow()
    import tensorflow

    tensorflow.function  # noqa: B018 - the first use runs the package's __init__
    return tensorflow


def _gradients(*arguments):
    """As tf.gradients; half a second of imports, for those who train a network."""
    for name in ("array_grad", "math_grad", "nn_grad"):  # which say what the ops' gradients are
        importlib.import_module(f"tensorflow.python.ops.{name}")
    from tensorflow.python.ops.gradients_impl import gradients

    return gradients(*arguments)


def _unexecuted_package(name):
    """A package whose `__init__.py` has not been run, so that its modules can be imported alone.

    It is run when an attribute is first asked for that no module has set: whoever imports
    TensorFlow after us finds all of it.
    """
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}")
    package = importlib.util.module_from_spec(spec)

    def execute_and_get(attribute):
        del package.__getattr__
        with muted_stderr():
            spec.loader.exec_module(package)
        return getattr(package, attribute)

    package.__getattr__ = execute_and_get
    return package


@contextlib.contextmanager
def muted_stderr():
    """Catches what C++ code writes to stderr, some of it whatever its log level is.

    What Python writes there meanwhile is lost, too.
    """
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
