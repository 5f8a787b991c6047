"""reference.py: the walk over the parsers, against --help."""

import argparse
import re

import pytest

from retraining.cli.reference import Flag, Group, groups, parsers

BOTH = sorted(parsers())


@pytest.mark.parametrize("command", BOTH)
def test_it_lists_the_flags_of_help_in_the_same_order(command):
    parser = parsers()[command]
    listed = [name for group in groups(parser) for flag in group.flags for name in flag.names]
    names = re.findall(r"^  (-.*?)(?:  |$)", parser.format_help(), flags=re.M)
    assert listed == re.findall(r"(?<![\w-])--?\w+", " ".join(names))


def test_a_flag_has_its_spellings_value_help_and_default():
    parser = argparse.ArgumentParser(prog="try", add_help=False)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="what to read")
    add = parser.add_argument_group("numbers").add_argument
    add("--share", "--part", type=float, default=0.5, help="95%% of %(prog)s")
    add("--way", choices=("near", "far"), help="which")
    add("--quick", action="store_true", help="hurry")
    add("--secret", help=argparse.SUPPRESS)
    assert list(groups(parser)) == [
        Group("positional arguments", (Flag((), "IMAGE", "what to read", ""),)),
        Group(
            "numbers",
            (
                Flag(("--share", "--part"), "SHARE", "95% of try", "0.5"),
                Flag(("--way",), "near|far", "which", "", ("near", "far")),
                Flag(("--quick",), "", "hurry", ""),
            ),
        ),
    ]


@pytest.mark.parametrize("command", BOTH)
def test_helps_and_defaults_are_those_that_help_shows(command):
    parser = parsers()[command]
    shown = [parser._get_formatter()._expand_help(action) for action in parser._actions]
    listed = [flag for group in groups(parser) for flag in group.flags]
    ends = [f" (default: {flag.default})" if flag.default else "" for flag in listed]
    assert sorted(map(str.__add__, [flag.help for flag in listed], ends)) == sorted(shown)
    assert len([end for end in ends if end]) > 2
