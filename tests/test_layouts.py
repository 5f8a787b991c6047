"""docs/layouts.md: what the command does with photos as people have them."""

from tests import ROOT, layouts


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "layouts.md").read_text(encoding="utf-8") == layouts.page()


def test_each_layout_has_a_name_of_its_own():
    names = [layouts.name_of(layout) for layout in layouts.LAYOUTS]
    assert len(set(names)) == len(names)
