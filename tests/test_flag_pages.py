"""The pages that list all flags, against the parsers."""

import pytest

from tests import ROOT, flag_pages


@pytest.mark.parametrize("name", flag_pages.PAGES)
def test_the_page_of_flags_is_what_the_parsers_give(name):
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    stale = f"docs/{name} is stale; run python -m tests.flag_pages"
    assert written == flag_pages.page(name), stale


def test_a_flag_is_a_row_with_its_values_and_default():
    rows = flag_pages.page("flags-retrain.md").splitlines()
    (row,) = [row for row in rows if row.startswith("| `--class_weights`")]
    assert row.startswith(r"| `--class_weights` `balanced\|none` | balanced: each class counts")
    (row,) = [row for row in rows if row.startswith("| `--distorted_views`")]
    assert row.endswith(" (default: `8`) |")
