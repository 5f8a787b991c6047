"""Draws stand-ins for the flower_photos set, used if the photos cannot be fetched.

Draws five kinds of flowers; pictures differ in background, light, pose, number and colour. Size,
background, arrangement and light do not depend on the kind of flower, so that only the flowers
tell the classes apart. A picture is painted at twice its size and reduced, for smooth edges.

Colours are RGB in 0..255. Lengths are pixels of the double-sized canvas, or fractions of the
flower's radius where a `Pose` places them. Angles are radians, 0 to the right, clockwise on screen.
"""

import contextlib
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from retraining.errors import RetrainingError

Color = tuple[int, int, int]
Canvas = ImageDraw.ImageDraw
Points = NDArray[np.float64]  # [n, 2]
Choice = TypeVar("Choice")

PHOTOS_URL = "http://download.tensorflow.org/example_images/flower_photos.tgz"
PHOTOS_BYTES = 228_813_984
NOTE_NAME = "THESE_ARE_DRAWINGS.txt"
NOTE = f"""\
The pictures in this folder are drawings, not photos.

retrain.py drew them because the public flower_photos set could not be fetched. They stand in for
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

UP = -math.pi / 2
MIN_WIDTH, MAX_WIDTH = 320, 400
MIN_HEIGHT, MAX_HEIGHT = 240, 400
OVERSAMPLING = 2
JPEG_QUALITY = 90


class DrawingError(RetrainingError):
    """The drawings cannot be written, as in a read-only folder or on a full disk."""


# ---- colours and shapes ----


def mix(first: Color, second: Color, part: float) -> Color:
    """Returns the colour `part` (0..1) of the way from the first to the second."""
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(first, second, strict=True))
    return red, green, blue


def shade(color: Color, amount: float) -> Color:
    """Darkens (amount < 0, -1 gives black) or lightens (amount > 0, 1 gives white) a colour."""
    return mix(color, (0, 0, 0) if amount < 0 else (255, 255, 255), abs(amount))


def vary(color: Color, rng: np.random.Generator, spread: float = 10.0) -> Color:
    """Returns a similar colour; `spread` is the standard deviation in each channel."""
    shifts = rng.normal(0, spread, 3).tolist()
    red, green, blue = (
        min(255, max(0, round(value + shift))) for value, shift in zip(color, shifts, strict=True)
    )
    return red, green, blue


def pick(choices: Sequence[Choice], rng: np.random.Generator) -> Choice:
    """Returns one of the choices, all equally likely."""
    return choices[int(rng.integers(len(choices)))]


@dataclass(frozen=True)
class Pose:
    """Where a flower sits and how it is turned.

    `squash` is 1 for a flower seen from the front, and approaches 0 for one seen from the edge.
    """

    x: float
    y: float
    radius: float
    turn: float = 0.0
    squash: float = 1.0

    @cached_property
    def matrix(self) -> Points:
        """Maps the flower's plane, in fractions of the radius, to pixels: [2, 2]."""
        return np.array([[self.radius], [self.radius * self.squash]]) * rotation(self.turn)

    def pixels(self, points: Points, angle: float = 0.0) -> Points:
        """Turns [n, 2] in fractions of the radius by `angle`, and returns them in pixels."""
        return points @ (rotation(angle) @ self.matrix) + (self.x, self.y)

    def place(self, points: Points, angle: float = 0.0) -> list[float]:
        """Returns `pixels` as a flat list x, y, x, y ..., which Pillow draws fastest."""
        return self.pixels(points, angle).ravel().tolist()

    def moved(self, right: float, down: float) -> "Pose":
        """Returns the pose moved by fractions of the radius."""
        return replace(self, x=self.x + right * self.radius, y=self.y + down * self.radius)


