"""Locates this package on disk."""

from pathlib import Path


def package_folder() -> Path:
    """Returns the folder `retraining`, whose code is shipped to workers."""
    return Path(__file__).resolve().parents[1]


def project_folder() -> Path:
    """Returns the folder that contains `retraining`: a checkout or site-packages."""
    return package_folder().parent
