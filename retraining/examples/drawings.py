"""Draws stand-ins for the flower_photos set, used if the photos cannot be fetched.

Size, background, light and arrangement do not depend on the kind of flower, so that only the plants
tell the classes apart. A picture is painted at twice its size and reduced, for smooth edges.

Colours are RGB in 0..255. Points are complex numbers, right + down * 1j. Angles are radians, 0 to
the right, clockwise on screen.
"""

import io
import os
from cmath import rect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import cos, pi, sqrt, tau
from pathlib import Path
from random import Random

from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter, ImageOps

from retraining.errors import RetrainingError
from retraining.system.atomic import WriteError, write_files

Color = tuple[int, ...]
Outline = Sequence[complex]
Progress = Callable[[int, int], object]

PHOTOS_URL = "http://download.tensorflow.org/example_images/flower_photos.tgz"
PHOTOS_BYTES = 228_813_984
NOTE_NAME = "THESE_ARE_DRAWINGS.txt"
NOTE = f"""\
The pictures in this folder are drawings, not photos.

retrain.py drew them because the public flower_photos set could not be downloaded. They stand in for
it, so that the tool can be tried without a network. An accuracy measured on them says nothing about
real flowers.

To use the real photos:
1. Delete the drawings and this note. The drawings are daisy/drawing_*.jpg and likewise in
   dandelion, roses, sunflowers and tulips; retrain.py put nothing else into these folders.
2. Fetch {PHOTOS_URL}
   ({PHOTOS_BYTES:,} bytes).
3. Unpack it (tar xzf flower_photos.tgz) so that flower_photos/daisy/... appear.
4. Run retrain.py again.
"""


class DrawingError(RetrainingError):
    """The drawings cannot be written, as in a read-only folder or on a full disk."""


def shade(color: Color, amount: float) -> Color:
    """Darkens (amount < 0, -1 gives black) or lightens (amount > 0, 1 gives white) a colour."""
    goal = 0 if amount < 0 else 255
    return tuple([round(value + (goal - value) * abs(amount)) for value in color])


def pick_color(names: str, rng: Random) -> Color:
    """Returns a colour close to one of the names, which spaces separate."""
    return shade(ImageColor.getrgb(rng.choice(names.split())), rng.uniform(-0.15, 0.1))


def blade(width: float, base: float, tip: float) -> Outline:
    """Returns the outline of a petal or leaf from 0 to 1; a small exponent makes an end blunt."""
    along = [(1 - cos(step * pi / 8)) / 2 for step in range(9)]
    half = [t**base * (1 - t) ** tip for t in along]
    edge = [complex(t, h / max(half) * width / 2) for t, h in zip(along, half, strict=True)]
    return (*edge, *(point.conjugate() for point in edge[-2:0:-1]))


@dataclass(frozen=True)
class Brush:
    """Paints in the plane of a flower, whose middle is 0 and whose radius is 1.

    `center` and `radius` are in pixels. `squash` is 1 in the view from the front, and
    approaches 0 in that from the edge; `tilt` then turns the flower.
    """

    draw: ImageDraw.ImageDraw
    rng: Random
    center: complex
    radius: float
    tilt: float
    squash: float

    def moved(self, offset: complex) -> "Brush":
        """Returns a brush that is moved by a distance on screen, in radii."""
        return replace(self, center=self.center + offset * self.radius)

    def pixels(self, points: Outline, turn: complex) -> list[tuple[float, float]]:
        """Multiplies the points by `turn` and returns them as x, y in pixels."""
        turn *= self.radius
        same = rect((1 + self.squash) / 2, self.tilt) * turn
        mirrored = rect((1 - self.squash) / 2, self.tilt) * turn.conjugate()
        placed = [same * point + mirrored * point.conjugate() + self.center for point in points]
        return [(point.real, point.imag) for point in placed]

    def fill(self, outline: Outline, turn: complex, color: Color, rim: float = 0) -> None:
        """Paints a shape; `rim` is the shade of its edge."""
        self.draw.polygon(self.pixels(outline, turn), color, shade(color, rim) if rim else None)

    def petal(self, outline: Outline, turn: complex, color: Color) -> None:
        """Paints a petal or leaf that has a dark rim and, if it is large, a vein."""
        color = shade(color, self.rng.uniform(-0.12, 0.12))
        self.fill(outline, turn, color, rim=-0.4)
        if self.radius > 80:
            self.fill((0.1, 0.5 + 0.02j, 0.85, 0.5 - 0.02j), turn, shade(color, -0.15))

    def ring(self, petal: Outline, count: int, reach: float, color: Color) -> None:
        """Paints petals side by side that differ a little in angle, length and colour."""
        for index in self.rng.sample(range(count), count):
            angle = (index + self.rng.gauss(0, 0.12)) * tau / count
            self.petal(petal, rect(reach * self.rng.uniform(0.88, 1.06), angle), color)

    def disc(self, reach: float, color: Color) -> None:
        """Paints a disc with seeds in a sunflower's spiral (golden angle)."""
        self.fill([rect(reach, step * tau / 24) for step in range(24)], 1, color, rim=-0.4)
        spiral = [rect(reach * sqrt(step / 70), step * 2.4) for step in range(70)]
        for step, seed in enumerate(self.pixels(spiral, 1)):
            self.draw.circle(seed, self.radius * reach / 18, shade(color, -0.4 + step % 2 * 0.6))


