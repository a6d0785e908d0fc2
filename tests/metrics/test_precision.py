"""Scores that float32 cannot tell apart: ranked in double precision, whatever the back end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zsadbench.bench.metrics import generate
from zsadbench.metrics import (
    PixelHistograms,
    PixelMetrics,
    as_real,
    bin_edges,
    evaluate,
    image_metrics,
    image_replicates,
    placements,
    resample,
)
from zsadbench.metrics.keys import from_keys, to_keys, widened

LABELS = [1, 1, 1, 0, 0, 0]
CLOSE = {
    "next to one": [1 - 1e-10, 1 - 2e-10, 1 - 3e-10, 1 - 1e-9, 1 - 2e-9, 1 - 3e-9],
    "far from zero": [-52345678.1, -52345678.2, -52345678.3, -52345679.1, -52345679.2, -52345679.3],
    "next to zero": [3e-50, 2e-50, 4e-50, 1e-60, 1e-61, 1e-62],
    "beyond float32": [3e50, 2e50, 4e50, -1e60, -1e61, -1e62],
}


@pytest.mark.parametrize("scores", CLOSE.values(), ids=CLOSE)
def test_image_scores_are_ranked_in_double(scores: list[float]) -> None:
    assert image_metrics(scores, LABELS)["image_auroc"] == 1
    assert image_metrics(torch.tensor(scores, dtype=torch.float64), LABELS)["image_ap"] == 1
    assert image_metrics(scores, LABELS)["image_f1max_threshold"] == min(scores[:3])
    maps = np.zeros((6, 4, 4))
    maps[:3, 0, 0] = 1
    assert evaluate(maps, maps.astype(int), LABELS, scores)["image_auroc"] == 1
    assert placements(scores, LABELS).anomalous.tolist() == [1, 1, 1]
    draws = image_replicates(scores, LABELS, resample("tile", LABELS, 100))
    assert (draws["image_auroc"] == 1).all()


@pytest.fixture(scope="module")
def category() -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    maps, masks = generate(6, 48, 0.04)
    return np.round(maps.astype(np.float64) * 4096) / 4096, masks


def plain(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if "threshold" not in name}


@pytest.mark.parametrize("backend", ["numba", "numpy", "torch"])
@pytest.mark.parametrize(
    "move", [lambda maps: maps + 1e8, lambda maps: maps * 1e-50, lambda maps: maps * 1e50]
)
def test_maps_that_float32_merges_keep_every_metric(
    backend: str, move: Any, category: tuple[NDArray[np.float64], NDArray[np.uint8]]
) -> None:
    maps, masks = category
    moved = move(maps)
    wanted, got = evaluate(maps, masks), evaluate(moved, masks, backend=backend)
    assert plain(got) == plain(wanted)
    assert [row["found"] for row in got.images] == [row["found"] for row in wanted.images]
    assert got["pixel_f1max_threshold"] == move(wanted["pixel_f1max_threshold"])
    assert plain(evaluate(torch.from_numpy(moved), masks, backend=backend)) == plain(wanted)


@pytest.mark.parametrize("keep", ["ram", "disk", "source"])
@pytest.mark.parametrize("order", [1, -1])
def test_single_and_double_maps_share_a_curve(
    keep: str, order: int, category: tuple[NDArray[np.float64], NDArray[np.uint8]]
) -> None:
    maps, masks = category
    exact = np.exp(maps)  # scores of which float32 holds only some
    mixed = [values if i in (2, 3) else values.astype(np.float32) for i, values in enumerate(exact)]
    wanted = evaluate([values.astype(np.float64) for values in mixed], masks)
    source = (lambda name: mixed[int(name)]) if keep == "source" else None
    metrics = PixelMetrics(keep=keep, source=source)
    for i in list(range(6))[::order]:
        metrics.update(mixed[i], masks[i], str(i))
        metrics.compute()
    assert metrics.compute() == {name: wanted[name] for name in metrics.compute()}
    assert metrics.curve().scores.dtype == np.float64


def test_what_float32_holds_stays_float32() -> None:
    for values in (np.arange(9.0), np.arange(9), np.array([0.1], np.float32), np.array([True])):
        assert as_real(values).dtype == np.float32
    for values in (np.array([0.1]), np.array([1e300]), np.array([2**24 + 1])):
        assert as_real(values).dtype == np.float64
        assert as_real(values) == values


def test_bins_of_double_scores(category: tuple[NDArray[np.float64], NDArray[np.uint8]]) -> None:
    maps, masks = category

    def drawn(values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        metrics = PixelMetrics()
        for i, (one, mask) in enumerate(zip(values, masks, strict=True)):
            metrics.update(one, mask, str(i))
        counted = PixelHistograms(bin_edges(metrics.curve()))
        for i, (one, mask) in enumerate(zip(values, masks, strict=True)):
            counted.add(one, mask, str(i))
        weights = resample("tile", masks.any(axis=(1, 2)), 10)
        return counted.replicates([str(i) for i in range(6)], weights)

    wanted, got = drawn(maps), drawn(maps + 1e8)
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


def test_keys_of_double_scores_keep_the_order() -> None:
    values = np.array([-1e300, -1.0, -5e-324, 0.0, 5e-324, 1e-50, 1.0, 1 + 1e-15, 1e300])
    keys = to_keys(values)
    assert keys.dtype == np.int64 and (np.diff(keys.astype(object)) > 0).all()
    assert from_keys(keys).tolist() == values.tolist()
    short = np.array([-2.5, -0.0, 0.0, 3e38], np.float32)
    assert widened(to_keys(short)).tolist() == to_keys(short.astype(np.float64)).tolist()
