"""The factory's surfaces: each function paints one specimen (CANVAS, CANVAS, 3) as float32 in [0, 255]."""

from __future__ import annotations

import cv2
import numpy as np

from .noise import Field, Rng, fractal, grain, grey, hue, shade, smooth
from .shapes import CANVAS, Colour, as_field

_LINE = (np.arange(CANVAS, dtype=np.float32) + 0.5) * 2 / CANVAS - 1
X, Y = np.meshgrid(_LINE, _LINE)


def painted(base: Colour, *layers: tuple[Field, Colour]) -> Field:
    """Return ``base`` with colours laid over it, each by its weight in [0, 1]."""
    image = np.empty((CANVAS, CANVAS, 3), np.float32)
    image[:] = base
    for weight, colour in layers:
        image += weight[..., None] * (np.array(colour, np.float32) - image)
    return image


def ramp(field: Field, low: float, high: float) -> Field:
    """Return ``field`` mapped to 0 at ``low`` and 1 at ``high``, cut off outside."""
    return as_field(np.clip((field - low) / (high - low), 0, 1))


def brick(rng: Rng) -> Field:
    """A wall of bricks in running bond."""
    rows, columns = rng.uniform(3.2, 4.2), rng.uniform(1.6, 2.1)
    y = (Y + 1 + rng.random()) * rows / 2 + 4
    row = np.floor(y)
    x = (X + 1 + rng.random()) * columns / 2 + 4 + 0.5 * (row % 2)
    edge = np.minimum(np.abs(y - np.round(y)) / rows, np.abs(x - np.round(x)) / columns)
    clay = hue(rng, 0.03, 0.02, 0.55, 0.6)
    tone = np.sin(row * 12.9 + np.floor(x) * 78.2 + rng.uniform(0, 6))
    image = painted(clay, (0.5 + 0.5 * tone.astype(np.float32), shade(clay, 0.82)))
    image += 7 * fractal(rng, 24, 2)[..., None]
    mortar = ramp(-edge, -0.022, -0.012)[..., None]
    return image + mortar * (np.array(grey(rng, 165, 200), np.float32) - image)


def fabric(rng: Rng) -> Field:
    """A plain weave of two yarns."""
    count = rng.uniform(11, 15)
    warp, weft = np.sin(X * count * np.pi), np.sin(Y * count * np.pi)
    over = ramp(np.sign(warp * weft) * 0.5 + 0.3 * np.abs(warp) - 0.3 * np.abs(weft), -0.4, 0.4)
    yarn = hue(rng, rng.random(), 0, 0.4, 0.6)
    image = painted(yarn, (over, shade(yarn, 1.3)))
    return image + 6 * grain(rng)[..., None]


def marble(rng: Rng) -> Field:
    """A polished stone with soft veins."""
    veins = np.abs(np.sin(3 * X * rng.uniform(0.6, 1) + 3 * Y * rng.uniform(0.3, 1) + 1.2 * fractal(rng, 4)))
    stone = grey(rng, 190, 235)
    vein = (ramp(-veins, -0.3, 0.0) * 0.4, grey(rng, 110, 150))
    cloud = (ramp(fractal(rng, 3), 0, 3) * 0.3, shade(stone, 0.8))
    return painted(stone, vein, cloud) + 2 * grain(rng)[..., None]


def mesh(rng: Rng) -> Field:
    """A wire mesh over a dark ground."""
    count = rng.uniform(5, 7)
    a, b = np.abs(np.sin((X + Y) * count * 1.1)), np.abs(np.sin((X - Y) * count * 1.1))
    wire = grey(rng, 150, 200)
    ground = grey(rng, 25, 60)
    image = painted(ground, (ramp(-a, -0.4, -0.25), shade(wire, 0.85)), (ramp(-b, -0.4, -0.25), wire))
    return image + 3 * grain(rng)[..., None]


def cork(rng: Rng) -> Field:
    """A board of pressed granules."""
    base = hue(rng, 0.085, 0.01, 0.5, 0.68)
    dark = (ramp(fractal(rng, 28, 2), 0.4, 1.2) * 0.5, shade(base, 0.6))
    bright = (ramp(smooth(rng, 36), 0.8, 1.5) * 0.5, shade(base, 1.3))
    return painted(base, dark, bright) + 3 * grain(rng)[..., None]


def corrugated(rng: Rng) -> Field:
    """A sheet with parallel waves."""
    count = rng.uniform(6, 10)
    wave = np.sin(X * count * np.pi + rng.uniform(0, 6))
    paint = hue(rng, rng.random(), 0, 0.3, 0.65)
    image = painted(paint, (as_field(0.5 + 0.5 * wave), shade(paint, 0.7)))
    return image + (3 * fractal(rng, 10, 2) + 2 * grain(rng))[..., None]


def carpet(rng: Rng) -> Field:
    """A loop-pile carpet of mottled yarn."""
    count = rng.uniform(15, 19)
    row = np.floor(Y * count / 2)
    loops = np.abs(np.sin(X * count * np.pi / 2 + row * 1.57)) * np.abs(np.cos(Y * count * np.pi / 2))
    yarn = hue(rng, rng.random(), 0, 0.3, 0.5)
    image = painted(shade(yarn, 0.6), (loops.astype(np.float32), shade(yarn, 1.25)))
    return image + (5 * grain(rng) + 2 * smooth(rng, 12))[..., None]


def wood(rng: Rng) -> Field:
    """A planed board with growth rings and up to five knots."""
    height = Y * rng.uniform(0.8, 1.3) + 0.12 * smooth(rng, 3, 2) + 0.05 * X
    knots = np.zeros_like(X)
    for x, y in rng.uniform(-0.8, 0.8, (rng.integers(1, 6), 2)):
        knots += np.exp(-((X - x) ** 2 / 0.02 + (Y - y) ** 2 / 0.006) / rng.uniform(0.5, 2.0))
    rings = np.sin(9 * (height + 0.5 * knots))
    fibre = smooth(rng, 6, CANVAS // 2)
    base = hue(rng, 0.08, 0.015, 0.5, 0.65)
    dark = shade(base, 0.6)
    image = painted(
        base, (as_field(0.175 + 0.175 * rings), dark), (as_field(0.85 * knots.clip(0, 1)), shade(base, 0.4))
    )
    return image + (6 * fibre + 2 * grain(rng))[..., None]


def terrazzo(rng: Rng) -> Field:
    """A cast floor with chips of stone, some of them dark or coloured."""
    ground = grey(rng, 165, 210)
    image = painted(ground) + 2 * grain(rng)[..., None]
    picture = np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8))
    tones = [
        grey(rng, 110, 145),
        grey(rng, 130, 160),
        hue(rng, 0.05, 0.03, 0.25, 0.65),
        hue(rng, 0.1, 0.03, 0.25, 0.7),
        grey(rng, 220, 245),
    ]
    for x, y in rng.uniform(0, CANVAS, (60, 2)):
        corners = np.sort(rng.uniform(0, 2 * np.pi, 5))
        r = rng.uniform(4, 10)
        points = np.stack([x + r * np.cos(corners), y + r * np.sin(corners)], 1)
        cv2.fillPoly(picture, [points.astype(np.int32)], tones[int(rng.integers(5))], cv2.LINE_AA)
    return picture.astype(np.float32)


AUXILIARY = {
    "brick": brick,
    "fabric": fabric,
    "marble": marble,
    "mesh": mesh,
    "cork": cork,
    "corrugated_sheet": corrugated,
}
HELD_OUT = {"carpet": carpet, "wood": wood, "terrazzo": terrazzo}
