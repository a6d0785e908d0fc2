"""The factory's objects: each function draws up the plan of one specimen."""

from __future__ import annotations

import numpy as np

from .noise import Rng, grey, hue, shade
from .shapes import Part, Plan, Points, Shape, box, cog, ellipse, mirrored, placed, polygon


def ring(count: int, radius: float, start: float = 0.0) -> Points:
    """Return ``count`` centres on a circle."""
    t = start + np.arange(count) * 2 * np.pi / count
    return (radius * np.stack([np.cos(t), np.sin(t)], 1)).astype(np.float32)


def gear(rng: Rng) -> Plan:
    """A toothed wheel with a bore and lightening holes."""
    metal = grey(rng, 120, 190)
    teeth, spin = int(rng.integers(11, 15)), rng.uniform(0, 6.28)
    body = [
        Shape(cog(0, 0, teeth, 0.62, 0.78, spin), metal),
        Shape(ellipse(0, 0, 0.5), shade(metal, 0.85)),
        Shape(ellipse(0, 0, 0.3), shade(metal, 1.08)),
        Shape(ellipse(0, 0, 0.14), metal, hole=True),
    ]
    parts = [[Shape(ellipse(x, y, 0.08), shade(metal, 0.4))] for x, y in ring(6, 0.4, spin)]
    return Plan(body, parts, shading=0.15, grain=3, turn=3.14)


def washer(rng: Rng) -> Plan:
    """A flat ring with a stamped rim."""
    metal = hue(rng, 0.11, 0.05, 0.35, 0.75) if rng.random() < 0.5 else grey(rng, 140, 205)
    inner = rng.uniform(0.28, 0.38)
    body = [
        Shape(ellipse(0, 0, 0.75), metal),
        Shape(ellipse(0, 0, 0.68), shade(metal, 0.9), width=0.02),
        Shape(ellipse(0, 0, inner + 0.06), shade(metal, 0.85), width=0.02),
        Shape(ellipse(0, 0, inner), metal, hole=True),
    ]
    parts = [[Shape(box(x, y, 0.1, 0.1, 0.4), shade(metal, 0.55))] for x, y in ring(4, 0.54, 0.5)]
    return Plan(body, parts, shading=0.25, grain=3, turn=3.14)


def button(rng: Rng) -> Plan:
    """A round button with four thread holes."""
    plastic = hue(rng, rng.random(), 0, 0.55, 0.7)
    body = [
        Shape(ellipse(0, 0, 0.7), plastic),
        Shape(ellipse(0, 0, 0.58), shade(plastic, 0.8)),
        Shape(ellipse(0, 0, 0.54), shade(plastic, 0.95)),
    ]
    parts = [[Shape(ellipse(x, y, 0.09), shade(plastic, 0.3))] for x, y in ring(4, 0.24, 0.785)]
    return Plan(body, parts, shading=0.2, grain=2, turn=3.14)


def cookie(rng: Rng) -> Plan:
    """A round biscuit with chocolate chips."""
    dough = hue(rng, 0.09, 0.015, 0.5, 0.75)
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    r = 0.72 + 0.02 * np.sin(5 * t + rng.uniform(0, 6)) + 0.015 * np.sin(11 * t)
    body = [
        Shape(placed(np.stack([r * np.cos(t), r * np.sin(t)], 1), 0, 0), dough),
        Shape(ellipse(0, 0, 0.6), shade(dough, 1.08)),
    ]
    chip = shade(hue(rng, 0.07, 0.01, 0.6, 0.35), 0.8)
    spots = [*ring(7, 0.46, rng.uniform(0, 1)), *ring(3, 0.2, rng.uniform(0, 1))]
    parts = [[Shape(ellipse(x, y, 0.085, 0.07, rng.uniform(0, 3)), chip)] for x, y in spots]
    return Plan(body, parts, shading=0.15, grain=7, turn=3.14)


