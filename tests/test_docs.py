"""The README and the pages of docs/: their examples run, their links and flags are real.

Each block of ```sh or ```python runs, in the order of its page, in a folder that holds what
`sandbox` puts there. A block that cannot run there says why in the line before it:

    <!-- not run: installs packages -->

A ```python block that begins with `# NAME.py` is saved as that file, which later ones may import.
Only exit codes are looked at. Output, and what is no command, goes into blocks of ```text.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import pytest

from retraining.cli import flags
from retraining.cli import label_flags as cli
from retraining.examples.drawings import draw_flower_photos
from tests import ROOT, tiny

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}

# Of other programs, each up to its first hyphen.
OTHER_FLAGS = {
    *("--address", "--base", "--check", "--count", "--find", "--generate", "--help", "--left_out"),
    *("--graphdef", "--inputs", "--outputs", "--output", "--dir", "--tag_set", "--signature_def"),
    *("--input_format", "--mode", "--output_node_names", "--signature_name"),
    *("--from", "--logdir", "--most", "--no", "--only", "--out", "--python", "--strict"),
}


# -- examples -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and why it is not run, if so."""

    language: str
    text: str
    line: int
    reason: str | None = None


FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    flags=re.M | re.S,
)


def blocks_of(text):
    """The fenced blocks of a page."""
    return [
        Block(
            match["language"], match["text"], text[: match.start()].count("\n") + 1, match["reason"]
        )
        for match in FENCE.finditer(text)
    ]


def examples_of(text):
    """The blocks of a page that run."""
    return [b for b in blocks_of(text) if b.language in ("sh", "python") and not b.reason]


def file_of(text):
    """The file that a block of Python is saved as."""
    named = re.match(r"# (\w+\.py)\n", text)
    return named[1] if named else "example.py"


def test_blocks_are_found_with_their_reasons():
    text = (
        "a\n```sh\nls\n```\n<!-- not run: no net -->\n```python\nx\n\ny\n```\n\n```text\nz\n```\n"
    )
    assert blocks_of(text) == [
        Block("sh", "ls\n", 2),
        Block("python", "x\n\ny\n", 5, "no net"),
        Block("text", "z\n", 12),
    ]
    assert [block.text for block in examples_of(text)] == ["ls\n"]


@pytest.mark.parametrize("name", NAMES)
def test_every_block_says_what_it_is(name):
    known = {"sh", "python", "text", "json", "markdown"}
    assert [b for b in blocks_of(TEXTS[name]) if b.language not in known] == []
    assert TEXTS[name].count("\n```") == 2 * len(blocks_of(TEXTS[name]))


def tiny_networks(folder):
    """Puts networks of a few numbers where the commands look for the real ones."""
    inception = tiny.tiny_inception()
    tiny.write_graph(f"{folder}/inception_dec_2015/tensorflow_inception_graph.pb", inception)
    tiny.write_graph(f"{folder}/mobilenet_v1_0.25_128/frozen_graph.pb", tiny.tiny_mobilenet())
    lite = tiny.tiny_inception(seed=1)
    for node in lite.node:
        node.name = node.name.replace("pool_3/_reshape", "pool/vector")
        inputs = [name.replace("pool_3/_reshape", "pool/vector") for name in node.input]
        node.input[:] = inputs
    tiny.write_graph(f"{folder}/efficientnet_lite0/efficientnet_lite0.pb", lite)


