"""The ids of metrics and their titles."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

METRIC_VERSION = 1
"""Raised whenever a metric of the same id would give another number."""

METRICS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "image_f1max": "Image F1-max",
    "image_fpr95": "Image FPR at 95 % TPR",
    "image_pg": "Image PG at 5",
    "image_pb": "Image PB at 5",
    "image_ece": "Image ECE",
    "image_classf1": "Image ClassF1",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "pixel_f1max": "Pixel F1-max",
    "pixel_iou": "Pixel IoU-max",
    "pixel_fpr95": "Pixel FPR at 95 % TPR",
    "pixel_aupro": "AUPRO at 0.3",
    "pixel_aupro@0.05": "AUPRO at 0.05",
    "pixel_aupimo": "AUPIMO",
    "pixel_segf1": "Pixel SegF1",
    "pixel_spro": "sPRO at 0.3",
}
"""Metric id -> short title for people; ``image_pg@n`` and ``image_pb@n`` take any n in percent."""

SEVEN = (
    "image_auroc",
    "image_ap",
    "image_f1max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "pixel_aupro",
)
"""The metrics that most papers print."""

MAD, AVERAGE_RANK = "mad", "average_rank"
DERIVED = {MAD: "Mean of seven (mAD)", AVERAGE_RANK: "Average rank"}
"""Columns of a board that are made of other ones: id -> short title; no record holds them."""

_LOWER_IS_BETTER = frozenset({"image_fpr95", "pixel_fpr95", "image_ece", AVERAGE_RANK})

MORE_IMAGE_METRICS = ("image_pg@5", "image_pb@5", "image_ece")
"""What records hold beside the metrics that :func:`image_metrics` gives unasked."""


def takes_percent(metric: str) -> bool:
    """Tell whether an id is ``image_pg@n`` or ``image_pb@n`` with a number of percent."""
    base, _, percent = metric.partition("@")
    is_number = re.fullmatch(r"[0-9]+(\.[0-9]+)?", percent) is not None
    return base in ("image_pg", "image_pb") and is_number and float(percent) <= 100


def more_image_metrics(metrics: Iterable[str]) -> list[str]:
    """Return those of ``metrics`` that :func:`image_metrics` gives only where they are asked for."""
    others = (*MORE_IMAGE_METRICS, "image_classf1")
    return [metric for metric in metrics if metric in others or takes_percent(metric)]


def worth(metric: str, value: float) -> float:
    """Return what to rank a metric's values by: the higher the better, also where 0 is the best value."""
    return -value if metric in _LOWER_IS_BETTER else value


def mean_of_seven(values: Mapping[str, float | None]) -> float | None:
    """Return the mean of :data:`SEVEN`, None if any of them is undefined or not there.

    The mAD of ADer (arXiv 2406.03262): image AUROC, AP, F1-max, pixel AUROC, AP, F1-max, AUPRO to 0.3.
    """
    known = [value for name in SEVEN if (value := values.get(name)) is not None]
    return math.fsum(known) / len(SEVEN) if len(known) == len(SEVEN) else None


def aupro_id(limit: float, base: str = "pixel_aupro") -> str:
    """Return the metric id of AUPRO, or sPRO, up to ``limit``: 0.3 is the one without a suffix."""
    return base if limit == 0.3 else f"{base}@{limit:g}"


def spro_limit(metric: str) -> float | None:
    """Return the limit of ``pixel_spro`` (0.3) or ``pixel_spro@0.05``; None for any other id."""
    base, at, limit = metric.partition("@")
    if base != "pixel_spro" or (at and not re.fullmatch(r"[0-9.]+(e-[0-9]+)?", limit)):
        return None
    try:
        value = float(limit) if at else 0.3
    except ValueError:
        return None
    return value if 0 < value <= 1 else None
