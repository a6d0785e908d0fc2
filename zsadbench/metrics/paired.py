"""Whether one method is better than another on the same images.

Differences are tested with the draws of the bootstrap, image AUROC beside with DeLong's closed form
(Biometrics 44, 1988, with the ranks of Sun and Xu, IEEE SPL 21, 2014), differences across
categories beside with Wilcoxon's signed ranks, and many comparisons corrected as Holm
(Scand. J. Statist. 6, 1979) does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from .ids import worth
from .inputs import as_labels, as_scores

Reals = NDArray[np.float64]

WILCOXON_CATEGORIES = 8
"""Fewest categories for a test across them."""
_ROUNDING = 1e-12


def places(metric: str, values: Sequence[float]) -> list[float]:
    """Return the place of each value of a metric, 1 for the best; equal ones share the mean of their places.

    Values that differ by rounding errors are equal.
    """
    gains = np.round([worth(metric, value) for value in values], 12)
    above = (gains[None, :] > gains[:, None]).sum(axis=1)
    equal = (gains[None, :] == gains[:, None]).sum(axis=1)
    return [float(place) for place in above + (equal + 1) / 2]


def bootstrap_p(differences: Reals) -> float | None:
    """Return the two-sided p of "no difference" from a metric's difference in every draw (B,).

    It is twice the smaller share of draws on one side of zero, the observed data counted as one more
    draw; None where a draw is NaN.  Differences of rounding errors count as zero.
    """
    if not differences.size or np.isnan(differences).any():
        return None
    not_above = int((differences <= _ROUNDING).sum())
    not_below = int((differences >= -_ROUNDING).sum())
    return min(1.0, 2 * (min(not_above, not_below) + 1) / (differences.size + 1))


class Placements(NamedTuple):
    """Per image, the share of images of the other kind on its right side, half for ties."""

    anomalous: Reals
    normal: Reals


def placements(scores: Any, labels: Any) -> Placements:
    """Return the placements of image ``scores`` (n,) with ``labels`` (n,), in the order given.

    The mean of either array is the AUROC.  Raises :class:`MetricError` where lengths differ.
    """
    values, anomalous = as_scores(scores), as_labels(labels)
    if values.size != anomalous.size:
        raise MetricError(f"{values.size} image scores but {anomalous.size} labels: one of each per image")
    high, low = values[anomalous], values[~anomalous]
    return Placements(_share_below(high, low), 1.0 - _share_below(low, high))


class DeLong(NamedTuple):
    """Difference of two AUROCs on the same images with its variance."""

    difference: float
    variance: float


def delong(first: Placements, second: Placements) -> DeLong | None:
    """Return the difference ``first`` - ``second`` of AUROC; None with fewer than two images of a kind."""
    anomalous, normal = first.anomalous - second.anomalous, first.normal - second.normal
    if min(anomalous.size, normal.size) < 2:
        return None
    variance = anomalous.var(ddof=1) / anomalous.size + normal.var(ddof=1) / normal.size
    return DeLong(float(anomalous.mean()), float(variance))


def delong_p(tests: Sequence[DeLong]) -> float | None:
    """Return the two-sided p of the mean difference over categories, which share no image.

    None where nothing varies although there is a difference: the normal law then says nothing.
    """
    difference = math.fsum(test.difference for test in tests)
    if abs(difference) <= _ROUNDING:
        return 1.0
    deviation = math.sqrt(math.fsum(test.variance for test in tests))
    return math.erfc(abs(difference) / deviation / math.sqrt(2)) if deviation > _ROUNDING else None


def wilcoxon_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of the signed-rank test over categories; None for fewer than eight."""
    if len(differences) < WILCOXON_CATEGORIES:
        return None
    rounded = np.where(np.abs(differences) <= _ROUNDING, 0.0, differences)
    if not rounded.any():
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(rounded).pvalue)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number by Holm's step-down rule; None stays and is not counted."""
    known = sorted((value, place) for place, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        corrected[place] = highest
    return corrected


def _share_below(values: Reals, others: Reals) -> Reals:
    """Return for each value the share of ``others`` below it, half for equal ones."""
    ranked = np.sort(others)
    doubled = np.searchsorted(ranked, values) + np.searchsorted(ranked, values, side="right")
    return np.asarray(doubled / max(2 * ranked.size, 1))
