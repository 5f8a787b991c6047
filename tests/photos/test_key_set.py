"""key_set.py: photos known by the start of their keys."""

import hashlib

import pytest

from retraining.photos import key_set
from retraining.photos.key_set import KeySet, pack_keys

KEYS = [hashlib.sha1(bytes([n])).hexdigest() for n in range(50)]


def test_a_set_knows_its_own_keys_and_no_others():
    packed = pack_keys([*KEYS[:40], KEYS[0]])
    known = KeySet(packed)
    assert len(known) == 40
    assert [key in known for key in KEYS] == [True] * 40 + [False] * 10
    assert len(packed) == 428  # 40 times 8 bytes, as base64


def test_the_order_of_the_keys_does_not_matter():
    assert pack_keys(KEYS) == pack_keys(KEYS[::-1])
    assert len(KeySet(pack_keys([]))) == 0


def test_too_many_keys_are_none(monkeypatch):
    monkeypatch.setattr(key_set, "MOST_KEYS", 49)
    assert pack_keys(KEYS) is None
    assert pack_keys(KEYS[:49]) is not None


@pytest.mark.parametrize("packed", ["AAAA", "no base64!", "AAAAAAAAAAA"])
def test_a_damaged_set_is_an_error(packed):
    with pytest.raises(ValueError):  # noqa: PT011 (the words are base64's)
        KeySet(packed)
