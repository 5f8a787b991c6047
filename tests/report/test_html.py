"""html.py: what the page says and shows, whatever the folders and files are called."""

import base64
import hashlib
import io
import math
import os
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from PIL import Image

from retraining.evaluation.label_audit import DUPLICATE, LABEL, Finding
from retraining.export.convert import Agreement
from retraining.export.formats import Made
from retraining.photos.source import BadImage
from retraining.photos.thumbnails import Thumbnails, make_thumbnail
from retraining.report import html
from retraining.training import methods
from retraining.training.head import Evaluation
from tests.records import COMPARISON, cross_validated, made_up

LABELS = ["cat", "dog", "owl"]
VOID = {"meta", "img", "br", "wbr", "input"}


class Page(HTMLParser):
    """The page's elements [(tag, attributes)] and its text; refuses elements left open."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.words, self._open = [], [], []  # `words` with the classes around them
        self.feed(content.decode("utf-8"))
        assert self._open == []

    @property
    def text(self):
        return self.within(None)

    def within(self, kind):
        """The text in elements of this class; of None, all."""
        marks = str.maketrans("", "", "\N{FIRST STRONG ISOLATE}\N{POP DIRECTIONAL ISOLATE}")
        words = (word for word, around in self.words if kind is None or kind in around)
        return " ".join(" ".join(words).translate(marks).split())

    def all(self, tag, **attributes):
        wanted = attributes.items()
        return [found for name, found in self.elements if name == tag and wanted <= found.items()]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("class")))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        if self._open and self._open[-1][0] not in ("script", "style"):
            self.words.append((data, {kind for _, kind in self._open}))


@pytest.fixture
def pictures(tmp_path):
    """Four photos: three right, and a cat taken for a dog."""
    paths = [str(tmp_path / f"{name}.jpg") for name in ("a", "b", "c", "d")]
    for number, path in enumerate(paths):
        Image.new("RGB", (300, 200), (60 * number, 90, 200)).save(path)
    return paths


@pytest.fixture
def record(pictures):
    return made_up(LABELS, pictures, [0, 0, 1, 2], [0, 1, 1, 2])


def page_of(record):
    return Page(html.render(record, Thumbnails()))


# -- what it says ----------------------------------------------------------------------------


def test_the_summary_comes_first_and_is_honest(record):
    text = page_of(record).text
    assert "75.0% right 95% interval 30.1% to 95.4% always guessing cat : 50.0%" in text
    assert "Of 4 photos that it had never seen, the model labelled 3 correctly." in text
    assert "not clearly better than always guessing cat" in text
    assert text.index("75.0% right") < text.index("What to do next") < text.index("Class by class")


def test_cells_open_their_photos_and_show_probabilities(record):
    page = page_of(record)
    buttons = [b for b in page.all("button") if b.get("aria-controls")]
    assert [b["aria-controls"] for b in buttons] == [
        "test-0-0",
        "test-0-1",
        "test-1-1",
        "test-2-2",
    ]
    assert buttons[1]["aria-label"] == "1 of cat answered dog, show photos"
    assert {b["aria-controls"] for b in buttons} <= {s.get("id") for s in page.all("section")}
    assert "cat mistaken for dog" in page.text
    assert "b.jpg dog 80.0% cat (the true label) 10.0%" in page.text


def test_thumbnails_are_in_the_page(record):
    page = page_of(record)
    sources = {f"#{image['id']}": image["href"] for image in page.all("image")}
    shown = [use["href"] for use in page.all("use")]
    assert len(shown) == 5  # four photos, and the mistake among the most confident ones
    assert len(sources) == 4 == len(set(sources.values()))  # each is embedded once
    assert set(shown) == set(sources)
    content = base64.b64decode(sources[shown[0]].removeprefix("data:image/jpeg;base64,"))
    assert max(Image.open(io.BytesIO(content)).size) == 112


def test_a_photo_that_is_gone_becomes_a_grey_box(record, pictures):
    os.remove(pictures[1])
    page = page_of(record)
    (box, _) = page.all("span", **{"class": "missing"})
    assert box["aria-label"] == "Photo of cat, answered dog; the picture cannot be shown"
    assert "b.jpg" in page.text


def test_precision_and_recall_have_their_counts(record):
    text = page_of(record).text
    assert "cat 2 1 100% of 1 50% of 2 67%" in text
    assert "dog 1 1 50% of 2 100% of 1 67%" in text


def test_figures_are_named_for_screen_readers(record):
    page = page_of(record)
    ids = {found.get("id") for _, found in page.elements}
    images = page.all("svg", role="img")
    figures = [svg for svg in images if svg.get("class") != "picture"]
    assert len(figures) == 5
    assert all(svg["aria-label"] for svg in images if svg not in figures)
    for svg in figures:
        assert set(svg["aria-labelledby"].split()) <= ids
    named = [found["id"] for _, found in page.elements if "id" in found]
    assert len(named) == len(set(named))


def test_what_it_was_made_with(record):
    record["network"] |= {"runtime": None, "input_mean": [123.7, 116.8, 103.9]}
    text = page_of(record).text
    assert "name net" in text
    assert "input size 9 \N{MULTIPLICATION SIGN} 9" in text
    assert "input mean 123.7, 116.8, 103.9" in text
    assert "runtime" not in text
    assert "training 2.0" in text
    assert "seed 3" in text
    assert "all 3 classes 3 0 4" in text


def test_audit_findings_bad_images_and_caveats(pictures):
    page = page_of(
        made_up(
            LABELS,
            pictures,
            [0, 0, 1, 2],
            [0, 1, 1, 2],
            audit=[
                Finding(pictures[2], "dog", "owl", 0.99, LABEL),
                Finding(pictures[1], "cat", "cat", 0.99, DUPLICATE, pictures[0]),
            ],
            bad_images=[BadImage("photos/cat/broken.jpg", "is a broken image")],
            caveats=["the photos are drawings"],
        )
    )
    assert "labelled dog , looks like owl probably wrong" in page.text
    assert "1 photo is nearly the same as another of the same class" in page.text
    assert "cat/broken.jpg is a broken image" in page.text
    assert "Note: the photos are drawings" in page.text
    assert "Look at 1 photo whose label may be wrong" in page.text


def test_without_an_audit_nothing_is_said_of_one(record):
    assert "Labels that may be wrong" not in page_of(record).text
    record["audit"] = []
    assert (
        "Labels that may be wrong, and duplicates The audit found no suspicious photos."
        in page_of(record).text
    )


def test_ways_of_training_are_compared_where_that_was_asked_for(pictures, record):
    compared = made_up(LABELS, pictures, [0, 0, 1, 2], [0, 1, 1, 2], comparison=COMPARISON)
    text = page_of(compared).text
    assert "head 75.0% 100.0% 70.0% 1.250 0 1.5 " in text
    assert "all (exported) 50.0% 87.5% 80.0% 0.500 9 1,102.0 " in text
    assert "The run chose the method with the lowest cross entropy on the validation photos" in text
    assert "before export, on all test photos (4)" in text
    assert "Comparison of training methods" not in page_of(record).text


def test_other_formats_are_compared_with_the_graph(pictures, record):
    checks = {"pixels": Agreement(200, 0.985, 0.25, 150, 153), "files' bytes": None}
    made = Made(
        "tflite", "m.tflite", b"", "", "pixels", kind="tflite_int8", size=604_000, checks=checks
    )
    text = page_of(
        made_up(LABELS, pictures, [0, 0, 1, 2], [0, 1, 1, 2], exports=[made.describe()])
    ).text
    assert "tflite_int8 0.6 pixels 200 98.5% 0.25 150 153" in text
    assert "Other formats" not in page_of(record).text


def test_a_comparison_without_test_photos_has_no_test_figures():
    nan = math.nan
    attempt = methods.Attempt(methods.ALL, None, None, Evaluation(0.5, math.inf, 2), nan, nan, 1.0)
    compared = methods.describe([attempt], methods.ALL)
    text = page_of(made_up(LABELS, [], [], [], comparison=compared)).text
    assert "all (exported) - - 50.0% - 0 1.0 " in text
    assert "before export" not in text


def test_without_test_photos_it_says_that_nothing_is_known():
    record = made_up(LABELS, [], [], [], sizes=[], course=[])
    text = page_of(record).text
    assert "The accuracy of this model is unknown" in text
    assert "Hold out some photos" in text
    assert "Would more photos help? Unknown." in text
    assert "Class by class" not in text
    assert "nan" not in text.lower()


def test_the_title_names_folder_classes_photos_and_network(record):
    record["network"]["name"] = "efficientnet_lite0"
    record["options"]["image_dir"] = "some/flowers/"
    page = page_of(record)
    assert page.text.startswith("flowers: 3 classes, 7 photos, EfficientNet-Lite0 ")
    assert "UTC flowers: 3 classes, 7 photos, EfficientNet-Lite0 How good is" in page.text


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ("models/retrained_graph.pb", "python label_image.py photo.jpg"),
        ("a b.pb", "python label_image.py --graph 'a b.pb' photo.jpg"),
    ],
)
def test_how_to_label_a_photo_names_the_graph_where_it_must(record, graph, said):
    record["options"]["output_graph"] = graph
    assert f"Label a photo: {said}" in page_of(record).text


def test_a_remark_is_a_plain_line(pictures):
    caveats = ["lite0 is used", "the photos are drawings"]
    facts = {"caveats": caveats, "remarks": caveats[:1]}
    page = page_of(made_up(LABELS, pictures, [0, 0, 1, 2], [0, 1, 1, 2], **facts))
    assert len(page.all("p", **{"class": "notice"})) == 1
    assert "How this model was made lite0 is used" in page.text


def test_names_break_after_dots_and_dashes():
    assert html.breakable("a-b.c<") == "a-<wbr>b.<wbr>c&lt;"


# -- names of any kind -----------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }} & </style>",
]


def test_names_cannot_become_markup(pictures):
    paths = [f"photos/{label}/<b>{number}\n.jpg" for number, label in enumerate(HOSTILE)]
    page = page_of(
        made_up(
            HOSTILE,
            paths,
            [0, 1, 2],
            [1, 1, 0],
            options={"image_dir": HOSTILE[0], "seed": 0},
            warnings=[HOSTILE[1]],
            caveats=[HOSTILE[2]],
            bad_images=[BadImage(HOSTILE[0], HOSTILE[1])],
            audit=[Finding(paths[0], HOSTILE[0], HOSTILE[1], 0, LABEL)],
        )
    )
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert not any(name.startswith("on") for _, found in page.elements for name in found)
    for name in HOSTILE:
        assert name in page.text


def test_undecodable_and_right_to_left_names():
    paths = ["photos/\udcff/\udcfe.jpg", "photos/קוף/\u202egpj.exe", "photos/x/ü.jpg"]
    page = page_of(made_up(["a\udcff", "קוף", "x"], paths, [0, 1, 2], [1, 1, 2]))
    assert "\\udcfe.jpg" in page.text
    assert "קוף" in [word.strip() for word, _ in page.words]
    isolated = page.all("bdi", title="photos/קוף/\u202egpj.exe")
    assert isolated


def test_the_policy_admits_this_style_and_script_and_no_address(record):
    content = html.render(record, Thumbnails()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', content)
    policy = policy.replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", content, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:|//)", content)
    assert " style=" not in content


# -- many classes ----------------------------------------------------------------------------


def many(classes, wrong):
    labels = [f"class {number:04d}" for number in range(classes)]
    targets = list(range(200))
    answered = [(t + 1) % classes if t < wrong else t for t in targets]
    return made_up(
        labels, [f"p/{t}.jpg" for t in targets], [t % classes for t in targets], answered
    )


@pytest.mark.parametrize("classes", [200, 1000])
def test_of_many_classes_the_confused_ones_are_shown(classes):
    content = html.render(many(classes, 5), Thumbnails())
    page = Page(content)
    assert f"This table shows the 6 classes with the most mistakes, of {classes}." in page.text
    assert len(page.all("th", scope="col")) < 60
    assert f"60 of {classes} classes" in page.text
    assert len(content) < 300_000


def test_many_classes_without_a_mistake():
    text = page_of(many(200, 0)).text
    assert "The model labelled every tested photo correctly" in text
    assert "The model made no mistakes on the tested photos." in text


def test_two_classes(pictures):
    page = page_of(made_up(["no", "yes"], pictures, [0, 1, 1, 0], [0, 1, 0, 0]))
    assert len([b for b in page.all("button") if b.get("aria-controls")]) == 3


def test_right_photos_are_bounded_and_mistakes_come_first(pictures):
    targets = [0] * 150 + [1] * 50
    answered = [0] * 140 + [1] * 60
    record = made_up(["a", "b"], pictures[:1] * 200, targets, answered)
    view = html.make_view(record, Thumbnails())
    shown = {cell: len(photos) for cell, photos in view["shown"]["test"]["cells"].items()}
    assert shown == {(0, 0): 12, (0, 1): 10, (1, 1): 12}
    text = page_of(record).text
    assert "a , recognised 12 of 140 photos Close" in text
    assert "a mistaken for b Close" in text


# -- thumbnails ------------------------------------------------------------------------------


def test_a_thumbnail_is_turned_as_its_exif_says(tmp_path):
    image = Image.new("RGB", (200, 100), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    thumbnail = Image.open(io.BytesIO(make_thumbnail(tmp_path / "turned.jpg")))
    assert thumbnail.size == (56, 112)


def test_transparency_is_white_and_what_is_no_image_is_none(tmp_path):
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    thumbnail = Image.open(io.BytesIO(make_thumbnail(tmp_path / "clear.png")))
    assert thumbnail.getpixel((25, 25)) == (255, 255, 255)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    assert make_thumbnail(tmp_path / "broken.jpg") is None
    assert make_thumbnail(tmp_path / "none.jpg") is None
    assert make_thumbnail("nul\0.jpg") is None


# -- cross-validated photos ------------------------------------------------------------------


@pytest.fixture
def led(pictures):
    """The four photos tested, one of them wrong; they and others cross-validated, two wrong."""
    validated = cross_validated(
        [*pictures, "gone.jpg", "gone2.jpg"], [0, 0, 1, 2, 2, 2], [0, 0, 1, 2, 0, 1], 3
    )
    record = made_up(LABELS, pictures, [0, 0, 1, 2], [0, 1, 1, 2], validated=validated)
    record["photos"][2]["training"] = 0  # so that six photos are all
    return record


def test_the_switch_shows_the_same_three_sections_of_either_photos(led):
    page = page_of(led)
    radios = page.all("input", type="radio", name="photos")
    assert [(r["id"], "checked" in r) for r in radios] == [
        ("show-test", False),
        ("show-cross_validation", True),  # the page leads with it
    ]
    assert (
        "three sections show 4 test photos all 6 photos, cross-validated Which classes" in page.text
    )
    titles = {"test": "4 test photos", "cross_validation": "all 6 photos, cross-validated"}
    for kind, photos in titles.items():
        text = page.within(f"of-{kind}")
        for heading in (
            "Which classes does the model confuse?",
            "Class by class",
            "The most confident mistakes",
        ):
            assert text.count(f"{heading} {photos}") == 1
    assert "The same on all photos" not in page.text


def test_each_side_of_the_switch_has_its_own_figures(led):
    page = page_of(led)
    of_test, of_all = page.within("of-test"), page.within("of-cross_validation")
    assert "cat 2 1 100% of 1 50% of 2 67%" in of_test
    assert "owl 1 1 100% of 1 100% of 1 100%" in of_test
    assert "cat 2 2 67% of 3 100% of 2 80%" in of_all
    assert "owl 3 1 100% of 1 33% of 3 50%" in of_all
    assert "cat mistaken for dog" in of_test
    assert "owl mistaken for dog" in of_all
    assert "cat mistaken for dog" not in of_all
    assert "1 mistake. Often" in of_test
    assert "b.jpg true: cat answer: dog probability: 80.0%" in of_test
    assert "2 mistakes, from the highest probability to the lowest. Often" in of_all
    assert "gone.jpg true: owl answer: cat probability: 80.0%" in of_all


def test_the_headline_the_box_and_the_matrix_agree(led):
    page = page_of(led)
    shown = led["cross_validation"]
    assert (shown["correct"], shown["photos"]) == (4, 6)
    assert "66.7% right" in page.text
    assert "Each of 6 photos was labelled by a model" in page.text
    assert "; 4 are right. The model itself was tested on only 4 photos: it labelled 3" in page.text
    assert "always guessing owl : 50.0%" in page.text
    cells = [c for c in shown["confusion"] if c["truth"] == c["answer"]]
    assert sum(cell["photos"] for cell in cells) == 4
    assert sum(row["correct"] for row in shown["classes"]) == 4
    assert "Its accuracy was measured on 6 photos" in page.text


def test_a_photo_on_both_sides_is_embedded_once(led, pictures):
    page = page_of(led)
    assert len(page.all("image")) == 4
    assert len(page.all("use")) == 4 + 1 + 4  # the tested ones, the mistake again; the other side
    assert len(page.all("span", **{"class": "missing"})) == 4  # two that are gone, twice


def test_the_pictures_of_either_side_are_bounded(pictures):
    targets, answered = [0] * 600, [0] * 300 + [1] * 300
    paths = [f"{n}.jpg" for n in range(600)]
    validated = cross_validated(paths, targets, answered, 2)
    record = made_up(["a", "b"], pictures, [0] * 4, [1] * 4, validated=validated)
    asked = []
    html.make_view(record, SimpleNamespace(of=lambda paths: asked.extend(paths) or {}))
    assert len(set(asked)) == 4 + html.MOST_WRONG + html.MOST_RIGHT


def test_where_the_test_leads_the_switch_starts_on_it(led):
    led["cross_validation"] |= {"leads": False, "untuned": True, "photos": 5}
    page = page_of(led)
    assert "checked" in page.all("input", id="show-test")[0]
    assert "checked" not in page.all("input", id="show-cross_validation")[0]
    assert "4 test photos 5 photos, cross-validated before fine-tuning Which classes" in page.text


def test_with_only_one_kind_of_photos_there_is_no_switch(record, led):
    page = page_of(record)
    assert page.all("input") == []
    assert "Which classes does the model confuse? 4 test photos" in page.within("of-test")
    empty = made_up(LABELS, [], [], [])
    for name in ("test", "predictions", "classes", "confusion", "calibration"):
        led[name] = empty[name]
    page = page_of(led)
    assert page.all("input") == []
    assert "66.7% right" in page.text
    assert "No photos were held out to test the model itself." in page.text
    assert page.within("of-test") == ""
    assert "2 mistakes" in page.within("of-cross_validation")


def test_a_small_test_does_not_lead():
    paths = [f"{n}.jpg" for n in range(100)]
    validated = cross_validated(paths, [0, 1] * 50, [0, 1] * 43 + [1, 0] * 7, 2)
    record = made_up(["a", "b"], paths[:5], [0] * 5, [0] * 5, validated=validated)
    text = page_of(record).text
    assert "86.0% right" in text
    assert "Of 100 new photos like these, expect 75 to 93 to be right." in text
    assert "tested on only 5 photos: it labelled 5 correctly." in text
    assert "100.0% right" not in text
    assert "Test on more photos" not in text
