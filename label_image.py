"""Labels images with a retrained graph, or with any frozen image classifier.

`python label_image.py photo.jpg` prints the likeliest labels of a photo. The command is in
retraining/cli/label_image.py, the classifier in retraining/labelling/classifier.py.
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
from retraining.cli.label_image import main

if __name__ == "__main__":
    leave(main())
