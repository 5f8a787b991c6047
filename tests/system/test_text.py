"""text.py: texts of one line."""

import pytest

from retraining.system.text import counted


@pytest.mark.parametrize(
    ("count", "words", "expected"),
    [
        (0, ("photo",), "0 photos"),
        (1, ("photo",), "1 photo"),
        (2, ("photo",), "2 photos"),
        (1, ("class", "classes"), "1 class"),
        (3, ("class", "classes"), "3 classes"),
    ],
)
def test_what_is_counted_is_one_or_many(count, words, expected):
    assert counted(count, *words) == expected
