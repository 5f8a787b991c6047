"""Renders the record of a run as a model card, a page in Markdown to pass on with the model.

Its headings are those of Hugging Face's model cards (huggingface.co/docs/hub/model-cards).
"""

import os
import re
import shlex
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from retraining.report import advice
from retraining.report.html import TEMPLATES, hardest_first, title_of
from retraining.report.record import Record, evaluations, leading
from retraining.system.addresses import dataset_name
from retraining.system.text import counted, escaped
from retraining.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

MOST_ROWS = 20  # of a table, and lines of a list
# What has a meaning in Markdown or HTML; an underscore has none within a word.
INLINE = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")
ISOLATES = {ord(mark): None for mark in advice.isolated("")}
FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/]+/)+")  # of an absolute path
# Options that the card tells, if they are set: names of flags, or of fields of settings.
TRAINING_OPTIONS = {
    *("head", "search", "hidden_units", "dropout", "optimizer", "learning_rate"),
    *("train_batch_size", "l2", "label_smoothing", "class_weights", "early_stopping"),
    *("mirror_average", "fine_tune", "fine_tuning.methods"),
    *("flip_left_right", "random_crop", "random_scale", "random_brightness"),
}


@dataclass(frozen=True)
class ModelFiles:
    """The files that a card goes with: paths, and the SHA-256 of the graph.

    `trust` is what `trust.described` returns; `formats` has {kind of a Converter: path}.
    """

    graph: str
    labels: str
    sha256: str
    trust: Mapping[str, Any]
    formats: Mapping[str, str] = field(default_factory=dict)


def render(record: Record, files: ModelFiles) -> bytes:
    """Returns the card for a record of `make_record`, in UTF-8."""
    lead, shown, options = leading(record), _escaped(record), record["options"]
    evaluation = evaluations(shown).get(lead)
    page = (
        _environment(options)
        .get_template("model_card.md")
        .render(
            record=shown,
            files=files,
            leads=lead != "test",
            lead=evaluation,
            title=title_of(record, lead),
            hardest=evaluation and hardest_first(evaluation["classes"])[:MOST_ROWS],
            source=escaped(dataset_name(str(options.get("image_dir") or ""))),
            told={name: options[name] for name in options if is_told(name, options[name])},
            advice=advice,
            counted=counted,
            most=MOST_ROWS,
            version=__version__,
        )
    )
    return page.encode("utf-8", "backslashreplace")


def _environment(options: Mapping[str, Any]) -> "Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        finalize=markdown,  # of every expression in the template
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": lambda share: "-" if share is None else f"{share:.1%}",
        "file_name": lambda path: escaped(os.path.basename(path)),
        "python": lambda path: repr(os.path.basename(path)),
        "shell": lambda path: shlex.quote(escaped(os.path.basename(path))),
        "without_folders": lambda text: without_folders(text, options),
    }
    return environment


def is_told(name: str, value: Any) -> bool:
    """Tells whether the card tells an option of the record."""
    for prefix in ("head.training.", "head.", "network.", "bottlenecks.distortions."):
        name = name.removeprefix(prefix)
    return name in TRAINING_OPTIONS and bool(value) and value != "none"


def markdown(value: Any) -> "str | Markup":
    """Returns a value as text that Markdown shows as it is; what is marked as safe stays.

    The template has no value at the start of a line, where more characters have a meaning. Without
    letters from right to left, nothing is isolated: GitHub warns of files with such characters.
    """
    if hasattr(value, "__html__"):
        safe: Markup = value
        return safe
    text = str(value)
    if {"R", "AL"}.isdisjoint(map(unicodedata.bidirectional, text)):
        text = text.translate(ISOLATES)
    return INLINE.sub(lambda found: f"\\{found[0]}", text)


def without_folders(text: str, options: Mapping[str, Any]) -> str:
    """Returns a text without the folders of absolute paths, which tell of the user's machine."""
    paths = [path for path in options.values() if isinstance(path, str) and os.path.isabs(path)]
    for path in sorted(paths, key=len, reverse=True):
        if name := os.path.basename(path.rstrip("/")):
            text = text.replace(path.rstrip("/"), name)
    return FOLDERS.sub("", text)


def _escaped(value: Any) -> Any:
    """Returns data of a record with `escaped` texts: nothing invisible turns or breaks a line."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return escaped(value) if isinstance(value, str) else value
