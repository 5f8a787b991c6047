"""Retrains an image classifier on your own photos: photos in, a frozen graph and its labels out.

`python retrain.py --image_dir flower_photos` reads the photos, turns each into a vector by a frozen
network, trains a new softmax layer on the vectors, tests the result on photos that were held out,
and writes it. The steps are in retraining/run/retrain.py, the flags in retraining/cli/flags.py.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until main has set its own handlers, Ctrl-C just ends the program: no traceback of imports.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from retraining.python_version import refuse_old_python

refuse_old_python()  # before imports that an old Python does not parse or have

from retraining.system.limits import refuse_small_limits

refuse_small_limits()  # before imports that need the memory

from retraining.cli.console import leave
from retraining.cli.retrain import main

if __name__ == "__main__":
    leave(main())
