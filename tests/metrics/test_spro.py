"""sPRO against counting at every threshold, with defects that overlap, are torn apart or saturate early."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from zsadbench.errors import MetricError
from zsadbench.metrics import Defect, PixelHistograms, PixelMetrics, bin_edges, evaluate, resample, spro_limit

Array = NDArray[Any]
LIMITS = (0.3, 0.05, 1.0)
IDS = ("pixel_spro", "pixel_spro@0.05", "pixel_spro@1")


def drawn(seed: int, images: int = 5) -> tuple[Array, Array, list[list[tuple[Array, float]]]]:
    """Return maps with ties, masks, and the defects of each image: any shapes, whose union is the mask."""
    random = np.random.default_rng(seed)
    maps = np.round(random.random((images, 8, 9)), int(random.integers(1, 4))).astype(np.float32)
    masks, defects = np.zeros((images, 8, 9), bool), []
    for i in range(images):
        own: list[tuple[Array, float]] = []
        for _ in range(int(random.integers(1, 4)) if i >= 2 else 0):
            region = random.random((8, 9)) < random.uniform(0.05, 0.3)
            region[i % 8, i] = True
            area = int(region.sum())
            own.append((region, float(random.choice([area, 1, area / 2, random.uniform(0.5, area)]))))
            masks[i] |= region
        defects.append(own)
    maps[masks] += np.float32(0.2)
    return maps, masks, defects


def by_hand(maps: Array, masks: Array, defects: list[list[tuple[Array, float]]], limit: float) -> float:
    """Take every threshold there can be, and the polyline through what they give."""
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        above = maps >= threshold
        shares = [
            min((above[i] & region).sum() / saturation, 1)
            for i, own in enumerate(defects)
            for region, saturation in own
        ]
        points.append(((above & ~masks).sum() / (~masks).sum(), float(np.mean(shares))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit


def test_every_threshold_counted_gives_the_same() -> None:
    seen = set()
    for seed in range(120):
        maps, masks, defects = drawn(seed)
        wanted = [by_hand(maps, masks, defects, limit) for limit in LIMITS]
        for backend in ("numpy", "numba", "torch"):
            found = evaluate(maps, masks, metrics=IDS, defects=defects, backend=backend)
            for name, value in zip(IDS, wanted, strict=True):
                assert found[name] == pytest.approx(value, abs=1e-9), (seed, name)
        seen.add(found["pixel_spro"])
    assert len(seen) > 100


def test_with_whole_regions_and_full_saturation_it_is_aupro() -> None:
    maps = np.random.default_rng(3).random((2, 6, 6)).astype(np.float32)
    masks = np.zeros((2, 6, 6), bool)
    masks[1, :2, :2] = masks[1, 4:, 3:] = True
    parts = [np.zeros((6, 6), bool), np.zeros((6, 6), bool)]
    parts[0][:2, :2] = parts[1][4:, 3:] = True
    found = evaluate(maps, masks, metrics=IDS, defects=[[], [(part, part.sum()) for part in parts]])
    for limit in ("", "@0.05"):
        assert found[f"pixel_spro{limit}"] == pytest.approx(found[f"pixel_aupro{limit}"], abs=1e-12)


def test_a_saturated_defect_needs_no_more_pixels() -> None:
    # One of four pixels of the defect is enough; it is found before any normal pixel.
    maps = np.array([[[9, 1, 1, 1, 5, 5, 5, 5]]], np.float32)
    masks = np.array([[[1, 1, 1, 1, 0, 0, 0, 0]]], bool)
    assert evaluate(maps, masks, metrics=IDS, defects=[[(masks[0], 1)]])["pixel_spro@1"] == 1
    half = evaluate(maps, masks, metrics=IDS, defects=[[(masks[0], 2)]])["pixel_spro@1"]
    assert half == 0.5
    assert evaluate(maps, masks, limits=(1.0,))["pixel_aupro@1"] == 0.25


def test_the_order_of_images_changes_no_digit() -> None:
    maps, masks, defects = drawn(11, images=9)
    wanted = evaluate(maps, masks, metrics=IDS, defects=defects)
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(9)
        again = evaluate(maps[order], masks[order], metrics=IDS, defects=[defects[i] for i in order])
        assert [again[name] for name in IDS] == [wanted[name] for name in IDS]


def test_other_metrics_keep_every_digit() -> None:
    maps, masks, defects = drawn(4)
    plain, found = evaluate(maps, masks), evaluate(maps, masks, metrics=IDS, defects=defects)
    assert {name: found[name] for name in plain} == plain
    assert not any(name.startswith("pixel_spro") for name in evaluate(maps, masks, defects=defects))


def test_unknown_defects_leave_it_undefined_with_the_reason() -> None:
    maps, masks, defects = drawn(5)
    for some in (None, [[], [], [], *defects[3:]]):
        found = evaluate(maps, masks, metrics=["pixel_spro"], defects=some)
        assert found["pixel_spro"] is None
        assert found.reasons["pixel_spro"] == "the saturation of some defect is not known"
    empty = evaluate(maps, np.zeros_like(masks), metrics=["pixel_spro"], defects=[[]] * 5)
    assert empty.reasons["pixel_spro"] == "no anomalous pixel"
    assert evaluate(maps, None, [0] * 5, metrics=["pixel_spro"]).reasons["pixel_spro"] == "no masks given"


def test_defects_that_make_no_sense_are_refused() -> None:
    maps, masks, defects = drawn(6)
    cases: list[tuple[list[tuple[Array, float]], str]] = [
        ([(~masks[3], 1.0)], "image '3': a defect reaches outside the mask"),
        ([(masks[3], 0.0)], "image '3': a defect of .* pixels has a saturation of 0"),
        ([(masks[3], masks[3].sum() + 1.0)], "no more than its pixels"),
        ([(masks[3][:-1], 1.0)], r"image '3': defect of size \(7, 9\) but mask of size \(8, 9\)"),
        ([(np.zeros_like(masks[3]), 1.0)], "a defect of 0 pixels"),
    ]
    for own, words in cases:
        with pytest.raises(MetricError, match=words):
            evaluate(maps, masks, metrics=IDS, defects=[*defects[:3], own, *defects[4:]])
    with pytest.raises(MetricError, match="image '0' has defects but an empty mask"):
        evaluate(maps, masks, metrics=IDS, defects=[defects[3], *defects[1:]])
    with pytest.raises(MetricError, match="one of each per image"):
        evaluate(maps, masks, metrics=IDS, defects=defects[:2])


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("pixel_spro", 0.3),
        ("pixel_spro@0.05", 0.05),
        ("pixel_spro@1", 1.0),
        ("pixel_spro@1e-3", 1e-3),
        ("pixel_spro@0", None),
        ("pixel_spro@1.5", None),
        ("pixel_spro@", None),
        ("pixel_spro@x", None),
        ("pixel_spro@0.0.5", None),
        ("pixel_aupro@0.05", None),
    ],
)
def test_its_limit_stands_behind_the_at(name: str, limit: float | None) -> None:
    assert spro_limit(name) == limit


def test_draws_are_the_metric_of_the_images_drawn() -> None:
    maps, masks, defects = drawn(8, images=7)
    weights = resample("tile", masks.any(axis=(1, 2)), 40)
    own = [[Defect(*pair) for pair in pairs] for pairs in defects]
    exact = PixelMetrics(spro_limits=LIMITS)
    for i in range(7):
        exact.update(maps[i], masks[i], str(i), defects=own[i])
    counted = PixelHistograms(bin_edges(exact.curve()))
    for i in range(7):
        counted.add(maps[i], masks[i], str(i), own[i])
    draws = counted.replicates([str(i) for i in range(7)], weights, spro_limits=LIMITS)
    for number, counts in enumerate(weights.astype(int)):
        again = PixelMetrics(spro_limits=LIMITS)
        for copy, row in enumerate(np.repeat(np.arange(7), counts)):
            again.update(maps[row], masks[row], str(copy), defects=own[row])
        for name in IDS:
            assert draws[name][number] == pytest.approx(again.compute()[name], abs=1e-9), name
    assert not any(name.startswith("pixel_spro") for name in counted.replicates(["2", "3"], weights[:, 2:4]))
