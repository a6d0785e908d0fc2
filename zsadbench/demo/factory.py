"""Specimens before a camera: a scene is posed on a background, lit, blurred, made noisy and compressed.

Every picture is a function of (seed, category, number) alone: generators are seeded by these three.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from . import objects, textures
from .defects import FAULTS, Scene, Unfit, difference, drawn
from .noise import Field, Rng, grain, grey, hue, smooth
from .shapes import CANVAS

SIDE = 96
"""Side in pixels of a picture."""

AUXILIARY = (*objects.AUXILIARY, *textures.AUXILIARY)
HELD_OUT = (*objects.HELD_OUT, *textures.HELD_OUT)
_OBJECTS = objects.AUXILIARY | objects.HELD_OUT
_TEXTURES = textures.AUXILIARY | textures.HELD_OUT
MIN_AREA, TRIES = 160, 8
"""Pixels that a defect should cover at least, and how often a smaller one is made again."""


@dataclass(frozen=True)
class Picture:
    """A photograph (SIDE, SIDE, 3) uint8 RGB, its defect mask (SIDE, SIDE) bool, the fault or ``good``."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    fault: str


@dataclass(frozen=True)
class Camera:
    """Pose, light and camera of one photograph."""

    pose: NDArray[np.float64]
    background: Field
    light: Field
    gains: NDArray[np.float32]
    blur: float
    noise: Field
    quality: int


def generator(seed: int, category: str, number: int) -> Rng:
    """Return the random generator of one picture."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(category.encode()), number]))


def specimen(category: str, rng: Rng) -> Scene:
    """Return a sound specimen of ``category`` on the canvas."""
    if category in _TEXTURES:
        full = np.full((CANVAS, CANVAS), 255, np.uint8)
        return Scene(_TEXTURES[category](rng), full)
    plan = _OBJECTS[category](rng)
    slope, across = rng.normal(0, 1, 2)
    light = np.cos((textures.X + 0.15 * slope) * np.pi / 2) * 1.6 - 1 + 0.3 * across * textures.Y
    return drawn(plan, light.astype(np.float32), grain(rng))


def turn_of(scene: Scene) -> float:
    """Return how far a specimen may be turned, in radians: surfaces lie nearly straight."""
    return 0.12 if scene.plan is None else scene.plan.turn


def camera(scene: Scene, rng: Rng) -> Camera:
    """Draw the circumstances of one photograph."""
    turn = turn_of(scene)
    low, high = (1.15, 1.4) if scene.plan is None else (0.92, 1.06)
    pose = cv2.getRotationMatrix2D(
        (CANVAS / 2, CANVAS / 2), float(np.degrees(rng.uniform(-turn, turn))), rng.uniform(low, high)
    )
    pose[:, 2] += rng.uniform(-0.05, 0.05, 2) * CANVAS
    pose *= SIDE / CANVAS
    tone = hue(rng, rng.random(), 0, 0.15, 0.55) if rng.random() < 0.4 else grey(rng, 20, 235)
    relief = rng.uniform(1, 4) * smooth(rng, 5, side=SIDE) + rng.uniform(0, 2) * smooth(rng, SIDE, side=SIDE)
    ground = relief[..., None] + np.array(tone, np.float32)
    heading, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.2)
    slope = np.cos(heading) * textures.X[::2, ::2] + np.sin(heading) * textures.Y[::2, ::2]
    light = (rng.uniform(0.75, 1.15) * (1 + strength * slope)).astype(np.float32)
    return Camera(
        pose,
        ground,
        light,
        rng.uniform(0.94, 1.06, 3).astype(np.float32),
        rng.uniform(0, 0.7),
        rng.standard_normal((SIDE, SIDE, 3), np.float32) * np.float32(rng.uniform(0.5, 3)),
        int(rng.integers(70, 100)),
    )


def photograph(scene: Scene, view: Camera) -> NDArray[np.uint8]:
    """Return the picture (SIDE, SIDE, 3) uint8 that the camera takes of the scene."""
    size = (SIDE, SIDE)
    if scene.plan is None:
        image: Field = cv2.warpAffine(scene.image, view.pose, size, borderMode=cv2.BORDER_REFLECT_101)
    else:
        cover = cv2.warpAffine(scene.alpha, view.pose, size)[..., None].astype(np.float32) / 255
        warped = cv2.warpAffine(scene.image, view.pose, size, borderMode=cv2.BORDER_REPLICATE)
        image = view.background + cover * (warped - view.background)
    if view.blur > 0.3:
        image = cv2.GaussianBlur(image, (5, 5), view.blur)
    image = image * view.light[..., None] * view.gains + view.noise
    picture = np.clip(image, 0, 255).astype(np.uint8)
    if view.quality < 95:
        coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, view.quality])[1]
        picture = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
    return np.ascontiguousarray(picture)


def seen(change: Field, scene: Scene, view: Camera) -> NDArray[np.bool_]:
    """Return where a change of the canvas shows in the picture (SIDE, SIDE)."""
    border = cv2.BORDER_REFLECT_101 if scene.plan is None else cv2.BORDER_CONSTANT
    covered = cv2.warpAffine(change, view.pose, (SIDE, SIDE), borderMode=border)
    return np.asarray(covered > 0.3)


def faulty(scene: Scene, view: Camera, rng: Rng, fault: str) -> Picture:
    """Return the picture of ``scene`` with ``fault``, made again until it is large enough.

    Of a few that are all too small (a part can be) the largest is taken.

    Raises:
        Unfit: if the fault does not apply to the scene, or never shows.
    """
    best, mask = scene, np.zeros((SIDE, SIDE), bool)
    for _ in range(TRIES):
        other = FAULTS[fault](scene, rng)
        change = seen(difference(scene, other), scene, view)
        if change.sum() > mask.sum():
            best, mask = other, change
        if mask.sum() >= MIN_AREA:
            break
    if not mask.any():
        raise Unfit(fault)
    return Picture(photograph(best, view), mask, fault)


def faults_of(category: str) -> tuple[str, ...]:
    """Return the faults that specimens of ``category`` can have."""
    return tuple(name for name in FAULTS if category in _OBJECTS or name != "missing_part")


def good(category: str, rng: Rng) -> Picture:
    """Return a picture of a sound specimen."""
    scene = specimen(category, rng)
    picture = photograph(scene, camera(scene, rng))
    return Picture(picture, np.zeros((SIDE, SIDE), bool), "good")


def bad(category: str, rng: Rng, fault: str) -> Picture:
    """Return a picture of a faulty specimen."""
    scene = specimen(category, rng)
    return faulty(scene, camera(scene, rng), rng, fault)
