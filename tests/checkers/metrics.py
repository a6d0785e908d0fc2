"""Checks of one reference file of metrics: maps, masks, labels, scores and the values they must give."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np

from tests.checkers.common import Golden, opened
from zsadbench.metrics import PixelMetrics, image_curve, image_metrics, legacy_aupro200, trapezoid_ap
from zsadbench.metrics.counters import BACKENDS

EXACT, LEGACY = 1e-9, 1e-7


def check(path: pathlib.Path) -> None:
    """Compute everything the file states, with every back end, and compare."""
    with opened(path, EXACT) as golden:
        _check(golden)


def _check(golden: Golden) -> None:
    path, expected = golden.path, golden.meta["expected"]
    maps, masks, labels, scores = (golden[key] for key in ("maps", "masks", "labels", "image_scores"))

    image = image_metrics(scores, labels)
    for name, value in expected["image"].items():
        _same(path, f"image {name}", image[f"image_{name}"], value, EXACT)

    for backend in (name for name in BACKENDS if name != "auto"):
        for connectivity in (8, 4):
            _check_pixel(path, maps, masks, expected, backend, connectivity)

    for name, value in expected.get("legacy", {}).items():
        # A name instead of a number is what the reference code ended with; ours is undefined there.
        known = value if isinstance(value, int | float) and np.isfinite(value) else None
        _same(path, f"legacy {name}", _legacy(name, maps, masks, labels, scores), known, LEGACY)


def _check_pixel(
    path: pathlib.Path, maps: Any, masks: Any, expected: dict[str, Any], backend: str, connectivity: int
) -> None:
    areas = expected[f"aupro_conn{connectivity}"]
    # Without the key there is no normal or no anomalous image, so AUPIMO is undefined for all.
    shares = [(_bounds(key), value) for key, value in expected.items() if key.startswith("aupimo_")]
    for bound, wanted in shares or [((1e-5, 1e-4), [None] * len(maps))]:
        metrics = PixelMetrics(
            [float(limit) for limit in areas], connectivity, backend, keep="disk", aupimo=bound
        )
        for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
            metrics.update(values, mask, str(i))
        got = metrics.compute()
        where = f"{backend}, {connectivity}-connected"
        for name, value in expected["pixel"].items():
            key = "pixel_iou" if name == "ioumax" else f"pixel_{name}"
            _same(path, f"{name} ({where})", got[key], value, EXACT)
        for limit, value in areas.items():
            key = "pixel_aupro" if limit == "0.3" else f"pixel_aupro@{float(limit):g}"
            _same(path, f"AUPRO@{limit} ({where})", got[key], value, EXACT)
        if "n_regions" in expected:
            regions = expected["n_regions"][str(connectivity)]
            assert metrics.curve().regions == regions, f"{path.name}: regions ({where})"
        undefined = {name for name, value in got.items() if value is None}
        assert set(metrics.reasons()) == undefined, f"{path.name}: a null without a reason ({where})"

        rows = metrics.per_image()
        for i, (row, value) in enumerate(zip(rows, wanted, strict=True)):
            _same(path, f"AUPIMO of image {i} ({where})", row["aupimo"], value, EXACT)
        defined = [value for value in wanted if value is not None]
        mean = float(np.mean(defined)) if defined else None
        _same(path, f"mean AUPIMO ({where})", got["pixel_aupimo"], mean, EXACT)


def _bounds(key: str) -> tuple[float, float]:
    found = re.fullmatch(r"aupimo_([^_]+)_([^_]+)", key)
    assert found, f"unknown key {key}"
    return float(found[1]), float(found[2])


def _legacy(name: str, maps: Any, masks: Any, labels: Any, scores: Any) -> float | None:
    if name == "aupro_200steps":
        return legacy_aupro200(maps, masks)
    if name == "image_pr_trapezoid":
        return trapezoid_ap(image_curve(scores, labels))
    assert name == "pixel_pr_trapezoid", f"unknown legacy value {name}"
    metrics = PixelMetrics(aupimo=None)
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        metrics.update(values, mask, str(i))
    return trapezoid_ap(metrics.curve())


def _same(path: pathlib.Path, what: str, got: float | None, wanted: float | None, tolerance: float) -> None:
    message = f"{path.name}: {what} is {got}, wanted {wanted} (tolerance {tolerance:g})"
    assert (got is None) == (wanted is None), message
    if got is not None and wanted is not None:
        assert abs(got - wanted) <= tolerance, message
