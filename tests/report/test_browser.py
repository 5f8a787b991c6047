"""The report in a real browser, as a person uses it. Skipped where no Chromium is installed."""

import io
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from retraining.photos.thumbnails import Thumbnails
from retraining.report import html
from tests.records import COMPARISON, cross_validated, made_up

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge")
LABELS = ["cat", "<img src=http://127.0.0.1:9/x onerror=alert(1)>", "owl"]
PHONE, DESK = {"width": 375, "height": 700}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip("no Chromium or Chrome is installed")
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox refuses root
    with api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=found, args=["--no-sandbox"] * root)
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of nine photos; three cats were taken for the second class."""
    folder = tmp_path_factory.mktemp("report")
    paths = [str(folder / f"a very long name of a photo without a break_{n}.jpg") for n in range(9)]
    for number, path in enumerate(paths[:-1]):  # the last photo is gone
        Image.new("RGB", (400, 300), (25 * number, 90, 200)).save(path)
    answered = [0, 0, 1, 1, 1, 1, 1, 2, 2]
    record = made_up(LABELS, paths, [0] * 5 + [1, 1, 2, 2], answered, comparison=COMPARISON)
    page = folder / "retrained_report.html"
    page.write_bytes(html.render(record, Thumbnails()))
    return page


@pytest.fixture(scope="module")
def led(tmp_path_factory):
    """The page of three test photos, one wrong, led by six cross-validated photos, two wrong."""
    folder = tmp_path_factory.mktemp("led")
    paths = [str(folder / f"{n}.jpg") for n in range(6)]
    for number, path in enumerate(paths):
        Image.new("RGB", (300, 300), (250 * (number == 5), 90, 0)).save(path)
    validated = cross_validated(paths, [0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 0, 0], 3)
    record = made_up(["cat", "dog", "owl"], paths[:3], [0, 1, 2], [0, 1, 1], validated=validated)
    page = folder / "retrained_report.html"
    page.write_bytes(html.render(record, Thumbnails()))
    return page


@contextmanager
def opened(browser, path, viewport=DESK, scheme="light"):
    """The page opened from disk; afterwards, that it had no error and asked for nothing."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    page, complaints, requests = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(Path(path).as_uri())
    yield page
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def open_photos(page):
    """The names of the photos that can be seen in the matrix's section."""
    return page.locator(".cell .path:visible").all_inner_texts()


def test_a_click_opens_the_photos_with_their_probabilities(browser, report):
    with opened(browser, report) as page:
        assert open_photos(page) == []
        button = page.get_by_role("button", name="3 of cat answered")
        button.click()
        assert len(open_photos(page)) == 3
        cell = page.locator("#test-0-1")
        assert cell.locator("svg.picture").count() == 3
        assert "80.0%" in cell.inner_text()
        assert button.get_attribute("aria-expanded") == "true"
        page.get_by_role("button", name="2 of cat answered cat").click()
        assert len(open_photos(page)) == 2
        assert button.get_attribute("aria-expanded") == "false"


def test_the_keyboard_opens_and_closes_them(browser, report):
    with opened(browser, report) as page:
        button = page.get_by_role("button", name="3 of cat answered")
        button.focus()
        page.keyboard.press("Enter")
        assert len(open_photos(page)) == 3
        assert "mistaken for" in page.evaluate("document.activeElement.textContent")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Close"
        page.keyboard.press("Enter")
        assert open_photos(page) == []
        assert button.evaluate("button => button === document.activeElement")
        page.keyboard.press("Space")
        page.keyboard.press("Escape")
        assert open_photos(page) == []
        assert button.get_attribute("aria-expanded") == "false"


def test_every_cell_with_photos_is_reached_by_tab(browser, report):
    with opened(browser, report) as page:
        names = set()
        for _ in range(30):
            page.keyboard.press("Tab")
            names.add(page.evaluate("document.activeElement.getAttribute('aria-controls')"))
        assert {"test-0-0", "test-0-1", "test-1-1", "test-2-2"} <= names


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_and_can_be_read(browser, report, viewport, scheme):
    with opened(browser, report, viewport, scheme) as page:
        page.get_by_role("button", name="3 of cat answered").click()
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        assert page.locator("svg.figure").count() == 4
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 50
        assert min(contrasts) >= 4.5  # WCAG 2, level AA