def paint_daisy(brush: Brush, color: Color) -> None:
    brush.ring(blade(0.3, 0.6, 0.25), brush.rng.randint(14, 22), 1, color)
    brush.disc(0.3, (225, 170, 30))


def paint_dandelion(brush: Brush, color: Color) -> None:
    for step, reach in enumerate((1, 0.78, 0.5)):
        risen = brush.moved(-0.13j * step * (1 - brush.squash))
        risen.ring(blade(0.15, 0.5, 0.15), 30 - 6 * step, reach, shade(color, -0.06 * step))


def paint_sunflower(brush: Brush, color: Color) -> None:
    brush.ring(blade(0.35, 0.8, 0.7), brush.rng.randint(18, 26), 1, color)
    brush.disc(brush.rng.uniform(0.36, 0.48), (80, 50, 30))


def paint_rose(brush: Brush, color: Color) -> None:
    """Paints layers of broad petals, smaller and darker inwards, above those of the cup."""
    fan = (0, *(rect(1 - 0.35 * abs(k / 4) ** 3, k * 0.21) for k in range(-4, 5)))
    for lean in (-0.7, 0.7, 0):
        replace(brush, squash=1, tilt=pi / 2 + lean).fill(fan, 0.93, shade(color, -0.25), rim=-0.4)
    brush = replace(brush, squash=max(0.65, brush.squash))
    for reach in (1, 0.86, 0.71, 0.57, 0.44, 0.31, 0.18):
        layer, start = brush.moved(0.75j * (1 - brush.squash) * (reach - 1)), brush.rng.random()
        for index in range(5):
            turn = rect(reach * brush.rng.uniform(0.93, 1.03), (start + index / 5) * tau)
            layer.fill(fan, turn, shade(color, reach / 2 - 0.3), rim=-0.6)
            layer.fill(fan, turn * 0.88, shade(color, reach / 2 - 0.5))


def paint_tulip(brush: Brush, color: Color) -> None:
    """Paints a cup of five oval petals from the side."""
    gap, petal = brush.rng.uniform(0.14, 0.32), blade(0.5, 0.4, 0.6)
    cup = replace(brush.moved(0.8j), squash=1, tilt=brush.tilt / 2 - pi / 2)
    for lean, tone in ((-0.5, -0.35), (0.5, -0.35), (-1, -0.15), (1, -0.1), (0, 0)):
        cup.petal(petal, rect(1.6 if lean else 1.4, lean * gap), shade(color, tone))


# What paints a flower, the names of its colours, and whether its leaves grow at the stem's foot.
SPECIES: dict[str, tuple[Callable[[Brush, Color], None], str, bool]] = {
    "daisy": (paint_daisy, "white ivory snow thistle", False),
    "dandelion": (paint_dandelion, "gold yellow", True),
    "roses": (paint_rose, "crimson palevioletred linen coral", False),
    "sunflowers": (paint_sunflower, "gold orange", False),
    "tulips": (paint_tulip, "crimson palevioletred gold purple linen", True),
}
LABELS = tuple(SPECIES)


