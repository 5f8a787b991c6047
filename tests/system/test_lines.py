"""lines.py: the one reader of lists, labels files and tables, and each command's use of it."""

import codecs
import io
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retraining.bottlenecks.stream import FLUSH
from retraining.cli import labelling
from retraining.labelling.labels import LabelsError, read_labels
from retraining.photos.exclude import read_listed
from retraining.photos.source import DatasetError
from retraining.photos.table import TableSource
from retraining.system import lines
from retraining.system.lines import LineError, TextError, line_batches, read_lines

# Any script, characters without ink, and spaces of all kinds.
NAMES = ["क्‍ष", "مرحبا", "שלום", "ไทย", "猫", "e\u0301", "a\u00a0b", "👨‍👩‍👧", " lead", "trail "]
ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "utf-16 little": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16 big": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}


class Slowly(io.BytesIO):
    """A stream that gives a few bytes at a time, as a pipe may."""

    def __init__(self, content, step):
        super().__init__(content)
        self._step = step

    def read1(self, size=-1):
        return super().read1(self._step)


def all_lines(content, step=1 << 16, **options):
    return [line for batch in line_batches(Slowly(content, step), **options) for line in batch]


# -- what a line is --------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("last", ["", "end", "three ends"])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1 << 16])
def test_lines_are_the_same_in_every_encoding_and_with_every_end(encoding, end, last, step):
    text = end.join([NAMES[0], "", *NAMES[1:]]) + end * {"": 0, "end": 1, "three ends": 3}[last]
    found = all_lines(ENCODINGS[encoding](text), step)
    blank = [""] * (2 if last == "three ends" else 0)
    assert found == [NAMES[0], "", *NAMES[1:], *blank]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"))))
