"""FAPrompt: what its variants change, which patches its prompts see, its losses and its authors' file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods._training_faprompt import PriorRecipe, diversity, score_focal
from methods.faprompt import FaPrompt, checkpoint_shapes, image_score, prior, prompt_texts, second_pass
from tests.kit import tiny
from zsadbench.clip.checkpoints import Provenance, load_checkpoint, save_checkpoint
from zsadbench.clip.towers import Clip
from zsadbench.errors import MethodError, WeightsError
from zsadbench.method import Evidence, method_cards, resolve
from zsadbench.training import import_checkpoint


def tower(position: str = "bilinear") -> Clip:
    return tiny.clip("tiny-l14", "quick_gelu", position)


def learned() -> dict[str, Tensor]:
    return {
        name: tiny.draw(name, shape, 0.3) for name, shape in checkpoint_shapes(FaPrompt(), tower()).items()
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faprompt") / "prompts.safetensors"
    save_checkpoint(path, learned(), Provenance("faprompt"))
    return path


def method(checkpoint: Path, variant: str = "", **settings: str) -> FaPrompt:
    given = {"checkpoint": str(checkpoint), **settings}
    spec = f"faprompt{variant}"
    return cast(FaPrompt, resolve(spec, backbone="tiny-l14", weights="random", settings=given).method)


def observe(chosen: FaPrompt, size: int = 112) -> Evidence:
    observer = chosen.prepare(tower(chosen.backbone.position), {"bottle": "", "screw": ""})
    return observer.observe(tiny.batch(tiny.images(5, 3, size), ["bottle", "screw", "bottle"]))


def test_every_variant_changes_what_its_summary_says(checkpoint: Path) -> None:
    reference = observe(method(checkpoint))
    changed = {}
    for name in method_cards()["faprompt"].variants:
        found = observe(method(checkpoint, f"@{name}"))
        changed[name] = {key for key in found if not torch.equal(found[key], reference[key])}
    assert changed == {
        "top-patches": {"map", "score"},
        "no-prior": {"map", "score"},
        "full-precision": {"map", "score"},
        "ln-post": {"score"},
        "no-dpam": {"map", "score"},
        "bicubic-positions": {"map", "score"},
        "rgb-first": set(),  # acts before the tower
    }


def test_the_prompts_see_the_first_patches_or_the_most_anomalous_in_their_order(checkpoint: Path) -> None:
    chosen, tensors = method(checkpoint), learned()
    generator = torch.Generator().manual_seed(2)
    patches = torch.randn(2, 16, 96, generator=generator)
    texts = F.normalize(torch.randn(2, 2, 96, generator=generator), dim=-1)
    first = prior(chosen, tensors, patches, texts)
    moved = patches.clone()
    moved[:, 10:] = 0.5
    assert torch.equal(prior(chosen, tensors, moved, texts), first)

    top = dataclasses.replace(chosen, selection="top")
    difference = (F.normalize(patches, dim=-1) @ (texts[:, 1] - texts[:, 0])[..., None])[..., 0]
    order = difference.argsort(dim=1, descending=True)
    sorted_ones = torch.stack([one[places] for one, places in zip(patches, order, strict=True)])
    assert torch.allclose(prior(top, tensors, patches, texts), prior(chosen, tensors, sorted_ones, texts))
    none = prior(dataclasses.replace(chosen, selection="none"), tensors, patches, texts)
    assert none.shape == (2, 128) and not none.any()


def test_what_is_seen_moves_every_own_vector_of_its_image_alone(checkpoint: Path) -> None:
    chosen, tensors = method(checkpoint), learned()
    bias = torch.zeros(2, 128)
    bias[1, 3] = 2.0
    found = second_pass(chosen, tower(), tensors, bias)
    added = dict(tensors)
    added["ctx_neg"] = tensors["ctx_neg"] + bias[1]
    wanted = second_pass(chosen, tower(), added, torch.zeros(1, 128))
    assert torch.allclose(found[1], wanted[0], atol=1e-5)
    plain = second_pass(chosen, tower(), tensors, torch.zeros(1, 128))
    assert torch.allclose(found[0], plain[0], atol=1e-5)


def test_too_few_patches_are_refused(checkpoint: Path) -> None:
    with pytest.raises(MethodError, match="9 patches are fewer than the 10"):
        observe(method(checkpoint, size="42"), 42)


def test_the_score_weighs_the_first_pass_twice() -> None:
    p1, p2 = torch.tensor([[0.1, 0.6]]), torch.tensor([[0.9, 0.3]])
    found = image_score(FaPrompt(), torch.tensor([0.5]), p1, p2)
    assert float(found) == pytest.approx((0.5 + (2 * 0.6 + 0.9) / 3) / 2)


def test_losses_of_score_and_diversity_by_hand() -> None:
    score, labels = torch.tensor([0.3, 0.8]), torch.tensor([0, 1])
    entropies = [torch.log1p(torch.exp(score[0])), torch.log1p(torch.exp(-score[1]))]
    wanted = sum((1 - torch.exp(-e)) ** 2 * e for e in entropies) / 2
    assert float(score_focal(score, labels)) == pytest.approx(float(wanted), rel=1e-6)
    features = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0]])
    assert float(diversity(features)) == pytest.approx(1.0)


def test_training_starts_as_the_authors_do() -> None:
    start = PriorRecipe().start(FaPrompt(), tower())
    assert {name: tuple(value.shape) for name, value in start.items()} == checkpoint_shapes(
        FaPrompt(), tower()
    )
    assert 0.015 < float(start["ctx_neg"].std()) < 0.025
    assert float(start["patch_meta_net.linear1.bias"].abs().max()) <= 960**-0.5


def test_the_authors_file_becomes_a_checkpoint_and_others_are_refused(tmp_path: Path) -> None:
    clip, tensors = tower(), learned()
    texts = prompt_texts(FaPrompt())
    assert texts == ["N N N N N object.", "N N N N N A A damaged object."]
    ids = [F.pad(row, (0, 77 - len(row))).int() for row in clip.tokenize(texts)]
    embed = clip.text.module.token_embedding
    state = dict(tensors)
    for side, row, count, vectors in (("pos", ids[0], 1, 5), ("neg", ids[1], 10, 7)):
        rows = row.expand(1, count, -1)
        state[f"tokenized_prompts_{side}"] = rows
        state[f"token_prefix_{side}"] = embed(rows[..., :1])
        state[f"token_suffix_{side}"] = embed(rows[..., 1 + vectors :])
    for number in range(8):
        state[f"compound_prompt_projections.{number}.weight"] = torch.zeros(896, 128)
        state[f"compound_prompt_projections.{number}.bias"] = torch.zeros(896)
    assert len(state) == 36
    path = tmp_path / "epoch_7.pth"
    torch.save({"prompt_learner": state}, path)
    out, about = import_checkpoint(
        [path], "faprompt", trained_on="visa", backbone="tiny-l14", weights="random"
    )
    assert about.epoch == 7
    found = load_checkpoint(out, "faprompt", checkpoint_shapes(FaPrompt(), clip))
    assert all(torch.equal(found[name], value) for name, value in tensors.items())

    state["ctx_neg"] = torch.zeros(1, 1, 12, 128)
    torch.save({"prompt_learner": state}, path)
    with pytest.raises(WeightsError, match=r"ctx_neg is 1 x 1 x 12 x 128 in the file, 1 x 10 x 2 x 128"):
        import_checkpoint([path], "faprompt", out=tmp_path / "o", backbone="tiny-l14", weights="random")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value_from": "25"}, "not among 24"),
        ({"deep_prompts": "12"}, "do not fit"),
        ({"deep_length": "6"}, "do not fit"),
        ({"first_weight": "0", "second_weight": "0"}, "nor both zero"),
    ],
)
def test_parameters_that_do_not_fit_are_named(
    checkpoint: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        observe(method(checkpoint, **settings))