def battery(rng: Rng) -> Plan:
    """A standing cell with a cap, a coloured band and a printed sign."""
    band, dark = hue(rng, rng.random(), 0, 0.7, 0.75), grey(rng, 30, 60)
    metal = grey(rng, 170, 210)
    body = [Shape(box(0, 0.05, 0.66, 1.4, corner=0.06), dark)]
    parts: list[Part] = [
        [Shape(box(0, -0.74, 0.24, 0.18), metal)],
        [Shape(box(0, -0.42, 0.66, 0.42), band)],
        [Shape(box(0, 0.1, 0.26, 0.06), grey(rng, 210, 250)), Shape(box(0, 0.1, 0.06, 0.26), metal)],
        [Shape(box(0, 0.55, 0.5, 0.06), shade(band, 0.9))],
    ]
    return Plan(body, parts, shading=0.45, grain=2)


def fuse(rng: Rng) -> Plan:
    """A glass tube with two metal caps and a wire."""
    glass, metal = hue(rng, 0.5, 0.05, 0.12, 0.85), grey(rng, 150, 200)
    body = [Shape(box(0, 0, 1.3, 0.44, corner=0.04), glass)]
    parts: list[Part] = [
        [Shape(box(-0.66, 0, 0.36, 0.54, corner=0.04), metal)],
        [Shape(box(0.66, 0, 0.36, 0.54, corner=0.04), metal)],
        [Shape(polygon([(-0.5, 0), (-0.2, 0.05), (0.2, -0.05), (0.5, 0)]), grey(rng, 60, 90), 0.04, False)],
    ]
    return Plan(body, parts, shading=0.2, grain=2, turn=0.6)


def ruler(rng: Rng) -> Plan:
    """A rule with evenly spaced marks."""
    wood = hue(rng, 0.12, 0.02, 0.45, 0.85)
    ink = grey(rng, 20, 50)
    body = [Shape(box(0, 0, 1.7, 0.5), wood), Shape(box(0, 0.2, 1.7, 0.04), shade(wood, 0.85))]
    parts = [
        [Shape(box(x, -0.16 if k % 2 else -0.11, 0.03, 0.16 if k % 2 else 0.26), ink)]
        for k, x in enumerate(np.linspace(-0.75, 0.75, 13))
    ]
    return Plan(body, parts, grain=4, turn=0.5)


def key(rng: Rng) -> Plan:
    """A door key with a round bow and a notched bit."""
    brass = hue(rng, 0.12, 0.02, 0.5, 0.75) if rng.random() < 0.5 else grey(rng, 140, 190)
    body = [
        Shape(ellipse(-0.48, 0, 0.32), brass),
        Shape(ellipse(-0.52, 0, 0.14), brass, hole=True),
        Shape(box(0.28, 0, 1.0, 0.17), brass),
        Shape(box(0.28, 0, 1.0, 0.03), shade(brass, 0.7)),
    ]
    parts = [[Shape(box(x, 0.17, 0.1, h), brass)] for x, h in ((0.36, 0.2), (0.52, 0.28), (0.7, 0.22))]
    return Plan(body, parts, shading=0.1, grain=3, turn=0.7)


def bulb(rng: Rng) -> Plan:
    """A light bulb with a threaded socket."""
    glass, metal = hue(rng, 0.14, 0.03, 0.25, 0.92), grey(rng, 110, 160)
    body = [
        Shape(ellipse(0, -0.25, 0.52), glass),
        Shape(polygon([(-0.36, 0.1), (0.36, 0.1), (0.24, 0.4), (-0.24, 0.4)]), glass),
        Shape(polygon([(-0.12, 0.3), (-0.14, -0.2), (0, -0.05), (0.14, -0.2), (0.12, 0.3)]),
              grey(rng, 90, 130), 0.03, False),
    ]  # fmt: skip
    parts: list[Part] = [[Shape(box(0, y, 0.46, 0.1, corner=0.05), metal)] for y in (0.44, 0.55, 0.66)]
    parts.append([Shape(box(0, 0.75, 0.2, 0.08), shade(metal, 0.5))])
    return Plan(body, parts, shading=0.25, grain=2)


