"""preprocessing.py: the record of how an image becomes pixels, and what is written of it."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from retraining.graphs.messages import GraphDef
from retraining.graphs.preprocessing import (
    Preprocessing,
    PreprocessingError,
    add_front_end,
    per_channel,
    resize_bilinear,
    spelled,
)

USUAL = Preprocessing((299, 200), 128.0, 64.0)
IMAGENET = Preprocessing((224, 224), (123.7, 116.0, 103.5), (58.4, 57.1, 57.4))
UNKNOWN = replace(IMAGENET, kernel="bicubic", orientation="none")


def test_a_usual_record_is_written_as_before_there_were_others():
    assert repr(USUAL.facts()) == "((299, 200), 128.0, 64.0)"
    assert json.dumps(USUAL.describe()) == '{"size": [299, 200], "mean": 128.0, "std": 64.0}'
    assert (spelled(USUAL.mean), spelled(127.5)) == ("128", "127.5")


def test_another_record_is_written_in_full():
    assert repr(UNKNOWN.facts()) == (
        "((224, 224), (123.7, 116.0, 103.5), (58.4, 57.1, 57.4), "
        "('kernel', 'bicubic'), ('orientation', 'none'))"
    )
    assert spelled(UNKNOWN.mean) == "(123.7, 116, 103.5)"


@pytest.mark.parametrize("record", [USUAL, IMAGENET, UNKNOWN])
def test_a_description_is_read_back(record):
    assert Preprocessing.of(json.loads(json.dumps(record.describe()))) == record


@pytest.mark.parametrize("value", [[1, 2], "x", None, [1, 2, "x"]])
def test_other_numbers_than_one_or_three_are_refused(value):
    with pytest.raises((TypeError, ValueError)):
        per_channel(value)


def test_the_front_end_is_byte_for_byte_what_it_always_was():
    graph_def = GraphDef()
    assert add_front_end(graph_def, Preprocessing((299, 299), 128.0, 128.0)) == "Mul"
    content = graph_def.SerializeToString(deterministic=True)
    assert hashlib.sha1(content).hexdigest() == "be3e867d51e2ad1cd368333c0bcc65c871ba7203"


def test_the_front_end_of_an_unknown_kernel_is_refused():
    graph_def = GraphDef()
    with pytest.raises(PreprocessingError, match="not by bicubic"):
        add_front_end(graph_def, replace(USUAL, kernel="bicubic"))


@pytest.mark.parametrize("old", [(1, 1), (7, 500), (333, 500), (240, 320), (1000, 3)])
@pytest.mark.parametrize("new", [(299, 299), (128, 130), (1, 1)])
def test_images_are_resized_to_the_bits_of_tensorflows_op(old, new):
    pixels = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    expected = tf.compat.v1.image.resize_bilinear(pixels[None].astype(np.float32), new)[0]
    found = resize_bilinear(pixels, new)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.numpy())
