"""The version of this package, for its metadata and the model card."""

__version__ = "1.0.0"
