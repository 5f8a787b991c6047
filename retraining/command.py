"""What both scripts share: the parser of flags, exit codes, lines on stderr, progress bars."""

import argparse
import functools
import logging
import os
import sys

from retraining import RetrainingError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

VERBOSITIES = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL")
TERMINAL_SECONDS, FILE_SECONDS = 0.2, 10.0  # between two updates of a progress bar


class Parser(argparse.ArgumentParser):
    """An argument parser that refuses bad flags with one line and exit code 2."""

    def __init__(self, **settings):
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            **settings,
        )

    def error(self, message):
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def number(convert, low, high=None):
    """A flag type: `convert` (int or float) and within low..high, or an error that says so."""

    def parse(text):
        value = convert(text)
        if not low <= value or (high is not None and value > high):
            limits = f"{low} or more" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"must be {limits}, not {text}")
        return value

    parse.__name__ = {"int": "whole number", "float": "number"}[convert.__name__]
    return parse


def batch_size(text):
    """A flag type: a positive whole number, or -1 for all."""
    value = int(text)
    if value < 1 and value != -1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, or -1 for all, not {text}")
    return value


batch_size.__name__ = "whole number"


def reports_errors(main):
    """Makes `main` return an exit code, and its expected errors one line on stderr."""

    @functools.wraps(main)
    def guarded(argv=None):
        try:
            return main(argv)
        except SystemExit as stop:  # argparse: 0 after --help, 2 after bad flags
            return stop.code
        except RetrainingError as error:
            say(error)
            return FAILED
        except BrokenPipeError:
            # The reader of our output, as `head`, has gone: nothing is left to say, and Python
            # must not try to flush what it cannot write.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        except KeyboardInterrupt:
            say("interrupted; what was computed is stored, the same command goes on from there")
            return INTERRUPTED

    return guarded


def say(message):
    """One line on stderr, after the script's name."""
    line = " ".join(str(message).split())
    print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)


def set_verbosity(name):
    """Log lines go to stderr from this level on; `WARN` and `FATAL` as TensorFlow calls them."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    log = logging.getLogger("retraining")
    log.handlers, log.propagate = [handler], False
    log.setLevel(name)
    return log


class _Formatter(logging.Formatter):
    def format(self, record):
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return prefix + record.getMessage()


def progress_bar(label, unit, quiet=False):
    """Returns `bar(iterable, total)`: tqdm on stderr, rarely updated where that is a file."""
    from tqdm import tqdm

    seconds = TERMINAL_SECONDS if sys.stderr.isatty() else FILE_SECONDS
    settings = {"desc": label, "unit": unit, "mininterval": seconds, "disable": quiet}
    return functools.partial(tqdm, dynamic_ncols=True, **settings)
