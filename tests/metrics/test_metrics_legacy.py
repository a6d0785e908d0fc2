"""Approximate figures: what they reproduce, and why they are not the default."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from zsadbench.bench.metrics import classical_aupro, generate
from zsadbench.errors import MetricError
from zsadbench.metrics import (
    LegacyAupro,
    PixelMetrics,
    evaluate,
    grid_f1,
    image_curve,
    legacy_aupro200,
    legacy_aupro200_stream,
    rank_aupro,
    trapezoid_ap,
)
from zsadbench.metrics.legacy import ADER_GRID


def category(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    return generate(8, 64, 0.05, seed)


@pytest.mark.parametrize("seed", range(4))
def test_200_steps_are_the_loop_of_the_field(seed: int) -> None:
    maps, masks = category(seed)
    got = legacy_aupro200(maps, masks)
    assert got is not None
    assert abs(got - classical_aupro(maps, masks)) < 1e-12


@pytest.mark.parametrize("offset", [0, 0.1, 7.3, -1000])
def test_scores_that_meet_thresholds(offset: float) -> None:
    maps, masks = category()
    maps -= maps.min()
    maps = (np.round(maps / maps.max() * 200) / 200 + offset).astype(np.float32)
    got = legacy_aupro200(maps, masks)
    assert got is not None
    assert abs(got - classical_aupro(maps, masks)) < 1e-12


def test_200_steps_need_no_stack() -> None:
    maps, masks = category()
    wanted = legacy_aupro200(maps, masks)
    assert legacy_aupro200_stream(lambda: zip(iter(maps), iter(masks), strict=True)) == wanted
    metric = LegacyAupro(float(maps.min()), float(maps.max()))
    for values, mask in zip(maps, masks, strict=True):
        metric.update(values, mask)
    assert metric.compute() == wanted


def test_200_steps_follow_the_scale_and_the_exact_area_does_not() -> None:
    maps, masks = category()
    sharp = maps**8
    plain, steep = legacy_aupro200(maps, masks), legacy_aupro200(sharp, masks)
    assert plain is not None and steep is not None and plain - steep > 0.1
    # A power may merge neighbouring float32 values, so the last digits may move.
    exact = [evaluate(values, masks)["pixel_aupro"] or 0 for values in (maps, sharp)]
    assert abs(exact[0] - exact[1]) < 1e-6


def test_thresholds_are_made_in_the_type_of_the_maps() -> None:
    maps, masks = category()
    maps += np.float32(1000)
    single, double = (legacy_aupro200(maps.astype(kind), masks) for kind in (np.float32, np.float64))
    assert single is not None and double is not None
    assert abs(single - classical_aupro(maps, masks)) < 1e-12
    assert abs(single - double) > 1e-5


@pytest.mark.parametrize("kind", ["constant", "no region", "no normal pixel", "one image"])
def test_200_steps_are_undefined(kind: str) -> None:
    maps = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 4, 4)
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, 1, 1] = 1
    if kind == "constant":
        maps[:] = 0.5
    if kind == "no region":
        masks[:] = 0
    if kind == "no normal pixel":
        masks[:] = 1
    if kind == "one image":
        maps, masks = maps[:0], masks[:0]
    assert legacy_aupro200(maps, masks) is None


def test_200_steps_refuse_what_has_no_extrema() -> None:
    masks = np.ones((1, 2, 2), np.uint8)
    second = np.zeros((2, 2, 2), np.float32)
    second[1, 0, 0] = np.nan
    with pytest.raises(MetricError, match="finite floating-point"):
        legacy_aupro200(second, np.ones((2, 2, 2), np.uint8))
    with pytest.raises(MetricError, match="finite floating-point"):
        legacy_aupro200(np.full((1, 2, 2), np.nan, np.float32), masks)
    with pytest.raises(MetricError, match="not int64"):
        legacy_aupro200(np.arange(4).reshape(1, 2, 2), masks)
    with pytest.raises(MetricError, match="map of size"):
        legacy_aupro200(np.arange(6.0).reshape(1, 2, 3), masks)
    with pytest.raises(MetricError, match="1 maps but 2 masks"):
        legacy_aupro200(np.zeros((1, 2, 2)), np.zeros((2, 2, 2)))


@pytest.mark.parametrize("seed", range(20))
def test_trapezoid_is_the_area_under_sklearns_curve(seed: int) -> None:
    from sklearn.metrics import auc, precision_recall_curve

    random = np.random.default_rng(seed)
    scores = random.integers(0, 6, 30).astype(np.float32)
    labels = random.random(30) < 0.4
    labels[0] = True
    precision, recall, _ = precision_recall_curve(labels, scores)
    got = trapezoid_ap(image_curve(scores, labels))
    assert got is not None
    assert abs(got - auc(recall, precision)) < 1e-12


def test_trapezoid_of_one_class() -> None:
    assert trapezoid_ap(image_curve([0.1, 0.2], [0, 0])) == 0.5
    assert trapezoid_ap(image_curve([0.1, 0.2], [1, 1])) == 1
    assert trapezoid_ap(image_curve([], [])) is None


def ranked(maps: Any, masks: Any, thresholds: int, limit: float) -> float:
    """Ranks of normal pixels, one threshold at a time."""
    from scipy import ndimage

    normal = np.sort(maps[masks == 0])
    regions = []
    for values, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [values[labels == region + 1] for region in range(count)]
    points = [(1.0, 1.0)]
    for place in np.linspace(0, normal.size - 1, thresholds, dtype=int):
        shares = [float((region > normal[place]).mean()) for region in regions]
        points.append((1 - (place + 1) / normal.size, float(np.mean(shares))))
    points.sort()
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit and x1 > x0:
            x = min(x1, limit)
            y = y0 + (y1 - y0) * (x - x0) / (x1 - x0)
            area += (x - x0) * (y0 + y) / 2
    return area / limit


@pytest.mark.parametrize(("thresholds", "limit"), [(100, 0.3), (200, 0.3), (50, 0.05)])
def test_rank_steps(thresholds: int, limit: float) -> None:
    maps, masks = category(3)
    got = rank_aupro(maps, masks, thresholds=thresholds, limit=limit)
    assert got is not None
    assert abs(got - ranked(maps, masks, thresholds, limit)) < 1e-12
    assert rank_aupro(maps, np.zeros_like(masks)) is None
    assert rank_aupro(maps, np.ones_like(masks)) is None


def test_f1_on_grids() -> None:
    from sklearn.metrics import f1_score

    maps, masks = category(5)
    scores, labels = maps.max(axis=(1, 2)), masks.any(axis=(1, 2))
    wanted = max(f1_score(labels, scores > t, zero_division=0.0) for t in np.arange(0, 1, 0.01))
    assert grid_f1(scores, labels) == pytest.approx(wanted, abs=1e-12)
    unit = (maps - maps.min()) / (maps.max() - maps.min())
    truth = masks.astype(bool)
    wanted = max(
        f1_score(truth.ravel(), unit.ravel() > t, zero_division=0.0) for t in np.arange(0, 1.001, 0.05)
    )
    got = grid_f1(maps, masks, ADER_GRID, stretch=True)
    assert got == pytest.approx(wanted, abs=1e-12)
    metrics = PixelMetrics(aupimo=None)
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        metrics.update(values, mask, str(i))
    best = metrics.compute()["pixel_f1max"]
    assert got is not None and best is not None and got <= best
    assert grid_f1([0.5, 0.6], [0, 0]) is None
    assert grid_f1([0.5, 0.5], [0, 1], stretch=True) is None
