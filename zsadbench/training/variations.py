"""What a training may put in the place of a sample: mosaics, and pictures turned, lit and blurred anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from .data import Example, TrainingSet

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Mosaic:
    """Replaces a ``share`` of the samples by 2 x 2 mosaics of their category (APRIL-GAN).

    Each tile is drawn by its kind of defect first (normal is a kind), then by the file; with
    ``tiles="anomalous"`` by the file alone, among anomalous ones; with ``tiles="images"`` four different
    files are drawn, of any kind (AdaCLIP).  All tiles stand at the size of the first.  With ``on`` only
    samples of these datasets (ids) are replaced.
    """

    share: float
    tiles: Literal["kinds", "anomalous", "images"] = "kinds"
    on: tuple[str, ...] = ()

    def __call__(self, data: TrainingSet, index: int, rng: np.random.Generator) -> Example | None:
        """Return a mosaic, or nothing."""
        made = self.compose(data, index, rng)
        return data.changed(index, *made) if made else None

    def compose(
        self, data: TrainingSet, index: int, rng: np.random.Generator
    ) -> tuple[Image.Image, Mask] | None:
        """Return a mosaic with its mask (H, W), or nothing."""
        if self.on and data.dataset_of(index).id not in self.on:
            return None
        if rng.random() >= self.share:
            return None
        chosen = self._draw(data, data.samples[index].category, rng)
        return (
            composed([(data.image(n).convert("RGB"), data.mask(n, None)) for n in chosen]) if chosen else None
        )

    def _draw(self, data: TrainingSet, category: str, rng: np.random.Generator) -> list[int]:
        """Return the samples of the four tiles; none where the category has no anomalous one to draw."""
        if self.tiles == "images":
            every = [number for number, sample in enumerate(data.samples) if sample.category == category]
            return [int(number) for number in rng.choice(every, 4, replace=len(every) < 4)]
        kinds: dict[tuple[bool, str], list[int]] = {}
        for number, sample in enumerate(data.samples):
            if sample.category == category and (sample.anomalous or self.tiles == "kinds"):
                kind = (sample.anomalous, sample.specie) if self.tiles == "kinds" else (True, "")
                kinds.setdefault(kind, []).append(number)
        if not kinds:
            return []
        drawn = []
        for _ in range(4):
            own = kinds[sorted(kinds)[rng.integers(len(kinds))]]
            drawn.append(own[rng.integers(len(own))])
        return drawn


def composed(tiles: Sequence[tuple[Image.Image, Mask]]) -> tuple[Image.Image, Mask]:
    """Return the 2 x 2 mosaic of four images with masks, each in a field of the first one's size."""
    width, height = tiles[0][0].size
    image = Image.new("RGB", (2 * width, 2 * height))
    mask = Image.new("L", (2 * width, 2 * height))
    for place, (tile, defect) in enumerate(tiles):
        corner = (place % 2 * width, place // 2 * height)
        image.paste(tile, corner)
        mask.paste(Image.fromarray(defect.astype(np.uint8) * 255), corner)
    return image, np.asarray(mask) > 127


@dataclass(frozen=True)
class Augmented:
    """Turns, lights, stains and blurs every sample, or the mosaic that takes its place.

    Each of five changes comes with ``probability``: a turn of up to 30 degrees, quarter turns,
    brightness and contrast, noise, and one of two blurs and a change of colours (VCP-CLIP, Bayes-PFL).
    """

    mosaic: Mosaic | None = None
    probability: float = 0.5

    def __call__(self, data: TrainingSet, index: int, rng: np.random.Generator) -> Example:
        """Return the changed sample."""
        made = self.mosaic.compose(data, index, rng) if self.mosaic else None
        image, mask = made or (data.image(index).convert("RGB"), data.mask(index, None))
        pixels: Pixels = np.asarray(image)
        for change in (_turn, _quarter_turns):
            if rng.random() < self.probability:
                pixels, mask = change(pixels, mask, rng)
        for recolour in (_light, _noise, _blur_or_colour):
            if rng.random() < self.probability:
                pixels = recolour(pixels, rng)
        return data.changed(index, Image.fromarray(np.ascontiguousarray(pixels)), np.ascontiguousarray(mask))


def _turn(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    height, width = mask.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), rng.uniform(-30, 30), 1.0)

    def turned(one: Pixels, how: int) -> Pixels:
        found: Pixels = cv2.warpAffine(
            one, matrix, (width, height), flags=how, borderMode=cv2.BORDER_REFLECT_101
        )
        return found

    return turned(pixels, cv2.INTER_LINEAR), turned(mask.astype(np.uint8), cv2.INTER_NEAREST) > 0


def _quarter_turns(pixels: Pixels, mask: Mask, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    count = int(rng.integers(4))
    return np.rot90(pixels, count), np.rot90(mask, count)


def _light(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Change contrast and brightness by up to a fifth."""
    return _clipped(pixels * (1 + rng.uniform(-0.2, 0.2)) + 255 * rng.uniform(-0.2, 0.2))


def _noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise of a variance between 10 and 50."""
    return _clipped(pixels + rng.normal(0, rng.uniform(10, 50) ** 0.5, pixels.shape))


def _blur_or_colour(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    changes: tuple[Callable[[Pixels, np.random.Generator], Pixels], ...] = (_box, _colour, _gaussian)
    return changes[rng.integers(3)](pixels, rng)


def _box(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    blurred: Pixels = cv2.blur(np.ascontiguousarray(pixels), (3, 3))
    return blurred


def _gaussian(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    side = int(rng.choice((3, 5, 7)))
    blurred: Pixels = cv2.GaussianBlur(np.ascontiguousarray(pixels), (side, side), 0)
    return blurred


def _colour(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Change brightness, contrast and saturation by up to a fifth and the hue, in random order."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None)
    for number in rng.permutation(len(kinds)):
        kind = kinds[number]
        if kind is not None:
            image = kind(image).enhance(rng.uniform(0.8, 1.2))
            continue
        hue, saturation, value = image.convert("HSV").split()
        shift = round(255 * rng.uniform(-0.2, 0.2))
        moved = Image.fromarray(((np.asarray(hue).astype(int) + shift) % 256).astype(np.uint8))
        image = Image.merge("HSV", (moved, saturation, value)).convert("RGB")
    changed: Pixels = np.asarray(image)
    return changed


def _clipped(values: NDArray[np.floating]) -> Pixels:
    clipped: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return clipped