def rotation(angle: float) -> Points:
    """Returns the matrix [2, 2] that turns row vectors by the angle."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def blade(width: float, base: float = 0.8, tip: float = 0.8, steps: int = 12) -> Points:
    """Returns the outline [2 * steps, 2] of a petal or leaf along the x axis from 0 to 1.

    Its half width at t is proportional to t**base * (1 - t)**tip: a small exponent makes an end
    blunt.
    """
    along = (1 - np.cos(np.linspace(0, np.pi, steps))) / 2
    half = along**base * (1 - along) ** tip
    half *= width / 2 / half.max()
    there = np.stack([along, -half], axis=1)
    return np.concatenate([there, (there * (1, -1))[::-1]])


def fan(span: float, ruffle: float, rng: np.random.Generator) -> Points:
    """Returns the outline [15, 2] of a broad petal: a sector of +- `span` with a wavy rim."""
    angles = np.linspace(-1, 1, 14)
    rim = (1 - 0.35 * np.abs(angles) ** 3) * (1 + rng.normal(0, ruffle, 14))
    rim_points = np.stack([rim * np.cos(angles * span), rim * np.sin(angles * span)], axis=1)
    return np.concatenate([np.zeros((1, 2)), rim_points])


# ---- what flowers are made of ----


@dataclass(frozen=True)
class Ring:
    """A ring of equal petals from `inner` to `outer`; base and tip are as in `blade`."""

    count: int
    inner: float
    outer: float
    width: float
    base: float
    tip: float


def paint_petal(draw: Canvas, pose: Pose, outline: Points, angle: float, color: Color) -> None:
    """Paints a shape with a darker rim, a lighter middle and, if it is large, a vein."""
    middle = outline.mean(axis=0)
    draw.polygon(pose.place(outline, angle), fill=shade(color, -0.22))
    draw.polygon(pose.place(middle + (outline - middle) * (0.96, 0.8), angle), fill=color)
    if pose.radius > 50:
        lighter = middle + (outline - middle) * (0.8, 0.4)
        draw.polygon(pose.place(lighter, angle), fill=shade(color, 0.12))
        draw.line(
            pose.place(outline[[0, len(outline) // 2]], angle), fill=(*shade(color, -0.4), 70)
        )


def paint_ring(
    draw: Canvas, pose: Pose, ring: Ring, color: Color, rng: np.random.Generator
) -> None:
    """Paints petals side by side that differ a little in angle, length, width and colour."""
    step = 2 * np.pi / ring.count
    outline = blade(ring.width, ring.base, ring.tip, 12 if pose.radius > 90 else 7)
    outline *= (ring.outer - ring.inner, 1)
    angles = (rng.permutation(ring.count) + rng.normal(0, 0.12, ring.count)) * step
    stretches = rng.uniform((0.88, 0.85), (1.06, 1.15), (ring.count, 2))
    for angle, stretch in zip(angles + rng.uniform(0, step), stretches, strict=True):
        petal = outline * stretch + (ring.inner, 0)
        paint_petal(draw, pose, petal, angle, vary(color, rng, 7))


def paint_disc(
    draw: Canvas, pose: Pose, radius: float, color: Color, rng: np.random.Generator
) -> None:
    """Paints a dome, darker at the rim, with seeds in a sunflower's spiral (golden angle)."""
    around = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    circle = np.stack([np.cos(around), np.sin(around)], axis=1) * radius
    for part in (1.0, 0.85, 0.6, 0.35):
        draw.polygon(pose.place(circle * part), fill=shade(color, -0.35 * part))
    count = int(np.clip(pose.radius * radius * 2.2, 12, 150))
    distance = radius * np.sqrt((np.arange(count) + 0.5) / count)
    golden = np.arange(count) * 2.39996 + rng.uniform(0, 6)
    seeds = np.stack([distance * np.cos(golden), distance * np.sin(golden)], axis=1)
    size = max(1.0, pose.radius * radius / 22)
    for index, (x, y) in enumerate(pose.pixels(seeds).tolist()):
        tint = shade(color, 0.25 if index % 2 else -0.45)
        draw.ellipse((x - size, y - size, x + size, y + size), fill=tint)


def paint_stem(draw: Canvas, path: Points, width: float, color: Color) -> None:
    """Paints a thick line along [n, 2] pixels, darker on one side."""
    lit = path - (width * 0.15, 0)
    for line, tint, part in ((path, shade(color, -0.3), 1.0), (lit, color, 0.5)):
        points = line.ravel().tolist()
        draw.line(points, fill=tint, width=max(2, round(width * part)), joint="curve")


def paint_leaf(draw: Canvas, pose: Pose, outline: Points, angle: float, color: Color) -> None:
    """Paints a leaf with a lit half and a midrib; the outline is one of `blade`."""
    half = len(outline) // 2
    draw.polygon(pose.place(outline, angle), fill=shade(color, -0.2))
    draw.polygon(pose.place(outline[:half], angle), fill=color)
    draw.line(pose.place(outline[[0, half]], angle), fill=shade(color, 0.3), width=2)


