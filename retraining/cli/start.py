"""Starts the commands, from the scripts at the top and from the installed ones.

An old Python parses this module too, so that it can say which Python is needed.
"""

import importlib
import os
import signal
import sys
from typing import NoReturn

from retraining import __version__
from retraining.python_version import refuse_old_python

VERSION = "image-retraining " + __version__
INSTALLED = ("retrain", "label-image", "label_image")


def retrain() -> NoReturn:
    """Runs the command `retrain` with the arguments of this process, and ends the process."""
    _run("retraining.cli.retrain")


def label_image() -> NoReturn:
    """Runs the command `label-image` with the arguments of this process, and ends the process."""
    _run("retraining.cli.label_image")


def typed(command: str) -> str:
    """Returns what users type for a command: `label-image`, or `label_image.py` in a checkout.

    The name of this process tells which of the two they have.
    """
    if os.path.basename(sys.argv[0]) in INSTALLED:
        return command
    return command.replace("-", "_") + ".py"


def _run(module: str) -> NoReturn:
    """Ends the process with the exit code of the module's `main`.

    Imports `main` last: that takes half a second, an old Python fails at it, and so does any Python
    with too little memory.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until main sets its own handlers, Ctrl-C just ends the program: no traceback of imports.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    refuse_old_python()
    from retraining.cli.console import leave, reports_errors
    from retraining.system.limits import refuse_small_limits

    if sys.argv[1:2] in (["-V"], ["--version"]):
        leave(reports_errors(_print_version)())
    refuse_small_limits()
    leave(importlib.import_module(module).main())


def _print_version(argv: object = None) -> int:
    print(VERSION)
    return 0
