"""The parts of retrain.py and label_image.py. Each module says in its first line what it is for."""


class RetrainingError(Exception):
    """What a user can cause and mend: its text is one line saying what is wrong and what to do.

    Every module of this package raises subclasses of it; the scripts print the line and exit 1.
    """
