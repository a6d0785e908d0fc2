"""Every metric against arithmetic in fractions, straight from its definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from zsadbench.metrics import PixelMetrics, image_metrics

BOUNDS = (0.01, 0.5)
LIMITS = (0.3, 0.05, 1.0)
BACKENDS = ("numba", "numpy", "torch")

Category = list[tuple[NDArray[np.float32], NDArray[np.bool_]]]

# Few values, so that ties are common; both zeros, subnormals and both ends of the range among them.
SCORES = [-3e38, -1.5, -1e-45, -0.0, 0.0, 1e-45, 3e-45, 1e-38, 0.1, 0.25, 0.5, 0.5000001, 1.0, 3e38]


@st.composite
def categories(draw: st.DrawFn, images: int = 4, side: int = 5) -> Category:
    """Up to ``images`` images of mixed sizes, any masks."""
    category: Category = []
    for _ in range(draw(st.integers(1, images))):
        shape = draw(st.integers(1, side)), draw(st.integers(1, side))
        pixels = shape[0] * shape[1]
        scores = draw(st.lists(st.sampled_from(SCORES), min_size=pixels, max_size=pixels))
        marked = draw(
            st.one_of(st.just([False] * pixels), st.lists(st.booleans(), min_size=pixels, max_size=pixels))
        )
        category.append(
            (np.array(scores, np.float32).reshape(shape), np.array(marked, np.bool_).reshape(shape))
        )
    return category


def engine(category: Category, **options: Any) -> PixelMetrics:
    options = {"limits": LIMITS, "aupimo": BOUNDS} | options
    metrics = PixelMetrics(**options)
    for i, (values, mask) in enumerate(category):
        metrics.update(values, mask, str(i))
    return metrics


def regions_of(mask: NDArray[np.bool_], connectivity: int) -> list[list[tuple[int, int]]]:
    """Flood fill, pixel by pixel."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left:
        region = [left.pop()]
        for y, x in region:
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    near = (y + dy, x + dx)
                    if near in left and (connectivity == 8 or not dy or not dx):
                        left.remove(near)
                        region.append(near)
        found.append(region)
    return found


def counts(positive: Sequence[float], negative: Sequence[float]) -> list[tuple[float, int, int]]:
    """(threshold, TP, FP) at every distinct score, falling."""
    return [
        (t, sum(s >= t for s in positive), sum(s >= t for s in negative))
        for t in sorted({*positive, *negative}, reverse=True)
    ]


def ranking(positive: Sequence[float], negative: Sequence[float]) -> dict[str, float | None]:
    """AUROC, AP, F1-max, its threshold, IoU-max and FPR at 95 % TPR by their definitions."""
    if not positive:
        return dict.fromkeys(("auroc", "ap", "f1max", "f1max_threshold", "iou", "fpr95"))
    wins = sum(Fraction(2 * (p > n) + (p == n), 2) for p in positive for n in negative)
    ap, best, iou, before = Fraction(0), (Fraction(-1), 0.0), Fraction(0), 0
    for t, tp, fp in counts(positive, negative):
        ap += Fraction(tp - before, len(positive)) * Fraction(tp, tp + fp)
        best = max(best, (Fraction(2 * tp, tp + fp + len(positive)), t))
        iou = max(iou, Fraction(tp, len(positive) + fp))
        before = tp
    kept = [
        Fraction(fp, max(len(negative), 1))
        for _, tp, fp in counts(positive, negative)
        if tp >= Fraction(95, 100) * len(positive)
    ]
    return {
        "auroc": float(wins / (len(positive) * len(negative))) if negative else None,
        "ap": float(ap),
        "f1max": float(best[0]),
        "f1max_threshold": best[1],
        "iou": float(iou),
        "fpr95": float(min(kept)) if negative else None,
    }


def aupro(category: Category, limit: float, connectivity: int) -> float | None:
    """Area under the polyline through (FPR, PRO) at every distinct score."""
    regions = [
        [float(values[place]) for place in region]
        for values, mask in category
        for region in regions_of(mask, connectivity)
    ]
    negative = [float(s) for values, mask in category for s in values[~mask]]
    if not regions or not negative:
        return None
    end, points = Fraction(limit), [(Fraction(0), Fraction(0))]
    for t in sorted({*negative, *(s for region in regions for s in region)}, reverse=True):
        shares = [Fraction(sum(s >= t for s in region), len(region)) for region in regions]
        rate = Fraction(sum(s >= t for s in negative), len(negative))
        points.append((rate, sum(shares, Fraction(0)) / len(regions)))
    area = Fraction(0)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > x0 and x0 < end:
            x = min(x1, end)
            area += (x - x0) * (y0 + y0 + (y1 - y0) * (x - x0) / (x1 - x0)) / 2
    return float(area / end)


