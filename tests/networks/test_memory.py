"""benchmarks/network_memory.py: what large networks take of memory."""

import sys

import pytest

from benchmarks.network_memory import STEPS, measure


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("name", ["keras:ConvNeXtLarge", "keras:ConvNeXtXLarge"])
def test_memory_is_within_five_times_the_weights_and_a_bit(name, tmp_path):
    for step in STEPS:
        peak, bound = measure(step, name, tmp_path)
        assert peak < bound, step