def test_any_text_is_given_back(texts):
    content = "".join(f"{text}\n" for text in texts)
    for encode in (str.encode, ENCODINGS["utf-16 little"], ENCODINGS["utf-16 big"]):
        wanted = [text.removeprefix("\ufeff") if not n and encode is str.encode else text
                  for n, text in enumerate(texts)]  # fmt: skip
        assert all_lines(encode(content), 5) == wanted


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "a\rb"])
def test_only_lf_cr_and_both_end_a_line(mark):
    assert all_lines(f"a{mark}b\nc".encode()) == [f"a{mark}b", "c"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_empty_text_has_no_lines(encoding):
    assert all_lines(ENCODINGS[encoding](""), 1) == []


def test_bytes_that_are_no_utf_8_are_an_error_or_kept():
    with pytest.raises(LineError, match="is not text in UTF-8 or UTF-16") as error:
        all_lines(b"a\nb\xff\nc\n", 1)
    assert error.value.line == 2
    found = all_lines(b"a\nb\xff\n\xc3\x9f", errors="surrogateescape")
    assert found == ["a", "b\udcff", "ß"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a\nb\0\n", 2),
        (b"a\0", 1),
        ("a\n".encode("utf-16-le"), 1),  # no byte order mark tells what it is
        ("\ufeffa\n".encode("utf-32-le"), 1),
        ("\ufeffa\nb".encode("utf-16-le") + b"c", 2),  # half a character
        (codecs.BOM_UTF16_LE + b"a\0\n\0\0\xd8b\0", 2),  # half a pair of surrogates
        ("\ufeffa\n\0".encode("utf-16-be"), 2),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(content, line):
    for errors in ("strict", "surrogateescape"):
        with pytest.raises(LineError, match="is not text in UTF-8 or UTF-16") as error:
            all_lines(content, 1, errors=errors)
        assert error.value.line == line


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_huge_line_is_refused_with_its_number(encoding):
    longest = "x" * lines.LONGEST_LINE
    assert all_lines(ENCODINGS[encoding](f"a\n{longest}\nb")) == ["a", longest, "b"]
    for text in (f"a\n{longest}y\nb", f"a\n{longest}y", f"a\n{longest * 9}"):
        with pytest.raises(LineError, match="is longer than 65536 bytes") as error:
            all_lines(ENCODINGS[encoding](text))
        assert error.value.line == 2


def test_each_line_comes_as_soon_as_it_is_read():
    class Waiting(io.RawIOBase):
        taken = 0

        def read1(self, size):
            self.taken += 1
            return b"a\n"  # shorter than a byte order mark

    stream = Waiting()
    batches = line_batches(stream)
    assert [next(batches), next(batches)] == [["a"], ["a"]]
    assert stream.taken == 2


def test_the_end_is_asked_for_once():
    class Terminal(io.RawIOBase):
        ends = 0

        def read1(self, size):
            self.ends += 1
            return b""

    stream = Terminal()
    assert list(line_batches(stream)) == [[]]
    assert stream.ends == 1


# -- who reads with it -----------------------------------------------------------------------


def labels_of(path):
    return list(read_labels(path))


def listed_of(path):
    return read_listed(path)


def table_of(path):
    return sorted(row.label for row in TableSource(str(path)).rows)


def stdin_of(path):
    with open(path, "rb") as stream:
        return [each for each in labelling.paths_on(stream) if each is not FLUSH]


READERS = {
    "--labels": (labels_of, LabelsError, "the labels file"),
    "--exclude": (listed_of, DatasetError, "the list"),
    "--photo_table": (table_of, DatasetError, ""),
    "-": (stdin_of, labelling.ListError, "standard input"),
}


def as_text_for(reader, names, end):
    if reader == "--photo_table":
        rows = [f'{number}.jpg,"{name}"' for number, name in enumerate(names)]
        return end.join(["path,label", *rows])
    return end.join(names)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [0, 1, 3])
def test_every_reader_takes_every_text(tmp_path, reader, encoding, end, last):
    read, *_ = READERS[reader]
    names = [name for name in NAMES if name == name.strip(" ")]
    text = as_text_for(reader, names, end) + end * last
    (tmp_path / "text").write_bytes(ENCODINGS[encoding](text))
    wanted = sorted(names) if reader == "--photo_table" else names
    assert read(tmp_path / "text") == wanted


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_takes_what_is_no_text(tmp_path, reader):
    read, error, name = READERS[reader]
    (tmp_path / "text").write_bytes(b"\nab\0c\n")
    with pytest.raises(error, match=rf"^line 2 of {name}.* is not text in UTF-8") as caught:
        read(tmp_path / "text")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_keeps_a_huge_line(tmp_path, reader):
    read, error, _ = READERS[reader]
    (tmp_path / "text").write_bytes(b"x" * 300_000)
    with pytest.raises(error, match="65536 bytes"):
        read(tmp_path / "text")


def test_an_empty_labels_file_is_refused_and_an_empty_list_is_none(tmp_path):
    (tmp_path / "text").write_bytes(b"\r\n\n")
    with pytest.raises(LabelsError, match="is empty"):
        labels_of(tmp_path / "text")
    assert listed_of(tmp_path / "text") == stdin_of(tmp_path / "text") == []


def test_an_empty_line_between_labels_is_refused(tmp_path):
    (tmp_path / "text").write_bytes(b"a\n\nb \n\n")
    with pytest.raises(LabelsError, match=r"^line 2 of the labels file .* is empty; give that"):
        labels_of(tmp_path / "text")
    (tmp_path / "text").write_bytes(b" \nb \n\n")
    assert labels_of(tmp_path / "text") == [" ", "b "]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("end", [b"\x1a", b"\r\n\x1a", b"\r\n\r\n\x1a"])
def test_the_mark_with_which_dos_ends_a_text_is_no_part_of_it(tmp_path, reader, end):
    read, *_ = READERS[reader]
    text = as_text_for(reader, ["a", "b"], "\r\n").encode()
    (tmp_path / "text").write_bytes(text + end)
    assert read(tmp_path / "text") == ["a", "b"]
    if reader != "--labels":
        (tmp_path / "text").write_bytes(
            b"path,label\n1,a\x1a\n" if "table" in reader else b"a\x1a\n"
        )
        assert read(tmp_path / "text") == ["a\x1a"]


# -- what never ends -------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name != "posix", reason="needs pipes and devices")
FILES = [reader for reader in READERS if reader != "-"]


@posix
@pytest.mark.parametrize("reader", FILES)
def test_a_folder_is_refused(tmp_path, reader):
    read, error, name = READERS[reader]
    with pytest.raises(error, match=rf"^cannot read {name}.*: Is a directory"):
        read(tmp_path)


@posix
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
def test_an_endless_device_is_refused(reader, device):
    if (reader, device) == ("-", "/dev/urandom"):
        pytest.skip("its start may be a path")
    read, error, _ = READERS[reader]
    with pytest.raises(error, match="is not text in UTF-8"):
        read(device)


@posix
@pytest.mark.parametrize("reader", FILES)
def test_a_pipe_without_a_writer_is_refused(tmp_path, monkeypatch, reader):
    monkeypatch.setattr(lines, "PIPE_SECONDS", 0.1)
    read, error, _ = READERS[reader]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error, match=r"nothing was written to this pipe within 0\.1 s"):
        read(tmp_path / "pipe")