def paint_stem(brush: Brush, height: int, green: Color, basal: bool) -> None:
    """Paints the stem down to the edge of a picture of this height; `basal` leaves grow there."""
    stem = replace(brush, squash=1, tilt=-pi / 2)
    foot = complex(brush.rng.gauss(0, 0.4), (height - brush.center.imag) / brush.radius)
    stem.fill((-0.06, 0.06, foot + 0.06, foot - 0.06), 1j, green)
    leaf = blade(0.2 if basal else 0.5, 0.5, 0.8)
    for share in (0.4, 0.65, 0.85):
        for side in (-1, 1):
            turn = rect(2 if basal else 1, side * (0.4 if basal else 1.2) + brush.rng.gauss(0, 0.2))
            stem.moved(foot if basal else foot * share).petal(leaf, turn, green)


def paint_background(width: int, height: int, rng: Random) -> Image.Image:
    """Paints blurred blotches, some with grass or a horizon, and returns them at twice the size."""
    color = pick_color("darkolivegreen saddlebrown gray steelblue rosybrown tan #333", rng)
    cells = rng.choice((3, 8, 30))
    clouds = Image.frombytes("L", (cells, cells), rng.randbytes(cells**2)).resize((width, height))
    picture = ImageOps.colorize(clouds, shade(color, -0.4), shade(color, rng.uniform(0, 0.4)))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.choice((0, 100))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        draw.line((x, y, x + rng.gauss(0, 8), y + 20), shade(color, rng.uniform(-0.4, 0.3)))
    draw.rectangle((0, height * rng.uniform(0.5, 1.5), width, height * 2), shade(color, -0.3))
    return picture.filter(ImageFilter.BoxBlur(rng.uniform(0, 2))).resize((width * 2, height * 2))


def draw_flower(label: str, rng: Random) -> bytes:
    """Draws a JPEG; its size, background, arrangement and light depend on `rng`, not on `label`."""
    width, height = rng.randint(320, 400) * 2, rng.randint(240, 400) * 2  # of the canvas
    picture = paint_background(width // 4, height // 4, rng)
    picture = picture.resize((width, height), Image.Resampling.NEAREST)
    light = Image.frombytes("RGB", (2, 2), bytes(rng.randint(180, 255) for _ in range(12)))
    count, scale = rng.choice(((1, 0.35), (rng.randint(2, 5), 0.2), (rng.randint(6, 10), 0.11)))
    draw, plants, stream = ImageDraw.Draw(picture), Random(rng.getrandbits(64)), io.BytesIO()
    (paint, colors, basal), squash = SPECIES[label], plants.uniform(0.45, 1)
    color, green = pick_color(colors, plants), pick_color("olivedrab darkgreen seagreen", plants)
    for cell in sorted(rng.sample(range(12), count)):  # of 4 x 3; those higher up are farther away
        x, y = cell % 4 + rng.uniform(0.6, 1.4), cell // 4 + rng.uniform(0.5, 1)
        radius = scale * min(width, height) * rng.uniform(0.8, 1.2)
        center, tilt = complex(x * width / 5, y * height / 4), plants.gauss(0, 0.35)
        brush = Brush(draw, plants, center, radius, tilt, squash)
        paint_stem(brush, height, green, basal)
        paint(brush, color)
    picture = picture.reduce(2)
    ImageChops.multiply(picture, light.resize(picture.size)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def draw_flower_photos(
    folder: Path, per_class: int = 60, seed: int = 0, progress: Progress = lambda done, total: None
) -> int:
    """Writes `folder/<label>/drawing_00.jpg` ... and a note that these are drawings.

    Writes the note first. Leaves existing files alone, so that a second call completes a killed
    run. Calls `progress(done, total)` after each picture. Returns the number of pictures written.

    Raises:
        DrawingError: a file cannot be written.
    """
    write_new(folder / NOTE_NAME, NOTE.encode)
    pictures = [(label, number) for label in LABELS for number in range(per_class)]
    written = 0
    for done, (label, number) in enumerate(pictures, start=1):
        path, rng = folder / label / f"drawing_{number:02d}.jpg", Random(f"{seed} {label} {number}")
        written += write_new(path, partial(draw_flower, label, rng))
        progress(done, len(pictures))
    return written


def write_new(path: Path, make: Callable[[], bytes]) -> bool:
    """Writes what `make` returns to the path unless it exists; returns whether it wrote."""
    if os.path.lexists(path):
        return False
    try:
        write_files({path: make()})
    except WriteError as error:
        raise DrawingError(f"{error}; choose a folder with space that you can write to.") from error
    return True
