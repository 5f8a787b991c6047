"""Reads the lines of texts that users hand in: lists of paths, labels files, tables.

Text is UTF-8 or, with a byte order mark, UTF-16. A line ends in LF or CRLF; or in CR, if the text
has no LF. The end-of-file mark of DOS (0x1a) at the end of a text is no part of it.
"""

import codecs
import os
import select
from collections.abc import Iterator
from io import BufferedIOBase
from itertools import chain
from pathlib import Path
from typing import Any

from retraining.errors import RetrainingError

CHUNK = 1 << 16  # bytes
LONGEST_LINE = 1 << 16  # bytes; paths take 4 to 32 kB
MOST_LINES = 6_000_000  # of a text that is read whole
MOST_BYTES = 1 << 30  # likewise
PIPE_SECONDS = 5.0  # until somebody must have written to a named pipe
NO_TEXT = "is not text in UTF-8 or UTF-16; save it in one of them"
LF, CR = b"\n", b"\r"
DOS_END = b"\x1a"
# What a byte order mark may begin with, so that more must be read to tell.
STARTS_OF_MARKS = (b"", *(codecs.BOM_UTF8[:n] for n in (1, 2)), b"\xff", b"\xfe")


class TextError(RetrainingError):
    """A text that a user hands in cannot be read. The message names the text, and the line."""


class LineError(Exception):
    """A line is wrong. The message says how and follows the number of the line, `line`."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class LongLineError(LineError):
    """A line is longer than LONGEST_LINE."""

    def __init__(self, line: int) -> None:
        super().__init__(line, f"is longer than {LONGEST_LINE} bytes")


def read_lines(
    path: str | os.PathLike[str], name: str, most: int = MOST_BYTES, errors: str = "strict"
) -> list[str]:
    """Returns the lines of a file or pipe, as `line_batches` yields them; `name` is for messages.

    Raises:
        TextError: it cannot be read, is no text, or has more than `most` bytes or MOST_LINES lines.
    """
    try:
        with opened(path) as stream:
            return list(chain.from_iterable(line_batches(stream, most, errors)))
    except LineError as error:
        raise TextError(f"line {error.line} of {name} {error}") from error
    except OSError as error:
        raise TextError(f"cannot read {name}: {error.strerror or error}") from error


def opened(path: str | os.PathLike[str]) -> Any:
    """Opens a file or pipe for `line_batches`; returns a binary stream, to close after use.

    Raises:
        OSError: it cannot be opened, or is a named pipe to which nobody writes.
    """
    real = os.path.realpath(path)  # `<(command)` leads to no path on Linux, below /dev elsewhere
    if real.startswith("/dev/") or not Path(real).is_fifo():
        return open(path, "rb")
    # Without O_NONBLOCK, the call would wait for a writer.
    stream = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115
    if not select.select([stream], [], [], PIPE_SECONDS)[0]:
        stream.close()
        raise TimeoutError(f"nothing was written to this pipe within {PIPE_SECONDS:g} s")
    os.set_blocking(stream.fileno(), True)
    return stream


def line_batches(
    stream: BufferedIOBase,
    most: int | None = None,
    errors: str = "strict",
    keep_ends: bool = False,
) -> Iterator[list[str]]:
    """Yields the lines that each read of a binary stream completes, without their ends.

    The last line needs no end. `errors` is the codec error handler for what is no UTF-8. `most`
    limits the bytes, and then MOST_LINES the lines. With `keep_ends`, a line keeps its LF or CRLF.

    Raises:
        LineError: a line is no text or longer than LONGEST_LINE, or lies beyond the limits.
        OSError: the stream cannot be read.
    """
    splitter = _Splitter(errors, keep_ends)
    read = 0
    try:
        for chunk in _utf8_chunks(stream):
            yield splitter.lines(chunk)
            read += len(chunk)
            if most is not None and (read > most or splitter.count > MOST_LINES):
                limits = f"{most >> 20} MiB and {MOST_LINES:,} lines"
                raise LineError(splitter.count + 1, f"lies beyond the limits of {limits}")
    except UnicodeDecodeError as error:  # of UTF-16
        raise LineError(splitter.count + 1, NO_TEXT) from error


def nul_batches(stream: BufferedIOBase) -> Iterator[list[str]]:
    """Yields the texts, each up to a NUL, that each read completes: bytes as they are, no marks.

    A byte that is no UTF-8 becomes a lone surrogate (PEP 383).

    Raises:
        LineError: a text is longer than LONGEST_LINE.
        OSError: the stream cannot be read.
    """
    rest, count = b"", 0
    while chunk := stream.read1(CHUNK):
        *texts, rest = (rest + chunk).split(b"\0")
        yield [text.decode("utf-8", "surrogateescape") for text in texts]
        count += len(texts)
        if len(rest) > LONGEST_LINE:
            raise LongLineError(count + 1)
    yield [rest.decode("utf-8", "surrogateescape")]


class _Splitter:
    """Cuts chunks of UTF-8 into lines; `count` is the number of lines so far."""

    def __init__(self, errors: str, keep_ends: bool) -> None:
        self.count, self._keep_ends = 0, keep_ends
        self._errors, self._rest, self._end = errors, b"", b""

    def lines(self, chunk: bytes) -> list[str]:
        """Returns the lines that a chunk completes; an empty chunk ends the text."""
        data = self._rest + chunk
        if not self._end and LF in data:
            self._end = LF
        elif not self._end and CR in data and (not chunk or len(data) > LONGEST_LINE):
            self._end = CR
        *lines, self._rest = (data.replace(CR, LF) if self._end == CR else data).split(LF)
        if not chunk and (last := self._rest.removesuffix(DOS_END)):
            lines.append(last)
        texts = [self._decoded(line) for line in lines]
        if b"\0" in self._rest:
            raise LineError(self.count + 1, NO_TEXT)
        if len(self._rest) > LONGEST_LINE:
            raise LongLineError(self.count + 1)
        return texts

    def _decoded(self, line: bytes) -> str:
        self.count += 1
        if len(line) > LONGEST_LINE:
            raise LongLineError(self.count)
        try:
            text = line.decode("utf-8", self._errors)
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise LineError(self.count, NO_TEXT)
        return text + "\n" if self._keep_ends else text.rstrip("\r")


def _utf8_chunks(stream: BufferedIOBase) -> Iterator[bytes]:
    """Yields the content of a stream as UTF-8 without a byte order mark, then an empty chunk.

    Raises:
        UnicodeDecodeError: it begins as UTF-16 and is no such text.
    """
    start = b""
    while start in STARTS_OF_MARKS and (chunk := stream.read1(CHUNK)):
        start += chunk
    more = iter(lambda: stream.read1(CHUNK), b"") if chunk else ()  # a terminal may end twice
    chunks = chain([start.removeprefix(codecs.BOM_UTF8)], more)
    if not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield from filter(None, chunks)
    else:
        decoder = codecs.getincrementaldecoder("utf-16")()
        yield from filter(None, (decoder.decode(chunk).encode() for chunk in chunks))
        decoder.decode(b"", final=True)
    yield b""
