"""The ids of metrics and their titles."""

from __future__ import annotations

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
