"""The error that everything here raises for what a user can cause."""


class RetrainingError(Exception):
    """An error that a user can cause and mend; its text says what is wrong, in one line."""
