"""Training batches: pairs of a sound and a faulty picture of one specimen, with true captions."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .captions import ANY, GOOD, caption
from .factory import AUXILIARY, SIDE, camera, faults_of, faulty, generator, photograph, specimen

GRID = 12
"""Patches along a side of a picture."""


@dataclass(frozen=True)
class Pairs:
    """Picture 2p is sound, 2p + 1 is the same specimen with a fault; so are their captions.

    ``images`` (2n, SIDE, SIDE, 3) uint8; ``share`` (2n, GRID, GRID) float32, the part of each patch that
    is defective; ``fits`` (2n, 2n) bool, which caption (column) is true of which picture (row).
    """

    images: NDArray[np.uint8]
    share: NDArray[np.float32]
    texts: list[str]
    fits: NDArray[np.bool_]


def pairs(count: int, seed: int, number: int) -> Pairs:
    """Return batch ``number`` of ``count`` pairs; a function of its arguments alone."""
    cv2.setNumThreads(1)
    rng = generator(seed, "batch", number)
    images, masks, captions, truths = [], [], [], []
    for _ in range(count):
        category = str(rng.choice(AUXILIARY))
        scene = specimen(category, rng)
        view = camera(scene, rng)
        sound = photograph(scene, view)
        if rng.random() < 0.5:
            view = camera(scene, rng)
        bad = faulty(scene, view, rng, str(rng.choice(faults_of(category))))
        images += [sound, bad.image]
        masks += [np.zeros_like(bad.mask), bad.mask]
        state = ANY if rng.random() < 0.6 else bad.fault
        captions += [caption(rng, category, GOOD), caption(rng, category, state)]
        truths += [(category, GOOD), (category, bad.fault)]
    side = SIDE // GRID
    share = np.stack(masks).reshape(-1, GRID, side, GRID, side).mean(axis=(2, 4), dtype=np.float32)
    fits = np.array([[c.fits(*truth) for c in captions] for truth in truths])
    return Pairs(np.stack(images), share, [c.text for c in captions], fits)
