"""The argument parser of both commands, and the types of flags."""

import argparse
import difflib
import math
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

from retraining.cli.console import USAGE, fitted
from retraining.cli.start import VERSION
from retraining.system.text import message_line

VERBOSITIES = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL")
ALLOW_UNSAFE_OPS = (  # the help of that flag
    "run the graph even if it holds ops that can do more than compute, such as read and write "
    "files, and name them"
)
LABEL_FROM = (  # the help of that flag
    "where the label of a photo is. folder: the name of its class folder; name: its own name, up "
    "to the number at the end (golden_retriever_012.jpg, cat.12.jpg), for photos in one folder"
)
LARGEST_BATCH = 100_000  # vectors

Number = TypeVar("Number", int, float)


def add_weights(add: Callable[..., argparse.Action]) -> None:
    """Adds --weights, which both commands have; `add` is the add_argument of a group."""
    add(
        "--weights",
        metavar="FILE|imagenet|random",
        help="weights of a Keras network: a .weights.h5, .keras or .h5 file, those of ImageNet "
        "from the cache or download of Keras (the default), or random ones, for tests; for "
        "vgg16, its vgg16.npy",
    )


class Parser(argparse.ArgumentParser):
    """An argument parser that refuses bad flags with one line and exit code 2."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **settings)
        self.add_argument(
            "-V", "--version", action="version", version=VERSION, help="show the version and exit"
        )

    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Does as argparse, but first names a mistyped flag and the most similar flag.

        Expands `~` at the start of the values of flags, since a shell does so in `--flag ~/x`, but
        not in `--flag=~/x`.
        """
        known = self._option_string_actions
        for word in sys.argv[1:] if args is None else args:
            flag = word.split("=")[0]
            if word == "--":
                break
            if flag.startswith("--") and flag not in known:
                like = difflib.get_close_matches(flag, known, n=1, cutoff=0.75)
                self.error(f"unknown flag {flag}" + (f"; did you mean {like[0]}?" if like else ""))
        options, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(options, action.dest, None)
            if action.option_strings and isinstance(value, str):
                setattr(options, action.dest, expand_home(value))
        return options, rest

    def error(self, message: str) -> NoReturn:
        line = f"{self.prog}: {message_line(message)} (see {self.prog} --help)"
        self.exit(USAGE, fitted(line) + "\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to the help of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if shows_default(action) else action.help


def shows_default(action: argparse.Action) -> bool:
    """Returns whether the help of a flag ends with its default."""
    hidden = (None, False, argparse.SUPPRESS)
    return bool(action.option_strings) and action.default not in hidden


def expand_home(value: str) -> str:
    """Returns a value of a flag with a home folder in place of `~` or `~user` at its start.

    A URL stays as it is, and so does a `~user` that is no user of this machine.
    """
    return value if "://" in value else os.path.expanduser(value)


class NoNumberError(argparse.ArgumentTypeError, ValueError):
    """The value of a flag is no number."""


def number(convert: type[Number], low: float, high: float = math.inf) -> Callable[[str], Number]:
    """A flag type: `convert` (int or float) and within low..high, or an error that says so."""

    def parse(text: str) -> Number:
        try:
            value = convert(text)
        except ValueError as error:
            raise NoNumberError(f"must be a {parse.__name__}, not {text}") from error
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be a finite number, not {text}")
        if not low <= value <= high:
            limits = f"{low} or more" if math.isinf(high) else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"must be {limits}, not {text}")
        return value

    parse.__name__ = {"int": "whole number", "float": "number"}[convert.__name__]
    return parse


def batch_size(text: str) -> int:
    """Parses a flag: a positive whole number that fits into memory, or -1 for all."""
    value = number(int, -math.inf)(text)
    if not (value == -1 or 1 <= value <= LARGEST_BATCH):
        limits = f"from 1 to {LARGEST_BATCH}, or -1 for all"
        raise argparse.ArgumentTypeError(f"must be {limits}, not {text}")
    return value
