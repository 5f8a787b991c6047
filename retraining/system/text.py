"""Formats text to fit on one line: file names may hold tabs and newlines, and lists may be long."""

import re
from collections.abc import Iterable, Sequence

MARKS = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}


def escaped(text: str) -> str:
    """Returns the text with tabs and line ends written as \\t, \\n and \\r.

    If the text holds any of them, backslashes are doubled, so that `unescaped` can restore it.
    """
    if not any(mark in text for mark in "\t\n\r"):
        return text
    text = text.replace("\\", "\\\\")
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def unescaped(text: str) -> str:
    """Reverses `escaped`. Correct only for texts that `escaped` had to change."""
    return re.sub(r"\\[\\tnr]", lambda match: MARKS[match[0]], text)


def table(rows: Iterable[Iterable[str]]) -> str:
    """Returns one line per row; tabs separate the fields, each of which is `escaped`."""
    return "".join("\t".join(map(escaped, row)) + "\n" for row in rows)


def one_line(error: BaseException, most: int = 300) -> str:
    """Returns an error's text on one line, cut to `most` characters, or its type without one."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def counted(count: int, one: str, many: str | None = None) -> str:
    """Returns a count with its noun: `1 photo`, `2 photos`. `many` is an irregular plural."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def some(names: Sequence[str], most: int = 3) -> str:
    """Returns the first `most` names joined by commas, followed by `...` if there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