def stem_path(pose: Pose, bottom: float, rng: np.random.Generator) -> Points:
    """Returns a gently bent path [12, 2], in pixels, from the flower to the bottom edge."""
    t = np.linspace(0, 1, 12)[:, None]
    top = np.array([pose.x, pose.y])
    foot = np.array([pose.x + rng.normal(0, 0.5) * pose.radius, bottom + 10])
    knee = (top + foot) / 2 + (rng.normal(0, 0.25) * pose.radius, 0)
    path: Points = (1 - t) ** 2 * top + 2 * t * (1 - t) * knee + t**2 * foot
    return path


# ---- the flowers ----


@dataclass(frozen=True)
class Look:
    """What the flowers of one picture share.

    They stand on stems, seen from the side (`standing`), or are seen from above.
    """

    color: Color
    heart: Color
    form: str
    squash: float
    standing: bool


def paint_daisy(draw: Canvas, pose: Pose, look: Look, rng: np.random.Generator) -> None:
    """Paints narrow blunt petals, mostly white, around a small yellow disc."""
    count = int(rng.integers(12, 22))
    ring = Ring(count, 0.2, 1.0, 4.4 / count, 0.55, 0.28)
    paint_ring(draw, pose, ring, shade(look.color, -0.14), rng)
    paint_ring(draw, pose, replace(ring, outer=0.94), look.color, rng)
    lifted = pose.moved(0, -0.12 * (1 - pose.squash))
    paint_disc(draw, lifted, rng.uniform(0.26, 0.34), look.heart, rng)


def paint_sunflower(draw: Canvas, pose: Pose, look: Look, rng: np.random.Generator) -> None:
    """Paints two rings of pointed yellow petals around a large dark disc."""
    count = int(rng.integers(17, 25))
    ring = Ring(count, 0.3, 1.0, 5.0 / count, 0.5, 0.75)
    paint_ring(draw, pose, ring, shade(look.color, -0.18), rng)
    paint_ring(draw, pose, replace(ring, outer=0.93), look.color, rng)
    radius = rng.uniform(0.36, 0.48)
    paint_disc(draw, pose, radius, look.heart, rng)
    paint_disc(draw, pose, radius * 0.5, shade(look.heart, -0.3), rng)


def paint_dandelion(draw: Canvas, pose: Pose, look: Look, rng: np.random.Generator) -> None:
    """Paints the yellow flower or the white clock, by the look's form."""
    if look.form == "clock":
        paint_clock(draw, pose, rng)
        return
    if look.standing:
        paint_bracts(draw, pose, rng)
    for step, outer in enumerate((1.0, 0.8, 0.58, 0.32)):
        count = int((34 if pose.radius > 70 else 26) * (0.35 + 0.65 * outer))
        ring = Ring(count, 0.02, outer, 0.14, 0.5, 0.15)
        risen = pose.moved(0, -0.13 * step * (1 - pose.squash))
        paint_ring(draw, risen, ring, mix(look.color, look.heart, step / 4), rng)


