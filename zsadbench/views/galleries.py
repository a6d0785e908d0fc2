"""Which images are worth a look: the best, the worst and the most disputed of a category.

Methods score on different scales, so images are compared by their rank in the category.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..records import ImageRow


@dataclass(frozen=True)
class Standing:
    """One image among those of its category; one score and one rank for each method.

    A rank is 0 for the lowest score of the category and 1 for the highest; equal scores share theirs.
    """

    key: str
    anomalous: bool
    scores: tuple[float, ...]
    ranks: tuple[float, ...]

    @property
    def correctness(self) -> float:
        """Mean over methods of the rank for an anomalous image, of 1 - rank for a normal one."""
        mean = sum(self.ranks) / len(self.ranks)
        return mean if self.anomalous else 1 - mean

    @property
    def dispute(self) -> float:
        """Largest difference of rank between two methods."""
        return max(self.ranks) - min(self.ranks)


@dataclass(frozen=True)
class Gallery:
    """A choice of images with the rule it was made by."""

    title: str
    rule: str
    images: tuple[Standing, ...]


def standings(tables: Sequence[Sequence[ImageRow]]) -> list[Standing]:
    """Return the images that all methods scored, by key; ``tables`` has one list of rows per method."""
    by_method: list[Mapping[str, ImageRow]] = [
        {row.key: row for row in table if row.image_score is not None} for table in tables
    ]
    keys = sorted(set.intersection(*(set(rows) for rows in by_method))) if by_method else []
    if not keys:
        return []
    scores = np.array([[rows[key].image_score for rows in by_method] for key in keys], np.float64)
    ranks = np.stack([_mean_ranks(own) for own in scores.T], axis=1) / max(len(keys) - 1, 1)
    return [
        Standing(key, by_method[0][key].anomalous, tuple(own.tolist()), tuple(rank.tolist()))
        for key, own, rank in zip(keys, scores, ranks, strict=True)
    ]


def _mean_ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the place (n,) of each score from below, counted from 0; equal ones share the mean of theirs."""
    _, of, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[of])


def galleries(images: Sequence[Standing], count: int) -> list[Gallery]:
    """Return the galleries of a category, ``count`` images each, those of one image or method left out."""
    if count < 1 or len(images) < 2:
        return []
    found = [
        Gallery(
            "Worst",
            "Anomalous images that rank low and normal images that rank high, on average over the methods.",
            _extremes(images, count, sign=1),
        ),
        Gallery(
            "Best",
            "Anomalous images that rank high and normal images that rank low, on average over the methods.",
            _extremes(images, count, sign=-1),
        ),
    ]
    disputed = sorted(images, key=lambda image: (-image.dispute, image.key))[:count]
    if len(images[0].ranks) > 1:
        rule = "Images whose rank differs most between two methods."
        found.insert(1, Gallery("Most disputed", rule, tuple(disputed)))
    return found


def _extremes(images: Sequence[Standing], count: int, sign: int) -> tuple[Standing, ...]:
    """Return the first images by ``sign`` times correctness, half of each label where both suffice."""
    ordered = sorted(images, key=lambda image: (sign * image.correctness, image.key))
    anomalous = [image for image in ordered if image.anomalous]
    normal = [image for image in ordered if not image.anomalous]
    half = max(count - len(normal), min(len(anomalous), (count + 1) // 2))
    return (*anomalous[:half], *normal[: count - half])
