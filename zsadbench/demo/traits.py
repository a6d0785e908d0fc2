"""What else can be said of a picture: words for colour, light, focus and grain that are true of it.

A text tower that learns states alone has one direction for everything, and any two words differ along it.
These words give the pictures of one category more to differ in than their state.
"""

from __future__ import annotations

import colorsys

import numpy as np

from .defects import Scene
from .factory import Camera

COLOURS = ("red", "brown", "yellow", "green", "blue", "purple", "white", "grey", "black")
"""Words for the specimen."""

CAMERA = (("bright", "dark"), ("clear", "blurry"), ("smooth", "grainy"))
"""Words for the photograph: light, focus, grain."""

GROUPS = (COLOURS, *CAMERA)
"""Of each group at most one word is true of a picture."""

CONNOTATIONS = {
    "warm": ("red", "brown", "yellow"), "cold": ("blue", "purple"), "wooden": ("brown",), "metal": ("grey",),
    "plastic": ("red", "yellow", "green", "blue", "purple"), "old": ("brown", "grainy"),
    "new": ("white", "clear"), "modern": ("white", "grey"), "shiny": ("bright",), "dull": ("dark",),
    "light": ("bright", "white"), "heavy": ("dark", "black"), "wet": ("dark", "blurry"),
    "dry": ("bright", "yellow"), "flat": ("smooth",), "simple": ("smooth", "clear"), "cheap": ("grainy",),
    "small": ("blurry",), "large": ("clear",), "big": ("clear", "bright"), "thick": ("dark",),
    "thin": ("bright",), "short": ("grainy",), "long": ("smooth",), "round": ("blurry", "green"),
    "cropped": ("dark",), "close-up": ("clear",), "jpeg corrupted": ("grainy",),
    "low resolution": ("blurry",), "black and white": ("white", "grey", "black"), "bad": ("dark", "blurry"),
    "good": ("bright", "clear"),
}  # fmt: skip
"""What words suggest that say nothing for sure; made up where nothing is obvious."""

_HUES = ((0.04, "red"), (0.115, "brown"), (0.2, "yellow"), (0.46, "green"), (0.72, "blue"), (0.92, "purple"))


def traits(scene: Scene, view: Camera) -> frozenset[str]:
    """Return the words that are true of the photograph that ``view`` takes of the sound ``scene``."""
    light = float(view.light.mean())
    words = {
        colour(scene),
        "bright" if light > 1.02 else "dark" if light < 0.88 else "",
        "clear" if view.blur < 0.25 else "blurry" if view.blur > 0.45 else "",
        "smooth" if (grain := float(view.noise.std())) < 1.3 else "grainy" if grain > 2.2 else "",
    }
    return frozenset(words - {""})


def colour(scene: Scene) -> str:
    """Return the word for the mean colour of the specimen."""
    red, green, blue = np.clip(scene.image[scene.alpha > 128].mean(axis=0) / 255, 0, 1).tolist()
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    if saturation < 0.15:
        return "white" if value > 0.75 else "grey" if value > 0.35 else "black"
    return next((name for limit, name in _HUES if hue < limit), "red")


def group(word: str) -> tuple[str, ...]:
    """Return the words of which ``word`` is one, or () for a word that nothing is known about."""
    return next((words for words in GROUPS if word in words), ())


def meaning(word: str, connote: bool = False) -> frozenset[str]:
    """Return the traits of which ``word`` says one; with ``connote`` those that it suggests, if none."""
    return frozenset({word} if group(word) else CONNOTATIONS.get(word, ()) if connote else ())
