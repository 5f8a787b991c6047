"""One walk over the parsers of both commands, for pages that list every flag."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from retraining.cli import flags, label_flags, retrain
from retraining.cli.parser import Parser, shows_default


@dataclass(frozen=True)
class Flag:
    """What a reference says of one flag, or of the words that are no flags.

    `names` has the flag first and its other spellings after it; it is empty for words.
    `value` stands for what follows the flag and is "" where nothing does; `choices` are all that it
    may be, or empty.
    `default` is "" where --help shows none.
    """

    names: tuple[str, ...]
    value: str
    help: str
    default: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """A titled group of flags, as --help shows it."""

    title: str
    flags: tuple[Flag, ...]


def parsers() -> dict[str, Parser]:
    """Returns {name of the installed command: its parser}."""
    return {
        "retrain": flags.build_parser(retrain.DESCRIPTION),
        "label-image": label_flags.build_parser(),
    }


def groups(parser: argparse.ArgumentParser) -> Iterator[Group]:
    """Yields the groups of a parser in the order of --help, without empty ones."""
    for group in parser._action_groups:
        shown = [each for each in group._group_actions if each.help != argparse.SUPPRESS]
        if shown:
            yield Group(group.title or "", tuple(_flag(parser, action) for action in shown))


def _flag(parser: argparse.ArgumentParser, action: argparse.Action) -> Flag:
    return Flag(
        names=tuple(action.option_strings),
        value=_value(action),
        help=(action.help or "") % {**vars(action), "prog": parser.prog},
        default=str(action.default) if shows_default(action) else "",
        choices=tuple(map(str, action.choices or ())),
    )


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())
