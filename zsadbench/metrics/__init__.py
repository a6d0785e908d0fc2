"""Exact metrics of anomaly detection, for this toolkit and for anyone else.

Everything comes from one :class:`Curve`, so no metric depends on a grid of thresholds, on the
scale of the scores or on the order of the images.  The usual ways in::

    evaluate(maps, masks, labels, scores)          # arrays or tensors at hand
    metrics = PixelMetrics()                       # one image after another
    metrics.update(map, mask, "bottle/003.png")
    metrics.compute()

``legacy`` reproduces the approximate figures other code bases print.  Neither torch nor pandas
is imported unless tensors come in.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .curve import Curve
    from .evaluation import Evaluation, MetricWarning, evaluate
    from .image import image_curve, image_metrics, image_reasons
    from .legacy import (
        LegacyAupro,
        grid_f1,
        legacy_aupro200,
        legacy_aupro200_stream,
        rank_aupro,
        trapezoid_ap,
    )
    from .pixel import PixelMetrics

METRIC_VERSION = 1
"""Raised whenever a metric of the same id would give another number."""

METRICS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "image_f1max": "Image F1-max",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "pixel_f1max": "Pixel F1-max",
    "pixel_iou": "Pixel IoU-max",
    "pixel_aupro": "AUPRO at 0.3",
    "pixel_aupro@0.05": "AUPRO at 0.05",
    "pixel_aupimo": "AUPIMO",
}
"""Metric id -> short title for people."""

_HOMES = {
    "Curve": "curve",
    "Evaluation": "evaluation",
    "LegacyAupro": "legacy",
    "MetricWarning": "evaluation",
    "PixelMetrics": "pixel",
    "evaluate": "evaluation",
    "grid_f1": "legacy",
    "image_curve": "image",
    "image_metrics": "image",
    "image_reasons": "image",
    "legacy_aupro200": "legacy",
    "legacy_aupro200_stream": "legacy",
    "rank_aupro": "legacy",
    "trapezoid_ap": "legacy",
}

__all__ = [
    "METRICS",
    "METRIC_VERSION",
    "Curve",
    "Evaluation",
    "LegacyAupro",
    "MetricWarning",
    "PixelMetrics",
    "evaluate",
    "grid_f1",
    "image_curve",
    "image_metrics",
    "image_reasons",
    "legacy_aupro200",
    "legacy_aupro200_stream",
    "rank_aupro",
    "trapezoid_ap",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use, so that the titles above cost nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
