"""Tells users in one line that their Python is too old. Any Python 3 can parse this module."""

import sys


# The types are quoted because an old Python fails to evaluate them.
def refuse_old_python(version: "tuple[int, int, int]" = sys.version_info[:3]) -> None:
    """Exits with code 1 if Python is older than 3.11."""
    if version < (3, 11):
        found = ".".join(map(str, version))
        sys.exit(
            "this needs Python 3.11, 3.12 or 3.13, and this is " + found + "; "
            "get one with: uv venv --python 3.13"
        )
