"""Random fields and colours."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from numpy.typing import NDArray

from .shapes import CANVAS, Colour

Field = NDArray[np.float32]
Rng = np.random.Generator


def smooth(rng: Rng, cells: int, rows: int | None = None, side: int = CANVAS) -> Field:
    """Return a smooth field (side, side) of unit deviation, ``cells`` bumps along x and ``rows`` along y."""
    coarse = rng.standard_normal((max(2, rows or cells), max(2, cells)), np.float32)
    field: Field = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return field


def fractal(rng: Rng, cells: int, octaves: int = 3) -> Field:
    """Return a sum of smooth fields, each twice as fine and half as strong as the one before."""
    total = smooth(rng, cells)
    for octave in range(1, octaves):
        total += smooth(rng, cells << octave) / (1 << octave)
    return total


def grain(rng: Rng) -> Field:
    """Return fine noise of unit deviation."""
    return smooth(rng, CANVAS // 2)


def hue(rng: Rng, centre: float, spread: float, saturation: float, value: float) -> Colour:
    """Return a colour around a hue in [0, 1); saturation and value vary by a tenth."""
    h = (centre + spread * rng.uniform(-1, 1)) % 1
    s = np.clip(saturation + 0.1 * rng.uniform(-1, 1), 0, 1)
    v = np.clip(value + 0.1 * rng.uniform(-1, 1), 0, 1)
    r, g, b = colorsys.hsv_to_rgb(h, float(s), float(v))
    return (255 * r, 255 * g, 255 * b)


def grey(rng: Rng, low: float, high: float) -> Colour:
    """Return a nearly grey colour with a level in [low, high] of [0, 255]."""
    level = rng.uniform(low, high)
    r, g, b = np.clip(level + rng.uniform(-6, 6, 3), 0, 255)
    return (float(r), float(g), float(b))


def shade(colour: Colour, factor: float) -> Colour:
    """Return a darker (factor < 1) or lighter colour."""
    r, g, b = (min(255.0, max(0.0, c * factor)) for c in colour)
    return (r, g, b)
