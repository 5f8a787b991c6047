"""text.py: texts of one line."""

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retraining.system import text
from retraining.system.text import as_path, as_text, counted, escaped, message_line, unescaped


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


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("plain \\ name.jpg", "plain \\ name.jpg"),
        ("C:\\photos\\a.jpg", "C:\\photos\\a.jpg"),
        ("a\tb", "a\\tb"),
        ("a\\tb", "a\\\\tb"),
        ("C:\\temp\\a.jpg", "C:\\\\temp\\\\a.jpg"),
        ("a\n\\b\r", "a\\n\\\\b\\r"),
        ("\\\\server", "\\\\\\\\server"),
        ("a\ud800", "a\\ud800"),
        ("a\\ud800", "a\\\\ud800"),
        ("a\\u0041", "a\\u0041"),
        ("a\udcff\u2028\x85", "a\udcff\\u2028\\u0085"),
        ("\x1b]0;title\a", "\\u001b]0;title\\u0007"),
        ("a\u202egpj.exe", "a\\u202egpj.exe"),
        ("\\u202e", "\\\\u202e"),
        (
            "\u0915\u094d\u200d\u0937 \u05d0\u200f\u00a0\u2060",
            "\u0915\u094d\u200d\u0937 \u05d0\u200f\u00a0\u2060",
        ),
    ],
)
def test_a_field_of_a_table(name, field):
    assert escaped(name) == field
    assert unescaped(field) == name


def test_no_two_names_give_the_same_field():
    marks = ["\\", "\t", "\n", "\r", "t", "n", "ud800", "\ud800", "é", "\x1b", "u001b"]
    names = {"".join(parts) for size in range(5) for parts in itertools.product(marks, repeat=size)}
    fields = {name: escaped(name) for name in names}
    assert len(set(fields.values())) == len(names) > 5000
    assert not any(mark in field for field in fields.values() for mark in "\t\n\r\ud800")
    assert all(unescaped(field) == name for name, field in fields.items())


@given(st.text(st.characters() | st.sampled_from("\\\t\n\r\ud800\udcfftnrud8\x1b01b\u202e2e")))
def test_every_field_is_given_back(name):
    assert unescaped(escaped(name)) == name


def test_the_names_of_a_table_are_its_bytes():
    assert text.table([["a\udcff", "b\tc"], ["é", ""]]) == b"a\xff\tb\\tc\n\xc3\xa9\t\n"


def test_a_message_has_its_backslashes_unless_it_has_line_ends():
    assert message_line("no file 'a\\tb'") == "no file 'a\\tb'"
    assert message_line("a\nb\\c") == "a\\nb\\\\c"


def test_a_name_is_its_bytes_in_utf_8_in_every_locale(monkeypatch):
    assert as_text("stra\udcc3\udc9fe\udcff") == "straße\udcff"
    assert (as_text("straße"), as_text("\ud800")) == ("straße", "\ud800")
    assert as_path("straße\udcff") == "straße\udcff"
    monkeypatch.setattr(text.sys, "getfilesystemencoding", lambda: "ascii")
    monkeypatch.setattr(os, "fsdecode", lambda name: name.decode("ascii", "surrogateescape"))
    assert as_path("straße\udcff") == "stra\udcc3\udc9fe\udcff"
    with pytest.raises(UnicodeEncodeError):
        as_path("\ud800")
