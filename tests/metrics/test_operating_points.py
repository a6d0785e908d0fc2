"""Rates at one threshold and the calibration error, against their definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from zsadbench.errors import MetricError
from zsadbench.metrics import evaluate, image_curve, image_metrics, image_reasons
from zsadbench.metrics.bootstrap import image_replicates, resample
from zsadbench.metrics.image import calibration_error

MORE = ("image_pg@5", "image_pb@5", "image_pg@12.5", "image_pb@40", "image_ece")
Array = NDArray[np.float64]


def drawn(seed: int) -> tuple[Array, NDArray[np.bool_]]:
    """Return scores with ties and labels of both kinds."""
    random = np.random.default_rng(seed)
    count = int(random.integers(4, 80))
    labels = random.random(count) < random.uniform(0.2, 0.8)
    labels[:2] = False, True
    scores = np.round(random.random(count) * 0.7 + 0.3 * labels, int(random.integers(1, 4)))
    return scores.astype(np.float64), labels


def by_hand(scores: Array, labels: NDArray[np.bool_], share: tuple[int, int], kind: str) -> float:
    """Try every threshold there can be; ``share`` is a fraction in whole numbers."""
    best = 0.0
    top, bottom = share
    for threshold in [*np.unique(scores), np.inf]:
        called = scores >= threshold
        missed, wrong = int((~called & labels).sum()), int((called & ~labels).sum())
        if kind == "pg" and missed * bottom <= top * int(labels.sum()):
            best = max(best, float((~called & ~labels).sum() / (~labels).sum()))
        if kind == "pb" and wrong * bottom <= top * int((~labels).sum()):
            best = max(best, float((called & labels).sum() / labels.sum()))
    return best


def test_image_rates_try_every_threshold() -> None:
    for seed in range(300):
        scores, labels = drawn(seed)
        found = image_metrics(scores, labels, MORE)
        assert found["image_pg@5"] == pytest.approx(by_hand(scores, labels, (1, 20), "pg"), abs=1e-9)
        assert found["image_pb@5"] == pytest.approx(by_hand(scores, labels, (1, 20), "pb"), abs=1e-9)
        assert found["image_pg@12.5"] == pytest.approx(by_hand(scores, labels, (1, 8), "pg"), abs=1e-9)
        assert found["image_pb@40"] == pytest.approx(by_hand(scores, labels, (2, 5), "pb"), abs=1e-9)
        assert found["image_fpr95"] == pytest.approx(1 - found["image_pg@5"], abs=1e-9)  # type: ignore[operator]


def test_fpr95_is_what_scikit_learn_s_curve_says() -> None:
    for seed in range(100):
        scores, labels = drawn(seed)
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
        wanted = fpr[np.round(tpr * labels.sum()) * 20 >= 19 * labels.sum()].min()
        assert image_metrics(scores, labels)["image_fpr95"] == pytest.approx(wanted, abs=1e-9)


def test_pixel_fpr95_counts_the_pixels_of_all_images() -> None:
    for seed in range(40):
        random = np.random.default_rng(seed)
        maps = np.round(random.random((3, 5, 7)), int(random.integers(1, 4))).astype(np.float32)
        masks = random.random((3, 5, 7)) < 0.2
        masks[0] = False
        if not masks.any():
            continue
        fpr, tpr, _ = roc_curve(masks.ravel(), maps.ravel(), drop_intermediate=False)
        wanted = fpr[np.round(tpr * masks.sum()) * 20 >= 19 * masks.sum()].min()
        for backend in ("numpy", "numba", "torch"):
            assert evaluate(maps, masks, backend=backend)["pixel_fpr95"] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(("count", "kept"), [(20, 19), (40, 38), (340, 323), (10**6, 950_000)])
def test_a_share_is_taken_as_it_is_written(count: int, kept: int) -> None:
    # One normal item stands between each two anomalous ones, so the rate tells how many were kept.
    scores = np.arange(2 * count, 0, -1.0)
    labels = np.arange(2 * count) % 2 == 0
    assert image_curve(scores, labels).fpr_at(0.95) == (kept - 1) / count
    assert image_curve(scores, labels).tpr_at(0.05) == (count - kept + 1) / count


def test_ends_of_the_scale() -> None:
    curve = image_curve([3, 2, 1], [1, 0, 1])
    assert (curve.fpr_at(0.0), curve.fpr_at(0.5), curve.fpr_at(1.0)) == (0, 0, 1)
    assert (curve.tpr_at(0.0), curve.tpr_at(1.0)) == (0.5, 1)
    with pytest.raises(MetricError, match=r"1\.5 is no rate"):
        curve.fpr_at(1.5)


@pytest.mark.parametrize(("labels", "why"), [([0, 0], "no anomalous image"), ([1, 1], "no normal image")])
def test_undefined_rates_say_why(labels: list[int], why: str) -> None:
    found = image_metrics([0.2, 0.4], labels, MORE)
    reasons = image_reasons(found)
    assert {reasons[name] for name in (*MORE[:4], "image_fpr95")} == {why}
    assert found["image_ece"] is not None


def test_calibration_error_is_that_of_fifteen_bins() -> None:
    for seed in range(50):
        scores, labels = drawn(seed)
        wanted, bins = 0.0, np.minimum(np.floor(scores * 15), 14)
        for one in np.unique(bins):
            inside = bins == one
            wanted += inside.mean() * abs(scores[inside].mean() - labels[inside].mean())
        assert calibration_error(scores, labels) == pytest.approx(wanted, abs=1e-9)
    assert calibration_error([0.0, 1.0, 1.0], [0, 1, 1]) == 0
    assert calibration_error([0.0, 1.0], [1, 0]) == 1


def test_scores_that_are_no_probabilities_have_none() -> None:
    found = image_metrics([0.2, 1.4], [0, 1], ["image_ece"])
    assert found["image_ece"] is None
    assert image_reasons(found)["image_ece"] == "the scores are no probabilities"


@pytest.mark.parametrize(
    "name", ["image_pg", "image_pg@", "image_pg@101", "image_pb@-1", "image_pg@x", "iou"]
)
def test_other_ids_are_refused(name: str) -> None:
    with pytest.raises(MetricError, match=f"unknown metric '{name}'"):
        image_metrics([0.2, 0.4], [0, 1], [name])


def test_evaluate_gives_the_others_on_request() -> None:
    maps = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 4, 4)
    result = evaluate(maps, None, [0, 1], [0.1, 0.9], metrics=["image_pb@5", "image_ece"])
    assert result["image_pb@5"] == 1 and result["image_ece"] == pytest.approx(0.1)
    assert evaluate(maps, None, [0, 1], metrics=["image_ece"]).reasons["image_ece"] == "no image scores given"


def test_draws_are_the_metrics_of_the_images_drawn() -> None:
    scores, labels = drawn(7)
    weights = resample("tile", labels, 60)
    draws = image_replicates(scores, labels, weights, MORE)
    for number, counts in enumerate(weights.astype(int)):
        again = image_metrics(np.repeat(scores, counts), np.repeat(labels, counts), MORE)
        for name in ("image_fpr95", *MORE):
            assert draws[name][number] == pytest.approx(again[name], abs=1e-9), name
