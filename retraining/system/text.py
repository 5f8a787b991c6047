"""Text of one line: names of files may hold tabs and line ends, and be too many."""

import re

MARKS = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}


def escaped(text):
    """The text on one line without tabs: they and line ends become \\t, \\n, \\r.

    Where one occurs, a backslash is doubled, so that the text can be had back.
    """
    if not any(mark in text for mark in "\t\n\r"):
        return text
    text = text.replace("\\", "\\\\")
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def unescaped(text):
    """What `escaped` was given, if it had something to escape."""
    return re.sub(r"\\[\\tnr]", lambda match: MARKS[match[0]], text)


def table(rows):
    """Rows of texts as lines of fields between tabs, each `escaped`."""
    return "".join("\t".join(map(escaped, row)) + "\n" for row in rows)


def one_line(error, most=300):
    """The text of any library's error on one line, shortened; its kind if it has no text."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def counted(count, one, many=None):
    """The number and what is counted: `1 photo`, `2 photos`; `many` where an s is not enough."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def some(names, most=3):
    """The first of the names, and `...` where there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
