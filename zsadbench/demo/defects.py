"""The factory's faults: each takes a sound scene and returns a faulty one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from .noise import Field, Rng, fractal, grey, hue, smooth
from .shapes import CANVAS, Part, Plan, Points, as_field, draw, placed, polygon, region

Coverage = np.ndarray[tuple[int, int], np.dtype[np.uint8]]


@dataclass(frozen=True)
class Scene:
    """A specimen on the canvas: colours (CANVAS, CANVAS, 3) float32, coverage uint8, an object's plan."""

    image: Field
    alpha: Coverage
    plan: Plan | None = None


class Unfit(Exception):
    """This fault does not apply to this scene."""


def drawn(plan: Plan, shading: Field, grain: Field) -> Scene:
    """Return the scene of an object: its outlines, lit by ``shading`` and roughened by ``grain``."""
    image = np.zeros((CANVAS, CANVAS, 3), np.uint8)
    alpha = np.zeros((CANVAS, CANVAS), np.uint8)
    for shape in [*plan.body, *(shape for part in plan.parts for shape in part)]:
        draw(image, alpha, shape)
    lit = image * (1 + plan.shading * shading)[..., None] + (plan.grain * grain)[..., None]
    return Scene(lit.astype(np.float32), alpha, plan)


def spot(scene: Scene, rng: Rng, margin: float = 0.06) -> Points:
    """Return a random place (2,) on the specimen, ``margin`` units inside its outline where possible."""
    size = max(1, round(margin * CANVAS / 2)) * 2 + 1
    inner = cv2.erode(scene.alpha, np.ones((size, size), np.uint8))
    if scene.plan is None:  # what the camera will see of a surface
        edge = CANVAS // 6
        inner[:edge], inner[-edge:], inner[:, :edge], inner[:, -edge:] = 0, 0, 0, 0
    rows, columns = np.nonzero(inner > 200)
    if not len(rows):
        rows, columns = np.nonzero(scene.alpha > 200)
    pick = int(rng.integers(len(rows)))
    return (np.array([columns[pick], rows[pick]], np.float32) * 2 / CANVAS - 1).astype(np.float32)


def blend(scene: Scene, weight: Field, colour: Field | tuple[float, float, float]) -> Scene:
    """Return the scene with ``colour`` laid over the specimen by ``weight`` (CANVAS, CANVAS)."""
    image, tone = scene.image.copy(), np.asarray(colour, np.float32)
    x, y, w, h = cv2.boundingRect((weight > 0).astype(np.uint8))
    part = (slice(y, y + h), slice(x, x + w))
    image[part] += weight[part][..., None] * ((tone[part] if tone.ndim == 3 else tone) - image[part])
    return replace(scene, image=image)


def contrasting(scene: Scene, at: Points, rng: Rng, strength: float) -> tuple[float, float, float]:
    """Return a grey that differs from the specimen at ``at`` by at least ``strength`` levels."""
    x, y = np.clip(((at + 1) * CANVAS / 2).astype(int), 0, CANVAS - 1)
    level = float(scene.image[y, x].mean())
    darker = level > 230 - strength or (level > strength + 30 and rng.random() < 0.5)
    value = level - strength if darker else level + strength
    return grey(rng, value, value)


