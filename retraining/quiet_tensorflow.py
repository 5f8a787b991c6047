"""Imports TensorFlow, which takes seconds, only when asked for, and without its chatter."""

import contextlib
import os
import sys
import tempfile


def import_tensorflow():
    """The tensorflow module. Its C++ start-up lines are kept off stderr; an ImportError is not."""
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    # Errors of its C++ code reach us as Python exceptions; what it logs beside is noise here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _file_descriptor_2_muted():
        import tensorflow
    return tensorflow


@contextlib.contextmanager
def _file_descriptor_2_muted():
    """Catches what C++ code writes to stderr before its log levels are in force."""
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
