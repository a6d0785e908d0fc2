"""Approximate figures of other code bases, only to reproduce tables that were printed with them.

The AUPRO of 200 equal steps depends on the scale of the scores: raising them to a power, which
keeps their order, can halve it.  Whatever comes from here is to be marked legacy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from .curve import Curve
from .inputs import as_labels, as_mask, as_scores, to_numpy
from .regions import find_regions

Pairs = Callable[[], Iterable[tuple[Any, Any]]]
"""Called for a fresh pass over (map, mask) of every image."""


WINCLIP_GRID = np.arange(0, 1, 0.01)
"""Thresholds of the image F1 in a public WinCLIP implementation."""
ADER_GRID = np.arange(0, 1 + 1e-3, 0.05)
"""Thresholds of the pixel F1 and IoU in the ADer benchmark, on stretched maps."""


class LegacyAupro:
    """AUPRO from equal steps between the lowest and the highest score, image by image.

    ``low`` and ``high`` are the extrema over all maps, ``dtype`` the maps' own float type: steps are
    made in it.  False-positive rates up to ``limit`` (exclusive) are kept and stretched to [0, 1]; the
    trapezoid over them is not interpolated at the limit.
    """

    def __init__(
        self,
        low: float,
        high: float,
        dtype: Any = np.float32,
        *,
        limit: float = 0.3,
        steps: int = 200,
        connectivity: int = 8,
    ) -> None:
        self._limit, self._connectivity = limit, connectivity
        self._thresholds = _steps(low, high, np.dtype(dtype), steps)
        self._false = np.zeros(self._thresholds.size + 1, np.int64)
        self._found = np.zeros(self._thresholds.size + 1)
        self._regions = 0

    def update(self, map: Any, mask: Any) -> None:
        """Add one image: ``map`` (H, W) in the float type declared, ``mask`` (H, W) bool or integer.

        Raises:
            MetricError: for numbers that are not finite, and for shapes that do not agree.
        """
        values = to_numpy(map)
        truth = as_mask(mask, "a legacy metric")
        if values.shape[-2:] != truth.shape or values.size != truth.size:
            raise MetricError(f"legacy AUPRO: map of size {values.shape} but mask of size {truth.shape}")
        values = values.reshape(truth.shape)
        bins = self._thresholds.size + 1
        # A score passes exactly the thresholds below it; their number is its bin.
        passed = np.searchsorted(np.sort(values[~truth]), self._thresholds, side="right")
        self._false += np.diff(passed, prepend=0, append=truth.size - np.count_nonzero(truth))
        if truth.any():
            box, inside, area, regions = find_regions(truth, self._connectivity)
            place = np.searchsorted(self._thresholds, values[box][inside], side="left")
            self._found += np.bincount(place, weights=1.0 / area, minlength=bins)
            self._regions += regions

    def compute(self) -> float | None:
        """Return the area; None where no region, no normal pixel, no step or fewer than two points are."""
        normals = int(self._false.sum())
        if not normals or not self._regions:
            return None
        rate = self._false[::-1].cumsum()[::-1][1:] / normals
        overlap = self._found[::-1].cumsum()[::-1][1:] / self._regions
        rate, overlap = rate[rate < self._limit], overlap[rate < self._limit]
        if rate.size < 2 or rate.min() == rate.max():
            return None
        x = (rate - rate.min()) / (rate.max() - rate.min())
        return abs(float(np.sum(np.diff(x) * (overlap[1:] + overlap[:-1]) / 2)))


def legacy_aupro200(
    maps: Any, masks: Any, *, limit: float = 0.3, steps: int = 200, connectivity: int = 8
) -> float | None:
    """Return the AUPRO of 200 equal steps of (N, H, W) arrays, tensors or sequences of (H, W).

    Raises:
        MetricError: for maps and masks that do not agree, and for numbers that are not finite.
    """
    if len(maps) != len(masks):
        raise MetricError(f"legacy AUPRO: {len(maps)} maps but {len(masks)} masks")
    return legacy_aupro200_stream(
        lambda: zip(maps, masks, strict=True), limit=limit, steps=steps, connectivity=connectivity
    )


def legacy_aupro200_stream(
    pairs: Pairs, *, limit: float = 0.3, steps: int = 200, connectivity: int = 8
) -> float | None:
    """Return the same from two passes over ``pairs()``, holding one map at a time.

    With the extrema known beforehand, :class:`LegacyAupro` needs one pass.
    """
    bounds = [(values.min(), values.max()) for values in (to_numpy(map) for map, _ in pairs())]
    if not bounds:
        return None
    low, high = np.min(bounds), np.max(bounds)
    metric = LegacyAupro(low, high, low.dtype, limit=limit, steps=steps, connectivity=connectivity)
    for map, mask in pairs():
        metric.update(map, mask)
    return metric.compute()


def trapezoid_ap(curve: Curve) -> float | None:
    """Return the area under straight lines through every point of the precision-recall curve.

    It is above or below average precision, the step sum.  Without an anomalous item it is 0.5, as
    scikit-learn's curve has recall 1 everywhere then; None without any item.
    """
    if not curve.hits.size:
        return 0.5 if curve.normals else None
    found = np.cumsum(curve.hits)
    before = found - curve.hits
    called = before + curve.above
    start = np.divide(before, called, out=np.ones(found.size), where=called > 0)
    end = found / (found + curve.above + curve.equal)
    return float(np.sum(curve.hits * (start + end)) / (2 * found[-1]))


def rank_aupro(
    maps: Any, masks: Any, *, thresholds: int = 100, limit: float = 0.3, connectivity: int = 8
) -> float | None:
    """Return AUPRO from ``thresholds`` equal steps of the rank among normal pixels.

    The procedure of MVTec 3D-AD's evaluation code (100 steps) and of others after it (200); it is
    blind to the scale of the scores, but ties stretch its steps.  None without region or normal pixel.
    """
    truths = [as_mask(mask, f"image {i}") for i, mask in enumerate(masks)]
    values = [to_numpy(map).reshape(truth.shape) for map, truth in zip(maps, truths, strict=True)]
    normal = np.sort(np.concatenate([image[~truth] for image, truth in zip(values, truths, strict=True)]))
    if not normal.size or not any(truth.any() for truth in truths):
        return None
    ranks = np.linspace(0, normal.size - 1, thresholds, dtype=np.int64)
    found, regions = np.zeros(thresholds), 0
    for image, truth in zip(values, truths, strict=True):
        if truth.any():
            box, inside, area, count = find_regions(truth, connectivity)
            place = np.searchsorted(normal[ranks], image[box][inside], side="left")
            passed = np.bincount(place, weights=1.0 / area, minlength=thresholds + 1)
            found += passed[::-1].cumsum()[::-1][1:]
            regions += count
    rate = np.append(1 - (ranks[::-1] + 1) / normal.size, 1.0)
    overlap = np.append(found[::-1] / regions, 1.0)
    kept = rate < limit
    x = np.append(rate[kept], limit)
    y = np.append(overlap[kept], np.interp(limit, rate, overlap))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)) / limit


def grid_f1(scores: Any, labels: Any, grid: Any = WINCLIP_GRID, *, stretch: bool = False) -> float | None:
    """Return the highest F1 of "score > t" over the thresholds of a fixed ``grid``.

    ``stretch`` first brings the scores to [0, 1] by their extrema, as is done with pixels on
    :data:`ADER_GRID`; arrays of any shape.  None without an anomalous item, or where scores to be
    stretched are all equal.
    """
    values, truth = as_scores(scores).astype(np.float32), as_labels(labels)
    if not truth.any():
        return None
    if stretch:
        low, high = values.min(), values.max()
        if low == high:
            return None
        values = (values - low) / (high - low)
    found = truth.sum() - np.searchsorted(np.sort(values[truth]), grid, side="right")
    false = (~truth).sum() - np.searchsorted(np.sort(values[~truth]), grid, side="right")
    return float(np.max(2 * found / (found + false + truth.sum())))


def _steps(low: float, high: float, dtype: np.dtype[Any], steps: int) -> NDArray[Any]:
    """Return the thresholds, each lowered to the next value of ``dtype``: "score > t" stays the same.

    The step is what ``numpy.arange`` makes of bounds of that type: their rounded first difference.
    """
    if dtype.kind != "f" or not np.isfinite([low, high]).all():
        raise MetricError(f"legacy AUPRO: maps must be finite floating-point numbers, not {dtype}")
    first, last = dtype.type(low), dtype.type(high)
    step = (last - first) / dtype.type(steps)
    exact = np.arange(first, last, step, dtype=np.float64) if step > 0 else np.empty(0)
    lowered = exact.astype(dtype)
    return np.where(lowered > exact, np.nextafter(lowered, dtype.type(-np.inf)), lowered)
