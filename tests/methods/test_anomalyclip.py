"""AnomalyCLIP: what its variants change, what it refuses, and that batches do not matter."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from methods._prompts import checkpoint_shapes, encode_prompts
from methods._shared import anomaly_probability, as_grid, deep_vectors
from methods.anomalyclip import AnomalyClip, AnomalyClipObserver
from tests.kit import tiny
from zsadbench.clip.checkpoints import Provenance, save_checkpoint
from zsadbench.clip.towers import load_clip
from zsadbench.errors import MethodError, WeightsError
from zsadbench.inputs import Batch
from zsadbench.maps import render
from zsadbench.method.card import method_cards
from zsadbench.method.protocol import Evidence
from zsadbench.method.registry import resolve

CATEGORIES = ["bottle", "screw", "bottle"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("anomalyclip") / "prompts.safetensors"
    shapes = checkpoint_shapes(AnomalyClip(), tiny.clip("tiny-l14", "quick_gelu", "bilinear"))
    tensors = {name: tiny.draw(name, shape, 0.5) for name, shape in shapes.items()}
    save_checkpoint(path, tensors, Provenance("anomalyclip"))
    return path


def method(checkpoint: Path | None, variant: str = "") -> AnomalyClip:
    settings = {"checkpoint": str(checkpoint or "")}
    spec = f"anomalyclip{variant}"
    return cast(AnomalyClip, resolve(spec, backbone="tiny-l14", weights="random", settings=settings).method)


def observer(chosen: AnomalyClip) -> AnomalyClipObserver:
    clip = tiny.clip("tiny-l14", "quick_gelu", chosen.backbone.position)
    return chosen.prepare(clip, {"bottle": "bottle", "screw": "screw"})


def batch(size: int = 84) -> Batch:
    return tiny.batch(tiny.images(5, 3, size), CATEGORIES)


def observe(checkpoint: Path, variant: str = "", size: int = 84) -> Evidence:
    return observer(method(checkpoint, variant)).observe(batch(size))


def test_every_variant_changes_what_its_summary_says(checkpoint: Path) -> None:
    reference = observe(checkpoint, size=112)
    changed = {}
    for name in method_cards()["anomalyclip"].variants:
        found = observe(checkpoint, f"@{name}", size=112)
        changed[name] = {key for key in found if not torch.equal(found[key], reference[key])}
    assert changed == {
        "legacy-taps": {"map"},
        "four-layers": {"map"},
        "ln-post": {"score"},
        "full-precision": {"map", "score"},
        "no-dpam": {"map"},
        "bicubic-positions": {"map", "score"},
        "rgb-first": set(),  # acts before the tower
    }
    assert method(checkpoint, "@rgb-first").preprocess.rgb == "before"


def test_legacy_taps_are_four_times_the_last_block(checkpoint: Path) -> None:
    reference, legacy = observe(checkpoint), observe(checkpoint, "@legacy-taps")
    assert torch.equal(legacy["map"], 4 * reference["map"])
    assert torch.equal(legacy["score"], reference["score"])


def test_without_value_stream_the_ordinary_tokens_are_compared(checkpoint: Path) -> None:
    found = observer(method(checkpoint, "@no-dpam"))
    inputs = batch()
    tokens = found.clip.vision.project(found.clip.vision.trace(inputs).output[:, 1:])
    wanted = anomaly_probability(tokens, found.anchors.of(CATEGORIES), 1 / 0.07)
    assert torch.allclose(found.observe(inputs)["map"], as_grid(wanted), atol=1e-6)


def test_layers_before_the_value_stream_are_ordinary(checkpoint: Path) -> None:
    found = observer(dataclasses.replace(method(checkpoint), features=(3, 5, 6)))
    trace = found.clip.vision.trace(batch())
    local = found.local_tokens(trace)
    x = found.clip.vision.embed(batch().images[:, 0])
    for number, block in enumerate(found.clip.vision.blocks[:6], start=1):
        _, _, v = block.qkv(x)
        first_values = block.attend(v, v, v)
        before, x = x, block(x)
        if number in (3, 5):
            assert torch.allclose(local[number], found.clip.vision.project(x), atol=1e-5)
    assert torch.allclose(local[6], found.clip.vision.project(before + first_values), atol=1e-5)


def test_value_stream_may_begin_at_the_first_block(checkpoint: Path) -> None:
    found = observer(dataclasses.replace(method(checkpoint), features=(1,), value_from=1))
    x = found.clip.vision.embed(batch().images[:, 0])
    _, _, v = found.clip.vision.blocks[0].qkv(x)
    wanted = found.clip.vision.project(x + found.clip.vision.blocks[0].attend(v, v, v))
    local = found.local_tokens(found.clip.vision.trace(batch()))
    assert torch.allclose(local[1], wanted, atol=1e-5)


def test_deep_prompts_are_rounded_once_per_sentence() -> None:
    prompt = torch.tensor([[[1.0006]]], requires_grad=True)
    rounded = deep_vectors(prompt, 2, half=True)
    assert rounded.dtype == torch.float32 and rounded[0].item() == 1.0009765625
    (found,) = torch.autograd.grad(rounded, prompt, torch.tensor([1.0006, 1.0004]).view(2, 1, 1))
    assert found.item() == 1.0009765625 + 1.0
    assert torch.equal(deep_vectors(prompt, 2, half=False)[1], prompt[0])


def test_gradients_reach_what_a_sentence_is_made_of(checkpoint: Path) -> None:
    chosen, clip = method(checkpoint), tiny.clip("tiny-l14", "quick_gelu", "bilinear")
    learned = {
        name: tiny.draw(name, shape, 0.5).requires_grad_()
        for name, shape in checkpoint_shapes(chosen, clip).items()
    }
    assert len(learned) == 10 and learned["compound_prompts_text.7"].shape == (4, 128)
    normal, _ = encode_prompts(chosen, clip, learned)
    found = torch.autograd.grad(normal.sum(), list(learned.values()))
    reached = {name: bool(value.any()) for name, value in zip(learned, found, strict=True)}
    assert reached == {**dict.fromkeys(learned, True), "ctx_neg": False}


def test_the_category_never_reaches_the_prompts(checkpoint: Path) -> None:
    table = observer(method(checkpoint)).anchors.table
    assert torch.equal(table["bottle"], table["screw"])
    assert torch.allclose(table["bottle"].norm(dim=-1), torch.ones(2))


def test_batches_and_order_do_not_matter(checkpoint: Path) -> None:
    found, inputs = observer(method(checkpoint, "@four-layers")), tiny.images(5, 3, 84)
    together = found.observe(tiny.batch(inputs, CATEGORIES))
    alone = [found.observe(tiny.batch(inputs[i : i + 1], CATEGORIES[i : i + 1])) for i in range(3)]
    turned = found.observe(tiny.batch(inputs.flip(0), CATEGORIES[::-1]))
    for key, value in together.items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, torch.cat([one[key] for one in alone]), atol=1e-5)
        assert torch.allclose(value, turned[key].flip(0), atol=1e-5)
    assert together["map"].shape == (3, 6, 6) and together["score"].shape == (3,)
    assert float(together["map"].min()) > 0 and float(together["map"].max()) < 4


def test_half_precision_tower_gives_close_float32_evidence(checkpoint: Path) -> None:
    chosen = method(checkpoint)
    half = chosen.prepare(load_clip(chosen.backbone, dtype=torch.bfloat16), {"bottle": "", "screw": ""})
    found, wanted = half.observe(batch()), observe(checkpoint)
    for key, value in wanted.items():
        assert found[key].dtype == torch.float32
        assert torch.allclose(found[key], value, atol=0.05)


def test_smoothing_follows_the_evaluation_size(checkpoint: Path) -> None:
    chosen = dataclasses.replace(method(checkpoint), sigma=2.0)
    grid = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    wanted: Tensor = render(grid, (168, 168), sigma=4.0)
    assert torch.equal(chosen.maps({"map": grid}, (168, 168)), wanted)


def test_score_is_the_class_token_alone() -> None:
    score = torch.tensor([0.2, 0.9])
    evidence = {"score": score, "map": torch.ones(2, 6, 6)}
    assert torch.equal(AnomalyClip().image_scores(evidence, torch.tensor([[0.0, 1.0], [0.0, 0.1]])), score)


def test_other_backbones_scale_layers_and_sigma() -> None:
    found = cast(
        AnomalyClip, resolve("anomalyclip@four-layers", backbone="ViT-B-16", weights="random").method
    )
    assert found.features == (3, 6, 9, 12) and found.value_from == 3
    assert found.sigma == 4.0 * 224 / 518 and found.backbone.position == "bilinear"


def test_without_checkpoint_the_error_says_how_to_come_by_one() -> None:
    with pytest.raises(MethodError, match=r"zsad train --method anomalyclip.*zsad checkpoints import"):
        observer(method(None))


def test_checkpoint_of_another_shape_is_refused(checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match=r"ctx_pos is 1 x 1 x 12 x 128 in the file, 1 x 1 x 8 x 128"):
        observer(dataclasses.replace(method(checkpoint), context=8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": (24, 25)}, "not all among 24 image blocks"),
        ({"features": ()}, "not all among"),
        ({"value_from": 0}, "not all among"),
        ({"deep_prompts": 12}, "choose 0 to 11"),
        ({"deep_length": 13}, "do not fit the 12 learned ones"),
    ],
)
def test_parameters_that_do_not_fit_are_named(checkpoint: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        observer(dataclasses.replace(method(checkpoint), **fields))


def test_unknown_category_is_refused(checkpoint: Path) -> None:
    with pytest.raises(MethodError, match="category 'zipper' was not prepared"):
        observer(method(checkpoint)).observe(tiny.batch(tiny.images(0, 1, 84), ["zipper"]))
