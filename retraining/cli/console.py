"""Exit codes, one-line errors, log lines and progress bars of both commands."""

import codecs
import contextlib
import functools
import logging
import os
import shutil
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn, Protocol, Self, TextIO

from retraining.cli.wording import in_flags
from retraining.errors import RetrainingError
from retraining.graphs.tensorflow import stderr_lock
from retraining.system import limits
from retraining.system.atomic import naming
from retraining.system.observer import Bar
from retraining.system.signals import signals_to
from retraining.system.text import message_line

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
TERMINAL_SECONDS = 0.2  # between two updates of a progress bar
FILE_SECONDS = 10.0  # between two lines on progress, where stderr is no terminal
NARROWEST = 30  # columns that messages fill on a terminal
BYTES_OR_ESCAPES = "bytes_or_escapes"  # name of the error handler of stdout
AGAIN_SECONDS = 0.05  # until a dropped KeyboardInterrupt is raised again


class Main(Protocol):
    """A command: takes its arguments (None: those of the process) and returns the exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def reports_errors(main: Main, interrupted: str = "interrupted") -> Main:
    """Returns a `main` that prints expected errors as one line on stderr and returns an exit code.

    It prints `interrupted` after Ctrl-C or SIGTERM.
    """

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        stopped = threading.Event()
        try:
            with _prepared_streams(), _terminable(stopped), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # libraries address these to programmers
                if not logging.getLogger().handlers:  # hides their log lines
                    logging.getLogger().addHandler(logging.NullHandler())
                if small := limits.problem():
                    raise RetrainingError(small)
                code = _code_of(main, argv)
                sys.stdout.flush()
                return code
        except BrokenPipeError:
            return reader_left()
        except RetrainingError as error:
            message, code = in_flags(str(error)), FAILED
        except OSError as error:
            message, code = f"{_place_of(error)}: {error.strerror or error}", FAILED
        except MemoryError:
            message, code = "there is not enough memory", FAILED
        except KeyboardInterrupt:
            message, code = interrupted, INTERRUPTED
        except Exception:  # C code may turn a KeyboardInterrupt into an ImportError
            if not stopped.is_set():
                raise
            message, code = interrupted, INTERRUPTED
        say(message)  # only now: the frames of the error are gone, and any progress bar with them
        return code

    return guarded


def _code_of(main: Main, argv: Sequence[str] | None) -> int:
    """Calls a command; returns its exit code, also that with which argparse ends it."""
    try:
        return main(argv)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after bad flags
        return stop.code if isinstance(stop.code, int) else FAILED


def leave(code: int) -> NoReturn:
    """Ends the process with an exit code; skips the 0.7 s that TensorFlow takes to shut down."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # AttributeError: the stream was closed
            stream.flush()
    logging.shutdown()
    os._exit(code)


def print_for_programs() -> None:
    """Makes stdout UTF-8 with line ends as they are printed, so the same bytes on every system."""
    if hasattr(sys.stdout, "reconfigure"):
        # Without `errors`, a new encoding would come with errors="strict".
        sys.stdout.reconfigure(encoding="utf-8", errors=sys.stdout.errors, newline="")


def reader_left(failed: bool = False) -> int:
    """Handles a broken pipe on stdout: its reader, such as `head`, has enough; this is no error.

    Returns the exit code, which tells whether anything has `failed` before.
    """
    # At exit, Python must not try to flush what it cannot write.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED if failed else DONE


def _place_of(error: OSError) -> str:
    """Returns what an error is about: a file, or the working folder that is gone."""
    if error.filename:
        return os.fsdecode(error.filename)
    try:
        os.getcwd()
    except OSError:
        return "the working folder, which has been deleted or cannot be read"
    return "input or output"


@contextlib.contextmanager
def _prepared_streams() -> Iterator[None]:
    """Replaces closed streams, and lets stdout and stderr take any text, whatever their encoding.

    On stdout undecodable bytes of file names stay as they are; all else that the encoding lacks
    is escaped as in Python.
    """
    codecs.register_error(BYTES_OR_ESCAPES, _bytes_or_escapes)
    errors = {"stdin": "surrogateescape", "stdout": BYTES_OR_ESCAPES, "stderr": "backslashreplace"}
    for name, handler in errors.items():
        stream = getattr(sys, name)
        if stream is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=handler)
    streams = sys.stdout, sys.stderr
    named: Any = _Named(sys.stdout)  # they pass on all attributes of a TextIO
    forgiving: Any = _Forgiving(sys.stderr)
    sys.stdout, sys.stderr = named, forgiving
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


class _Named:
    """A stream that puts its name into errors: that its disk is full, say.

    Repeats an error at the next flush, since argparse hides it and the buffer is empty then.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._failed: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            with naming("standard output"):
                return self._stream.write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            self._failed = error
            raise

    def flush(self) -> None:
        if self._failed:
            raise self._failed
        with naming("standard output"):
            self._stream.flush()


def _bytes_or_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handles a character that an encoding lacks: a lone surrogate of PEP 383 becomes its byte.

    Any other becomes an escape such as `\\u0141`, and so does a byte where it would break the
    encoding.
    """
    assert isinstance(error, UnicodeEncodeError)
    start = error.start
    one = UnicodeEncodeError(error.encoding, error.object, start, start + 1, error.reason)
    if not error.encoding.startswith(("utf-16", "utf-32")):
        with contextlib.suppress(UnicodeEncodeError):
            return codecs.lookup_error("surrogateescape")(one)
    return codecs.backslashreplace_errors(one)


