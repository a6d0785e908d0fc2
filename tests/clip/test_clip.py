"""The towers against open_clip's own forward, and the steps methods are built from."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kit import tiny, tiny_clip
from zsadbench.clip.tokens import beginnings
from zsadbench.clip.towers import Block, Clip, PositionRule, load_clip
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone

NAMES = ("tiny-l14", "tiny-b16p")  # QuickGELU and GELU
SIZES = {"tiny-l14": 84, "tiny-b16p": 240}
PROMPTS = [
    "x",
    "a photo of a metal_nut.",
    "a jpeg corrupted photo of the capsule with damage, seen from above",
]


@cache
def reference(name: str, size: int | None = None) -> Any:
    """Return open_clip's own model with the same weights, positions resized by open_clip."""
    config = tiny_clip.CONFIGS[name]
    vision = config["vision_cfg"] | ({"image_size": size} if size else {})
    model = open_clip.model.CLIP(**(config | {"vision_cfg": vision})).eval()
    state = {key: torch.from_numpy(value) for key, value in tiny_clip.state_dict(name).items()}
    open_clip.model.resize_pos_embed(state, model)
    model.load_state_dict(state)
    return model


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def watched(block: Block, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the number of tokens whenever the block's MLP is computed."""
    rows: list[int] = []
    plain = block.mlp

    def mlp(x: Tensor) -> Tensor:
        rows.append(x.shape[1])
        return plain(x)

    monkeypatch.setattr(block, "mlp", mlp)
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_are_the_bits_the_goldens_were_made_with(name: str) -> None:
    wanted = tiny_clip.state_dict(name)
    found = tiny.clip(name).text.module.state_dict()
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[key].numpy(), wanted[key]) for key in wanted)


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_image_features_are_those_of_open_clip(name: str, count: int) -> None:
    images, vision = tiny.images(3, count, SIZES[name]), tiny.clip(name).vision
    assert relative(vision.encode(vision.embed(images)), reference(name).encode_image(images)) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_text_features_are_those_of_open_clip(name: str) -> None:
    clip = tiny.clip(name)
    full = open_clip.get_tokenizer("ViT-B-16-plus-240")(PROMPTS)
    tokens = clip.tokenize(PROMPTS)
    assert tokens.shape[1] < full.shape[1] == 77
    assert torch.equal(tokens, full[:, : tokens.shape[1]])
    assert relative(clip.text.encode(tokens), reference(name).encode_text(full)) < 1e-5


@torch.inference_mode()
def test_what_texts_begin_with_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = tiny.clip("tiny-b16p")
    texts = ["a photo of a nut.", "a photo of a bad nut.", "a photo", "a", "bolt", "a photo"]
    tokens = clip.tokenize(texts)
    first, nodes = beginnings(tokens)
    words = [row[: int(row.argmax()) + 1].tolist() for row in tokens]
    begun = {tuple(row[: end + 1]) for row in words for end in range(len(row))}
    assert len(first) == len(begun) == 16 < sum(map(len, words))
    assert nodes[2].tolist()[:4] == nodes[5].tolist()[:4] and nodes[0, 4] == nodes[1, 4] != nodes[0, 5]
    rows = watched(clip.text.blocks[0], monkeypatch)
    found = clip.text.encode(tokens)
    assert rows == [16]
    monkeypatch.undo()
    x = clip.text.embed(tokens)
    for each in clip.text.blocks:
        x = each(x)
    assert relative(found, clip.text.pool(x, tokens)) < 1e-5
    assert torch.equal(found[2], found[5])


@torch.inference_mode()
def test_positions_are_resized_as_open_clip_does_or_plainly() -> None:
    images = tiny.images(0, 2, 140)
    towers = {rule: tiny.clip("tiny-l14", position=rule).vision for rule in get_args(PositionRule)}
    wanted = reference("tiny-l14", 140).encode_image(images)
    off = {rule: relative(one.encode(one.embed(images)), wanted) for rule, one in towers.items()}
    assert off.pop("bicubic-antialias") < 1e-5
    assert min(off.values()) > 1e-3

    for rule in ("bicubic", "bilinear"):
        native = towers[rule].positions((6, 6))
        grid = native[1:].view(6, 6, -1).permute(2, 0, 1)[None]
        plain = F.interpolate(grid, (10, 7), mode=rule, align_corners=False)[0].flatten(1).T
        assert torch.equal(towers[rule].positions((10, 7))[1:], plain)
        assert torch.equal(towers[rule].positions((10, 7))[0], native[0])


@torch.inference_mode()
def test_an_input_need_not_be_square() -> None:
    vision = tiny.clip("tiny-l14").vision
    wide = tiny.images(0, 1, 84)[..., :56, :]
    assert vision.grid(wide) == (4, 6)
    assert vision.embed(wide).shape == (1, 25, 128)


def test_an_input_that_leaves_a_remainder_is_refused() -> None:
    with pytest.raises(MethodError, match="84 x 90 pixels does not divide into patches of 14"):
        tiny.clip("tiny-l14").vision.embed(torch.zeros(1, 3, 84, 90))


@torch.inference_mode()
def test_the_activation_is_what_the_caller_says() -> None:
    images = tiny.images(0, 1, 84)
    quick, plain = (tiny.clip("tiny-l14", which).vision for which in ("quick_gelu", "gelu"))
    assert relative(plain.encode(plain.embed(images)), quick.encode(quick.embed(images))) > 1e-2
    assert tiny.clip("tiny-l14").backbone.activation == "quick_gelu"
    assert tiny.clip("tiny-b16p").backbone.activation == "gelu"
    assert tiny.clip("tiny-l14", "gelu").digest != tiny.clip("tiny-l14", "quick_gelu").digest


