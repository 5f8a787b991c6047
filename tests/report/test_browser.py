"""The report in a real browser, as a person uses it. Skipped where no Chromium is installed."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from retraining.photos.thumbnails import Thumbnails
from retraining.report import html
from tests.records import COMPARISON, made_up

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
        cell = page.locator("#cell-0-1")
        assert cell.locator("img").evaluate_all("all => all.every(i => i.naturalWidth === 112)")
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
        assert "taken for" in page.evaluate("document.activeElement.textContent")
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
        assert {"cell-0-0", "cell-0-1", "cell-1-1", "cell-2-2"} <= names


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


def test_dark_is_dark_and_light_is_light(browser, report):
    for scheme, expected in (("light", True), ("dark", False)):
        with opened(browser, report, scheme=scheme) as page:
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, colour[4:-1].split(","))) > 384) == expected


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
        assert 'table "Confusion matrix: number of tested photos' in tree
        assert 'img "Accuracy 66.7%, 95% interval' in tree
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.locator("img:not([alt])").count() == 0


def test_the_report_of_a_real_run(browser, finished):
    with opened(browser, finished.folder / "models" / "retrained_report.html", PHONE) as page:
        assert "100.0% right" in page.locator(".accuracy").inner_text()
        page.locator(".matrix button").first.click()
        assert open_photos(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 375
