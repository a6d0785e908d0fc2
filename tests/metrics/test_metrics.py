"""The public surface: streaming, evaluate, undefined values, input that is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import zsadbench.metrics
from zsadbench.bench.metrics import generate
from zsadbench.errors import MetricError
from zsadbench.metrics import (
    METRIC_VERSION,
    METRICS,
    Evaluation,
    MetricWarning,
    PixelMetrics,
    evaluate,
    image_metrics,
    image_reasons,
    numba_backend,
)
from zsadbench.metrics.counters import choose_backend
from zsadbench.metrics.ids import aupro_id
from zsadbench.metrics.inputs import resize_bilinear


@pytest.fixture(scope="module")
def category() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    return generate(10, 96, 0.03)


def small() -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    maps = np.linspace(0, 1, 48, dtype=np.float32).reshape(3, 4, 4)
    masks = np.zeros((3, 4, 4), np.bool_)
    masks[1, 1:3, 1:3] = True
    masks[2, 3] = True
    return maps, masks


def stream(maps: Any, masks: Any, **options: Any) -> PixelMetrics:
    metrics = PixelMetrics(**options)
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        metrics.update(values, mask, str(i))
    return metrics


def test_ids_and_version() -> None:
    maps, masks = small()
    result = evaluate(maps, masks, scores=maps.max(axis=(1, 2)))
    on_request = {"image_pg", "image_pb", "image_ece", "image_classf1", "pixel_segf1", "pixel_spro"}
    assert set(METRICS) - on_request <= set(result)
    assert not on_request & set(result)
    assert {name for name in result if name not in METRICS} == {
        "image_f1max_threshold",
        "pixel_f1max_threshold",
    }
    assert METRIC_VERSION == 1
    assert all(hasattr(zsadbench.metrics, name) for name in zsadbench.metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        zsadbench.metrics.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_known_values_by_hand() -> None:
    # Scores falling: + - + - | - -; two regions of one pixel.
    maps = np.array([[[6, 5, 4, 3]], [[2, 1, 0, 0]]], np.float32)
    masks = np.array([[[1, 0, 1, 0]], [[0, 0, 0, 0]]], np.uint8)
    result = evaluate(maps, masks, labels=[1, 0], scores=[2, 1], limits=(0.3, 0.5), aupimo=(0.25, 1))
    assert result == {
        "image_auroc": 1,
        "image_ap": 1,
        "image_f1max": 1,
        "image_f1max_threshold": 2,
        "image_fpr95": 0,
        "pixel_auroc": 11 / 12,
        "pixel_ap": (1 + 2 / 3) / 2,
        "pixel_f1max": 0.8,
        "pixel_f1max_threshold": 4,
        "pixel_iou": 2 / 3,
        "pixel_fpr95": 1 / 6,
        # One of two regions up to FPR 1/6, both from there on.
        "pixel_aupro": pytest.approx((0.5 / 6 + (0.3 - 1 / 6)) / 0.3),
        "pixel_aupro@0.5": pytest.approx((0.5 / 6 + (0.5 - 1 / 6)) / 0.5),
        "pixel_aupimo": 1,
    }


def test_back_ends_agree_on_a_real_size(category: tuple[Any, Any]) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    maps, masks = category
    results = [evaluate(maps, masks, backend=backend) for backend in ("numba", "numpy", "torch", "auto")]
    assert all(result == results[0] for result in results)
    assert all(result.images == results[0].images for result in results)
    truth, scores = masks.ravel(), maps.ravel()
    assert results[0]["pixel_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert results[0]["pixel_ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


@pytest.mark.parametrize("transform", ["power", "logit", "shift", "ranks"])
def test_any_increasing_transform_keeps_every_metric(transform: str, category: tuple[Any, Any]) -> None:
    maps, masks = category
    # Coarse enough for float32 to keep all values apart after the transform.
    maps = np.round(maps * 2000) / 2000
    values, place = np.unique(maps, return_inverse=True)
    moved = {
        "power": np.float64(values) ** 4,
        "logit": np.log(np.float64(values) / (1.1 - np.float64(values))),
        "shift": np.float64(values) - 100,
        "ranks": np.arange(values.size),
    }[transform].astype(np.float32)
    assert (np.diff(moved) > 0).all()
    before, after = evaluate(maps, masks), evaluate(moved[place].reshape(maps.shape), masks)
    for name in before:
        if "threshold" not in name:
            assert after[name] == before[name], name


def test_keep_source_asks_again_for_anomalous_images_only(category: tuple[Any, Any]) -> None:
    maps, masks = category
    asked: list[str] = []

    def source(name: str) -> Any:
        asked.append(name)
        return maps[int(name)]

    metrics = PixelMetrics(keep="source", source=source)
    order = sorted(range(len(maps)), key=lambda i: not masks[i].any())
    for i in order:
        metrics.update(maps[i], masks[i], str(i))
    values = metrics.compute()
    assert sorted(asked) == sorted(str(i) for i in range(len(maps)) if masks[i].any())
    metrics.compute(), metrics.per_image(), metrics.reasons(), metrics.curve()
    assert len(asked) == sum(mask.any() for mask in masks)
    assert values == stream(maps, masks).compute()


def test_a_source_that_changes_its_mind_is_found_out() -> None:
    maps, masks = small()
    for change, named in ((1, "for image '2'"), (0, "for an anomalous image")):
        other = maps + change
        if not change:
            other[2, 3, :2] -= np.float32(0.01)
        metrics = PixelMetrics(keep="source", source=dict(zip("012", other, strict=True)).__getitem__)
        for i in range(3):
            metrics.update(maps[i], masks[i], str(i))
        with pytest.raises(MetricError, match=f"another map {named}"):
            metrics.compute()


def test_a_source_may_fail_and_be_asked_again() -> None:
    maps, masks = small()
    left = {"0": 0, "1": 1, "2": 0}

    def source(name: str) -> Any:
        left[name] -= 1
        if left[name] >= 0:
            raise OSError("drive is away")
        return maps[int(name)]

    metrics = PixelMetrics(keep="source", source=source)
    for i in range(3):
        metrics.update(maps[i], masks[i], str(i))
    with pytest.raises(OSError, match="drive is away"):
        metrics.compute()
    assert metrics.compute() == stream(maps, masks).compute()


def test_buffers_may_be_reused() -> None:
    maps, masks = small()
    wanted = stream(maps, masks).compute()
    for keep in ("ram", "disk"):
        metrics, buffer, mask = PixelMetrics(keep=keep), np.empty((4, 4), np.float32), np.empty((4, 4), bool)
        for i in range(3):
            buffer[:], mask[:] = maps[i], masks[i]
            metrics.update(buffer, mask, str(i))
        buffer[:], mask[:] = 7, True
        assert metrics.compute() == wanted


def test_counters_do_not_overflow() -> None:
    counter = numba_backend.NumbaCounter(np.array([3, 5], np.int32))
    pixel = np.array([[5]], np.int32).view(np.float32)
    counter.add(pixel, 0)
    # As if four billion pixels of that score had been counted already.
    bins = counter._bins[0]
    bins.at_gap[1] = bins.at_key[1] = 2**32 - 1
    bins.room = 0
    counter.add(pixel, 0)
    at_most, equal = counter.counts(0)
    assert at_most.tolist() == [0, 2**32] and equal.tolist() == [0, 2**32]
    assert bins.room == 2**32 - 2


def test_last_digits_do_not_follow_the_order_of_updates() -> None:
    # All scores tie, so 1 / area of many sizes is summed in one place; AUPIMO is a mean of many.
    random = np.random.default_rng(0)
    category = []
    for size in range(1, 40):
        values, mask = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.bool_)
        mask.ravel()[:size] = size % 4 > 0
        values.ravel()[40:] = random.random(24) * (size % 4 == 0)
        category.append((values + mask * np.float32(0.5) * (size % 3), mask))
    found = set()
    for _ in range(8):
        metrics = PixelMetrics(aupimo=(1e-3, 0.9))
        for i in random.permutation(len(category)):
            values, mask = category[i]
            metrics.update(values, mask, str(i))
        found.add(tuple(metrics.compute().values()))
    assert len(found) == 1


def test_without_a_cache_kernels_are_compiled_for_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = numba.njit

    def refuse_cache(*args: Any, **options: Any) -> Any:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return compiled(*args, **options)

    maps, masks = small()
    wanted = evaluate(maps, masks, backend="numpy")
    monkeypatch.setattr(numba_backend, "njit", refuse_cache)
    monkeypatch.setattr(numba_backend, "count", numba_backend._compile(numba_backend._count))
    assert evaluate(maps, masks, backend="numba") == wanted


@pytest.mark.parametrize("kind", ["float64", "float16", "read-only", "strided", "list", "NCHW", "int"])
def test_arrays_of_any_make(kind: str) -> None:
    maps, masks = small()
    if kind in ("float16", "int"):
        maps = np.round(maps * 8)
    wanted = evaluate(maps, masks)
    given: Any = maps
    if kind.startswith("float"):
        given = maps.astype(kind)
    elif kind == "int":
        given = maps.astype(np.int64)
    elif kind == "read-only":
        given = maps.copy()
        given.flags.writeable = False
    elif kind == "strided":
        given = np.repeat(np.repeat(maps, 2, axis=1), 2, axis=2)[:, ::2, ::2]
    elif kind == "list":
        given = [image.tolist() for image in maps]
    elif kind == "NCHW":
        given = maps[:, None]
    for backend in ("numba", "numpy", "torch"):
        assert evaluate(given, masks, backend=backend) == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_tensors(dtype: torch.dtype) -> None:
    maps, masks = small()
    tensor = torch.from_numpy(np.round(maps * 8)).to(dtype).requires_grad_()
    wanted = evaluate(np.round(maps * 8), masks, [0, 1, 1], [0.125, 0.5, 0.375])
    for backend in ("auto", "torch", "numpy"):
        got = evaluate(
            tensor,
            torch.from_numpy(masks),
            torch.tensor([0, 1, 1]),
            torch.tensor([0.125, 0.5, 0.375]),
            backend=backend,
        )
        assert got == wanted


def test_images_of_different_sizes(category: tuple[Any, Any]) -> None:
    maps, masks = category
    cut = [16 * (i % 3) for i in range(len(maps))]
    some = [values[c:] for values, c in zip(maps, cut, strict=True)]
    same = [mask[c:] for mask, c in zip(masks, cut, strict=True)]
    results = [evaluate(some, same, backend=backend) for backend in ("numba", "numpy", "torch")]
    assert results[0] == results[1] == results[2]
    assert results[0]["pixel_aupimo"] is not None
    backwards = evaluate(some[::-1], same[::-1])
    assert backwards == results[0]
    assert [row["pixels"] for row in backwards.images] == [mask.size for mask in same[::-1]]


def test_per_image_rows(category: tuple[Any, Any]) -> None:
    maps, masks = category
    scores = maps.max(axis=(1, 2))
    result = evaluate(maps, masks, scores=scores, image_ids=[f"i/{i}.png" for i in range(len(maps))])
    normal = np.sort(maps[masks == 0])[::-1]
    allowed = int(0.01 * normal.size)
    for i, row in enumerate(result.images):
        assert row["image_id"] == f"i/{i}.png"
        assert row["peak"] == row["score"] == scores[i]
        assert row["low"] == maps[i].min()
        assert row["anomalous_pixels"] == masks[i].sum()
        if masks[i].any():
            # The first normal score too many bounds the threshold from below.
            assert row["found"] == pytest.approx((maps[i][masks[i] > 0] > normal[allowed]).mean(), abs=0)
            assert 0 <= row["aupimo"] <= 1 and row["regions"] >= 1
        else:
            assert row["found"] is None and row["aupimo"] is None and row["regions"] == 0


def undefined(result: Evaluation) -> dict[str, str]:
    assert set(result.reasons) == {name for name, value in result.items() if value is None}
    return result.reasons


def test_undefined_values_have_reasons() -> None:
    maps, masks = small()
    scores = [0.1, 0.2, 0.3]
    assert undefined(evaluate(maps, masks, scores=scores)) == {}

    nothing = undefined(evaluate(maps, np.zeros_like(masks), scores=scores))
    assert set(nothing.values()) == {"no anomalous image", "no anomalous pixel"}
    assert len(nothing) == 5 + 9

    full = undefined(evaluate(maps, np.ones_like(masks), scores=scores))
    assert full == {
        "image_auroc": "no normal image",
        "image_fpr95": "no normal image",
        "pixel_auroc": "no normal pixel",
        "pixel_fpr95": "no normal pixel",
        "pixel_aupro": "no normal pixel",
        "pixel_aupro@0.05": "no normal pixel",
        "pixel_aupimo": "no normal image",
    }
    assert undefined(evaluate(maps[1:], masks[1:], scores=scores[1:])) == {
        "image_auroc": "no normal image",
        "image_fpr95": "no normal image",
        "pixel_aupimo": "no normal image",
    }
    blind = undefined(evaluate(maps, None, [0, 1, 1], scores))
    assert set(blind.values()) == {"no masks given"} and len(blind) == 9
    unscored = undefined(evaluate(maps, masks))
    assert set(unscored.values()) == {"no image scores given"} and len(unscored) == 5
    empty = PixelMetrics()
    assert set(empty.reasons().values()) == {"no image"} and set(empty.compute().values()) == {None}
    assert empty.per_image() == []


def test_image_reasons() -> None:
    assert image_reasons(image_metrics([0.1, 0.2], [0, 1])) == {}
    one_kind = image_reasons(image_metrics([0.1, 0.2], [1, 1]))
    assert one_kind == dict.fromkeys(("image_auroc", "image_fpr95"), "no normal image")
    assert set(image_reasons(image_metrics([0.1, 0.2], [0, 0])).values()) == {"no anomalous image"}


def test_labels_that_disagree_with_masks_are_counted_once() -> None:
    maps, masks = small()
    with pytest.warns(MetricWarning) as caught:
        result = evaluate(maps, masks, labels=[1, 0, 0], scores=[3, 2, 1])
    assert [str(warning.message) for warning in caught] == result.warnings
    assert result.warnings == [
        "1 of 3 images labelled anomalous have an empty mask: "
        "image metrics follow the label, pixel metrics the mask",
        "2 of 3 images labelled normal have a mask: image metrics follow the label, pixel metrics the mask",
    ]
    assert result["image_auroc"] == 1
    assert result["pixel_auroc"] == evaluate(maps, masks)["pixel_auroc"]


def test_masks_may_be_missing_for_normal_images() -> None:
    maps, masks = small()
    assert evaluate(maps, [None, masks[1], masks[2]], [0, 1, 1]) == evaluate(maps, masks)
    with pytest.raises(MetricError, match="image '2' has no mask and is not labelled normal"):
        evaluate(maps, [None, masks[1], None], [0, 1, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("backend", ["numba", "numpy", "torch"])
def test_a_map_with_nan_or_infinity_is_named(bad: float, backend: str) -> None:
    maps, masks = small()
    wrong = maps.astype(np.float64)
    wrong[2, 0, 3] = bad
    with pytest.raises(MetricError, match=r"'shelf/2\.png' holds NaN or infinity"):
        evaluate(wrong, masks, image_ids=["a", "b", "shelf/2.png"], backend=backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": np.zeros((3, 4, 5))}, r"map of size \(4, 5\) but mask of size \(4, 4\)"),
        ({"maps": np.zeros((3, 2, 4, 4))}, r"shape \(2, 4, 4\), wanted \(H, W\)"),
        ({"maps": np.zeros((3, 4, 0)), "masks": np.zeros((3, 4, 0))}, r"shape \(4, 0\)"),
        ({"maps": np.full((3, 4, 4), "x")}, "not real numbers"),
        ({"maps": np.zeros((2, 4, 4))}, "one of each per image"),
        ({"masks": np.full((3, 4, 4), 0.5)}, "holds fractions"),
        ({"masks": np.full((3, 4, 4), "x")}, "mask of image '0' holds <U1"),
        ({"masks": None}, "nothing says which images are anomalous"),
        ({"labels": [0, 1, 2]}, "labels must be 0"),
        ({"labels": [0, 1]}, "one of each per image"),
        ({"scores": [0, np.nan, 1], "image_ids": ["a", "b", "c"]}, "image score at image 'b' is NaN"),
        ({"image_ids": ["a", "a", "b"]}, "image 'a' was added before"),
        ({"limits": (0.3, 0)}, "above 0 and at most 1"),
        ({"aupimo": (1e-4, 1e-5)}, "AUPIMO bounds"),
        ({"connectivity": 6}, "4- or 8-connected"),
        ({"resize": "nearest"}, "unknown resize policy"),
        ({"backend": "nunba"}, "Did you mean 'numba'"),
    ],
)
def test_senseless_input_is_refused(change: dict[str, Any], message: str) -> None:
    maps, masks = small()
    with pytest.raises(MetricError, match=message):
        evaluate(**({"maps": maps, "masks": masks} | change))


def test_senseless_storage_is_refused() -> None:
    with pytest.raises(MetricError, match="go together"):
        PixelMetrics(keep="source")
    with pytest.raises(MetricError, match="go together"):
        PixelMetrics(source=lambda name: None)
    with pytest.raises(MetricError, match="use ram, disk or source"):
        PixelMetrics(keep="cloud")
    with pytest.raises(MetricError, match="image score at position 1 is NaN"):
        image_metrics([1, np.inf], [0, 1])
    with pytest.raises(MetricError, match="2 image scores but 3 labels"):
        image_metrics([1, 2], [0, 1, 1])


def test_a_back_end_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = small()
    wanted = evaluate(maps, masks)
    monkeypatch.setitem(sys.modules, "zsadbench.metrics.numba_backend", None)
    assert choose_backend("auto", maps) == "numpy"
    assert evaluate(maps, masks, backend="auto") == wanted
    with pytest.raises(MetricError, match=r"'numba' does not load .*use the back end numpy"):
        evaluate(maps, masks, backend="numba")


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_maps_are_resized_only_when_asked(backend: str) -> None:
    random = np.random.default_rng(0)
    coarse = random.random((3, 7, 5)).astype(np.float32)
    masks = np.zeros((3, 28, 33), np.uint8)
    masks[0, 3:9, 4:20] = 255
    fine = [resize_bilinear(values, (28, 33)) for values in coarse]
    assert evaluate(coarse, masks, resize="bilinear", backend=backend) == evaluate(fine, masks)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(coarse)[:, None], (28, 33), mode="bilinear")
    assert np.abs(np.stack(fine) - wanted[:, 0].numpy()).max() < 1e-6


def test_any_nonzero_integer_is_anomalous() -> None:
    maps, masks = small()
    wanted = evaluate(maps, masks)
    for given in (masks * 255, masks.astype(np.int64) * 3, masks.astype(np.float32)):
        assert evaluate(maps, given) == wanted


def test_names_of_limits() -> None:
    assert [aupro_id(limit) for limit in (0.3, 0.05, 1.0, 1e-5)] == [
        "pixel_aupro",
        "pixel_aupro@0.05",
        "pixel_aupro@1",
        "pixel_aupro@1e-05",
    ]
    maps, masks = small()
    result = evaluate(maps, masks, limits=(1,), aupimo=None)
    assert "pixel_aupro@1" in result and "pixel_aupro" not in result and "pixel_aupimo" not in result


def test_neither_torch_nor_pandas_is_imported(tmp_path: Path) -> None:
    code = """
import sys
from zsadbench.metrics import METRICS
assert "numpy" not in sys.modules, "the titles alone need no numpy"
import numpy as np
from zsadbench.metrics import evaluate
evaluate(np.random.rand(2, 8, 8), np.eye(8, dtype=bool)[None].repeat(2, 0), [1, 1], [0.5, 1])
assert not {"torch", "pandas", "cv2", "sklearn"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
