"""Image-level metrics: the same curve, with one score per image."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import MetricError
from .curve import Curve
from .inputs import as_labels, as_scores
from .keys import from_keys, to_keys


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


def image_metrics(scores: Any, labels: Any) -> dict[str, float | None]:
    """Return ``image_auroc``, ``image_ap``, ``image_f1max`` and ``image_f1max_threshold``.

    Undefined values are None; :func:`image_reasons` says why.
    """
    curve = image_curve(scores, labels)
    return {
        "image_auroc": curve.auroc,
        "image_ap": curve.ap,
        "image_f1max": curve.f1max,
        "image_f1max_threshold": curve.f1max_threshold,
    }


def image_reasons(metrics: dict[str, float | None]) -> dict[str, str]:
    """Return why values of :func:`image_metrics` are None."""
    why = "no anomalous image" if metrics["image_ap"] is None else "no normal image"
    return {name: why for name, value in metrics.items() if value is None}
