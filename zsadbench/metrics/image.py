"""Image-level metrics: the same curve, with one score per image."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from .curve import Curve
from .fixed import NO_NORMALS, called, f1
from .inputs import as_labels, as_scores
from .keys import from_keys, to_keys

CALIBRATION_BINS = 15


def image_curve(scores: Any, labels: Any) -> Curve:
    """Return the curve of image scores (n,), arrays or tensors, with labels (n,), 1 = anomalous.

    Raises :class:`MetricError` for NaN, infinity, other labels or lengths that differ.
    """
    keys, anomalous = to_keys(as_scores(scores)), as_labels(labels)
    if keys.size != anomalous.size:
        raise MetricError(f"{keys.size} image scores but {anomalous.size} labels: one of each per image")
    found, hits = np.unique(keys[anomalous], return_counts=True)
    normal = np.sort(keys[~anomalous])
    at_most = np.searchsorted(normal, found, side="right")
    equal = at_most - np.searchsorted(normal, found, side="left")
    return Curve(
        scores=from_keys(found[::-1]),
        hits=hits[::-1].astype(np.int64),
        weights=np.zeros(found.size),
        above=normal.size - at_most[::-1],
        equal=equal[::-1],
        normals=normal.size,
    )


def image_metrics(
    scores: Any, labels: Any, more: Sequence[str] = (), threshold: float | None = None
) -> dict[str, float | None]:
    """Return ``image_auroc``, ``image_ap``, ``image_f1max``, ``image_f1max_threshold`` and ``image_fpr95``.

    ``more`` adds others: ``image_pg@n``, the share of normal images below every threshold that misses at
    most n % of the anomalous ones, ``image_pb@n``, the share of anomalous images found while at most n % of
    the normal ones are called anomalous (both at their best; PGn and PBn, arXiv 2503.23451),
    ``image_ece``, the calibration error (Guo et al., 2017; :func:`calibration_error`), and ``image_classf1``,
    F1 at ``threshold``, which :func:`image_threshold` makes from normal validation images.
    Undefined values are None; :func:`image_reasons` says why.

    Raises:
        MetricError: for an id that is none of these, and as :func:`image_curve` says.
    """
    curve = image_curve(scores, labels)
    values = {
        "image_auroc": curve.auroc,
        "image_ap": curve.ap,
        "image_f1max": curve.f1max,
        "image_f1max_threshold": curve.f1max_threshold,
        "image_fpr95": curve.fpr_at(0.95),
    }
    for name in more:
        base, _, percent = name.partition("@")
        if base == "image_pg":
            wrong = curve.fpr_at(1 - share_of(name, percent))
            values[name] = None if wrong is None else 1 - wrong
        elif base == "image_pb":
            values[name] = curve.tpr_at(share_of(name, percent))
        elif name == "image_ece":
            values[name] = calibration_error(scores, labels)
        elif name == "image_classf1":
            values[name] = None if threshold is None else _f1_at(threshold, scores, labels)
        else:
            raise MetricError(
                f"unknown metric '{name}': known here are image_pg@n, image_pb@n, image_ece and image_classf1"
            )
    return values


def _f1_at(threshold: float, scores: Any, labels: Any) -> float | None:
    above, anomalous = called(as_scores(scores), threshold), as_labels(labels)
    return f1(int((above & anomalous).sum()), int(above.sum()), int(anomalous.sum()))


def share_of(name: str, percent: str) -> Fraction:
    """Return the n of ``image_pg@n`` as a share, exactly."""
    try:
        share = Fraction(percent) / 100
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise MetricError(
            f"unknown metric '{name}': after the @ stands a number of percent, as in image_pg@5"
        )
    return share


def calibration_error(scores: Any, labels: Any) -> float | None:
    """Return how far scores are from the share of anomalous images among those of like score.

    The scores (n,) are probabilities in [0, 1], cut into 15 bins of equal width; of each bin the mean score
    less the share of anomalous images counts with its size.  None where scores are no probabilities.
    """
    values, anomalous = as_scores(scores).astype(np.float64), as_labels(labels)
    if not values.size or values.min() < 0 or values.max() > 1:
        return None
    bins = calibration_bins(values)
    gaps = np.bincount(bins, values - anomalous, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / values.size)


def calibration_bins(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of every score; 1 belongs to the last one."""
    return np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def image_reasons(metrics: dict[str, float | None]) -> dict[str, str]:
    """Return why values of :func:`image_metrics` are None."""
    why = "no anomalous image" if metrics["image_ap"] is None else "no normal image"
    reasons = {name: why for name, value in metrics.items() if value is None}
    if "image_ece" in reasons:
        reasons["image_ece"] = "the scores are no probabilities"
    if "image_classf1" in reasons and metrics["image_ap"] is not None:
        reasons["image_classf1"] = NO_NORMALS
    return reasons