@torch.inference_mode()
def test_the_class_token_alone_is_that_of_the_whole_block() -> None:
    vision = tiny.clip("tiny-b16p").vision
    x, block = vision.embed(tiny.images(0, 2, 240)), vision.blocks[3]
    assert relative(block.class_only(x, *block.qkv(x)), block(x)[:, :1]) < 1e-5


@torch.inference_mode()
def test_the_trace_keeps_what_was_asked_for() -> None:
    vision = load_clip(Backbone("tiny-b16p", "random")).vision
    vision.tap(stream=[0, 4], middle=[4], values=[4])
    batch = tiny.batch(tiny.images(0, 2, 240)[:, None].expand(2, 2, 3, 240, 240), ["a", "b"])
    trace = vision.trace(batch)
    x = vision.embed(batch.images.flatten(0, 1))
    assert torch.equal(trace.stream(0), x)
    for block in vision.blocks[:4]:
        x = block(x)
    q, k, v = vision.blocks[4].qkv(x)
    assert relative(trace.stream(4), x) < 1e-5
    assert relative(trace.middle(4), x + vision.blocks[4].attend(q, k, v)) < 1e-5
    assert relative(trace.values(4), vision.blocks[4].attend(v, v, v)) < 1e-5
    for block in vision.blocks[4:]:
        x = block(x)
    assert relative(trace.output, x) < 1e-5
    with pytest.raises(MethodError, match=r"clip.vision.tap\(values=\[5\]\)"):
        trace.values(5)


@torch.inference_mode()
def test_the_patches_of_the_last_block_wait_until_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    vision, batch = (
        load_clip(Backbone("tiny-b16p", "random")).vision,
        tiny.batch(tiny.images(0, 2, 48), ["a"]),
    )
    rows = watched(vision.blocks[-1], monkeypatch)
    trace = vision.trace(batch)
    token = trace.class_token
    assert rows == [1]
    assert relative(token, trace.output[:, 0]) < 1e-5
    assert trace.output is trace.output and trace.class_token is token
    assert rows == [1, 10]


@torch.inference_mode()
def test_methods_share_the_walk_over_a_batch() -> None:
    vision = tiny.clip("tiny-b16p").vision
    one, other = (tiny.batch(tiny.images(seed, 1, 240), ["a"]) for seed in (0, 1))
    assert vision.trace(one) is vision.trace(one)
    assert vision.trace(other) is not vision.trace(one)
    kept = vision.trace(one)
    vision.forget()
    assert vision.trace(one) is not kept


@torch.inference_mode()
def test_shared_steps_are_timed_for_all_who_use_them() -> None:
    vision = tiny.clip("tiny-b16p").alone().vision
    now = iter(range(100))
    vision.clock = lambda: float(next(now)) ** 2  # 0, 1, 4, 9 ...
    batch = tiny.batch(tiny.images(0, 1, 240), ["a"])
    assert vision.took() == (0, 0)
    vision.trace(batch)
    assert vision.took() == (1, 1)
    assert vision.took() == (0, 0)  # of a method that walks for itself
    vision.trace(batch).shared("views", lambda: batch.images)
    assert vision.took() == (5, 6)
    vision.trace(batch).shared("views", lambda: batch.images)
    assert vision.took() == (0, 6)
    vision.trace(tiny.batch(tiny.images(1, 1, 240), ["a"]))
    assert vision.took() == (9, 9)


def test_a_tower_alone_keeps_nothing_of_what_others_asked_for() -> None:
    whole = tiny.clip("tiny-b16p").alone()  # other tests have tapped the one that all share
    whole.vision.tap(values=[4])
    alone = whole.alone()
    trace = alone.vision.trace(tiny.batch(tiny.images(0, 1, 240), ["a"]))
    with pytest.raises(MethodError, match="kept no 'values' of block 4"):
        trace.values(4)
    alone.vision.tap(values=[5])
    assert 5 not in whole.vision._taps["values"] and whole.vision.proj is alone.vision.proj


def half(dtype: torch.dtype) -> Clip:
    return load_clip(Backbone("tiny-b16p", "random"), dtype=dtype)


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_the_image_tower_runs_in_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    clip, images = half(dtype), tiny.images(0, 2, 240)
    found = clip.vision.encode(clip.vision.embed(images))
    assert found.dtype == dtype
    assert relative(found.float(), reference("tiny-b16p").encode_image(images)) < tolerance
    assert clip.text.encode(clip.tokenize(PROMPTS)).dtype == torch.float32


def test_the_longest_prompt_that_fits_is_kept_and_a_longer_one_refused() -> None:
    clip = tiny.clip("tiny-b16p")
    assert clip.tokenize(["a " * 75]).shape == (1, 77)
    with pytest.raises(MethodError, match=r"exceeds 77 tokens: 'a a .*shorten"):
        clip.tokenize(["short", "a " * 76])
    with pytest.raises(MethodError, match="exceeds 77 tokens"):
        clip.tokenize(["a " * 500])


def test_gradients_flow_through_the_text_steps() -> None:
    clip = tiny.clip("tiny-b16p")
    tokens = clip.tokenize(["a photo"])
    x = clip.text.embed(tokens).requires_grad_()
    y = x
    for block in clip.text.blocks:
        y = block(y)
    clip.text.pool(y, tokens).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and float(x.grad.abs().max()) > 0
    assert all(p.grad is None for p in clip.text.module.parameters())
