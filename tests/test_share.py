"""share/: man pages and shell completions are those of the parsers, and work."""

import shutil
import subprocess
import sys

import pytest

from retraining.cli.parser import Parser
from retraining.cli.reference import parsers
from retraining.cli.start import VERSION
from share import write


def needs(program):
    missing = sys.platform == "win32" or shutil.which(program) is None
    return pytest.mark.skipif(missing, reason=f"{program} is not here")


def test_the_files_are_up_to_date():
    """If not: python -m share.write"""
    for path, text in write.files().items():
        assert path.read_text(encoding="utf-8") == text, path


def small_parser():
    parser = Parser(prog="try", description="Tries it.\n\n.files and ~ are read.\n")
    add = parser.add_argument_group("what's read").add_argument
    add("--from", "--source", default="-", help="it's `here`: a [file]")
    add("--way", choices=("near", "far"), help="which")
    return parser


def test_a_man_page_escapes_what_troff_would_read(monkeypatch):
    monkeypatch.setitem(write.OTHER, "try", "other-one")
    page = write.man_page("try", small_parser())
    assert page.startswith(f'.TH TRY 1 "" "{VERSION}"\n.SH NAME\ntry \\- Tries it\n')
    assert ".SH DESCRIPTION\n\\&.files and \\(ti are read.\n" in page
    assert (
        ".SS What\\(aqs read\n.TP\n\\fB\\-\\-from\\fR, \\fB\\-\\-source\\fR \\fIFROM\\fR\n" in page
    )
    assert "\nit\\(aqs \\(gahere\\(ga: a [file] (default: \\-)\n" in page
    assert page.endswith(".SH SEE ALSO\n.BR other\\-one (1)\n")


def test_zsh_gets_help_choices_and_files():
    script = write.for_zsh("try", small_parser())
    assert script.startswith("#compdef try\n\n_arguments \\\n    '-h[show this")
    assert "    '--from[it'\\''s `here`\\: a \\[file\\]]:value:_files' \\\n" in script
    assert script.endswith("    '--way[which]:value:(near far)'\n")


@needs("mandoc")
def test_man_pages_are_sound():
    for command in parsers():
        page = write.FOLDER / "man" / "man1" / f"{command}.1"
        done = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning", str(page)], capture_output=True, text=True
        )
        assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []


@needs("bash")
@pytest.mark.parametrize(
    ("command", "before", "word", "offered"),
    [
        ("retrain", "--split_by", "", ["auto", "folders", "content", "path"]),
        ("retrain", "photos", "--output_", ["--output_graph", "--output_labels"]),
        ("label-image", "--sort_by", "l", ["link"]),
        ("label-image", "label-image", "--num", ["--num_top_predictions"]),
        ("label-image", "label-image", "photo", []),  # bash itself then offers files
    ],
)
def test_bash_offers_flags_and_choices(command, before, word, offered):
    function = "_" + command.replace("-", "_")
    script = write.FOLDER / "bash-completion" / "completions" / command
    code = 'source "$1"; "$2" "$3" "$4" "$5"; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", code, "bash", str(script), function, command, word, before],
        capture_output=True,
        text=True,
    )
    assert (done.stdout.split(), done.stderr) == (offered, "")


@needs("zsh")
def test_zsh_reads_the_completions():
    for command in parsers():
        script = write.FOLDER / "zsh" / "site-functions" / f"_{command}"
        subprocess.run(["zsh", "-n", str(script)], check=True)
