"""methods.py: ways of training, and how they are compared."""

from dataclasses import replace

import numpy as np
import pytest

from retraining.training.fine_tune import (
    TuningOptions,
)
from retraining.training.methods import ALL, SCRATCH, TWO_RATES, options_of, tops


def test_methods_differ_in_their_rates_and_their_start():
    flags = TuningOptions(base_rate=1.0, head_rate=2.0, freeze_until="conv")
    assert options_of(TWO_RATES, flags) == flags
    assert options_of(ALL, flags) == replace(flags, head_rate=1.0)
    expected = replace(flags, scratch=True, freeze_until=None)
    assert options_of(SCRATCH, flags) == expected


def test_top_5_of_fewer_classes_is_always_right():
    scores = np.eye(3)[[0, 1, 1]]
    assert tops(scores, np.array([0, 1, 2])) == (pytest.approx(2 / 3), 1.0)
    many = np.arange(8.0)[None].repeat(2, axis=0)
    assert tops(many, np.array([3, 2])) == (0, 0.5)
