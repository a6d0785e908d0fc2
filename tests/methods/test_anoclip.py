"""AnoCLIP's prompts, views, tiles and edges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.anoclip import AnoClip, augmentations, box_mean, stitch
from tests.kit import tiny
from zsadbench.clip.towers import load_clip
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Batch, Preprocess
from zsadbench.method.protocol import Evidence

METHOD = AnoClip(
    Backbone("tiny-b16p", "random"), Preprocess(96, interpolation="bilinear"), templates=("a photo of {}",)
)
TILED = replace(METHOD, preprocess=replace(METHOD.preprocess, tiles="ends", resize="shortest"))
WORDS = {"nut": "metal_nut", "cable": "cable"}


def observe(method: AnoClip, batch: Batch) -> Evidence:
    with torch.inference_mode():
        return method.prepare(tiny.clip("tiny-b16p"), WORDS).observe(batch)


def test_prompts_go_template_by_template() -> None:
    method = AnoClip()
    normal, anomalous = method.prompts("bottle", "bottle")
    assert len(normal) == len(anomalous) == 3 * 22 * 7
    assert normal[:2] == [
        "a cropped industrial photo of the normal bottle",
        "a cropped industrial photo of the flawless bottle",
    ]
    assert normal[7] == "a cropped industrial photo of a normal bottle"
    assert anomalous[-1] == "a manufacturing image of a bottle with damage for anomaly detection"
    assert "an industrial image of a damaged bottle" in anomalous


def test_textures_have_templates_of_their_own() -> None:
    method = AnoClip()
    textures, objects = method.prompts("carpet", "rug")[0], method.prompts("bottle", "rug")[0]
    assert (
        "a textural photo of the normal rug" in textures and "a surface picture of a normal rug" in textures
    )
    assert not any("manufacturing image" in prompt for prompt in textures)
    assert not any("textural" in prompt for prompt in objects)


def test_views_turn_shift_flip_and_grey() -> None:
    images = tiny.images(0, 2, 97)
    views = augmentations(images)
    assert len(views) == 21 and all(view.shape == images.shape for view in views)
    assert torch.equal(views[16], images.flip(-1))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    assert torch.allclose(views[17], (images * weights).sum(1, keepdim=True).expand_as(images), atol=1e-6)
    assert [torch.equal(views[17 + k], images.rot90(k, (2, 3))) for k in (1, 2, 3)] == [True] * 3
    flat = images[:, :, 40:41].expand_as(images)  # rows are equal, so only the shift along x shows
    shifted = augmentations(flat)[8][..., 40, :70]  # by 0.2 of half the width: 9.6 pixels
    assert torch.allclose(shifted, 0.4 * flat[..., 40, 9:79] + 0.6 * flat[..., 40, 10:80], atol=1e-4)


def test_one_view_is_the_image_itself() -> None:
    images = tiny.images(0, 2, 96)
    many = observe(METHOD, tiny.batch(images, ["nut", "cable"]))
    one = observe(replace(METHOD, augment=False), tiny.batch(images, ["nut", "cable"]))
    assert many["views"].shape == (2, 22) and one["views"].shape == (2, 1)
    assert torch.allclose(many["views"][:, :1], one["views"], atol=1e-6)
    assert torch.equal(many["map"], one["map"])
    assert torch.allclose(METHOD.image_scores(many, torch.zeros(2, 2)), many["views"].mean(1))


def test_neither_batch_nor_order_change_a_result() -> None:
    images = tiny.images(0, 3, 96)
    together = observe(METHOD, tiny.batch(images, ["nut", "cable", "nut"]))
    alone = observe(METHOD, tiny.batch(images[1:2], ["cable"]))
    for name, value in alone.items():
        assert value.dtype == torch.float32
        assert torch.allclose(together[name][1:2], value, atol=1e-6)


@torch.inference_mode()
def test_the_local_stream_is_a_sum_over_the_last_blocks() -> None:
    clip = load_clip(Backbone("tiny-b16p", "random"))
    batch = tiny.batch(tiny.images(0, 1, 96), ["nut"])
    for dual, first in ((12, 0), (2, 10), (40, 0)):
        observer = replace(METHOD, dual_blocks=dual).prepare(clip, WORDS)
        clip.vision.forget()
        feature, tokens = observer.dual_path(batch)
        x = clip.vision.embed(batch.images[:, 0])
        local = torch.zeros_like(x)
        for number, block in enumerate(clip.vision.blocks):
            if number == first:
                local = x
            _, _, v = block.qkv(x)
            if number >= first:
                local = local + block.attend(v, v, v)
            x = block(x)
        assert torch.allclose(tokens, clip.vision.project(local[:, 1:]), atol=1e-4)
        assert torch.allclose(feature, clip.vision.project(x[:, 0]), atol=1e-4)


def tiled_batch(images: Tensor, width: int) -> Batch:
    """Return frames of 96 x ``width``, cut in two tiles at their ends."""
    wide = torch.cat([images, images.flip(-1)], dim=-1)[..., :width]
    tiles = torch.stack([wide[..., :96], wide[..., -96:]], dim=1)
    batch = tiny.batch(tiles, ["nut"] * len(images))
    return Batch(tiles, batch.boxes, torch.tensor([[96, width]] * len(images)), batch.keys, batch.categories)


def test_tiles_are_views_and_their_maps_are_stitched() -> None:
    batch = tiled_batch(tiny.images(0, 2, 96), 128)
    evidence = {**observe(TILED, batch), "frame": batch.frame}
    assert evidence["views"].shape == (2, 2) and evidence["map"].shape == (2, 2, 6, 6)
    own = TILED.maps(evidence, (96, 128))
    tiles = [METHOD.maps({"map": evidence["map"][:, t : t + 1]}, (96, 96)) for t in (0, 1)]
    assert torch.equal(own[..., :32], tiles[0][..., :32])
    assert torch.equal(own[..., 96:], tiles[1][..., 64:])
    assert torch.allclose(own[..., 32:96], (tiles[0][..., 32:] + tiles[1][..., :64]) / 2)
    resized = F.interpolate(own[:, None], (50, 60), mode="bilinear")[:, 0]
    assert torch.allclose(TILED.maps(evidence, (50, 60)), resized, atol=1e-6)


def test_stitching_two_equal_tiles_is_their_mean_and_portraits_are_turned() -> None:
    first, last = torch.rand(2, 8, 8).unbind()
    assert torch.equal(stitch(first, last, (8, 8)), (first + last) / 2)
    assert torch.equal(stitch(first, last, (11, 8)), stitch(first.mT, last.mT, (8, 11)).mT)
    assert torch.equal(stitch(first, last, (16, 8)), torch.cat([first, last]))
    assert torch.equal(stitch(first, last, (11, 8))[:3], first[:3])


def test_a_frame_need_not_be_square() -> None:
    wide = tiny.batch(tiny.images(0, 1, 96)[..., :48, :], ["nut"])
    evidence = observe(replace(METHOD, augment=False), wide)
    assert evidence["map"].shape == (1, 1, 3, 6)
    assert METHOD.maps(evidence, (48, 96)).shape == (1, 48, 96)


def test_the_mean_repeats_the_edge() -> None:
    grid = torch.arange(9.0).view(1, 1, 3, 3)
    found = box_mean(grid)[0, 0]
    assert float(found[1, 1]) == pytest.approx(4.0)
    assert float(found[0, 0]) == pytest.approx((4 * 0 + 2 * 1 + 2 * 3 + 4) / 9)


def test_a_local_stream_needs_a_block() -> None:
    with pytest.raises(MethodError, match="dual_blocks must be at least 1"):
        replace(METHOD, dual_blocks=0)


def test_a_category_that_was_not_prepared_is_refused() -> None:
    with pytest.raises(MethodError, match="category 'zipper' was not prepared"):
        observe(METHOD, tiny.batch(tiny.images(0, 1, 96), ["zipper"]))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_evidence_nearby(dtype: torch.dtype) -> None:
    batch = tiny.batch(tiny.images(0, 1, 96), ["nut"])
    found = METHOD.prepare(load_clip(METHOD.backbone, dtype=dtype), WORDS).observe(batch)
    wanted = observe(METHOD, batch)
    for name in wanted:
        assert found[name].dtype == torch.float32
        assert float((found[name] - wanted[name]).abs().max()) < 1e-2