def chip(rng: Rng) -> Plan:
    """An integrated circuit with two rows of pins and a mark."""
    resin, metal = grey(rng, 35, 65), grey(rng, 170, 215)
    body = [Shape(box(0, 0, 1.3, 0.8, corner=0.03), resin)]
    parts = [
        [Shape(box(x, side * 0.5, 0.1, 0.24), metal)] for side in (-1, 1) for x in np.linspace(-0.52, 0.52, 6)
    ]
    parts.append([Shape(ellipse(-0.5, 0.24, 0.07), shade(resin, 1.8))])
    parts += [[Shape(box(0.1, y, 0.6, 0.06), grey(rng, 140, 180))] for y in (-0.1, 0.05)]
    return Plan(body, parts, grain=3, turn=0.5)


def plug(rng: Rng) -> Plan:
    """A mains plug with three pins."""
    plastic, metal = grey(rng, 190, 235), hue(rng, 0.12, 0.02, 0.45, 0.8)
    body = [
        Shape(box(0, 0, 1.3, 1.3, corner=0.4), plastic),
        Shape(box(0, 0, 1.1, 1.1, corner=0.3), shade(plastic, 0.93)),
    ]
    parts = [
        [Shape(box(0, -0.3, 0.14, 0.3), metal)],
        [Shape(box(-0.3, 0.25, 0.28, 0.13), metal)],
        [Shape(box(0.3, 0.25, 0.28, 0.13), metal)],
        [Shape(ellipse(0, 0.25, 0.07), shade(plastic, 0.5))],
    ]
    return Plan(body, parts, shading=0.12, grain=2)


def bottle(rng: Rng) -> Plan:
    """A bottle with a cap and a label."""
    glass = hue(rng, rng.choice([0.3, 0.09, 0.55]), 0.03, 0.55, 0.5)
    half = polygon([(0.12, -0.7), (0.12, -0.4), (0.36, -0.15), (0.38, 0.8)])
    paper = grey(rng, 205, 240)
    body = [Shape(mirrored(half), glass)]
    parts: list[Part] = [
        [Shape(box(0, -0.76, 0.32, 0.18, corner=0.03), hue(rng, rng.random(), 0, 0.6, 0.7))],
        [
            Shape(box(0, 0.27, 0.74, 0.5), paper),
            Shape(box(0, 0.15, 0.5, 0.07), shade(paper, 0.4)),
            Shape(box(0, 0.33, 0.4, 0.05), shade(paper, 0.6)),
        ],
    ]
    return Plan(body, parts, shading=0.45, grain=2)


def pill(rng: Rng) -> Plan:
    """A two-coloured capsule with a print."""
    first, second = hue(rng, rng.random(), 0, 0.65, 0.75), grey(rng, 200, 240)
    body = [Shape(box(0, 0, 1.5, 0.64, corner=0.32), first)]
    cap = box(0, 0, 1.5, 0.64, corner=0.32)
    body.append(Shape(np.minimum(cap, [0.02, 9]).astype(np.float32), second))
    ink = shade(first, 0.87)
    parts: list[Part] = [
        [Shape(box(0.36, 0, 0.34, 0.06), ink), Shape(box(0.36, 0, 0.06, 0.24), ink)],
        [Shape(box(0.02, 0, 0.05, 0.64), shade(second, 0.9))],
    ]
    return Plan(body, parts, shading=0.3, grain=1.5, turn=1.0)


def domino(rng: Rng) -> Plan:
    """A domino with pips in two fields."""
    bone, ink = hue(rng, 0.12, 0.03, 0.12, 0.9), hue(rng, rng.random(), 0, 0.5, 0.5)
    body = [Shape(box(0, 0, 0.86, 1.6, corner=0.1), bone), Shape(box(0, 0, 0.7, 0.035), shade(ink, 1.5))]
    spots = [(-0.24, -0.24), (0.24, 0.24), (-0.24, 0.24), (0.24, -0.24), (0, 0)]
    parts = [[Shape(ellipse(x, y + half, 0.085), ink)] for half in (-0.4, 0.4) for x, y in spots]
    return Plan(body, parts, shading=0.1, grain=2, turn=0.5)


