"""The bootstrap: its draws, its error against computing anew, and how often its intervals hold."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from zsadbench.bench.metrics import generate
from zsadbench.errors import MetricError
from zsadbench.metrics import PixelMetrics, image_metrics
from zsadbench.metrics.bootstrap import (
    PixelHistograms,
    bin_edges,
    centred,
    image_replicates,
    interval,
    resample,
)

Array = NDArray[np.float64]
HALVES = np.repeat([False, True], 50)


def pixels_of(
    maps: NDArray[np.float32], masks: NDArray[np.uint8], counts: Sequence[int], connectivity: int = 8
) -> PixelMetrics:
    """Return the exact metrics of the images, each taken as often as ``counts`` says."""
    metrics = PixelMetrics(connectivity=connectivity)
    for number, count in enumerate(counts):
        for copy in range(int(count)):
            metrics.update(maps[number], masks[number], f"{number}#{copy}")
    return metrics


def small(seed: int, levels: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    maps, masks = generate(12, 24, 0.05, seed)
    return (np.round(maps * levels) / levels if levels else maps).astype(np.float32), masks


def names(count: int) -> list[str]:
    return [f"{number:03}" for number in range(count)]


def histograms(
    maps: NDArray[np.float32],
    masks: NDArray[np.uint8],
    bins: int,
    order: Sequence[int],
    connectivity: int = 8,
) -> PixelHistograms:
    exact = pixels_of(maps, masks, [1] * len(maps), connectivity)
    found = PixelHistograms(bin_edges(exact.curve(), bins), connectivity)
    for number in order:
        found.add(maps[number], masks[number], names(len(maps))[number])
    return found


# Draws


def test_weights_are_drawn_as_documented() -> None:
    labels = np.array([True, False, False, True, False])
    random = np.random.RandomState(zlib.crc32(b"boot/bolt"))
    normal, anomalous = random.randint(0, 3, (7, 3)), random.randint(0, 2, (7, 2))
    weights = resample("bolt", labels, 7)
    for draw in range(7):
        assert weights[draw, ~labels].tolist() == np.bincount(normal[draw], minlength=3).tolist()
        assert weights[draw, labels].tolist() == np.bincount(anomalous[draw], minlength=2).tolist()


def test_strata_keep_their_size_and_categories_differ() -> None:
    weights = resample("bolt", HALVES)
    assert weights.shape == (1000, 100)
    assert (weights[:, HALVES].sum(axis=1) == 50).all() and (weights[:, ~HALVES].sum(axis=1) == 50).all()
    assert np.array_equal(weights, resample("bolt", HALVES))
    assert not np.array_equal(weights, resample("cloth", HALVES))
    assert resample("bolt", [True, True], 3).sum(axis=1).tolist() == [2, 2, 2]


# Image metrics


@pytest.mark.parametrize("levels", [None, 4])
def test_image_replicates_are_exact(levels: int | None) -> None:
    random = np.random.RandomState(1)
    labels = random.rand(23) < 0.4
    scores = random.rand(23).astype(np.float32) + 0.3 * labels
    scores = np.round(scores * levels) / levels if levels else scores
    weights = resample("bolt", labels, 40)
    found = image_replicates(scores, labels, weights)
    for draw, counts in enumerate(weights.astype(int)):
        wanted = image_metrics(np.repeat(scores, counts), np.repeat(labels, counts))
        for name, values in found.items():
            assert values[draw] == pytest.approx(wanted[name], abs=1e-14), name


def test_image_replicates_of_many_images_come_in_pieces() -> None:
    random = np.random.RandomState(2)
    labels, scores = random.rand(900) < 0.5, random.rand(900)
    weights = resample("bolt", labels, 600)
    whole = image_replicates(scores, labels, weights)
    few = image_replicates(scores, labels, weights[590:])
    assert whole["image_ap"].shape == (600,)
    assert np.array_equal(whole["image_ap"][590:], few["image_ap"])


# Pixel metrics


@pytest.mark.parametrize(("levels", "connectivity"), [(None, 8), (16, 8), (None, 4)])
def test_pixel_replicates_are_exact_where_every_anomalous_score_has_a_bin(
    levels: int | None, connectivity: int
) -> None:
    maps, masks = small(0, levels)
    found = histograms(maps, masks, 10_000, range(12), connectivity)
    weights = resample("bolt", masks.any(axis=(1, 2)), 12)
    replicates = found.replicates(names(12), weights, aupimo=(1e-5, 1e-4))
    for draw, counts in enumerate(weights.astype(int)):
        wanted = pixels_of(maps, masks, counts, connectivity).compute()
        assert set(replicates) == set(wanted) - {"pixel_f1max_threshold"}
        for name, values in replicates.items():
            assert values[draw] == pytest.approx(wanted[name], abs=1e-12), name


def test_aupimo_is_exact_where_its_bounds_are_wide() -> None:
    maps, masks = small(3)
    found = histograms(maps, masks, 10_000, range(12))
    metrics = PixelMetrics(aupimo=(1e-3, 0.5))
    for number in range(12):
        metrics.update(maps[number], masks[number], str(number))
    value = found.replicates(names(12), np.ones((1, 12)), aupimo=(1e-3, 0.5))["pixel_aupimo"][0]
    assert 0.2 < value < 1
    assert value == pytest.approx(metrics.compute()["pixel_aupimo"], abs=1e-12)


def test_binned_replicates_are_near_the_exact_ones() -> None:
    maps, masks = generate(100, 259, 0.015)
    exact = pixels_of(maps, masks, [1] * 100).compute()
    found = histograms(maps, masks, 4096, range(100))
    weights = resample("bolt", masks.any(axis=(1, 2)), 3)
    full = found.replicates(names(100), np.ones((1, 100)))
    draws = {
        name: centred(values, exact[name], full[name][0])
        for name, values in found.replicates(names(100), weights).items()
    }
    allowed = dict.fromkeys(draws, 2e-4) | {"pixel_auroc": 2e-6, "pixel_f1max": 9e-5, "pixel_iou": 9e-5}
    allowed |= {"pixel_aupro": 5e-6, "pixel_aupro@0.05": 5e-6}
    allowed |= {"pixel_fpr95": 1e-3}  # read off at one edge of a bin, not summed over all
    for draw, counts in enumerate(weights.astype(int)):
        wanted = pixels_of(maps, masks, counts).compute()
        for name, values in draws.items():
            assert values[draw] == pytest.approx(wanted[name], abs=allowed[name]), name


def test_bins_follow_the_order_of_scores_not_their_scale() -> None:
    maps, masks = generate(20, 64, 0.03)
    steep = (maps**16).astype(np.float32)
    weights = resample("bolt", masks.any(axis=(1, 2)), 5)
    plain, powered = (
        histograms(each, masks, 512, range(20)).replicates(names(20), weights) for each in (maps, steep)
    )
    for name, values in plain.items():
        assert values == pytest.approx(powered[name], abs=2e-6), name


def test_the_order_of_images_changes_no_digit() -> None:
    maps, masks = small(4, 64)
    weights = resample("bolt", masks.any(axis=(1, 2)), 30)
    forwards = histograms(maps, masks, 64, range(12)).replicates(names(12), weights)
    backwards = histograms(maps, masks, 64, range(11, -1, -1)).replicates(names(12), weights)
    for name, values in forwards.items():
        assert np.array_equal(values, backwards[name]), name


def test_a_draw_without_an_anomalous_or_a_normal_image_is_undefined() -> None:
    maps, masks = small(5)
    found = histograms(maps, masks, 256, range(12))
    marked = masks.any(axis=(1, 2))
    weights = np.stack([~marked, marked, np.ones(12)]).astype(float)
    draws = found.replicates(names(12), weights)
    assert all(np.isnan(values[0]) for values in draws.values())
    assert [name for name, values in draws.items() if np.isnan(values[1])] == ["pixel_aupimo"]
    assert not any(np.isnan(values[2]) for values in draws.values())


def test_an_image_without_pixels_changes_nothing() -> None:
    maps, masks = small(6)
    found = histograms(maps, masks, 256, range(12))
    plain = found.replicates(names(12), np.ones((1, 12)))
    more = found.replicates([*names(12), "maskless"], np.ones((1, 13)))
    assert {name: values[0] for name, values in plain.items()} == {n: v[0] for n, v in more.items()}


def test_wrong_input_is_refused() -> None:
    maps, masks = small(7)
    found = histograms(maps, masks, 256, [0])
    with pytest.raises(MetricError, match="'000' was added before"):
        found.add(maps[0], masks[0], "000")
    with pytest.raises(MetricError, match="mask of size"):
        found.add(maps[1], masks[1][:5], "001")
    with pytest.raises(MetricError, match="no anomalous pixel"):
        PixelHistograms(np.empty(0, np.int32))
    with pytest.raises(MetricError, match="3 image scores, 2 labels"):
        image_replicates([1.0, 2.0, 3.0], [0, 1], np.ones((2, 3)))
    with pytest.raises(MetricError, match="nothing to draw from"):
        image_replicates([], [], np.ones((2, 0)))


# Intervals


def test_an_interval_holds_the_middle_95_percent_around_the_exact_value() -> None:
    draws = np.arange(1001) / 1000
    assert interval(draws) == pytest.approx((0.025, 0.975))
    assert interval(np.append(draws, np.nan)) is None
    assert interval(np.empty(0)) is None
    assert centred(np.array([0.25, 0.5, 1.0]), 0.5, 0.375).tolist() == [0.375, 0.625, 1.0]
    assert np.isnan(centred(draws, None, 0.5)).all()


def test_intervals_hold_the_true_auroc_in_95_of_100_cases() -> None:
    shift = NormalDist().inv_cdf(0.85) * 2**0.5
    random, weights = np.random.RandomState(0), resample("bolt", HALVES, 500)
    inside = 0
    for _ in range(500):
        scores = random.standard_normal(100) + shift * HALVES
        bounds = interval(image_replicates(scores, HALVES, weights)["image_auroc"])
        assert bounds is not None
        inside += bounds.low <= 0.85 <= bounds.high
    assert 0.92 <= inside / 500 <= 0.98