def paint_bracts(draw: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    """Paints the green cup of leaflets below a flower head."""
    upright = replace(pose, squash=1.0, turn=0.0)
    for angle in np.linspace(0.25, np.pi - 0.25, 7):
        green = vary((96, 140, 62), rng)
        paint_leaf(draw, upright, blade(0.22) * (0.62, 1), angle, green)


def paint_clock(draw: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    """Paints a ball of parachutes: seeds on a sphere, with thin stalks and stars of hairs."""
    white = vary((238, 238, 232), rng, 5)
    count = int(np.clip(pose.radius * 0.9, 30, 120))
    reach = np.sqrt(1 - rng.uniform(-1, 1, count) ** 2) * 0.86
    around = rng.uniform(0, 2 * np.pi, count)
    tips = np.stack([reach * np.cos(around), reach * np.sin(around)], axis=1)
    ball = replace(pose, squash=1.0)
    for haze in (ball.radius * 0.95, ball.radius * 0.8):
        box = (ball.x - haze, ball.y - haze, ball.x + haze, ball.y + haze)
        draw.ellipse(box, fill=(*white, 40))
    for tip in ball.pixels(tips):
        stalk = [ball.x, ball.y, *tip.tolist()]
        draw.line(stalk, fill=(*shade(white, -0.3), 120), width=1)
        paint_parachute(draw, tip, ball.radius * 0.26, white, rng)
    paint_disc(draw, ball, 0.13, (120, 100, 70), rng)


def paint_parachute(
    draw: Canvas, tip: Points, size: float, color: Color, rng: np.random.Generator
) -> None:
    """Paints a star of fine hairs around `tip`, [2] in pixels."""
    angles = np.linspace(0, 2 * np.pi, 11, endpoint=False) + rng.uniform(0, 1)
    rays = np.zeros((22, 2))
    rays[1::2] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rays[1::2] *= size * rng.uniform(0.7, 1.1, (11, 1))
    draw.line((rays + tip).ravel().tolist(), fill=(*color, 150), width=1)


def paint_rose(draw: Canvas, pose: Pose, look: Look, rng: np.random.Generator) -> None:
    """Paints layers of broad ruffled petals, smaller and darker inwards, around a rolled heart."""
    pose = replace(pose, squash=max(0.62, pose.squash))
    if look.standing:
        paint_bracts(draw, pose.moved(0, 0.5), rng)
        paint_rose_cup(draw, pose, look.color, rng)
    lift = -0.75 * (1 - pose.squash)
    for step, outer in enumerate((1.0, 0.86, 0.71, 0.57, 0.44, 0.31)):
        layer = pose.moved(0, lift * (1 - outer))
        tint = mix(look.color, look.heart, step / 6)
        paint_rose_layer(draw, layer, outer, tint, rng)
    paint_swirl(draw, pose.moved(0, lift * 0.75), shade(look.heart, -0.35), rng)


def paint_rose_cup(draw: Canvas, pose: Pose, color: Color, rng: np.random.Generator) -> None:
    """Paints the outer petals of a rose seen from the side, which hang below its rim."""
    upright = replace(pose, squash=1.0, turn=0.0)
    for lean in (-0.75, 0.75, 0.0):
        outline = fan(0.7, 0.02, rng) * rng.uniform(0.88, 0.98)
        tint = vary(shade(color, -0.3 if lean else -0.2), rng, 6)
        paint_petal(draw, upright, outline, lean - UP, tint)


def paint_rose_layer(
    draw: Canvas, pose: Pose, outer: float, color: Color, rng: np.random.Generator
) -> None:
    """Paints five overlapping broad petals with shadows and bright rims, darker near the heart."""
    start = rng.uniform(0, 2 * np.pi)
    for index in range(5):
        angle = start + index * 2 * np.pi / 5 + rng.normal(0, 0.12)
        outline = fan(rng.uniform(0.75, 0.95), 0.02, rng) * outer * rng.uniform(0.93, 1.03)
        tint = vary(color, rng, 6)
        draw.polygon(pose.place(outline * 1.05, angle), fill=(*shade(color, -0.6), 150))
        draw.polygon(pose.place(outline, angle), fill=shade(tint, 0.2))
        for step, part in enumerate((0.93, 0.84, 0.74)):
            draw.polygon(pose.place(outline * part, angle), fill=shade(tint, -0.13 * step))


def paint_swirl(draw: Canvas, pose: Pose, color: Color, rng: np.random.Generator) -> None:
    """Paints the rolled petals at a rose's heart as a spiral line."""
    t = np.linspace(0, 1, 40)
    angle = rng.uniform(0, 6) + t * 4 * np.pi
    spiral = np.stack([np.cos(angle) * t, np.sin(angle) * t], axis=1) * 0.22
    draw.line(pose.place(spiral), fill=color, width=max(2, round(pose.radius / 40)))


def paint_tulip(draw: Canvas, pose: Pose, look: Look, rng: np.random.Generator) -> None:
    """Paints a cup of oval petals from the side, or six petals around dark stamens from above."""
    if not look.standing:
        paint_open_tulip(draw, pose, look, rng)
        return
    base = replace(pose.moved(0, 0.8), squash=1.0, turn=rng.normal(0, 0.1))
    opening = rng.uniform(0.14, 0.32)
    petals = ((-0.5, 1.6, -0.35), (0.5, 1.6, -0.35), (-1.0, 1.65, -0.12), (1.0, 1.65, -0.08))
    for lean, length, tone in petals:
        angle = UP + lean * opening
        paint_streaked(draw, base, (length, 0.78, angle), shade(look.color, tone), rng)
    angle = UP + rng.normal(0, 0.06)
    paint_streaked(draw, base, (rng.uniform(1.25, 1.5), 0.85, angle), look.color, rng)


def paint_streaked(
    draw: Canvas,
    pose: Pose,
    shape: tuple[float, float, float],
    color: Color,
    rng: np.random.Generator,
) -> None:
    """Paints a tulip petal of (length, width, angle) with fine streaks and a paler rim."""
    length, width, angle = shape
    color = vary(color, rng, 6)
    outline = blade(width, 0.42, 0.62) * (length * rng.uniform(0.95, 1.04), 1)
    draw.polygon(pose.place(outline * 1.02, angle), fill=shade(color, -0.4))
    draw.polygon(pose.place(outline, angle), fill=shade(color, 0.14))
    for step, part in enumerate((0.86, 0.6, 0.35)):
        draw.polygon(
            pose.place(outline * (0.97, part), angle), fill=shade(color, 0.05 - 0.07 * step)
        )
    for part in rng.uniform(-0.7, 0.7, 7):
        streak = outline[:12] * (0.95, part)
        draw.line(pose.place(streak, angle), fill=(*shade(color, -0.35), 60), width=1)


def paint_open_tulip(draw: Canvas, pose: Pose, look: Look, rng: np.random.Generator) -> None:
    """Paints it from above: two rings of three broad petals, a dark heart, yellow stamens."""
    start = rng.uniform(0, 2)
    for step in range(6):
        angle = start + (step % 3) * 2 * np.pi / 3 + (step // 3) * np.pi / 3
        tint = shade(look.color, -0.18 if step < 3 else 0.0)
        paint_streaked(draw, pose, (1.0, 0.85, angle), tint, rng)
    paint_ring(draw, pose, Ring(6, 0.0, 0.36, 0.2, 0.4, 0.6), shade(look.heart, -0.6), rng)
    paint_ring(draw, pose, Ring(6, 0.06, 0.26, 0.07, 0.4, 0.3), (225, 190, 70), rng)


# ---- stems and leaves ----


def grow_basal_leaves(
    draw: Canvas, path: Points, radius: float, color: Color, rng: np.random.Generator
) -> None:
    """Paints long leaves from the ground (tulips)."""
    height = path[-1, 1] - path[0, 1]
    for side in (-1, 1):
        pose = Pose(path[-1, 0], path[-1, 1], height * rng.uniform(0.5, 0.85))
        outline = blade(rng.uniform(0.12, 0.2), 0.4, 0.9)
        outline[:, 1] += side * 0.18 * outline[:, 0] ** 2
        paint_leaf(draw, pose, outline, UP + side * rng.uniform(0.1, 0.3), color)


def grow_toothed_leaves(
    draw: Canvas, path: Points, radius: float, color: Color, rng: np.random.Generator
) -> None:
    """Paints a rosette of jagged leaves on the ground (dandelions)."""
    for angle in rng.uniform(UP - 1.3, UP + 1.3, 4):
        outline = blade(0.34, 0.9, 0.5, 22)
        outline[1::2, 1] *= 0.4
        paint_leaf(
            draw,
            Pose(path[-1, 0], path[-1, 1], radius * rng.uniform(1.2, 1.9)),
            outline,
            angle,
            color,
        )


def grow_stem_leaves(
    draw: Canvas, path: Points, radius: float, color: Color, rng: np.random.Generator
) -> None:
    """Paints broad pointed leaves on both sides of the stem (roses, sunflowers)."""
    for spot, side in ((5, -1), (7, 1), (9, -1)):
        angle = (0 if side > 0 else np.pi) + rng.uniform(-0.7, 0.4) * side
        size = radius * rng.uniform(0.7, 1.1)
        paint_leaf(
            draw, Pose(path[spot, 0], path[spot, 1], size), blade(0.55, 0.45, 0.9), angle, color
        )


def grow_small_leaves(
    draw: Canvas, path: Points, radius: float, color: Color, rng: np.random.Generator
) -> None:
    """Paints a few narrow leaves low on the stem (daisies)."""
    for spot, side in ((7, -1), (9, 1)):
        angle = UP + side * rng.uniform(0.4, 1.1)
        size = radius * rng.uniform(0.5, 0.8)
        paint_leaf(
            draw, Pose(path[spot, 0], path[spot, 1], size), blade(0.26, 0.9, 0.4), angle, color
        )


@dataclass(frozen=True)
class Species:
    """A kind of flower: how it is painted, and the choices for its looks."""

    paint: Callable[[Canvas, Pose, Look, np.random.Generator], None]
    grow_leaves: Callable[[Canvas, Points, float, Color, np.random.Generator], None]
    colors: tuple[Color, ...]
    hearts: tuple[Color, ...]
    forms: tuple[str, ...] = ("flower",)
    stem: float = 0.08
    standing: float = 0.5


SPECIES = {
    "daisy": Species(
        paint=paint_daisy,
        grow_leaves=grow_small_leaves,
        colors=(
            (246, 246, 242),
            (250, 248, 236),
            (240, 240, 248),
            (248, 248, 248),
            (238, 205, 225),
        ),
        hearts=((245, 200, 40), (235, 175, 30), (225, 190, 60)),
    ),
    "dandelion": Species(
        paint=paint_dandelion,
        grow_leaves=grow_toothed_leaves,
        colors=((250, 215, 40), (248, 200, 25), (252, 225, 70)),
        hearts=((240, 170, 20), (235, 180, 30)),
        forms=("flower", "clock"),
    ),
    "roses": Species(
        paint=paint_rose,
        grow_leaves=grow_stem_leaves,
        colors=((200, 25, 40), (225, 95, 130), (245, 235, 225), (245, 200, 70), (240, 130, 60)),
        hearts=(),  # a darker tone of the petals
    ),
    "sunflowers": Species(
        paint=paint_sunflower,
        grow_leaves=grow_stem_leaves,
        colors=((252, 205, 30), (248, 188, 20), (254, 215, 60), (250, 200, 45), (240, 155, 35)),
        hearts=((85, 50, 25), (60, 38, 25), (110, 75, 30)),
        stem=0.13,
    ),
    "tulips": Species(
        paint=paint_tulip,
        grow_leaves=grow_basal_leaves,
        colors=(
            (215, 35, 50),
            (235, 120, 160),
            (245, 205, 50),
            (125, 45, 130),
            (245, 240, 235),
            (240, 130, 50),
        ),
        hearts=((60, 40, 60),),
        stem=0.14,
        standing=0.85,
    ),
}
LABELS = tuple(SPECIES)


def choose_look(species: Species, must_stand: bool, rng: np.random.Generator) -> Look:
    """Chooses what the flowers of one picture share."""
    color = vary(pick(species.colors, rng), rng)
    heart = vary(pick(species.hearts, rng), rng, 6) if species.hearts else shade(color, -0.3)
    standing = bool(rng.random() < species.standing) or must_stand
    squash = rng.uniform(0.45, 0.95) if standing else rng.uniform(0.75, 1.0)
    return Look(color, heart, pick(species.forms, rng), squash, standing)


def arrange(size: tuple[int, int], rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Chooses centres and radii in pixels, farthest first: one large flower or several smaller."""
    few, most, small, large = pick(
        ((1, 1, 0.27, 0.44), (2, 5, 0.15, 0.24), (6, 11, 0.08, 0.13)), rng
    )
    scale = rng.uniform(small, large)
    spots = np.empty((0, 2))
    for _ in range(rng.integers(few, most + 1)):
        tries = rng.uniform((0.15, 0.18), (0.85, 0.72), (8, 2)) * size
        gaps = np.linalg.norm(tries[:, None] - spots[None], axis=2).min(axis=1, initial=1e9)
        spots = np.concatenate([spots, tries[[gaps.argmax()]]])
    spots = spots[spots[:, 1].argsort()]
    return [(x, y, min(size) * scale * rng.uniform(0.85, 1.1)) for x, y in spots.tolist()]


def paint_flowers(
    picture: Image.Image,
    species: Species,
    look: Look,
    spots: list[tuple[float, float, float]],
    rng: np.random.Generator,
) -> None:
    """Paints all flowers of a picture onto the background; `spots` are those of `arrange`."""
    draw = ImageDraw.Draw(picture, "RGBA")
    green = vary(pick(((70, 120, 45), (95, 145, 60), (60, 105, 65)), rng), rng)
    for x, y, radius in spots:
        squash = float(np.clip(look.squash + rng.normal(0, 0.08), 0.4, 1.0))
        pose = Pose(x, y, radius, rng.normal(0, 0.35), squash)
        if look.standing:
            path = stem_path(pose, picture.height, rng)
            paint_stem(draw, path, radius * species.stem, green)
            species.grow_leaves(draw, path, radius, vary(green, rng), rng)
        else:
            paint_shadow(draw, pose)
        species.paint(draw, pose, replace(look, color=vary(look.color, rng, 6)), rng)


def paint_shadow(draw: Canvas, pose: Pose) -> None:
    """Paints the flower's soft shadow on the ground behind it."""
    x, y = pose.x + pose.radius * 0.1, pose.y + pose.radius * 0.13
    for part in (1.08, 1.03, 0.98, 0.93, 0.88, 0.83):
        reach = pose.radius * part
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=(0, 0, 0, 16))


# ---- backgrounds, the same for all kinds of flowers ----


def cloudy(size: tuple[int, int], cells: int, rng: np.random.Generator) -> Image.Image:
    """Returns a grey image ("L") of smooth random blotches, about `cells` across."""
    grid = rng.integers(0, 256, (cells, cells), dtype=np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def blend(mask: Image.Image, low: Color, high: Color) -> Image.Image:
    """Returns an image that is `low` where the mask is 0 and `high` where it is 255."""
    size = mask.size
    return Image.composite(Image.new("RGB", size, high), Image.new("RGB", size, low), mask)


def paint_sky(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Paints a sky that gets paler downwards, clouds, and sometimes a blurred horizon."""
    zenith = vary(pick(((70, 130, 205), (110, 165, 225), (165, 185, 205)), rng), rng)
    sky = blend(Image.linear_gradient("L").resize(size), zenith, shade(zenith, 0.5))
    threshold = int(rng.integers(110, 230))
    clouds = cloudy(size, int(rng.integers(4, 9)), rng)
    sky.paste((245, 245, 248), mask=clouds.point(lambda v: max(0, min(230, (v - threshold) * 3))))
    if rng.random() < 0.4:
        top = int(size[1] * rng.uniform(0.6, 0.9))
        hills = vary((90, 125, 70), rng, 15)
        ImageDraw.Draw(sky).rectangle((0, top, *size), fill=hills)
        sky = sky.filter(ImageFilter.GaussianBlur(5))
    return sky


def paint_grass(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Paints blotches of green and many blades, sharp or out of focus."""
    green = vary(pick(((75, 120, 45), (50, 95, 40), (110, 140, 65)), rng), rng)
    grass = blend(cloudy(size, 8, rng), shade(green, -0.5), green)
    draw = ImageDraw.Draw(grass)
    feet = rng.uniform((0, 0), (size[0], size[1] * 1.2), (220, 2))
    tips = feet + rng.normal(0, 1, (220, 2)) * (16, 8) - (0, size[1] * 0.13)
    tones = rng.uniform(-0.4, 0.3, 220)
    for foot, tip, tone in zip(feet.tolist(), tips.tolist(), tones, strict=True):
        draw.line([tuple(foot), tuple(tip)], fill=shade(green, tone), width=2)
    return grass.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 4)))


def paint_soil(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Paints brown earth with clods and pebbles."""
    brown = vary(pick(((110, 80, 55), (85, 65, 50), (140, 115, 85)), rng), rng)
    soil = blend(cloudy(size, 40, rng), shade(brown, -0.45), brown)
    draw = ImageDraw.Draw(soil)
    for _ in range(130):
        x, y, wide, high = rng.uniform((0, 0, 2, 2), (*size, 12, 8))
        tint = shade(brown, rng.uniform(-0.5, 0.25))
        draw.ellipse((x - wide, y - high, x + wide, y + high), fill=tint)
    return soil.filter(ImageFilter.BoxBlur(rng.uniform(1, 4)))


def paint_bokeh(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Paints a distance out of focus: two blended colours with pale and dark spots."""
    hues = ((60, 95, 50), (130, 150, 80), (150, 120, 90), (90, 110, 140), (170, 160, 150))
    first, second = vary(pick(hues, rng), rng), vary(pick(hues, rng), rng)
    picture = blend(cloudy(size, 4, rng), first, second)
    draw = ImageDraw.Draw(picture, "RGBA")
    for _ in range(rng.integers(10, 35)):
        x, y = rng.uniform((0, 0), size)
        reach = rng.uniform(8, 40)
        tint = shade(pick((first, second), rng), rng.uniform(-0.4, 0.5))
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=(*tint, 130))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(3, 12)))


