"""The command label_image.py: reads images, prints labels."""

from collections.abc import Sequence

from retraining.cli.console import reports_errors
from retraining.cli.label_flags import parse_flags


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Reads the graph, then labels every image, or scores the graph on a folder of photos."""
    options = parse_flags(argv)
    from retraining.cli import labelling  # which takes longer to import than flags to check

    return labelling.run(options)
