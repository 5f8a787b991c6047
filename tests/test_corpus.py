"""The seeds and the finds of tests/guided_fuzz.py are read, or refused in words."""

import pytest

from tests.guided_fuzz import CORPUS, TARGETS

FILES = sorted(path for path in CORPUS.glob("*/*") if path.parent.name in TARGETS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_it_is_read_or_refused_in_words(path):
    TARGETS[path.parent.name](path.read_bytes())


def test_each_target_has_seeds():
    assert {path.parent.name for path in FILES} == set(TARGETS)