def paint_wall(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Paints a plain wall with stains, or one of boards or bricks."""
    tones = ((200, 195, 185), (165, 110, 85), (150, 150, 150), (215, 205, 170), (120, 95, 70))
    tone = vary(pick(tones, rng), rng)
    wall = blend(cloudy(size, 12, rng), shade(tone, -0.14), tone)
    draw = ImageDraw.Draw(wall)
    joint = shade(tone, -0.4)
    kind = pick(("plain", "boards", "bricks"), rng)
    high = int(rng.integers(22, 40))
    for row, y in enumerate(range(0, size[1] if kind != "plain" else 0, high)):
        draw.line((0, y, size[0], y), fill=joint, width=2)
        for x in range(high * (row % 2), size[0] if kind == "bricks" else 0, 2 * high):
            draw.line((x, y, x, y + high), fill=joint, width=2)
    return wall.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 3)))


def paint_dark(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Paints an almost black ground with a faint glow of colour."""
    glow = vary(pick(((45, 60, 40), (60, 45, 40), (40, 45, 65)), rng), rng)
    dark = blend(cloudy(size, 4, rng), shade(glow, -0.85), glow)
    return dark.filter(ImageFilter.GaussianBlur(6))


GROUNDS = (paint_grass, paint_soil, paint_wall, paint_dark)
DISTANCES = (paint_sky, paint_bokeh)  # flowers before these stand on stems


# ---- light ----


def shine(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lights the picture: varies brightness, colour cast, vignette, blur and noise."""
    if rng.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    right = np.linspace(-1, 1, picture.width, dtype=np.float32)
    down = np.linspace(-1, 1, picture.height, dtype=np.float32)[:, None]
    light = rng.uniform(0.75, 1.15) + rng.uniform(-0.12, 0.12) * right
    light = light + rng.uniform(-0.12, 0.12) * down
    if rng.random() < 0.5:
        light -= rng.uniform(0, 0.25) * (right**2 + down**2)
    cast = rng.uniform(0.92, 1.07, 3).astype(np.float32)
    grain = rng.standard_normal(light.shape, dtype=np.float32) * rng.uniform(0, 7)
    pixels = np.asarray(picture) * (light[:, :, None] * cast) + grain[:, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


# ---- pictures and files ----


def draw_flower(label: str, rng: np.random.Generator) -> Image.Image:
    """Draws one picture of the flowers `label` (one of LABELS): RGB, 320-400 x 240-400 pixels.

    Each part has its own random numbers. So the same `rng` gives the same size, background,
    arrangement and light for all labels.
    """
    scene, flowers, light = (np.random.default_rng(rng.integers(2**63)) for _ in range(3))
    size = (
        int(scene.integers(MIN_WIDTH, MAX_WIDTH + 1)),
        int(scene.integers(MIN_HEIGHT, MAX_HEIGHT + 1)),
    )
    paint_background = pick(GROUNDS + DISTANCES, scene)
    large = (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING)
    picture = paint_background(size, scene).resize(large, Image.Resampling.NEAREST)
    spots = arrange(large, scene)
    look = choose_look(SPECIES[label], paint_background in DISTANCES, flowers)
    paint_flowers(picture, SPECIES[label], look, spots, flowers)
    return shine(picture.reduce(OVERSAMPLING), light)


def draw_flower_photos(
    folder: Path,
    per_class: int = 60,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """Writes `folder/<label>/drawing_00.jpg` ... and a note that these are drawings.

    Leaves existing files alone, so that a second call completes a killed run. Writes the note
    first, so that drawings are never without it. Calls `progress(done, total)` after each picture,
    written or not. Returns the number of pictures written.

    Raises:
        DrawingError: a file cannot be written.
    """
    folder = Path(folder)
    write_new(folder / NOTE_NAME, NOTE.encode)
    total = per_class * len(LABELS)
    written = 0
    for done in range(total):
        class_index, number = divmod(done, per_class)
        path = folder / LABELS[class_index] / f"drawing_{number:02d}.jpg"
        written += write_new(path, partial(jpeg_bytes, seed, class_index, number))
        if progress is not None:
            progress(done + 1, total)
    return written


def jpeg_bytes(seed: int, class_index: int, number: int) -> bytes:
    """Returns the JPEG file of one drawing, which depends only on these three numbers."""
    rng = np.random.default_rng([seed, class_index, number])
    stream = io.BytesIO()
    draw_flower(LABELS[class_index], rng).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def write_new(path: Path, make: Callable[[], bytes]) -> bool:
    """Writes what `make` returns to the path unless it exists; returns whether it wrote.

    The temporary name starts with a dot and ends in .part, so no scan takes it for an image.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        if os.path.lexists(path):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(make())
            os.replace(part, path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise DrawingError(
            f"cannot write {path}: {reason}; choose a folder you can write to, on a disk with "
            "free space."
        ) from error
    return True