class _Forgiving:
    """A stream that drops what it cannot write: a run goes on if nobody reads its messages.

    It waits while another thread mutes stderr.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with stderr_lock, contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with stderr_lock, contextlib.suppress(OSError):
            self._stream.flush()


@contextlib.contextmanager
def _terminable(stopped: threading.Event) -> Iterator[None]:
    """Makes SIGTERM and Ctrl-C raise KeyboardInterrupt, so that a run cleans up as it ends.

    Python drops an exception that is raised in a finalizer or a weak reference's callback, as
    imports run them all the time. A KeyboardInterrupt that is dropped there is raised again.
    Either signal sets `stopped`.
    """

    def interrupt(*_: object) -> NoReturn:
        stopped.set()
        raise KeyboardInterrupt

    def unraisable(dropped: "sys.UnraisableHookArgs", /) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            timers.append(threading.Timer(AGAIN_SECONDS, _interrupt_main_thread))
            timers[-1].start()
        else:
            hook(dropped)

    timers: list[threading.Timer] = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        with signals_to(interrupt):
            yield
    finally:
        sys.unraisablehook = hook
        for timer in timers:
            timer.cancel()


def _interrupt_main_thread() -> None:
    """Sends SIGINT to the main thread, which ends a call that blocks it."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # on Windows
        signal.raise_signal(signal.SIGINT)


def say(message: object) -> None:
    """Prints a message on stderr, after the name of the script."""
    print(fitted(f"{os.path.basename(sys.argv[0])}: {message_line(str(message))}"), file=sys.stderr)


def fitted(line: str) -> str:
    """Returns a line for stderr: broken at words on a terminal, as it is elsewhere."""
    if not sys.stderr.isatty():
        return line
    width = max(NARROWEST, shutil.get_terminal_size().columns)
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


def set_verbosity(name: str) -> logging.Logger:
    """Sends log lines from this level on to stderr; `WARN` and `FATAL` are TensorFlow's names."""
    handler = _Handler()
    handler.setFormatter(_Formatter())
    log = logging.getLogger("retraining")
    log.handlers, log.propagate = [handler], False
    log.setLevel(name)
    return log


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line to stderr, above any progress bar."""
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return fitted(prefix + message_line(in_flags(record.getMessage())))


def progress_bar(label: str, unit: str, quiet: bool = False) -> Bar:
    """Returns `bar(iterable, total)`: tqdm if stderr is a terminal, else a ProgressLog."""
    from tqdm import tqdm

    if not quiet and not sys.stderr.isatty():
        return functools.partial(ProgressLog, label=label, unit=unit)
    settings = {"desc": label, "unit": unit, "mininterval": TERMINAL_SECONDS, "disable": quiet}
    if unit == "B":
        settings |= {"unit_scale": True, "unit_divisor": 1024}
    return functools.partial(tqdm, dynamic_ncols=True, **settings)


class ProgressLog:
    """Prints how far a task has come as a line on stderr every ten seconds, and at its end.

    It is a Progress. A line reads `bottlenecks: 1200 of 3670 img, 85 img/s`; bytes are in MB.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        total: int | None = None,
        *,
        label: str,
        unit: str,
    ) -> None:
        self._iterable: Iterable[Any] = () if iterable is None else iterable
        self._total, self._label, self._unit = total, label, unit
        self._done, self._postfix = 0.0, ""
        self._started = self._printed = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._iterable:
                yield item
                self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._done:
            self._print()

    def update(self, n: float = 1) -> None:
        """Counts `n` steps."""
        self._done += n
        if time.monotonic() - self._printed >= FILE_SECONDS:
            self._print()

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Shows a text at the end of the next line."""
        self._postfix = s

    def _print(self) -> None:
        self._printed = time.monotonic()
        divisor, unit = (1e6, "MB") if self._unit == "B" else (1, self._unit)
        digits = 1 if self._unit == "B" else 0
        done, rate = self._done / divisor, self._done / divisor / self._seconds
        of_all = "" if self._total is None else f" of {self._total / divisor:.{digits}f}"
        speed = f"{rate:.{digits if rate >= 1 else 2}f} {unit}/s"
        line = f"{self._label}: {done:.{digits}f}{of_all} {unit}, {speed}"
        print(", ".join(filter(None, (line, self._postfix))), file=sys.stderr, flush=True)

    @property
    def _seconds(self) -> float:
        return max(1e-3, self._printed - self._started)


class ConsoleObserver:
    """Shows progress on stderr, unless it is quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def progress(self, label: str, unit: str) -> Bar:
        """Returns `bar(iterable, total)`; see `progress_bar`."""
        return progress_bar(label, unit, self.quiet)

    def tell(self, text: str) -> None:
        """Prints a line."""
        if not self.quiet:
            print(fitted(message_line(text)), file=sys.stderr)
