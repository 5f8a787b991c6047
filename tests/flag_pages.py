"""Writes docs/flags-retrain.md and docs/flags-label-image.md from the parsers.

python -m tests.flag_pages
"""

import re

from retraining.cli.reference import groups, parsers
from tests import ROOT

BOTH = """
A `~` or `~user` at the start of a flag's value stands for a home folder, in `--graph=~/g.pb` as in
`--graph ~/g.pb`. It has no such meaning in a URL. Write `./~` for a path that really begins with
`~`.

Both commands end with the same exit codes:

| code | meaning |
|---:|---|
| 0 | The command did all that you asked for. |
| 1 | It failed. `label_image.py` also ends with 1 if it found no images or could not \
read one. Files of an unknown format in a folder do not count. |
| 2 | A flag is wrong. |
| 130 | Ctrl-C or SIGTERM interrupted it. In the first second, the signal itself ends it. |
"""
RETRAIN = f"""
# Flags of retrain.py

```sh
python retrain.py --help
```

`retrain.py` prints this reference in the terminal. Flags of the classic `retrain.py` keep their
names. They also keep their defaults, except that outputs go into the current folder instead of
`/tmp`. Outputs that you do not name go beside `--output_graph`.

`--print_misclassified_test_images` adds a line to stdout for each wrong test photo:
`misclassified<TAB>path<TAB>label<TAB>answer<TAB>score`.
{BOTH}"""
LABEL_IMAGE = f"""
# Flags of label_image.py

```sh
python label_image.py --help
```

`label_image.py` prints this reference in the terminal. Words that are not flags are images: files,
folders, URLs of single files, or `-` for a list of paths on standard input. `-0` is short for
`--null`.
{BOTH}"""
PAGES = {
    "flags-retrain.md": ("retrain", RETRAIN),
    "flags-label-image.md": ("label-image", LABEL_IMAGE),
}
GENERATED = "<!-- python -m tests.flag_pages writes this page from the help of the flags. -->"


def page(name):
    """The text of a page: its introduction, then a table for each group of flags."""
    command, introduction = PAGES[name]
    parts = [introduction.strip()]
    for group in groups(parsers()[command]):
        flags = [flag for flag in group.flags if flag.names and "--help" not in flag.names]
        if flags:
            parts.append(f"## {group.title.capitalize()}")
            parts.append("\n".join(["| flag | what it does |", "|---|---|", *map(_row, flags)]))
    return "\n\n".join([*parts, GENERATED]) + "\n"


def _row(flag):
    names = ", ".join(f"`{name}`" for name in flag.names)
    value = f" `{flag.value}`" if flag.value else ""
    explained = re.sub(r"(?<![\w`-])(--\w+)", r"`\1`", flag.help)
    default = f" (default: `{flag.default}`)" if flag.default else ""
    cells = (names + value, explained + default)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / "docs" / name).write_text(page(name), encoding="utf-8")
