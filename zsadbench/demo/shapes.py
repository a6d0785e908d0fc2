"""Outlines in units of the object: the centre is (0, 0), the frame ends at -1 and 1, y points down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Colour = tuple[float, float, float]

CANVAS = 192
"""Side in pixels of the canvas on which scenes are drawn, before pose and camera."""

_SHIFT = 4  # OpenCV's fixed-point bits: outlines are placed to 1/16 pixel


@dataclass(frozen=True)
class Shape:
    """A filled outline, or a line of ``width`` units; ``hole`` cuts through the object instead."""

    points: Points
    colour: Colour
    width: float = 0.0
    closed: bool = True
    hole: bool = False

    def moved(self, about: Points, shift: Points, angle: float) -> Shape:
        """Return the shape turned by ``angle`` (radians) around ``about``, then shifted."""
        c, s = np.cos(angle), np.sin(angle)
        turn = np.array([[c, s], [-s, c]], np.float32)
        points = (self.points - about) @ turn + about + shift
        return replace(self, points=points.astype(np.float32))


Part = list[Shape]


@dataclass(frozen=True)
class Plan:
    """What an object consists of: a body and parts that can be missing or misplaced."""

    body: Part
    parts: list[Part] = field(default_factory=list)
    shading: float = 0.0
    grain: float = 0.0
    turn: float = 0.25


def ellipse(x: float, y: float, rx: float, ry: float | None = None, angle: float = 0.0) -> Points:
    """Return the outline of an ellipse with half axes ``rx`` and ``ry``."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return placed(np.stack([rx * np.cos(t), (rx if ry is None else ry) * np.sin(t)], 1), x, y, angle)


def box(x: float, y: float, w: float, h: float, angle: float = 0.0, corner: float = 0.0) -> Points:
    """Return the outline of a ``w`` x ``h`` rectangle around (x, y), with rounded corners."""
    if corner <= 0:
        points = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2
        return placed(points, x, y, angle)
    r = min(corner, w / 2, h / 2)
    t = np.linspace(0, np.pi / 2, 6)
    arc = r * np.stack([np.cos(t), np.sin(t)], 1)
    turned = [arc, arc @ [[0, 1], [-1, 0]], -arc, arc @ [[0, -1], [1, 0]]]
    centres = np.array([[w, h], [-w, h], [-w, -h], [w, -h]]) / 2 - r * np.array(
        [[1, 1], [-1, 1], [-1, -1], [1, -1]]
    )
    return placed(np.concatenate([a + c for a, c in zip(turned, centres, strict=True)]), x, y, angle)


def cog(x: float, y: float, teeth: int, inner: float, outer: float, angle: float = 0.0) -> Points:
    """Return the outline of a wheel with square ``teeth`` between the radii ``inner`` and ``outer``."""
    steps = np.arange(teeth * 4)
    t = (steps + np.where(steps % 2, 0.25, -0.25)) * (2 * np.pi / (teeth * 4))
    r = np.where((steps // 2) % 2, inner, outer)
    return placed(np.stack([r * np.cos(t), r * np.sin(t)], 1), x, y, angle)


def polygon(points: Sequence[tuple[float, float]]) -> Points:
    """Return the outline through ``points``."""
    return np.array(points, np.float32)


def placed(points: NDArray[np.floating], x: float, y: float, angle: float = 0.0) -> Points:
    """Return ``points`` turned by ``angle`` (radians) and moved to (x, y)."""
    c, s = np.cos(angle), np.sin(angle)
    return as_field(points @ np.array([[c, s], [-s, c]]) + [x, y])


def mirrored(points: Points) -> Points:
    """Return the outline of a body of revolution from its right half, top to bottom."""
    left = points * np.array([-1, 1], np.float32)
    outline: Points = np.concatenate([points, left[::-1]])
    return outline


def to_pixels(points: Points) -> NDArray[np.int32]:
    """Return ``points`` on the canvas in fixed point, as OpenCV draws them."""
    scale = CANVAS / 2 * (1 << _SHIFT)
    return np.round((points + 1) * scale).astype(np.int32)


def draw(image: NDArray[np.uint8], alpha: NDArray[np.uint8], shape: Shape) -> None:
    """Draw ``shape`` on the canvas ``image`` and on its coverage ``alpha``, in place."""
    points = to_pixels(shape.points)
    if shape.width:
        width = max(1, round(shape.width * CANVAS / 2))
        for target, value in ((image, shape.colour), (alpha, (255.0,))):
            cv2.polylines(target, [points], shape.closed, value, width, cv2.LINE_AA, _SHIFT)
    elif shape.hole:
        cv2.fillPoly(alpha, [points], (0.0,), cv2.LINE_AA, _SHIFT)
    else:
        cv2.fillPoly(image, [points], shape.colour, cv2.LINE_AA, _SHIFT)
        cv2.fillPoly(alpha, [points], (255.0,), cv2.LINE_AA, _SHIFT)


def as_field(values: Any) -> NDArray[np.float32]:
    """Return ``values`` as float32."""
    field: NDArray[np.float32] = np.asarray(values, np.float32)
    return field


def region(points: Points, width: float = 0.0) -> NDArray[np.float32]:
    """Return the coverage (CANVAS, CANVAS) in [0, 1] of an outline, or of an open line of ``width``."""
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    if width:
        pixels = max(1, round(width * CANVAS / 2))
        cv2.polylines(mask, [to_pixels(points)], False, (255.0,), pixels, cv2.LINE_AA, _SHIFT)
    else:
        cv2.fillPoly(mask, [to_pixels(points)], (255.0,), cv2.LINE_AA, _SHIFT)
    return as_field(mask / 255)
