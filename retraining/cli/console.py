"""Exit codes, one-line errors, log lines and progress bars of both commands."""

import contextlib
import functools
import logging
import os
import sys
import warnings

from retraining.errors import RetrainingError
from retraining.system.signals import signals_to
from retraining.system.text import escaped

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
TERMINAL_SECONDS, FILE_SECONDS = 0.2, 10.0  # between two updates of a progress bar


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


class ConsoleObserver:
    """Shows progress as a bar on stderr, unless that is unwanted."""

    def __init__(self, quiet):
        self.quiet = quiet

    def progress(self, label, unit):
        """Returns `bar(iterable, total)`; see `progress_bar`."""
        return progress_bar(label, unit, self.quiet)
