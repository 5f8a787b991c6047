"""What both scripts share: the parser of flags, exit codes, lines on stderr, progress bars."""

import argparse
import contextlib
import difflib
import functools
import logging
import math
import os
import signal
import sys
import threading
import warnings

from retraining.errors import RetrainingError
from retraining.system.lines import escaped

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

VERBOSITIES = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL")
ALLOW_UNSAFE_OPS = (  # the help of this flag
    "run the graph even if it holds ops that could do more than compute, such as reading and "
    "writing files; they are named"
)
LARGEST_BATCH = 100_000  # vectors
TERMINAL_SECONDS, FILE_SECONDS = 0.2, 10.0  # between two updates of a progress bar


def add_weights(add):
    """Adds --weights, which both scripts have; `add` is a group's add_argument."""
    add(
        "--weights",
        metavar="FILE|imagenet|random",
        help="weights of a Keras network: a .weights.h5, .keras or .h5 file, those of ImageNet "
        "from Keras's own cache or download (the default), or random ones, for tests; of vgg16: "
        "its vgg16.npy",
    )


class Parser(argparse.ArgumentParser):
    """An argument parser that refuses bad flags with one line and exit code 2."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **settings)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse, but a mistyped flag is named first, with the one that it is most like."""
        known = self._option_string_actions
        for word in sys.argv[1:] if args is None else args:
            flag = word.split("=")[0]
            if word == "--":
                break
            if flag.startswith("--") and flag not in known:
                like = difflib.get_close_matches(flag, known, n=1, cutoff=0.75)
                self.error(f"unknown flag {flag}" + (f"; did you mean {like[0]}?" if like else ""))
        return super().parse_known_args(args, namespace)

    def error(self, message):
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names a flag's default, unless it has none."""

    def _get_help_string(self, action):
        if action.default in (None, False) or not action.option_strings:
            return action.help
        return super()._get_help_string(action)


def number(convert, low, high=None):
    """A flag type: `convert` (int or float) and within low..high, or an error that says so."""

    def parse(text):
        value = convert(text)
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be a finite number, not {text}")
        if not low <= value or (high is not None and value > high):
            limits = f"{low} or more" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"must be {limits}, not {text}")
        return value

    parse.__name__ = {"int": "whole number", "float": "number"}[convert.__name__]
    return parse


def batch_size(text):
    """A flag type: a positive whole number that memory can hold, or -1 for all."""
    value = int(text)
    if not (value == -1 or 1 <= value <= LARGEST_BATCH):
        limits = f"from 1 to {LARGEST_BATCH}, or -1 for all"
        raise argparse.ArgumentTypeError(f"must be {limits}, not {text}")
    return value


batch_size.__name__ = "whole number"


def reports_errors(main, interrupted="interrupted"):
    """Makes `main` return an exit code, and its expected errors one line on stderr.

    `interrupted` is what is said after Ctrl-C or SIGTERM.
    """

    @functools.wraps(main)
    def guarded(argv=None):
        try:
            with _prepared_streams(), _terminable(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what libraries say to programmers
                if not logging.getLogger().handlers:  # or log, unless they were given a handler
                    logging.getLogger().addHandler(logging.NullHandler())
                code = main(argv)
                sys.stdout.flush()
                return code
        except SystemExit as stop:  # argparse: 0 after --help, 2 after bad flags
            return stop.code
        except BrokenPipeError:
            return _reader_left()
        except RetrainingError as error:
            message, code = str(error), FAILED
        except OSError as error:
            what = error.filename or "input or output"
            message, code = f"{what}: {error.strerror or error}", FAILED
        except KeyboardInterrupt:
            message, code = interrupted, INTERRUPTED
        say(message)  # only now, when the error's frames are gone, and with them a progress bar
        return code

    return guarded


def leave(code):
    """Ends the process with an exit code, without the 0.7 s that TensorFlow takes to tear down."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # AttributeError: it was closed
            stream.flush()
    logging.shutdown()
    os._exit(code)


def _reader_left():
    """After a broken pipe on stdout: its reader, as `head`, has what it wanted; no error."""
    # Python must not try to flush at its end what it cannot write.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


@contextlib.contextmanager
def _prepared_streams():
    """Replaces streams that are closed, and lets file names of undecodable bytes pass.

    On stdout they are the bytes they were, on stderr they are escaped.
    """
    errors = {"stdin": "surrogateescape", "stdout": "surrogateescape", "stderr": "backslashreplace"}
    for name, handler in errors.items():
        stream = getattr(sys, name)
        if stream is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=handler)
    stderr = sys.stderr
    sys.stderr = _Forgiving(stderr)
    try:
        yield
    finally:
        sys.stderr = stderr


class _Forgiving:
    """A stream that forgets what it cannot write: a run goes on if nobody reads what it says."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self):
        with contextlib.suppress(OSError):
            self._stream.flush()


@contextlib.contextmanager
def _terminable():
    """Makes SIGTERM and Ctrl-C end a run so that what is begun is tidied up."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with signals_to(interrupt):
        yield


@contextlib.contextmanager
def signals_to(handle):
    """Has `handle(number, frame)` called on SIGTERM and Ctrl-C, and what was there before after."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as in the background of a shell
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(message):
    """One line on stderr, after the script's name."""
    print(f"{os.path.basename(sys.argv[0])}: {escaped(str(message))}", file=sys.stderr)


def set_verbosity(name):
    """Log lines go to stderr from this level on; `WARN` and `FATAL` as TensorFlow calls them."""
    handler = _Handler()
    handler.setFormatter(_Formatter())
    log = logging.getLogger("retraining")
    log.handlers, log.propagate = [handler], False
    log.setLevel(name)
    return log


class _Handler(logging.Handler):
    def emit(self, record):
        """Writes a line to stderr, above a progress bar that is shown there."""
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class _Formatter(logging.Formatter):
    def format(self, record):
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return prefix + escaped(record.getMessage())


def progress_bar(label, unit, quiet=False):
    """Returns `bar(iterable, total)`: tqdm on stderr, rarely updated where that is a file."""
    from tqdm import tqdm

    seconds = TERMINAL_SECONDS if sys.stderr.isatty() else FILE_SECONDS
    settings = {"desc": label, "unit": unit, "mininterval": seconds, "disable": quiet}
    return functools.partial(tqdm, dynamic_ncols=True, **settings)


def is_quiet(options):
    """Whether progress bars are unwanted."""
    return options.logging_verbosity not in ("DEBUG", "INFO")
