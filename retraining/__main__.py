"""`python -m retraining` lists what there is: the two commands and the public names."""

import textwrap

import retraining
from retraining.cli.reference import parsers
from retraining.cli.start import VERSION


def overview() -> str:
    """Returns the version, a line on each command, and the names of the public interface."""
    lines = [VERSION, "", "Commands; --help tells their flags:"]
    for command, parser in parsers().items():
        lines.append(f"  {command:<12} {(parser.description or '').splitlines()[0]}")
    names = ", ".join(name for name in retraining.__all__ if not name.startswith("_"))
    wrapped = textwrap.fill(names, width=78, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([*lines, "", "From Python, `import retraining` offers:", wrapped])


if __name__ == "__main__":
    print(overview())
