"""Makes the pictures in docs/pictures/: python docs/pictures.py

Needs requirements-dev.txt, an installed Chromium or Chrome, and Linux or macOS. It draws the
example photos, moves eight drawings into wrong folders so that the report has something to find,
runs both commands, and takes screenshots of what they print and of the report.
"""

import fcntl
import html
import io
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from functools import partial
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from retraining.examples.drawings import NOTE_NAME, draw_flower_photos  # noqa: E402

WRONG = {"daisy": "tulips", "roses": "tulips", "dandelion": "sunflowers", "tulips": "roses"}
PER_PAIR = 2  # drawings of a class in the folder of another
TRAIN = "python retrain.py --image_dir flower_photos --architecture efficientnet_lite0"
LABEL = "python label_image.py photo.jpg"
COLUMNS = 92  # of the terminal
WIDTH, SCALE = 800, 1.5  # CSS pixels, and pixels of the picture for each
SECTIONS = {
    "report-matrix": "Which classes does the model confuse?",
    "report-classes": "Class by class",
    "report-mistakes": "The most confident mistakes",
    "report-labels": "Labels that may be wrong",
    "report-photos": "Would more photos help?",
    "report-probabilities": "Can you trust its probabilities?",
}
TERMINAL = """<!DOCTYPE html><meta charset="utf-8"><style>
body {{ margin: 0; background: #1d2330; }}
pre {{ margin: 0; padding: 18px 22px; color: #dbe1ec; white-space: pre-wrap;
      overflow-wrap: anywhere; font: 13px/1.5 "DejaVu Sans Mono", monospace; }}
b {{ color: #8fd19e; font-weight: normal; }}
</style><pre>{}</pre>"""


def prepare(folder: Path) -> None:
    """Fills a folder with the commands, the mislabelled drawings and one photo to label."""
    photos = folder / "flower_photos"
    draw_flower_photos(photos)
    (photos / NOTE_NAME).unlink()
    for given, wrong in WRONG.items():
        for path in sorted((photos / given).glob("drawing_*"))[:PER_PAIR]:
            path.rename(photos / wrong / f"{given}_{path.name}")
    draw_flower_photos(folder / "others", 1, seed=1)
    shutil.copy(folder / "others" / "daisy" / "drawing_00.jpg", folder / "photo.jpg")
    for script in ("retrain.py", "label_image.py"):
        shutil.copy(ROOT / script, folder)


def output_of(command: str, folder: Path) -> str:
    """Returns, as HTML, a command and what it prints on a terminal, progress bars at their end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    words = [sys.executable, *command.split()[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        words, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as running:
        os.close(theirs)
        said = b"".join(iter(partial(read_terminal, ours), b""))
    os.close(ours)
    if running.returncode:
        sys.exit(said.decode())
    lines = [line.rsplit("\r", 1)[-1] for line in said.decode().split("\r\n")]
    return f"<b>$ {html.escape(command)}</b>\n" + html.escape("\n".join(lines))


def read_terminal(terminal: int) -> bytes:
    """Returns what comes next from a pseudo-terminal, and b"" at its end."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux tells the end
        return b""


def save(png: bytes, name: str) -> None:
    """Writes a picture with 128 colours."""
    with Image.open(io.BytesIO(png)) as picture:
        path = DOCS / "pictures" / f"{name}.png"
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


def section_of(page: Page, heading: str) -> Locator:
    """Returns the visible section of the report with a heading."""
    sections = page.locator("main > section:visible")
    return sections.filter(has=page.get_by_role("heading", name=heading))


def photograph_report(page: Page, report: Path) -> None:
    """Makes a picture of the top of the report and one of each section."""
    page.goto(report.as_uri())
    advice = section_of(page, "What to do next").bounding_box()
    end = advice["y"] + advice["height"] + 12
    top = {"x": 0, "y": 0, "width": WIDTH, "height": end}
    save(page.screenshot(clip=top, full_page=True), "report")
    for name, heading in SECTIONS.items():
        section = section_of(page, heading)
        if name == "report-matrix":
            section.locator("td.wrong button").first.click()
        save(section.screenshot(), name)


def main() -> None:
    (DOCS / "pictures").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        folder = Path(temporary)
        prepare(folder)
        said = "\n".join(output_of(command, folder) for command in (TRAIN, LABEL))
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox"] * (hasattr(os, "getuid") and os.getuid() == 0),
        )
        page = browser.new_page(
            viewport={"width": WIDTH, "height": 900},
            device_scale_factor=SCALE,
            color_scheme="light",
        )
        page.set_content(TERMINAL.format(said.rstrip()))
        save(page.locator("pre").screenshot(), "terminal")
        photograph_report(page, folder / "models" / "retrained_report.html")
        browser.close()


if __name__ == "__main__":
    main()
