"""The base class of all errors that a user can cause."""


class RetrainingError(Exception):
    """An error that a user can cause and fix. Its text says in one line what is wrong."""
