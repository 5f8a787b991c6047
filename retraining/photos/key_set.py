"""A compact set of photos, known by the start of their keys."""

import base64
import binascii
from collections.abc import Iterable

BYTES = 8  # of each SHA-1; among 200,000 photos, another one matches by chance once in 10^14
MOST_KEYS = 200_000  # 2.1 MB of text


def pack_keys(keys: Iterable[str]) -> str | None:
    """Returns the first BYTES bytes of each key (SHA-1, hex), sorted, as base64.

    Returns None for more than MOST_KEYS different keys.
    """
    starts = sorted({bytes.fromhex(key)[:BYTES] for key in keys})
    if len(starts) > MOST_KEYS:
        return None
    return base64.b64encode(b"".join(starts)).decode("ascii")


class KeySet:
    """The photos that `pack_keys` packed."""

    def __init__(self, packed: str) -> None:
        """Unpacks a set.

        Raises:
            ValueError: `packed` is not what `pack_keys` returns.
        """
        try:
            content = base64.b64decode(packed, validate=True)
        except binascii.Error as error:
            raise ValueError(str(error)) from error
        if len(content) % BYTES:
            raise ValueError("a key is incomplete")
        starts = range(0, len(content), BYTES)
        self._known = frozenset(content[start : start + BYTES] for start in starts)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key)[:BYTES] in self._known