@posix
@pytest.mark.parametrize("reader", FILES)
def test_a_pipe_is_read_to_its_end(tmp_path, reader):
    read, *_ = READERS[reader]
    os.mkfifo(tmp_path / "pipe")
    content = as_text_for(reader, ["a", "b"], "\n").encode()

    def write():
        time.sleep(0.2)  # a writer may come later than the reader, and write in pieces
        with open(tmp_path / "pipe", "wb", buffering=0) as pipe:
            for start in range(0, len(content), 3):
                pipe.write(content[start : start + 3])
                time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert read(tmp_path / "pipe") == ["a", "b"]
    finally:
        writer.join()


@posix
def test_an_anonymous_pipe_may_be_empty():
    reading, writing = os.pipe()
    os.close(writing)
    try:
        assert read_lines(f"/dev/fd/{reading}", "it") == []
    finally:
        os.close(reading)


class Endless(io.RawIOBase):
    """Gives one piece of text again and again."""

    def __init__(self, piece):
        self.piece, self.taken = piece, 0

    def read1(self, size):
        self.taken += len(self.piece)
        return self.piece


def test_bytes_and_lines_have_limits(monkeypatch, tmp_path):
    stream = Endless(b"abc\n" * 1000)
    with pytest.raises(LineError, match="lies beyond the limits of 1 MiB and 6,000,000 lines"):
        for _ in line_batches(stream, 1 << 20):
            pass
    assert stream.taken < 1.01 * (1 << 20)
    monkeypatch.setattr(lines, "MOST_LINES", 9)
    (tmp_path / "text").write_text("a\n" * 10)
    with pytest.raises(TextError, match=r"^line 11 of it lies beyond the limits of .* 9 lines"):
        read_lines(tmp_path / "text", "it")
    (tmp_path / "text").write_text("a\n" * 9)
    assert read_lines(tmp_path / "text", "it") == ["a"] * 9


@pytest.mark.parametrize(("piece", "null"), [(b"\n" * 500, False), (b"\0" * 500, True)])
def test_endless_empty_lines_are_no_list_of_paths(piece, null):
    stream = Endless(piece)
    with pytest.raises(labelling.ListError, match="has no path within 65536 bytes"):
        list(labelling.paths_on(stream, null))
    assert stream.taken < 70_000


def test_what_ends_in_nul_is_taken_to_the_byte():
    content = b"\xef\xbb\xbfa\r\0 b\n\0\0\xff\0c"
    found = [each for each in labelling.paths_on(Slowly(content, 2), True) if each is not FLUSH]
    assert found == ["\ufeffa\r", " b\n", "\udcff", "c"]
