"""Where this package lies."""

from pathlib import Path


def package_folder() -> Path:
    """The folder `retraining`, from which workers get the code."""
    return Path(__file__).resolve().parents[1]


def project_folder() -> Path:
    """The folder that holds `retraining`: a checkout, or site-packages."""
    return package_folder().parent
