"""Says in one line that a Python is too old; itself it parses on all of Python 3."""

import sys


def refuse_old_python(version=sys.version_info[:3]):
    """Ends the program with exit code 1 on a Python before 3.11."""
    if version < (3, 11):
        found = ".".join(map(str, version))
        sys.exit(
            "this needs Python 3.11, 3.12 or 3.13, and this is " + found + "; "
            "get one with: uv venv --python 3.13"
        )
