"""A small folder in MVTec layout, made for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def make_folder(
    root: Path, categories: tuple[str, ...] = ("bolt", "cloth"), each: int = 3, side: int = 40
) -> Path:
    """Write ``each`` normal and ``each`` anomalous images with masks per category; returns ``root``."""
    for number, category in enumerate(categories):
        rng = np.random.RandomState(number)
        for index in range(each):
            image = rng.randint(80, 160, (side, side, 3)).astype(np.uint8)
            save(root / category / "test" / "good" / f"{index}.png", image)
            mask = np.zeros((side, side), np.uint8)
            corner = 4 + 3 * index
            mask[corner : corner + 10, corner : corner + 8] = 255
            save(root / category / "ground_truth" / "hole" / f"{index}_mask.png", mask)
            save(root / category / "test" / "hole" / f"{index}.png", np.where(mask[..., None] > 0, 10, image))
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
