"""Formats text to fit on one line: file names may hold tabs and newlines, and lists may be long."""

import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence

ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
# What cannot stand in a field: separators; control characters and what turns the direction of text
# (UAX 9), with which a name can rewrite a terminal; surrogates that no byte of a file's name gives.
UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]")
ESCAPED = re.compile(r"\\(?:([\\tnr])|u(00[0189][0-9a-f]|007f|20[26][0-9a-f]|d[89a-f][0-9a-f]{2}))")
# Categories of Unicode: control characters, line and paragraph separators, lone surrogates.
NO_TEXT = frozenset({"Cc", "Zl", "Zp", "Cs"})


def escaped(text: str) -> str:
    """Returns the text as a field of a line, such as one of tab-separated ones.

    Tabs and line ends are written as \\t, \\n and \\r, others of UNFIT as \\u001b (but not the
    surrogates of undecodable bytes, PEP 383), and backslashes are doubled. A text that holds
    none of these, and nothing that looks like an escape, stays as it is. So no two texts give the
    same field, and `unescaped` restores each, as text (`as_text`).
    """
    text = as_text(text)
    if not UNFIT.search(text) and not ESCAPED.search(text):
        return text
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return UNFIT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def unescaped(field: str) -> str:
    """Reverses `escaped`."""
    marks = {escape[1]: character for character, escape in ESCAPES.items()}
    return ESCAPED.sub(lambda it: marks[it[1]] if it[1] else chr(int(it[2], 16)), field)


def message_line(text: str) -> str:
    """Returns a message for people on one line: only one with tabs or line ends is `escaped`."""
    text = as_text(text)
    return escaped(text) if UNFIT.search(text) else text


def is_label(text: str) -> bool:
    """Returns whether a text can be the name of a class: any script, on one line.

    Joiners, no-break spaces and other characters without ink may be in it. Control characters,
    line separators and lone surrogates may not.
    """
    return text.isprintable() or NO_TEXT.isdisjoint(map(unicodedata.category, text))


def as_text(name: str) -> str:
    """Returns a file's name as text: bytes that Python could not decode are read as UTF-8.

    Such are all but those of ASCII where the locale is `LC_ALL=C PYTHONUTF8=0`.
    """
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return name


def as_path(text: str) -> str:
    """Reverses `as_text`: returns the name of the file whose bytes are this text in UTF-8.

    They are the same but where the locale is none of UTF-8.

    Raises:
        UnicodeEncodeError: no file can have such a name.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return text
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def table(rows: Iterable[Iterable[str]]) -> bytes:
    """Returns a file's content: one line per row; tabs separate the fields, each `escaped`.

    It is UTF-8, with undecodable bytes of file names as they are.
    """
    text = "".join("\t".join(map(escaped, row)) + "\n" for row in rows)
    return text.encode("utf-8", "surrogateescape")


def one_line(error: BaseException, most: int = 300) -> str:
    """Returns an error's text on one line, cut to `most` characters, or its type without one."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def counted(count: int, one: str, many: str | None = None) -> str:
    """Returns a count with its noun: `1 photo`, `2 photos`. `many` is an irregular plural."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def some(names: Sequence[str], most: int = 3) -> str:
    """Returns the first `most` names joined by commas, followed by `...` if there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
