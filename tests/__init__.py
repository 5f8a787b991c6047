"""The tests, in the rooms of what they test."""

from pathlib import Path

import pytest

from retraining.graphs.precision import onednn_is_capped

ROOT = Path(__file__).resolve().parent.parent

needs_bfloat16 = pytest.mark.skipif(onednn_is_capped(), reason="oneDNN is kept from bfloat16")