def comb(rng: Rng) -> Plan:
    """A comb with a spine and many teeth."""
    plastic = hue(rng, rng.random(), 0, 0.5, 0.6)
    body = [
        Shape(box(0, -0.36, 1.7, 0.36, corner=0.12), plastic),
        Shape(box(0, -0.36, 1.4, 0.05), shade(plastic, 0.75)),
    ]
    body += [Shape(box(x, 0.1, 0.14, 0.8), plastic) for x in (-0.77, 0.77)]
    parts = [[Shape(box(x, 0.12, 0.065, 0.76, corner=0.03), plastic)] for x in np.linspace(-0.6, 0.6, 11)]
    return Plan(body, parts, shading=0.1, grain=1.5, turn=0.4)


def hinge(rng: Rng) -> Plan:
    """A door hinge: two leaves, a pin and six screws, some of them worn or tarnished."""
    metal = hue(rng, 0.11, 0.04, 0.3, 0.7) if rng.random() < 0.5 else grey(rng, 130, 190)
    body = [
        Shape(box(-0.45, 0, 0.74, 1.3, corner=0.08), metal),
        Shape(box(0.45, 0, 0.74, 1.3, corner=0.08), shade(metal, rng.uniform(0.85, 1.05))),
        Shape(box(0, 0, 0.18, 1.4, corner=0.05), shade(metal, 0.75)),
    ]
    parts = [
        [
            Shape(ellipse(x, y, 0.11), shade(metal, rng.uniform(0.55, 1.1))),
            Shape(box(x, y, 0.16, 0.035, rng.uniform(0, 3.1)), shade(metal, 0.5)),
        ]
        for x in (-0.48, 0.48)
        for y in (-0.42, 0.0, 0.42)
    ]
    return Plan(body, parts, shading=0.15, grain=4, turn=0.4)


def dial(rng: Rng) -> Plan:
    """A round gauge with ticks and a needle."""
    face, ink = grey(rng, 205, 245), grey(rng, 100, 140)
    body = [
        Shape(ellipse(0, 0, 0.8), grey(rng, 150, 190)),
        Shape(ellipse(0, 0, 0.7), face),
        Shape(ellipse(0, 0, 0.34), shade(face, 0.96)),
    ]
    parts = [
        [Shape(box(x, y, 0.13, 0.04, float(np.arctan2(y, x))), ink)]
        for x, y in ring(12, 0.58)[[*range(2), *range(4, 12)]]
    ]
    angle = rng.uniform(2.6, 6.0)
    parts.append([Shape(placed(box(0.2, 0, 0.56, 0.055), 0, 0, angle), hue(rng, 0.0, 0.02, 0.45, 0.75))])
    return Plan([*body, Shape(ellipse(0, 0, 0.08), ink)], parts, shading=0.1, grain=1.5, turn=0.3)


def toy_block(rng: Rng) -> Plan:
    """A toy block with two rows of studs."""
    plastic = hue(rng, rng.random(), 0, 0.7, 0.75)
    body = [Shape(box(0, 0, 1.6, 0.86, corner=0.04), plastic)]
    parts = [
        [
            Shape(ellipse(x, y + 0.03, 0.15), shade(plastic, 0.65)),
            Shape(ellipse(x, y, 0.14), shade(plastic, 1.12)),
        ]
        for y in (-0.21, 0.21)
        for x in (-0.57, -0.19, 0.19, 0.57)
    ]
    return Plan(body, parts, shading=0.1, grain=1.5, turn=0.6)


AUXILIARY = {
    "gear": gear,
    "washer": washer,
    "button": button,
    "cookie": cookie,
    "battery": battery,
    "fuse": fuse,
    "ruler": ruler,
    "key": key,
    "bulb": bulb,
    "chip": chip,
    "plug": plug,
    "bottle": bottle,
}
HELD_OUT = {
    "pill": pill,
    "domino": domino,
    "comb": comb,
    "hinge": hinge,
    "dial": dial,
    "toy_block": toy_block,
}
