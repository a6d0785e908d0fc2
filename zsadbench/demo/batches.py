"""Training batches: pairs of a sound and a faulty picture of one specimen, with true captions."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .captions import ANY, GOOD, caption, connoted, idle, rivals, twins
from .factory import AUXILIARY, SIDE, camera, faults_of, faulty, generator, photograph, specimen
from .noise import Rng
from .traits import meaning, traits

GRID = 12
"""Patches along a side of a picture."""

WINDOWS = (2, 3)
"""Patches along a side of the windows that are looked at, the sizes of WinCLIP."""

LOOKS = 2
"""Windows of each size in a picture."""


@dataclass(frozen=True)
class Pairs:
    """Picture 2p is sound, 2p + 1 is the same specimen with a fault; so are their captions.

    ``images`` (2n, SIDE, SIDE, 3) uint8; ``share`` (2n, GRID, GRID) float32, the part of each patch that
    is defective; ``windows`` hold for each size of window its patches (2n, LOOKS, side * side), numbered
    row by row; ``fits`` (2n, 2n) bool, which caption (column) is true of which picture (row).
    ``twins`` are 2m texts, 2k and 2k + 1 alike but for a word that says nothing of the state; ``says``
    (2n, m) float32 is 1 where the first word is true of the picture and the second is not, -1 where it is
    the other way round, and 0 where nothing is known.
    """

    images: NDArray[np.uint8]
    share: NDArray[np.float32]
    windows: list[NDArray[np.int64]]
    texts: list[str]
    fits: NDArray[np.bool_]
    twins: list[str]
    says: NDArray[np.float32]


def pairs(count: int, seed: int, number: int, connote: bool = False) -> Pairs:
    """Return batch ``number`` of ``count`` pairs; a function of its arguments alone.

    With ``connote`` words say what they suggest, too.
    """
    cv2.setNumThreads(1)
    rng = generator(seed, "batch", number)
    images, masks, captions, truths = [], [], [], []
    for _ in range(count):
        category = str(rng.choice(AUXILIARY))
        scene = specimen(category, rng)
        view = camera(scene, rng)
        sound, seen = photograph(scene, view), traits(scene, view)
        captions.append(caption(rng, category, GOOD, seen))
        truths.append((category, GOOD, seen))
        if rng.random() < 0.5:
            view = camera(scene, rng)
            seen = traits(scene, view)
        bad = faulty(scene, view, rng, str(rng.choice(faults_of(category))))
        captions.append(caption(rng, category, ANY if rng.random() < 0.6 else bad.fault, seen))
        truths.append((category, bad.fault, seen))
        images += [sound, bad.image]
        masks += [np.zeros_like(bad.mask), bad.mask]
    words = [
        rivals(rng, truths[2 * k][2]) if k % 2 else connoted(rng) if connote else idle(rng, AUXILIARY)
        for k in range(count)
    ]
    side = SIDE // GRID
    share = np.stack(masks).reshape(-1, GRID, side, GRID, side).mean(axis=(2, 4), dtype=np.float32)
    return Pairs(
        np.stack(images),
        share,
        [np.array([[window(rng, one, side) for _ in range(LOOKS)] for one in share]) for side in WINDOWS],
        [c.text for c in captions],
        np.array([[c.fits(*truth) for c in captions] for truth in truths]),
        [text for both in words for text in twins(rng, both)],
        np.array([[said(*both, seen, connote) for both in words] for _, _, seen in truths], np.float32),
    )


def window(rng: Rng, share: NDArray[np.float32], side: int) -> NDArray[np.int64]:
    """Return the patches (side * side,) of a random window; half of the time one of them is defective."""
    corner = rng.integers(0, GRID - side + 1, 2)
    if share.any() and rng.random() < 0.5:
        row, column = rng.choice(np.argwhere(share > 0)) - rng.integers(0, side, 2)
        corner = np.clip([row, column], 0, GRID - side)
    rows, columns = (np.arange(first, first + side) for first in corner)
    return (rows[:, None] * GRID + columns).ravel()


def said(first: str, second: str, seen: frozenset[str], connote: bool = False) -> int:
    """Return 1 if of two words the first alone is true, -1 if the second alone is, 0 if nothing is known."""
    one, other = meaning(first, connote), meaning(second, connote)
    return bool(one & seen) - bool(other & seen) if one and other else 0