def run_in(folder, command, python):
    return subprocess.run(
        command, cwd=folder, env=python.environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, warm_python):
    """The sandbox that each page gets a copy of:

    - `retrain.py` and `label_image.py`
    - `flower_photos/`: 20 drawings in each of five classes; `new_photos/`: three others in each
    - `holiday/`: 10 drawings in one folder; `photo.jpg`: one
    - `photos.csv`: a table of `flower_photos`, with the columns path and label
    - `models/`: tiny networks in the places of `inception_v3`, `efficientnet_lite0` and
      `mobilenet_0.25_128`, and what `python retrain.py --image_dir flower_photos` writes, with
      enough validation photos for a temperature and a score for unknown images
    """
    folder = tmp_path_factory.mktemp("sandbox") / "prepared"
    folder.mkdir()
    for script in ("retrain.py", "label_image.py"):
        shutil.copy(ROOT / script, folder)
    draw_flower_photos(folder / "flower_photos", 20)
    draw_flower_photos(folder / "new_photos", 3, seed=1)
    (folder / "holiday").mkdir()
    for path in (folder / "new_photos").glob("*/drawing_0[01].jpg"):
        shutil.copy(path, folder / "holiday" / f"{path.parent.name}_{path.name}")
    shutil.copy(folder / "new_photos" / "daisy" / "drawing_02.jpg", folder / "photo.jpg")
    photos = sorted((folder / "flower_photos").glob("*/*.jpg"))
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in photos]
    (folder / "photos.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    tiny_networks(folder / "models")
    command = ["python", "retrain.py", "--image_dir", "flower_photos"]
    done = run_in(folder, [*command, "--validation_percentage", "30"], warm_python)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def sandbox(prepared, tmp_path):
    folder = tmp_path / "sandbox"
    shutil.copytree(prepared, folder)
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the examples are for a POSIX shell")
@pytest.mark.parametrize("name", [name for name in NAMES if examples_of(TEXTS[name])])
def test_the_examples_of_a_page_run(name, sandbox, warm_python):
    for block in examples_of(TEXTS[name]):
        command = ["sh", "-e", "-c", block.text]
        if block.language == "python":
            file = file_of(block.text)
            (sandbox / file).write_text(block.text, encoding="utf-8")
            command = ["python", file]
        done = run_in(sandbox, command, warm_python)
        assert done.returncode == 0, f"{name}, line {block.line}:\n{block.text}\n{done.stderr}"


def test_an_example_that_fails_is_noticed(sandbox, warm_python):
    for line, code in (
        ("python label_image.py no.jpg", 1),
        ("python retrain.py --no_flag", 2),
        ("false\ntrue", 1),
    ):
        assert run_in(sandbox, ["sh", "-e", "-c", line], warm_python).returncode == code
    (sandbox / "example.py").write_text("raise ValueError")
    assert run_in(sandbox, ["python", "example.py"], warm_python).returncode == 1


# -- flags --------------------------------------------------------------------------------------


def entries_of(parser):
    """The entries of --help, from the names of a flag to the end of its text."""
    return re.split(r"^  (?=-)", parser.format_help(), flags=re.M)[1:]


def flags_of(parser):
    names = [re.split(r"  |\n", entry)[0] for entry in entries_of(parser)]
    return set(re.findall(r"--\w+", " ".join(names))) - {"--help"}


PARSERS = {
    "flags-retrain.md": flags.build_parser(),
    "flags-label-image.md": cli.build_parser(),
}


@pytest.mark.parametrize("name", PARSERS)
def test_the_tables_of_flags_list_exactly_those_of_help(name):
    rows = [line for line in TEXTS[name].splitlines() if line.startswith("|")]
    first_cells = " ".join(row.split("|")[1] for row in rows)
    assert set(re.findall(r"--\w+", first_cells)) == flags_of(PARSERS[name])


def flags_of_tools():
    """The flags of the benchmarks and of the matrix of faults, as their sources name them."""
    sources = (*ROOT.glob("benchmarks/*.py"), ROOT / "tests" / "faults.py")
    named = (re.findall(r'"(--[a-z]\w*)"', path.read_text(encoding="utf-8")) for path in sources)
    return set().union(*named)


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_that_a_page_names_exists(name):
    known = set().union(*map(flags_of, PARSERS.values()), flags_of_tools()) | OTHER_FLAGS
    assert set(re.findall(r"(?<![\w-])--[a-z]\w*", TEXTS[name])) - known == set()


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_every_flag_has_help(parser):
    for entry in entries_of(parser):
        assert re.match(r"\S.*?(  |\n) *\S", entry)


# -- links --------------------------------------------------------------------------------------


def prose_of(text):
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "`code`", FENCE.sub("", text))


def anchors_of(text):
    """The anchors that GitHub gives to the headings of a page."""
    anchors = []
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchors.append(f"{slug}-{n}" if (n := anchors.count(slug)) else slug)
    return anchors


def links_of(text):
    """What the links and pictures of a page point to."""
    return [target for target, _ in re.findall(r"\]\(([^)\s]+)(\s[^)]*)?\)", prose_of(text))]


def leads_somewhere(page, link):
    """Whether a relative link of a page names a file and, if any, one of its anchors."""
    parts = urlsplit(link)
    target = page.parent / unquote(parts.path) if parts.path else page
    if not target.exists():
        return False
    return not parts.fragment or parts.fragment in anchors_of(target.read_text("utf-8"))


def wrong_links(page, text):
    """The relative links of a page that lead nowhere."""
    relative = [link for link in links_of(text) if not urlsplit(link).scheme]
    return [link for link in relative if not leads_somewhere(page, link)]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_and_anchors_lead_somewhere(page):
    assert wrong_links(page, TEXTS[page.name]) == []


def test_wrong_links_and_anchors_are_found(tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# A `b`: c, d\n\n## Twice\n\n## Twice\n")
    text = (
        "# Here\n[x](other.md#a-b-c-d) [x](other.md#twice-1) [x](#here) [x](https://a.b/c.md)\n"
        "`[x](code.md)`\n[1](gone.md) [2](other.md#gone) [3](#gone) ![4](gone.png)\n"
    )
    page.write_text(text)
    assert wrong_links(page, text) == ["gone.md", "other.md#gone", "#gone", "gone.png"]


def nav_of(config):
    """The pages that the site's navigation lists."""
    return re.findall(r'= "([\w-]+\.md)"', config)


def test_the_navigation_lists_every_page_once():
    config = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    assert sorted(nav_of(config)) == sorted(NAMES[1:])


def test_ci_runs_the_readmes_test_command():
    commands = re.findall(r"^python3 -m venv .*$", TEXTS["README.md"], flags=re.M)
    assert len(commands) == 2
    install, test = commands[1].rsplit(" && ", 1)
    assert {install, test} <= set((ROOT / ".ci" / "run").read_text().splitlines())