def walk(rng: Rng, start: Points, length: float, steps: int, bend: float) -> Points:
    """Return a line of ``steps`` pieces that turns by about ``bend`` radians at each."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, steps))
    pieces = length / steps * np.stack([np.cos(heading), np.sin(heading)], 1)
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(pieces, 0)])
    return as_field(start + path - path[len(path) // 2])


def blob(rng: Rng, at: Points, radius: float, rough: float = 0.3) -> Points:
    """Return an irregular closed outline around ``at``."""
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    r = 1 + sum(rough / k * rng.uniform(-1, 1) * np.cos(k * t + rng.uniform(0, 6.3)) for k in (2, 3, 5))
    stretch = rng.uniform(0.6, 1.0)
    return placed(
        np.stack([radius * r * np.cos(t), radius * stretch * r * np.sin(t)], 1),
        float(at[0]),
        float(at[1]),
        rng.uniform(0, 3),
    )


def scratch(scene: Scene, rng: Rng) -> Scene:
    """Draw two to four thin, nearly straight lines."""
    at = spot(scene, rng)
    colour = contrasting(scene, at, rng, rng.uniform(110, 180))
    heading = rng.uniform(0, np.pi)
    for _ in range(rng.integers(2, 5)):
        line = placed(walk(rng, np.zeros(2, np.float32), rng.uniform(0.4, 1.0), 6, 0.06), 0, 0)
        ends = line[-1] - line[0]
        turned = placed(line, 0, 0, heading + rng.normal(0, 0.15) - float(np.arctan2(ends[1], ends[0])))
        weight = region(turned + at + rng.normal(0, 0.08, 2).astype(np.float32), rng.uniform(0.03, 0.05))
        scene = blend(scene, weight * rng.uniform(0.85, 1.0), colour)
    return scene


def crack(scene: Scene, rng: Rng) -> Scene:
    """Draw a jagged dark line with branches."""
    at = spot(scene, rng)
    main = walk(rng, at, rng.uniform(0.5, 1.1), 12, 0.55)
    weight = region(main, rng.uniform(0.025, 0.045))
    for _ in range(rng.integers(0, 3)):
        start = main[int(rng.integers(3, 10))]
        branch = walk(rng, start, rng.uniform(0.2, 0.5), 6, 0.5)
        weight = np.maximum(weight, region(branch - branch[0] + start, 0.025))
    return blend(scene, weight * rng.uniform(0.8, 1.0), grey(rng, 0, 25))


def hole(scene: Scene, rng: Rng) -> Scene:
    """Punch a round hole with a raised rim; through the object or into the surface."""
    at, radius = spot(scene, rng, 0.12), rng.uniform(0.1, 0.18)
    outline = blob(rng, at, radius, 0.15)
    rim = region((outline - at) * 1.25 + at)
    scene = blend(scene, rim * rng.uniform(0.5, 0.9), contrasting(scene, at, rng, 100))
    inside = region(outline)
    if scene.plan is not None and rng.random() < 0.4:
        return replace(scene, alpha=(scene.alpha * (1 - inside)).astype(np.uint8))
    return blend(scene, inside, grey(rng, 5, 35))


def stain(scene: Scene, rng: Rng) -> Scene:
    """Soak an irregular patch with a translucent liquid."""
    at, radius = spot(scene, rng), rng.uniform(0.2, 0.4)
    soft = cv2.GaussianBlur(region(blob(rng, at, radius, 0.4)), (0, 0), rng.uniform(1.0, 4.0))
    liquid = hue(rng, rng.choice([0.08, 0.1, 0.6, 0.3]), 0.04, rng.uniform(0.3, 0.8), rng.uniform(0.15, 0.4))
    patchy = np.clip(1 + 0.25 * smooth(rng, 16), 0, 1.2)
    return blend(scene, np.clip(soft * patchy * rng.uniform(0.5, 0.85), 0, 1), liquid)


def contamination(scene: Scene, rng: Rng) -> Scene:
    """Scatter foreign particles and fibres over one place."""
    at, spread = spot(scene, rng), rng.uniform(0.1, 0.25)
    colour = hue(rng, rng.random(), 0, rng.uniform(0.6, 0.95), rng.choice([0.3, 0.9]))
    for _ in range(rng.integers(6, 14)):
        place = (at + rng.normal(0, spread, 2)).astype(np.float32)
        if rng.random() < 0.25:
            weight = region(walk(rng, place, rng.uniform(0.15, 0.3), 6, 0.5), 0.02)
        else:
            weight = region(blob(rng, place, rng.uniform(0.03, 0.07), 0.4))
        scene = blend(scene, weight * rng.uniform(0.8, 1), colour)
    return scene


def cut(scene: Scene, rng: Rng) -> Scene:
    """Open a straight slit with a dark inside and one bright lip."""
    at, heading = spot(scene, rng, 0.1), rng.uniform(0, np.pi)
    half, gape = rng.uniform(0.2, 0.4), rng.uniform(0.035, 0.065)
    slit = polygon(
        [(-half, 0), (-half / 2, -gape), (half / 2, -gape), (half, 0), (half / 2, gape), (-half / 2, gape)]
    )
    lip = region(placed(slit * [1.05, 1.2], at[0] + 0.02, at[1] + 0.02, heading))
    scene = blend(scene, lip * 0.8, contrasting(scene, at, rng, 90))
    return blend(scene, region(placed(slit, float(at[0]), float(at[1]), heading)), grey(rng, 5, 35))


def broken(scene: Scene, rng: Rng) -> Scene:
    """Break a piece off the outline; of a surface, spall its top layer."""
    if scene.plan is None:
        at = spot(scene, rng)
        rough = np.clip(scene.image * rng.uniform(0.35, 0.6) + 14 * fractal(rng, 20, 2)[..., None], 0, 255)
        return blend(scene, region(jagged(rng, at, rng.uniform(0.15, 0.3))), rough)
    edge = cv2.morphologyEx(scene.alpha, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    rows, columns = np.nonzero(edge > 128)
    pick = int(rng.integers(len(rows)))
    at = (np.array([columns[pick], rows[pick]], np.float32) * 2 / CANVAS - 1).astype(np.float32)
    outline = jagged(rng, at, rng.uniform(0.2, 0.36))
    bite, fracture = region(outline), region(np.concatenate([outline, outline[:1]]), rng.uniform(0.07, 0.11))
    scene = blend(scene, fracture, contrasting(scene, at, rng, rng.uniform(100, 160)))
    return replace(scene, alpha=(scene.alpha * (1 - bite)).astype(np.uint8))


def jagged(rng: Rng, at: Points, radius: float) -> Points:
    """Return a splintered outline around ``at``."""
    t = np.sort(rng.uniform(0, 2 * np.pi, 11))
    r = radius * rng.uniform(0.6, 1.15, 11)
    return (at + np.stack([r * np.cos(t), r * np.sin(t)], 1)).astype(np.float32)


def redrawn(scene: Scene, plan: Plan) -> Scene:
    """Return the same specimen with another plan, under the light and grain of ``scene``."""
    flat, other = (
        drawn(replace(p, shading=0, grain=0), np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))
        for p in (scene.plan, plan)
        if p is not None
    )
    light = (scene.image + 1) / (flat.image + 1)
    changed = (other.image != flat.image).any(axis=2, keepdims=True)
    cover = (flat.alpha > 0)[..., None]
    mean = light[flat.alpha > 0].mean()
    new = np.where(changed, (other.image + 1) * np.where(cover, light, mean) - 1, scene.image)
    return Scene(new.astype(np.float32), other.alpha, plan)


def missing_part(scene: Scene, rng: Rng) -> Scene:
    """Leave out one or two parts."""
    if scene.plan is None or not scene.plan.parts:
        raise Unfit
    parts, gone = list(scene.plan.parts), []
    for _ in range(min(len(parts), 1 + int(len(parts) > 5 and rng.random() < 0.5))):
        gone.append(parts.pop(int(rng.integers(len(parts)))))
    return scarred(redrawn(scene, replace(scene.plan, parts=parts)), gone, rng)


def scarred(scene: Scene, gone: list[Part], rng: Rng) -> Scene:
    """Roughen the places where parts were: dark at the edge, torn inside."""
    tone = grey(rng, 30, 90)
    rough = np.clip(np.array(tone, np.float32) + 60 * smooth(rng, 48)[..., None], 0, 255)
    for shape in (shape for part in gone for shape in part if not shape.width):
        scene = blend(scene, region(shape.points) * rng.uniform(0.5, 0.8), rough)
        scene = blend(
            scene, region(np.concatenate([shape.points, shape.points[:1]]), 0.025), grey(rng, 5, 40)
        )
    return scene


def misplaced_part(scene: Scene, rng: Rng) -> Scene:
    """Shift and turn a part; of a surface, a piece of it."""
    angle = rng.uniform(0.3, 1.2) * rng.choice([-1, 1])
    if scene.plan is None:
        return displaced(scene, rng, float(angle))
    if not scene.plan.parts:
        raise Unfit
    parts = list(scene.plan.parts)
    pick = int(rng.integers(len(parts)))
    heading = rng.uniform(0, 2 * np.pi)
    shift = rng.uniform(0.12, 0.25) * np.array([np.cos(heading), np.sin(heading)], np.float32)
    about = np.concatenate([shape.points for shape in parts[pick]]).mean(axis=0)
    part = parts.pop(pick)
    without = scarred(redrawn(scene, replace(scene.plan, parts=parts)), [part], rng)
    moved = [shape.moved(about, shift, float(angle)) for shape in part]
    return redrawn(without, replace(scene.plan, parts=[*parts, moved]))


def displaced(scene: Scene, rng: Rng, angle: float) -> Scene:
    """Return a surface with a round or square piece turned about its centre and set off."""
    at, radius = spot(scene, rng, 0.2), rng.uniform(0.18, 0.3)
    x, y = ((at + 1) * CANVAS / 2).tolist()
    turn = cv2.getRotationMatrix2D((x, y), float(np.degrees(angle)), 1.0)
    turn[:, 2] += rng.uniform(-8, 8, 2)
    piece = cv2.warpAffine(scene.image, turn, (CANVAS, CANVAS), borderMode=cv2.BORDER_REFLECT_101)
    outline = blob(rng, at, radius, 0.2)
    scene = blend(scene, region(outline), piece * rng.uniform(0.85, 1.1))
    ring = region(np.concatenate([outline, outline[:1]]), 0.02)
    return blend(scene, ring * 0.6, grey(rng, 10, 60))


def discoloration(scene: Scene, rng: Rng) -> Scene:
    """Shift the colour of a sharply bounded area."""
    at, radius = spot(scene, rng), rng.uniform(0.18, 0.36)
    weight = cv2.GaussianBlur(region(blob(rng, at, radius, 0.25)), (0, 0), rng.uniform(0.7, 2))
    tint = np.array(hue(rng, rng.random(), 0, rng.uniform(0.6, 0.95), 0.9), np.float32) / 255
    level = scene.image.mean(axis=2, keepdims=True)
    return blend(scene, weight * rng.uniform(0.65, 0.95), np.clip(1.5 * level * tint + 40 * tint, 0, 255))


FAULTS: dict[str, Callable[[Scene, Rng], Scene]] = {
    "scratch": scratch,
    "crack": crack,
    "hole": hole,
    "stain": stain,
    "contamination": contamination,
    "cut": cut,
    "broken": broken,
    "missing_part": missing_part,
    "misplaced_part": misplaced_part,
    "discoloration": discoloration,
}


def difference(sound: Scene, faulty: Scene, level: float = 12.0) -> Field:
    """Return 1 where the faulty specimen visibly differs from the sound one, else 0 (CANVAS, CANVAS).

    Gaps of a few pixels are closed: where a pattern meets itself by chance it is misplaced all the same.
    """
    red, green, blue = cv2.split(cv2.absdiff(faulty.image, sound.image))
    colour = (cv2.max(cv2.max(red, green), blue) > level) & (faulty.alpha > 64)
    changed = (colour | (cv2.absdiff(faulty.alpha, sound.alpha) > 64)).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    return as_field(cv2.morphologyEx(changed, cv2.MORPH_CLOSE, kernel))
