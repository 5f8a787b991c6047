"""The parts of retrain.py and label_image.py. Each module says in its first line what it is for."""

import os

# NumPy's products here are small; spread over threads they wait for each other more than they
# gain (1.5 times slower on two cores). NumPy reads this when it is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


class RetrainingError(Exception):
    """What a user can cause and mend: its text is one line saying what is wrong and what to do.

    Every module of this package raises subclasses of it; the scripts print the line and exit 1.
    """
