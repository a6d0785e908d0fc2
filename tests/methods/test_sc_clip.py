"""SC-CLIP: what its variants change, its windows, its outliers and what it refuses."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F

from methods.anoclip import AnoClip
from methods.sc_clip import ScClip, aggregate, outlier_factor, outliers, repaired, window_boxes
from tests.kit import tiny
from zsadbench.errors import MethodError, ZsadError
from zsadbench.method import Evidence, method_cards, resolve

CATEGORIES = ["carpet", "metal_nut", "carpet"]


def method(variant: str = "", **settings: str) -> ScClip:
    given = {"size": "126", "window": "84", **settings}
    return cast(
        ScClip, resolve(f"sc-clip{variant}", backbone="tiny-l14", weights="random", settings=given).method
    )


def observe(chosen: ScClip) -> Evidence:
    batch = tiny.batch(tiny.images(5, 3, chosen.preprocess.size), CATEGORIES)
    observer = chosen.prepare(
        tiny.clip("tiny-l14", "quick_gelu"), {"carpet": "carpet", "metal_nut": "metal nut"}
    )
    return {**observer.observe(batch), "frame": batch.frame}


def test_every_variant_changes_what_its_summary_says() -> None:
    reference = observe(method())
    changed = {}
    for name in method_cards()["sc-clip"].variants:
        found = observe(method(f"@{name}"))
        changed[name] = {key for key in found if not torch.equal(found[key], reference[key])}
    assert changed == {
        "two": {"difference", "score"},
        "anoclip": {"difference", "score"},
        "whole": set(),  # the size is set by hand here
        "norm": {"difference"},
        "unrepaired": {"difference"},
        "max": set(),  # acts on the map
    }
    extrema = torch.tensor([[0.0, 0.1], [0.0, 0.9], [0.0, 0.5]])
    assert torch.equal(method("@max").image_scores(reference, extrema), extrema[:, 1])
    assert torch.equal(method().image_scores(reference, extrema), reference["score"])


def test_the_whole_is_one_window_of_the_towers_own_size() -> None:
    for backbone, size in (("ViT-B-16", 224), ("ViT-L-14", 224), ("ViT-L-14-336", 336), ("demo", 96)):
        found = resolve("sc-clip@whole", backbone=backbone, weights="random").method
        assert found.preprocess.size == size
    assert resolve("sc-clip", backbone="ViT-L-14", weights="openai").method.preprocess.size == 336


def test_blocks_follow_the_depth() -> None:
    small = cast(ScClip, resolve("sc-clip", backbone="demo", weights="demo").method)
    assert (small.middle, small.early, small.fuse, small.class_share) == (5, 2, (2, 7), 0.3)
    large = cast(ScClip, resolve("sc-clip", backbone="ViT-L-14", weights="openai").method)
    assert (large.middle, large.early, large.fuse, large.class_share) == (16, 6, (8, 19), 0.1)


def test_windows_cover_the_image_and_the_last_ones_are_flush() -> None:
    assert window_boxes((112, 84), 84, 0.5) == [(0, 0, 84, 84), (28, 0, 112, 84)]
    assert window_boxes((336, 336), 224, 0.5)[-1] == (112, 112, 336, 336)
    assert len(window_boxes((336, 336), 224, 0.5)) == 4
    assert window_boxes((70, 56), 84, 0.5) == [(0, 0, 70, 56)]


def test_one_window_and_the_shared_walk_give_what_a_walk_of_its_own_gives() -> None:
    alone = observe(method(size="84"))
    windows = observe(method(size="126"))
    assert alone["difference"].shape == (3, 1, 6, 6) and windows["difference"].shape == (3, 4, 6, 6)
    chosen, clip = method(size="126"), tiny.clip("tiny-l14", "quick_gelu")
    images = tiny.images(5, 3, 126)
    first = tiny.batch(images[..., :84, 42:], CATEGORIES)  # the second window, as an image of its own
    again = chosen.prepare(clip, {"carpet": "carpet", "metal_nut": "metal nut"}).observe(first)
    assert torch.allclose(again["difference"][:, 0], windows["difference"][:, 1], atol=1e-6)


def test_overlapping_windows_are_averaged() -> None:
    chosen = method()
    grids = torch.stack([torch.full((6, 6), float(value)) for value in (1, 2, 3, 4)])
    frame = chosen.pasted(grids, torch.tensor(84.0), torch.tensor([126.0, 126.0]))
    assert float(frame[0, 0]) == 1 and float(frame[0, 63]) == 1.5
    assert float(frame[63, 63]) == 2.5 and float(frame[125, 125]) == 4


def test_outliers_are_those_far_from_their_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 40, 8, generator=generator)
    tokens[0, 7] += 9
    tokens[1, 31] -= 9
    found = outliers(method(), tokens)
    assert bool(found[0, 7]) and bool(found[1, 31])
    assert found.sum(dim=1).tolist() == [2, 2]  # ranked above 0.95 of 39
    assert outliers(method("@norm"), tokens).sum(dim=1).tolist() == [10, 10]
    assert not outliers(method("@unrepaired"), tokens).any()
    squared = torch.cdist(tokens.double(), tokens.double()) ** 2
    nearest = squared.topk(31, largest=False)
    reach = nearest.values[..., -1]
    wanted = torch.stack(
        [(r[:, None] / r[i[:, 1:]]).mean(1) for r, i in zip(reach, nearest.indices, strict=True)]
    )
    assert torch.allclose(outlier_factor(tokens, 30), wanted)


def test_equal_patches_have_no_outlier_and_a_finite_factor() -> None:
    tokens = torch.ones(1, 40, 8)
    assert bool(torch.isfinite(outlier_factor(tokens, 30)).all())
    assert not outliers(method(), tokens).any()


def test_only_good_neighbours_mend_a_patch() -> None:
    tokens = torch.arange(9.0)[None, :, None].expand(1, 9, 2).clone()
    bad = torch.zeros(1, 9, dtype=torch.bool)
    bad[0, [0, 1]] = True
    found = repaired(tokens, bad, (3, 3))
    assert float(found[0, 0, 0]) == (3 + 4) / 2  # its other neighbour, 1, is bad itself
    assert float(found[0, 1, 1]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert torch.equal(found[0, 2:], tokens[0, 2:])
    assert torch.equal(repaired(tokens, torch.ones(1, 9, dtype=torch.bool), (3, 3)), tokens)


def test_aggregation_weighs_by_rows() -> None:
    similar = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    found = aggregate(similar, torch.tensor([[[2.0], [4.0]]]))
    assert found[0, 0, 0] == pytest.approx(3.0, abs=1e-5) and found[0, 1, 0] == 0


def test_prompts_are_normalised_before_their_mean() -> None:
    chosen, clip = method("@two"), tiny.clip("tiny-l14", "quick_gelu")
    table = chosen.prepare(clip, {"carpet": "carpet"}).anchors.table["carpet"]
    tokens = clip.tokenize(["a photo of a normal carpet", "a photo of an anomalous carpet"])
    assert torch.allclose(table, F.normalize(clip.text.encode(tokens), dim=-1), atol=1e-6)
    assert method("@anoclip").texts("carpet", "carpet") == AnoClip().prompts("carpet", "carpet")


@pytest.mark.parametrize("settings", [{"middle": "23"}, {"fuse": "8,24"}, {"fuse": "9,9"}])
def test_blocks_that_are_not_read_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(MethodError, match="must be blocks from 0 to 22"):
        observe(method(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": "0"}, "stride=0: must be a number above 0, up to 1"),
        ({"neighbours": "0"}, "neighbours=0: must be a whole number from 1"),
        ({"early": "-1"}, "early=-1: must be a whole number from 0"),
        ({"contamination": "1"}, "contamination must be a share between 0 and 1"),
    ],
)
def test_values_that_mean_nothing_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ZsadError, match=message):
        method(**settings)