def aupimo(category: Category) -> list[float | None]:
    """The step function of F, piece by piece."""
    low, high = BOUNDS
    normal = [values.ravel().tolist() for values, mask in category if not mask.any()]
    found: list[float | None] = []
    for values, mask in category:
        if not mask.any() or not normal:
            found.append(None)
            continue
        own, area, before = values[mask].tolist(), 0.0, 0.0
        for u in sorted({s for image in normal for s in image}, reverse=True):
            rate = math.fsum(sum(s >= u for s in image) / len(image) for image in normal) / len(normal)
            share = sum(s > u for s in own) / len(own)
            left, right = max(before, low), min(rate, high)
            if right > left:
                area += share * math.log(right / left)
            before = rate
        found.append(area / math.log(high / low))
    return found


def close(got: float | None, wanted: float | None) -> bool:
    if got is None or wanted is None:
        return got is wanted
    return abs(got - wanted) <= 1e-12


@pytest.mark.parametrize("connectivity", [8, 4])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(category=categories())
def test_pixel_metrics_are_the_definitions(category: Category, connectivity: int) -> None:
    metrics = engine(category, connectivity=connectivity)
    got = metrics.compute()
    positive = [float(s) for values, mask in category for s in values[mask]]
    negative = [float(s) for values, mask in category for s in values[~mask]]
    for name, value in ranking(positive, negative).items():
        assert close(got[f"pixel_{name}"], value), name
    for limit, name in zip(LIMITS, ("pixel_aupro", "pixel_aupro@0.05", "pixel_aupro@1"), strict=True):
        assert close(got[name], aupro(category, limit, connectivity)), name
    wanted = aupimo(category)
    for row, value in zip(metrics.per_image(), wanted, strict=True):
        assert close(row["aupimo"], value)
    defined = [value for value in wanted if value is not None]
    assert close(got["pixel_aupimo"], float(np.mean(defined)) if defined else None)
    assert set(metrics.reasons()) == {name for name, value in got.items() if value is None}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(items=st.lists(st.tuples(st.sampled_from(SCORES), st.booleans()), max_size=12))
def test_image_metrics_are_the_definitions(items: list[tuple[float, bool]]) -> None:
    scores = [float(np.float32(score)) for score, _ in items]
    labels = [anomalous for _, anomalous in items]
    wanted = ranking(
        [s for s, anomalous in zip(scores, labels, strict=True) if anomalous],
        [s for s, anomalous in zip(scores, labels, strict=True) if not anomalous],
    )
    got = image_metrics(scores, labels)
    shown = ("auroc", "ap", "f1max", "f1max_threshold", "fpr95")
    assert set(got) == {f"image_{name}" for name in shown}
    for name, value in got.items():
        assert close(value, wanted[name.removeprefix("image_")]), name


@settings(max_examples=60, deadline=None, derandomize=True)
@given(category=categories(), random=st.randoms(use_true_random=False))
def test_no_digit_depends_on_order_back_end_or_storage(category: Category, random: Any) -> None:
    wanted = engine(category, backend="numpy").compute()
    shuffled = list(range(len(category)))
    random.shuffle(shuffled)
    for backend in BACKENDS:
        for keep in ("ram", "disk", "source"):
            source = (lambda name: category[int(name)][0]) if keep == "source" else None
            metrics = PixelMetrics(LIMITS, 8, backend, keep, source, aupimo=BOUNDS)
            for i in shuffled:
                metrics.update(*category[i], str(i))
            assert metrics.compute() == wanted, (backend, keep)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(category=categories(), random=st.randoms(use_true_random=False))
def test_metrics_see_only_the_order_of_scores(category: Category, random: Any) -> None:
    old = np.unique(np.concatenate([values.ravel() for values, _ in category]) + np.float32(0))
    new = np.unique(np.array([random.uniform(-1, 1) ** 9 for _ in range(len(old))], np.float32))
    if new.size < old.size:
        return
    moved = [(new[np.searchsorted(old, values)], mask) for values, mask in category]
    before, after = engine(category), engine(moved)
    values = {name: value for name, value in after.compute().items() if "threshold" not in name}
    assert values == {name: value for name, value in before.compute().items() if "threshold" not in name}
    for was, now in zip(before.per_image(), after.per_image(), strict=True):
        assert (was["found"], was["aupimo"]) == (now["found"], now["aupimo"])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(category=categories(), stops=st.sets(st.integers(0, 3)))
def test_computing_in_between_changes_nothing(category: Category, stops: set[int]) -> None:
    metrics = PixelMetrics(LIMITS, keep="source", source=lambda name: category[int(name)][0], aupimo=BOUNDS)
    for i, (values, mask) in enumerate(category):
        metrics.update(values, mask, str(i))
        if i in stops:
            assert metrics.compute() == engine(category[: i + 1]).compute()
    assert metrics.compute() == engine(category).compute()
