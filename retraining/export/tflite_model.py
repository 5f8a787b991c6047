"""TensorFlow Lite files of `to_tflite` that TensorFlow's own interpreter has loaded."""

import json
import os
import zipfile

import numpy as np
from numpy.typing import NDArray

from retraining.export.pixels_graph import Feeds
from retraining.export.tflite_int8 import raw_pixels
from retraining.graphs.description import DESCRIPTION_FILE, OUTPUT
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.tensorflow import import_whole_tensorflow


class TFLiteModel:
    """A file with float inputs and outputs; it runs one photo at a time."""

    def __init__(self, path: str, threads: int | None = None) -> None:
        tf = import_whole_tensorflow()
        interpreter = tf.lite.Interpreter(path, num_threads=threads or os.cpu_count())
        self._run = interpreter.get_signature_runner()

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        """Returns float32 [n, k] for {name of an input: images}."""
        count = len(next(iter(feeds.values())))
        rows = ({name: p[n : n + 1] for name, p in feeds.items()} for n in range(count))
        return np.concatenate([self._run(**row)[OUTPUT] for row in rows])


class Int8Model(TFLiteModel):
    """A file that computes with integers alone."""

    def __init__(self, path: str, threads: int | None = None) -> None:
        super().__init__(path, threads)
        self._scale, self._zero = self._run.get_output_details()[OUTPUT]["quantization"]
        with zipfile.ZipFile(path) as archive:
            inputs = json.loads(archive.read(DESCRIPTION_FILE))["inputs"]
        self._preprocessing = {feed: Preprocessing.of(how) for feed, how in inputs.items()}

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        """Returns float32 [n, k] for {name of an input: float32 [n, height, width, 3]}.

        The images are preprocessed, as for the other formats; this makes raw pixels of them.
        """
        floats = {name: np.asarray(p, np.float32) for name, p in feeds.items()}
        raw = {name: raw_pixels(p, self._preprocessing[name]) for name, p in floats.items()}
        steps = super().run(raw)
        answers: NDArray[np.float32] = (steps.astype(np.float32) - self._zero) * self._scale
        return answers