# The contrast of each visible text with what is painted behind it, by WCAG's formula.
CONTRASTS = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const over = (top, below) => {
    const alpha = top[3] ?? 1;
    return [0, 1, 2].map((n) => top[n] * alpha + below[n] * (1 - alpha));
  };
  const behind = (element) => {
    const below = element.parentElement ? behind(element.parentElement) : [255, 255, 255];
    return over(parse(getComputedStyle(element).backgroundColor), below);
  };
  const found = [];
  for (const element of document.querySelectorAll("main *, header *, footer *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.closest("svg title, svg desc")) continue;
    const style = getComputedStyle(element);
    const ink = light(parse(element.closest("svg") ? style.fill : style.color));
    const paper = light(behind(element.closest("svg")?.parentElement ?? element));
    found.push((Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
  }
  return found;
}"""


def colour(locator):
    """The colour in the middle of what is painted for an element."""
    with Image.open(io.BytesIO(locator.screenshot())) as image:
        return image.convert("RGB").getpixel((image.width // 2, image.height // 2))


def sections(page):
    """The titles of the sections that can be seen, with their photos, and the class table."""
    titles = page.locator("section:is(.of-test, .of-cross_validation) h2:visible")
    rows = page.locator(".classes:visible").first.locator("tbody tr")
    return titles.all_inner_texts(), sorted(row.split()[:3] for row in rows.all_inner_texts())


THREE = ("Which classes does the model confuse?", "Class by class", "The most confident mistakes")
ALL, TESTED = "all 6 photos, cross-validated", "3 test photos"


def test_the_switch_changes_matrix_table_and_mistakes_together(browser, led):
    with opened(browser, led) as page:
        of_all = [f"{title} {ALL}" for title in THREE]
        found, rows = sections(page)
        assert found == of_all
        assert rows == [["cat", "2", "2"], ["dog", "2", "1"], ["owl", "2", "1"]]
        assert page.locator(".matrix:visible").count() == 1
        page.get_by_role("button", name="1 of owl answered cat").click()
        assert open_photos(page) == ["5.jpg"]
        page.get_by_role("radio", name=TESTED).check()
        found, rows = sections(page)
        assert found == [f"{title} {TESTED}" for title in THREE]
        assert rows == [["cat", "1", "1"], ["dog", "1", "1"], ["owl", "1", "0"]]
        assert page.get_by_role("button", name="1 of owl answered cat").count() == 0
        mistakes = page.locator("section.of-test figure:visible figcaption")
        assert [text.split() for text in mistakes.all_inner_texts()] == [
            ["2.jpg", "true:", "owl", "answer:", "dog", "probability:", "80.0%"]
        ]
        page.get_by_role("radio", name=ALL).check()
        assert sections(page)[0] == of_all
        assert open_photos(page) == []  # what was open before has closed


def test_the_switch_is_reached_and_turned_by_keyboard(browser, led):
    with opened(browser, led) as page:
        group = page.get_by_role("group", name="The next three sections show")
        assert group.get_by_role("radio").count() == 2
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.type") == "radio":
                break
        assert page.evaluate("document.activeElement.id") == "show-cross_validation"
        page.keyboard.press("ArrowUp")
        assert sections(page)[0][0] == f"{THREE[0]} {TESTED}"


def test_the_switch_needs_no_script_and_paper_shows_what_it_shows(browser, led):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(led.as_uri())
    page.get_by_role("radio", name=TESTED).check()
    page.emulate_media(media="print")
    assert sections(page)[0] == [f"{title} {TESTED}" for title in THREE]
    assert not page.get_by_role("radio", name=TESTED).is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_switch_fits_a_phone_and_can_be_read(browser, led, scheme):
    with opened(browser, led, PHONE, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        assert min(page.evaluate(CONTRASTS)) >= 4.5
        for label in page.locator(".switch label").all():
            assert label.bounding_box()["height"] >= 44  # what a finger hits


def test_a_picture_that_is_embedded_once_is_painted_wherever_it_is_shown(browser, led):
    with opened(browser, led) as page:
        page.get_by_role("button", name="1 of owl answered cat").click()
        shown = page.get_by_role("img", name="Photo of owl, answered cat")
        assert shown.count() == 2  # in the matrix's cell and among the mistakes
        for picture in shown.all():
            red, green, blue = colour(picture)
            assert red > 240
            assert 80 < green < 100
            assert blue < 15


def test_dark_is_dark_and_light_is_light(browser, report):
    for scheme, expected in (("light", True), ("dark", False)):
        with opened(browser, report, scheme=scheme) as page:
            painted = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, painted[4:-1].split(","))) > 384) == expected


def test_a_folder_named_as_markup_is_only_a_name(browser, report):
    with opened(browser, report) as page:
        assert page.locator("img[onerror]").count() == 0
        assert page.locator("th", has_text="<img src=http").count() > 0


def test_without_scripts_all_photos_are_shown(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert len(open_photos(page)) == 9
    context.close()


def test_the_structure_that_screen_readers_use(browser, report):
    with opened(browser, report) as page:
        tree = page.locator("body").aria_snapshot()
        assert 'heading "How good is the model?" [level=2]' in tree
        assert 'table "Confusion matrix, 9 test photos: number of photos' in tree
        assert 'img "Accuracy 66.7%, 95% interval' in tree
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.locator("img:not([alt])").count() == 0


def test_the_report_of_a_real_run(browser, finished):
    with opened(browser, finished.folder / "models" / "retrained_report.html", PHONE) as page:
        assert "100.0% right" in page.locator(".accuracy").inner_text()
        page.locator(".matrix button:visible").first.click()
        assert open_photos(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 375
