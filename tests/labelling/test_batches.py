"""Graphs from runs with a quantised network: a photo's answer is its own.

The steps of such a network depend on the range of the whole batch.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner
from retraining.labelling.classifier import load_classifier
from retraining.photos.reader import ImageReader
from tests import tiny

pytestmark = pytest.mark.numbers

MOBILENET = "mobilenet_0.25_128"


@pytest.fixture(scope="module", params=[MOBILENET, f"inception_v3+{MOBILENET}"])
def graph(request, tmp_path_factory, run_retrain, inception_file, photos):
    """The graph of a run with the quantised network, alone or beside another."""
    folder = tmp_path_factory.mktemp("eightbit")
    models = folder / "networks"
    shutil.copytree(Path(inception_file).parent, models / "inception_dec_2015")
    path = models / "mobilenet_v1_0.25_128" / "frozen_graph.pb"
    tiny.write_graph(str(path), tiny.tiny_mobilenet(eightbit=True))
    flags = ("--model_dir", models, "--architecture", request.param, "--precision", "float32")
    assert run_retrain(folder, photos, *flags) == 0
    return folder / "models" / "retrained_graph.pb"


def test_photos_together_have_the_answers_of_the_unchanged_graph(graph, photos):
    images = sorted(map(str, Path(photos).glob("*/photo_0[0-3].jpg")))
    classifier = load_classifier(graph, precision="float32")
    model = classifier.model
    together = np.stack([answer for _, answer, _ in classifier.predict(images)])
    unchanged = BytesRunner(read_graph(graph), model.output)
    readers = {each.input: ImageReader(each.preprocessing) for each in model.parts or (model,)}
    expected = np.concatenate(
        [
            unchanged.run_pixels({name: reader.read(image) for name, reader in readers.items()})
            for image in images
        ]
    )
    assert expected.max(axis=0).min() > 0.5  # the classes are told apart
    np.testing.assert_allclose(together, expected, atol=1e-5)
    (alone,) = (answer for _, answer, _ in classifier.predict(images[4:5], 1))
    np.testing.assert_allclose(alone, together[4], atol=1e-5)
