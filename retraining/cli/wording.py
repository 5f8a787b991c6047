"""Puts texts of the library into the words of the command line."""

import functools
import re
from collections.abc import Mapping

# A whole setting between backticks, such as `Choice.layer`, that begins and ends a word.
SETTING = re.compile(r"(?<![^\s(])`([\w.]+)`(?=[,;:.)]*(?:\s|$))")
# Parameters that are no fields of settings, or of several classes.
PARAMETERS = {
    "max_pixels": "--max_image_pixels",
    "labels_path": "--labels",
    "precision": "--precision",
    "runtime": "--runtime",
    "unknown_share": "--unknown_threshold",
    "Sorter.by": "--sort_by",
}


def in_flags(text: str) -> str:
    """Returns a text of the library with flags in place of settings: `Choice.std` -> --input_std.

    Only names of settings count, and only a whole one between backticks, so that names of files
    and labels stay as they are.
    """
    if "`" not in text:
        return text
    return SETTING.sub(lambda found: _flags().get(found[1], found[0]), text)


@functools.cache
def _flags() -> Mapping[str, str]:
    """Returns {setting: flag}. The import takes 0.15 s, which few runs need."""
    from retraining.cli.settings import FLAGS, flags_of

    named = {kind.__name__: flags_of(kind) for kind in FLAGS}
    settings = {f"{kind}.{n}": f"--{flag}" for kind in named for n, flag in named[kind].items()}
    return settings | PARAMETERS
