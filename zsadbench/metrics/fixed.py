"""F1 at one threshold that no test label fixes: mean plus three standard deviations of normal scores.

SegF1 and ClassF1 (MVTec AD 2, arXiv 2503.21622): the scores are those of normal validation images, of all
their pixels or of the images.  The deviation is that of the scores themselves (divided by their number).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .inputs import as_map, as_scores, to_numpy

SIGMAS = 3.0
NEEDS_NORMALS = ("image_classf1", "pixel_segf1")
"""Metrics with a threshold that scores of normal validation images fix."""
NO_NORMALS = "no scores of normal validation images fix a threshold"


class Spread(NamedTuple):
    """How many scores there are, their mean, and the sum of squared deviations from it."""

    number: int
    mean: float
    squares: float

    @classmethod
    def of(cls, map: Any, image_id: str) -> Spread:
        """Return the spread of one map (H, W); :class:`MetricError` for NaN or infinity names the image."""
        return cls._of(to_numpy(as_map(map, f"validation image '{image_id}'")[0]))

    @classmethod
    def _of(cls, values: NDArray[Any]) -> Spread:
        double = values.astype(np.float64).ravel()
        mean = float(double.mean())
        return cls(double.size, mean, float(np.square(double - mean).sum()))


def pixel_threshold(spreads: Iterable[Spread]) -> float | None:
    """Return mean plus three standard deviations over the pixels of all maps; None without one.

    The order of the maps changes no digit.
    """
    found = list(spreads)
    number = sum(one.number for one in found)
    if not number:
        return None
    mean = math.fsum(one.number * one.mean for one in found) / number
    apart = (one.squares + one.number * (one.mean - mean) ** 2 for one in found)
    return mean + SIGMAS * math.sqrt(math.fsum(apart) / number)


def image_threshold(scores: Any) -> float | None:
    """Return mean plus three standard deviations of image scores (n,); None for fewer than two."""
    values = as_scores(scores)
    if values.size < 2:
        return None
    mean = math.fsum(values) / values.size
    return mean + SIGMAS * math.sqrt(math.fsum((values - mean) ** 2) / values.size)


def called(values: Any, threshold: float) -> Any:
    """Return where ``values``, an array or a tensor of floats, are at least ``threshold``, exactly.

    The threshold is a float64 that float32 may not hold: then the next one above it is.
    """
    if str(values.dtype).endswith("float64"):
        return values >= threshold
    with np.errstate(over="ignore"):
        single = np.float32(threshold)
    if float(single) < threshold:
        single = np.nextafter(single, np.float32(np.inf))
    return values >= (single if isinstance(values, np.ndarray) else float(single))


def called_pixels(values: Any, truth: NDArray[np.bool_], threshold: float) -> tuple[int, int]:
    """Return how many pixels of a map are at least ``threshold``: anomalous ones, and all."""
    above = called(values, threshold)
    total = int(above.sum())
    return (int((to_numpy(above) & truth).sum()) if total and truth.any() else 0), total


def f1(hits: float, called: float, anomalous: float) -> float | None:
    """Return F1 from anomalous items called so, items called so, and anomalous items; None without these."""
    return float(2 * hits / (called + anomalous)) if anomalous else None
