"""WinCLIP's windows and means against loops, and its edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import harmonic_mean
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.winclip import WinClip, aggregate, embed_windows, window_index
from tests.kit import tiny
from zsadbench.clip.towers import load_clip
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Preprocess
from zsadbench.method.protocol import Evidence

METHOD = WinClip(Backbone("tiny-b16p", "random"), Preprocess(96), scales=(2, 3))
WORDS = {"nut": "metal nut", "cable": "cable"}


def observe(method: WinClip, images: Tensor, categories: list[str]) -> Evidence:
    with torch.inference_mode():
        observer = method.prepare(tiny.clip("tiny-b16p"), WORDS)
        return observer.observe(tiny.batch(images, categories))


def test_windows_are_row_major_and_keep_every_patch() -> None:
    index = window_index((3, 4), 2)
    assert index.tolist()[:4] == [[0, 1, 4, 5], [1, 2, 5, 6], [2, 3, 6, 7], [4, 5, 8, 9]]
    assert index.shape == (6, 4)
    assert window_index((15, 15), 2).shape == (196, 4) and window_index((15, 15), 3).shape == (169, 9)
    assert window_index((3, 3), 3).tolist() == [list(range(9))]


@pytest.mark.parametrize("stride", [2, 3, 4, 9])
def test_a_stride_ends_flush_with_the_edge(stride: int) -> None:
    index = window_index((7, 8), 3, stride)
    assert set(index[0].tolist()) == {0, 1, 2, 8, 9, 10, 16, 17, 18}
    assert int(index.max()) == 7 * 8 - 1
    assert sorted({top // 8 for top in index[:, 0].tolist()}) == sorted({*range(0, 5, stride), 4})


@pytest.mark.parametrize("k", [0, 4, 5])
def test_a_window_larger_than_the_grid_is_refused(k: int) -> None:
    with pytest.raises(MethodError, match=f"a window of {k} patches does not fit a grid of 3 x 9"):
        window_index((3, 9), k)


@torch.inference_mode()
def test_a_window_is_its_patches_with_their_own_positions() -> None:
    clip = tiny.clip("tiny-b16p")
    tokens = clip.vision.embed(tiny.images(0, 2, 96))
    found = embed_windows(clip, tokens, window_index((6, 6), 2))
    corner = tokens[1:, [0, 9, 10, 15, 16]]  # row 1, column 2 of the second image
    assert torch.allclose(found[1, 7], clip.vision.encode(corner)[0], atol=1e-5)


def brute_force(scores: Tensor, grid: tuple[int, int], k: int, mean: str) -> list[list[float]]:
    means: dict[str, Callable[[list[float]], Any]] = {
        "harmonic": harmonic_mean,
        "arithmetic": np.mean,
        "harmonic_normal": lambda values: 1 - harmonic_mean([1 - v for v in values]),
    }
    columns = grid[1] - k + 1

    def cover(row: int, column: int) -> list[float]:
        return [
            float(scores[top * columns + left])
            for top in range(grid[0] - k + 1)
            for left in range(columns)
            if top <= row < top + k and left <= column < left + k
        ]

    return [[float(means[mean](cover(r, c))) for c in range(grid[1])] for r in range(grid[0])]


@pytest.mark.parametrize("mean", ["harmonic", "arithmetic", "harmonic_normal"])
def test_each_patch_gets_the_mean_of_the_windows_it_lies_in(mean: str) -> None:
    scores = torch.from_numpy(np.random.default_rng(0).uniform(0.1, 0.9, (2, 3 * 4)))
    found = aggregate(scores, window_index((5, 6), 3), (5, 6), mean)
    for image in (0, 1):
        assert np.allclose(found[image], brute_force(scores[image], (5, 6), 3, mean), rtol=1e-12)


def test_a_score_of_zero_gives_zero_and_not_nan() -> None:
    scores = torch.tensor([[0.0, 0.5, 0.5, 0.5]])
    found = aggregate(scores, window_index((3, 3), 2), (3, 3))
    assert torch.equal(found[0, :2, :2], torch.zeros(2, 2).double())
    assert torch.equal(found[0, 2], torch.full((3,), 0.5).double())


def test_windows_of_one_image_differ() -> None:
    """Sequence-first attention would run across windows and give a constant map without an error."""
    grid = observe(METHOD, tiny.images(0, 1, 96), ["nut"])["map"]
    assert float(grid.std()) > 1e-3


def test_the_map_is_the_mean_over_windows_scales_and_the_image() -> None:
    images, categories = tiny.images(0, 2, 96), ["nut", "cable"]
    evidence = observe(METHOD, images, categories)
    single = [
        observe(replace(METHOD, scales=(k,), image_scale_term=False), images, categories) for k in (2, 3)
    ]
    inverse = 1 / single[0]["map"] + 1 / single[1]["map"] + 1 / evidence["score"][:, None, None]
    assert torch.allclose(evidence["map"], 3 / inverse, rtol=1e-5)
    assert all(one.dtype == torch.float32 for one in evidence.values())


def test_neither_batch_nor_chunks_change_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiny.images(0, 3, 96)
    together = observe(METHOD, images, ["nut", "cable", "nut"])
    monkeypatch.setattr("methods.winclip.TOKENS_PER_FORWARD", {"cpu": 37})
    alone = observe(METHOD, images[1:2], ["cable"])
    for name, value in alone.items():
        assert torch.allclose(together[name][1:2], value, atol=1e-5)


def test_a_grid_need_not_be_square() -> None:
    wide = tiny.images(0, 1, 96)[..., :48, :]
    assert observe(METHOD, wide, ["nut"])["map"].shape == (1, 3, 6)


def test_the_image_score_is_the_class_token_or_the_map_maximum() -> None:
    evidence = {"score": torch.tensor([0.2]), "map": torch.zeros(1, 2, 2)}
    extrema = torch.tensor([[0.1, 0.9]])
    assert METHOD.image_scores(evidence, extrema).tolist() == pytest.approx([0.2])
    other = replace(METHOD, image_score="map_maximum")
    assert other.image_scores(evidence, extrema).tolist() == pytest.approx([0.9])


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"stride": 0}, {"scales": ()}])
def test_impossible_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match="temperature must be above 0, stride at least 1"):
        replace(METHOD, **wrong)


def test_a_category_that_was_not_prepared_is_refused() -> None:
    with pytest.raises(MethodError, match="category 'zipper' was not prepared; prepared: nut, cable"):
        observe(METHOD, tiny.images(0, 1, 96), ["zipper"])


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_evidence_nearby(dtype: torch.dtype) -> None:
    images = tiny.images(0, 1, 96)
    observer = METHOD.prepare(load_clip(METHOD.backbone, dtype=dtype), WORDS)
    found, wanted = observer.observe(tiny.batch(images, ["nut"])), observe(METHOD, images, ["nut"])
    for name in wanted:
        assert found[name].dtype == torch.float32
        assert float((found[name] - wanted[name]).abs().max()) < 0.1
