"""The curve against scikit-learn, and its thinned plots."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from zsadbench.metrics import Curve, image_curve
from zsadbench.metrics.curve import thin
from zsadbench.metrics.keys import from_keys, to_keys


def sample(seed: int, n: int = 3000, levels: int = 40) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    random = np.random.default_rng(seed)
    labels = random.random(n) < 0.2
    scores = random.standard_normal(n) + labels
    if levels:
        scores = np.round(scores * levels) / levels
    return scores.astype(np.float32), labels


def polyline(x: NDArray[np.float64], y: NDArray[np.float64], end: float = 1) -> float:
    last = np.interp(end, x, y)
    x, y = np.append(x[x < end], end), np.append(y[x < end], last)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


@pytest.mark.parametrize("levels", [0, 2, 40])
@pytest.mark.parametrize("seed", range(10))
def test_curve_agrees_with_scikit_learn(seed: int, levels: int) -> None:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    scores, labels = sample(seed, levels=levels)
    curve = image_curve(scores, labels)
    assert curve.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert curve.ap == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert curve.f1max == pytest.approx(f1.max(), abs=1e-12)
    assert curve.f1max_threshold == thresholds[len(f1) - 1 - np.argmax(f1[::-1])]


def test_the_f1_threshold_is_the_highest_of_equals() -> None:
    # F1 is 2/3 both at 0.9 (1 of 2 found, nothing false) and at 0.1 (both found, 2 false).
    curve = image_curve([0.9, 0.5, 0.4, 0.1], [1, 0, 0, 1])
    assert curve.f1max == pytest.approx(2 / 3)
    assert curve.f1max_threshold == np.float32(0.9)


def test_auroc_stays_exact_beyond_64_bits() -> None:
    many = 3_000_000_000
    curve = Curve(
        scores=np.array([0.5, 0.25], np.float32),
        hits=np.array([many, many]),
        weights=np.zeros(2),
        above=np.array([0, many]),
        equal=np.array([0, many]),
        normals=2 * many,
    )
    # All pairs won by the first half; the second loses to half the normals and ties with the rest.
    assert curve.auroc == 0.5 * 1 + 0.5 * 0.25


def staircase(steps: int) -> Curve:
    random = np.random.default_rng(1)
    above = np.sort(random.choice(10 * steps, steps, replace=False))
    return Curve(
        scores=np.linspace(1, 0, steps, dtype=np.float32),
        hits=np.ones(steps, np.int64),
        weights=np.full(steps, 1 / 50),
        above=above,
        equal=np.zeros(steps, np.int64),
        normals=10 * steps,
        regions=steps // 50,
    )


@pytest.mark.parametrize("kind", ["smooth", "ties", "staircase", "steep", "few"])
def test_plots_are_thinned_without_moving_the_area(kind: str) -> None:
    if kind == "staircase":
        curve = staircase(100_000)
    elif kind == "steep":
        scores = np.concatenate([np.full(60_000, 0.5), np.linspace(0, 1, 40_000)])
        curve = image_curve(scores, np.arange(100_000) % 3 == 0)
    else:
        n = 300 if kind == "few" else 100_000
        curve = image_curve(*sample(0, n, levels=20 if kind == "ties" else 0))
    for points in (2000, 50):
        x, y = curve.roc(points)
        assert x.size == y.size <= points
        assert (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        assert abs(polyline(x, y) - (curve.auroc or 0)) < 1e-9
        recall, precision = curve.pr(points)
        assert recall.size == precision.size <= points
        assert recall[-1] == 1
        assert abs(np.sum(np.diff(recall, prepend=0) * precision) - (curve.ap or 0)) < 1e-9
    if curve.regions:
        x, y = curve.pro()
        assert x.size <= 2000
        for limit in (1, 0.3, 0.05):
            assert abs(polyline(x, y, limit) - (curve.aupro(limit) or 0) * limit) < 1e-6


def test_nothing_to_plot_without_either_class() -> None:
    for labels in ([0, 0], [1, 1]):
        x, y = image_curve([0.1, 0.2], labels).roc()
        assert x.size == y.size == 0
    assert image_curve([0.1, 0.2], [0, 0]).pr()[0].size == 0
    recall, precision = image_curve([0.1, 0.2], [1, 1]).pr()
    assert recall.tolist() == [0.5, 1] and precision.tolist() == [1, 1]


def test_a_short_line_is_left_alone() -> None:
    x, y = np.array([0, 0.5, 1]), np.array([0, 1, 1.0])
    assert all(np.array_equal(a, b) for a, b in zip(thin(x, y, 3), (x, y), strict=True))


@pytest.mark.parametrize(
    "pair",
    [
        (-3e38, -1.0),
        (-1e-45, 0.0),
        (0.0, 1e-45),
        (1e-45, 3e-45),
        (1e-38, 1.1754944e-38),
        (1.0, 1.0000001),
        (1.0, 3.4028235e38),
    ],
)
def test_keys_keep_the_order(pair: Any) -> None:
    values = np.array(pair, np.float32)
    low, high = to_keys(values)
    assert low < high
    assert from_keys(to_keys(values)).tolist() == values.tolist()


def test_both_zeros_share_a_key() -> None:
    keys = to_keys(np.array([-0.0, 0.0], np.float32))
    assert keys[0] == keys[1]
    assert math.copysign(1, from_keys(keys)[0]) == 1
