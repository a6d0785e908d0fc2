"""F1 at a threshold that normal validation scores fix, against scikit-learn and counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from zsadbench.errors import MetricError
from zsadbench.metrics import (
    NO_NORMALS,
    PixelHistograms,
    PixelMetrics,
    Spread,
    bin_edges,
    evaluate,
    image_metrics,
    image_replicates,
    image_threshold,
    pixel_threshold,
    resample,
)
from zsadbench.metrics.fixed import called

BOTH = ("pixel_segf1", "image_classf1")


def drawn(seed: int, kind: Any = np.float32) -> tuple[Any, Any, Any, Any, Any]:
    """Return maps and masks with ties, validation maps of two sizes, and image scores of both parts."""
    random = np.random.default_rng(seed)
    digits = int(random.integers(1, 4))
    maps = np.round(random.random((6, 9, 7)), digits).astype(kind)
    masks = random.random((6, 9, 7)) < 0.3
    masks[:2] = False
    maps[masks] += kind(0.4)
    normals = [np.round(random.random((5 + i % 2, 8)) / 2, digits).astype(kind) for i in range(5)]
    scores = maps.max(axis=(1, 2)) - np.round(random.random(6), 1)
    normal_scores = np.round(random.random(int(random.integers(2, 9))), digits)
    return maps, masks, normals, scores, normal_scores


def by_hand(values: NDArray[Any], truth: NDArray[Any], normal: NDArray[Any]) -> float:
    threshold = normal.mean() + 3 * normal.std()
    return float(f1_score(truth.ravel(), values.astype(np.float64).ravel() >= threshold, zero_division=0))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_both_are_scikit_learn_s_f1_at_mean_plus_three_sigma(kind: Any) -> None:
    seen = set()
    for seed in range(80):
        maps, masks, normals, scores, normal_scores = drawn(seed, kind)
        pooled = np.concatenate([one.ravel() for one in normals]).astype(np.float64)
        labels = masks.any(axis=(1, 2))
        for backend in ("numpy", "numba", "torch"):
            found = evaluate(
                maps, masks, labels, scores, metrics=BOTH, normals=normals, normal_scores=normal_scores,
                backend=backend,
            )  # fmt: skip
            assert found["pixel_segf1"] == pytest.approx(by_hand(maps, masks, pooled), abs=1e-9)
            assert found["image_classf1"] == pytest.approx(by_hand(scores, labels, normal_scores), abs=1e-9)
        seen.add((found["pixel_segf1"], found["image_classf1"]))
    assert len(seen) > 40


def test_thresholds_do_not_depend_on_the_order_or_on_an_offset_that_float32_loses() -> None:
    random = np.random.default_rng(0)
    maps = [1e6 + random.random((20, 30)) for _ in range(7)]
    spreads = [Spread.of(one, str(i)) for i, one in enumerate(maps)]
    threshold = pixel_threshold(spreads)
    assert threshold == pixel_threshold(spreads[::-1]) == pixel_threshold(iter(spreads[3:] + spreads[:3]))
    exact = np.stack(maps).astype(np.longdouble)
    assert threshold == pytest.approx(float(exact.mean() + 3 * exact.std()), abs=1e-9)
    scores = 1e6 + random.random(50)
    assert image_threshold(scores) == image_threshold(scores[::-1])


def test_a_pixel_on_the_threshold_counts() -> None:
    # Mean 0, deviation 1: the threshold is 3.
    normals = [np.array([[-1.0, 1.0]], np.float32)]
    maps = np.array([[[3.0, np.nextafter(np.float32(3), np.float32(0)), 4.0, 0.0]]], np.float32)
    masks = np.array([[[1, 1, 0, 0]]], np.uint8)
    found = evaluate(maps, masks, [1], [3.0], metrics=BOTH, normals=normals, normal_scores=[-1, 1])
    assert found["pixel_segf1"] == 0.5 and found["image_classf1"] == 1


@pytest.mark.parametrize("threshold", [0.1, -0.1, 1e300, -1e300, 1e-50, 16777217.0, 0.5])
def test_a_threshold_that_float32_does_not_hold_is_met_exactly(threshold: float) -> None:
    near = np.float32(np.clip(threshold, -3e38, 3e38))
    values = np.array([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, -np.float32(9))])
    wanted = values.astype(np.float64) >= threshold
    assert called(values.astype(np.float32), threshold).tolist() == wanted.tolist()
    assert called(torch.from_numpy(values.astype(np.float32)), threshold).tolist() == wanted.tolist()


def test_nothing_called_is_zero_and_no_anomalous_item_is_undefined() -> None:
    maps, masks = np.zeros((2, 3, 3), np.float32), np.zeros((2, 3, 3), bool)
    normals = [np.array([[0.0, 1.0]], np.float32)]
    none = evaluate(maps, masks, [0, 0], [0, 0], metrics=BOTH, normals=normals, normal_scores=[0, 1])
    assert none["pixel_segf1"] is None and none["image_classf1"] is None
    assert none.reasons["pixel_segf1"] == "no anomalous pixel"
    assert none.reasons["image_classf1"] == "no anomalous image"
    masks[1, 1] = True
    found = evaluate(maps, masks, [0, 1], [0, 0], metrics=BOTH, normals=normals, normal_scores=[0, 1])
    assert found["pixel_segf1"] == 0 and found["image_classf1"] == 0


def test_without_normals_they_are_undefined_with_the_reason() -> None:
    maps, masks, _, scores, _ = drawn(1)
    found = evaluate(maps, masks, None, scores, metrics=BOTH, normals=[], normal_scores=[0.5])
    assert found["pixel_segf1"] is None and found["image_classf1"] is None
    assert {found.reasons[name] for name in BOTH} == {NO_NORMALS}
    assert not set(BOTH) & set(evaluate(maps, masks, None, scores, normals=[maps[0]]))
    bare = evaluate(maps, None, [0] * 5 + [1], metrics=BOTH, normals=[maps[0]], normal_scores=[0, 1])
    assert bare.reasons["pixel_segf1"] == "no masks given"
    assert bare.reasons["image_classf1"] == "no image scores given"


def test_bad_validation_maps_are_named() -> None:
    maps, masks, normals, scores, _ = drawn(2)
    normals[3] = np.full((4, 4), np.nan, np.float32)
    with pytest.raises(MetricError, match="map of validation image '3' holds NaN"):
        evaluate(maps, masks, None, scores, metrics=BOTH, normals=normals)


def test_draws_are_the_metrics_of_the_images_drawn() -> None:
    maps, masks, normals, scores, normal_scores = drawn(5)
    labels = masks.any(axis=(1, 2))
    weights = resample("tile", labels, 40)
    fixed, image_fixed = (
        pixel_threshold(Spread.of(one, "") for one in normals),
        image_threshold(normal_scores),
    )
    exact = PixelMetrics(threshold=fixed)
    for i in range(6):
        exact.update(maps[i], masks[i], str(i))
    counted = PixelHistograms(bin_edges(exact.curve()), threshold=fixed)
    for i in range(6):
        counted.add(maps[i], masks[i], str(i))
    pixel = counted.replicates([str(i) for i in range(6)], weights)["pixel_segf1"]
    image = image_replicates(scores, labels, weights, ["image_classf1"], image_fixed)["image_classf1"]
    for number, counts in enumerate(weights.astype(int)):
        again = PixelMetrics(threshold=fixed)
        rows = np.repeat(np.arange(6), counts)
        for copy, row in enumerate(rows):
            again.update(maps[row], masks[row], str(copy))
        assert pixel[number] == pytest.approx(again.compute()["pixel_segf1"], abs=1e-12)
        wanted = image_metrics(scores[rows], labels[rows], ["image_classf1"], image_fixed)["image_classf1"]
        assert image[number] == pytest.approx(wanted, abs=1e-12)
